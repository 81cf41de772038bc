//! One start of a host in an emulator, which several tests judge.

use std::fmt::Write;
use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail, ensure};
use boot::{Firmware, Payload};
use xtask::artifacts::{Artifacts, seed};
use xtask::emulator::batch::Typist;
use xtask::emulator::{End, LAST_LINE, Machine, PANIC, Platform, Processor, batch};
use xtask::guests::{self, Expect, Guest};
use xtask::{config, serial};

use crate::Lab;

/// Memory of the machine besides its guests' in MiB.
const HOST_MEMORY_MIB: u32 = 256;

/// What the host says of a counter that it may rely on.
const PROVEN: &str = "counter: exact, proven on";

/// Nothing, or what was wrong.
pub type Judged = Result<()>;

/// A host with some guests, started at most once, by the first test that wants to know.
pub struct HostRun {
    /// Unique; log and disk are named so.
    pub name: String,
    platform: Platform,
    firmware: Firmware,
    guests: Vec<Guest>,
    tables: &'static str,
    wanted: Vec<&'static str>,
    outcome: OnceLock<Result<batch::Outcome, String>>,
}

impl HostRun {
    /// A run of `guests` on `platform`.
    #[must_use]
    pub fn new(name: String, platform: Platform, firmware: Firmware, guests: Vec<Guest>) -> Self {
        // Under UEFI QEMU does not count exactly.
        let exact = firmware == Firmware::Bios && platform != Platform::Kvm;
        Self {
            name,
            platform,
            firmware,
            guests,
            tables: "",
            wanted: if exact { vec![PROVEN] } else { Vec::new() },
            outcome: OnceLock::new(),
        }
    }

    /// The same with more tables in `duet.toml`; the host has to say all of `wanted`.
    #[must_use]
    pub fn with(self, tables: &'static str, wanted: &[&'static str]) -> Self {
        Self {
            tables,
            wanted: wanted.to_vec(),
            ..self
        }
    }

    /// The guests of this run.
    #[must_use]
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Whether the guest ended as it has to and said what it has to.
    ///
    /// # Errors
    ///
    /// What was different, with the end of the log.
    pub fn judge_guest(&self, guest: &Guest) -> Judged {
        let outcome = self.outcome()?;
        judge_guest(&outcome.serial, guest).map_err(|error| {
            let said: Vec<_> = serial::guest_lines(&outcome.serial, &guest.name).collect();
            let last = said
                .get(said.len().saturating_sub(20)..)
                .unwrap_or_default();
            let error = anyhow!("{error:#}it said last:\n{}\n", last.join("\n"));
            explain(outcome, &error)
        })
    }

    /// Whether the guest ended as it has to, and so many replays were the same run.
    ///
    /// # Errors
    ///
    /// What was different, with the end of the log.
    pub fn judge_replays(&self, guest: &Guest, replays: usize) -> Judged {
        self.judge_guest(guest)?;
        let outcome = self.outcome()?;
        judge_replays(&outcome.serial, &guest.name, replays)
            .map_err(|error| explain(outcome, &error))
    }

    /// Whether the host outlived its guests and ended in order.
    ///
    /// # Errors
    ///
    /// What it did instead, with the end of the log.
    pub fn judge_host(&self) -> Judged {
        let outcome = self.outcome()?;
        for text in &self.wanted {
            if !outcome.serial.contains(text) {
                let error = anyhow!("the host did not say {text:?}");
                return Err(explain(outcome, &error));
            }
        }
        judge_host(&outcome.end, &outcome.serial, &self.guests)
            .map_err(|error| explain(outcome, &error))
    }

    /// What came of the run, which is made when it is asked for first.
    pub(crate) fn outcome(&self) -> Result<&batch::Outcome> {
        self.outcome
            .get_or_init(|| self.run().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    fn run(&self) -> Result<batch::Outcome> {
        let lab = Lab::get()?;
        let payload = Payload {
            config: config::compose(self.platform, &self.guests)? + self.tables,
            files: guests::files(&lab.images, &self.guests),
            seed: Some(seed()?),
        };
        let (artifacts, container) = (&lab.artifacts, payload.container()?);
        start(lab, artifacts, &self.name, self.machine(), &container)
    }

    fn machine(&self) -> Specimen {
        let guests: u32 = self.guests.iter().map(|g| g.memory_mib).sum();
        Specimen {
            platform: self.platform,
            firmware: self.firmware,
            memory_mib: HOST_MEMORY_MIB + guests,
            processor: Processor::Full,
            typist: None,
        }
    }
}

/// A machine without its disk.
#[derive(Clone, Copy, Debug)]
pub struct Specimen {
    /// Which emulator.
    pub platform: Platform,
    /// Which firmware.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What its processor offers.
    pub processor: Processor,
    /// Who sits at its serial port.
    pub typist: Option<Typist>,
}

/// Makes a disk with these bytes as container, and runs it to its end.
///
/// # Errors
///
/// The disk cannot be written, or the emulator cannot be started.
pub fn start(
    lab: &Lab,
    artifacts: &Artifacts,
    name: &str,
    specimen: Specimen,
    container: &[u8],
) -> Result<batch::Outcome> {
    let disk = lab.disk(name);
    artifacts.image_of(specimen.firmware, container, &disk)?;
    let machine = Machine {
        platform: specimen.platform,
        firmware: specimen.firmware,
        disk,
        memory_mib: specimen.memory_mib,
        processor: specimen.processor,
        nics: Vec::new(),
    };
    let outcome = lab.run(name, &machine, specimen.typist)?;
    if matches!(outcome.end, End::Success | End::Failure) {
        std::fs::remove_file(&machine.disk)?;
    }
    Ok(outcome)
}

/// An error with the end of the log and where the rest is.
#[must_use]
pub fn explain(outcome: &batch::Outcome, error: &anyhow::Error) -> anyhow::Error {
    anyhow!(
        "{error:#}\nthe run: {}\nthe log {} ends with:\n{}",
        outcome.end,
        outcome.log.display(),
        serial::tail(&outcome.serial, 40)
    )
}

fn judge_guest(said: &str, guest: &Guest) -> Judged {
    let name = &guest.name;
    let Some(reason) = serial::stop_reason(said, name) else {
        bail!("guest {name} did not stop");
    };
    let mut faults = String::new();
    if !guest.expect.matches(reason) {
        writeln!(
            faults,
            "it stopped with {reason:?}, expected {:?}",
            guest.expect
        )?;
    }
    for text in &guest.expect_output {
        if !serial::guest_lines(said, name).any(|line| line.contains(text)) {
            writeln!(faults, "it did not say {text:?}")?;
        }
    }
    ensure!(faults.is_empty(), "guest {name}:\n{faults}");
    Ok(())
}

/// Whether a recorded guest was replayed so many times, each time to the end that was recorded.
///
/// # Errors
///
/// How often it was not.
pub fn judge_replays(said: &str, name: &str, replays: usize) -> Judged {
    let recorded = serial::stop_reason(said, name).unwrap_or_default();
    let ends: Vec<_> = serial::replays(said, name).collect();
    // Where a limit of exits stops it is the recording host's doing: there the log just ends.
    let same =
        |end: &&&str| **end == recorded || recorded == "exit limit" && **end == "end of the log";
    let good = ends.iter().filter(same).count();
    ensure!(
        good == replays && ends.len() == replays,
        "guest {name}: recorded: {recorded:?}; replayed: {ends:?}"
    );
    Ok(())
}

fn judge_host(end: &End, said: &str, guests: &[Guest]) -> Judged {
    ensure!(!said.contains(PANIC), "the hypervisor panicked");
    ensure!(
        said.contains(LAST_LINE),
        "the host did not outlive its guests"
    );
    let any = guests.iter().any(|g| g.expect == Expect::Any);
    let all_well = guests.iter().all(|g| g.expect == Expect::Exit(0));
    match end {
        End::Success => ensure!(
            any || all_well,
            "the host calls guests a success that were to fail"
        ),
        End::Failure => ensure!(any || !all_well, "the host says that a guest failed"),
        other => bail!("{other}"),
    }
    Ok(())
}
