//! What this processor's SVM can do, read once.

use core::fmt;

use arch::regs::{Cr4, Efer};
use arch::svm::capability::{
    self, Availability, CPUID_ADDRESS_SIZES, CPUID_EXTENDED_FEATURES, CPUID_SVM, SvmFeatures, VmCr,
};
use arch::svm::control::{Intercepts2, Intercepts3};
use arch::svm::entry_check::Processor;

use crate::x86;

/// Why this processor cannot run guests with SVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID does not know it.
    NoSvm,
    /// The firmware has switched it off; where `unlockable`, a key could undo that until the next reset.
    DisabledByFirmware {
        /// VM_CR can be unlocked with a key.
        unlockable: bool,
    },
    /// There are no nested page tables.
    NoNestedPaging,
    /// There is one address-space identifier, or none: the host needs the first.
    NoAsids,
    /// The host has no frames left for the control pages.
    OutOfMemory,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSvm => "the processor has no SVM (CPUID 8000_0001h ECX bit 2 is 0)",
            Self::DisabledByFirmware { unlockable: true } => {
                "SVM is switched off in the firmware settings and locked with a key (VM_CR.SVMDIS is 1)"
            }
            Self::DisabledByFirmware { unlockable: false } => {
                "SVM is switched off in the firmware settings (VM_CR.SVMDIS is 1)"
            }
            Self::NoNestedPaging => {
                "SVM without nested page tables (CPUID 8000_000Ah EDX bit 0 is 0)"
            }
            Self::NoAsids => "SVM without address-space identifiers (CPUID 8000_000Ah EBX)",
            Self::OutOfMemory => "no memory for the control pages of SVM",
        })
    }
}

/// What the processor offers.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Optional parts of SVM.
    pub features: SvmFeatures,
    /// Instructions that exist here and can be intercepted by the second vector, beyond what always can.
    pub intercepts_2: Intercepts2,
    /// The same of the third vector, whose bits are reserved where the instruction does not exist.
    pub intercepts_3: Intercepts3,
    /// RDTSCP and TSC_AUX exist.
    pub rdtscp: bool,
    /// What the entry checks compare with.
    pub processor: Processor,
}

/// Reads CPUID and VM_CR.
///
/// # Errors
///
/// The first thing that is missing.
pub(super) fn detect() -> Result<Capabilities, Unsupported> {
    if x86::cpuid_max(0x8000_0000) < CPUID_SVM {
        return Err(Unsupported::NoSvm);
    }
    let extended = x86::cpuid(CPUID_EXTENDED_FEATURES, 0);
    let svm = x86::cpuid(CPUID_SVM, 0);
    let features = SvmFeatures::from_bits_retain(svm.edx);
    let vm_cr = (extended.ecx & capability::CPUID_FEATURE_SVM != 0).then(|| {
        // SAFETY: VM_CR exists on every processor with SVM (APM 2 15.30.1).
        VmCr::from_bits_retain(unsafe { x86::rdmsr(arch::msr::VM_CR) })
    });
    match capability::availability(extended.ecx, vm_cr, features) {
        Availability::Absent => return Err(Unsupported::NoSvm),
        Availability::DisabledByFirmware { unlockable } => {
            return Err(Unsupported::DisabledByFirmware { unlockable });
        }
        Availability::Available => {}
    }
    if !features.contains(SvmFeatures::NESTED_PAGING) {
        return Err(Unsupported::NoNestedPaging);
    }
    if svm.ebx < 2 {
        return Err(Unsupported::NoAsids);
    }
    let sizes = x86::cpuid(CPUID_ADDRESS_SIZES, 0);
    let (intercepts_2, intercepts_3) = optional_intercepts(sizes.ebx);
    Ok(Capabilities {
        features,
        intercepts_2,
        intercepts_3,
        rdtscp: extended.edx & capability::CPUID_FEATURE_RDTSCP != 0,
        processor: Processor {
            cr4: cr4_bits().bits(),
            efer: efer_bits(extended.edx).bits(),
            physical_bits: sizes.eax as u8,
            asids: svm.ebx,
        },
    })
}

fn leaf_7_ebx_ecx() -> (u32, u32) {
    if x86::cpuid_max(0) < 7 {
        return (0, 0);
    }
    let leaf = x86::cpuid(7, 0);
    (leaf.ebx, leaf.ecx)
}

/// Intercepts of instructions that only some processors have.
fn optional_intercepts(sizes_ebx: u32) -> (Intercepts2, Intercepts3) {
    let mut second = Intercepts2::empty();
    let mut third = Intercepts3::empty();
    second.set(
        Intercepts2::RDPRU,
        sizes_ebx & capability::CPUID_FEATURE_RDPRU != 0,
    );
    third.set(
        Intercepts3::INVLPGB | Intercepts3::ILLEGAL_INVLPGB | Intercepts3::TLBSYNC,
        sizes_ebx & capability::CPUID_FEATURE_INVLPGB != 0,
    );
    third.set(
        Intercepts3::MCOMMIT,
        sizes_ebx & capability::CPUID_FEATURE_MCOMMIT != 0,
    );
    third.set(
        Intercepts3::INVPCID,
        leaf_7_ebx_ecx().0 & capability::CPUID_FEATURE_INVPCID != 0,
    );
    (second, third)
}

/// CR4 bits of this processor (APM 2 3.1.3 says which CPUID bit stands for which).
fn cr4_bits() -> Cr4 {
    let leaf_1 = x86::cpuid(1, 0);
    let (ebx_7, ecx_7) = leaf_7_ebx_ecx();
    let table = [
        (leaf_1.edx, 1, Cr4::VME | Cr4::PVI),
        (leaf_1.edx, 4, Cr4::TSD),
        (leaf_1.edx, 2, Cr4::DE),
        (leaf_1.edx, 3, Cr4::PSE),
        (leaf_1.edx, 6, Cr4::PAE),
        (leaf_1.edx, 7, Cr4::MCE),
        (leaf_1.edx, 13, Cr4::PGE),
        (leaf_1.edx, 24, Cr4::OSFXSR),
        (leaf_1.edx, 25, Cr4::OSXMMEXCPT),
        (leaf_1.ecx, 17, Cr4::PCIDE),
        (leaf_1.ecx, 26, Cr4::OSXSAVE),
        (ebx_7, 0, Cr4::FSGSBASE),
        (ebx_7, 7, Cr4::SMEP),
        (ebx_7, 20, Cr4::SMAP),
        (ecx_7, 2, Cr4::UMIP),
        (ecx_7, 3, Cr4::PKE),
        (ecx_7, 7, Cr4::CET),
        (ecx_7, 16, Cr4::LA57),
    ];
    table
        .iter()
        .filter(|(register, bit, _)| register >> bit & 1 != 0)
        .fold(Cr4::PCE, |bits, (_, _, flag)| bits | *flag)
}

/// EFER bits of this processor, SVME left out. LMSLE is none of them: no machine of ours has it.
fn efer_bits(extended_edx: u32) -> Efer {
    let mut bits = Efer::SCE;
    bits.set(Efer::NXE, extended_edx & 1 << 20 != 0);
    bits.set(Efer::FFXSR, extended_edx & 1 << 25 != 0);
    bits.set(
        Efer::LME | Efer::LMA,
        extended_edx & capability::CPUID_FEATURE_LONG_MODE != 0,
    );
    bits
}
