//! `cargo xtask run`: Duet in an emulator, its serial port on the terminal.

use anyhow::{Result, bail};
use boot::{Firmware, Payload};

use super::image;
use crate::emulator::{End, Machine, Platform, interactive};
use crate::workspace;

/// Starts Duet in an emulator; Ctrl-A x ends it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Which machine.
    #[arg(long, value_enum, default_value_t = Platform::Qemu)]
    pub platform: Platform,
    /// By UEFI firmware instead of a BIOS.
    #[arg(long)]
    pub uefi: bool,
    /// Memory of the machine in MiB.
    #[arg(long, default_value_t = 512)]
    pub mem: u32,
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, or how the run failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let firmware = if arguments.uefi { Firmware::Uefi } else { Firmware::Bios };
    if arguments.uefi && arguments.platform == Platform::Bochs {
        bail!("bochs has no UEFI firmware: leave out --uefi or take --platform qemu");
    }
    let config = format!(
        "[node]\nname = \"duet-a\"\n[host]\nemulator_exit = \"{}\"\n",
        arguments.platform.emulator_exit()
    );
    let disk = workspace::output("run")?.join("duet.img");
    let payload = Payload {
        config,
        files: Vec::new(),
        seed: Some(image::seed()?),
    };
    image::build(firmware, &payload, &disk)?;
    let end = interactive::run(&Machine {
        platform: arguments.platform,
        firmware,
        disk,
        memory_mib: arguments.mem,
    })?;
    match end {
        End::Success => Ok(()),
        other => bail!("{other}"),
    }
}
