//! `cargo xtask <verb>`: everything a developer does with Duet.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use xtask::verbs::{bench, build, image, replay, run, setup, sim, test};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, starts and tests Duet"
)]
enum Verb {
    Setup(setup::Arguments),
    Build(build::Arguments),
    Image(image::Arguments),
    Run(run::Arguments),
    Replay(replay::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Sim(sim::Arguments),
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Image(arguments) => image::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Replay(arguments) => replay::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Sim(arguments) => sim::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one line and without a backtrace: what is missing is the reader's to fix, not ours.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
