//! `loader bios|uefi KERNEL DISK [RAMDISK]`: makes a bootable disk of a kernel ELF.
//!
//! The only program that links the `bootloader` crate, whose own stages compile slowly and with
//! unstable features. `cargo xtask` builds it with `RUSTC_BOOTSTRAP=1` in a target directory of its own, so that
//! neither the wait nor the switch reaches the rest of the workspace.

#![forbid(unsafe_code)]

mod boot_partition;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bootloader::{BootConfig, DiskImageBuilder};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: loader bios|uefi KERNEL DISK [RAMDISK]";
    let firmware = arguments.next().context(usage)?;
    let kernel = PathBuf::from(arguments.next().context(usage)?);
    let disk = PathBuf::from(arguments.next().context(usage)?);

    let mut builder = DiskImageBuilder::new(kernel);
    if let Some(ramdisk) = arguments.next() {
        builder.set_ramdisk(ramdisk.into());
    }
    // The serial port belongs to the hypervisor; the loader's own messages stay on the screen.
    let mut config = BootConfig::default();
    config.serial_logging = false;
    config.log_level = bootloader_boot_config::LevelFilter::Warn;
    builder.set_boot_config(&config);

    match firmware.to_str() {
        Some("bios") => builder
            .create_bios_image(&disk)
            .and_then(|()| boot_partition::with_large_clusters(&disk)),
        Some("uefi") => builder.create_uefi_image(&disk),
        _ => bail!(usage),
    }
    .with_context(|| format!("cannot write {}", disk.display()))
}
