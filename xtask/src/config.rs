//! Writes the `duet.toml` of a run in an emulator.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::emulator::Platform;
use crate::guests::{Format, Guest};

#[derive(Serialize)]
struct File {
    node: Node,
    log: Log,
    host: Host,
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
struct Vm {
    name: String,
    memory_mib: u32,
    kernel: String,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_address: Option<u16>,
    test_devices: bool,
    instruction_limit: u64,
}

/// The configuration that runs `guests` and then ends the emulator.
///
/// # Errors
///
/// The hypervisor would refuse it: what `guests.toml` says of a guest is contradictory.
pub fn compose(platform: Platform, guests: &[Guest]) -> Result<String> {
    let file = File {
        node: Node { name: "duet-a" },
        log: Log { level: "info" },
        host: Host {
            when_idle: "poweroff",
            emulator_exit: platform.emulator_exit(),
        },
        vm: guests.iter().map(vm).collect(),
    };
    let text = toml::to_string(&file).context("duet.toml")?;
    vmm::config::Config::parse(&text).context("made of guests.toml")?;
    Ok(text)
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
        cmdline: guest.cmdline.clone(),
        modules: guest.modules.clone(),
        load_address: guest.load_address,
        test_devices: true,
        instruction_limit: guest.limit(),
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
}
