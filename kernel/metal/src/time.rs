//! The host's clock: nanoseconds since the kernel's entry, from the time-stamp counter.
//!
//! The counter's frequency and the LAPIC timer's are measured at start against every clock of known
//! frequency that the machine has.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::addr::Hpa;
use arch::calibrate::{
    self, Calibration, Measurement, NoReference, PIT_HZ, PM_TIMER_HZ, Reference,
};

use crate::acpi::{Platform, Register};
use crate::mem::paging;
use crate::{apic, x86};

/// TSC at the kernel's entry.
static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per TSC tick, times 2³²; 0 until calibrated. A multiplication is cheap enough for every exit.
static NANOSECONDS_PER_TICK: AtomicU64 = AtomicU64::new(0);

/// TSC ticks per nanosecond, times 2³²; 0 until calibrated.
static TICKS_PER_NANOSECOND: AtomicU64 = AtomicU64::new(0);

/// Length of one measurement: with a microsecond to read a clock the error is below 0.1 %.
const MEASURE_NS: u64 = 2_000_000;
/// Most measurements of each clock.
const ATTEMPTS: u32 = 5;
/// Disagreement that is not worth another measurement, in parts per million.
const GOOD_PPM: u64 = 2_000;
/// Polls of a clock after which it is taken to stand still.
const POLL_LIMIT: u32 = 2_000_000;

/// Notes the kernel's entry.
pub fn start() {
    START.store(x86::rdtsc(), Ordering::Relaxed);
}

/// Nanoseconds since the kernel's entry; 0 until the TSC is calibrated.
#[inline]
pub fn now_ns() -> u64 {
    let ticks = x86::rdtsc().wrapping_sub(START.load(Ordering::Relaxed));
    let scale = NANOSECONDS_PER_TICK.load(Ordering::Relaxed);
    ((u128::from(ticks) * u128::from(scale)) >> 32) as u64
}

/// TSC ticks in `ns` nanoseconds, at least 1.
#[inline]
pub fn ticks(ns: u64) -> u64 {
    let scale = TICKS_PER_NANOSECOND.load(Ordering::Relaxed);
    let ticks = (u128::from(ns) * u128::from(scale)) >> 32;
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

/// Stops the processor until `until`, in nanoseconds since the kernel's entry, or until an interrupt comes.
pub fn wait_until(until: u64) {
    let left = until.saturating_sub(now_ns());
    if left == 0 {
        return;
    }
    let ticks = u128::from(left) * u128::from(apic::timer_frequency()) / 1_000_000_000;
    apic::timer_arm_oneshot(ticks.clamp(1, u128::from(u32::MAX)) as u32);
    x86::wait_for_interrupt();
    apic::timer_disarm();
}

struct Counters {
    tsc: u64,
    lapic: u32,
}

impl Counters {
    fn begin() -> Self {
        apic::timer_arm_oneshot(u32::MAX);
        Self {
            tsc: x86::rdtsc(),
            lapic: apic::timer_remaining(),
        }
    }

    fn end(&self, reference: Reference, elapsed_ns: u64) -> Measurement {
        let tsc = x86::rdtsc().wrapping_sub(self.tsc);
        let lapic = self.lapic.wrapping_sub(apic::timer_remaining());
        apic::timer_disarm();
        Measurement {
            reference,
            elapsed_ns,
            tsc,
            lapic: u64::from(lapic),
        }
    }
}

/// Measures against a free-running counter of `bits` bits at `hz`.
fn measure(
    reference: Reference,
    hz: u64,
    bits: u32,
    read: impl Fn() -> u64,
) -> Option<Measurement> {
    let mask = u64::MAX >> (64 - bits);
    let wanted = hz * (MEASURE_NS / 1000) / 1_000_000;
    let first = read();
    let counters = Counters::begin();
    for _ in 0..POLL_LIMIT {
        let elapsed = read().wrapping_sub(first) & mask;
        if elapsed >= wanted {
            let elapsed_ns = u128::from(elapsed) * 1_000_000_000 / u128::from(hz);
            return Some(counters.end(reference, elapsed_ns as u64));
        }
    }
    apic::timer_disarm();
    log::warn!("time: the {reference} stands still");
    None
}

fn measure_hpet(at: Hpa) -> Option<Measurement> {
    const CAPABILITIES: usize = 0;
    const CONFIGURATION: usize = 0x10 / 8;
    const MAIN_COUNTER: usize = 0xf0 / 8;
    const ENABLE: u64 = 1;
    /// Slowest period that the specification allows, in femtoseconds.
    const MAX_PERIOD_FS: u64 = 100_000_000;
    let registers = paging::map_mmio(at, 0x400).ok()?.cast::<u64>();
    // SAFETY: the ACPI table says that an HPET is there and it was just mapped; counting is all it does.
    let capabilities = unsafe {
        let configuration = registers.add(CONFIGURATION).read_volatile();
        registers
            .add(CONFIGURATION)
            .write_volatile(configuration | ENABLE);
        registers.add(CAPABILITIES).read_volatile()
    };
    let period_fs = capabilities >> 32;
    if !(1..=MAX_PERIOD_FS).contains(&period_fs) {
        log::warn!("time: HPET with a period of {period_fs} fs");
        return None;
    }
    let bits = if capabilities & 1 << 13 == 0 { 32 } else { 64 };
    measure(
        Reference::Hpet,
        1_000_000_000_000_000 / period_fs,
        bits,
        // SAFETY: the register block is mapped for good, and reading the counter has no effect.
        || unsafe { registers.add(MAIN_COUNTER).read_volatile() },
    )
}

fn measure_pm_timer(register: Register) -> Option<Measurement> {
    // The timer has 24 or 32 bits; 24 are enough for 4.6 s.
    match register {
        // SAFETY: the ACPI table says that the PM timer is there; reading it has no effect.
        Register::Port(port) => measure(Reference::PmTimer, PM_TIMER_HZ, 24, || unsafe {
            u64::from(x86::inl(port))
        }),
        Register::Memory(at) => {
            let pointer = paging::map_mmio(at, 4).ok()?.cast::<u32>();
            // SAFETY: likewise, and it was just mapped.
            measure(Reference::PmTimer, PM_TIMER_HZ, 24, || unsafe {
                u64::from(pointer.read_volatile())
            })
        }
    }
}

fn measure_pit() -> Option<Measurement> {
    const CHANNEL_2: u16 = 0x42;
    const MODE: u16 = 0x43;
    const GATE: u16 = 0x61;
    const GATE_ON: u8 = 1 << 0;
    const SPEAKER: u8 = 1 << 1;
    const OUTPUT: u8 = 1 << 5;
    /// Channel 2, low then high byte, mode 0: the output rises when the count is over.
    const COUNT_DOWN: u8 = 0b1011_0000;
    const COUNT: u64 = PIT_HZ * (MEASURE_NS / 1000) / 1_000_000;
    const _: () = assert!(COUNT < 1 << 16);
    // SAFETY: the 8254 and its gate by PC convention; the speaker stays off.
    let output = || unsafe { x86::inb(GATE) } & OUTPUT != 0;
    // SAFETY: as above.
    let (before, counters) = unsafe {
        let before = x86::inb(GATE);
        x86::outb(GATE, before & !SPEAKER | GATE_ON);
        x86::outb(MODE, COUNT_DOWN);
        x86::outb(CHANNEL_2, COUNT as u8);
        x86::outb(CHANNEL_2, (COUNT >> 8) as u8);
        (before, Counters::begin())
    };
    let rose_early = output();
    let done = (0..POLL_LIMIT).any(|_| output());
    // The count is loaded one tick after it was written.
    let measurement = counters.end(Reference::Pit, (COUNT + 1) * 1_000_000_000 / PIT_HZ);
    // SAFETY: as above.
    unsafe { x86::outb(GATE, before) };
    if rose_early || !done {
        log::warn!("time: the PIT does not count");
        return None;
    }
    Some(measurement)
}

fn measure_all(platform: &Platform) -> Result<Calibration, NoReference> {
    let found = [
        platform.hpet.and_then(measure_hpet),
        platform.pm_timer.and_then(measure_pm_timer),
        measure_pit(),
    ];
    let none = Measurement {
        reference: Reference::Pit,
        elapsed_ns: 0,
        tsc: 0,
        lapic: 0,
    };
    let mut measurements = [none; 3];
    let mut count = 0;
    for (slot, measurement) in measurements.iter_mut().zip(found.into_iter().flatten()) {
        *slot = measurement;
        count += 1;
    }
    calibrate::choose(measurements.get(..count).unwrap_or(&[]))
}

/// Measures the TSC and the LAPIC timer; sets the clock going.
///
/// An interruption that software cannot see (SMM, an emulator's host) spoils a measurement, so clocks that
/// disagree are measured again and the best result counts.
///
/// # Errors
///
/// No clock of known frequency works.
pub fn calibrate(platform: &Platform) -> Result<Calibration, NoReference> {
    apic::timer_mask(true);
    let mut best = measure_all(platform);
    for _ in 1..ATTEMPTS {
        let Ok(found) = best else { break };
        if found.spread_ppm <= GOOD_PPM {
            break;
        }
        best = measure_all(platform).map(|again| {
            if again.spread_ppm < found.spread_ppm {
                again
            } else {
                found
            }
        });
    }
    apic::timer_mask(false);
    let calibration = best?;
    NANOSECONDS_PER_TICK.store(
        (1_000_000_000 << 32) / calibration.tsc_hz,
        Ordering::Relaxed,
    );
    TICKS_PER_NANOSECOND.store(
        ((u128::from(calibration.tsc_hz) << 32) / 1_000_000_000) as u64,
        Ordering::Relaxed,
    );
    apic::set_timer_frequency(calibration.lapic_hz);
    Ok(calibration)
}
