//! Instructions as functions. Safe ones cannot break memory safety on this machine, although they
//! may fault: no device here writes to memory.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::idt;

/// MSR numbers.
pub mod msr {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const PAT: u32 = 0x277;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// What CPUID returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Cpuid {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// CPUID of a leaf and subleaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let (mut eax, mut ecx) = (leaf, subleaf);
    let (ebx, edx): (u64, u32);
    // SAFETY: changes only the four registers; RBX, which LLVM keeps, is put back.
    unsafe {
        asm!("mov {keep}, rbx", "cpuid", "xchg {keep}, rbx", keep = out(reg) ebx,
             inout("eax") eax, inout("ecx") ecx, out("edx") edx, options(nomem, nostack, preserves_flags));
    }
    Cpuid {
        eax,
        ebx: ebx as u32,
        ecx,
        edx,
    }
}

/// Whether the machine says it is Duet (leaf 0x40000000), with the devices of `generator` and
/// `scratch`.
pub fn on_duet() -> bool {
    let leaf = cpuid(0x4000_0000, 0);
    leaf.ebx == u32::from_le_bytes(*b"Duet")
        && leaf.ecx == u32::from_le_bytes(*b"Duet")
        && leaf.edx == u32::from_le_bytes(*b"Duet")
}

/// Whether the processor underneath is QEMU's TCG, which leaves out some checks that processors make: segment
/// limits, alignment, unmasked SIMD exceptions. Its model name may be hidden, so it is known by an error code that
/// it alone gets wrong: the selector error of a missing gate counts 16 bytes to a gate.
pub fn is_tcg() -> bool {
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 2;
    if KNOWN.load(Relaxed) == UNKNOWN {
        KNOWN.store(
            u8::from(missing_gate_error() == u64::from(PROBE) * 16 + 2),
            Relaxed,
        );
    }
    KNOWN.load(Relaxed) == 1
}

/// A vector that no guest uses otherwise.
const PROBE: u8 = 0x7d;

fn missing_gate_error() -> u64 {
    idt::set_gate(PROBE, 0, 0, 0x0e, 0);
    // SAFETY: the interrupt faults, which is caught.
    let fault = idt::catch(|| unsafe { asm!("int {}", const PROBE) });
    idt::reset_gate(PROBE);
    fault.map_or(0, |fault| fault.error)
}

/// Whether bit `bit` of CPUID.1:ECX is set.
pub fn has_1c(bit: u32) -> bool {
    cpuid(1, 0).ecx & 1 << bit != 0
}

/// Whether bit `bit` of CPUID.1:EDX is set.
pub fn has_1d(bit: u32) -> bool {
    cpuid(1, 0).edx & 1 << bit != 0
}

/// Whether bit `bit` of CPUID.7.0:EBX is set.
pub fn has_7b(bit: u32) -> bool {
    cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & 1 << bit != 0
}

/// Whether bit `bit` of CPUID.0x80000001:EDX is set.
pub fn has_extended_d(bit: u32) -> bool {
    cpuid(0x8000_0001, 0).edx & 1 << bit != 0
}

macro_rules! port {
    ($in_name:ident, $out_name:ident, $type:ty, $register:tt, $text:literal) => {
        #[doc = concat!("Reads ", $text, " from a port.")]
        pub fn $in_name(port: u16) -> $type {
            let value;
            // SAFETY: no device of this machine touches memory on a read.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                     options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $text, " to a port.")]
        pub fn $out_name(port: u16, value: $type) {
            // SAFETY: no device of this machine touches memory on a write.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                     options(nostack, preserves_flags));
            }
        }
    };
}
port!(in8, out8, u8, "al", "a byte");
port!(in16, out16, u16, "ax", "two bytes");
port!(in32, out32, u32, "eax", "four bytes");

/// Reads an MSR; #GP if there is none.
pub fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The value must leave the running code valid.
pub unsafe fn wrmsr(number: u32, value: u64) {
    // SAFETY: by this function's contract.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

macro_rules! register {
    ($read:ident, $write:ident, $register:literal) => {
        #[doc = concat!("Reads ", $register, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: a read in ring 0.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $register, ".")]
        ///
        /// # Safety
        /// The value must leave the running code mapped and valid.
        pub unsafe fn $write(value: u64) {
            // SAFETY: by this function's contract.
            unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}
register!(cr0, set_cr0, "cr0");
register!(cr2, set_cr2, "cr2");
register!(cr3, set_cr3, "cr3");
register!(cr4, set_cr4, "cr4");
register!(cr8, set_cr8, "cr8");
register!(dr0, set_dr0, "dr0");
register!(dr1, set_dr1, "dr1");
register!(dr2, set_dr2, "dr2");
register!(dr3, set_dr3, "dr3");
register!(dr6, set_dr6, "dr6");
register!(dr7, set_dr7, "dr7");

/// RDTSC.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: touches no memory.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// RDTSCP: the counter and TSC_AUX.
pub fn rdtscp() -> (u64, u32) {
    let (low, high, aux): (u32, u32, u32);
    // SAFETY: touches no memory.
    unsafe {
        asm!("rdtscp", out("eax") low, out("edx") high, out("ecx") aux,
             options(nostack, preserves_flags));
    }
    (u64::from(high) << 32 | u64::from(low), aux)
}

/// Reads an extended control register; #UD without CR4.OSXSAVE.
pub fn xgetbv(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: touches no memory.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an extended control register; #GP if the value is not allowed.
pub fn xsetbv(index: u32, value: u64) {
    // SAFETY: guests use no extended state but in their own assembly.
    unsafe {
        asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Drops the translation of one page.
pub fn invlpg(address: u64) {
    // SAFETY: dropping a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// RFLAGS.
pub fn rflags() -> u64 {
    let value;
    // SAFETY: uses one word of stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) };
    value
}

/// Lets interrupts in.
///
/// # Safety
/// Handlers for what may come are installed.
pub unsafe fn sti() {
    // SAFETY: by this function's contract. `nop` ends the shadow.
    unsafe { asm!("sti", "nop") };
}

/// Keeps interrupts out.
pub fn cli() {
    // SAFETY: masking interrupts is always allowed.
    unsafe { asm!("cli") };
}

/// Stops for good: nothing can wake the processor.
pub fn halt_forever() {
    // SAFETY: interrupts are off and nothing is pending.
    unsafe { asm!("cli", "hlt") };
}

/// STI; HLT: sleeps until an interrupt.
///
/// # Safety
/// A handler for the interrupt is installed.
pub unsafe fn sti_hlt() {
    // SAFETY: by this function's contract.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Lets interrupts in for a moment; if `wait`, sleeps until one comes.
///
/// # Safety
/// A handler is installed.
pub unsafe fn sti_and_wait(wait: bool) {
    // SAFETY: by this function's contract.
    unsafe {
        if wait {
            sti_hlt();
        } else {
            sti();
        }
    }
    cli();
}

/// Keeps the optimiser from knowing a value.
pub fn opaque<T>(value: T) -> T {
    core::hint::black_box(value)
}
