//! The guest files: the container found on a disk or in the boot loader's ramdisk, checked as a whole.
//!
//! From a disk it is read once, into 2 MiB frames that are mapped side by side and read-only; the archive's
//! hash covers every byte before any of it is used. Dropping the [`Archive`] gives the frames back, so the
//! files cost memory only while guests are loaded. A ramdisk is used where it lies and given back likewise.

use alloc::vec::Vec;
use core::fmt;

use arch::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use tar_no_std::TarArchiveRef;
use vmm::container::{ContainerError, HEADER_BYTES, Header, PARTITION_TYPE, Seed};
use vmm::partition::{self, PartitionError};

use crate::disk::ata::{self, AtaError, Drive, SECTOR};
use crate::mem::paging::{self, ARCHIVE_BASE, MapError};
use crate::mem::{frames, physmap};

/// Why there are no guest files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// No ramdisk and no disk that could be read.
    NoDisk,
    /// Disks, but none with a container partition.
    NoPartition,
    /// A disk's partition table is wrong.
    Table(&'static str, PartitionError),
    /// The container's partition is smaller than the container.
    PartitionTruncated {
        /// Bytes of header and archive.
        needed: u64,
        /// Bytes of the partition.
        found: u64,
    },
    /// Reading failed.
    Disk(&'static str, AtaError),
    /// The container is malformed.
    Container(ContainerError),
    /// The tar archive in it is malformed.
    Tar,
    /// Not enough memory to hold it.
    OutOfMemory {
        /// Bytes needed.
        needed: u64,
    },
    /// It cannot be mapped.
    Map(MapError),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk => f.write_str("guest files: no ramdisk and no ATA disk"),
            Self::NoPartition => {
                write!(
                    f,
                    "guest files: no disk has a partition of type {PARTITION_TYPE:#04x}"
                )
            }
            Self::Table(disk, error) => write!(f, "guest files: {disk}: {error}"),
            Self::PartitionTruncated { needed, found } => {
                write!(
                    f,
                    "guest files: container of {needed} bytes in a partition of {found}"
                )
            }
            Self::Disk(disk, error) => write!(f, "guest files: {disk}: {error}"),
            Self::Container(error) => write!(f, "guest files: {error}"),
            Self::Tar => f.write_str("guest files: the tar archive is malformed"),
            Self::OutOfMemory { needed } => {
                write!(f, "guest files: no memory for {needed} bytes")
            }
            Self::Map(error) => write!(f, "guest files: {error}"),
        }
    }
}

/// What holds the bytes, and gives them back when dropped.
enum Backing {
    /// 2 MiB frames mapped from [`ARCHIVE_BASE`] on.
    Frames(Vec<Hpa>),
    /// RAM that the boot loader filled, up to `end`.
    Ramdisk { start: Hpa, end: Hpa },
}

impl Drop for Backing {
    fn drop(&mut self) {
        match self {
            Backing::Frames(list) => {
                for (at, frame) in (ARCHIVE_BASE..)
                    .step_by(LARGE_PAGE_SIZE as usize)
                    .zip(list.drain(..))
                {
                    paging::unmap_large(at);
                    frames::free_large(frame);
                }
            }
            Backing::Ramdisk { start, end } => frames::donate(*start, *end),
        }
    }
}

/// The guest files.
pub struct Archive {
    /// Valid as long as `backing` lives: never handed out for longer than a borrow of `self`.
    tar: &'static [u8],
    seed: Option<Seed>,
    _backing: Backing,
}

impl Archive {
    /// Finds the container in the ramdisk if there is one, else on the first disk that has it.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be read, or it is truncated or corrupt.
    pub fn open(ramdisk: Option<(Hpa, u64)>) -> Result<Self, ArchiveError> {
        match ramdisk {
            Some((start, bytes)) => Self::from_ramdisk(start, bytes),
            None => Self::from_disks(),
        }
    }

    fn from_ramdisk(start: Hpa, bytes: u64) -> Result<Self, ArchiveError> {
        // SAFETY: the boot loader put the ramdisk there, in RAM that is in the physical map and is nobody
        // else's until `Backing` is dropped.
        let all: &'static [u8] =
            unsafe { core::slice::from_raw_parts(physmap::ptr(start), bytes as usize) };
        let backing = Backing::Ramdisk {
            start: start.page(),
            end: Hpa((start.0 + bytes).next_multiple_of(PAGE_SIZE)),
        };
        let header = Header::decode(all).map_err(ArchiveError::Container)?;
        let rest = all.get(HEADER_BYTES..).unwrap_or(&[]);
        Self::check(&header, rest, backing)
    }

    fn from_disks() -> Result<Self, ArchiveError> {
        let mut without = ArchiveError::NoDisk;
        // A disk that cannot be read says more than one that holds something else.
        let mut failed = None;
        for mut drive in ata::drives() {
            match find_container(&mut drive) {
                Ok(Some(found)) => return Self::from_partition(&mut drive, found),
                Ok(None) => without = ArchiveError::NoPartition,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or(without))
    }

    fn from_partition(
        drive: &mut Drive,
        found: partition::Partition,
    ) -> Result<Self, ArchiveError> {
        let disk = drive.name;
        let mut first = [0u32; SECTOR / 4];
        let failed = |error| ArchiveError::Disk(disk, error);
        drive.read(found.start, &mut first).map_err(failed)?;
        let header = Header::decode(&ata::to_bytes(&first)).map_err(ArchiveError::Container)?;
        let needed = HEADER_BYTES as u64 + header.tar_bytes;
        let size = found.sectors * SECTOR as u64;
        if needed > size {
            return Err(ArchiveError::PartitionTruncated {
                needed,
                found: size,
            });
        }

        let mut list = Vec::new();
        for _ in 0..needed.div_ceil(LARGE_PAGE_SIZE) {
            match frames::alloc_large() {
                Some(frame) => list.push(frame),
                None => {
                    list.drain(..).for_each(frames::free_large);
                    return Err(ArchiveError::OutOfMemory { needed });
                }
            }
        }
        // From here on dropping `backing` frees the frames; unmapping what is not mapped does nothing.
        let backing = Backing::Frames(list);
        let Backing::Frames(list) = &backing else {
            return Err(ArchiveError::Tar);
        };
        let mut left = needed.next_multiple_of(SECTOR as u64);
        for (at, frame) in (0u64..).zip(list) {
            let bytes = left.min(LARGE_PAGE_SIZE);
            let words = (bytes / 4) as usize;
            // SAFETY: the frame was just allocated for this, is mapped and aligned, and holds `bytes`.
            let to = unsafe {
                core::slice::from_raw_parts_mut(physmap::ptr(*frame).cast::<u32>(), words)
            };
            let lba = found.start + at * (LARGE_PAGE_SIZE / SECTOR as u64);
            drive.read(lba, to).map_err(failed)?;
            let to = ARCHIVE_BASE + at * LARGE_PAGE_SIZE;
            paging::map_at(to, *frame, LARGE_PAGE_SIZE, false).map_err(ArchiveError::Map)?;
            left -= bytes;
        }
        // SAFETY: the frames are mapped side by side and hold at least `needed` bytes; they are written no
        // more and stay mapped until `backing` is dropped.
        let all: &'static [u8] =
            unsafe { core::slice::from_raw_parts(ARCHIVE_BASE as *const u8, needed as usize) };
        Self::check(&header, all.get(HEADER_BYTES..).unwrap_or(&[]), backing)
    }

    fn check(header: &Header, rest: &'static [u8], backing: Backing) -> Result<Self, ArchiveError> {
        let tar = header
            .check_archive(rest)
            .map_err(ArchiveError::Container)?;
        TarArchiveRef::new(tar).map_err(|_| ArchiveError::Tar)?;
        Ok(Self {
            tar,
            seed: header.seed.clone(),
            _backing: backing,
        })
    }

    /// The file with this name.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let archive = TarArchiveRef::new(self.tar).ok()?;
        archive
            .entries()
            .find(|entry| entry.filename().as_str() == Ok(name))
            .map(|entry| entry.data())
    }

    /// The seed that came with the files.
    pub fn seed(&self) -> Option<&Seed> {
        self.seed.as_ref()
    }

    /// Bytes of the archive.
    pub fn bytes(&self) -> usize {
        self.tar.len()
    }
}

fn find_container(drive: &mut Drive) -> Result<Option<partition::Partition>, ArchiveError> {
    let mut first = [0; SECTOR / 4];
    let name = drive.name;
    drive
        .read(0, &mut first)
        .map_err(|error| ArchiveError::Disk(name, error))?;
    partition::find(&ata::to_bytes(&first), drive.sectors, PARTITION_TYPE)
        .map_err(|error| ArchiveError::Table(name, error))
}
