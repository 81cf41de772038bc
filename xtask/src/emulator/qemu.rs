//! Command lines of QEMU, translated (`-accel tcg`) and on KVM.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boot::Firmware;

use super::{Machine, Nic, Platform, Processor};
use crate::wire::At;

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
        // RDRAND and RDSEED cannot be intercepted by SVM. CMPXCHG16B leaves flags that depend on where the guest was
        // stopped before (docs/hardware.md).
        Platform::Qemu | Platform::Bochs => {
            let virtualization = match machine.processor {
                Processor::Full => "+svm,+npt",
                Processor::NoVirtualization => "-svm",
                Processor::NoNestedPaging => "+svm,-npt",
            };
            add(&format!(
                "-accel tcg -cpu max,{virtualization},-rdrand,-rdseed,-cx16"
            ));
            // One tick per instruction makes counting exact. OVMF polls for a TPM until 5 s of virtual time are
            // over, which would take minutes then; under UEFI the host does without an exact count.
            if machine.firmware == Firmware::Bios {
                add("-icount shift=0,sleep=on");
            }
        }
        // migratable=off passes the invariant TSC on; pmu=on the counters Duet counts with.
        Platform::Kvm => {
            let virtualization = match machine.processor {
                Processor::Full => "",
                Processor::NoVirtualization => ",-vmx,-svm",
                Processor::NoNestedPaging => ",-vmx-ept,-npt",
            };
            add(&format!(
                "-enable-kvm -cpu host,migratable=off,pmu=on{virtualization}"
            ));
        }
    }
    add(&format!("-m {} -no-reboot -nodefaults", machine.memory_mib));
    add("-device isa-debug-exit,iobase=0xf4,iosize=4 -vga std");
    match serial {
        Serial::Terminal => add("-display none -serial mon:stdio"),
        Serial::Pipe => add("-display none -serial stdio"),
    }
    if machine.firmware == Firmware::Uefi {
        line.push("-drive".into());
        line.push(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE_CODE}").into());
        line.push("-drive".into());
        line.push(file_option(
            "if=pflash,format=raw,file=",
            &variables(directory),
        ));
    }
    line.push("-drive".into());
    line.push(file_option("if=ide,format=raw,file=", &machine.disk));
    for (number, nic) in machine.nics.iter().enumerate() {
        line.extend(card(number, nic));
    }
    if let Some(monitor) = machine.nics.first().and_then(monitor) {
        line.push("-qmp".into());
        let mut qmp = file_option("unix:", &monitor);
        qmp.push(",server=on,wait=off");
        line.push(qmp);
    }
    line
}

/// The arguments for the network card of this number. It has no option ROM: nothing is booted from it.
#[must_use]
pub fn card(number: usize, nic: &Nic) -> Vec<OsString> {
    let At::Paths { machine, wire } = &nic.plug.at else {
        // Refused by `Machine::check_nics`.
        return Vec::new();
    };
    let mut net = file_option(
        &format!("dgram,id=net{number},local.type=unix,local.path="),
        machine,
    );
    net.push(file_option(",remote.type=unix,remote.path=", wire));
    let device = format!(
        "{},netdev=net{number},mac={},romfile=",
        nic.model.qemu(),
        nic.mac
    );
    vec!["-netdev".into(), net, "-device".into(), device.into()]
}

/// Where the machine with this card takes commands (QMP).
fn monitor(nic: &Nic) -> Option<PathBuf> {
    match &nic.plug.at {
        At::Paths { machine, .. } => Some(machine.with_extension("qmp")),
        At::Udp(_) => None,
    }
}

/// Pulls or plugs the cable of the card `number` of a machine that runs.
///
/// # Errors
///
/// It does not run, or does not take the command.
pub fn set_link(nics: &[Nic], number: usize, up: bool) -> Result<()> {
    let path = nics.first().and_then(monitor).context("no monitor")?;
    let stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let arguments = format!("{{\"name\": \"net{number}\", \"up\": {up}}}");
    let command = format!("{{\"execute\": \"set_link\", \"arguments\": {arguments}}}");
    for command in ["{\"execute\": \"qmp_capabilities\"}", &command] {
        (&stream).write_all(command.as_bytes())?;
        // The greeting and events come between.
        loop {
            let answer = answers.next().context("the monitor is gone")??;
            if answer.contains("\"error\"") {
                bail!("{command}: {answer}");
            }
            if answer.contains("\"return\"") {
                break;
            }
        }
    }
    Ok(())
}

/// `file=` takes a comma in a path doubled.
fn file_option(prefix: &str, path: &Path) -> OsString {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,")).into()
}

fn variables(directory: &Path) -> PathBuf {
    directory.join("variables.fd")
}

/// Puts what QEMU needs into `directory`: the firmware's variables are written at every start.
///
/// # Errors
///
/// The UEFI firmware is not installed, or QEMU does not have the machine's network cards.
pub fn prepare(machine: &Machine, directory: &Path) -> Result<()> {
    machine.check_nics()?;
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
        bail!(
            "kvm: this processor shows neither VT-x (flag vmx) nor SVM (flag svm) in /proc/cpuinfo"
        );
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
        bail!(
            "kvm: nested virtualization is off: modprobe -r {module}; modprobe {module} nested=1"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn line(platform: Platform, firmware: Firmware, serial: Serial) -> String {
        let machine = Machine {
            platform,
            firmware,
            disk: PathBuf::from("/disks/a,b.img"),
            memory_mib: 768,
            processor: Processor::Full,
            nics: Vec::new(),
        };
        let arguments = arguments(&machine, serial, Path::new("/run/x"));
        let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn cards_lead_to_their_ports() {
        let wire = crate::wire::Wire::start(0).unwrap();
        let nic = Nic {
            mac: arch::nic::Mac([2, 0, 0, 0, 0, 1]),
            model: crate::emulator::NicModel::E1000e,
            plug: crate::wire::Plug {
                port: wire.endpoint("x").unwrap().port(),
                at: At::Paths {
                    machine: "/a,b/m".into(),
                    wire: "/w".into(),
                },
            },
        };
        assert_eq!(
            card(1, &nic),
            [
                "-netdev",
                "dgram,id=net1,local.type=unix,local.path=/a,,b/m,remote.type=unix,remote.path=/w",
                "-device",
                "e1000e,netdev=net1,mac=02:00:00:00:00:01,romfile=",
            ]
        );
    }

    #[test]
    fn translated_machines_count_exactly() {
        let line = line(Platform::Qemu, Firmware::Bios, Serial::Pipe);
        assert_eq!(
            line,
            "-accel tcg -cpu max,+svm,+npt,-rdrand,-rdseed,-cx16 -icount shift=0,sleep=on -m 768 -no-reboot -nodefaults \
             -device isa-debug-exit,iobase=0xf4,iosize=4 -vga std -display none -serial stdio \
             -drive if=ide,format=raw,file=/disks/a,,b.img"
        );
    }

    #[test]
    fn kvm_passes_processor_and_counters_on() {
        let line = line(Platform::Kvm, Firmware::Bios, Serial::Terminal);
        assert_eq!(
            line,
            "-enable-kvm -cpu host,migratable=off,pmu=on -m 768 -no-reboot -nodefaults \
             -device isa-debug-exit,iobase=0xf4,iosize=4 -vga std -display none -serial mon:stdio \
             -drive if=ide,format=raw,file=/disks/a,,b.img"
        );
    }

    #[test]
    fn uefi_brings_its_firmware_and_variables_of_its_own() {
        let line = line(Platform::Kvm, Firmware::Uefi, Serial::Pipe);
        assert!(
            line.contains("if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"),
            "{line}"
        );
        assert!(
            line.contains("if=pflash,format=raw,file=/run/x/variables.fd"),
            "{line}"
        );
    }

    /// A `/proc`, `/sys` and `/dev` with these contents.
    fn system(flags: &str, device: bool, nested: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "proc/cpuinfo",
            &format!("processor : 0\nflags : fpu {flags} sse\n"),
        );
        if device {
            write("dev/kvm", "");
        }
        if let Some(nested) = nested {
            write("sys/module/kvm_amd/parameters/nested", nested);
        }
        root
    }

    #[test]
    fn what_kvm_lacks_is_named() {
        let missing = |system: tempfile::TempDir| {
            format!(
                "{:#}",
                check_kvm(system.path()).expect_err("something is missing")
            )
        };
        assert!(missing(system("nothing", true, Some("1"))).contains("neither VT-x"));
        assert!(missing(system("svm", false, Some("1"))).contains("/dev/kvm"));
        let absent = missing(system("svm", true, None));
        assert!(absent.contains("kvm_amd/parameters/nested"), "{absent}");
        let off = missing(system("svm", true, Some("0\n")));
        assert!(off.contains("modprobe kvm_amd nested=1"), "{off}");
        let intel = missing(system("vmx", true, Some("1")));
        assert!(intel.contains("kvm_intel"), "{intel}");
        assert!(check_kvm(system("svm", true, Some("Y\n")).path()).is_ok());
        assert!(check_kvm(system("svm", true, Some("1\n")).path()).is_ok());
    }
}
