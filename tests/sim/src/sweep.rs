//! Many seeds on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::world::{Failure, Options, Outcome, run};

/// What a sweep came to.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Seeds that passed.
    pub passed: u64,
    /// The sums over all of them; digest and trace mean nothing here.
    pub total: Outcome,
    /// The lowest seed that failed, of those that were run.
    pub failure: Option<Box<Failure>>,
}

/// Runs the seeds from `begin` up to but not including `end` on `threads` threads, until one fails.
#[must_use]
pub fn sweep(begin: u64, end: u64, threads: usize, options: &Options) -> Sweep {
    let next = AtomicU64::new(begin);
    let stop = AtomicBool::new(false);
    let result = Mutex::new(Sweep::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run(seed, options);
                    let mut sweep = result
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner());
                    match outcome {
                        Ok(outcome) => sweep.add(&outcome),
                        Err(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            let lower = sweep
                                .failure
                                .as_ref()
                                .is_none_or(|known| failure.seed < known.seed);
                            if lower {
                                sweep.failure = Some(failure);
                            }
                        }
                    }
                }
            });
        }
    });
    result
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Sweep {
    fn add(&mut self, outcome: &Outcome) {
        self.passed += 1;
        let total = &mut self.total;
        total.time.0 += outcome.time.0;
        total.parcels += outcome.parcels;
        total.releases += outcome.releases;
        total.late_releases += outcome.late_releases;
        total.takeovers += outcome.takeovers;
        total.fenced += outcome.fenced;
        total.incarnations += outcome.incarnations;
        total.reboots += outcome.reboots;
    }
}
