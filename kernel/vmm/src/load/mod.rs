//! Starting a guest: its image goes into RAM, and the state its processor starts in comes out.

mod elf32;
mod flat;
mod linux;
mod multiboot;

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use arch::addr::Gpa;
use arch::regs::CpuState;

use crate::config::Image;
use crate::memory::{GuestMemory, NotRam};

/// The files of the guest archive.
pub trait GuestFiles {
    /// The contents of a file.
    fn file(&self, name: &str) -> Option<&[u8]>;
}

/// Gives a guest that was just loaded a seed for its random numbers, if it takes one and the host has any. The seed comes
/// through the door, four answers: every start asks, so that a replay does too.
///
/// # Errors
///
/// There is less memory than a guest that was loaded has.
pub fn seed<M: GuestMemory>(
    image: &Image,
    memory: &mut M,
    mut random: impl FnMut() -> u64,
) -> Result<(), NotRam> {
    if !matches!(image, Image::Linux { .. }) {
        return Ok(());
    }
    let seed = [random(), random(), random(), random()];
    // A seed that everybody can guess must not pass for one.
    if seed == [0; 4] {
        return Ok(());
    }
    linux::seed(memory, seed)
}

/// Why a guest could not be loaded; `file` is the culprit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The file of the guest archive.
    pub file: String,
    /// What is wrong with it.
    pub cause: Cause,
}

/// What is wrong with a guest's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is not in the archive.
    Missing,
    /// It is empty.
    Empty,
    /// No Multiboot 1 header with a right checksum in the first 8 KiB.
    NoMultibootHeader,
    /// The header requires something that is not offered (flag bits).
    Required(u32),
    /// Not a little-endian ELF32 executable for the 386.
    NotElf32,
    /// The file ends before something its headers promise.
    Truncated,
    /// Load addresses that contradict each other.
    Contradictory,
    /// A part of it would lie outside of guest RAM.
    DoesNotFit {
        /// First byte behind the part.
        end: u64,
        /// Bytes of guest RAM.
        memory: u64,
    },
    /// The entry point lies outside of what was loaded.
    BadEntry(u32),
    /// No setup header of a kernel that is loaded above 1 MiB.
    NotBzImage,
    /// A Linux boot protocol without the fields that are needed; its number, major × 256 + minor.
    TooOld(u16),
    /// More command line than the kernel takes.
    CommandLineTooLong {
        /// Bytes of the command line.
        bytes: usize,
        /// Bytes the kernel takes.
        limit: u32,
    },
    /// It does not fit between the kernel and the highest address where it may be.
    NoRoom {
        /// Bytes of it.
        bytes: u64,
        /// First byte behind the kernel.
        from: u64,
        /// First byte behind what it may take.
        to: u64,
    },
    /// RAM would reach into the addresses of devices.
    TooMuchMemory {
        /// Bytes of guest RAM.
        memory: u64,
        /// Most bytes there can be.
        limit: u64,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest file {:?}: ", self.file)?;
        match self.cause {
            Cause::Missing => f.write_str("not in the guest archive"),
            Cause::Empty => f.write_str("is empty"),
            Cause::NoMultibootHeader => f.write_str("has no Multiboot 1 header in its first 8 KiB"),
            Cause::Required(flags) => {
                write!(
                    f,
                    "its Multiboot header requires what is not offered (flags {flags:#x})"
                )
            }
            Cause::NotElf32 => f.write_str("is not a 32-bit x86 ELF executable"),
            Cause::Truncated => f.write_str("is truncated"),
            Cause::Contradictory => f.write_str("its load addresses contradict each other"),
            Cause::DoesNotFit { end, memory } => {
                write!(f, "would end at {end:#x}, guest RAM ends at {memory:#x}")
            }
            Cause::BadEntry(entry) => write!(f, "its entry point {entry:#x} is not in it"),
            Cause::NotBzImage => f.write_str("is not a bzImage"),
            Cause::TooOld(version) => {
                let (major, minor) = (version >> 8, version & 0xff);
                write!(f, "its boot protocol {major}.{minor} is older than 2.10")
            }
            Cause::CommandLineTooLong { bytes, limit } => {
                write!(
                    f,
                    "takes a command line of {limit} bytes, vm.cmdline has {bytes}"
                )
            }
            Cause::NoRoom { bytes, from, to } => {
                write!(
                    f,
                    "its {bytes} bytes do not fit between the kernel's end {from:#x} and {to:#x}"
                )
            }
            Cause::TooMuchMemory { memory, limit } => {
                write!(
                    f,
                    "{memory:#x} bytes of RAM, at most {limit:#x} fit below the devices"
                )
            }
        }
    }
}

impl core::error::Error for LoadError {}

/// Loads `image` into `memory`, which is zero, and returns the state the guest starts in.
///
/// # Errors
///
/// The file that is missing or wrong.
pub fn load<M: GuestMemory>(
    image: &Image,
    files: &impl GuestFiles,
    memory: &mut M,
) -> Result<CpuState, LoadError> {
    match image {
        Image::Flat {
            kernel,
            load_address,
        } => {
            let bytes = find(files, kernel)?;
            flat::load(bytes, *load_address, memory).map_err(|cause| named(kernel, cause))
        }
        Image::Multiboot {
            kernel,
            cmdline,
            modules,
        } => multiboot::load(kernel, cmdline, modules, files, memory),
        Image::Linux {
            kernel,
            initrd,
            cmdline,
        } => linux::load(kernel, initrd.as_deref(), cmdline, files, memory),
    }
}

fn named(file: &str, cause: Cause) -> LoadError {
    LoadError {
        file: file.to_owned(),
        cause,
    }
}

fn find<'a>(files: &'a impl GuestFiles, name: &str) -> Result<&'a [u8], LoadError> {
    match files.file(name) {
        None => Err(named(name, Cause::Missing)),
        Some([]) => Err(named(name, Cause::Empty)),
        Some(bytes) => Ok(bytes),
    }
}

/// Writes to guest RAM, or says what does not fit.
fn place<M: GuestMemory>(memory: &mut M, at: u64, bytes: &[u8]) -> Result<(), Cause> {
    let end = at.saturating_add(bytes.len() as u64);
    let does_not_fit = Cause::DoesNotFit {
        end,
        memory: memory.size(),
    };
    memory
        .write(Gpa(at), bytes)
        .map_err(|NotRam(_)| does_not_fit)
}
