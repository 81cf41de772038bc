//! The MC146818: real-time clock and 128 bytes of battery-backed memory.
//!
//! While it runs, date and time are a function of guest time; nothing is counted. They become registers of
//! their own only while the guest has stopped the clock to set it.

mod calendar;
mod reader;

use bitflags::bitflags;
use calendar::{Alarm, Format, Registers};

pub use reader::unix_seconds;

use crate::time::{GuestTime, NS_PER_SECOND, earliest};

/// Facts of the chip (Motorola MC146818 data sheet, 1984) and of the PC's use of its memory (IBM PC/AT technical
/// reference, section 1, "CMOS RAM"; Ralf Brown's interrupt list, file CMOS.LST).
pub mod spec {
    use crate::time::Clock;

    /// Index port; bit 7 keeps NMIs from the processor.
    pub const INDEX_PORT: u16 = 0x70;
    /// Data port.
    pub const DATA_PORT: u16 = 0x71;
    /// Interrupt line.
    pub const IRQ: u8 = 8;
    /// Index port: NMIs are off.
    pub const NMI_OFF: u8 = 1 << 7;
    /// Bytes of memory, registers included.
    pub const BYTES: usize = 128;

    /// Register A: update in progress, divider, rate.
    pub const REGISTER_A: u8 = 0x0a;
    /// Register B: which interrupts are on, how numbers are written.
    pub const REGISTER_B: u8 = 0x0b;
    /// Register C: what interrupted; a read clears it.
    pub const REGISTER_C: u8 = 0x0c;
    /// Register D: the memory is valid.
    pub const REGISTER_D: u8 = 0x0d;
    /// Century, in the format of the other registers; the ACPI tables name this index.
    pub const CENTURY: u8 = 0x32;

    /// Register A: an update is at hand or under way.
    pub const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    /// Register A: divider for a 32.768 kHz crystal.
    pub const DIVIDER_32_KHZ: u8 = 0b010;
    /// Register A, divider: held in reset, for this value and the next.
    pub const DIVIDER_RESET: u8 = 0b110;
    /// The update-in-progress bit leads the update by 244 µs, which takes 1984 µs.
    pub const UPDATE_NS: u64 = (244 + 1984) * 1000;
    /// The first update comes half a second after the divider is let go.
    pub const DIVIDER_START_NS: i64 = 500_000_000;
    /// Register D: valid RAM and time.
    pub const VALID: u8 = 1 << 7;
    /// The crystal: 2¹⁵ ticks per second.
    pub const CLOCK: Clock = Clock::new(512, 15_625_000);

    /// Kilobytes below 640 KiB (two bytes).
    pub const BASE_MEMORY: u8 = 0x15;
    /// Kilobytes above 1 MiB, at most 65 535 (two bytes), here and at [`EXTENDED_MEMORY_COPY`].
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// The same once more.
    pub const EXTENDED_MEMORY_COPY: u8 = 0x30;
    /// 64 KiB blocks above 16 MiB and below 4 GiB (two bytes).
    pub const HIGH_MEMORY: u8 = 0x34;
    /// 64 KiB blocks above 4 GiB (three bytes).
    pub const HUGE_MEMORY: u8 = 0x5b;
    /// Equipment: a coprocessor.
    pub const EQUIPMENT: u8 = 0x14;
    /// Sum of the bytes 0x10 … 0x2d, high byte first.
    pub const CHECKSUM: u8 = 0x2e;
    /// What firmware does after a reset; only stored.
    pub const SHUTDOWN: u8 = 0x0f;
}

use spec::CLOCK;

bitflags! {
    /// Register B.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Control: u8 {
        const DAYLIGHT_SAVING = 1 << 0;
        const HOURS_24 = 1 << 1;
        const BINARY = 1 << 2;
        const SQUARE_WAVE = 1 << 3;
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        const SET = 1 << 7;
    }

    /// Register C.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Flags: u8 {
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        const REQUEST = 1 << 7;
    }
}

/// The clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    index: u8,
    memory: [u8; spec::BYTES],
    control: Control,
    flags: Flags,
    /// Guest time, in nanoseconds, at which the clock showed `base`. It may lie before power-on.
    origin: i128,
    /// Seconds since 1970.
    base: i64,
    /// The guest's idea of the day of the week, as days ahead of the calendar's.
    weekday_shift: u8,
    /// Date and time while the clock stands.
    standing: Option<Registers>,
    /// The instant up to which flags have been raised.
    seen: GuestTime,
}

impl Rtc {
    /// A clock that shows `base` seconds since 1970 at power-on, in a machine with RAM below and above 4 GiB of
    /// that many bytes.
    #[must_use]
    pub fn new(base: u64, low_memory: u64, high_memory: u64) -> Self {
        let mut memory = [0; spec::BYTES];
        let kilobytes = low_memory.saturating_sub(1 << 20) >> 10;
        let blocks = low_memory.saturating_sub(16 << 20) >> 16;
        let extended = kilobytes.min(0xffff);
        for (at, bytes, value) in [
            (spec::BASE_MEMORY, 2, (low_memory >> 10).min(640)),
            (spec::EXTENDED_MEMORY, 2, extended),
            (spec::EXTENDED_MEMORY_COPY, 2, extended),
            (spec::HIGH_MEMORY, 2, blocks.min(0xffff)),
            (spec::HUGE_MEMORY, 3, (high_memory >> 16).min(0xff_ffff)),
            (spec::EQUIPMENT, 1, 0x02),
        ] {
            for (i, byte) in value.to_le_bytes().iter().take(bytes).enumerate() {
                memory[usize::from(at) + i] = *byte;
            }
        }
        // 1024 Hz, the rate after reset on PCs.
        memory[usize::from(spec::REGISTER_A)] = spec::DIVIDER_32_KHZ << 4 | 6;
        let sum: u16 = memory[0x10..0x2e].iter().map(|b| u16::from(*b)).sum();
        let [high, low] = sum.to_be_bytes();
        memory[usize::from(spec::CHECKSUM)] = high;
        memory[usize::from(spec::CHECKSUM) + 1] = low;
        Self {
            index: 0,
            memory,
            control: Control::HOURS_24,
            flags: Flags::empty(),
            origin: 0,
            base: i64::try_from(base)
                .map_or(calendar::LAST_SECOND, |b| b.min(calendar::LAST_SECOND)),
            weekday_shift: 0,
            standing: None,
            seen: GuestTime(0),
        }
    }

    /// The machine is reset: interrupts are off, time and memory stay.
    pub fn reset(&mut self, now: GuestTime) {
        self.advance(now);
        self.index = 0;
        self.flags = Flags::empty();
        self.control &= Control::HOURS_24 | Control::BINARY | Control::SET;
    }

    /// Whether the guest lets NMIs through.
    #[must_use]
    pub const fn nmi_enabled(&self) -> bool {
        self.index & spec::NMI_OFF == 0
    }

    /// OUT to the index port.
    pub fn write_index(&mut self, value: u8) {
        self.index = value;
    }

    /// IN from the index port, which chip sets answer.
    #[must_use]
    pub const fn read_index(&self) -> u8 {
        self.index
    }

    /// IN from the data port.
    pub fn read(&mut self, now: GuestTime) -> u8 {
        self.advance(now);
        let index = self.index & !spec::NMI_OFF;
        match index {
            spec::REGISTER_A => {
                let update = self.updating(now);
                self.memory[usize::from(index)] | if update { spec::UPDATE_IN_PROGRESS } else { 0 }
            }
            spec::REGISTER_B => self.control.bits(),
            spec::REGISTER_C => {
                let mut flags = self.flags;
                flags.set(Flags::REQUEST, self.interrupt());
                self.flags = Flags::empty();
                flags.bits()
            }
            spec::REGISTER_D => spec::VALID,
            _ => match calendar::field(index) {
                Some(field) => self.registers(now).0[field],
                None => self.memory[usize::from(index)],
            },
        }
    }

    /// OUT to the data port.
    pub fn write(&mut self, now: GuestTime, value: u8) {
        self.advance(now);
        let index = self.index & !spec::NMI_OFF;
        match index {
            spec::REGISTER_A => self.write_divider(now, value & !spec::UPDATE_IN_PROGRESS),
            spec::REGISTER_B => self.write_control(now, Control::from_bits_retain(value)),
            spec::REGISTER_C | spec::REGISTER_D => {}
            _ => match calendar::field(index) {
                Some(field) => {
                    let mut registers = self.registers(now);
                    registers.0[field] = value;
                    if self.standing.is_some() {
                        self.standing = Some(registers);
                    } else {
                        self.run(now, registers);
                    }
                }
                None => self.memory[usize::from(index)] = value,
            },
        }
    }

    /// Whether the interrupt line is high: until register C is read.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.flags.bits()
            & self.control.bits()
            & (Flags::UPDATE.bits() | Flags::ALARM.bits() | Flags::PERIODIC.bits())
            != 0
    }

    /// When the interrupt line rises.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        if self.interrupt() {
            return None;
        }
        let mut deadline = None;
        let seconds = Control::UPDATE | Control::ALARM;
        if self.control.intersects(seconds) && self.standing.is_none() {
            let second = self.second_at(self.seen);
            if self.control.contains(Control::UPDATE) {
                deadline = self.instant_of(second + 1);
            }
            if self.control.contains(Control::ALARM) {
                let alarm = self.alarm().next_after(second);
                deadline = earliest(deadline, alarm.and_then(|s| self.instant_of(s)));
            }
        }
        if let Some(period) = self
            .period()
            .filter(|_| self.control.contains(Control::PERIODIC))
        {
            let next = (CLOCK.ticks_at(self.seen) / period + 1) * period;
            deadline = earliest(deadline, CLOCK.instant_of(next));
        }
        deadline
    }

    /// Time has come to `now`: raises the flags of all that happened since the last time.
    pub fn advance(&mut self, now: GuestTime) {
        let before = self.seen;
        if now <= before {
            return;
        }
        self.seen = now;
        if let Some(period) = self.period() {
            let periods = |instant| CLOCK.ticks_at(instant) / period;
            if periods(before) != periods(now) {
                self.flags |= Flags::PERIODIC;
            }
        }
        if self.standing.is_some() {
            return;
        }
        let (from, to) = (self.second_at(before), self.second_at(now));
        if from != to {
            self.flags |= Flags::UPDATE;
            if self
                .alarm()
                .next_after(from)
                .is_some_and(|second| second <= to)
            {
                self.flags |= Flags::ALARM;
            }
        }
    }

    const fn format(&self) -> Format {
        Format {
            binary: self.control.contains(Control::BINARY),
            hours_24: self.control.contains(Control::HOURS_24),
        }
    }

    const fn divider(&self) -> u8 {
        self.memory[spec::REGISTER_A as usize] >> 4 & 7
    }

    /// Crystal ticks between two periodic interrupts (data sheet, table 5).
    const fn period(&self) -> Option<u64> {
        if self.divider() != spec::DIVIDER_32_KHZ {
            return None;
        }
        match self.memory[spec::REGISTER_A as usize] & 0xf {
            0 => None,
            // With this crystal the two fastest rates are those of 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Nanoseconds since the clock showed `base`.
    const fn elapsed(&self, now: GuestTime) -> i128 {
        now.0 as i128 - self.origin
    }

    const fn second_at(&self, now: GuestTime) -> i64 {
        self.base + self.elapsed(now).div_euclid(NS_PER_SECOND as i128) as i64
    }

    /// Nanoseconds into the current second.
    const fn phase(&self, now: GuestTime) -> u64 {
        self.elapsed(now).rem_euclid(NS_PER_SECOND as i128) as u64
    }

    fn instant_of(&self, second: i64) -> Option<GuestTime> {
        let ns = self.origin + i128::from(second - self.base) * i128::from(NS_PER_SECOND);
        u64::try_from(ns).ok().map(GuestTime)
    }

    fn updating(&self, now: GuestTime) -> bool {
        self.standing.is_none() && self.phase(now) >= NS_PER_SECOND - spec::UPDATE_NS
    }

    fn alarm(&self) -> Alarm {
        Alarm::new(
            [self.memory[5], self.memory[3], self.memory[1]],
            self.format(),
        )
    }

    fn registers(&self, now: GuestTime) -> Registers {
        self.standing.unwrap_or_else(|| {
            Registers::at(self.second_at(now), self.weekday_shift, self.format())
        })
    }

    /// The clock goes on from what `registers` hold, with its phase kept.
    fn run(&mut self, now: GuestTime, registers: Registers) {
        let phase = self.phase(now);
        self.standing = None;
        self.origin = i128::from(now.0) - i128::from(phase);
        (self.base, self.weekday_shift) = registers.second(self.format());
    }

    /// The clock stands while it is being set or its divider does not run.
    fn start_or_stop(&mut self, now: GuestTime, registers: Registers) {
        let runs = !self.control.contains(Control::SET) && self.divider() == spec::DIVIDER_32_KHZ;
        if !runs {
            self.standing = Some(registers);
        } else if self.standing.is_some() {
            self.run(now, registers);
        }
    }

    fn write_divider(&mut self, now: GuestTime, value: u8) {
        let registers = self.registers(now);
        let was_reset = self.divider() >= spec::DIVIDER_RESET;
        self.memory[usize::from(spec::REGISTER_A)] = value;
        if was_reset && self.divider() < spec::DIVIDER_RESET {
            self.origin = i128::from(now.0) - i128::from(spec::DIVIDER_START_NS);
        }
        self.start_or_stop(now, registers);
    }

    fn write_control(&mut self, now: GuestTime, mut value: Control) {
        let registers = self.registers(now);
        if value.contains(Control::SET) {
            value -= Control::UPDATE;
        }
        if self.standing.is_none() && value.contains(Control::SET) {
            self.standing = Some(registers);
        }
        self.control = value;
        self.start_or_stop(now, registers);
    }
}

#[cfg(test)]
mod tests;
