//! The 8254: three counters, and the port that gates and shows the third one.
//!
//! A counter is a start tick and a count. What it shows and the level of its output are computed from
//! the current tick, so nothing has to be done while it runs.

mod counter;

use counter::{Counter, ReadBack};
use spec::CLOCK;

use crate::time::GuestTime;

/// Facts of the chip (Intel 8254 data sheet, order number 231164-005) and of the PC around it (Intel ICH9 data
/// sheet 316972-004, 13.7.1, for port 0x61).
pub mod spec {
    use crate::time::Clock;

    /// The counters' ports.
    pub const COUNTER_PORT: u16 = 0x40;
    /// The control word's port; it cannot be read.
    pub const CONTROL_PORT: u16 = 0x43;
    /// NMI status and control, with the gate and the output of counter 2.
    pub const CONTROL_B_PORT: u16 = 0x61;
    /// Interrupt line of counter 0.
    pub const IRQ: u8 = 0;

    /// The PC's clock: 105/88 MHz, a twelfth of 14.31818 MHz.
    pub const CLOCK: Clock = Clock::new(105, 88_000);

    /// Port 0x61: gate of counter 2.
    pub const GATE_2: u8 = 1 << 0;
    /// Port 0x61: what software sets, the speaker and two error masks beside the gate.
    pub const WRITABLE: u8 = 0x0f;
    /// Port 0x61: toggles with each memory refresh.
    pub const REFRESH: u8 = 1 << 4;
    /// Ticks between two refreshes, about 15 µs: what firmware programs counter 1 for.
    pub const REFRESH_TICKS: u64 = 18;
    /// Port 0x61: output of counter 2.
    pub const OUTPUT_2: u8 = 1 << 5;
}

/// The timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    counters: [Counter; 3],
    control_b: u8,
}

impl Default for Pit {
    fn default() -> Self {
        let closed = Counter::new(false);
        Self {
            counters: [Counter::new(true), Counter::new(true), closed],
            control_b: 0,
        }
    }
}

/// The tick of an instant. It has fewer than 55 bits.
const fn tick_at(now: GuestTime) -> i64 {
    CLOCK.ticks_at(now) as i64
}

impl Pit {
    /// IN from port 0x40 … 0x43.
    pub fn read(&mut self, now: GuestTime, port: u16) -> u8 {
        let index = usize::from(port.wrapping_sub(spec::COUNTER_PORT));
        match self.counters.get_mut(index) {
            Some(counter) => counter.read(tick_at(now)),
            None => 0xff,
        }
    }

    /// OUT to port 0x40 … 0x43.
    pub fn write(&mut self, now: GuestTime, port: u16, value: u8) {
        let tick = tick_at(now);
        let index = usize::from(port.wrapping_sub(spec::COUNTER_PORT));
        if let Some(counter) = self.counters.get_mut(index) {
            counter.write(tick, value);
        } else if port == spec::CONTROL_PORT {
            self.write_control(tick, value);
        }
    }

    /// IN from port 0x61.
    #[must_use]
    pub fn read_control_b(&self, now: GuestTime) -> u8 {
        let tick = tick_at(now);
        let mut value = self.control_b;
        let refreshes = CLOCK.ticks_at(now) / spec::REFRESH_TICKS;
        if refreshes & 1 == 1 {
            value |= spec::REFRESH;
        }
        if self.counters[2].output(tick) {
            value |= spec::OUTPUT_2;
        }
        value
    }

    /// OUT to port 0x61.
    pub fn write_control_b(&mut self, now: GuestTime, value: u8) {
        self.control_b = value & spec::WRITABLE;
        self.counters[2].set_gate(tick_at(now), value & spec::GATE_2 != 0);
    }

    /// When the output of counter 0, which is interrupt line 0, rises next: a tick. Its falling edges mean nothing
    /// to anyone and are not announced.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        self.counters[0]
            .next_event()
            .and_then(|tick| CLOCK.instant_of(u64::try_from(tick).ok()?))
    }

    /// Time has come to `now`. Returns whether that output has risen by itself since the last time, no matter how
    /// often.
    pub fn advance(&mut self, now: GuestTime) -> bool {
        let tick = tick_at(now);
        for counter in &mut self.counters {
            counter.settle(tick);
        }
        self.counters[0].take_rise()
    }

    fn write_control(&mut self, tick: i64, value: u8) {
        if let Some(command) = ReadBack::parse(value) {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if command.selects(index) {
                    counter.read_back(tick, command);
                }
            }
        } else if let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) {
            counter.control(tick, value);
        }
    }
}

#[cfg(test)]
mod tests;
