//! `cargo xtask sim`: the simulator of the replication protocol, one seed or many.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, bail};
use sim::{Options, sweep};

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

/// Runs the verb.
///
/// # Errors
///
/// A seed broke a check; the error shows its trace.
pub fn run(arguments: &Arguments) -> Result<()> {
    match (&arguments.seeds, arguments.seed) {
        (Some(seeds), _) => many(seeds),
        (None, seed) => one(seed.unwrap_or(0)),
    }
}

fn one(seed: u64) -> Result<()> {
    let options = Options {
        trace: true,
        ..Options::default()
    };
    match sim::run(seed, &options) {
        Ok(mut outcome) => {
            for line in std::mem::take(&mut outcome.trace) {
                println!("{line}");
            }
            println!("seed {seed} kept every rule\n{outcome:#?}");
            Ok(())
        }
        Err(failure) => bail!("{failure}"),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long it took, on the development host"
)]
fn many(seeds: &Range<u64>) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let begun = Instant::now();
    let result = sweep(seeds.start, seeds.end, threads, &Options::default());
    if let Some(failure) = result.failure {
        bail!("{failure}");
    }
    let total = &result.total;
    println!(
        "{} seeds kept every rule in {:.1} s: {} s simulated, {} datagrams and requests, \
         {} outputs released ({} late), {} takeovers, {} hosts fenced, {} guests started",
        result.passed,
        begun.elapsed().as_secs_f64(),
        total.time.0 / 1_000_000_000,
        total.parcels,
        total.releases,
        total.late_releases,
        total.takeovers,
        total.fenced,
        total.incarnations,
    );
    Ok(())
}
