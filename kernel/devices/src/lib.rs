//! The guest's chips as register machines: `(now, access)` in, effects out.
//!
//! A device knows neither the log nor the processor nor the host. Time is an argument: the number of
//! guest instructions retired, or guest time that entered through the door.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi_pm;
pub mod chipset;
pub mod debug_console;
pub mod fifo;
pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod test_device;
pub mod time;
pub mod uart;
pub mod virtio;

/// All ones in the low `size` bytes (1, 2, 4 or 8): what a bus returns where nothing answers.
#[must_use]
pub const fn all_ones(size: u8) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (8 * size)) - 1
    }
}
