//! What CPUID and VM_CR say about SVM. The flags carry the manual's names and need no other words.

#![allow(missing_docs)]

use bitflags::bitflags;

/// CPUID leaf with the revision, the number of ASIDs and the features of SVM (APM 3 E.4.9).
pub const CPUID_SVM: u32 = 0x8000_000a;
/// CPUID leaf whose ECX has [`CPUID_FEATURE_SVM`] (APM 3 E.4.2).
pub const CPUID_EXTENDED_FEATURES: u32 = 0x8000_0001;
/// Bit of ECX in [`CPUID_EXTENDED_FEATURES`]: the processor has SVM.
pub const CPUID_FEATURE_SVM: u32 = 1 << 2;
/// Bit of EDX in [`CPUID_EXTENDED_FEATURES`]: the processor has RDTSCP and TSC_AUX.
pub const CPUID_FEATURE_RDTSCP: u32 = 1 << 27;
/// Bit of EDX in [`CPUID_EXTENDED_FEATURES`]: the processor has long mode.
pub const CPUID_FEATURE_LONG_MODE: u32 = 1 << 29;
/// CPUID leaf with address widths in EAX and more features in EBX (APM 3 E.4.7).
pub const CPUID_ADDRESS_SIZES: u32 = 0x8000_0008;
/// Bit of EBX in [`CPUID_ADDRESS_SIZES`]: INVLPGB and TLBSYNC.
pub const CPUID_FEATURE_INVLPGB: u32 = 1 << 3;
/// Bit of EBX in [`CPUID_ADDRESS_SIZES`]: RDPRU.
pub const CPUID_FEATURE_RDPRU: u32 = 1 << 4;
/// Bit of EBX in [`CPUID_ADDRESS_SIZES`]: MCOMMIT.
pub const CPUID_FEATURE_MCOMMIT: u32 = 1 << 8;
/// Bit of EBX in CPUID leaf 7: INVPCID.
pub const CPUID_FEATURE_INVPCID: u32 = 1 << 10;

bitflags! {
    /// EDX of [`CPUID_SVM`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        const NESTED_PAGING = 1 << 0;
        const LBR_VIRTUALIZATION = 1 << 1;
        const LOCK = 1 << 2;
        const NEXT_RIP = 1 << 3;
        const TSC_RATE = 1 << 4;
        const CLEAN_BITS = 1 << 5;
        const FLUSH_BY_ASID = 1 << 6;
        const DECODE_ASSISTS = 1 << 7;
        const PAUSE_FILTER = 1 << 10;
        const PAUSE_THRESHOLD = 1 << 12;
        const AVIC = 1 << 13;
        const VIRTUAL_VMLOAD_VMSAVE = 1 << 15;
        const VIRTUAL_GIF = 1 << 16;
        const _ = !0;
    }

    /// VM_CR (APM 2 15.30.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VmCr: u64 {
        const DEBUG_PORT_DISABLE = 1 << 0;
        const REDIRECT_INIT = 1 << 1;
        const DISABLE_A20M = 1 << 2;
        /// VM_CR.SVMDIS cannot be changed until the next reset, or with the key.
        const LOCK = 1 << 3;
        /// EFER.SVME cannot be set.
        const SVM_DISABLE = 1 << 4;
        const _ = !0;
    }
}

/// Whether SVM can be switched on, by the rules of APM 2 15.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The processor does not have it.
    Absent,
    /// The processor has it; the firmware has switched it off.
    DisabledByFirmware {
        /// A key written to an MSR would unlock it; else only firmware settings help.
        unlockable: bool,
    },
    /// EFER.SVME can be set.
    Available,
}

/// Judges the three values that decide. `vm_cr` is `None` where the processor has no SVM and so no VM_CR.
#[must_use]
pub fn availability(
    extended_features_ecx: u32,
    vm_cr: Option<VmCr>,
    features: SvmFeatures,
) -> Availability {
    if extended_features_ecx & CPUID_FEATURE_SVM == 0 {
        return Availability::Absent;
    }
    match vm_cr {
        None => Availability::Absent,
        Some(vm_cr) if vm_cr.contains(VmCr::SVM_DISABLE) => Availability::DisabledByFirmware {
            unlockable: features.contains(SvmFeatures::LOCK),
        },
        Some(_) => Availability::Available,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_follows_the_manual() {
        let svm = CPUID_FEATURE_SVM;
        let none = SvmFeatures::empty();
        assert_eq!(
            availability(0, Some(VmCr::empty()), none),
            Availability::Absent
        );
        assert_eq!(availability(svm, None, none), Availability::Absent);
        assert_eq!(
            availability(svm, Some(VmCr::empty()), none),
            Availability::Available
        );
        assert_eq!(
            availability(svm, Some(VmCr::SVM_DISABLE), none),
            Availability::DisabledByFirmware { unlockable: false }
        );
        assert_eq!(
            availability(svm, Some(VmCr::SVM_DISABLE), SvmFeatures::LOCK),
            Availability::DisabledByFirmware { unlockable: true }
        );
        // Locked, but on: fine.
        assert_eq!(
            availability(svm, Some(VmCr::LOCK), SvmFeatures::LOCK),
            Availability::Available
        );
    }
}
