//! Silence: every card's transmitter switched off by one store, past any lock.
//!
//! A panic calls it, so it needs nothing but this table: no lock, no driver, no memory.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use arch::nic::StartError;
use vmm::net::MAX_NICS;

/// Cards found, used or not: more than can be configured.
const MAX_CARDS: usize = 4 * MAX_NICS;

/// Registers of 32 bits that mute a card when 0 is written to them.
static WORDS: [AtomicPtr<u32>; MAX_CARDS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CARDS];
/// Likewise of 8 bits.
static BYTES: [AtomicPtr<u8>; MAX_CARDS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CARDS];

fn register<T>(table: &[AtomicPtr<T>], at: *mut T) -> Result<(), StartError> {
    let free = |entry: &&AtomicPtr<T>| {
        entry
            .compare_exchange(ptr::null_mut(), at, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    };
    // A card that could not be muted is not started.
    match table.iter().find(free) {
        Some(_) => Ok(()),
        None => Err(StartError::Refused("is one too many")),
    }
}

/// Notes a register of 32 bits. It is mapped for good, and writing 0 to it only mutes its card.
///
/// # Errors
///
/// There are too many cards.
pub fn register_word(at: *mut u32) -> Result<(), StartError> {
    register(&WORDS, at)
}

/// Notes a register of 8 bits; likewise.
///
/// # Errors
///
/// There are too many cards.
pub fn register_byte(at: *mut u8) -> Result<(), StartError> {
    register(&BYTES, at)
}

/// Switches every transmitter off, for good. Works in any state of the host.
pub fn mute_all() {
    for entry in &WORDS {
        let at = entry.load(Ordering::SeqCst);
        if !at.is_null() {
            // SAFETY: whoever registered it vouches for the register and for the value.
            unsafe { at.write_volatile(0) };
        }
    }
    for entry in &BYTES {
        let at = entry.load(Ordering::SeqCst);
        if !at.is_null() {
            // SAFETY: likewise.
            unsafe { at.write_volatile(0) };
        }
    }
}
