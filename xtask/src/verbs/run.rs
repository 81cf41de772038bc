//! `cargo xtask run`: Duet in an emulator, its serial port on the terminal.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use boot::{Firmware, Payload};

use super::image::{firmware, read_config};
use crate::artifacts::{Artifacts, seed};
use crate::emulator::{End, Machine, Platform, Processor, interactive, qemu};
use crate::guests::{self, Guests};
use crate::needs::{self, Need};
use crate::{config, workspace};

/// Starts Duet in an emulator; Ctrl-A x ends it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Which machine.
    #[arg(long, value_enum, default_value_t = Platform::Qemu)]
    pub platform: Platform,
    /// By UEFI firmware instead of a BIOS (not in Bochs).
    #[arg(long)]
    pub uefi: bool,
    /// The test guest to run, of tests/guests/guests.toml.
    #[arg(long, value_name = "NAME", default_value = "hello")]
    pub guest: String,
    /// A configuration of your own instead of a test guest; guest files are looked for beside it.
    #[arg(long, value_name = "FILE", conflicts_with = "guest")]
    pub config: Option<PathBuf>,
    /// Memory of the machine in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub mem: u32,
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, or how the run failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let firmware = firmware(arguments.uefi);
    check_platform(arguments.platform, firmware)?;
    // A wrong configuration or name is cheaper to find than a missing package.
    let own = arguments.config.as_deref().map(read_config).transpose()?;
    let guests = Guests::load()?;
    let guest = guests.named(&arguments.guest)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(arguments.platform, arguments.uefi))?;

    let artifacts = Artifacts::build()?;
    let (config, files) = match own {
        Some(own) => own,
        None => {
            let config = config::compose(arguments.platform, std::slice::from_ref(guest))?;
            (config, guests::files(&guests::build(&guests)?, [guest]))
        }
    };
    let payload = Payload {
        config,
        files,
        seed: Some(seed()?),
    };
    let disk = workspace::output("run")?.join("duet.img");
    artifacts.image(firmware, &payload, &disk)?;
    let end = interactive::run(&Machine {
        platform: arguments.platform,
        firmware,
        disk,
        memory_mib: arguments.mem,
        processor: Processor::Full,
    })?;
    report(&end)
}

/// Refuses combinations that do not exist and a KVM that cannot run Duet.
///
/// # Errors
///
/// What is not possible, and what is instead.
pub fn check_platform(platform: Platform, firmware: Firmware) -> Result<()> {
    match (platform, firmware) {
        (Platform::Bochs, Firmware::Uefi) => {
            bail!("bochs has no UEFI firmware: leave out --uefi, or take --platform qemu")
        }
        (Platform::Kvm, _) => qemu::check_kvm(Path::new("/")),
        (Platform::Qemu | Platform::Bochs, _) => Ok(()),
    }
}

fn report(end: &End) -> Result<()> {
    match end {
        End::Success => Ok(()),
        // Ctrl-A x, or a host that was told to switch off.
        End::Emulator(status) if status.ends_with(": 0") => Ok(()),
        end => bail!("{end}"),
    }
}
