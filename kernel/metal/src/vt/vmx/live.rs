//! Guest state that stays in the processor's own registers while host code runs: extended state, debug
//! addresses, CR2 and the MSRs of SYSCALL. It changes hands only when another virtual processor runs here.

use alloc::rc::Rc;
use core::cell::RefCell;

use arch::msr;
use arch::regs::{CpuState, SystemMsrs, Xcr0, XsaveArea};

use super::Processor;
use crate::{fpu, x86};

/// The registers of one virtual processor, while another one's are loaded.
pub struct Live(RefCell<Registers>);

/// What the hardware registers hold.
#[derive(Clone)]
pub(super) struct Registers {
    pub(super) xsave: XsaveArea,
    pub(super) xcr0: Xcr0,
    pub(super) dr: [u64; 4],
    pub(super) dr6: u64,
    pub(super) cr2: u64,
    /// Of which the SYSENTER MSRs and PAT are in the VMCS and not used here.
    pub(super) msrs: SystemMsrs,
}

impl Live {
    pub(super) fn new(registers: Registers) -> Rc<Self> {
        Rc::new(Self(RefCell::new(registers)))
    }

    /// Puts this virtual processor's registers into the hardware, and those of the one before into memory. False if they
    /// were there.
    #[inline]
    pub(super) fn own(self: &Rc<Self>, processor: &Processor) -> bool {
        let other = processor.owner_address.get() != Rc::as_ptr(self);
        if other {
            self.take_over(processor);
        }
        other
    }

    #[cold]
    fn take_over(self: &Rc<Self>, processor: &Processor) {
        let before = processor.owner.replace(Some(Rc::clone(self)));
        processor.owner_address.set(Rc::as_ptr(self));
        if let Some(before) = before {
            before.0.borrow_mut().capture();
        }
        self.0.borrow().load();
    }

    /// Forgets the hardware registers if they are this virtual processor's, which ends.
    pub(super) fn disown(self: &Rc<Self>, processor: &Processor) {
        if processor.owner_address.get() == Rc::as_ptr(self) {
            processor.owner.replace(None);
            processor.owner_address.set(core::ptr::null());
        }
    }
}

impl Registers {
    /// The part of `state` that lives in hardware registers.
    pub(super) fn of(state: &CpuState) -> Self {
        Self {
            xsave: state.xsave,
            xcr0: state.control.xcr0,
            dr: state.debug.dr,
            dr6: state.debug.dr6,
            cr2: state.control.cr2,
            msrs: state.msrs,
        }
    }

    /// What a processor would refuse to load with #GP, which on the host would be fatal.
    pub(super) fn refused(&self) -> Option<&'static str> {
        let msrs = &self.msrs;
        let canonical = |address: u64| matches!(address as i64 >> 47, 0 | -1);
        if !canonical(msrs.lstar) || !canonical(msrs.cstar) || !canonical(msrs.kernel_gs_base) {
            return Some("LSTAR, CSTAR or KERNEL_GS_BASE is not canonical");
        }
        if msrs.sfmask >> 32 != 0 {
            return Some("reserved bits in IA32_FMASK");
        }
        if self.dr6 >> 32 != 0 {
            return Some("high half of DR6");
        }
        let without_sse = self.xcr0.contains(Xcr0::AVX) && !self.xcr0.contains(Xcr0::SSE);
        let offered = fpu::supported() | Xcr0::X87;
        if !self.xcr0.contains(Xcr0::X87) || without_sse || !offered.contains(self.xcr0) {
            return Some("XCR0");
        }
        None
    }

    /// Into the hardware. Checked by [`Registers::refused`] before.
    pub(super) fn load(&self) {
        fpu::restore(&self.xsave);
        fpu::set_xcr0(self.xcr0);
        load_debug(&self.dr, self.dr6);
        // SAFETY: CR2 means nothing to the host but in a page fault, which ends it.
        unsafe { x86::set_cr2(self.cr2) };
        load_msrs(&self.msrs);
    }

    /// Out of the hardware.
    pub(super) fn capture(&mut self) {
        fpu::save(&mut self.xsave);
        self.xcr0 = fpu::xcr0();
        self.dr = [x86::dr0(), x86::dr1(), x86::dr2(), x86::dr3()];
        self.dr6 = x86::dr6();
        self.cr2 = x86::cr2();
        capture_msrs(&mut self.msrs);
    }
}

/// DR0 … DR3 and DR6 into the hardware; the upper half of `dr6` is zero.
pub(super) fn load_debug(dr: &[u64; 4], dr6: u64) {
    let [dr0, dr1, dr2, dr3] = *dr;
    // SAFETY: the host runs with DR7 = 0x400, no breakpoint enabled (SDM 3 29.5.1).
    unsafe {
        x86::set_dr0(dr0);
        x86::set_dr1(dr1);
        x86::set_dr2(dr2);
        x86::set_dr3(dr3);
        x86::set_dr6(dr6);
    }
}

/// Exchanges one of DR0 to DR3.
pub(super) fn exchange_breakpoint(register: u8, address: u64) -> u64 {
    // SAFETY: as in `load_debug`.
    unsafe {
        match register {
            0 => {
                let before = x86::dr0();
                x86::set_dr0(address);
                before
            }
            1 => {
                let before = x86::dr1();
                x86::set_dr1(address);
                before
            }
            2 => {
                let before = x86::dr2();
                x86::set_dr2(address);
                before
            }
            _ => {
                let before = x86::dr3();
                x86::set_dr3(address);
                before
            }
        }
    }
}

/// The SYSCALL MSRs and KERNEL_GS_BASE into the hardware; addresses are canonical.
pub(super) fn load_msrs(msrs: &SystemMsrs) {
    // SAFETY: all exist in long mode, the values are valid, and the host neither executes SYSCALL nor SWAPGS.
    unsafe {
        x86::wrmsr(msr::STAR, msrs.star);
        x86::wrmsr(msr::LSTAR, msrs.lstar);
        x86::wrmsr(msr::CSTAR, msrs.cstar);
        x86::wrmsr(msr::SFMASK, msrs.sfmask);
        x86::wrmsr(msr::KERNEL_GS_BASE, msrs.kernel_gs_base);
    }
}

/// The same out of the hardware; other fields stay.
pub(super) fn capture_msrs(msrs: &mut SystemMsrs) {
    // SAFETY: all exist in long mode.
    unsafe {
        msrs.star = x86::rdmsr(msr::STAR);
        msrs.lstar = x86::rdmsr(msr::LSTAR);
        msrs.cstar = x86::rdmsr(msr::CSTAR);
        msrs.sfmask = x86::rdmsr(msr::SFMASK);
        msrs.kernel_gs_base = x86::rdmsr(msr::KERNEL_GS_BASE);
    }
}
