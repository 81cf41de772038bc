//! `cargo xtask <verb>`: everything a developer does with Duet.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use xtask::verbs::{image, run};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, starts and tests Duet")]
enum Verb {
    Image(image::Arguments),
    Run(run::Arguments),
}

fn main() -> Result<()> {
    match Verb::parse() {
        Verb::Image(arguments) => image::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
    }
}
