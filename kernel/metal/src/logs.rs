//! The logs of this host's guests: where a recorded one's goes, and where a replayed one's comes from.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use vmm::log::header::Header;
use vmm::log::store;
use vmm::nondet::{Door, Mode};
use vmm::partition::{self, Partition};
use vmm::record::Recorder;
use vmm::replay::Replayer;

use crate::disk::ata::{self, AtaError, Drive, SECTOR};

/// Bytes moved from a guest's log at a time.
const CHUNK: usize = 64 << 10;
/// Most bytes of a log that is kept in memory.
const MAX_KEPT: usize = 64 << 20;

/// Why a log cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// No disk has a partition for it.
    NoPartition,
    /// The partition is full.
    Full {
        /// Its size in bytes.
        bytes: u64,
    },
    /// It is longer than what is kept in memory.
    TooLong,
    /// Writing failed.
    Disk(&'static str, AtaError),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPartition => write!(
                f,
                "no ATA disk has a partition of type {:#04x}",
                store::PARTITION_TYPE
            ),
            Self::Full { bytes } => write!(f, "its partition of {bytes} bytes is full"),
            Self::TooLong => write!(f, "it is longer than {MAX_KEPT} bytes"),
            Self::Disk(disk, error) => write!(f, "{disk}: {error}"),
        }
    }
}

/// Where a recorded guest's log goes.
pub enum Sink {
    /// Nowhere: it has none.
    None,
    /// Into memory, for replays by the same host.
    Memory(Vec<Box<[u8]>>),
    /// To the log partition.
    Disk(Box<LogPartition>),
}

impl Sink {
    /// Takes what the guest has logged; all of it if `all`, else when it is worth while.
    ///
    /// # Errors
    ///
    /// It cannot be kept.
    pub fn drain(&mut self, recorder: &mut Recorder, all: bool) -> Result<(), LogError> {
        while recorder.waiting() >= if all { 1 } else { CHUNK } {
            match self {
                Sink::None => return Ok(()),
                Sink::Memory(chunks) => {
                    if chunks.len() * CHUNK >= MAX_KEPT {
                        return Err(LogError::TooLong);
                    }
                    let mut chunk = alloc::vec![0; recorder.waiting().min(CHUNK)];
                    recorder.take(&mut chunk);
                    chunks.push(chunk.into_boxed_slice());
                }
                Sink::Disk(disk) => disk.append(recorder)?,
            }
        }
        match self {
            Sink::Disk(disk) if all => disk.finish(),
            _ => Ok(()),
        }
    }
}

/// A log partition that is being written.
pub struct LogPartition {
    drive: Drive,
    partition: Partition,
    /// Bytes of the log on the disk, whole sectors.
    written: u64,
    /// What follows: less than a sector, and room for a chunk.
    tail: Vec<u8>,
}

impl LogPartition {
    /// The first partition for a log on any disk.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be written.
    pub fn find() -> Result<Self, LogError> {
        for mut drive in ata::drives() {
            let mut first = [0; SECTOR / 4];
            let name = drive.name;
            let failed = |error| LogError::Disk(name, error);
            drive.read(0, &mut first).map_err(failed)?;
            let kind = store::PARTITION_TYPE;
            let sector = ata::to_bytes(&first);
            // A disk without a partition table has no such partition either.
            if let Ok(Some(partition)) = partition::find(&sector, drive.sectors, kind) {
                let tail = Vec::with_capacity(CHUNK + SECTOR);
                let mut log = Self {
                    drive,
                    partition,
                    written: 0,
                    tail,
                };
                log.label(0)?;
                return Ok(log);
            }
        }
        Err(LogError::NoPartition)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), LogError> {
        let name = self.drive.name;
        let failed = |error| LogError::Disk(name, error);
        let words: Vec<u32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        self.drive
            .write(self.partition.start + sector, &words)
            .map_err(failed)
    }

    fn label(&mut self, bytes: u64) -> Result<(), LogError> {
        self.write(0, &store::label(bytes))
    }

    fn append(&mut self, recorder: &mut Recorder) -> Result<(), LogError> {
        let start = self.tail.len();
        self.tail.resize(start + recorder.waiting().min(CHUNK), 0);
        if let Some(to) = self.tail.get_mut(start..) {
            recorder.take(to);
        }
        let whole = self.tail.len() / SECTOR * SECTOR;
        self.put(whole)
    }

    /// Writes the first `count` bytes of the tail, whole sectors, and says so on the label.
    fn put(&mut self, count: usize) -> Result<(), LogError> {
        let bytes = (self.partition.sectors - 1) * SECTOR as u64;
        if self.written + count as u64 > bytes {
            return Err(LogError::Full { bytes });
        }
        let rest = self.tail.split_off(count);
        let whole = core::mem::replace(&mut self.tail, rest);
        self.write(1 + self.written / SECTOR as u64, &whole)?;
        self.written += count as u64;
        self.label(self.written)
    }

    fn finish(&mut self) -> Result<(), LogError> {
        let length = self.written + self.tail.len() as u64;
        let padded = self.tail.len().next_multiple_of(SECTOR);
        self.tail.resize(padded, 0);
        self.put(padded)?;
        self.label(length)?;
        let name = self.drive.name;
        self.drive
            .flush()
            .map_err(|error| LogError::Disk(name, error))
    }
}

/// Where a replayed guest's log comes from: pieces, and how much of them has been taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    piece: usize,
    offset: usize,
}

impl Cursor {
    /// Gives the replay as much of `pieces` as it takes, and closes the log behind the last.
    pub fn feed<'a>(
        &mut self,
        mut piece: impl FnMut(usize) -> Option<&'a [u8]>,
        to: &mut Replayer,
    ) {
        while let Some(bytes) = piece(self.piece) {
            self.offset += to.feed(bytes.get(self.offset..).unwrap_or_default());
            if self.offset < bytes.len() {
                return;
            }
            *self = Self {
                piece: self.piece + 1,
                offset: 0,
            };
        }
        to.close();
    }

    /// Behind the header of the log in `bytes`, if it is that of `machine`.
    ///
    /// # Errors
    ///
    /// It is no log, or another machine's: the item is named.
    pub fn behind_header(bytes: &[u8], machine: &Header) -> Result<Self, String> {
        let (header, offset) = Header::decode(bytes).map_err(|error| error.to_string())?;
        header
            .fits(machine)
            .map_err(|misfit| format!("made with another machine: {misfit}"))?;
        Ok(Self { piece: 0, offset })
    }
}

/// The mode of a guest that is recorded.
pub fn recording(header: &Header, every_exit: bool) -> Mode {
    Mode::Recording(Box::new(Recorder::new(&header.encode(), every_exit)))
}

/// The mode of a guest that is replayed.
pub fn replaying() -> Mode {
    Mode::Replaying(Box::new(Replayer::new()))
}

/// What a recorded guest's log consists of, a line each.
pub fn report(name: &str, door: &mut Door, line: fn(fmt::Arguments<'_>)) {
    let Some(recorder) = door.recorder() else {
        return;
    };
    let volumes = recorder.volumes();
    for (kind, volume) in [
        ("answers", volumes.answers),
        ("inputs", volumes.inputs),
        ("outputs", volumes.outputs),
        ("checks", volumes.checks),
    ] {
        line(format_args!(
            "log| vm={name} kind={kind} entries={} bytes={}",
            volume.entries, volume.bytes
        ));
    }
    line(format_args!(
        "log| vm={name} inputs_at_exits={}",
        volumes.at_exits
    ));
}
