//! The frame allocator: 4 KiB and 2 MiB frames, and larger runs, of the boot memory map's free RAM.
//!
//! A buddy allocator keeps the free blocks; a bitmap beside it knows each frame's owner, so that freeing
//! what is not allocated panics instead of corrupting memory.

use core::alloc::Layout;
use core::ptr::NonNull;

use arch::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use buddy_system_allocator::Heap;
use spin::Mutex;

use super::physmap;
use crate::boot_info::{Boot, Region, RegionKind};

/// Largest block is 2³² bytes.
const ORDERS: usize = 33;

/// RAM below this address is not handed out: other processors start there, firmware scribbles there.
const LOW_MEMORY: u64 = 1 << 20;

struct Frames {
    heap: Heap<ORDERS>,
    /// One bit per frame of physical memory from 0 up: 1 = handed out.
    owned: &'static mut [u64],
    /// Likewise: 1 = under this allocator.
    managed: &'static mut [u64],
    total: u64,
    used: u64,
}

static FRAMES: Mutex<Option<Frames>> = Mutex::new(None);

/// Bytes of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Managed in all.
    pub total: u64,
    /// Handed out now.
    pub used: u64,
}

/// The free RAM's last address is beyond every region of this size: no room for the allocator's own map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLittleMemory;

/// Takes over all usable regions.
///
/// # Errors
///
/// No region can hold the allocator's bitmap.
pub fn init(boot: &Boot) -> Result<(), TooLittleMemory> {
    let usable = |r: &&Region| r.kind == RegionKind::Usable && r.end.0 > LOW_MEMORY;
    // Every RAM region counts: memory of the boot loader comes in later.
    let top = boot
        .regions()
        .iter()
        .filter(|r| r.kind != RegionKind::Firmware)
        .map(|r| r.end.0)
        .max()
        .unwrap_or(0);
    let words = (top / PAGE_SIZE).div_ceil(64) as usize;
    let map_bytes = (words as u64 * 16).next_multiple_of(PAGE_SIZE);
    let home = boot
        .regions()
        .iter()
        .filter(usable)
        .map(|r| r.start.0.max(LOW_MEMORY)..r.end.0)
        .find(|r| r.end - r.start >= map_bytes)
        .ok_or(TooLittleMemory)?;
    // SAFETY: the range is free RAM, mapped, aligned to a page and from now on used for this only.
    let (owned, managed) = unsafe {
        core::ptr::write_bytes(physmap::ptr(Hpa(home.start)), 0, map_bytes as usize);
        core::slice::from_raw_parts_mut(physmap::ptr(Hpa(home.start)).cast::<u64>(), 2 * words)
            .split_at_mut(words)
    };
    let mut frames = Frames {
        heap: Heap::new(),
        owned,
        managed,
        total: map_bytes,
        used: map_bytes,
    };
    for region in boot.regions().iter().filter(usable) {
        let mut start = region.start.0.max(LOW_MEMORY);
        if start == home.start {
            start += map_bytes;
        }
        frames.add(start, region.end.0);
    }
    *FRAMES.lock() = Some(frames);
    Ok(())
}

fn layout(bytes: u64, align: u64) -> Option<Layout> {
    Layout::from_size_align(bytes as usize, align as usize).ok()
}

impl Frames {
    /// Takes over a range. Panics if a part of it is managed already.
    fn add(&mut self, start: u64, end: u64) {
        let (mut frame, last) = (start / PAGE_SIZE, end / PAGE_SIZE);
        while frame < last {
            let count = (64 - frame % 64).min(last - frame);
            let bits = (u64::MAX >> (64 - count)) << (frame % 64);
            let word = self.managed.get_mut((frame / 64) as usize);
            let word = word.unwrap_or_else(|| panic!("frame {:#x} is not RAM", frame * PAGE_SIZE));
            assert!(
                *word & bits == 0,
                "frames from {:#x}: added twice",
                frame * PAGE_SIZE
            );
            *word |= bits;
            frame += count;
        }
        if start < end {
            // SAFETY: the range is free RAM, mapped, and no other range given to the heap overlaps it,
            // as the bits just showed.
            unsafe {
                self.heap.add_to_heap(
                    physmap::ptr(Hpa(start)) as usize,
                    physmap::ptr(Hpa(end)) as usize,
                );
            }
            self.total += end - start;
        }
    }

    /// Sets the owner bits of a run; panics if one of them has that value already.
    fn mark(&mut self, hpa: Hpa, bytes: u64, owned: bool) {
        let first = hpa.0 / PAGE_SIZE;
        for frame in first..first + bytes / PAGE_SIZE {
            let word = self.owned.get_mut((frame / 64) as usize);
            let word = word.unwrap_or_else(|| panic!("frame {:#x} is not RAM", frame * PAGE_SIZE));
            let bit = 1 << (frame % 64);
            let was = *word & bit != 0;
            assert!(
                was != owned,
                "frame {:#x}: allocated or freed twice",
                frame * PAGE_SIZE
            );
            *word ^= bit;
        }
        if owned {
            self.used += bytes;
        } else {
            self.used -= bytes;
        }
    }

    fn alloc(&mut self, bytes: u64, align: u64) -> Option<Hpa> {
        let block = self.heap.alloc(layout(bytes, align)?).ok()?;
        let hpa = physmap::hpa_of(block.as_ptr());
        self.mark(hpa, bytes, true);
        Some(hpa)
    }

    fn free(&mut self, hpa: Hpa, bytes: u64, align: u64) {
        assert!(
            hpa.0.is_multiple_of(align),
            "freed frame {hpa:?} is not aligned"
        );
        self.mark(hpa, bytes, false);
        let block = NonNull::new(physmap::ptr(hpa));
        if let (Some(block), Some(layout)) = (block, layout(bytes, align)) {
            // SAFETY: `mark` has just established that the whole run was handed out, and a run is handed
            // out and freed with the same size by the pairs of functions below.
            unsafe { self.heap.dealloc(block, layout) };
        }
    }
}

fn with<T>(f: impl FnOnce(&mut Frames) -> Option<T>) -> Option<T> {
    FRAMES.lock().as_mut().and_then(f)
}

/// A 4 KiB frame full of zeros.
pub fn alloc_zeroed() -> Option<Hpa> {
    let hpa = with(|frames| frames.alloc(PAGE_SIZE, PAGE_SIZE))?;
    // SAFETY: the frame was just allocated, so nothing else refers to it.
    unsafe { core::ptr::write_bytes(physmap::ptr(hpa), 0, PAGE_SIZE as usize) };
    Some(hpa)
}

/// Gives back a frame of [`alloc_zeroed`]. Panics if it is not handed out.
pub fn free(hpa: Hpa) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.free(hpa, PAGE_SIZE, PAGE_SIZE);
    }
}

/// A 2 MiB frame, aligned to 2 MiB; its contents are old.
pub fn alloc_large() -> Option<Hpa> {
    with(|frames| frames.alloc(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE))
}

/// Gives back a frame of [`alloc_large`]. Panics if it is not handed out.
pub fn free_large(hpa: Hpa) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.free(hpa, LARGE_PAGE_SIZE, LARGE_PAGE_SIZE);
    }
}

/// `1 << order` contiguous frames of 4 KiB, aligned to their size; their contents are old.
pub fn alloc_run(order: u32) -> Option<Hpa> {
    let bytes = PAGE_SIZE.checked_shl(order)?;
    with(|frames| frames.alloc(bytes, bytes))
}

/// Gives back a run of [`alloc_run`]. Panics if it is not handed out.
pub fn free_run(hpa: Hpa, order: u32) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.free(hpa, PAGE_SIZE << order, PAGE_SIZE << order);
    }
}

/// Takes over RAM that was not free at start. Panics if a part of it is managed already.
pub fn donate(start: Hpa, end: Hpa) {
    let start = start.0.max(LOW_MEMORY);
    if let Some(frames) = FRAMES.lock().as_mut()
        && start < end.0
    {
        frames.add(start, end.0);
    }
}

/// How much is handed out.
pub fn usage() -> Usage {
    with(|frames| {
        Some(Usage {
            total: frames.total,
            used: frames.used,
        })
    })
    .unwrap_or_default()
}
