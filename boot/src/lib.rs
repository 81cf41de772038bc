//! Disk images: boot loader and kernel, with `duet.toml` and the guest files beside them.
//!
//! Guest files travel in one [`vmm::container`]. A BIOS disk carries it in a raw partition behind the boot
//! partition, because the loader reads a large ramdisk through the BIOS at about 1 MB/s and hangs
//! beyond 30 MB; a UEFI disk carries it as the loader's ramdisk.

#![forbid(unsafe_code)]

mod disk;
mod payload;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use payload::{CONFIG_NAME, GuestFile, Payload};

/// Which firmware starts the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// MBR disk.
    Bios,
    /// GPT disk.
    Uefi,
}

/// Why an image was not built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("{what} {path}: {source}")]
    File {
        /// What it is: "guest file", "disk image" ….
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name that a ustar archive cannot hold, or that comes twice.
    #[error("guest file name {name:?}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The container would be larger than the hypervisor accepts.
    #[error(
        "guest files make an archive of {bytes} bytes, at most {limit} fit into an image; the largest is {largest} of {largest_bytes} bytes"
    )]
    TooLarge {
        /// Bytes of the archive.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// The largest guest file.
        largest: String,
        /// Its size.
        largest_bytes: u64,
    },
    /// The loader program failed.
    #[error("the boot loader's image builder failed: {0}")]
    Loader(String),
    /// The boot loader's disk is not what this crate knows how to extend.
    #[error("disk image {path}: {reason}")]
    Layout {
        /// Where it is.
        path: PathBuf,
        /// What was not expected.
        reason: &'static str,
    },
}

impl ImageError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { what, path, source }
    }
}

/// Builds a bootable disk at `out`.
///
/// `loader` is the program of `boot/loader`; `kernel` is an ELF, stripped, because a BIOS reads it slowly;
/// `container` comes from [`Payload::container`].
///
/// # Errors
///
/// A file cannot be read or written, or the loader program fails.
pub fn build(
    loader: &Path,
    firmware: Firmware,
    kernel: &Path,
    container: &[u8],
    out: &Path,
) -> Result<(), ImageError> {
    std::fs::metadata(kernel).map_err(ImageError::file("kernel", kernel))?;
    let mut command = Command::new(loader);
    match firmware {
        Firmware::Bios => {
            run(command.arg("bios").arg(kernel).arg(out))?;
            disk::append_container(out, container)
        }
        Firmware::Uefi => {
            let mut ramdisk = tempfile::NamedTempFile::new()
                .map_err(ImageError::file("temporary file", &std::env::temp_dir()))?;
            io::Write::write_all(&mut ramdisk, container)
                .map_err(ImageError::file("ramdisk", ramdisk.path()))?;
            run(command.arg("uefi").arg(kernel).arg(out).arg(ramdisk.path()))
        }
    }
}

/// Adds a partition of `bytes` for the log of a recorded guest to an MBR disk.
///
/// # Errors
///
/// The disk cannot be written, or has no room in its partition table.
pub fn add_log_partition(disk: &Path, bytes: u64) -> Result<(), ImageError> {
    disk::append_log(disk, bytes)
}

/// The log that a recorded guest left on an MBR disk; `None` if there is none.
///
/// # Errors
///
/// The disk cannot be read.
pub fn read_log(disk: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    disk::read_log(disk)
}

fn run(command: &mut Command) -> Result<(), ImageError> {
    let program = PathBuf::from(command.get_program());
    let output = command
        .output()
        .map_err(ImageError::file("boot loader program", &program))?;
    if output.status.success() {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(ImageError::Loader(text.trim().to_owned()))
    }
}
