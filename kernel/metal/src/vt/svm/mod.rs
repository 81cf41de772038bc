//! The AMD SVM back end (APM 2 chapter 15): switching SVM on. The virtual processor is in [`vcpu`].

mod backend;
mod bitmaps;
mod breakpoints;
pub mod capabilities;
mod code;
mod control;
mod counter;
mod dump;
mod entry;
mod event;
mod exit;
mod live;
mod pmu;
mod state;
mod step;
mod vcpu;

use alloc::boxed::Box;
use core::cell::Cell;

use arch::addr::Hpa;
use arch::msr;
use arch::regs::Efer;
use vmm::pmu::Skid;

pub use self::capabilities::{Capabilities, Unsupported};
pub use self::counter::Counting;
pub use self::vcpu::{NewError, Vcpu};

use self::bitmaps::Bitmaps;
use crate::mem::frames;
use crate::x86;

/// A processor with SVM on, and whose state it holds. Lives as long as the program; not to be shared with another
/// processor, which the cells see to.
pub struct Processor {
    /// Whose extended state and breakpoints are in the registers; null: nobody's.
    owner: Cell<*mut live::Registers>,
    /// Address-space identifiers in use, one bit each. Bit 0, the host's, is always set.
    asids: Cell<u64>,
    /// How many identifiers the processor has; at most 64 are used.
    asid_count: u32,
    /// Page for the host registers that VMRUN does not save.
    host_state: Hpa,
}

impl Processor {
    /// An identifier, the last one again when all are in use. Guests may share one: translations are dropped
    /// whenever another guest's state is loaded.
    fn take_asid(&self) -> Option<u32> {
        let count = self.asid_count.min(u64::BITS);
        let free = self.asids.get().trailing_ones().min(count.checked_sub(1)?);
        if free == 0 {
            return None;
        }
        self.asids.set(self.asids.get() | 1 << free);
        Some(free)
    }

    fn give_back_asid(&self, asid: u32) {
        self.asids.set(self.asids.get() & !(1 << asid));
    }
}

/// SVM on this processor.
pub struct Svm {
    processor: &'static Processor,
    capabilities: Capabilities,
    bitmaps: Bitmaps,
    counting: Counting,
    skid: Option<Skid>,
}

impl Svm {
    /// Looks whether this processor can run guests. Changes nothing.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn detect() -> Result<Capabilities, Unsupported> {
        capabilities::detect()
    }

    /// Switches SVM on, on this processor. To be called once.
    ///
    /// # Errors
    ///
    /// As [`Svm::detect`], or there is no memory.
    pub fn enable() -> Result<Self, Unsupported> {
        let capabilities = capabilities::detect()?;
        let bitmaps = Bitmaps::new().ok_or(Unsupported::OutOfMemory)?;
        let host_save = frames::alloc_zeroed().ok_or(Unsupported::OutOfMemory)?;
        let host_state = frames::alloc_zeroed().ok_or(Unsupported::OutOfMemory)?;
        // SAFETY: SVM exists and is not disabled; the page was just allocated and is never freed. TSC_AUX is read by
        // nobody in the host; RDPID, which cannot be intercepted and is hidden from guests, then gives the same
        // value everywhere.
        unsafe {
            let efer = Efer::from_bits_retain(x86::rdmsr(msr::EFER)) | Efer::SVME;
            x86::wrmsr(msr::EFER, efer.bits());
            x86::wrmsr(msr::VM_HSAVE_PA, host_save.0);
            if capabilities.rdtscp {
                x86::wrmsr(msr::TSC_AUX, 0);
            }
        }
        let processor = Box::leak(Box::new(Processor {
            owner: Cell::new(core::ptr::null_mut()),
            asids: Cell::new(1),
            asid_count: capabilities.processor.asids,
            host_state,
        }));
        Ok(Self {
            processor,
            capabilities,
            bitmaps,
            counting: Counting::ExitOrdinal { timer_ratio: 0 },
            skid: None,
        })
    }
}
