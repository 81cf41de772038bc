//! One PCI function: its configuration space and what that decides.

use super::spec::CONFIG_BYTES;

/// Offsets in the header of type 0 (PCI 3.0, figure 6-1).
mod header {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const BARS: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// First byte behind the header.
    pub const END: usize = 0x40;
}

/// Command register bits (PCI 3.0, table 6-1).
mod command {
    pub const IO: u16 = 1 << 0;
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const PARITY: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTERRUPT_OFF: u16 = 1 << 10;
    pub const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | PARITY | SERR | INTERRUPT_OFF;
}

/// Status register bits (PCI 3.0, table 6-2), low byte.
mod status {
    pub const INTERRUPT: u8 = 1 << 3;
    pub const CAPABILITIES: u8 = 1 << 4;
}

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Class, subclass and programming interface, the class in bits 23:16.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
}

impl BarKind {
    /// The read-only low bits (PCI 3.0, 6.2.5.1).
    const fn flags(self) -> u8 {
        match self {
            Self::Io => 1,
            Self::Memory32 => 0,
            Self::Memory64 => 4,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Io | Self::Memory32 => 4,
            Self::Memory64 => 8,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// An address inside of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Number of the base address register.
    pub bar: u8,
    /// Bytes from its start.
    pub offset: u64,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    config: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bars: [Option<Bar>; 6],
    /// Where the next capability goes.
    end: usize,
    /// Offset of the byte that links to it.
    link: usize,
    interrupt: bool,
}

// Everything that builds a function is called with constants of a device: mistakes in them panic.
impl Function {
    /// A function with a header and nothing more.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut function = Self {
            config: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bars: [None; 6],
            end: header::END,
            link: header::CAPABILITIES,
            interrupt: false,
        };
        for (at, value) in [
            (header::VENDOR, identity.vendor),
            (header::DEVICE, identity.device),
            (header::SUBSYSTEM_VENDOR, identity.subsystem_vendor),
            (header::SUBSYSTEM, identity.subsystem),
        ] {
            function.set(at, &value.to_le_bytes());
        }
        function.set(header::REVISION, &[identity.revision]);
        function.set(header::CLASS, &identity.class.to_le_bytes()[..3]);
        function.allow(header::COMMAND, &command::WRITABLE.to_le_bytes());
        function.allow(header::INTERRUPT_LINE, &[0xff]);
        function
    }

    /// Adds a base address register of `size` bytes.
    ///
    /// # Panics
    ///
    /// When the register does not exist, is taken, or the size is no power of two a BAR can have.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) {
        let least = if kind == BarKind::Io { 4 } else { 16 };
        let most = if kind == BarKind::Memory64 {
            1 << 63
        } else {
            1 << 31
        };
        assert!(
            size.is_power_of_two() && (least..=most).contains(&size),
            "size of a BAR"
        );
        let at = header::BARS + 4 * usize::from(index);
        assert!(
            at + kind.bytes() <= header::BARS + 24 && self.writable[at + 3] == 0,
            "number of a BAR"
        );
        self.bars[usize::from(index)] = Some(Bar { kind, size });
        self.set(at, &[kind.flags()]);
        self.allow(at, &(!(size - 1)).to_le_bytes()[..kind.bytes()]);
    }

    /// Adds a capability: its body without identifier and link, and which of its bits are writable. Returns the
    /// offset of its identifier.
    ///
    /// # Panics
    ///
    /// When the configuration space is full or the two slices differ in length.
    pub fn add_capability(&mut self, identifier: u8, body: &[u8], writable: &[u8]) -> u8 {
        assert!(body.len() == writable.len(), "mask of a capability");
        let at = self.end;
        self.set(at, &[identifier, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        // Below 256, or the slices above had panicked.
        let offset = at as u8;
        self.set(self.link, &[offset]);
        self.set(
            header::STATUS,
            &[self.config[header::STATUS] | status::CAPABILITIES],
        );
        self.link = at + 1;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// The function interrupts through pin 1 (INTA) … 4 (INTD).
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.set(header::INTERRUPT_PIN, &[pin]);
    }

    /// The byte at `offset` of the (extended) configuration space.
    #[must_use]
    pub fn read(&self, offset: u16) -> u8 {
        self.config.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// The guest writes the byte at `offset`.
    pub fn write(&mut self, offset: u16, value: u8) {
        let at = usize::from(offset);
        if let (Some(byte), Some(mask)) = (self.config.get_mut(at), self.writable.get(at)) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// Sets the level of the function's interrupt.
    pub fn set_interrupt(&mut self, level: bool) {
        self.interrupt = level;
        let others = self.config[header::STATUS] & !status::INTERRUPT;
        let bit = if level { status::INTERRUPT } else { 0 };
        self.config[header::STATUS] = others | bit;
    }

    /// The level of the function's interrupt.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.interrupt
    }

    /// The interrupt pin, 1 … 4, that the function asserts.
    #[must_use]
    pub fn asserted_pin(&self) -> Option<u8> {
        let pin = self.config[header::INTERRUPT_PIN];
        let on = self.interrupt && self.command() & command::INTERRUPT_OFF == 0;
        (on && pin != 0).then_some(pin)
    }

    /// Whether the guest lets the function read and write memory.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.command() & command::BUS_MASTER != 0
    }

    /// Where in a memory BAR an address is.
    #[must_use]
    pub fn find_memory(&self, address: u64) -> Option<Hit> {
        self.find(command::MEMORY, |kind| kind != BarKind::Io, address)
    }

    /// Where in an I/O BAR a port is.
    #[must_use]
    pub fn find_port(&self, port: u16) -> Option<Hit> {
        self.find(command::IO, |kind| kind == BarKind::Io, port.into())
    }

    fn find(&self, enable: u16, is_kind: impl Fn(BarKind) -> bool, address: u64) -> Option<Hit> {
        if self.command() & enable == 0 {
            return None;
        }
        (0..).zip(self.bars).find_map(|(index, bar)| {
            let bar = bar.filter(|bar| is_kind(bar.kind))?;
            let offset = address.checked_sub(self.bar_address(index, bar.kind))?;
            (offset < bar.size).then_some(Hit { bar: index, offset })
        })
    }

    fn bar_address(&self, index: u8, kind: BarKind) -> u64 {
        let at = header::BARS + 4 * usize::from(index);
        let mut bytes = [0; 8];
        bytes[..kind.bytes()].copy_from_slice(&self.config[at..at + kind.bytes()]);
        bytes[0] &= !kind.flags();
        u64::from_le_bytes(bytes)
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([
            self.config[header::COMMAND],
            self.config[header::COMMAND + 1],
        ])
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
