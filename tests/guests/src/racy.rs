//! A mutable static for a machine with one processor.

use core::cell::UnsafeCell;

/// A value that handlers and the main flow share. Who uses it sees to it that the two do not hold
/// references at the same time.
#[repr(transparent)]
pub struct Racy<T>(UnsafeCell<T>);

// SAFETY: guests have one processor; see the type's rule for interrupt handlers.
unsafe impl<T> Sync for Racy<T> {}

impl<T> Racy<T> {
    /// A cell with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where the value lies.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }

    /// Where the value lies, as a pointer to something else.
    pub const fn address_as<U>(&self) -> *mut U {
        self.0.get().cast()
    }

    /// Its address, which is physical as well.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

/// A page of memory, 4 KiB aligned.
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; 4096]);
}
