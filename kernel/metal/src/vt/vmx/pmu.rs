//! Counting by a performance counter: performs what [`vmm::pmu::intel`] says.

use arch::addr::Hpa;
use arch::msr;
use arch::pmu::{Signature, intel as registers};
use arch::vmx::capability::Capabilities;
use arch::vmx::control::{EntryControls, ExitControls};
use arch::vmx::field;
use vmm::pmu::MsrWrite;
use vmm::pmu::intel::{Counter, Processor, Unusable};

use super::control::Vmcs;
use crate::mem::{frames, physmap};
use crate::{apic, x86};

/// Looks whether this processor can count.
pub(super) fn detect(capabilities: &Capabilities) -> Result<Counter, Unusable> {
    const LEAF: u32 = 0xa;
    let (eax, ebx) = if x86::cpuid_max(0) >= LEAF {
        let leaf = x86::cpuid(LEAF, 0);
        (leaf.eax, leaf.ebx)
    } else {
        (0, 0)
    };
    let features = x86::cpuid(1, 0);
    let has_capabilities = features.ecx & registers::CPUID_PDCM != 0;
    Counter::of(&Processor {
        signature: Signature::decode(features.eax),
        leaf: registers::Leaf::decode(eax, ebx),
        capabilities: if has_capabilities {
            // SAFETY: CPUID says that it exists.
            unsafe { x86::rdmsr(registers::PERF_CAPABILITIES) }
        } else {
            0
        },
        controls: capabilities.can_count,
    })
}

fn write(write: MsrWrite) {
    // SAFETY: all are registers of a counter that `detect` has found, and DEBUGCTL with a bit that exists; they count
    // and stop guests and do nothing else.
    unsafe { x86::wrmsr(write.msr, write.value) };
}

/// Programs the counter; it stands still until a guest runs.
pub(super) fn set_up(counter: &Counter) {
    // SAFETY: every processor with VMX has this MSR.
    let debugctl = unsafe { x86::rdmsr(msr::DEBUGCTL) };
    counter.set_up(debugctl).into_iter().for_each(write);
    apic::unmask_performance_nmi();
}

/// Before an entry: makes the next overflow count, if there was one.
pub(super) fn rearm() {
    // SAFETY: exists with performance monitoring of version 2.
    let status = unsafe { x86::rdmsr(registers::PERF_GLOBAL_STATUS) };
    if Counter::has_overflowed(status) {
        write(Counter::acknowledge());
        apic::unmask_performance_nmi();
    }
}

/// An element of an MSR list (SDM 3 26.7.2, table 26-15).
#[repr(C)]
struct Element {
    msr: u32,
    reserved: u32,
    value: u64,
}

const _: () = assert!(size_of::<Element>() == 16);

/// The two lists of one virtual processor, with an element each: what the entry loads, then what the exit stores.
pub(super) struct Lists {
    frame: Hpa,
    /// What the last entry has loaded.
    loaded: MsrWrite,
}

impl Lists {
    /// `None`: no memory.
    pub(super) fn new(counter: &Counter) -> Option<Self> {
        let lists = Self {
            frame: frames::alloc_zeroed()?,
            loaded: counter.entry_list(u64::MAX),
        };
        lists.put(0, lists.loaded);
        let stored = MsrWrite {
            msr: counter.exit_list(),
            value: 0,
        };
        lists.put(1, stored);
        Some(lists)
    }

    fn element(&self, n: usize) -> *mut Element {
        physmap::ptr(self.frame).cast::<Element>().wrapping_add(n)
    }

    fn put(&self, n: usize, write: MsrWrite) {
        let element = Element {
            msr: write.msr,
            reserved: 0,
            value: write.value,
        };
        // SAFETY: the frame is owned, mapped and holds more than two elements; the processor uses it only at entries and
        // exits.
        unsafe { self.element(n).write_volatile(element) };
    }

    /// Sets what the next entry loads.
    pub(super) fn load(&mut self, write: MsrWrite) {
        self.loaded = write;
        self.put(0, write);
    }

    /// Instructions that were counted in the last entry.
    pub(super) fn retired(&self, counter: &Counter) -> u64 {
        // SAFETY: as in `put`.
        let stored = unsafe { self.element(1).read_volatile() };
        counter.retired(self.loaded, stored.value)
    }

    /// Adds to a processor's controls what counting needs.
    pub(super) fn add_controls(capabilities: &mut Capabilities) {
        capabilities.entry |= EntryControls::LOAD_PERF_GLOBAL;
        capabilities.exit |= ExitControls::LOAD_PERF_GLOBAL;
    }

    /// Writes the lists and the two values of PERF_GLOBAL_CTRL into a VMCS with these controls.
    pub(super) fn set_up(&self, vmcs: &Vmcs) {
        // SAFETY: the lists lie in a frame that is owned as long as the VMCS, and name a counter only; the host's value
        // stops it.
        unsafe {
            vmcs.write(field::ENTRY_MSR_LOAD_ADDRESS, self.frame.0);
            vmcs.write(field::ENTRY_MSR_LOAD_COUNT, 1);
            vmcs.write(field::EXIT_MSR_STORE_ADDRESS, self.frame.offset(16).0);
            vmcs.write(field::EXIT_MSR_STORE_COUNT, 1);
            vmcs.write(field::HOST_PERF_GLOBAL_CTRL, Counter::HOST_GLOBAL_CTRL);
        }
        vmcs.set(field::GUEST_PERF_GLOBAL_CTRL, Counter::GUEST_GLOBAL_CTRL);
        vmcs.set(field::GUEST_DEBUGCTL, registers::DEBUGCTL_FREEZE_WHILE_SMM);
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        frames::free(self.frame);
    }
}
