//! Deliberate faults of the hypervisor, each of which must end in one clean panic that says what happened.

use anyhow::ensure;
use boot::{Firmware, GuestFile, Payload};
use xtask::config;
use xtask::emulator::{End, Platform, Processor};

use crate::Lab;
use crate::run::{Judged, Specimen, explain, start};

/// A fault, by its name in `docs/bring-up.md`.
pub struct Fault {
    /// What the guest file says.
    pub name: &'static str,
    /// What the panic says; `None` if there must be no panic.
    panic: Option<&'static str>,
}

const fn fault(name: &'static str, panic: &'static str) -> Fault {
    Fault {
        name,
        panic: Some(panic),
    }
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    fault("panic", "asked for by a bring-up test"),
    fault("panic-twice", "again"),
    fault("stack-overflow", "in the guard page of the main stack"),
    fault("divide-error", "#DE"),
    fault("undefined-opcode", "#UD"),
    fault("write-text", "#PF"),
    fault("write-constant", "#PF"),
    fault("execute-data", "#PF"),
    fault("double-free", "free"),
    fault("null", "#PF"),
    Fault {
        name: "nmi",
        panic: None,
    },
];

impl Fault {
    /// Starts a host that performs it and judges the end.
    ///
    /// # Errors
    ///
    /// The host did something else.
    pub fn judge(&self, platform: Platform) -> Judged {
        let lab = Lab::get()?;
        let order = tempfile::NamedTempFile::new()?;
        std::fs::write(order.path(), self.name)?;
        let payload = Payload {
            config: config::compose(platform, &[])?,
            files: vec![GuestFile {
                name: "bringup-test".to_owned(),
                path: order.path().to_owned(),
            }],
            seed: None,
        };
        let machine = Specimen {
            platform,
            firmware: Firmware::Bios,
            memory_mib: 128,
            processor: Processor::Full,
            typist: None,
        };
        let name = format!("{platform}-fault-{}", self.name);
        let container = payload.container()?;
        let outcome = start(lab, Lab::faulty()?, &name, machine, &container)?;
        self.judge_end(&outcome.end, &outcome.serial)
            .map_err(|error| explain(&outcome, &error))
    }

    fn judge_end(&self, end: &End, said: &str) -> Judged {
        let Some(what) = self.panic else {
            ensure!(*end == End::Success, "the host did not go on");
            return Ok(());
        };
        ensure!(*end == End::Panic, "the host did not panic");
        let report = said.find("panic: ").and_then(|at| said.get(at..));
        ensure!(
            report.is_some_and(|report| report.contains(what)),
            "the panic does not say {what:?}"
        );
        Ok(())
    }
}
