//! The scratch device: 4 KiB at 0xd0000000 that behave as memory but are reached by exits only. Only
//! Duet has it; elsewhere ordinary memory takes its place, so that the same checks can be tried.

use crate::cpu;
use crate::racy::{Page, Racy};

/// Where the device lies.
pub const ADDRESS: u64 = 0xd000_0000;
/// Its size in bytes.
pub const SIZE: u64 = 0x1000;
/// An address that nothing answers.
pub const NOTHING: u64 = 0xd100_0000;

static STAND_IN: Racy<Page> = Racy::new(Page::ZERO);

/// The scratch device, or memory that stands in for it.
pub fn base() -> u64 {
    if cpu::on_duet() {
        ADDRESS
    } else {
        STAND_IN.address()
    }
}
