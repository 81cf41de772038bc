//! The interrupt controllers that Duet does not use, silenced: two 8259s and the I/O APICs.

use arch::addr::Hpa;

use super::LEGACY_BASE;
use crate::mem::paging;
use crate::x86;

const FIRST: u16 = 0x20;
const SECOND: u16 = 0xa0;

/// Puts both 8259s at [`LEGACY_BASE`], where even a spurious interrupt does not look like an exception, and
/// masks all their lines (8259A data sheet, "Programming the 8259A").
pub fn mask_8259() {
    // ICW1: edge triggered, cascade, ICW4 follows. ICW2: vectors. ICW3: the second is on line 2.
    // ICW4: 8086 mode. Then the mask.
    let first = [LEGACY_BASE, 1 << 2, 1, 0xff];
    let second = [LEGACY_BASE + 8, 2, 1, 0xff];
    for (port, words) in [(FIRST, first), (SECOND, second)] {
        // SAFETY: the 8259s' ports by PC convention; masking interrupts has no effect on memory.
        unsafe {
            x86::outb(port, 0x11);
            for word in words {
                x86::outb(port + 1, word);
            }
        }
    }
}

/// Masks every line of an I/O APIC (82093AA data sheet, 3.0).
pub fn mask_io_apic(at: Hpa) {
    const VERSION: u32 = 1;
    const FIRST_ENTRY: u32 = 0x10;
    const MASKED: u32 = 1 << 16;
    let registers = match paging::map_mmio(at, 0x20) {
        Ok(registers) => registers.cast::<u32>(),
        Err(error) => {
            log::warn!("I/O APIC at {at:?}: {error}");
            return;
        }
    };
    // SAFETY: the MADT says that an I/O APIC is there and it was just mapped: an index register at 0 and
    // a data register at 0x10.
    unsafe {
        let (select, data) = (registers, registers.add(4));
        select.write_volatile(VERSION);
        let last = data.read_volatile() >> 16 & 0xff;
        for entry in 0..=last {
            select.write_volatile(FIRST_ENTRY + 2 * entry);
            data.write_volatile(MASKED);
        }
    }
}
