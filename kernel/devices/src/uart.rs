//! The 16550A: a serial port.
//!
//! What the guest sends leaves at once, so the transmitter is always empty. What it receives comes
//! from a queue that feeds the chip's FIFO as fast as the guest reads it: nothing typed is lost to an overrun.

use bitflags::bitflags;

use crate::fifo::Fifo;
use crate::time::GuestTime;

/// Facts of the chip (National Semiconductor PC16550D data sheet, June 1995, section 8).
pub mod spec {
    /// First port of COM1.
    pub const COM1_PORT: u16 = 0x3f8;
    /// First port of COM2.
    pub const COM2_PORT: u16 = 0x2f8;
    /// Ports of one chip.
    pub const PORTS: u16 = 8;
    /// Interrupt line of COM1.
    pub const COM1_IRQ: u8 = 4;
    /// Interrupt line of COM2.
    pub const COM2_IRQ: u8 = 3;

    /// Receiver buffer (read), transmitter holding register (write); divisor low byte with DLAB.
    pub const DATA: u8 = 0;
    /// Interrupt enable; divisor high byte with DLAB.
    pub const INTERRUPT_ENABLE: u8 = 1;
    /// Interrupt identification (read), FIFO control (write).
    pub const INTERRUPT_ID: u8 = 2;
    /// FIFO control: the same register, written.
    pub const FIFO_CONTROL: u8 = 2;
    /// Line control.
    pub const LINE_CONTROL: u8 = 3;
    /// Modem control.
    pub const MODEM_CONTROL: u8 = 4;
    /// Line status.
    pub const LINE_STATUS: u8 = 5;
    /// Modem status.
    pub const MODEM_STATUS: u8 = 6;
    /// Scratch.
    pub const SCRATCH: u8 = 7;

    /// Bytes of the receiver FIFO.
    pub const FIFO_BYTES: usize = 16;
    /// Received bytes that raise an interrupt, by FIFO control bits 7:6 (8.4).
    pub const TRIGGER_BYTES: [usize; 4] = [1, 4, 8, 14];
    /// FIFO control: FIFOs on.
    pub const FIFO_ENABLE: u8 = 1 << 0;
    /// FIFO control: empty the receiver.
    pub const FIFO_CLEAR_RECEIVER: u8 = 1 << 1;
    /// Interrupt identification: FIFOs are on.
    pub const ID_FIFO: u8 = 0xc0;
    /// Interrupt identification: none pending.
    pub const ID_NONE: u8 = 0x01;
    /// Line control: divisor latch access.
    pub const DLAB: u8 = 1 << 7;
    /// Line control: parity enable.
    pub const PARITY: u8 = 1 << 3;
    /// Line control: a second stop bit.
    pub const STOP: u8 = 1 << 2;
    /// Nanoseconds of one bit with divisor 1 are 78125/9: 16 cycles of the PC's 1.8432 MHz.
    pub const BIT_NS: (u64, u64) = (78_125, 9);
    /// Character times without a read or an arrival until the receiver reports what is there (8.5).
    pub const TIMEOUT_CHARACTERS: u64 = 4;
}

use spec::{DLAB, FIFO_BYTES, TRIGGER_BYTES};

/// Bytes that wait in front of the chip's own FIFO.
pub const INPUT_BYTES: usize = 1024;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Enable: u8 {
        const RECEIVED = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Line: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const TRANSMITTER_HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Control: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Modem: u8 {
        const DELTA_CTS = 1 << 0;
        const DELTA_DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

impl Modem {
    const DELTAS: Self = Self::DELTA_CTS
        .union(Self::DELTA_DSR)
        .union(Self::TRAILING_RI)
        .union(Self::DELTA_DCD);
    /// The other end is there and ready.
    const CONNECTED: Self = Self::CTS.union(Self::DSR).union(Self::DCD);
}

/// Interrupt sources in the order of their priority, with their identification (table V).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Source {
    LineStatus = 0x06,
    Received = 0x04,
    Timeout = 0x0c,
    TransmitterEmpty = 0x02,
    ModemStatus = 0x00,
}

/// One serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    input: Fifo<INPUT_BYTES>,
    receiver: Fifo<FIFO_BYTES>,
    fifo_enabled: bool,
    trigger: usize,
    /// The last arrival in or read from the receiver.
    last_activity: GuestTime,
    timed_out: bool,
    overrun: bool,
    /// The transmitter emptied and nobody was told yet.
    transmitter_emptied: bool,
    enable: Enable,
    line_control: u8,
    control: Control,
    modem: Modem,
    divisor: u16,
    scratch: u8,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            input: Fifo::default(),
            receiver: Fifo::default(),
            fifo_enabled: false,
            trigger: TRIGGER_BYTES[0],
            last_activity: GuestTime(0),
            timed_out: false,
            overrun: false,
            transmitter_emptied: false,
            enable: Enable::empty(),
            line_control: 0,
            control: Control::empty(),
            modem: Modem::CONNECTED,
            divisor: 1,
            scratch: 0,
        }
    }
}

impl Uart {
    /// Bytes that arrive from outside. Returns how many were taken; there is no room for the others now.
    pub fn receive(&mut self, now: GuestTime, bytes: &[u8]) -> usize {
        let accepted = bytes.iter().take_while(|b| self.input.push(**b)).count();
        self.refill(now);
        accepted
    }

    /// IN from register 0 … 7.
    pub fn read(&mut self, now: GuestTime, register: u8) -> u8 {
        let latch = self.line_control & DLAB != 0;
        match register {
            spec::DATA if latch => self.divisor as u8,
            spec::DATA => self.read_data(now),
            spec::INTERRUPT_ENABLE if latch => (self.divisor >> 8) as u8,
            spec::INTERRUPT_ENABLE => self.enable.bits(),
            spec::INTERRUPT_ID => self.read_interrupt_id(),
            spec::LINE_CONTROL => self.line_control,
            spec::MODEM_CONTROL => self.control.bits(),
            spec::LINE_STATUS => {
                let status = self.line_status();
                self.overrun = false;
                status.bits()
            }
            spec::MODEM_STATUS => {
                let status = self.modem;
                self.modem.remove(Modem::DELTAS);
                status.bits()
            }
            _ => self.scratch,
        }
    }

    /// OUT to register 0 … 7. Returns the byte that leaves on the line.
    pub fn write(&mut self, now: GuestTime, register: u8, value: u8) -> Option<u8> {
        let latch = self.line_control & DLAB != 0;
        match register {
            spec::DATA if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            spec::DATA => return self.transmit(now, value),
            spec::INTERRUPT_ENABLE if latch => {
                self.divisor = self.divisor & 0xff | u16::from(value) << 8;
            }
            spec::INTERRUPT_ENABLE => self.write_enable(value),
            spec::FIFO_CONTROL => self.write_fifo_control(now, value),
            spec::LINE_CONTROL => self.line_control = value,
            spec::MODEM_CONTROL => self.write_modem_control(now, value),
            // Line and modem status are for reading.
            spec::LINE_STATUS | spec::MODEM_STATUS => {}
            _ => self.scratch = value,
        }
        None
    }

    /// Whether the interrupt line is high. OUT2 connects it to the PC's interrupt controller.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        let connected = self.control & (Control::OUT2 | Control::LOOPBACK) == Control::OUT2;
        connected && self.source().is_some()
    }

    /// When the receiver reports bytes below the trigger level.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        let waiting = self.fifo_enabled
            && self.enable.contains(Enable::RECEIVED)
            && !self.timed_out
            && !self.receiver.is_empty()
            && self.receiver.len() < self.trigger;
        let wait = self.characters_ns(spec::TIMEOUT_CHARACTERS);
        waiting.then(|| self.last_activity.after(wait)).flatten()
    }

    /// Time has come to `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.timed_out = true;
        }
    }

    /// Nanoseconds of `count` characters of the programmed format and speed.
    fn characters_ns(&self, count: u64) -> u64 {
        let data = 5 + u64::from(self.line_control & 3);
        let parity = u64::from(self.line_control & spec::PARITY != 0);
        let stop = 1 + u64::from(self.line_control & spec::STOP != 0);
        let (ns, per) = spec::BIT_NS;
        // A divisor of 0 stops the real chip; here it counts as 1.
        count * (1 + data + parity + stop) * u64::from(self.divisor.max(1)) * ns / per
    }

    fn line_status(&self) -> Line {
        let mut status = Line::TRANSMITTER_HOLDING_EMPTY | Line::TRANSMITTER_EMPTY;
        status.set(Line::DATA_READY, !self.receiver.is_empty());
        status.set(Line::OVERRUN, self.overrun);
        status
    }

    fn source(&self) -> Option<Source> {
        let ready = self.receiver.len() >= if self.fifo_enabled { self.trigger } else { 1 };
        let candidates = [
            (Enable::LINE_STATUS, self.overrun, Source::LineStatus),
            (Enable::RECEIVED, ready, Source::Received),
            (Enable::RECEIVED, self.timed_out, Source::Timeout),
            (
                Enable::TRANSMITTER_EMPTY,
                self.transmitter_emptied,
                Source::TransmitterEmpty,
            ),
            (
                Enable::MODEM_STATUS,
                self.modem.intersects(Modem::DELTAS),
                Source::ModemStatus,
            ),
        ];
        candidates
            .into_iter()
            .find(|(enable, pending, _)| *pending && self.enable.contains(*enable))
            .map(|(_, _, source)| source)
    }

    fn read_data(&mut self, now: GuestTime) -> u8 {
        let byte = self.receiver.pop().unwrap_or(0);
        self.timed_out = false;
        self.last_activity = now;
        self.refill(now);
        byte
    }

    fn read_interrupt_id(&mut self) -> u8 {
        let source = self.source();
        // Reading it tells of the empty transmitter only if it names that source.
        if source == Some(Source::TransmitterEmpty) {
            self.transmitter_emptied = false;
        }
        let fifo = if self.fifo_enabled { spec::ID_FIFO } else { 0 };
        fifo | source.map_or(spec::ID_NONE, |s| s as u8)
    }

    fn transmit(&mut self, now: GuestTime, byte: u8) -> Option<u8> {
        self.transmitter_emptied = true;
        if !self.control.contains(Control::LOOPBACK) {
            return Some(byte);
        }
        if self.receiver.len() < self.depth() {
            self.receiver.push(byte);
            self.last_activity = now;
        } else {
            self.overrun = true;
            // Without FIFOs the new byte takes the old one's place, with them it is lost (8.6).
            if !self.fifo_enabled {
                self.receiver.clear();
                self.receiver.push(byte);
            }
        }
        None
    }

    fn write_enable(&mut self, value: u8) {
        let new = Enable::from_bits_truncate(value);
        // Enabling it while the transmitter is empty, as it always is, tells so again.
        if (new - self.enable).contains(Enable::TRANSMITTER_EMPTY) {
            self.transmitter_emptied = true;
        }
        self.enable = new;
    }

    fn write_fifo_control(&mut self, now: GuestTime, value: u8) {
        let enable = value & spec::FIFO_ENABLE != 0;
        let clear = value & spec::FIFO_CLEAR_RECEIVER != 0;
        if enable != self.fifo_enabled || (enable && clear) {
            self.receiver.clear();
            self.timed_out = false;
        }
        self.fifo_enabled = enable;
        if enable {
            self.trigger = TRIGGER_BYTES[usize::from(value >> 6)];
        }
        self.refill(now);
    }

    fn write_modem_control(&mut self, now: GuestTime, value: u8) {
        self.control = Control::from_bits_truncate(value);
        let old = self.modem;
        let lines = if self.control.contains(Control::LOOPBACK) {
            let wires = [
                (Control::RTS, Modem::CTS),
                (Control::DTR, Modem::DSR),
                (Control::OUT1, Modem::RI),
                (Control::OUT2, Modem::DCD),
            ];
            wires
                .into_iter()
                .filter(|(output, _)| self.control.contains(*output))
                .fold(Modem::empty(), |lines, (_, input)| lines | input)
        } else {
            Modem::CONNECTED
        };
        let changed = (old ^ lines) - Modem::DELTAS;
        let mut new = lines | (old & Modem::DELTAS);
        // Ring is noted at its trailing edge only.
        for (line, delta) in [
            (changed & Modem::CTS, Modem::DELTA_CTS),
            (changed & Modem::DSR, Modem::DELTA_DSR),
            (changed & old & Modem::RI, Modem::TRAILING_RI),
            (changed & Modem::DCD, Modem::DELTA_DCD),
        ] {
            if !line.is_empty() {
                new |= delta;
            }
        }
        self.modem = new;
        self.refill(now);
    }

    const fn depth(&self) -> usize {
        if self.fifo_enabled { FIFO_BYTES } else { 1 }
    }

    /// Moves waiting input into the receiver as far as it has room. A looped-back chip is deaf.
    fn refill(&mut self, now: GuestTime) {
        if self.control.contains(Control::LOOPBACK) {
            return;
        }
        while self.receiver.len() < self.depth() {
            let Some(byte) = self.input.pop() else {
                return;
            };
            self.receiver.push(byte);
            self.last_activity = now;
        }
    }
}

#[cfg(test)]
mod tests;
