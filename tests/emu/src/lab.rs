//! Everything a run needs, compiled once, and the number of emulators that may run at the same time.

use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::artifacts::Artifacts;
use xtask::emulator::Machine;
use xtask::emulator::batch::{self, Typist};
use xtask::guests::{self, Guests};
use xtask::workspace;

/// Generous: the slowest run takes a tenth on an idle machine, ten replays of Linux in Bochs half. A run that hits it has hung.
const TIMEOUT: Duration = Duration::from_secs(1200);

/// What runs share.
pub struct Lab {
    /// Hypervisor and boot loader.
    pub artifacts: Artifacts,
    /// Directory of the guests' images.
    pub images: PathBuf,
    directory: PathBuf,
}

impl Lab {
    /// The laboratory, set up by whoever comes first.
    ///
    /// # Errors
    ///
    /// Something does not compile.
    pub fn get() -> Result<&'static Self> {
        static LAB: OnceLock<Result<Lab, String>> = OnceLock::new();
        LAB.get_or_init(|| Self::set_up().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Hypervisor with deliberate faults, and boot loader.
    ///
    /// # Errors
    ///
    /// Something does not compile.
    pub fn faulty() -> Result<&'static Artifacts> {
        static FAULTY: OnceLock<Result<Artifacts, String>> = OnceLock::new();
        FAULTY
            .get_or_init(|| Artifacts::build_faulty().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn set_up() -> Result<Self> {
        Ok(Self {
            artifacts: Artifacts::build()?,
            images: guests::build(&Guests::load()?)?,
            directory: workspace::output("emu")?,
        })
    }

    /// The disk of the run `name`.
    #[must_use]
    pub fn disk(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.img"))
    }

    /// Runs a machine to its end when one of the places for emulators is free. The largest machine that waits is the
    /// next: most guests run on it, and a long run that comes last leaves the other processors idle.
    ///
    /// # Errors
    ///
    /// The emulator cannot be started.
    pub fn run(
        &self,
        name: &str,
        machine: &Machine,
        typist: Option<Typist>,
    ) -> Result<batch::Outcome> {
        let place = Place::take(machine.memory_mib);
        let log = self.directory.join(format!("{name}.log"));
        let outcome =
            batch::run_typing(machine, &log, TIMEOUT, typist).context("running the emulator")?;
        drop(place);
        Ok(outcome)
    }
}

/// One of the places for emulators, given back when dropped.
struct Place;

struct Places {
    taken: usize,
    /// Sizes of the machines that wait for a place.
    waiting: BinaryHeap<u32>,
}

static PLACES: Mutex<Places> = Mutex::new(Places {
    taken: 0,
    waiting: BinaryHeap::new(),
});
static CHANGED: Condvar = Condvar::new();

fn places() -> MutexGuard<'static, Places> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    fn take(size: u32) -> Self {
        let limit = std::thread::available_parallelism().map_or(1, usize::from);
        let mut places = places();
        places.waiting.push(size);
        while places.taken >= limit || places.waiting.peek() != Some(&size) {
            places = CHANGED.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        places.waiting.pop();
        places.taken += 1;
        CHANGED.notify_all();
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        places().taken -= 1;
        CHANGED.notify_all();
    }
}
