//! The pair of 8259A interrupt controllers.

/// Facts of the chips (Intel 8259A data sheet, order number 231468-003) and of their place in a PC (Intel ICH9 data
/// sheet 316972-004, 13.4 and 5.9, which add the edge/level registers).
pub mod spec {
    /// Command port of the first chip; its data port follows.
    pub const MASTER_PORT: u16 = 0x20;
    /// Command port of the second chip; its data port follows.
    pub const SLAVE_PORT: u16 = 0xa0;
    /// Edge/level register of the first chip; the second chip's follows.
    pub const EDGE_LEVEL_PORT: u16 = 0x4d0;
    /// The input of the first chip at which the second one stands.
    pub const CASCADE: u8 = 2;
    /// Inputs that can be made level-triggered; timer, keyboard, cascade, clock and coprocessor cannot.
    pub const LEVEL_CAPABLE: [u8; 2] = [0xf8, 0xde];
    /// The input whose vector is given when the request has gone again.
    pub const SPURIOUS: u8 = 7;

    /// Command port: this is initialization command word 1.
    pub const ICW1: u8 = 1 << 4;
    /// ICW1: a fourth word will come.
    pub const ICW1_FOURTH: u8 = 1 << 0;
    /// ICW1: no cascade, so no third word.
    pub const ICW1_SINGLE: u8 = 1 << 1;
    /// ICW4: automatic end of interrupt.
    pub const ICW4_AUTO_EOI: u8 = 1 << 1;
    /// ICW4: special fully nested mode.
    pub const ICW4_FULLY_NESTED: u8 = 1 << 4;
    /// Command port: this is operation command word 3; without it word 2.
    pub const OCW3: u8 = 1 << 3;
    /// OCW3: the next read acknowledges.
    pub const OCW3_POLL: u8 = 1 << 2;
}

/// What the next write to the data port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Mask,
    Vector,
    Cascade,
    Mode,
}

/// One chip.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chip {
    lines: u8,
    requests: u8,
    in_service: u8,
    mask: u8,
    level: u8,
    level_capable: u8,
    vector: u8,
    expected: Expected,
    icw1: u8,
    lowest: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    fully_nested: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    /// Initialized while its lines were as `lines` says, everything masked.
    const fn new(lines: u8, vector: u8, level_capable: u8) -> Self {
        Self {
            lines,
            requests: 0,
            in_service: 0,
            mask: 0xff,
            level: 0,
            level_capable,
            vector,
            expected: Expected::Mask,
            icw1: 0,
            lowest: 7,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            fully_nested: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
        }
    }

    fn set_lines(&mut self, lines: u8) {
        let rising = lines & !self.lines;
        self.lines = lines;
        // A request lasts until it is acknowledged or its line falls; a level is the request.
        self.requests = (self.requests | rising) & lines | lines & self.level;
    }

    /// How far `bits`' most urgent input is from the highest priority: 8 if there is none.
    const fn urgency(&self, bits: u8) -> u8 {
        bits.rotate_right(self.lowest as u32 + 1).trailing_zeros() as u8
    }

    const fn input(&self, urgency: u8) -> u8 {
        (self.lowest + 1 + urgency) & 7
    }

    /// The input for which the chip requests an interrupt.
    fn pending(&self, cascade: u8) -> Option<u8> {
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.fully_nested {
            // The second chip may interrupt its own service with something more urgent.
            blocking &= !cascade;
        }
        let urgency = self.urgency(self.requests & !self.mask);
        (urgency < self.urgency(blocking)).then(|| self.input(urgency))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.requests &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn end_of_interrupt(&mut self, bits: u8, rotate: bool) {
        let urgency = self.urgency(bits);
        if urgency < 8 {
            let input = self.input(urgency);
            self.in_service &= !(1 << input);
            if rotate {
                self.lowest = input;
            }
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & spec::ICW1 != 0 {
            *self = Self {
                // An edge has to be seen anew.
                requests: self.lines & self.level,
                mask: 0,
                level: self.level,
                expected: Expected::Vector,
                icw1: value,
                ..Self::new(self.lines, self.vector, self.level_capable)
            };
        } else if value & spec::OCW3 != 0 {
            self.poll = value & spec::OCW3_POLL != 0;
            match value & 3 {
                2 => self.read_in_service = false,
                3 => self.read_in_service = true,
                _ => {}
            }
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
        } else {
            self.write_ocw2(value);
        }
    }

    /// Bits 7:5 are rotate, specific, end of interrupt.
    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        let unmasked = if self.special_mask { !self.mask } else { 0xff };
        match value >> 5 {
            0b001 => self.end_of_interrupt(self.in_service & unmasked, false),
            0b101 => self.end_of_interrupt(self.in_service & unmasked, true),
            0b011 => self.end_of_interrupt(1 << input, false),
            0b111 => self.end_of_interrupt(1 << input, true),
            0b100 => self.rotate_on_auto_eoi = true,
            0b000 => self.rotate_on_auto_eoi = false,
            0b110 => self.lowest = input,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expected {
            Expected::Mask => self.mask = value,
            Expected::Vector => {
                self.vector = value & 0xf8;
                self.expected = if self.icw1 & spec::ICW1_SINGLE == 0 {
                    Expected::Cascade
                } else {
                    self.mode_or_mask()
                };
            }
            // The wiring is fixed.
            Expected::Cascade => self.expected = self.mode_or_mask(),
            Expected::Mode => {
                self.auto_eoi = value & spec::ICW4_AUTO_EOI != 0;
                self.fully_nested = value & spec::ICW4_FULLY_NESTED != 0;
                self.expected = Expected::Mask;
            }
        }
    }

    const fn mode_or_mask(&self) -> Expected {
        if self.icw1 & spec::ICW1_FOURTH != 0 {
            Expected::Mode
        } else {
            Expected::Mask
        }
    }
}

/// Both controllers. Of the pair's 16 lines, bit n is line n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    lines: u16,
}

const CASCADE_BIT: u8 = 1 << spec::CASCADE;

impl Pic {
    /// The pair as firmware leaves it: vectors 0x08 and 0x70, everything masked. Lines that were high before
    /// made no request.
    #[must_use]
    pub const fn new(lines: u16) -> Self {
        let [low, high] = lines.to_le_bytes();
        Self {
            master: Chip::new(low & !CASCADE_BIT, 0x08, spec::LEVEL_CAPABLE[0]),
            slave: Chip::new(high, 0x70, spec::LEVEL_CAPABLE[1]),
            lines,
        }
    }

    /// The levels of the 16 interrupt lines; line 2 does not exist.
    pub fn set_lines(&mut self, lines: u16) {
        self.lines = lines;
        self.update();
    }

    /// Whether an interrupt is requested of the processor.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.master.pending(CASCADE_BIT).is_some()
    }

    /// The processor takes the interrupt. Returns its vector: the spurious one if the request has gone.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending(CASCADE_BIT) else {
            return self.master.vector | spec::SPURIOUS;
        };
        self.master.acknowledge(input);
        if input != spec::CASCADE {
            self.update();
            return self.master.vector | input;
        }
        let pending = self.slave.pending(0);
        if let Some(input) = pending {
            self.slave.acknowledge(input);
        }
        self.pulse_cascade();
        self.slave.vector | pending.unwrap_or(spec::SPURIOUS)
    }

    /// IN from one of the six ports; `None` for others.
    pub fn read(&mut self, port: u16) -> Option<u8> {
        let level = port.wrapping_sub(spec::EDGE_LEVEL_PORT);
        let value = match (port & !1, level) {
            (spec::MASTER_PORT, _) if self.master.poll => self.poll_master(),
            (spec::SLAVE_PORT, _) if self.slave.poll => self.poll_slave(),
            (spec::MASTER_PORT, _) => Self::read_chip(&self.master, port),
            (spec::SLAVE_PORT, _) => Self::read_chip(&self.slave, port),
            (_, 0) => self.master.level,
            (_, 1) => self.slave.level,
            _ => return None,
        };
        Some(value)
    }

    /// OUT to one of the six ports. Returns whether it was one of them.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        let chip = match port & !1 {
            spec::MASTER_PORT | spec::EDGE_LEVEL_PORT if port != spec::EDGE_LEVEL_PORT + 1 => {
                &mut self.master
            }
            spec::SLAVE_PORT | spec::EDGE_LEVEL_PORT => &mut self.slave,
            _ => return false,
        };
        if port & !1 == spec::EDGE_LEVEL_PORT {
            chip.level = value & chip.level_capable;
        } else if port & 1 == 0 {
            chip.write_command(value);
        } else {
            chip.write_data(value);
        }
        self.update();
        true
    }

    fn read_chip(chip: &Chip, port: u16) -> u8 {
        if port & 1 != 0 {
            chip.mask
        } else if chip.read_in_service {
            chip.in_service
        } else {
            chip.requests
        }
    }

    /// A poll acknowledges without the processor (data sheet, "Poll Command").
    fn poll_master(&mut self) -> u8 {
        self.master.poll = false;
        let pending = self.master.pending(CASCADE_BIT);
        if let Some(input) = pending {
            self.master.acknowledge(input);
        }
        self.update();
        pending.map_or(0, |input| 0x80 | input)
    }

    fn poll_slave(&mut self) -> u8 {
        self.slave.poll = false;
        let pending = self.slave.pending(0);
        if let Some(input) = pending {
            self.slave.acknowledge(input);
        }
        self.pulse_cascade();
        pending.map_or(0, |input| 0x80 | input)
    }

    /// The second chip's output falls with an acknowledgement and rises again if more is pending.
    fn pulse_cascade(&mut self) {
        self.master.set_lines(self.master.lines & !CASCADE_BIT);
        self.update();
    }

    fn update(&mut self) {
        let [low, high] = self.lines.to_le_bytes();
        self.slave.set_lines(high);
        let cascade = if self.slave.pending(0).is_some() {
            CASCADE_BIT
        } else {
            0
        };
        self.master.set_lines(low & !CASCADE_BIT | cascade);
    }
}

#[cfg(test)]
mod tests;
