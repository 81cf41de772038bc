//! The emulated machines Duet runs on, and how a run of one ends.

pub mod batch;
pub mod bochs;
pub mod interactive;
pub mod qemu;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;

use boot::Firmware;

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
const LAST_LINE: &str = "duet: all guests stopped";

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
            (Platform::Bochs, Some(1)) if serial.contains("panicked") => End::Panic,
            (Platform::Bochs, Some(1)) => End::Failure,
            _ => End::Emulator(status.to_string()),
        }
    }
}
