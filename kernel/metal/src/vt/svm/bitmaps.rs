//! The I/O and MSR permission maps: which ports and registers a guest reaches without an exit.

use arch::addr::Hpa;
use arch::msr;
use arch::svm::control::{IOPM_BYTES, MSRPM_BYTES, msr_permission_bit};

use crate::mem::{frames, physmap};

/// 2² frames, of which the I/O map takes three.
const IOPM_ORDER: u32 = 2;
/// 2¹ frames.
const MSRPM_ORDER: u32 = 1;

/// Registers that VMLOAD and VMSAVE exchange: they are the guest's own while it runs, so no exit is needed.
/// All others exit, the time-stamp counter among them.
const PASSED_THROUGH: [u32; 10] = [
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
];

/// Physical addresses of the maps; all guests share them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bitmaps {
    pub(super) io: Hpa,
    pub(super) msr: Hpa,
}

impl Bitmaps {
    /// Allocates and fills both maps, for the life of the host. `None`: no memory.
    pub(super) fn new() -> Option<Self> {
        let io = frames::alloc_run(IOPM_ORDER)?;
        let Some(msr) = frames::alloc_run(MSRPM_ORDER) else {
            frames::free_run(io, IOPM_ORDER);
            return None;
        };
        // SAFETY: both runs were just allocated, are mapped, and are at least as long as the maps.
        let map = unsafe {
            core::ptr::write_bytes(physmap::ptr(io), 0xff, IOPM_BYTES);
            core::ptr::write_bytes(physmap::ptr(msr), 0xff, MSRPM_BYTES);
            core::slice::from_raw_parts_mut(physmap::ptr(msr), MSRPM_BYTES)
        };
        for number in PASSED_THROUGH {
            if let Some((byte, bit)) = msr_permission_bit(number)
                && let Some(byte) = map.get_mut(byte)
            {
                *byte &= !(0b11 << bit);
            }
        }
        Some(Self { io, msr })
    }
}
