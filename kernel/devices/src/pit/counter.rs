//! One counter of the 8254.

/// Modes (data sheet, "Mode Definitions").
mod mode {
    pub const TERMINAL_COUNT: u8 = 0;
    pub const ONE_SHOT: u8 = 1;
    pub const RATE: u8 = 2;
    pub const SQUARE: u8 = 3;
    pub const SOFTWARE_STROBE: u8 = 4;
    pub const HARDWARE_STROBE: u8 = 5;
}

/// Read-back command bits (data sheet, figure 10): a zero asks for the latch.
#[derive(Clone, Copy)]
pub(super) struct ReadBack(u8);

impl ReadBack {
    const NO_COUNT: u8 = 1 << 5;
    const NO_STATUS: u8 = 1 << 4;

    pub(super) const fn parse(control: u8) -> Option<Self> {
        if control & 0xc0 == 0xc0 {
            Some(Self(control))
        } else {
            None
        }
    }

    pub(super) const fn selects(self, counter: usize) -> bool {
        self.0 & 2 << counter != 0
    }
}

/// Which bytes of the count an access means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Bytes {
    Low = 1,
    High = 2,
    Both = 3,
}

/// What the counting element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A control word came, a count did not yet.
    Unprogrammed,
    /// Modes 1 and 5: waits for the gate to rise.
    Armed,
    /// It held the whole count at tick `origin`.
    Counting { origin: i64 },
    /// The gate is low; so many ticks have been counted.
    Held { elapsed: i64 },
}

/// A count that waits for the end of the current period, in modes 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Successor {
    count: i64,
    tick: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    bytes: Bytes,
    gate: bool,
    state: State,
    /// 1 … 65 536.
    count: i64,
    /// Modes 1 and 5: the count the next trigger loads.
    armed_count: i64,
    successor: Option<Successor>,
    /// The low byte of a count whose high byte is still to come.
    low_byte: Option<u8>,
    /// The next read of a two-byte count returns the high byte.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The tick up to which rising edges have been noted.
    seen: i64,
    rose: bool,
}

impl Counter {
    /// Power-on leaves the mode open. This one rests with the output high, so that programming a rate makes
    /// no edge of its own.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: mode::RATE,
            bcd: false,
            bytes: Bytes::Both,
            gate,
            state: State::Unprogrammed,
            count: 0x1_0000,
            armed_count: 0x1_0000,
            successor: None,
            low_byte: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
            seen: 0,
            rose: false,
        }
    }

    /// A control word for this counter, latch command included.
    pub(super) fn control(&mut self, tick: i64, value: u8) {
        self.settle(tick);
        let bytes = match value >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            3 => Bytes::Both,
            _ => {
                self.latch_count(tick);
                return;
            }
        };
        *self = Self {
            // Modes 6 and 7 are 2 and 3.
            mode: match value >> 1 & 7 {
                wide @ 6.. => wide - 4,
                mode => mode,
            },
            bcd: value & 1 != 0,
            bytes,
            count: self.count,
            armed_count: self.count,
            seen: self.seen,
            rose: self.rose,
            ..Self::new(self.gate)
        };
    }

    pub(super) fn read_back(&mut self, tick: i64, command: ReadBack) {
        self.settle(tick);
        if command.0 & ReadBack::NO_COUNT == 0 {
            self.latch_count(tick);
        }
        if command.0 & ReadBack::NO_STATUS == 0 && self.latched_status.is_none() {
            self.latched_status = Some(self.status(tick));
        }
    }

    pub(super) fn read(&mut self, tick: i64) -> u8 {
        self.settle(tick);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.shown(tick))
            .to_le_bytes();
        let (byte, last) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::Both => {
                self.high_next = !self.high_next;
                if self.high_next {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn write(&mut self, tick: i64, byte: u8) {
        self.settle(tick);
        let value = match (self.bytes, self.low_byte) {
            (Bytes::Low, _) => u16::from(byte),
            (Bytes::High, _) => u16::from(byte) << 8,
            (Bytes::Both, Some(low)) => u16::from_le_bytes([low, byte]),
            (Bytes::Both, None) => {
                self.low_byte = Some(byte);
                // In mode 0 the first byte stops counting and lowers the output.
                if self.mode == mode::TERMINAL_COUNT {
                    self.state = State::Unprogrammed;
                }
                return;
            }
        };
        self.low_byte = None;
        self.load(tick, self.decode(value));
    }

    pub(super) fn set_gate(&mut self, tick: i64, gate: bool) {
        self.settle(tick);
        let rises = gate && !self.gate;
        let falls = self.gate && !gate;
        self.gate = gate;
        match (self.mode, self.state) {
            (mode::ONE_SHOT | mode::HARDWARE_STROBE, State::Armed | State::Counting { .. })
                if rises =>
            {
                self.count = self.armed_count;
                self.state = State::Counting { origin: tick + 1 };
            }
            (mode::RATE | mode::SQUARE, State::Held { .. }) if rises => {
                if let Some(successor) = self.successor.take() {
                    self.count = successor.count;
                }
                self.state = State::Counting { origin: tick + 1 };
            }
            (mode::TERMINAL_COUNT | mode::SOFTWARE_STROBE, State::Held { elapsed }) if rises => {
                let origin = tick - elapsed;
                self.state = State::Counting { origin };
            }
            (mode::ONE_SHOT | mode::HARDWARE_STROBE, _) => {}
            (_, State::Counting { origin }) if falls => {
                let elapsed = (tick - origin).max(0);
                self.state = State::Held { elapsed };
            }
            _ => {}
        }
    }

    /// Level of the output.
    pub(super) const fn output(&self, tick: i64) -> bool {
        let elapsed = match self.state {
            State::Unprogrammed => return self.mode != mode::TERMINAL_COUNT,
            State::Armed => return true,
            State::Held { elapsed } => match self.mode {
                // A low gate forces it high.
                mode::RATE | mode::SQUARE => return true,
                _ => elapsed,
            },
            State::Counting { origin } => tick - origin,
        };
        if elapsed < 0 {
            return self.mode != mode::TERMINAL_COUNT;
        }
        match self.mode {
            mode::TERMINAL_COUNT | mode::ONE_SHOT => elapsed >= self.count,
            // A count of 1 is illegal in modes 2 and 3: there is no period, and the output rests.
            mode::RATE => self.count == 1 || elapsed % self.count != self.count - 1,
            mode::SQUARE => self.count == 1 || elapsed % self.count < high_part(self.count),
            _ => elapsed != self.count,
        }
    }

    /// A tick behind the last settled one before which the output does not rise.
    pub(super) fn next_event(&self) -> Option<i64> {
        let successor = self.successor.map(|s| s.tick);
        let rise = self.next_rise(self.seen);
        match (successor, rise) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, None) | (None, one) => one,
        }
    }

    /// Brings the counter to `tick`.
    pub(super) fn settle(&mut self, tick: i64) {
        let mut from = self.seen;
        if tick <= from {
            return;
        }
        self.seen = tick;
        if let Some(successor) = self.successor.filter(|s| s.tick <= tick) {
            self.rose |= self.rises_within(from, successor.tick);
            from = successor.tick;
            self.succeed(successor);
        }
        self.rose |= self.rises_within(from, tick);
    }

    /// Whether the output has risen by itself since this was asked last.
    pub(super) fn take_rise(&mut self) -> bool {
        core::mem::take(&mut self.rose)
    }

    fn succeed(&mut self, successor: Successor) {
        self.successor = None;
        if let State::Counting { origin } = &mut self.state {
            let at_period_end = (successor.tick - *origin) % self.count == 0;
            *origin = successor.tick;
            if !at_period_end {
                // The high half of mode 3 ended: the new count begins with its low half.
                *origin -= high_part(successor.count);
            }
        }
        self.count = successor.count;
    }

    fn rises_within(&self, from: i64, to: i64) -> bool {
        self.next_rise(from).is_some_and(|tick| tick <= to)
    }

    /// The first tick behind `after` at which the output rises, if nothing is written.
    fn next_rise(&self, after: i64) -> Option<i64> {
        let State::Counting { origin } = self.state else {
            return None;
        };
        let next = match self.mode {
            mode::TERMINAL_COUNT | mode::ONE_SHOT => origin + self.count,
            mode::RATE | mode::SQUARE if self.count == 1 => return None,
            mode::RATE | mode::SQUARE => {
                let periods = (after - origin).div_euclid(self.count) + 1;
                origin + periods.max(1) * self.count
            }
            _ => origin + self.count + 1,
        };
        (next > after).then_some(next)
    }

    /// A whole count was written.
    fn load(&mut self, tick: i64, count: i64) {
        let fresh = self.state == State::Unprogrammed;
        match self.mode {
            mode::ONE_SHOT | mode::HARDWARE_STROBE => {
                self.armed_count = count;
                if fresh {
                    self.count = count;
                    self.state = State::Armed;
                }
            }
            mode::RATE | mode::SQUARE => match self.state {
                State::Counting { origin } if tick >= origin => {
                    let tick = self.end_of_part(tick, origin);
                    self.successor = Some(Successor { count, tick });
                }
                State::Counting { .. } | State::Held { .. } => self.count = count,
                State::Unprogrammed | State::Armed => self.start(tick, count),
            },
            _ => self.start(tick, count),
        }
    }

    fn start(&mut self, tick: i64, count: i64) {
        self.count = count;
        self.state = if self.gate {
            // The count is loaded with the next clock.
            State::Counting { origin: tick + 1 }
        } else {
            State::Held { elapsed: 0 }
        };
    }

    /// Where a new count takes over: the end of the period in mode 2, of the half period in mode 3.
    const fn end_of_part(&self, tick: i64, origin: i64) -> i64 {
        let into = (tick - origin) % self.count;
        let high = high_part(self.count);
        if self.mode == mode::SQUARE && self.count > 1 && into < high {
            tick - into + high
        } else {
            tick - into + self.count
        }
    }

    fn latch_count(&mut self, tick: i64) {
        // A latch holds until it is read; a second command is ignored.
        if self.latched_count.is_none() {
            self.latched_count = Some(self.shown(tick));
        }
    }

    /// The status byte (data sheet, figure 11).
    fn status(&self, tick: i64) -> u8 {
        let null = match self.state {
            State::Unprogrammed | State::Armed => true,
            State::Counting { origin } => tick < origin || self.successor.is_some(),
            State::Held { .. } => false,
        };
        u8::from(self.output(tick)) << 7
            | u8::from(null) << 6
            | (self.bytes as u8) << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    const fn modulus(&self) -> i64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// What the counting element shows.
    fn shown(&self, tick: i64) -> u16 {
        let elapsed = match self.state {
            State::Unprogrammed | State::Armed => 0,
            State::Held { elapsed } => elapsed,
            State::Counting { origin } => (tick - origin).max(0),
        };
        let value = match self.mode {
            mode::RATE => self.count - elapsed % self.count,
            mode::SQUARE => {
                let into = elapsed % self.count;
                let high = high_part(self.count);
                // Counts down by two, from the even part of the count, in each half.
                (self.count & !1) - 2 * if into < high { into } else { into - high }
            }
            _ => self.count - elapsed,
        };
        let value = value.rem_euclid(self.modulus());
        // Below 65 536 by the modulus.
        if self.bcd {
            to_bcd(value)
        } else {
            value as u16
        }
    }

    fn decode(&self, value: u16) -> i64 {
        let count = if self.bcd {
            let digit = |n: u32| i64::from(value >> (4 * n) & 0xf);
            digit(3) * 1000 + digit(2) * 100 + digit(1) * 10 + digit(0)
        } else {
            i64::from(value)
        };
        if count == 0 { self.modulus() } else { count }
    }
}

/// Ticks of a mode 3 period during which the output is high.
const fn high_part(count: i64) -> i64 {
    (count + 1) / 2
}

/// Four decimal digits.
fn to_bcd(value: i64) -> u16 {
    let digit = |unit: i64| (value / unit % 10) as u16;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
