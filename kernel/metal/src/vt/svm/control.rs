//! The control block of one guest processor in its own page, and what is intercepted.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use arch::addr::Hpa;
use arch::event::vector;
use arch::svm::control::{
    CleanBits, Intercepts1, Intercepts2, InterruptControl, NESTED_PAGING_ENABLE,
};
use arch::svm::vmcb::Vmcb;

use super::bitmaps::Bitmaps;
use super::capabilities::Capabilities;
use crate::mem::{frames, physmap};

/// Exceptions that exit: #DB and #AC because a guest can make their delivery raise them again without end, with
/// interrupts blocked; #MC because it is the host's.
const EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;

/// Faults that QEMU's instruction counter does not see, neither the attempt nor the delivery: a guest whose handler
/// faults at its first instruction would stop the clock, and with it the timer that bounds every entry. All
/// that can make such a circle exit and are injected again; #UD and INT are counted.
pub(super) const UNCOUNTED_EXCEPTIONS: u32 = 1 << vector::DE
    | 1 << vector::BR
    | 1 << vector::NM
    | 1 << vector::DF
    | 1 << vector::TS
    | 1 << vector::NP
    | 1 << vector::SS
    | 1 << vector::GP
    | 1 << vector::PF
    | 1 << vector::MF
    | 1 << vector::XM;

/// CR4 and CR8, reads of CR8. CR0 exits selectively; CR3 is the guest's own.
const CR_WRITES: u16 = 1 << 4 | 1 << 8;
const CR_READS: u16 = 1 << 8;

const INTERCEPTS_1: Intercepts1 = Intercepts1::INTR
    .union(Intercepts1::NMI)
    .union(Intercepts1::CR0_SELECTIVE_WRITE)
    .union(Intercepts1::RDTSC)
    .union(Intercepts1::RDPMC)
    .union(Intercepts1::CPUID)
    .union(Intercepts1::RSM)
    .union(Intercepts1::INVD)
    .union(Intercepts1::HLT)
    .union(Intercepts1::INVLPGA)
    .union(Intercepts1::IOIO)
    .union(Intercepts1::MSR)
    .union(Intercepts1::TASK_SWITCH)
    .union(Intercepts1::SHUTDOWN);

const INTERCEPTS_2: Intercepts2 = Intercepts2::VMRUN
    .union(Intercepts2::VMMCALL)
    .union(Intercepts2::VMLOAD)
    .union(Intercepts2::VMSAVE)
    .union(Intercepts2::STGI)
    .union(Intercepts2::CLGI)
    .union(Intercepts2::SKINIT)
    .union(Intercepts2::RDTSCP)
    .union(Intercepts2::WBINVD)
    .union(Intercepts2::MONITOR)
    .union(Intercepts2::MWAIT)
    .union(Intercepts2::MWAIT_ARMED)
    .union(Intercepts2::XSETBV);

/// An owned control block.
pub(super) struct ControlBlock {
    block: NonNull<Vmcb>,
    physical: Hpa,
}

impl ControlBlock {
    /// A block of zeros. `None`: no memory.
    pub(super) fn new() -> Option<Self> {
        let physical = frames::alloc_zeroed()?;
        let block = NonNull::new(physmap::ptr(physical).cast::<Vmcb>())?;
        Some(Self { block, physical })
    }

    /// Where the processor finds it.
    pub(super) fn physical(&self) -> Hpa {
        self.physical
    }

    /// Where the host finds it.
    pub(super) fn pointer(&self) -> *mut Vmcb {
        self.block.as_ptr()
    }

    /// Sets what does not change while a guest lives.
    pub(super) fn set_up(
        &mut self,
        capabilities: &Capabilities,
        bitmaps: &Bitmaps,
        nested_root: Hpa,
        asid: u32,
    ) {
        let control = &mut self.control;
        control.intercept_cr_reads = CR_READS;
        control.intercept_cr_writes = CR_WRITES;
        control.intercept_dr_reads = 0xffff;
        control.intercept_dr_writes = 0xffff;
        control.intercept_exceptions = EXCEPTIONS;
        control.intercepts_1 = INTERCEPTS_1;
        control.intercepts_2 = INTERCEPTS_2 | capabilities.intercepts_2;
        control.intercepts_3 = capabilities.intercepts_3;
        control.io_permission_map = bitmaps.io.0;
        control.msr_permission_map = bitmaps.msr.0;
        control.asid = asid;
        control.interrupt_control = InterruptControl::V_INTR_MASKING;
        control.nested_paging = NESTED_PAGING_ENABLE;
        control.nested_cr3 = nested_root.0;
    }

    /// Tells the processor that it must not use what it has cached of these parts.
    #[inline]
    pub(super) fn changed(&mut self, parts: CleanBits) {
        self.control.clean_bits.remove(parts);
    }

    /// Makes more exit than a processor needs: faults that would stop QEMU's clock, and all writes of CR0, since
    /// QEMU's selective intercept overlooks bits 63:32, with which it then refuses the next entry.
    pub(super) fn intercept_for_emulator(&mut self) {
        self.control.intercept_exceptions |= UNCOUNTED_EXCEPTIONS;
        self.control.intercept_cr_writes |= 1 << 0;
        self.changed(CleanBits::INTERCEPTS);
    }

    /// Switches intercepts of the first vector on or off.
    #[inline]
    pub(super) fn intercept(&mut self, which: Intercepts1, wanted: bool) {
        self.control.intercepts_1.set(which, wanted);
        self.changed(CleanBits::INTERCEPTS);
    }
}

impl Deref for ControlBlock {
    type Target = Vmcb;
    #[inline]
    fn deref(&self) -> &Vmcb {
        // SAFETY: the page is owned, mapped and holds a block, of which every bit pattern is valid; the
        // processor writes it only inside the entry code, when no reference exists.
        unsafe { self.block.as_ref() }
    }
}

impl DerefMut for ControlBlock {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as in `deref`; `self` is borrowed mutably, so this reference is the only one.
        unsafe { self.block.as_mut() }
    }
}

impl Drop for ControlBlock {
    fn drop(&mut self) {
        frames::free(self.physical);
    }
}
