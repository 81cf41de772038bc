//! The machine's battery-backed clock.

use devices::rtc::{self, spec};

use crate::x86;

/// Seconds since 1970 by the machine's clock, taken as UTC; 0 if it has none.
pub fn unix_seconds() -> u64 {
    let now = rtc::unix_seconds(&mut |index| {
        // SAFETY: the ports of the clock, which nobody else uses; reading its registers changes no memory. NMIs stay
        // on.
        unsafe {
            x86::outb(spec::INDEX_PORT, index);
            x86::inb(spec::DATA_PORT)
        }
    });
    now.unwrap_or(0)
}
