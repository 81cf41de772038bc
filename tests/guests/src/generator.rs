//! The interrupt generator, a device that only Duet has: an interrupt or NMI after an exact number of
//! instructions.

use crate::cpu;

/// OUT: raise vector (bits 7:0), or an NMI if bit 8 is set. IN: events delivered so far.
pub const RAISE: u16 = 0xf0;
/// OUT: instructions between the write to [`RAISE`] and the event.
pub const DELAY: u16 = 0xf8;
/// In a value for [`RAISE`]: an NMI.
pub const NMI: u32 = 1 << 8;

/// Whether there is one.
pub fn present() -> bool {
    cpu::on_duet()
}

/// Raises an interrupt after `delay` more instructions.
pub fn raise(vector: u8, delay: u32) {
    cpu::out32(DELAY, delay);
    cpu::out32(RAISE, u32::from(vector));
}

/// Raises an NMI after `delay` more instructions.
pub fn raise_nmi(delay: u32) {
    cpu::out32(DELAY, delay);
    cpu::out32(RAISE, NMI);
}

/// Events delivered so far.
pub fn delivered() -> u32 {
    cpu::in32(RAISE)
}
