//! All RAM, mapped writable and not executable at one fixed offset.

use arch::addr::Hpa;

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
