//! The Intel VT-x back end: switching VMX operation on. The virtual processor is in [`vcpu`].

mod backend;
mod bitmaps;
pub mod capabilities;
mod control;
mod counter;
mod entry;
mod event;
mod exit;
mod live;
mod over;
mod pmu;
mod setup;
mod state;
mod step;
mod vcpu;

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::arch::asm;
use core::cell::{Cell, RefCell};
use core::fmt;

use arch::addr::Hpa;
use arch::msr;
use arch::regs::{Cr0, Cr4};
use arch::vmx::capability::{Capabilities, Missing};
use vmm::pmu::Skid;

use crate::mem::{frames, physmap};
use crate::x86;

pub use counter::Counting;
pub use vcpu::{NewError, Vcpu};

/// Why this processor cannot run guests by VT-x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID does not show VMX.
    NoVmx,
    /// The firmware has locked VMX off.
    DisabledInFirmware,
    /// A feature of VMX that Duet needs.
    Missing(Missing),
    /// CR0 or CR4 as this program runs with them are not allowed in VMX operation.
    HostControlRegisters,
    /// No frame for the VMXON region or the MSR bitmap.
    OutOfMemory,
    /// VMXON itself failed.
    VmxonFailed,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::NoVmx => write!(f, "VT-x: the processor does not have it"),
            Unsupported::DisabledInFirmware => write!(f, "VT-x: disabled in firmware"),
            Unsupported::Missing(feature) => write!(f, "VT-x: the processor lacks {feature}"),
            Unsupported::HostControlRegisters => {
                write!(f, "VT-x: the host's CR0 or CR4 do not fit VMX operation")
            }
            Unsupported::OutOfMemory => write!(f, "VT-x: no memory for the VMXON region"),
            Unsupported::VmxonFailed => write!(f, "VT-x: VMXON failed"),
        }
    }
}

/// A processor in VMX operation, and whose state it holds. Lives as long as the program; not to be shared
/// with another processor, which the cells see to.
pub struct Processor {
    /// Region of the current VMCS; all ones when there is none.
    current: Cell<Hpa>,
    /// Whose extended state, debug registers and system MSRs are in the registers.
    owner: RefCell<Option<Rc<live::Live>>>,
    /// The same as an address, for a quick comparison; null when there is none.
    owner_address: Cell<*const live::Live>,
    /// VPID for the next virtual processor.
    next_vpid: Cell<u16>,
}

/// VMX operation on this processor.
pub struct Vmx {
    processor: &'static Processor,
    capabilities: Capabilities,
    msr_bitmap: Hpa,
    counting: Counting,
    skid: Option<Skid>,
}

impl Vmx {
    /// Looks whether this processor can run guests, and chooses the controls. Changes nothing.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn detect() -> Result<Capabilities, Unsupported> {
        capabilities::detect()
    }

    /// Enters VMX operation on this processor. To be called once.
    ///
    /// # Errors
    ///
    /// As [`Vmx::detect`], or there is no memory.
    pub fn enable() -> Result<Self, Unsupported> {
        let capabilities = capabilities::detect()?;
        capabilities::unlock_feature();
        let cr0 = x86::cr0() | Cr0::NE.bits();
        let cr4 = x86::cr4() | Cr4::VMXE.bits();
        if !capabilities::host_registers_allowed(&capabilities, cr0, cr4) {
            return Err(Unsupported::HostControlRegisters);
        }
        let region = frames::alloc_zeroed().ok_or(Unsupported::OutOfMemory)?;
        let msr_bitmap = bitmaps::msr_bitmap().ok_or(Unsupported::OutOfMemory)?;
        // SAFETY: the frame was just allocated. NE changes how x87 errors are reported and VMXE allows
        // VMXON; both were just checked. VMXON uses the frame from now on, which is never freed.
        unsafe {
            physmap::ptr(region)
                .cast::<u32>()
                .write_volatile(capabilities.revision);
            x86::set_cr0(cr0);
            x86::set_cr4(cr4);
            asm!("vmxon [{}]", "jbe {}", in(reg) &region.0, label {
                return Err(Unsupported::VmxonFailed);
            }, options(nostack));
        }
        if capabilities::has_tsc_aux() {
            // SAFETY: the register exists; nothing of the host reads it. RDPID, which cannot be
            // intercepted where RDTSCP is enabled, then gives the same value everywhere.
            unsafe { x86::wrmsr(msr::TSC_AUX, 0) };
        }
        if capabilities.has_vpid() && capabilities.ept_vpid.invvpid_all() {
            control::invvpid(control::Flush::AllVpids);
        }
        if capabilities.ept_vpid.invept_all() {
            control::invept(None);
        }
        let processor = Box::leak(Box::new(Processor {
            current: Cell::new(Hpa(u64::MAX)),
            owner: RefCell::new(None),
            owner_address: Cell::new(core::ptr::null()),
            next_vpid: Cell::new(1),
        }));
        Ok(Self {
            processor,
            capabilities,
            msr_bitmap,
            counting: Counting::EXIT_ORDINAL,
            skid: None,
        })
    }
}
