//! Command lines of QEMU, translated (`-accel tcg`) and on KVM.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use boot::Firmware;

use super::{Machine, Platform};

/// The program, from Debian's `qemu-system-x86`.
pub const PROGRAM: &str = "qemu-system-x86_64";
const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What the first serial port is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// The terminal, shared with QEMU's monitor (Ctrl-A c; Ctrl-A x ends the emulator).
    Terminal,
    /// Standard output.
    Pipe,
}

/// QEMU's arguments. `directory` is the run's own, for files that QEMU writes.
#[must_use]
pub fn arguments(machine: &Machine, serial: Serial, directory: &Path) -> Vec<OsString> {
    let mut line = Vec::new();
    let mut add = |text: &str| line.extend(text.split(' ').map(OsString::from));
    match machine.platform {
        // One instruction per tick makes counting exact. RDRAND and RDSEED cannot be intercepted by SVM.
        Platform::Qemu | Platform::Bochs => {
            add("-accel tcg -icount shift=0,sleep=on");
            add("-cpu max,+svm,+npt,-rdrand,-rdseed");
        }
        // migratable=off passes the invariant TSC on; pmu=on the counters Duet counts with.
        Platform::Kvm => add("-enable-kvm -cpu host,migratable=off,pmu=on"),
    }
    add(&format!("-m {} -no-reboot -nodefaults", machine.memory_mib));
    add("-device isa-debug-exit,iobase=0xf4,iosize=4 -vga std");
    match serial {
        Serial::Terminal => add("-nographic -serial mon:stdio"),
        Serial::Pipe => add("-display none -serial stdio"),
    }
    if machine.firmware == Firmware::Uefi {
        line.push("-drive".into());
        line.push(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE_CODE}").into());
        line.push("-drive".into());
        line.push(file_option("if=pflash,format=raw,file=", &variables(directory)));
    }
    line.push("-drive".into());
    line.push(file_option("if=ide,format=raw,file=", &machine.disk));
    line
}

/// `file=` takes a comma in a path doubled.
fn file_option(prefix: &str, path: &Path) -> OsString {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,")).into()
}

fn variables(directory: &Path) -> std::path::PathBuf {
    directory.join("variables.fd")
}

/// Puts what QEMU needs into `directory`: the firmware's variables are written at every start.
///
/// # Errors
///
/// The UEFI firmware is not installed.
pub fn prepare(machine: &Machine, directory: &Path) -> Result<()> {
    if machine.firmware == Firmware::Uefi {
        std::fs::copy(FIRMWARE_VARIABLES, variables(directory))
            .with_context(|| format!("UEFI firmware {FIRMWARE_VARIABLES} (package ovmf)"))?;
    }
    Ok(())
}

/// What of this machine's KVM is missing for running Duet on it.
///
/// # Errors
///
/// The first missing capability, by name, and how to get it where that is known.
pub fn check_kvm(system: &Path) -> Result<()> {
    let cpuinfo = std::fs::read_to_string(system.join("proc/cpuinfo")).context("/proc/cpuinfo")?;
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let module = if has("vmx") {
        "kvm_intel"
    } else if has("svm") {
        "kvm_amd"
    } else {
        bail!("kvm: this processor shows neither VT-x (flag vmx) nor SVM (flag svm) in /proc/cpuinfo");
    };
    let device = system.join("dev/kvm");
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("kvm: /dev/kvm (module {module}, group kvm)"))?;
    let parameters = system.join("sys/module").join(module).join("parameters");
    let nested = std::fs::read_to_string(parameters.join("nested"))
        .with_context(|| format!("kvm: /sys/module/{module}/parameters/nested"))?;
    if !matches!(nested.trim(), "Y" | "1") {
        bail!("kvm: nested virtualization is off: modprobe -r {module}; modprobe {module} nested=1");
    }
    Ok(())
}
