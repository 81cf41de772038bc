//! Saving and restoring extended state: the only module with x87 and SIMD instructions.
//!
//! The hypervisor is compiled without them, so the guest's state stays live in the registers while host
//! code runs. A check of the finished binary relies on every symbol here having `fpu` in its name.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::regs::{Cr0, Cr4, Xcr0, XsaveArea};

use crate::x86;

/// The components a guest may enable on this processor: what [`save`] and [`restore`] cover. 0 when there is
/// no XSAVE, where FXSAVE stands in.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);

/// Bytes of the legacy region, which FXSAVE writes too (SDM 1 13.4.1).
const LEGACY_BYTES: usize = 512;
/// XSTATE_BV, the first word of the XSAVE header (SDM 1 13.4.2).
const XSTATE_BV: core::ops::Range<usize> = 512..520;
/// The rest of the header, which must be zero in the standard format.
const HEADER_REST: core::ops::Range<usize> = 520..576;
/// MXCSR in the legacy region.
const MXCSR: core::ops::Range<usize> = 24..28;
/// MXCSR bits that exist on every processor with AVX; a set bit beyond them faults in XRSTOR.
const MXCSR_VALID: u32 = 0xffff;

/// The processor has neither SSE nor FXSAVE, which long mode requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFxsave;

/// Enables the extended state of this processor for guests.
///
/// # Errors
///
/// There is no FXSAVE.
pub fn init() -> Result<(), NoFxsave> {
    let features = x86::cpuid(1, 0);
    if features.edx & 1 << 24 == 0 {
        return Err(NoFxsave);
    }
    let has_xsave = features.ecx & 1 << 26 != 0;
    let mut cr4 = Cr4::from_bits_retain(x86::cr4()) | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    let mut cr0 = Cr0::from_bits_retain(x86::cr0());
    cr0.remove(Cr0::EM | Cr0::TS);
    cr0.insert(Cr0::MP | Cr0::NE);
    cr4.set(Cr4::OSXSAVE, has_xsave);
    // SAFETY: the features were just looked up; the bits change only how x87 and SIMD instructions work.
    unsafe {
        x86::set_cr0(cr0.bits());
        x86::set_cr4(cr4.bits());
    }
    if has_xsave {
        let offered = x86::cpuid(0xd, 0).eax;
        let components =
            Xcr0::from_bits_retain(u64::from(offered)) & (Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);
        COMPONENTS.store(components.bits(), Ordering::Relaxed);
        set_xcr0(components);
    }
    Ok(())
}

/// The components a guest may enable; empty when the processor has no XSAVE.
pub fn supported() -> Xcr0 {
    Xcr0::from_bits_retain(COMPONENTS.load(Ordering::Relaxed))
}

/// Copies the live extended state into `area`, in full: components in their initial configuration are
/// written out and XSTATE_BV names all three, whatever the processor tracks.
pub fn save(area: &mut XsaveArea) {
    let supported = supported();
    let pointer = area.0.as_mut_ptr();
    if supported.is_empty() {
        // SAFETY: the area is 64-byte aligned and longer than 512 bytes.
        unsafe { fpu_fxsave(pointer) };
        area.0[LEGACY_BYTES..].fill(0);
    } else {
        let guest = xcr0();
        set_xcr0(supported);
        // SAFETY: the area is 64-byte aligned and holds x87, SSE and AVX state in standard format.
        unsafe { fpu_xsave(pointer, supported.bits()) };
        set_xcr0(guest);
    }
    area.0[XSTATE_BV].copy_from_slice(&7u64.to_le_bytes());
    area.0[HEADER_REST].fill(0);
}

/// Makes `area` the live extended state. Components that XSTATE_BV does not name become initial.
pub fn restore(area: &XsaveArea) {
    let supported = supported();
    let mut area = *area;
    let mut word = [0; 8];
    word.copy_from_slice(&area.0[XSTATE_BV]);
    let named = u64::from_le_bytes(word) & supported.bits();
    area.0[XSTATE_BV].copy_from_slice(&named.to_le_bytes());
    area.0[HEADER_REST].fill(0);
    let mut word = [0; 4];
    word.copy_from_slice(&area.0[MXCSR]);
    let mxcsr = u32::from_le_bytes(word) & MXCSR_VALID;
    area.0[MXCSR].copy_from_slice(&mxcsr.to_le_bytes());
    if supported.is_empty() {
        // SAFETY: aligned, long enough, MXCSR is valid.
        unsafe { fpu_fxrstor(area.0.as_ptr()) };
    } else {
        let guest = xcr0();
        set_xcr0(supported);
        // SAFETY: aligned, long enough, header and MXCSR are valid.
        unsafe { fpu_xrstor(area.0.as_ptr(), supported.bits()) };
        set_xcr0(guest);
    }
}

/// Reads XCR0; x87 alone when the processor has no XSAVE.
#[inline]
pub fn xcr0() -> Xcr0 {
    if supported().is_empty() {
        return Xcr0::X87;
    }
    // SAFETY: CR4.OSXSAVE was set when `supported` became non-empty.
    Xcr0::from_bits_retain(unsafe { fpu_xgetbv() })
}

/// Writes XCR0, cut down to what [`supported`] allows; does nothing when the processor has no XSAVE.
#[inline]
pub fn set_xcr0(value: Xcr0) {
    let mut value = value & supported();
    if value.is_empty() {
        return;
    }
    // The processor refuses AVX without SSE, and anything without x87 (SDM 1 13.3).
    value.insert(Xcr0::X87);
    if !value.contains(Xcr0::SSE) {
        value.remove(Xcr0::AVX);
    }
    // SAFETY: CR4.OSXSAVE is set and the value is a valid combination of supported components.
    unsafe { fpu_xsetbv(value.bits()) };
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_xsave(area: *mut u8, components: u64) {
    naked_asm!(
        "mov eax, esi",
        "mov rdx, rsi",
        "shr rdx, 32",
        "xsave64 [rdi]",
        "ret"
    )
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_xrstor(area: *const u8, components: u64) {
    naked_asm!(
        "mov eax, esi",
        "mov rdx, rsi",
        "shr rdx, 32",
        "xrstor64 [rdi]",
        "ret"
    )
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_fxsave(area: *mut u8) {
    naked_asm!("fxsave64 [rdi]", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_fxrstor(area: *const u8) {
    naked_asm!("fxrstor64 [rdi]", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_xgetbv() -> u64 {
    naked_asm!(
        "xor ecx, ecx",
        "xgetbv",
        "shl rdx, 32",
        "or rax, rdx",
        "ret"
    )
}

#[unsafe(naked)]
unsafe extern "C" fn fpu_xsetbv(value: u64) {
    naked_asm!(
        "xor ecx, ecx",
        "mov eax, edi",
        "mov rdx, rdi",
        "shr rdx, 32",
        "xsetbv",
        "ret"
    )
}
