//! What an Intel card and its driver share: the card's registers, and pages for its rings.

use core::ptr;
use core::sync::atomic::{Ordering, fence};

use arch::addr::Hpa;
use arch::nic::intel::registers::{self, BLOCK_BYTES};
use arch::nic::{BUFFER_BYTES, DESCRIPTORS, Half, Registers, Ring, RingMemory, StartError};
use pci_types::Bar;

use crate::mem::{frames, paging, physmap};
use crate::pci::Function;
use crate::time;

/// 256 descriptors of 16 bytes fill one frame.
const _: () = assert!(DESCRIPTORS * 16 == 4096);
/// Frames of all buffers of a ring, as a power of two.
const BUFFERS_ORDER: u32 = 7;
const _: () = assert!(DESCRIPTORS * BUFFER_BYTES == 4096 << BUFFERS_ORDER);

/// A card's registers.
pub struct Block {
    first: *mut u32,
}

// SAFETY: the pointer is to registers that are mapped for good; a card has one driver, which owns its block.
unsafe impl Send for Block {}

impl Block {
    /// Maps the registers in the card's first base address register.
    ///
    /// # Errors
    ///
    /// It has none of the size that its driver needs.
    pub fn map(function: &Function) -> Result<Self, StartError> {
        let (address, size) = match function.bars.first().map(|range| (range.slot, range.bar)) {
            Some((0, Bar::Memory32 { address, size, .. })) => (u64::from(address), u64::from(size)),
            Some((0, Bar::Memory64 { address, size, .. })) => (address, size),
            _ => return Err(StartError::Refused("has no registers in memory")),
        };
        if address == 0 || size < BLOCK_BYTES {
            return Err(StartError::Refused("has its registers nowhere, or too few"));
        }
        let first = paging::map_mmio(Hpa(address), BLOCK_BYTES)
            .map_err(|_| StartError::Refused("has registers that cannot be mapped"))?;
        Ok(Self {
            first: first.cast(),
        })
    }

    /// The register that mutes the card when 0 is written to it.
    pub fn mute_address(&self) -> *mut u32 {
        self.at(registers::TCTL)
    }

    fn at(&self, offset: u32) -> *mut u32 {
        assert!(u64::from(offset) < BLOCK_BYTES && offset.is_multiple_of(4));
        self.first.wrapping_byte_add(offset as usize)
    }
}

impl Registers for Block {
    fn read(&self, offset: u32) -> u32 {
        // SAFETY: `at` gives an aligned register inside the mapped block.
        unsafe { self.at(offset).read_volatile() }
    }

    fn write(&self, offset: u32, value: u32) {
        // What the card may look for in memory is there before it is told.
        fence(Ordering::SeqCst);
        // SAFETY: `at` gives an aligned register inside the mapped block. The driver only lets the card reach the memory
        // of its `RingPages`.
        unsafe { self.at(offset).write_volatile(value) };
    }

    fn pause_us(&self, microseconds: u32) {
        let until = time::now_ns() + u64::from(microseconds) * 1000;
        while time::now_ns() < until {
            core::hint::spin_loop();
        }
    }
}

/// Both rings and their buffers. Never freed: a card that could not be stopped may write to them for ever.
pub struct RingPages {
    rings: [Hpa; 2],
    buffers: [Hpa; 2],
}

const fn number(ring: Ring) -> usize {
    match ring {
        Ring::Receive => 0,
        Ring::Transmit => 1,
    }
}

impl RingPages {
    /// Takes the memory.
    ///
    /// # Errors
    ///
    /// There is not enough.
    pub fn allocate() -> Result<Self, StartError> {
        let none = StartError::Refused("gets no memory");
        let ring = || frames::alloc_zeroed().ok_or(none);
        let buffers = || {
            let run = frames::alloc_run(BUFFERS_ORDER).ok_or(none)?;
            // SAFETY: the run was just allocated, so nothing else refers to it.
            unsafe { ptr::write_bytes(physmap::ptr(run), 0, DESCRIPTORS * BUFFER_BYTES) };
            Ok(run)
        };
        Ok(Self {
            rings: [ring()?, ring()?],
            buffers: [buffers()?, buffers()?],
        })
    }

    fn half(&self, ring: Ring, index: usize, half: Half) -> *mut u64 {
        assert!(index < DESCRIPTORS);
        let offset = index * 16
            + match half {
                Half::Low => 0,
                Half::High => 8,
            };
        let first = physmap::ptr(self.rings[number(ring)]);
        first.wrapping_add(offset).cast()
    }

    fn buffer(&self, ring: Ring, index: usize) -> *mut u8 {
        assert!(index < DESCRIPTORS);
        physmap::ptr(self.buffers[number(ring)]).wrapping_add(index * BUFFER_BYTES)
    }
}

impl RingMemory for RingPages {
    fn ring_address(&self, ring: Ring) -> u64 {
        self.rings[number(ring)].0
    }

    fn buffer_address(&self, ring: Ring, index: usize) -> u64 {
        self.buffers[number(ring)].0 + (index * BUFFER_BYTES) as u64
    }

    fn read(&self, ring: Ring, index: usize, half: Half) -> u64 {
        // SAFETY: `half` gives an aligned word of a frame that is ours; the card may write it at any time, hence volatile.
        let value = unsafe { self.half(ring, index, half).read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    fn write(&mut self, ring: Ring, index: usize, half: Half, value: u64) {
        fence(Ordering::Release);
        // SAFETY: as in `read`.
        unsafe { self.half(ring, index, half).write_volatile(value) };
    }

    fn copy_out(&self, index: usize, into: &mut [u8]) {
        let length = into.len().min(BUFFER_BYTES);
        // SAFETY: the buffer is ours and as long; `into` is elsewhere. A card that still writes here breaks its own protocol,
        // and then only these bytes, which nobody has looked at yet, are wrong.
        unsafe {
            ptr::copy_nonoverlapping(self.buffer(Ring::Receive, index), into.as_mut_ptr(), length);
        }
    }

    fn copy_in(&mut self, index: usize, from: &[u8], padded: usize) {
        let length = from.len().min(BUFFER_BYTES);
        let padding = padded.min(BUFFER_BYTES).saturating_sub(length);
        let to = self.buffer(Ring::Transmit, index);
        // SAFETY: both parts together are at most the buffer, which is ours; `from` is elsewhere.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), to, length);
            ptr::write_bytes(to.wrapping_add(length), 0, padding);
        }
    }
}
