//! A guest's RAM: 2 MiB host frames, zeroed, from guest physical address 0 up.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::addr::{Gpa, Hpa, LARGE_PAGE_SIZE};
use vmm::memory::{GuestMemory, NotRam};

use crate::mem::{frames, physmap};

/// Bytes of all guests' RAM.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

/// Bytes of all guests' RAM.
pub fn allocated() -> u64 {
    ALLOCATED.load(Ordering::Relaxed)
}

/// There are not enough free 2 MiB frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes there were.
    pub available: u64,
}

/// Guest RAM. Frees its frames when dropped.
pub struct GuestRam {
    frames: Vec<Hpa>,
    /// One bit per 2 MiB frame: the guest, or a write on its behalf, has touched it.
    touched: Vec<u64>,
    size: u64,
}

impl GuestRam {
    /// RAM of `bytes`, rounded up to 2 MiB, zeroed.
    ///
    /// # Errors
    ///
    /// Not enough free frames; nothing stays allocated.
    pub fn new(bytes: u64) -> Result<Self, OutOfMemory> {
        let count = bytes.div_ceil(LARGE_PAGE_SIZE);
        let mut ram = Self {
            frames: Vec::with_capacity(count as usize),
            touched: alloc::vec![0; count.div_ceil(64) as usize],
            size: count * LARGE_PAGE_SIZE,
        };
        for done in 0..count {
            let Some(frame) = frames::alloc_large() else {
                return Err(OutOfMemory {
                    wanted: ram.size,
                    available: done * LARGE_PAGE_SIZE,
                });
            };
            // SAFETY: the frame was just allocated, so nothing else refers to it.
            unsafe { physmap::zero_large(frame) };
            ram.frames.push(frame);
            ALLOCATED.fetch_add(LARGE_PAGE_SIZE, Ordering::Relaxed);
        }
        Ok(ram)
    }

    /// The 2 MiB host frame behind the 2 MiB of guest memory that hold `gpa`; none where there is no RAM.
    #[inline]
    pub fn host_frame(&self, gpa: Gpa) -> Option<Hpa> {
        self.frames.get((gpa.0 / LARGE_PAGE_SIZE) as usize).copied()
    }

    /// Notes that the 2 MiB that hold `gpa` may no longer be all zero.
    #[inline]
    pub fn mark_touched(&mut self, gpa: Gpa) {
        let frame = gpa.0 / LARGE_PAGE_SIZE;
        if let Some(word) = self.touched.get_mut((frame / 64) as usize) {
            *word |= 1 << (frame % 64);
        }
    }

    /// Makes all of it zero, as at power-on.
    pub fn clear(&mut self) {
        for (n, frame) in (0..).zip(&self.frames) {
            let word = self.touched.get_mut(n / 64);
            if let Some(word) = word.filter(|word| **word >> (n % 64) & 1 != 0) {
                *word &= !(1 << (n % 64));
                // SAFETY: the frame is owned by `self` and mapped; the guest does not run now.
                unsafe { physmap::zero_large(*frame) };
            }
        }
    }

    /// Bytes of RAM in frames marked as touched.
    fn touched_bytes(&self) -> u64 {
        let frames: u64 = self
            .touched
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        frames * LARGE_PAGE_SIZE
    }

    /// The host address of `size` bytes, a power of two, at an address aligned to it. `size` counts the RAM, which
    /// is whole frames.
    #[inline]
    fn word(&self, gpa: Gpa, size: u64) -> Result<*const u8, NotRam> {
        let frame = self.host_frame(gpa).ok_or(NotRam(gpa))?;
        if !gpa.0.is_multiple_of(size) {
            return Err(NotRam(gpa));
        }
        Ok(physmap::ptr(frame.offset(gpa.0 % LARGE_PAGE_SIZE)).cast_const())
    }

    /// Calls `f` with the host address and length of each piece of a range; the range is all RAM.
    fn pieces(
        &self,
        gpa: Gpa,
        length: usize,
        mut f: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), NotRam> {
        let end = gpa.0.checked_add(length as u64).ok_or(NotRam(gpa))?;
        if end > self.size {
            return Err(NotRam(gpa));
        }
        let mut done = 0;
        while done < length {
            let at = gpa.offset(done as u64);
            let offset = at.0 % LARGE_PAGE_SIZE;
            let frame = self.host_frame(at).ok_or(NotRam(at))?;
            let piece = (length - done).min((LARGE_PAGE_SIZE - offset) as usize);
            f(physmap::ptr(frame.offset(offset)), done, piece);
            done += piece;
        }
        Ok(())
    }
}

impl GuestMemory for GuestRam {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_untouched(&self, at: Gpa) -> bool {
        let frame = at.0 / LARGE_PAGE_SIZE;
        let word = self.touched.get((frame / 64) as usize);
        word.is_some_and(|word| word >> (frame % 64) & 1 == 0)
    }

    fn read(&self, from: Gpa, to: &mut [u8]) -> Result<(), NotRam> {
        let target = to.as_mut_ptr();
        self.pieces(from, to.len(), |host, done, piece| {
            // SAFETY: `pieces` stays inside one frame owned by `self` and inside `to`; the two cannot
            // overlap since `to` is a Rust object and the frames hold none. The guest does not run now.
            unsafe { core::ptr::copy_nonoverlapping(host, target.add(done), piece) };
        })
    }

    #[inline]
    fn read_u64(&self, from: Gpa) -> Result<u64, NotRam> {
        let word = self.word(from, 8)?;
        // SAFETY: eight aligned bytes inside a frame owned by `self`; the guest does not run now.
        Ok(unsafe { word.cast::<u64>().read() })
    }

    #[inline]
    fn read_u128(&self, from: Gpa) -> Result<u128, NotRam> {
        let frame = self.host_frame(from).ok_or(NotRam(from))?;
        let offset = from.0 % LARGE_PAGE_SIZE;
        if offset > LARGE_PAGE_SIZE - 16 {
            return Err(NotRam(from));
        }
        let at = physmap::ptr(frame.offset(offset)).cast::<u128>();
        // SAFETY: sixteen bytes inside a frame owned by `self`; the guest does not run now.
        Ok(unsafe { at.read_unaligned() })
    }

    #[inline]
    fn read_u32(&self, from: Gpa) -> Result<u32, NotRam> {
        let word = self.word(from, 4)?;
        // SAFETY: four aligned bytes inside a frame owned by `self`; the guest does not run now.
        Ok(unsafe { word.cast::<u32>().read() })
    }

    fn write(&mut self, to: Gpa, from: &[u8]) -> Result<(), NotRam> {
        let source = from.as_ptr();
        self.pieces(to, from.len(), |host, done, piece| {
            // SAFETY: as in `read`.
            unsafe { core::ptr::copy_nonoverlapping(source.add(done), host, piece) };
        })?;
        if !from.is_empty() {
            let mut at = to.large_page();
            while at.0 < to.0 + from.len() as u64 {
                self.mark_touched(at);
                at = at.offset(LARGE_PAGE_SIZE);
            }
        }
        Ok(())
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        log::debug!(
            "guest RAM: {} of {} MiB were touched",
            self.touched_bytes() >> 20,
            self.size >> 20
        );
        for frame in self.frames.drain(..) {
            frames::free_large(frame);
            ALLOCATED.fetch_sub(LARGE_PAGE_SIZE, Ordering::Relaxed);
        }
    }
}
