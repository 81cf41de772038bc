//! Everything a run needs, compiled once, and the number of emulators that may run at the same time.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::artifacts::Artifacts;
use xtask::emulator::{Machine, batch};
use xtask::guests::{self, Guests};
use xtask::workspace;

/// Generous: the slowest run takes a fifth on an idle machine. A run that hits it has hung.
const TIMEOUT: Duration = Duration::from_secs(400);

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

    /// Runs a machine to its end when one of the places for emulators is free. The log stays; the disk goes
    /// if the run ended in order.
    ///
    /// # Errors
    ///
    /// The emulator cannot be started.
    pub fn run(&self, name: &str, machine: &Machine) -> Result<batch::Outcome> {
        let place = Place::take();
        let log = self.directory.join(format!("{name}.log"));
        let outcome = batch::run(machine, &log, TIMEOUT).context("running the emulator")?;
        drop(place);
        Ok(outcome)
    }
}

/// One of the places for emulators, given back when dropped.
struct Place;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Place {
    fn take() -> Self {
        let places = std::thread::available_parallelism().map_or(1, usize::from);
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= places {
            taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
