//! Addresses of three different worlds, as three different types.

use core::fmt;

/// Bytes of a small page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a large page.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, wrapping at 2⁶⁴ as address arithmetic does.
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The first address of the 4 KiB page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// The first address of the 2 MiB page that holds this address.
            #[must_use]
            pub const fn large_page(self) -> Self {
                Self(self.0 & !(LARGE_PAGE_SIZE - 1))
            }

            /// Bytes from the start of the 4 KiB page.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A guest physical address.
    Gpa
}
address! {
    /// A host physical address.
    Hpa
}
address! {
    /// A guest linear address (the segment base is already added).
    Gva
}
