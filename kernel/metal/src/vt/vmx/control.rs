//! Access to VMCS fields, and the instructions that manage a VMCS and its translations
//! (SDM 3 chapter 31).

use core::arch::asm;

use arch::addr::Hpa;
use arch::vmx::field::Field;

use super::Processor;
use crate::mem::{frames, physmap};

/// One virtual-machine control structure. It belongs to the processor it was made on.
pub struct Vmcs {
    region: Hpa,
    processor: &'static Processor,
}

impl Vmcs {
    /// A clear VMCS; none if there is no frame for it.
    pub fn new(processor: &'static Processor, revision: u32) -> Option<Self> {
        let region = frames::alloc_zeroed()?;
        // SAFETY: the frame was just allocated; the revision identifier is its first word.
        unsafe { physmap::ptr(region).cast::<u32>().write_volatile(revision) };
        let vmcs = Self { region, processor };
        vmcs.clear();
        Some(vmcs)
    }

    /// VMCLEAR: writes the processor's copy back and sets the launch state to "clear".
    fn clear(&self) {
        // SAFETY: VMX operation is on (a `Processor` exists) and the region is a frame of ours with the
        // right revision; the instruction writes only to that frame.
        unsafe {
            asm!("vmclear [{}]", "jbe {}", in(reg) &self.region.0, label { failed("VMCLEAR") },
                options(nostack));
        }
        if self.processor.current.get() == self.region {
            self.processor.current.set(Hpa(u64::MAX));
        }
    }

    #[inline]
    fn make_current(&self) {
        if self.processor.current.get() != self.region {
            self.load();
        }
    }

    #[cold]
    fn load(&self) {
        // SAFETY: as in `clear`; the VMCS becomes the current one, which `current` records.
        unsafe {
            asm!("vmptrld [{}]", "jbe {}", in(reg) &self.region.0, label { failed("VMPTRLD") },
                options(nostack));
        }
        self.processor.current.set(self.region);
    }

    /// Makes this the VMCS that the other instructions work on, and gives access to its fields: to be used at
    /// once, before another virtual processor is touched.
    #[inline]
    pub fn current(&self) -> Current {
        self.make_current();
        Current(())
    }

    /// Reads a field.
    #[inline]
    pub fn read<F: Field>(&self, field: F) -> F::Value {
        self.current().read(field)
    }

    /// Writes a guest-state field.
    #[inline]
    pub fn set<F: Field>(&self, field: F, value: F::Value) {
        self.current().set(field, value);
    }

    /// Writes any field.
    ///
    /// # Safety
    ///
    /// As [`Current::write`].
    #[inline]
    pub unsafe fn write<F: Field>(&self, field: F, value: F::Value) {
        // SAFETY: the caller vouches for the value.
        unsafe { self.current().write(field, value) };
    }
}

/// The current VMCS.
#[derive(Clone, Copy)]
pub struct Current(());

impl Current {
    /// Reads a field.
    #[inline]
    pub fn read<F: Field>(self, field: F) -> F::Value {
        let value: u64;
        // SAFETY: VMX operation is on and a VMCS is current. Of a field that this processor does not have
        // the register keeps some old value.
        unsafe {
            asm!("vmread {}, {}", lateout(reg) value, in(reg) u64::from(field.encoding()),
                options(nomem, nostack));
        }
        F::from_register(value)
    }

    /// Writes a guest-state field: nothing in that area can reach host memory.
    #[inline]
    pub fn set<F: Field>(self, field: F, value: F::Value) {
        const GUEST_STATE: u32 = 2;
        assert!(
            field.encoding() >> 10 & 3 == GUEST_STATE,
            "not a guest-state field"
        );
        // SAFETY: see above.
        unsafe { self.write(field, value) };
    }

    /// Writes any field.
    ///
    /// # Safety
    ///
    /// The VMCS must stay one that a VM entry can use without harm: host state that returns into `entry`,
    /// an EPT pointer and bitmaps that are this guest's.
    #[inline]
    pub unsafe fn write<F: Field>(self, field: F, value: F::Value) {
        // SAFETY: VMX operation is on and a VMCS is current; the caller vouches for the value.
        unsafe {
            asm!("vmwrite {}, {}", "jbe {}", in(reg) u64::from(field.encoding()),
                in(reg) F::to_register(value), label { failed("VMWRITE") }, options(nostack));
        }
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        self.clear();
        frames::free(self.region);
    }
}

/// A VMX instruction refused operands that only this program chooses.
#[cold]
fn failed(instruction: &str) -> ! {
    panic!("{instruction} failed")
}

/// What INVVPID and INVEPT drop (SDM 3 30.4.3.1).
#[derive(Clone, Copy, Debug)]
pub enum Flush {
    /// One linear address of one VPID.
    Address {
        /// The VPID.
        vpid: u16,
        /// The address; not canonical is refused by the processor, so the caller has checked it.
        linear: u64,
    },
    /// One VPID.
    Vpid(u16),
    /// All VPIDs.
    AllVpids,
}

/// INVVPID.
pub fn invvpid(what: Flush) {
    let (kind, descriptor): (u64, [u64; 2]) = match what {
        Flush::Address { vpid, linear } => (0, [u64::from(vpid), linear]),
        Flush::Vpid(vpid) => (1, [u64::from(vpid), 0]),
        Flush::AllVpids => (2, [0, 0]),
    };
    // SAFETY: dropping translations only makes the processor walk tables again. The callers have checked
    // that the processor has the instruction and the type.
    unsafe {
        asm!("invvpid {}, [{}]", "jbe {}", in(reg) kind, in(reg) descriptor.as_ptr(),
            label { failed("INVVPID") }, options(nostack));
    }
}

/// INVEPT of one EPT pointer, or of all.
pub fn invept(pointer: Option<u64>) {
    let (kind, descriptor): (u64, [u64; 2]) = match pointer {
        Some(pointer) => (1, [pointer, 0]),
        None => (2, [0, 0]),
    };
    // SAFETY: as in `invvpid`.
    unsafe {
        asm!("invept {}, [{}]", "jbe {}", in(reg) kind, in(reg) descriptor.as_ptr(),
            label { failed("INVEPT") }, options(nostack));
    }
}
