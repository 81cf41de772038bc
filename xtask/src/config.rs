//! Writes the `duet.toml` of a run in an emulator.

use anyhow::{Context, Result};
use arch::nic::Mac;
use serde::Serialize;

use crate::emulator::Platform;
use crate::guests::{Format, Guest};
use crate::linux::{self, Linux};

/// The host's card that a guest has for itself.
const NIC: &str = "guest";

#[derive(Serialize)]
struct File {
    node: Node,
    log: Log,
    host: Host,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nic: Vec<Nic>,
    vm: Vec<Vm>,
}

#[derive(Serialize)]
struct Node {
    name: &'static str,
}

#[derive(Serialize)]
struct Log {
    level: &'static str,
}

#[derive(Serialize)]
struct Host {
    when_idle: &'static str,
    emulator_exit: &'static str,
}

#[derive(Serialize)]
struct Nic {
    name: String,
    role: &'static str,
    mac: String,
}

#[derive(Serialize)]
struct VmNic {
    mac: String,
    nic: String,
}

#[derive(Serialize)]
struct Vm {
    name: String,
    memory_mib: u32,
    kernel: String,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_address: Option<u16>,
    test_devices: bool,
    test_ports: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_limit: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nic: Vec<VmNic>,
}

/// The configuration that runs `guests` and then ends the emulator.
///
/// # Errors
///
/// The hypervisor would refuse it: what `guests.toml` says of a guest is contradictory.
pub fn compose(platform: Platform, guests: &[Guest]) -> Result<String> {
    text(platform, Vec::new(), guests.iter().map(vm).collect()).context("made of guests.toml")
}

/// The configuration that runs a Linux guest named "linux" and then ends the emulator.
///
/// # Errors
///
/// The hypervisor would refuse it: the command line is too long, or the memory too large.
pub fn compose_linux(platform: Platform, guest: &Linux) -> Result<String> {
    let host_nic = |mac: &Mac| Nic {
        name: NIC.to_owned(),
        role: "guest",
        mac: mac.to_string(),
    };
    let nics = guest.mac.iter().map(host_nic).collect();
    text(platform, nics, vec![linux_vm(guest)])
}

fn text(platform: Platform, nic: Vec<Nic>, vm: Vec<Vm>) -> Result<String> {
    let file = File {
        node: Node { name: "duet-a" },
        log: Log { level: "info" },
        host: Host {
            when_idle: "poweroff",
            emulator_exit: platform.emulator_exit(),
        },
        nic,
        vm,
    };
    let text = toml::to_string(&file).context("duet.toml")?;
    vmm::config::Config::parse(&text)?;
    Ok(text)
}

fn linux_vm(guest: &Linux) -> Vm {
    Vm {
        name: "linux".to_owned(),
        memory_mib: guest.memory_mib,
        kernel: linux::KERNEL.to_owned(),
        format: "linux",
        initrd: guest.initrd.is_some().then_some(linux::INITRD),
        cmdline: Some(guest.cmdline.clone()),
        modules: Vec::new(),
        load_address: None,
        test_devices: false,
        test_ports: false,
        console: Some("serial"),
        instruction_limit: guest.instruction_limit,
        exit_limit: None,
        nic: guest
            .mac
            .iter()
            .map(|mac| VmNic {
                mac: mac.to_string(),
                nic: NIC.to_owned(),
            })
            .collect(),
    }
}

fn vm(guest: &Guest) -> Vm {
    Vm {
        name: guest.name.clone(),
        memory_mib: guest.memory_mib,
        kernel: guest.file_name(),
        format: match guest.format {
            Format::Multiboot => "multiboot",
            Format::Flat => "flat",
        },
        initrd: None,
        cmdline: guest.cmdline.clone(),
        modules: guest.modules.clone(),
        load_address: guest.load_address,
        test_devices: !guest.pc,
        test_ports: guest.pc,
        console: None,
        instruction_limit: Some(guest.limit()),
        exit_limit: guest.exit_limit,
        nic: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::Guests;
    use vmm::config::{Config, EmulatorExit, Image};

    #[test]
    fn every_guest_makes_a_configuration_that_the_host_accepts() {
        let guests = Guests::load().unwrap().list;
        let text = compose(Platform::Bochs, &guests).unwrap();
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.guests.len(), guests.len());
        assert_eq!(config.emulator_exit, EmulatorExit::Bochs);
        let hello = guests.iter().position(|g| g.name == "hello").unwrap();
        let Image::Multiboot {
            cmdline, modules, ..
        } = &config.guests[hello].image
        else {
            panic!("hello is a multiboot guest");
        };
        assert_eq!(Some(cmdline), guests[hello].cmdline.as_ref());
        assert_eq!(modules, &guests[hello].modules);
    }
    #[test]
    fn a_linux_guest_makes_a_configuration_that_the_host_accepts() {
        let mut guest = Linux {
            memory_mib: 256,
            kernel: "k".into(),
            initrd: Some("i".into()),
            cmdline: "console=ttyS0 duet.run=\"a 'b'\"".to_owned(),
            mac: None,
            instruction_limit: None,
        };
        let parse = |guest: &Linux| {
            let text = compose_linux(Platform::Qemu, guest).unwrap();
            Config::parse(&text).unwrap().guests.remove(0)
        };
        let parsed = parse(&guest);
        let Image::Linux { cmdline, .. } = &parsed.image else {
            panic!("not a linux guest: {:?}", parsed.image);
        };
        assert_eq!(cmdline, &guest.cmdline);
        let names: Vec<_> = guest.files().into_iter().map(|file| file.name).collect();
        assert_eq!(parsed.image.files().collect::<Vec<_>>(), names);
        assert_eq!((parsed.memory_mib, parsed.limits.instructions), (256, None));

        guest.initrd = None;
        guest.instruction_limit = Some(7);
        let parsed = parse(&guest);
        assert_eq!(parsed.image.files().count(), 1);
        assert_eq!(parsed.limits.instructions, Some(7));

        assert!(parsed.nics.is_empty());
        guest.mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(parse(&guest).nics[0].mac, Mac([2, 0, 0, 0, 0, 9]));

        guest.cmdline = "x".repeat(3000);
        let error = format!("{:#}", compose_linux(Platform::Qemu, &guest).unwrap_err());
        assert!(error.contains("vm.cmdline"), "{error}");
    }
}
