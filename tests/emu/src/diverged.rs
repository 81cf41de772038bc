//! Guests whose replay must not be the recorded run: what they see is not all in the log, and that has to be noticed.

use anyhow::{Context, ensure};
use boot::Firmware;
use xtask::emulator::Platform;
use xtask::guests::Guest;
use xtask::serial;

use crate::run::{HostRun, Judged, explain};

/// A guest, how it is recorded, and what the report has to say.
#[derive(Debug)]
pub struct Diverging {
    /// Which guest.
    pub guest: &'static str,
    tables: &'static str,
    /// What the report on the divergence has to say.
    says: &'static str,
}

/// All of them.
pub const DIVERGING: [Diverging; 2] = [
    Diverging {
        guest: "rdtsc",
        tables: "\n[test]\nreplays = 1\ncheck_exits = true\nleak_clock_at = 100\n",
        says: "the running digest is",
    },
    Diverging {
        guest: "accessed",
        tables: "\n[test]\nreplays = 1\ncheck_exits = true\nslices = 3\n",
        says: "possible stale translation",
    },
];

impl Diverging {
    /// Whether the difference is noticed at the first exit behind it, and named.
    ///
    /// # Errors
    ///
    /// It is not, with the end of the log.
    pub fn judge(&self, platform: Platform, guests: &[Guest]) -> Judged {
        let guest = guests
            .iter()
            .find(|guest| guest.name == self.guest)
            .with_context(|| format!("no guest {}", self.guest))?;
        let name = format!("{platform}-diverging-{}", self.guest);
        let run = HostRun::new(name, platform, Firmware::Bios, vec![guest.clone()])
            .with(self.tables, &[]);
        let outcome = run.outcome()?;
        judge(&outcome.serial, self).map_err(|error| explain(outcome, &error))
    }
}

fn judge(said: &str, wanted: &Diverging) -> Judged {
    // A guest that was shown the host's time may find that wrong by itself.
    let ended = serial::stop_reason(said, wanted.guest);
    ensure!(
        ended.is_some_and(|reason| reason.starts_with("exit status ")),
        "the recorded guest ended with {ended:?}"
    );
    ensure!(said.contains("divergence: "), "no divergence was reported");
    ensure!(
        said.contains(wanted.says),
        "the report does not say {:?}",
        wanted.says
    );
    let place = said
        .lines()
        .find(|line| line.contains("the executions agreed at "))
        .context("the report does not say where")?;
    let exits = |behind: &str| -> Option<u64> {
        let (_, rest) = place.split_once(behind)?;
        rest.split_once('+')?.0.parse().ok()
    };
    let (agreed, here) = (exits("agreed at "), exits("here: "));
    let (agreed, here) = agreed.zip(here).context("the report does not say where")?;
    ensure!(here == agreed + 1, "it was not noticed at once: {place}");
    Ok(())
}
