//! The PCI bus: configuration space by ports and by memory, and the functions on it.
//!
//! A function's configuration space is plain data with masks. A device looks at its function (is it decoding, where
//! is its BAR, are its interrupts off) when it needs to know; nothing has to be called back.

mod function;

use alloc::boxed::Box;

pub use function::{BarKind, Function, Hit, Identity};

/// Facts of the bus (PCI Local Bus 3.0, sections 3.2.2.3.2 and 6; PCI Express Base 3.0, 7.2.2 for the memory window).
/// Where the windows are is this machine's choice and stands in its ACPI tables.
pub mod spec {
    /// Configuration mechanism #1: the address, four bytes.
    pub const ADDRESS_PORT: u16 = 0xcf8;
    /// Configuration mechanism #1: the data, four bytes.
    pub const DATA_PORT: u16 = 0xcfc;
    /// Address: accesses to the data port are configuration accesses.
    pub const ADDRESS_ENABLE: u32 = 1 << 31;
    /// Address: bits that keep what is written.
    pub const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

    /// Guest physical address of bus 0's configuration space.
    pub const ECAM: u64 = 0xe000_0000;
    /// Bytes of one bus in it; there is only one.
    pub const ECAM_BYTES: u64 = 1 << 20;
    /// First address of the window for memory BARs.
    pub const MEMORY: u64 = 0xf000_0000;
    /// Bytes of that window.
    pub const MEMORY_BYTES: u64 = 0x0ec0_0000;
    /// First port of the window for I/O BARs.
    pub const IO_PORT: u16 = 0xc000;
    /// Ports of that window.
    pub const IO_PORTS: u16 = 0x4000;

    /// Devices on the bus. Each has one function.
    pub const DEVICES: usize = 32;
    /// Bytes of a function's configuration space. What lies behind reads as zero: no extended capabilities.
    pub const CONFIG_BYTES: usize = 256;
    /// The I/O APIC's pin for INTA of device 0. The other pins and devices follow, modulo four.
    pub const INTERRUPT_PIN: u8 = 16;

    /// The host bridge: Red Hat's generic PCI Express host bridge, for which no driver has a quirk.
    pub const HOST_BRIDGE_VENDOR: u16 = 0x1b36;
    /// Its device identifier.
    pub const HOST_BRIDGE_DEVICE: u16 = 0x0008;
    /// Class of a host bridge.
    pub const HOST_BRIDGE_CLASS: u32 = 0x06_0000;
}

/// Bus 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bus {
    address: u32,
    functions: [Option<Box<Function>>; spec::DEVICES],
}

impl Default for Bus {
    fn default() -> Self {
        let mut bus = Self {
            address: 0,
            functions: [const { None }; spec::DEVICES],
        };
        bus.plug(
            0,
            Function::new(&Identity {
                vendor: spec::HOST_BRIDGE_VENDOR,
                device: spec::HOST_BRIDGE_DEVICE,
                subsystem_vendor: 0,
                subsystem: 0,
                class: spec::HOST_BRIDGE_CLASS,
                revision: 0,
            }),
        );
        bus
    }
}

impl Bus {
    /// Puts a function on the bus, in place of what was there.
    ///
    /// # Panics
    ///
    /// When `device` is no number of a device: which devices there are is no guest's choice.
    pub fn plug(&mut self, device: u8, function: Function) {
        self.functions[usize::from(device)] = Some(Box::new(function));
    }

    /// The function of a device.
    #[must_use]
    pub fn function(&self, device: u8) -> Option<&Function> {
        self.functions.get(usize::from(device))?.as_deref()
    }

    /// The same, to change it.
    pub fn function_mut(&mut self, device: u8) -> Option<&mut Function> {
        self.functions.get_mut(usize::from(device))?.as_deref_mut()
    }

    /// Whose memory BAR a guest physical address is in.
    #[must_use]
    pub fn find_memory(&self, address: u64) -> Option<(u8, Hit)> {
        self.find(|function| function.find_memory(address))
    }

    /// Whose I/O BAR a port is in.
    #[must_use]
    pub fn find_port(&self, port: u16) -> Option<(u8, Hit)> {
        self.find(|function| function.find_port(port))
    }

    fn find(&self, hit: impl Fn(&Function) -> Option<Hit>) -> Option<(u8, Hit)> {
        (0..).zip(&self.functions).find_map(|(device, function)| {
            let hit = hit(function.as_deref()?)?;
            Some((device, hit))
        })
    }

    /// Asserted lines of the I/O APIC, bit n for pin n.
    #[must_use]
    pub fn lines(&self) -> u32 {
        (0..)
            .zip(&self.functions)
            .fold(0, |lines, (device, function)| {
                let pin = function.as_deref().and_then(Function::asserted_pin);
                lines | pin.map_or(0, |pin| 1 << Self::route(device, pin))
            })
    }

    /// The I/O APIC's pin for a device's interrupt pin, INTA being 1 (PCI 3.0, 2.2.6).
    #[must_use]
    pub const fn route(device: u8, pin: u8) -> u8 {
        spec::INTERRUPT_PIN + (device.wrapping_add(pin).wrapping_sub(1) & 3)
    }

    /// IN from the address or data port; `None` where an access of that size means another device.
    #[must_use]
    pub fn read_port(&self, port: u16, size: u8) -> Option<u32> {
        match port {
            spec::ADDRESS_PORT if size == 4 => Some(self.address),
            spec::DATA_PORT..=DATA_END => {
                let byte = |i| {
                    self.selected(port, i)
                        .map_or(0xff, |place| self.read_byte(place))
                };
                // At most four bytes.
                Some(gather(size.min(4), byte) as u32)
            }
            _ => None,
        }
    }

    /// OUT to the address or data port. Returns whether the access was theirs.
    pub fn write_port(&mut self, port: u16, size: u8, value: u32) -> bool {
        match port {
            spec::ADDRESS_PORT if size == 4 => self.address = value & spec::ADDRESS_WRITABLE,
            spec::DATA_PORT..=DATA_END => {
                for (i, byte) in scatter(size.min(4), value.into()) {
                    if let Some(place) = self.selected(port, i) {
                        self.write_byte(place, byte);
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// The device whose function an access at `port` means if it is one to configuration space, and the offset in that.
    #[must_use]
    pub fn selected_function(&self, port: u16) -> Option<(u8, u16)> {
        if !(spec::DATA_PORT..=DATA_END).contains(&port) {
            return None;
        }
        let place = self.selected(port, 0)?;
        (place.function == 0).then_some((place.device, place.offset))
    }

    /// The same for an access to the configuration window.
    #[must_use]
    pub fn function_in_window(offset: u64) -> Option<(u8, u16)> {
        let place = Place::in_window(offset, 0);
        (place.function == 0).then_some((place.device, place.offset))
    }

    /// Reads `size` bytes of the configuration window.
    #[must_use]
    pub fn read_window(&self, offset: u64, size: u8) -> u64 {
        gather(size, |i| self.read_byte(Place::in_window(offset, i)))
    }

    /// Writes `size` bytes of the configuration window.
    pub fn write_window(&mut self, offset: u64, size: u8, value: u64) {
        for (i, byte) in scatter(size, value) {
            self.write_byte(Place::in_window(offset, i), byte);
        }
    }

    /// The byte that byte `i` of an access at `port` means, if it is in the data port and configuration accesses are on.
    fn selected(&self, port: u16, i: u8) -> Option<Place> {
        let port = port
            .checked_add(i.into())
            .filter(|port| *port <= DATA_END)?;
        let [register, function, bus, high] = self.address.to_le_bytes();
        let enabled = high & 0x80 != 0 && bus == 0;
        enabled.then_some(Place {
            device: function >> 3,
            function: function & 7,
            offset: u16::from(register) + (port - spec::DATA_PORT),
        })
    }

    fn read_byte(&self, place: Place) -> u8 {
        match self.function(place.device) {
            Some(function) if place.function == 0 => function.read(place.offset),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, place: Place, value: u8) {
        if place.function == 0
            && let Some(function) = self.function_mut(place.device)
        {
            function.write(place.offset, value);
        }
    }
}

/// The last byte of the data port.
const DATA_END: u16 = spec::DATA_PORT + 3;

/// A byte of a function's configuration space.
#[derive(Clone, Copy)]
struct Place {
    device: u8,
    /// Only function 0 of a device can exist.
    function: u8,
    offset: u16,
}

impl Place {
    /// Byte `i` of an access to the window; behind its end the window repeats.
    const fn in_window(offset: u64, i: u8) -> Self {
        let at = offset.wrapping_add(i as u64);
        Self {
            device: (at >> 15 & 0x1f) as u8,
            function: (at >> 12 & 7) as u8,
            offset: (at & 0xfff) as u16,
        }
    }
}

/// A little-endian value of `size` bytes, at most eight.
fn gather(size: u8, byte: impl Fn(u8) -> u8) -> u64 {
    (0..size.min(8))
        .map(|i| u64::from(byte(i)) << (8 * u32::from(i)))
        .sum()
}

/// The bytes of a value of `size` bytes, with their numbers.
fn scatter(size: u8, value: u64) -> impl Iterator<Item = (u8, u8)> {
    (0..size.min(8)).zip(value.to_le_bytes())
}

#[cfg(test)]
mod tests;
