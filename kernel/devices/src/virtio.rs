//! Virtio devices on the PCI bus (Virtual I/O Device specification 1.2, "VIRTIO" in what follows).
//!
//! [`queue`] reads what a driver puts into its rings and believes none of it, [`pci`] is the transport, [`net`] and
//! [`console`] are devices, and [`Device`] is one of them at its place on the bus.
//!
//! Rings are read where the guest kicks, or where something for it enters, and nowhere else: both are points of its
//! execution. So what a driver and a device see of each other is a function of that execution and of what enters.

pub mod console;
mod device;
pub mod net;
pub mod pci;
pub mod queue;

pub use device::{Device, Model};

/// Network cards that a machine can have.
pub const MAX_NICS: usize = 4;

/// Which virtio devices a machine has. No two can have the same slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Network cards.
    pub nics: [Option<net::Config>; MAX_NICS],
    /// A console besides the serial ports.
    pub console: Option<console::Config>,
}

/// A range of guest physical addresses that is not all RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam;

/// The guest's memory, as its devices reach it.
pub trait Memory {
    /// Fills `to` from guest physical address `from` on.
    ///
    /// # Errors
    ///
    /// A part of the range is not RAM; `to` may be partly filled.
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), NotRam>;

    /// Writes `from` to guest physical address `to`.
    ///
    /// # Errors
    ///
    /// A part of the range is not RAM; nothing was written.
    fn write(&mut self, to: u64, from: &[u8]) -> Result<(), NotRam>;
}

/// What a guest puts out through a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// A frame leaves through network card `nic`, without frame check sequence.
    Frame {
        /// Number of the card in [`Config::nics`].
        nic: u8,
        /// From the destination address on.
        bytes: &'a [u8],
    },
    /// Bytes for the console.
    Console(&'a [u8]),
}

/// Who takes it.
pub type Sink<'a> = dyn FnMut(Output<'_>) + 'a;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod testing;
