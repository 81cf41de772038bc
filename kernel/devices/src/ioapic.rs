//! The 82093AA I/O APIC: 24 pins, each with a message to send.

use crate::message::{DeliveryMode, Message, wide_destination};

/// Facts of the chip (Intel 82093AA data sheet, order number 290566-001; the end-of-interrupt register is that of
/// version 0x20, Intel ICH9 data sheet 316972-004, 13.5).
pub mod spec {
    /// Guest physical address.
    pub const ADDRESS: u64 = 0xfec0_0000;
    /// Bytes of its page.
    pub const BYTES: u64 = 4096;
    /// Pins.
    pub const PINS: usize = 24;

    /// Offset of the register that selects the register at [`WINDOW`].
    pub const SELECT: u64 = 0x00;
    /// Offset of the selected register.
    pub const WINDOW: u64 = 0x10;
    /// Offset of the end-of-interrupt register; writing a vector serves it.
    pub const END_OF_INTERRUPT: u64 = 0x40;

    /// Identifier, bits 27:24.
    pub const ID: u8 = 0x00;
    /// Version 0x20 and the number of the last pin.
    pub const VERSION: u8 = 0x01;
    /// What that register holds.
    pub const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;
    /// Arbitration identifier, bits 27:24.
    pub const ARBITRATION: u8 = 0x02;
    /// Low half of the first redirection entry.
    pub const REDIRECTION: u8 = 0x10;

    /// Redirection: the destination is logical.
    pub const LOGICAL: u64 = 1 << 11;
    /// Redirection: the pin is active low.
    pub const ACTIVE_LOW: u64 = 1 << 13;
    /// Redirection: a level is being served.
    pub const REMOTE_IRR: u64 = 1 << 14;
    /// Redirection: level-triggered.
    pub const LEVEL: u64 = 1 << 15;
    /// Redirection: masked.
    pub const MASKED: u64 = 1 << 16;
    /// Redirection: what can be written. Remote IRR and delivery status cannot.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

/// The wires from the board: those of ISA are active high, those of PCI, from pin 16 on, are active low.
const WIRED_LOW: u32 = 0xff_0000;

/// The I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    select: u8,
    id: u8,
    redirection: [u64; spec::PINS],
    /// What the board asserts.
    lines: u32,
    /// Pins whose level nobody accepted.
    refused: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            select: 0,
            id: 0,
            redirection: [spec::MASKED; spec::PINS],
            lines: 0,
            refused: 0,
        }
    }
}

impl IoApic {
    /// Reads `size` bytes at `offset` in the page.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let value = match offset & !3 {
            spec::SELECT => self.select.into(),
            spec::WINDOW => self.read_register(),
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3)) & crate::all_ones(size)
    }

    /// Writes to the page, then sends what is due through `send`, which returns whether it was accepted.
    pub fn write(&mut self, offset: u64, value: u64, send: &mut impl FnMut(&Message) -> bool) {
        match offset {
            spec::SELECT => self.select = value as u8,
            spec::WINDOW => self.write_register(value as u32, send),
            spec::END_OF_INTERRUPT => self.end_of_interrupt(value as u8, send),
            _ => {}
        }
    }

    /// The board asserts these lines, bit n for pin n.
    pub fn set_lines(&mut self, lines: u32, send: &mut impl FnMut(&Message) -> bool) {
        let before = core::mem::replace(&mut self.lines, lines);
        for pin in pins_of(before ^ lines) {
            self.changed(pin, before, send);
            self.sample(pin, send);
        }
        self.retry(send);
    }

    /// Whether the 8259A's request at pin 0 reaches the processor.
    #[must_use]
    pub fn passes_external(&self) -> bool {
        let entry = self.redirection[0];
        entry & spec::MASKED == 0 && DeliveryMode::of(entry as u32) == DeliveryMode::EXTERNAL
    }

    /// A level-triggered vector was served: its pins may ask again.
    pub fn end_of_interrupt(&mut self, vector: u8, send: &mut impl FnMut(&Message) -> bool) {
        for pin in 0..spec::PINS {
            let entry = &mut self.redirection[pin];
            if *entry as u8 == vector && *entry & spec::LEVEL != 0 {
                *entry &= !spec::REMOTE_IRR;
                self.sample(pin, send);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            spec::ID | spec::ARBITRATION => u32::from(self.id) << 24,
            spec::VERSION => spec::VERSION_VALUE,
            _ => match self.selected_entry() {
                Some((pin, true)) => (self.redirection[pin] >> 32) as u32,
                Some((pin, false)) => self.redirection[pin] as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32, send: &mut impl FnMut(&Message) -> bool) {
        if self.select == spec::ID {
            self.id = (value >> 24 & 0xf) as u8;
            return;
        }
        let Some((pin, high)) = self.selected_entry() else {
            return;
        };
        let old = self.redirection[pin];
        let written = if high {
            u64::from(value) << 32 | old & 0xffff_ffff
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let mut new = written & spec::WRITABLE | old & spec::REMOTE_IRR;
        if new & spec::LEVEL == 0 {
            // An edge has nothing to wait for.
            new &= !spec::REMOTE_IRR;
        }
        self.redirection[pin] = new;
        self.sample(pin, send);
    }

    /// Pin of the selected redirection register and whether it is the high half.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(spec::REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < spec::PINS).then_some((pin, index & 1 != 0))
    }

    /// Whether the pin is active in the polarity its entry chooses.
    const fn is_active(&self, lines: u32, pin: usize) -> bool {
        let voltage = (lines ^ WIRED_LOW) >> pin & 1 != 0;
        voltage != (self.redirection[pin] & spec::ACTIVE_LOW != 0)
    }

    /// Sends the message of an edge. One at a masked pin is lost (data sheet, 3.2.4, bit 16).
    fn changed(&mut self, pin: usize, before: u32, send: &mut impl FnMut(&Message) -> bool) {
        let entry = self.redirection[pin];
        let edge = !self.is_active(before, pin) && self.is_active(self.lines, pin);
        if edge && !Self::is_level(entry) && entry & spec::MASKED == 0 {
            send(&Self::message(entry));
        }
    }

    /// Sends the message of a level that is not being served.
    fn sample(&mut self, pin: usize, send: &mut impl FnMut(&Message) -> bool) {
        let entry = self.redirection[pin];
        let due = Self::is_level(entry)
            && entry & (spec::MASKED | spec::REMOTE_IRR) == 0
            && self.is_active(self.lines, pin);
        let bit = 1 << pin;
        self.refused &= !bit;
        if !due {
            return;
        }
        if send(&Self::message(entry)) {
            self.redirection[pin] |= spec::REMOTE_IRR;
        } else {
            self.refused |= bit;
        }
    }

    /// Sends again the levels that nobody accepted.
    pub fn retry(&mut self, send: &mut impl FnMut(&Message) -> bool) {
        for pin in pins_of(self.refused) {
            self.sample(pin, send);
        }
    }

    /// Only vectors can be levels; NMI, INIT and the 8259A's requests are edges whatever the entry says.
    fn is_level(entry: u64) -> bool {
        let mode = DeliveryMode::of(entry as u32);
        let has_vector = mode == DeliveryMode::FIXED || mode == DeliveryMode::LOWEST_PRIORITY;
        has_vector && entry & spec::LEVEL != 0
    }

    fn message(entry: u64) -> Message {
        Message {
            vector: entry as u8,
            mode: DeliveryMode::of(entry as u32),
            level: Self::is_level(entry),
            destination: wide_destination((entry >> 56) as u8),
            logical: entry & spec::LOGICAL != 0,
        }
    }
}

/// The numbers of the pins in a set.
fn pins_of(mut set: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let pin = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (pin < spec::PINS).then_some(pin)
    })
}

#[cfg(test)]
mod tests;
