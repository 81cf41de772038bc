//! Entries of the nested page tables (APM 2 15.25.5): the format of long-mode tables, read as if by
//! user code.

#![allow(missing_docs)] // the flags carry the manual's names

use bitflags::bitflags;

use crate::addr::Hpa;

bitflags! {
    /// An entry of any level (APM 2 5.4.1), without its address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NptEntry: u64 {
        const PRESENT = 1 << 0;
        const WRITE = 1 << 1;
        /// Every guest access counts as a user access, so every entry needs this.
        const USER = 1 << 2;
        const ACCESSED = 1 << 5;
        const DIRTY = 1 << 6;
        /// Maps a page although it is not in the last level.
        const LARGE = 1 << 7;
        const NO_EXECUTE = 1 << 63;
        const _ = !0;
    }
}

/// Bits of an entry that hold the address of a table or page.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry that points to the next table; rights are decided by the last level.
#[must_use]
pub const fn table(to: Hpa) -> u64 {
    to.0 & ADDRESS
        | NptEntry::PRESENT
            .union(NptEntry::WRITE)
            .union(NptEntry::USER)
            .bits()
}

/// An entry that maps 2 MiB of RAM with all rights. The memory type is write-back by the host's PAT entry 0;
/// the guest's PAT can only weaken it (APM 2 15.25.8).
#[must_use]
pub const fn large_page(to: Hpa) -> u64 {
    table(to) | NptEntry::LARGE.bits()
}

/// Whether an entry maps or points to anything.
#[must_use]
pub const fn is_present(entry: u64) -> bool {
    entry & NptEntry::PRESENT.bits() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_is_a_user_page_with_all_rights() {
        assert_eq!(large_page(Hpa(0x1234_0020_0000)), 0x1234_0020_0087);
        assert!(is_present(large_page(Hpa(0))));
    }

    #[test]
    fn a_table_entry_drops_what_is_no_address() {
        assert_eq!(table(Hpa(0x7123)), 0x7007);
        assert!(!is_present(0x7000));
    }
}
