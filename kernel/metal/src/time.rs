//! The host's clock: nanoseconds since the kernel's entry, from the time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::x86;

/// TSC at the kernel's entry.
static START: AtomicU64 = AtomicU64::new(0);
/// TSC ticks per second; 0 until calibrated.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// Notes the kernel's entry.
pub fn start() {
    START.store(x86::rdtsc(), Ordering::Relaxed);
}

/// TSC ticks per second, 0 until calibrated.
pub fn tsc_frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Nanoseconds since the kernel's entry; 0 until the TSC is calibrated.
pub fn now_ns() -> u64 {
    let frequency = FREQUENCY.load(Ordering::Relaxed);
    if frequency == 0 {
        return 0;
    }
    let ticks = x86::rdtsc().wrapping_sub(START.load(Ordering::Relaxed));
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency)) as u64
}
