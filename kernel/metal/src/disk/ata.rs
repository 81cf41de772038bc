//! ATA disks at the legacy ports, by programmed I/O (ATA/ATAPI-8 ACS, ATA8-APT).
//!
//! Guest files are read once, at start; the log of a recorded guest is written. Interrupts are off at the drive, and no DMA
//! engine has to be found or trusted.

use core::fmt;

use crate::{time, x86};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Most sectors of one command.
const COMMAND_SECTORS: u64 = 256;
/// A drive may take this long to spin up or to retry a sector.
const TIMEOUT_NS: u64 = 5_000_000_000;
/// Without a calibrated clock, polls of the status register; a poll takes a microsecond on hardware.
const POLL_LIMIT: u64 = 10_000_000;

/// Registers as offsets from the command block's first port.
mod register {
    pub(super) const DATA: u16 = 0;
    pub(super) const ERROR: u16 = 1;
    pub(super) const COUNT: u16 = 2;
    pub(super) const LBA_LOW: u16 = 3;
    pub(super) const LBA_MIDDLE: u16 = 4;
    pub(super) const LBA_HIGH: u16 = 5;
    pub(super) const DEVICE: u16 = 6;
    pub(super) const COMMAND: u16 = 7;
}

mod command {
    pub(super) const READ_SECTORS: u8 = 0x20;
    pub(super) const READ_SECTORS_EXT: u8 = 0x24;
    pub(super) const READ_MULTIPLE_EXT: u8 = 0x29;
    pub(super) const READ_MULTIPLE: u8 = 0xc4;
    pub(super) const WRITE_SECTORS: u8 = 0x30;
    pub(super) const WRITE_SECTORS_EXT: u8 = 0x34;
    pub(super) const SET_MULTIPLE: u8 = 0xc6;
    pub(super) const FLUSH_CACHE: u8 = 0xe7;
    pub(super) const IDENTIFY: u8 = 0xec;
}

const STATUS_ERROR: u8 = 1 << 0;
const STATUS_DATA: u8 = 1 << 3;
const STATUS_FAULT: u8 = 1 << 5;
const STATUS_BUSY: u8 = 1 << 7;
/// No drive drives the bus: the lines float high.
const FLOATING: u8 = 0xff;
/// Device register: LBA addressing; the second drive.
const DEVICE_LBA: u8 = 0xe0;
const DEVICE_SECOND: u8 = 1 << 4;
/// Device control register: no interrupts.
const CONTROL_NO_INTERRUPT: u8 = 1 << 1;

/// The bytes of a sector that was read as words.
pub fn to_bytes(words: &[u32; SECTOR / 4]) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    bytes
}

/// What went wrong with a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtaError {
    /// It did not answer in time.
    Timeout {
        /// Status register at the end.
        status: u8,
    },
    /// It reported an error.
    Device {
        /// Status register.
        status: u8,
        /// Error register.
        error: u8,
    },
    /// The sectors are not on the disk.
    OutOfRange {
        /// First sector.
        lba: u64,
    },
}

impl fmt::Display for AtaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtaError::Timeout { status } => write!(f, "no answer in 5 s (status {status:#04x})"),
            AtaError::Device { status, error } => {
                write!(f, "drive error (status {status:#04x}, error {error:#04x})")
            }
            AtaError::OutOfRange { lba } => write!(f, "sector {lba} is not on the disk"),
        }
    }
}

/// Where a drive can be: command block, control port, first or second drive.
const PLACES: [(&str, u16, u16, bool); 4] = [
    ("ata0 master", 0x1f0, 0x3f6, false),
    ("ata0 slave", 0x1f0, 0x3f6, true),
    ("ata1 master", 0x170, 0x376, false),
    ("ata1 slave", 0x170, 0x376, true),
];

/// A drive.
pub struct Drive {
    /// Which one, for messages.
    pub name: &'static str,
    /// Sectors of the disk.
    pub sectors: u64,
    base: u16,
    control: u16,
    second: bool,
    /// 48-bit addresses are supported.
    extended: bool,
    /// Sectors per data block.
    block: u64,
}

/// Every drive that identifies itself as a disk.
pub fn drives() -> impl Iterator<Item = Drive> {
    PLACES
        .into_iter()
        .filter_map(|(name, base, control, second)| {
            let drive = Drive {
                name,
                sectors: 0,
                base,
                control,
                second,
                extended: false,
                block: 1,
            };
            drive.identify()
        })
}

impl Drive {
    fn input(&self, register: u16) -> u8 {
        // SAFETY: the ports are an ATA channel's by PC convention, or nobody's; a status or error
        // register has no effect on memory.
        unsafe { x86::inb(self.base + register) }
    }

    fn output(&self, register: u16, value: u8) {
        // SAFETY: as in `input`; programmed I/O transfers nothing by itself.
        unsafe { x86::outb(self.base + register, value) };
    }

    /// Selects this drive of the two on the channel and gives it the 400 ns to answer.
    fn select(&self, lba_bits: u8) {
        let second = if self.second { DEVICE_SECOND } else { 0 };
        self.output(register::DEVICE, DEVICE_LBA | second | (lba_bits & 0xf));
        for _ in 0..5 {
            // SAFETY: reading the alternate status register has no effect.
            unsafe { x86::inb(self.control) };
        }
    }

    fn wait(&self, wanted: u8) -> Result<(), AtaError> {
        let start = time::now_ns();
        let mut polls = 0;
        loop {
            let status = self.input(register::COMMAND);
            if status & STATUS_BUSY == 0 {
                if status & (STATUS_ERROR | STATUS_FAULT) != 0 {
                    let error = self.input(register::ERROR);
                    return Err(AtaError::Device { status, error });
                }
                if status & wanted == wanted {
                    return Ok(());
                }
            }
            polls += 1;
            if polls > POLL_LIMIT || time::now_ns() - start > TIMEOUT_NS {
                return Err(AtaError::Timeout { status });
            }
        }
    }

    fn identify(mut self) -> Option<Self> {
        // SAFETY: the device control register only switches the drive's interrupt line off.
        unsafe { x86::outb(self.control, CONTROL_NO_INTERRUPT) };
        if self.input(register::COMMAND) == FLOATING {
            return None;
        }
        self.select(0);
        for register in [
            register::COUNT,
            register::LBA_LOW,
            register::LBA_MIDDLE,
            register::LBA_HIGH,
        ] {
            self.output(register, 0);
        }
        self.output(register::COMMAND, command::IDENTIFY);
        if self.input(register::COMMAND) == 0 {
            return None;
        }
        let answer = self.wait(STATUS_DATA);
        // A CD-ROM refuses and leaves its signature.
        if (
            self.input(register::LBA_MIDDLE),
            self.input(register::LBA_HIGH),
        ) != (0, 0)
        {
            return None;
        }
        if let Err(error) = answer {
            log::warn!("{}: {error}", self.name);
            return None;
        }
        let mut words = [0; SECTOR / 2];
        // SAFETY: the data register of a drive that has data ready.
        unsafe { x86::insw(self.base + register::DATA, &mut words) };
        let long = |at: usize| {
            (0..4)
                .rev()
                .fold(0, |sum, i| sum << 16 | u64::from(words[at + i]))
        };
        self.extended = words[83] & 1 << 10 != 0;
        self.sectors = if self.extended {
            long(100) & 0xffff_ffff_ffff
        } else {
            long(60) & 0x0fff_ffff
        };
        self.set_multiple((words[47] & 0xff) as u8);
        log::debug!(
            "{}: {} MiB, blocks of {} sectors",
            self.name,
            self.sectors >> 11,
            self.block
        );
        (self.sectors > 0).then_some(self)
    }

    /// Asks for data blocks of several sectors, which means fewer waits; one sector each when refused.
    fn set_multiple(&mut self, sectors: u8) {
        if sectors < 2 || !sectors.is_power_of_two() {
            return;
        }
        self.select(0);
        self.output(register::COUNT, sectors);
        self.output(register::COMMAND, command::SET_MULTIPLE);
        if self.wait(0).is_ok() {
            self.block = u64::from(sectors);
        }
    }

    /// Gives a command with a range of sectors.
    fn command(&self, lba: u64, count: u64, command: u8) {
        if self.extended {
            self.select(0);
            self.output(register::COUNT, (count >> 8) as u8);
            self.output(register::LBA_LOW, (lba >> 24) as u8);
            self.output(register::LBA_MIDDLE, (lba >> 32) as u8);
            self.output(register::LBA_HIGH, (lba >> 40) as u8);
        } else {
            self.select((lba >> 24) as u8);
        }
        self.output(register::COUNT, count as u8);
        self.output(register::LBA_LOW, lba as u8);
        self.output(register::LBA_MIDDLE, (lba >> 8) as u8);
        self.output(register::LBA_HIGH, (lba >> 16) as u8);
        self.output(register::COMMAND, command);
    }

    const fn read_command(&self) -> u8 {
        match (self.extended, self.block > 1) {
            (true, true) => command::READ_MULTIPLE_EXT,
            (true, false) => command::READ_SECTORS_EXT,
            (false, true) => command::READ_MULTIPLE,
            (false, false) => command::READ_SECTORS,
        }
    }

    /// Checks that so many words from `lba` on are on the disk.
    fn check_range(&self, lba: u64, words: &[u32]) -> Result<(), AtaError> {
        let wanted = (size_of_val(words) / SECTOR) as u64;
        let inside = lba
            .checked_add(wanted)
            .is_some_and(|end| end <= self.sectors);
        inside.then_some(()).ok_or(AtaError::OutOfRange { lba })
    }

    /// Reads whole sectors from `lba` on; `to` is a multiple of a sector long.
    ///
    /// # Errors
    ///
    /// The sectors are not on the disk, or the drive failed; `to` may be partly filled.
    pub fn read(&mut self, lba: u64, to: &mut [u32]) -> Result<(), AtaError> {
        self.check_range(lba, to)?;
        let mut at = lba;
        for part in to.chunks_mut(COMMAND_SECTORS as usize * SECTOR / 4) {
            let count = (size_of_val(part) / SECTOR) as u64;
            self.command(at, count, self.read_command());
            for block in part.chunks_mut(self.block as usize * SECTOR / 4) {
                self.wait(STATUS_DATA)?;
                // SAFETY: the data register of a drive that has one block ready.
                unsafe { x86::insl(self.base + register::DATA, block) };
            }
            self.wait(0)?;
            at += count;
        }
        Ok(())
    }

    /// Writes whole sectors from `lba` on; `from` is a multiple of a sector long. They are on the disk after
    /// [`Drive::flush`].
    ///
    /// # Errors
    ///
    /// The sectors are not on the disk, or the drive failed; some may have been written.
    pub fn write(&mut self, lba: u64, from: &[u32]) -> Result<(), AtaError> {
        self.check_range(lba, from)?;
        let mut at = lba;
        for part in from.chunks(COMMAND_SECTORS as usize * SECTOR / 4) {
            let count = (size_of_val(part) / SECTOR) as u64;
            let command = if self.extended {
                command::WRITE_SECTORS_EXT
            } else {
                command::WRITE_SECTORS
            };
            self.command(at, count, command);
            for sector in part.chunks(SECTOR / 4) {
                self.wait(STATUS_DATA)?;
                // SAFETY: the data register of a drive that waits for one sector.
                unsafe { x86::outsl(self.base + register::DATA, sector) };
            }
            self.wait(0)?;
            at += count;
        }
        Ok(())
    }

    /// Empties the drive's cache.
    ///
    /// # Errors
    ///
    /// The drive failed.
    pub fn flush(&mut self) -> Result<(), AtaError> {
        self.select(0);
        self.output(register::COMMAND, command::FLUSH_CACHE);
        self.wait(0)
    }
}
