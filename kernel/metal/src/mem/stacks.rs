//! Stacks with an unmapped page at both ends.

use arch::addr::{Hpa, PAGE_SIZE};
use spin::Mutex;

use super::frames;
use super::paging::{self, MapError, STACKS_BASE};

/// Address space for one stack, its guard pages included.
const SLOT: u64 = 1 << 20;
/// Most stacks: the boot processor's seven, and as many again for each of some others.
const MAX_STACKS: usize = 64;

/// A mapped stack.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// What it is for.
    pub name: &'static str,
    /// Lowest address.
    pub bottom: u64,
    /// Behind the highest address, 16-byte aligned: the initial stack pointer.
    pub top: u64,
}

static STACKS: Mutex<([Option<Stack>; MAX_STACKS], usize)> = Mutex::new(([None; MAX_STACKS], 0));

/// Maps a stack of `pages` pages, 1 … 254.
///
/// # Errors
///
/// Out of memory, or too many stacks.
pub fn allocate(name: &'static str, pages: u64) -> Result<Stack, MapError> {
    let mut stacks = STACKS.lock();
    let (slots, count) = &mut *stacks;
    let slot = slots.get_mut(*count).ok_or(MapError::OutOfMemory)?;
    let bottom = STACKS_BASE + *count as u64 * SLOT + PAGE_SIZE;
    assert!(
        (1..SLOT / PAGE_SIZE - 1).contains(&pages),
        "stack of {pages} pages"
    );
    for page in 0..pages {
        let frame: Hpa = frames::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
        paging::map_at(bottom + page * PAGE_SIZE, frame, PAGE_SIZE, true)?;
    }
    let stack = Stack {
        name,
        bottom,
        top: bottom + pages * PAGE_SIZE,
    };
    *slot = Some(stack);
    *count += 1;
    Ok(stack)
}

/// The stack whose mapped pages hold `address`.
pub fn containing(address: u64) -> Option<Stack> {
    find(|stack| (stack.bottom..stack.top).contains(&address))
}

/// The stack below whose bottom `address` lies, in its guard page.
pub fn guarding(address: u64) -> Option<Stack> {
    find(|stack| (stack.bottom - PAGE_SIZE..stack.bottom).contains(&address))
}

fn find(wanted: impl Fn(&Stack) -> bool) -> Option<Stack> {
    // In a panic the lock may be held by whoever failed.
    let stacks = STACKS.try_lock()?;
    stacks
        .0
        .iter()
        .flatten()
        .copied()
        .find(|stack| wanted(stack))
}
