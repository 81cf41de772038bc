//! Counting by a performance counter: performs what [`vmm::pmu::amd`] says. It has never run: no emulator has such a
//! counter, and the proof at start is its judge on a processor.

use arch::pmu::{Signature, amd as registers};
use arch::svm::capability::CPUID_EXTENDED_FEATURES;
use vmm::pmu::MsrWrite;
use vmm::pmu::amd::{Counter, Entry, PREFER_EXIT_NS, Processor, Unusable};

use crate::{apic, time, x86};

/// A performance counter that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programmed {
    /// Which.
    pub counter: Counter,
    /// LAPIC timer ticks for each 2¹⁶ ticks of the time-stamp counter.
    pub timer_ratio: u64,
    /// Instructions worth waiting for an exit: those of [`PREFER_EXIT_NS`], if each takes a tick.
    pub prefer_exit: u64,
}

impl Programmed {
    /// A counter that is set up.
    pub(super) fn new(counter: Counter, timer_ratio: u64) -> Self {
        Self {
            counter,
            timer_ratio,
            prefer_exit: time::ticks(PREFER_EXIT_NS),
        }
    }

    /// Before an entry: counts the guest's instructions, up to an overflow after so many.
    pub(super) fn begin(&self, after: u64) -> Entry {
        let entry = self.counter.entry(after);
        entry.before.into_iter().for_each(write);
        entry
    }

    /// Behind it: the guest's instructions. 0 if the processor has refused the entry.
    pub(super) fn end(&self, entry: &Entry) -> u64 {
        write(entry.behind);
        // SAFETY: the counter that `detect` has found.
        let stored = unsafe { x86::rdmsr(self.counter.register()) };
        if Counter::has_overflowed(stored) {
            self.counter.acknowledge().into_iter().for_each(write);
            apic::unmask_performance_nmi();
        }
        self.counter.retired(entry, stored).unwrap_or(0)
    }
}

/// Looks whether this processor can count.
pub(super) fn detect() -> Result<Counter, Unusable> {
    let basic = x86::cpuid(1, 0);
    // There is one: SVM is on.
    let extended = x86::cpuid(CPUID_EXTENDED_FEATURES, 0);
    let monitoring = if x86::cpuid_max(0x8000_0000) >= registers::CPUID_PERF_MON {
        x86::cpuid(registers::CPUID_PERF_MON, 0).eax
    } else {
        0
    };
    Counter::of(&Processor {
        signature: Signature::decode(basic.eax),
        features: extended.ecx,
        monitoring,
        basic: basic.ecx,
    })
}

fn write(write: MsrWrite) {
    // SAFETY: all are registers of a counter that `detect` has found; they count and stop guests and do nothing else.
    unsafe { x86::wrmsr(write.msr, write.value) };
}

/// Programs the counter; it stands still until a guest runs. False: locks are mapped speculatively all the same, so that
/// it would count wrong.
pub(super) fn set_up(counter: &Counter) -> bool {
    if let Some(msr) = counter.locks_register() {
        // SAFETY: `detect` has found a processor of a family that has this register, and no hypervisor below.
        let ls_cfg = unsafe { x86::rdmsr(msr) };
        let wanted = Counter::without_mapped_locks(ls_cfg);
        // SAFETY: as above; the bit costs speed and changes nothing else.
        let took = unsafe {
            x86::wrmsr(msr, wanted);
            x86::rdmsr(msr) == wanted
        };
        if !took {
            return false;
        }
    }
    let common = counter.common_switch().map_or(0, |msr| {
        // SAFETY: `detect` has found that it exists.
        unsafe { x86::rdmsr(msr) }
    });
    let (off, on) = counter.set_up(common);
    write(off);
    on.into_iter().for_each(write);
    apic::unmask_performance_nmi();
    true
}
