//! `sim-seeds SEED`: runs a seed and prints its trace. `sim-seeds A B`: runs the seeds from A up to but not including
//! B, until one fails. `cargo xtask sim` starts it.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use sim::{Options, sweep};

fn main() -> ExitCode {
    let arguments: Result<Vec<u64>, _> = std::env::args().skip(1).map(|a| a.parse()).collect();
    let result = match arguments.as_deref() {
        Ok([seed]) => one(*seed),
        Ok([begin, end]) => many(*begin, *end),
        _ => Err("usage: sim-seeds SEED | sim-seeds BEGIN END".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn one(seed: u64) -> Result<(), String> {
    let options = Options {
        trace: true,
        ..Options::default()
    };
    let mut outcome = sim::run(seed, &options).map_err(|failure| failure.to_string())?;
    for line in std::mem::take(&mut outcome.trace) {
        println!("{line}");
    }
    println!("seed {seed} kept every rule\n{outcome:#?}");
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long it took, on the development host"
)]
fn many(begin: u64, end: u64) -> Result<(), String> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let begun = Instant::now();
    let result = sweep(begin, end, threads, &Options::default());
    if let Some(failure) = result.failure {
        return Err(failure.to_string());
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
