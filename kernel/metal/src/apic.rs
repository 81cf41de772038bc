//! The local APIC of the one running processor: its timer, acknowledgement, vectors.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::addr::{Hpa, PAGE_SIZE};
use arch::msr;

use crate::interrupts::{ERROR_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::mem::paging::{self, MapError};
use crate::x86;

/// Registers as offsets in xAPIC mode (SDM 3 12.4.1, table 12-1); in x2APIC mode the MSR number is 0x800 +
/// offset / 16.
mod register {
    pub(super) const ID: u32 = 0x20;
    pub(super) const VERSION: u32 = 0x30;
    pub(super) const TASK_PRIORITY: u32 = 0x80;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const SPURIOUS: u32 = 0xf0;
    /// Requests of vectors 0 to 31; 0x10 further those of the next 32.
    pub(super) const REQUESTS: u32 = 0x200;
    pub(super) const ERROR_STATUS: u32 = 0x280;
    pub(super) const COMMAND: u32 = 0x300;
    pub(super) const LVT_TIMER: u32 = 0x320;
    pub(super) const LVT_PERFORMANCE: u32 = 0x340;
    pub(super) const LVT_LINT0: u32 = 0x350;
    pub(super) const LVT_LINT1: u32 = 0x360;
    pub(super) const LVT_ERROR: u32 = 0x370;
    pub(super) const TIMER_INITIAL: u32 = 0x380;
    pub(super) const TIMER_CURRENT: u32 = 0x390;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
}

const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const SPURIOUS_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;
/// IA32_APIC_BASE: x2APIC mode, globally enabled, address.
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Virtual address of the registers; 0 in x2APIC mode.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// LAPIC timer ticks per second; 0 until calibrated.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// Why the local APIC cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LapicError {
    /// The processor has none.
    Missing,
    /// The firmware has switched it off.
    SwitchedOff,
    /// Its registers cannot be mapped.
    Map(MapError),
}

impl fmt::Display for LapicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LapicError::Missing => f.write_str("LAPIC: the processor has none"),
            LapicError::SwitchedOff => f.write_str("LAPIC: switched off by the firmware"),
            LapicError::Map(error) => write!(f, "LAPIC: {error}"),
        }
    }
}

#[inline]
fn write(register: u32, value: u32) {
    let base = REGISTERS.load(Ordering::Relaxed);
    // SAFETY: `init` has found the LAPIC in the mode that `REGISTERS` tells; its registers have no effect
    // on memory.
    unsafe {
        if base == 0 {
            x86::wrmsr(msr::X2APIC_BASE + register / 16, u64::from(value));
        } else {
            ((base + u64::from(register)) as *mut u32).write_volatile(value);
        }
    }
}

#[inline]
fn read(register: u32) -> u32 {
    let base = REGISTERS.load(Ordering::Relaxed);
    // SAFETY: as in `write`.
    unsafe {
        if base == 0 {
            x86::rdmsr(msr::X2APIC_BASE + register / 16) as u32
        } else {
            ((base + u64::from(register)) as *mut u32).read_volatile()
        }
    }
}

/// Switches the LAPIC on, its timer off.
///
/// # Errors
///
/// There is none, or it cannot be reached.
pub fn init() -> Result<(), LapicError> {
    if x86::cpuid(1, 0).edx & 1 << 9 == 0 {
        return Err(LapicError::Missing);
    }
    // SAFETY: every processor with a LAPIC in long mode has this MSR.
    let base = unsafe { x86::rdmsr(msr::APIC_BASE) };
    if base & BASE_ENABLE == 0 {
        return Err(LapicError::SwitchedOff);
    }
    if base & BASE_X2APIC == 0 {
        if x86::cpuid(1, 0).ecx & 1 << 21 != 0 {
            // SAFETY: CPUID says that x2APIC mode exists; from xAPIC mode it may be entered (SDM 3 12.12.5).
            unsafe { x86::wrmsr(msr::APIC_BASE, base | BASE_X2APIC) };
        } else {
            let registers =
                paging::map_mmio(Hpa(base & BASE_ADDRESS), PAGE_SIZE).map_err(LapicError::Map)?;
            REGISTERS.store(registers as u64, Ordering::Relaxed);
        }
    }
    write(register::TASK_PRIORITY, 0);
    write(register::LVT_TIMER, LVT_MASKED);
    write(register::LVT_LINT0, LVT_MASKED);
    write(register::LVT_LINT1, LVT_NMI);
    write(register::LVT_ERROR, u32::from(ERROR_VECTOR));
    write(register::TIMER_INITIAL, 0);
    write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    write(
        register::SPURIOUS,
        SPURIOUS_ENABLE | u32::from(SPURIOUS_VECTOR),
    );
    write(register::LVT_TIMER, u32::from(TIMER_VECTOR));
    Ok(())
}

/// Starts the timer: one interrupt at [`TIMER_VECTOR`] after `ticks` of [`timer_frequency`]; 0 stops it.
#[inline]
pub fn timer_arm_oneshot(ticks: u32) {
    write(register::TIMER_INITIAL, ticks);
}

/// Stops the timer. An interrupt that is already pending in the LAPIC still comes.
#[inline]
pub fn timer_disarm() {
    write(register::TIMER_INITIAL, 0);
}

/// Ticks left until the timer's interrupt.
#[inline]
pub fn timer_remaining() -> u32 {
    read(register::TIMER_CURRENT)
}

/// The timer's initial-count register in xAPIC mode; none in x2APIC mode, where MSR 0x838 does the same.
pub fn timer_mmio() -> Option<*mut u32> {
    match REGISTERS.load(Ordering::Relaxed) {
        0 => None,
        base => Some((base + u64::from(register::TIMER_INITIAL)) as *mut u32),
    }
}

/// Lets an overflow of a performance counter raise an NMI; Intel's processors mask it again each time
/// (SDM 3 12.5.1).
pub fn unmask_performance_nmi() {
    write(register::LVT_PERFORMANCE, LVT_NMI);
}

/// Makes the timer's interrupt pending now, while interrupts are masked (SDM 3 12.6.1, 12.12.11).
pub fn raise_timer_interrupt() {
    const TO_SELF: u32 = 0b01 << 18;
    const SELF_IPI: u32 = msr::X2APIC_BASE + 0x3f;
    /// Reads until it is pending; it takes a few at most.
    const PATIENCE: u32 = 10_000;
    let vector = u32::from(TIMER_VECTOR);
    if is_x2apic() {
        // SAFETY: the register exists in this mode; the handler of the vector only counts.
        unsafe { x86::wrmsr(SELF_IPI, u64::from(vector)) };
    } else {
        write(register::COMMAND, TO_SELF | vector);
    }
    let requests = register::REQUESTS + vector / 32 * 0x10;
    let pending = |_: &u32| read(requests) >> (vector % 32) & 1 != 0;
    (0..PATIENCE).find(pending);
}

/// Acknowledges the interrupt in service.
#[inline]
pub fn eoi() {
    write(register::EOI, 0);
}

/// This processor's APIC identifier.
pub fn id() -> u32 {
    let id = read(register::ID);
    if REGISTERS.load(Ordering::Relaxed) == 0 {
        id
    } else {
        id >> 24
    }
}

/// Version register.
pub fn version() -> u8 {
    read(register::VERSION) as u8
}

/// Reads and clears the error status.
pub fn error_status() -> u32 {
    write(register::ERROR_STATUS, 0);
    read(register::ERROR_STATUS)
}

/// Sends this processor a non-maskable interrupt (SDM 3 12.6.1; the shorthand "self" allows only fixed
/// delivery, so the destination is named).
#[cfg(feature = "bringup-tests")]
pub fn send_nmi_to_self() {
    const ICR_LOW: u32 = 0x300;
    const ICR_HIGH: u32 = 0x310;
    const NMI: u32 = 4 << 8;
    let id = id();
    if is_x2apic() {
        // SAFETY: the ICR in x2APIC mode; an NMI is handled by counting it.
        unsafe {
            x86::wrmsr(
                msr::X2APIC_BASE + ICR_LOW / 16,
                u64::from(id) << 32 | u64::from(NMI),
            )
        };
    } else {
        write(ICR_HIGH, id << 24);
        write(ICR_LOW, NMI);
    }
}

/// Keeps the timer's interrupt away, or lets it through.
pub fn timer_mask(masked: bool) {
    let mask = if masked { LVT_MASKED } else { 0 };
    write(register::LVT_TIMER, u32::from(TIMER_VECTOR) | mask);
}

/// Timer ticks per second at divide 1; 0 until calibrated.
pub fn timer_frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Notes the calibrated frequency.
pub fn set_timer_frequency(hz: u64) {
    FREQUENCY.store(hz, Ordering::Relaxed);
}

/// Whether the LAPIC is driven through MSRs.
pub fn is_x2apic() -> bool {
    REGISTERS.load(Ordering::Relaxed) == 0
}
