//! The emulated machines Duet runs on, and how a run of one ends.

pub mod batch;
pub mod bochs;
pub mod interactive;
pub mod qemu;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Result, bail, ensure};
use arch::nic::Mac;
use boot::Firmware;

use crate::wire::{At, Plug};

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// QEMU's translator, one instruction per tick: SVM.
    Qemu,
    /// Bochs: VT-x.
    Bochs,
    /// QEMU on KVM: this machine's own VT-x or SVM, nested.
    Kvm,
}

impl Platform {
    /// The value of `host.emulator_exit` in `duet.toml`.
    #[must_use]
    pub fn emulator_exit(self) -> &'static str {
        match self {
            Platform::Qemu | Platform::Kvm => "qemu",
            Platform::Bochs => "bochs",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Platform::Qemu => "qemu",
            Platform::Bochs => "bochs",
            Platform::Kvm => "kvm",
        })
    }
}

/// What the machine's processor offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processor {
    /// Everything Duet needs.
    #[default]
    Full,
    /// Neither VT-x nor SVM.
    NoVirtualization,
    /// Virtualization without nested paging.
    NoNestedPaging,
}

/// One machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Which emulator.
    pub platform: Platform,
    /// Which firmware; Bochs has only a BIOS.
    pub firmware: Firmware,
    /// Its disk.
    pub disk: PathBuf,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// What its processor offers.
    pub processor: Processor,
    /// Its network cards, in the order of their PCI places.
    pub nics: Vec<Nic>,
}

/// The most network cards of a Bochs.
pub const MAX_BOCHS_NICS: usize = 3;

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its address. In Bochs a card receives only frames for this and for all.
    pub mac: Mac,
    /// Which card.
    pub model: NicModel,
    /// Where it leads.
    pub plug: Plug,
}

/// The network cards that emulators have; Bochs has only the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum NicModel {
    /// Intel 82540EM.
    #[default]
    E1000,
    /// Intel 82574L.
    E1000e,
    /// virtio-net over PCI.
    Virtio,
}

impl NicModel {
    /// QEMU's name for it.
    #[must_use]
    pub fn qemu(self) -> &'static str {
        match self {
            NicModel::E1000 => "e1000",
            NicModel::E1000e => "e1000e",
            NicModel::Virtio => "virtio-net-pci",
        }
    }
}

impl Machine {
    /// Whether the emulator has the network cards, and can reach their ports.
    ///
    /// # Errors
    ///
    /// The first that it does not have, or that leads to a port for another emulator.
    pub fn check_nics(&self) -> Result<()> {
        let bochs = self.platform == Platform::Bochs;
        ensure!(
            !bochs || self.nics.len() <= MAX_BOCHS_NICS,
            "bochs has at most {MAX_BOCHS_NICS} network cards, not {}",
            self.nics.len()
        );
        for Nic { mac, model, plug } in &self.nics {
            ensure!(
                !bochs || *model == NicModel::E1000,
                "bochs has only e1000 as network card, not {} ({mac})",
                model.qemu()
            );
            match (&plug.at, bochs) {
                (At::Udp(_), true) | (At::Paths { .. }, false) => {}
                (At::Udp(_) | At::Paths { .. }, _) => {
                    bail!("the card {mac} leads to a port for another emulator")
                }
            }
        }
        Ok(())
    }
}

/// A command for an emulator that ends when the thread that starts it does: otherwise it would outlive an `xtask` that
/// is killed. `setpriv`, of util-linux, asks for the signal and becomes the program.
fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every guest ended with exit status 0.
    Success,
    /// The host ended in order; a guest did not, or the configuration was refused.
    Failure,
    /// The hypervisor panicked.
    Panic,
    /// The emulator was stopped from outside: its status.
    Emulator(String),
    /// It did not end in the time given, in seconds.
    TimedOut(u64),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Success => f.write_str("every guest ended with status 0"),
            End::Failure => f.write_str("a guest failed, or the host refused its configuration"),
            End::Panic => f.write_str("the hypervisor panicked"),
            End::Emulator(status) => write!(f, "the emulator ended by itself: {status}"),
            End::TimedOut(seconds) => write!(f, "not finished after {seconds} s"),
        }
    }
}

/// The host's last line.
pub const LAST_LINE: &str = "duet: all guests stopped";
/// How the line begins that reports a panic of the hypervisor.
pub const PANIC: &str = "duet: panic:";

impl End {
    /// What the emulator's exit status and the host's serial output mean.
    #[must_use]
    pub fn of(platform: Platform, status: ExitStatus, serial: &str) -> Self {
        match (platform, status.code()) {
            // isa-debug-exit makes (value << 1) | 1 of what the host writes.
            (Platform::Qemu | Platform::Kvm, Some(33)) => End::Success,
            (Platform::Qemu | Platform::Kvm, Some(35)) => End::Failure,
            (Platform::Qemu | Platform::Kvm, Some(37)) => End::Panic,
            // Everything that stops Bochs's debugger ends with 0, so the host must have said it too.
            (Platform::Bochs, Some(0)) if serial.contains(LAST_LINE) => End::Success,
            (Platform::Bochs, Some(1)) if serial.contains(PANIC) => End::Panic,
            (Platform::Bochs, Some(1)) => End::Failure,
            _ => End::Emulator(status.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    fn end(platform: Platform, code: i32, serial: &str) -> End {
        End::of(platform, ExitStatus::from_raw(code << 8), serial)
    }

    #[test]
    fn exit_codes_are_translated() {
        assert_eq!(end(Platform::Qemu, 33, ""), End::Success);
        assert_eq!(end(Platform::Qemu, 35, ""), End::Failure);
        assert_eq!(end(Platform::Kvm, 37, ""), End::Panic);
        assert!(matches!(end(Platform::Qemu, 0, ""), End::Emulator(_)));
        assert!(matches!(end(Platform::Qemu, 1, ""), End::Emulator(_)));
        assert_eq!(end(Platform::Bochs, 1, ""), End::Failure);
        assert_eq!(end(Platform::Bochs, 1, "x\nduet: panic: y"), End::Panic);
        assert_eq!(end(Platform::Bochs, 0, LAST_LINE), End::Success);
    }

    fn machine(platform: Platform, plugged_for: Platform, models: &[NicModel]) -> Machine {
        let at = match plugged_for {
            Platform::Bochs => At::Udp(20_000),
            Platform::Qemu | Platform::Kvm => At::Paths {
                machine: "/m".into(),
                wire: "/w".into(),
            },
        };
        let port = crate::wire::Wire::start(0)
            .and_then(|wire| wire.endpoint("x"))
            .unwrap()
            .port();
        let nic = |&model| Nic {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            model,
            plug: Plug {
                port,
                at: at.clone(),
            },
        };
        Machine {
            platform,
            firmware: Firmware::Bios,
            disk: "x".into(),
            memory_mib: 1,
            processor: Processor::Full,
            nics: models.iter().map(nic).collect(),
        }
    }

    #[test]
    fn cards_that_an_emulator_lacks_are_named() {
        use NicModel::{E1000, E1000e, Virtio};
        use Platform::{Bochs, Qemu};
        let check = |platform, plugged_for, models: &[NicModel]| {
            let checked = machine(platform, plugged_for, models).check_nics();
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(Qemu, Qemu, &[E1000, E1000e, Virtio, E1000]), Ok(()));
        assert_eq!(check(Bochs, Bochs, &[E1000; 3]), Ok(()));
        let error = check(Bochs, Bochs, &[E1000; 4]).unwrap_err();
        assert!(error.contains("at most 3"), "{error}");
        let error = check(Bochs, Bochs, &[E1000, Virtio]).unwrap_err();
        assert!(error.contains("virtio-net-pci"), "{error}");
        assert!(check(Qemu, Bochs, &[E1000]).is_err());
        assert!(check(Bochs, Qemu, &[E1000]).is_err());
    }

    #[test]
    fn bochs_has_to_be_told_to_end() {
        // A machine that Bochs stopped for another reason also ends with 0.
        assert!(matches!(
            end(Platform::Bochs, 0, "half a line"),
            End::Emulator(_)
        ));
    }

    #[test]
    fn what_a_thread_started_ends_with_it() {
        let starter = std::thread::spawn(|| {
            let mut child = command("sh")
                .args(["-c", "echo; exec sleep 60"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // It runs, so the signal is asked for.
            let mut line = [0];
            child.stdout.take().unwrap().read_exact(&mut line).unwrap();
            child
        });
        let mut child = starter.join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_signal_is_named() {
        let End::Emulator(text) = End::of(Platform::Qemu, ExitStatus::from_raw(9), "") else {
            panic!("a killed emulator did not end in order");
        };
        assert!(text.contains("signal: 9"), "{text}");
    }
}
