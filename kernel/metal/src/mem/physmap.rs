//! All RAM, mapped writable and not executable at one fixed offset.

use core::arch::asm;

use arch::addr::{Hpa, LARGE_PAGE_SIZE};

use crate::boot_info::PHYSMAP_BASE;

/// Where a host physical address is mapped. Valid to access only where there is RAM.
#[inline]
pub fn ptr(hpa: Hpa) -> *mut u8 {
    hpa.0.wrapping_add(PHYSMAP_BASE) as *mut u8
}

/// The host physical address behind a pointer that [`ptr`] made.
#[inline]
pub fn hpa_of<T>(pointer: *const T) -> Hpa {
    Hpa((pointer as u64).wrapping_sub(PHYSMAP_BASE))
}

/// Makes a 2 MiB frame zero.
///
/// # Safety
///
/// The frame is mapped, and nothing refers to it.
pub unsafe fn zero_large(frame: Hpa) {
    let start = ptr(frame);
    // Stores past the caches: what is cleared is hundreds of MiB and not read soon.
    // SAFETY: the caller vouches for the 2 MiB from `start` on; SFENCE orders them before all that follows.
    unsafe {
        asm!(
            "2:",
            "movnti [{at}], {zero}",
            "movnti [{at} + 8], {zero}",
            "movnti [{at} + 16], {zero}",
            "movnti [{at} + 24], {zero}",
            "movnti [{at} + 32], {zero}",
            "movnti [{at} + 40], {zero}",
            "movnti [{at} + 48], {zero}",
            "movnti [{at} + 56], {zero}",
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 2b",
            "sfence",
            at = inout(reg) start => _,
            end = in(reg) start.wrapping_add(LARGE_PAGE_SIZE as usize),
            zero = in(reg) 0_u64,
            options(nostack),
        );
    }
}
