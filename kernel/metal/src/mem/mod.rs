//! Host memory: frames, the physical map, page tables, stacks, the heap.

pub mod frames;
pub mod heap;
pub mod paging;
pub mod physmap;
pub mod stacks;

use core::sync::atomic::{AtomicU64, Ordering};

use arch::addr::{Hpa, PAGE_SIZE};

use crate::boot_info::{Boot, RegionKind};
use crate::guest_ram;

/// What host memory is used for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The kernel image and everything Duet has allocated besides guest RAM.
    pub hypervisor: u64,
    /// RAM of guests.
    pub guests: u64,
    /// Free.
    pub free: u64,
}

/// Bytes of the kernel image, which the frame allocator does not know.
static IMAGE_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes of host memory by use.
pub fn usage() -> Usage {
    let frames = frames::usage();
    let guests = guest_ram::allocated();
    let image = IMAGE_BYTES.load(Ordering::Relaxed);
    Usage {
        hypervisor: image + frames.used - guests,
        guests,
        free: frames.total - frames.used,
    }
}

/// Takes over the boot loader's memory, which nothing uses once Duet runs on its own page tables and stack:
/// all of it except the kernel image and the ramdisk.
pub fn reclaim(boot: &Boot, built: &paging::Built) {
    let ramdisk = ramdisk_range(boot, built);
    let kernel = boot.kernel_file.start..boot.kernel_file.start + boot.kernel_file.length;
    let kept = |frame: u64| {
        (kernel.start & !(PAGE_SIZE - 1)..kernel.end).contains(&frame)
            || ramdisk.as_ref().is_some_and(|range| range.contains(&frame))
            || built.image_frames.binary_search(&Hpa(frame)).is_ok()
    };
    for region in boot
        .regions()
        .iter()
        .filter(|r| r.kind == RegionKind::Bootloader)
    {
        let mut start = region.start.0;
        let mut at = start;
        while at < region.end.0 {
            if kept(at) {
                frames::donate(Hpa(start), Hpa(at));
                start = at + PAGE_SIZE;
            }
            at += PAGE_SIZE;
        }
        frames::donate(Hpa(start), region.end);
    }
    let image = boot.kernel_file.length.next_multiple_of(PAGE_SIZE)
        + built.image_frames.len() as u64 * PAGE_SIZE;
    IMAGE_BYTES.store(image, Ordering::Relaxed);
}

fn ramdisk_range(boot: &Boot, built: &paging::Built) -> Option<core::ops::Range<u64>> {
    let (range, start) = (boot.ramdisk?, built.ramdisk?);
    Some(start.page().0..(start.0 + range.length).next_multiple_of(PAGE_SIZE))
}
