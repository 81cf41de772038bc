//! Changes to the page tables that the boot code made: 4 KiB mappings where a guest wants them.

use crate::cpu;
use crate::racy::{Page, Racy};

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// User.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Address bits of an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const POOL_PAGES: usize = 32;
static POOL: Racy<[Page; POOL_PAGES]> = Racy::new([Page::ZERO; POOL_PAGES]);
static USED: Racy<usize> = Racy::new(0);
static ROOT: Racy<u64> = Racy::new(0);

pub(crate) fn adopt(root: u64) {
    // SAFETY: called once, before anything else here.
    unsafe { ROOT.get().write(root) };
}

/// Physical address of the root table.
pub fn root() -> u64 {
    // SAFETY: written once at start.
    unsafe { ROOT.get().read() }
}

/// A fresh table of zeros.
pub fn new_table() -> u64 {
    // SAFETY: one processor; not called from handlers while the main flow is in here.
    let used = unsafe { &mut *USED.get() };
    assert!(*used < POOL_PAGES, "page-table pool is empty");
    *used += 1;
    POOL.address() + (*used as u64 - 1) * 4096
}

/// Pointer to entry `index` of the table at `table`.
pub fn slot(table: u64, index: u64) -> *mut u64 {
    (table as *mut u64).wrapping_add((index & 511) as usize)
}

/// The entry that maps `address` at `level` (1 is a 4 KiB page, 4 the root), with tables made and
/// large pages split on the way. New upper entries allow everything.
pub fn entry(address: u64, level: u32) -> *mut u64 {
    let mut table = root();
    let mut current = 4;
    loop {
        let here = slot(table, address >> (12 + 9 * (current - 1)));
        if current == level {
            return here;
        }
        // SAFETY: a table of ours.
        let mut value = unsafe { here.read_volatile() };
        if value & P == 0 {
            value = new_table() | P | W | U;
        } else if value & PS != 0 {
            value = split(value, current) | P | W | U;
        } else {
            value |= W | U;
        }
        // SAFETY: the new entry maps what the old one did.
        unsafe { here.write_volatile(value) };
        table = value & ADDRESS;
        current -= 1;
    }
}

/// A table that maps what the large page `value` at `level` maps.
fn split(value: u64, level: u32) -> u64 {
    let table = new_table();
    let step = 1_u64 << (12 + 9 * (level - 2));
    let keep_large = if level > 2 { value } else { value & !PS };
    for index in 0..512 {
        // SAFETY: a table that nobody else knows yet.
        unsafe { slot(table, index).write_volatile(keep_large + index * step) };
    }
    table
}

/// Maps one 4 KiB page; `flags` include [`P`] or the page faults.
pub fn map(virtual_address: u64, physical: u64, flags: u64) {
    // SAFETY: guests map addresses that the runtime does not use, or restore what was there.
    unsafe { entry(virtual_address, 1).write_volatile((physical & ADDRESS) | flags) };
    cpu::invlpg(virtual_address);
}

/// Gives an identity-mapped page these flags.
pub fn protect(address: u64, flags: u64) {
    map(address, address, flags);
}

/// The 4 KiB entry of an address.
pub fn read(address: u64) -> u64 {
    // SAFETY: a table of ours.
    unsafe { entry(address, 1).read_volatile() }
}
