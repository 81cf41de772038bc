//! Single instructions as functions: model-specific registers, control registers, ports, CPUID.
//!
//! No policy and no state. A function is `unsafe` when its effect can break memory safety, however short
//! it is. SIMD and x87 instructions are not here but in `fpu`.

use core::arch::asm;

pub use core::arch::x86_64::CpuidResult;

/// CPUID with a leaf in EAX and a sub-leaf in ECX.
#[inline]
pub fn cpuid(leaf: u32, sub: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, sub)
}

/// The highest basic leaf for `class` 0, the highest extended leaf for `class` 0x8000_0000.
#[inline]
pub fn cpuid_max(class: u32) -> u32 {
    cpuid(class, 0).eax
}

/// Time-stamp counter, in ticks. Not ordered against the instructions around it.
#[inline]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC reads a counter; CR4.TSD does not apply at privilege level 0.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads a model-specific register.
///
/// # Safety
///
/// The register exists on this processor: otherwise the processor raises #GP, which ends the run.
#[inline]
pub unsafe fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for the register; reading has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The register exists, the value is valid for it, and its effect keeps this program's view of memory.
#[inline]
pub unsafe fn wrmsr(number: u32, value: u64) {
    // SAFETY: the caller vouches for register and value.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

macro_rules! read_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        #[inline]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading a register has no effect on memory.
            unsafe {
                asm!(concat!("mov {}, ", $register), out(reg) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

macro_rules! write_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        #[inline]
        pub unsafe fn $name(value: u64) {
            // SAFETY: the caller vouches for the value.
            unsafe {
                asm!(concat!("mov ", $register, ", {}"), in(reg) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

read_register!(
    /// Reads CR0.
    cr0, "cr0");
read_register!(
    /// Reads CR2, the linear address of the last page fault.
    cr2, "cr2");
read_register!(
    /// Reads CR3.
    cr3, "cr3");
read_register!(
    /// Reads CR4.
    cr4, "cr4");
read_register!(
    /// Reads DR0.
    dr0, "dr0");
read_register!(
    /// Reads DR1.
    dr1, "dr1");
read_register!(
    /// Reads DR2.
    dr2, "dr2");
read_register!(
    /// Reads DR3.
    dr3, "dr3");
read_register!(
    /// Reads DR6.
    dr6, "dr6");
read_register!(
    /// Reads DR7.
    dr7, "dr7");
read_register!(
    /// Reads the frame pointer.
    rbp, "rbp");
read_register!(
    /// Reads the stack pointer.
    rsp, "rsp");

write_register!(
    /// Writes CR0.
    ///
    /// # Safety
    ///
    /// The value keeps long mode, paging and write protection, and is valid (SDM 3 2.5).
    set_cr0, "cr0");
write_register!(
    /// Writes CR2.
    ///
    /// # Safety
    ///
    /// No page fault is being handled whose address is still wanted.
    set_cr2, "cr2");
write_register!(
    /// Writes CR4.
    ///
    /// # Safety
    ///
    /// The value keeps PAE and is valid on this processor (SDM 3 2.5).
    set_cr4, "cr4");
write_register!(
    /// Writes DR0.
    ///
    /// # Safety
    ///
    /// An enabled breakpoint at the address is meant to be taken.
    set_dr0, "dr0");
write_register!(
    /// Writes DR1.
    ///
    /// # Safety
    ///
    /// As [`set_dr0`].
    set_dr1, "dr1");
write_register!(
    /// Writes DR2.
    ///
    /// # Safety
    ///
    /// As [`set_dr0`].
    set_dr2, "dr2");
write_register!(
    /// Writes DR3.
    ///
    /// # Safety
    ///
    /// As [`set_dr0`].
    set_dr3, "dr3");
write_register!(
    /// Writes DR6.
    ///
    /// # Safety
    ///
    /// The upper half is zero.
    set_dr6, "dr6");

/// Reads RFLAGS.
#[inline]
pub fn rflags() -> u64 {
    let value: u64;
    // SAFETY: pushes and pops one word on the stack, which the compiler is told of (no `nostack`).
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(nomem, preserves_flags)) };
    value
}

/// Masks interrupts.
#[inline]
pub fn cli() {
    // SAFETY: masking interrupts cannot break memory safety.
    unsafe { asm!("cli", options(nostack)) };
}

/// Takes what is pending, for three instructions, and masks interrupts again.
#[inline]
pub fn interrupt_window() {
    // SAFETY: the handlers of this program save all registers and touch only atomics of their own. The
    // two instructions behind STI's shadow give the processor a boundary to take an interrupt at.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Stops the processor until an interrupt comes, and takes it.
pub fn wait_for_interrupt() {
    // SAFETY: as in `interrupt_window`; STI's shadow covers HLT, so no interrupt can slip in between.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// A hint for a loop that waits.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts masked the processor just stops; an NMI handler returns here.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

macro_rules! port {
    ($input:ident, $output:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        ///
        /// # Safety
        ///
        /// Reading this port has no effect on memory that this program uses.
        #[inline]
        pub unsafe fn $input(port: u16) -> $type {
            let value: $type;
            // SAFETY: the caller vouches for the port.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }

        /// Writes a port.
        ///
        /// # Safety
        ///
        /// What the device does keeps this program's view of memory.
        #[inline]
        pub unsafe fn $output(port: u16, value: $type) {
            // SAFETY: the caller vouches for port and value.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

/// Fills `to` from a 16-bit data port.
///
/// # Safety
///
/// As [`inw`].
pub unsafe fn insw(port: u16, to: &mut [u16]) {
    // SAFETY: the caller vouches for the port; RDI and RCX describe exactly `to`; the direction flag is
    // clear by the ABI.
    unsafe {
        asm!("rep insw", in("dx") port, inout("rdi") to.as_mut_ptr() => _, inout("rcx") to.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Fills `to` from a 32-bit data port.
///
/// # Safety
///
/// As [`inl`].
pub unsafe fn insl(port: u16, to: &mut [u32]) {
    // SAFETY: as in `insw`.
    unsafe {
        asm!("rep insd", in("dx") port, inout("rdi") to.as_mut_ptr() => _, inout("rcx") to.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Writes `from` to a 32-bit data port.
///
/// # Safety
///
/// As [`outl`].
pub unsafe fn outsl(port: u16, from: &[u32]) {
    // SAFETY: the caller vouches for the port; RSI and RCX describe exactly `from`; the direction flag is
    // clear by the ABI.
    unsafe {
        asm!("rep outsd", in("dx") port, inout("rsi") from.as_ptr() => _, inout("rcx") from.len() => _,
            options(nostack, preserves_flags, readonly));
    }
}

/// A word of the processor's entropy source; none if it has none ready. Only where CPUID shows RDSEED.
pub fn rdseed() -> Option<u64> {
    let (value, ready): (u64, u8);
    // SAFETY: RDSEED changes nothing but its destination and the flags.
    unsafe {
        asm!("rdseed {}", "setc {}", out(reg) value, out(reg_byte) ready, options(nomem, nostack))
    };
    (ready != 0).then_some(value)
}
