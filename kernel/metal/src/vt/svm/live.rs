//! Guest state that stays in the processor's registers while the host runs: extended state, XCR0, DR0 … DR3.
//!
//! The host uses none of it, so it is exchanged only when another guest processor runs next.

use alloc::boxed::Box;
use core::ptr::NonNull;

use arch::regs::{Xcr0, XsaveArea};

use super::Processor;
use crate::{fpu, x86};

/// One guest processor's copy.
pub(super) struct Registers {
    xsave: XsaveArea,
    xcr0: Xcr0,
    dr: [u64; 4],
}

/// The state of one guest processor, in memory or in the registers.
pub(super) struct LiveState {
    processor: &'static Processor,
    /// From a `Box`; the processor may hold the same pointer as its owner, so no reference to it is kept.
    registers: NonNull<Registers>,
}

impl LiveState {
    pub(super) fn new(processor: &'static Processor) -> Self {
        let registers = Box::new(Registers {
            xsave: XsaveArea::initial(),
            xcr0: Xcr0::X87,
            dr: [0; 4],
        });
        Self {
            processor,
            registers: NonNull::from(Box::leak(registers)),
        }
    }

    #[inline]
    fn memory(&self) -> &Registers {
        // SAFETY: the box lives as long as `self`; it is written only by functions of this module, none of
        // which runs while a reference exists: neither `self` nor the processor can be shared.
        unsafe { self.registers.as_ref() }
    }

    #[inline]
    fn memory_mut(&mut self) -> &mut Registers {
        // SAFETY: as in `memory`, and `self` is borrowed mutably.
        unsafe { self.registers.as_mut() }
    }

    /// Whether the state is in the registers.
    #[inline]
    pub(super) fn is_loaded(&self) -> bool {
        self.processor.owner.get() == self.registers.as_ptr()
    }

    /// Puts the state into the registers; whose was there is saved first.
    pub(super) fn load(&mut self) {
        let previous = self.processor.owner.replace(self.registers.as_ptr());
        if previous == self.registers.as_ptr() {
            return;
        }
        if let Some(mut previous) = NonNull::new(previous) {
            // SAFETY: an owner takes itself out before its box is freed, and it is not `self`.
            save_registers(unsafe { previous.as_mut() });
        }
        let memory = self.memory();
        fpu::set_xcr0(memory.xcr0);
        fpu::restore(&memory.xsave);
        write_breakpoints(&memory.dr);
    }

    /// Copies the state out.
    pub(super) fn save(&mut self) -> (XsaveArea, Xcr0, [u64; 4]) {
        if self.is_loaded() {
            save_registers(self.memory_mut());
        }
        let Registers { xsave, xcr0, dr } = self.memory();
        (*xsave, *xcr0, *dr)
    }

    /// Replaces the state; it goes into the registers with the next [`LiveState::load`].
    pub(super) fn restore(&mut self, xsave: &XsaveArea, xcr0: Xcr0, dr: [u64; 4]) {
        self.release();
        *self.memory_mut() = Registers {
            xsave: *xsave,
            xcr0,
            dr,
        };
    }

    /// Takes the state out of the registers without saving it.
    fn release(&mut self) {
        if self.is_loaded() {
            self.processor.owner.set(core::ptr::null_mut());
        }
    }

    #[inline]
    pub(super) fn xcr0(&self) -> Xcr0 {
        if self.is_loaded() {
            fpu::xcr0()
        } else {
            self.memory().xcr0
        }
    }

    pub(super) fn set_xcr0(&mut self, value: Xcr0) {
        if self.is_loaded() {
            fpu::set_xcr0(value);
        }
        self.memory_mut().xcr0 = value;
    }

    #[inline]
    pub(super) fn breakpoints(&self) -> [u64; 4] {
        // They change only through `set_breakpoints`: accesses to debug registers exit.
        self.memory().dr
    }

    /// Puts another address into one of DR0 to DR3 than the guest's, while the state is in the registers; without an
    /// address the guest's again.
    pub(super) fn lend_breakpoint(&self, register: u8, address: Option<u64>) {
        let mut dr = self.memory().dr;
        if let (Some(lent), Some(address)) = (dr.get_mut(usize::from(register)), address) {
            *lent = address;
        }
        write_breakpoints(&dr);
    }

    pub(super) fn set_breakpoints(&mut self, dr: [u64; 4]) {
        if self.is_loaded() {
            write_breakpoints(&dr);
        }
        self.memory_mut().dr = dr;
    }
}

impl Drop for LiveState {
    fn drop(&mut self) {
        self.release();
        // SAFETY: the pointer came from a box in `new`, and the processor does not hold it any more.
        drop(unsafe { Box::from_raw(self.registers.as_ptr()) });
    }
}

fn save_registers(to: &mut Registers) {
    to.xcr0 = fpu::xcr0();
    fpu::save(&mut to.xsave);
}

fn write_breakpoints(dr: &[u64; 4]) {
    // SAFETY: the host's DR7 enables no breakpoint, and the guest's is in effect only while it runs.
    unsafe {
        x86::set_dr0(dr[0]);
        x86::set_dr1(dr[1]);
        x86::set_dr2(dr[2]);
        x86::set_dr3(dr[3]);
    }
}
