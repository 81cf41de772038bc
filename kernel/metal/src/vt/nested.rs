//! The tables that translate guest physical to host physical addresses: one builder for both vendors' entry
//! formats.
//!
//! Guest memory is mapped in 2 MiB pages, one at a time as the guest first touches it.

use core::marker::PhantomData;

use arch::addr::{Gpa, Hpa};

use crate::mem::{frames, physmap};

/// Levels of tables above a 2 MiB page: the root and two more.
const LEVELS: u32 = 3;
/// Guest physical addresses that four-level tables translate.
const ADDRESS_BITS: u32 = 48;
const ENTRIES: usize = 512;

/// A vendor's entry format.
pub trait Format {
    /// An entry that points to the next table.
    fn table(to: Hpa) -> u64;
    /// An entry that maps 2 MiB of RAM with all rights.
    fn large_page(to: Hpa) -> u64;
    /// Whether an entry maps or points to anything.
    fn is_present(entry: u64) -> bool;
    /// Where an entry points.
    fn target(entry: u64) -> Hpa;
}

/// Why a page could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    OutOfMemory,
    /// It is mapped already: the processor faulted for another reason.
    AlreadyMapped,
    /// Beyond what the tables translate.
    AddressTooHigh,
}

/// Nested tables of one virtual processor. Frees its frames when dropped.
pub struct NestedTables<F: Format> {
    root: Hpa,
    format: PhantomData<F>,
}

impl<F: Format> NestedTables<F> {
    /// Empty tables; none if there is no frame for the root.
    pub fn new() -> Option<Self> {
        Some(Self {
            root: frames::alloc_zeroed()?,
            format: PhantomData,
        })
    }

    /// The root table.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// Maps the 2 MiB of guest memory that hold `gpa` to the host frame at `hpa`.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; nothing was mapped, though a table may have been added.
    pub fn map_large(&mut self, gpa: Gpa, hpa: Hpa) -> Result<(), MapError> {
        if gpa.0 >> ADDRESS_BITS != 0 {
            return Err(MapError::AddressTooHigh);
        }
        let mut table = self.root;
        for level in (2..=LEVELS).rev() {
            let slot = entry(table, gpa, level);
            // SAFETY: `table` is a table of this structure, alone written to through `&mut self`; the
            // processor may set accessed bits in it, for which the access is volatile.
            let present = unsafe { slot.read_volatile() };
            table = if F::is_present(present) {
                F::target(present)
            } else {
                let next = frames::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
                // SAFETY: as above.
                unsafe { slot.write_volatile(F::table(next)) };
                next
            };
        }
        let slot = entry(table, gpa, 1);
        // SAFETY: as above.
        unsafe {
            if F::is_present(slot.read_volatile()) {
                return Err(MapError::AlreadyMapped);
            }
            slot.write_volatile(F::large_page(hpa));
        }
        Ok(())
    }
}

/// The entry for `gpa` in a table `level` levels above the 2 MiB page's contents.
fn entry(table: Hpa, gpa: Gpa, level: u32) -> *mut u64 {
    let index = (gpa.0 >> (12 + 9 * level)) as usize % ENTRIES;
    physmap::ptr(table).cast::<u64>().wrapping_add(index)
}

fn free_table<F: Format>(table: Hpa, level: u32) {
    if level > 1 {
        for index in 0..ENTRIES {
            let slot = physmap::ptr(table).cast::<u64>().wrapping_add(index);
            // SAFETY: a table of a structure that is being dropped: nothing uses it any more.
            let present = unsafe { slot.read_volatile() };
            if F::is_present(present) {
                free_table::<F>(F::target(present), level - 1);
            }
        }
    }
    frames::free(table);
}

impl<F: Format> Drop for NestedTables<F> {
    fn drop(&mut self) {
        free_table::<F>(self.root, LEVELS);
    }
}
