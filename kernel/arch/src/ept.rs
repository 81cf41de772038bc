//! Entries and pointer of the extended page tables (SDM 3 30.3).

use bitflags::bitflags;

use crate::addr::Hpa;

bitflags! {
    /// An entry of any level (SDM 3 30.3.2, tables 30-2 … 30-7), without its address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptEntry: u64 {
        /// Data reads are allowed.
        const READ = 1 << 0;
        /// Data writes are allowed.
        const WRITE = 1 << 1;
        /// Instruction fetches are allowed.
        const EXECUTE = 1 << 2;
        /// Memory type write-back, in entries that map a page.
        const WRITE_BACK = 6 << 3;
        /// The guest's PAT does not change the memory type.
        const IGNORE_PAT = 1 << 6;
        /// Maps a page although it is not in the last level.
        const LARGE = 1 << 7;
        /// Set by the processor at any use.
        const ACCESSED = 1 << 8;
        /// Set by the processor at a write, in entries that map a page.
        const DIRTY = 1 << 9;
        const _ = !0;
    }
}

/// Bits of an entry that hold the address of a table or page.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry that points to the next table; rights are decided by the last level.
#[must_use]
pub const fn table(to: Hpa) -> u64 {
    to.0 & ADDRESS
        | EptEntry::READ
            .union(EptEntry::WRITE)
            .union(EptEntry::EXECUTE)
            .bits()
}

/// An entry that maps 2 MiB of RAM with all rights, write-back whatever the guest's PAT says: nothing a
/// guest has is other memory than RAM.
#[must_use]
pub const fn large_page(to: Hpa) -> u64 {
    table(to)
        | EptEntry::WRITE_BACK
            .union(EptEntry::IGNORE_PAT)
            .union(EptEntry::LARGE)
            .bits()
}

/// Whether an entry maps or points to anything (SDM 3 30.3.2: bits 2:0).
#[must_use]
pub const fn is_present(entry: u64) -> bool {
    entry & 7 != 0
}

/// The extended-page-table pointer (SDM 3 26.6.11, table 26-9): four levels, tables in write-back memory,
/// with accessed and dirty flags if the processor has them.
#[must_use]
pub const fn pointer(root: Hpa, accessed_dirty: bool) -> u64 {
    const WRITE_BACK: u64 = 6;
    const FOUR_LEVELS: u64 = 3 << 3;
    const ACCESSED_DIRTY: u64 = 1 << 6;
    let flags = if accessed_dirty { ACCESSED_DIRTY } else { 0 };
    root.0 & ADDRESS | WRITE_BACK | FOUR_LEVELS | flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_is_write_back_with_all_rights() {
        assert_eq!(large_page(Hpa(0x1234_0020_0000)), 0x1234_0020_00f7);
        assert!(is_present(large_page(Hpa(0))));
    }

    #[test]
    fn a_table_entry_has_no_memory_type() {
        assert_eq!(table(Hpa(0x7000)), 0x7007);
        assert!(!is_present(0x7000));
    }

    #[test]
    fn pointer_says_four_levels() {
        assert_eq!(pointer(Hpa(0x5000), false), 0x501e);
        assert_eq!(pointer(Hpa(0x5000), true), 0x505e);
    }
}
