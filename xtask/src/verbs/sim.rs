//! `cargo xtask sim`: the simulator of the replication protocol, one seed or many.

use std::ops::Range;

use anyhow::Result;

use crate::workspace::{cargo, check};

/// Simulates two hosts and everything that goes wrong between them.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Runs this seed and prints its trace.
    #[arg(long, required_unless_present = "seeds", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Runs the seeds from A up to but not including B, until one fails.
    #[arg(long, value_name = "A..B", value_parser = range)]
    pub seeds: Option<Range<u64>>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (begin, end) = text.split_once("..").ok_or("not of the form A..B")?;
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("`{text}`: {error}"))
    };
    let (begin, end) = (number(begin)?, number(end)?);
    if begin >= end {
        return Err("no seed is in that range".to_owned());
    }
    Ok(begin..end)
}

/// Runs the verb. The simulator is a program of its own, so that not everything here waits for it to compile.
///
/// # Errors
///
/// A seed broke a check; the program has shown its trace.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--package",
        "sim",
        "--bin",
        "sim-seeds",
        "--",
    ]);
    match (&arguments.seeds, arguments.seed) {
        (Some(seeds), _) => command.args([seeds.start, seeds.end].map(|seed| seed.to_string())),
        (None, seed) => command.arg(seed.unwrap_or(0).to_string()),
    };
    check(&mut command)
}
