//! What the unit tests of this crate share: RAM in a vector and ready-made control registers.

use alloc::vec;
use alloc::vec::Vec;

use arch::addr::Gpa;
use arch::regs::{ControlRegisters, Cr0, Cr4, Efer, Xcr0};

use crate::memory::{GuestMemory, NotRam};

/// RAM from address 0 up.
pub struct Ram(pub Vec<u8>);

impl Ram {
    pub fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.write(Gpa(at), bytes).expect("inside of test RAM");
    }

    pub fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn put_u32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn range(&self, at: Gpa, length: usize) -> Result<core::ops::Range<usize>, NotRam> {
        let start = usize::try_from(at.0).map_err(|_| NotRam(at))?;
        let end = start.checked_add(length).ok_or(NotRam(at))?;
        if end <= self.0.len() {
            Ok(start..end)
        } else {
            Err(NotRam(at))
        }
    }
}

impl GuestMemory for Ram {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, from: Gpa, to: &mut [u8]) -> Result<(), NotRam> {
        let range = self.range(from, to.len())?;
        to.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn write(&mut self, to: Gpa, from: &[u8]) -> Result<(), NotRam> {
        let range = self.range(to, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }
}

/// 64-bit mode with page tables at `cr3`.
pub fn control_long(cr3: u64) -> ControlRegisters {
    ControlRegisters {
        cr0: Cr0::PE | Cr0::PG | Cr0::ET,
        cr2: 0,
        cr3,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        xcr0: Xcr0::X87,
        pdptes: [0; 4],
    }
}

/// Protected mode without paging.
pub fn control_protected() -> ControlRegisters {
    ControlRegisters {
        cr0: Cr0::PE | Cr0::ET,
        cr2: 0,
        cr3: 0,
        cr4: Cr4::empty(),
        efer: Efer::empty(),
        xcr0: Xcr0::X87,
        pdptes: [0; 4],
    }
}
