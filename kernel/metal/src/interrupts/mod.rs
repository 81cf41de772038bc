//! The host's own interrupts and exceptions.
//!
//! Rust code runs with interrupts masked; they are taken only where a back end or the idle loop opens a
//! window. A handler counts, acknowledges and returns: work is done by whoever opened the window.

pub mod idt;
pub mod legacy;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::event::vector;

use crate::{apic, panic};

/// The LAPIC timer's vector.
pub const TIMER_VECTOR: u8 = 0xf0;
/// The LAPIC's vector for its own errors.
pub const ERROR_VECTOR: u8 = 0xfe;
/// The LAPIC's spurious vector.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// Where the legacy interrupt controllers' 16 lines are put; all masked, only spurious ones can come.
pub const LEGACY_BASE: u8 = 0x20;

/// Registers at an interrupt, as the stub pushes them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)] // the names are the documentation
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// Host interrupts taken since the start, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// LAPIC timer.
    pub timer: u64,
    /// Non-maskable.
    pub nmi: u64,
    /// Spurious ones, of the LAPIC and of the legacy controllers.
    pub spurious: u64,
    /// LAPIC errors.
    pub error: u64,
    /// Error status of the last one (SDM 3 12.5.3).
    pub error_status: u32,
    /// Vectors nobody asked for.
    pub unexpected: u64,
}

static TIMER: AtomicU64 = AtomicU64::new(0);
static NMI: AtomicU64 = AtomicU64::new(0);
static SPURIOUS: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);
static ERROR_STATUS: AtomicU32 = AtomicU32::new(0);
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);
/// Interrupts other than the timer that nobody has looked at yet.
static PENDING: AtomicU64 = AtomicU64::new(0);

/// Host interrupts taken so far.
pub fn counters() -> Counters {
    Counters {
        timer: TIMER.load(Ordering::Relaxed),
        nmi: NMI.load(Ordering::Relaxed),
        spurious: SPURIOUS.load(Ordering::Relaxed),
        error: ERROR.load(Ordering::Relaxed),
        error_status: ERROR_STATUS.load(Ordering::Relaxed),
        unexpected: UNEXPECTED.load(Ordering::Relaxed),
    }
}

/// Whether an interrupt that somebody has to look at was taken since the last call.
#[inline]
pub fn pending_work() -> bool {
    PENDING.load(Ordering::Relaxed) != 0 && PENDING.swap(0, Ordering::Relaxed) != 0
}

/// Notes that the processor left the guest for an NMI that has been consumed by the exit (VT-x).
pub fn count_nmi() {
    NMI.fetch_add(1, Ordering::Relaxed);
    PENDING.store(1, Ordering::Relaxed);
}

/// What every stub calls.
extern "C" fn dispatch(frame: &mut Frame) {
    match frame.vector as u8 {
        TIMER_VECTOR => {
            TIMER.fetch_add(1, Ordering::Relaxed);
            apic::eoi();
        }
        vector::NMI => count_nmi(),
        SPURIOUS_VECTOR => {
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
        }
        ERROR_VECTOR => {
            ERROR.fetch_add(1, Ordering::Relaxed);
            ERROR_STATUS.store(apic::error_status(), Ordering::Relaxed);
            PENDING.store(1, Ordering::Relaxed);
            apic::eoi();
        }
        exception if exception < 32 => panic::on_exception(frame),
        legacy if (LEGACY_BASE..LEGACY_BASE + 16).contains(&legacy) => {
            // Every line is masked, so this is a controller's spurious interrupt: nothing is in service.
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            UNEXPECTED.fetch_add(1, Ordering::Relaxed);
            PENDING.store(1, Ordering::Relaxed);
            apic::eoi();
        }
    }
}
