//! The MSR bitmap: which MSRs a guest accesses without an exit (SDM 3 26.6.9).

use arch::addr::{Hpa, PAGE_SIZE};
use arch::msr;

use crate::mem::{frames, physmap};

/// MSRs whose value belongs to the guest alone while it runs: in VMCS fields, or live in the processor and
/// exchanged with the virtual processor.
const GUEST_OWNED: [u32; 10] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
];

/// First MSR of the high range; the low one starts at 0. Each covers 0x2000 MSRs.
const HIGH_BASE: u32 = 0xc000_0000;
/// Bytes of the bitmap of one range for one direction: reads low, reads high, writes low, writes high.
const PART: u32 = 1024;

/// A bitmap that lets [`GUEST_OWNED`] through in both directions and nothing else; none if there is no frame.
pub fn msr_bitmap() -> Option<Hpa> {
    let frame = frames::alloc_zeroed()?;
    // SAFETY: the frame was just allocated and is this function's until it returns.
    let bytes = unsafe { core::slice::from_raw_parts_mut(physmap::ptr(frame), PAGE_SIZE as usize) };
    bytes.fill(0xff);
    for number in GUEST_OWNED {
        let (part, index) = if number >= HIGH_BASE {
            (PART, number - HIGH_BASE)
        } else {
            (0, number)
        };
        for direction in [0, 2 * PART] {
            if let Some(byte) = bytes.get_mut((direction + part + index / 8) as usize) {
                *byte &= !(1 << (index % 8));
            }
        }
    }
    Some(frame)
}
