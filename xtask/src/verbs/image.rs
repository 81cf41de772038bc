//! `cargo xtask image`: a bootable disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use boot::{Firmware, GuestFile, Payload};
use vmm::container::Seed;

use crate::artifacts;

/// Builds a bootable disk of the hypervisor, a configuration and the guest files it names.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The configuration; guest files are looked for beside it.
    #[arg(long, default_value = "boot/duet.toml")]
    pub config: PathBuf,
    /// Where the disk goes.
    #[arg(long, default_value = "duet.img")]
    pub out: PathBuf,
    /// A GPT disk for UEFI instead of an MBR disk for BIOS.
    #[arg(long)]
    pub uefi: bool,
    /// Puts fresh randomness into the image; it must then be started only once.
    #[arg(long)]
    pub seed: bool,
}

/// Runs the verb.
///
/// # Errors
///
/// What could not be built.
pub fn run(arguments: &Arguments) -> Result<()> {
    let config = std::fs::read_to_string(&arguments.config)
        .with_context(|| arguments.config.display().to_string())?;
    let payload = Payload {
        config,
        files: Vec::<GuestFile>::new(),
        seed: if arguments.seed { Some(seed()?) } else { None },
    };
    let firmware = if arguments.uefi { Firmware::Uefi } else { Firmware::Bios };
    build(firmware, &payload, &arguments.out)?;
    println!("{}", arguments.out.display());
    Ok(())
}

/// Compiles what is needed and writes the disk.
///
/// # Errors
///
/// What could not be built.
pub fn build(firmware: Firmware, payload: &Payload, out: &Path) -> Result<()> {
    let loader = artifacts::loader()?;
    let kernel = artifacts::stripped_kernel()?;
    boot::build(&loader, firmware, &kernel, &payload.container()?, out)?;
    Ok(())
}

/// Fresh randomness for one start.
///
/// # Errors
///
/// The system has none.
pub fn seed() -> Result<Seed> {
    let mut seed = Seed([0; 32]);
    getrandom::fill(&mut seed.0).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(seed)
}
