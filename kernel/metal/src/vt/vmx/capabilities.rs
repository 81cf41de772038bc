//! What this processor's VT-x can do: CPUID, the firmware's lock, the capability MSRs (SDM 3 25.7, 25.8,
//! appendix A).

use arch::msr;
use arch::regs::{Cr0, Cr4};
use arch::vmx::capability::{Capabilities, CapabilityMsrs, HostInstructions};

use super::Unsupported;
use crate::x86;

/// IA32_FEATURE_CONTROL (SDM 3 25.7).
const LOCKED: u64 = 1 << 0;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// Chooses the controls for this processor; changes nothing.
pub(super) fn detect() -> Result<Capabilities, Unsupported> {
    const VMX: u32 = 1 << 5;
    if x86::cpuid(1, 0).ecx & VMX == 0 {
        return Err(Unsupported::NoVmx);
    }
    let feature = feature_control();
    if feature & LOCKED != 0 && feature & VMX_OUTSIDE_SMX == 0 {
        return Err(Unsupported::DisabledInFirmware);
    }
    // SAFETY: `read` asks only for MSRs that a processor with VMX has, and for optional ones after the MSR
    // that tells of them.
    let msrs = CapabilityMsrs::read(|number| unsafe { x86::rdmsr(number) });
    Capabilities::choose(&msrs, host_instructions()).map_err(Unsupported::Missing)
}

fn feature_control() -> u64 {
    // SAFETY: every processor with VMX has this MSR.
    unsafe { x86::rdmsr(msr::FEATURE_CONTROL) }
}

/// Allows VMX where the firmware has left it open. Called after [`detect`] has succeeded.
pub(super) fn unlock_feature() {
    let feature = feature_control();
    if feature & LOCKED == 0 {
        // SAFETY: not locked, so it is writable; it only makes VMXON possible.
        unsafe { x86::wrmsr(msr::FEATURE_CONTROL, feature | LOCKED | VMX_OUTSIDE_SMX) };
    }
}

/// Whether VMX operation accepts the host's own control registers (SDM 3 25.8). The host has PE and PG set,
/// so that the guest's freedom with these two makes no difference.
pub(super) fn host_registers_allowed(capabilities: &Capabilities, cr0: u64, cr4: u64) -> bool {
    let paging = Cr0::PE.union(Cr0::PG).bits();
    let fits = |value: u64, ones: u64, allowed: u64| value & ones == ones && value & !allowed == 0;
    fits(
        cr0,
        capabilities.cr0_ones | paging,
        capabilities.cr0_allowed,
    ) && fits(
        cr4,
        capabilities.cr4_ones | Cr4::VMXE.bits(),
        capabilities.cr4_allowed,
    )
}

fn host_instructions() -> HostInstructions {
    const RDRAND: u32 = 1 << 30;
    const RDSEED: u32 = 1 << 18;
    let structured = if x86::cpuid_max(0) >= 7 {
        x86::cpuid(7, 0).ebx
    } else {
        0
    };
    HostInstructions {
        rdrand: x86::cpuid(1, 0).ecx & RDRAND != 0,
        rdseed: structured & RDSEED != 0,
    }
}

/// Whether IA32_TSC_AUX exists: with RDTSCP or RDPID.
pub(super) fn has_tsc_aux() -> bool {
    const RDTSCP: u32 = 1 << 27;
    x86::cpuid_max(0x8000_0000) >= 0x8000_0001 && x86::cpuid(0x8000_0001, 0).edx & RDTSCP != 0
}

/// Bits of a physical address.
pub(super) fn physical_bits() -> u32 {
    if x86::cpuid_max(0x8000_0000) >= 0x8000_0008 {
        x86::cpuid(0x8000_0008, 0).eax & 0xff
    } else {
        36
    }
}
