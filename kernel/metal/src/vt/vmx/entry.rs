//! Into the guest and back: the only assembly of this back end (SDM 3 chapters 28 and 29).
//!
//! Between the two RDTSC instructions lies the same number of host instructions on every path, whether the
//! guest is launched or resumed: `counter` subtracts them. The guest's RSP, RIP and RFLAGS are in the VMCS;
//! its extended state stays in the registers.

use core::arch::naked_asm;
use core::mem::offset_of;

use arch::regs::{Gpr, Gprs};
use arch::vmx::field;

/// What the assembly shares with Rust.
#[repr(C)]
pub struct Frame {
    /// The guest's general registers; RSP is not touched here.
    pub gprs: Gprs,
    /// TSC shortly before the guest's first instruction.
    pub entry_tsc: u64,
    /// TSC shortly behind the exit.
    pub exit_tsc: u64,
    /// The value of the VMCS's host RSP.
    host_rsp: u64,
}

impl Frame {
    /// Registers of zero.
    pub const fn new() -> Self {
        Self {
            gprs: Gprs([0; 16]),
            entry_tsc: 0,
            exit_tsc: 0,
            host_rsp: 0,
        }
    }
}

/// Offset of a general register in [`Frame`].
const fn at(register: Gpr) -> usize {
    offset_of!(Frame, gprs) + register as usize * 8
}

/// Enters the guest of the current VMCS and returns behind its next exit with 0, or with 1 if VMLAUNCH or
/// VMRESUME failed outright.
///
/// # Safety
///
/// VMX operation is on; the current VMCS's host state is this program's, with [`landing`] as RIP; the guest's
/// memory is its own; `frame` is used with this VMCS only. Interrupts are masked.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(frame: *mut Frame, launched: u32) -> u32 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi", // `landing` finds the frame here
        "cmp rsp, [rdi + {host_rsp}]",
        "je 2f",
        "mov [rdi + {host_rsp}], rsp",
        "mov eax, {host_rsp_field}",
        "vmwrite rax, rsp",
        "2:",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rdi + {entry_tsc}], rax",
        "test esi, esi", // decides between VMLAUNCH and VMRESUME; MOV leaves the flags
        "mov rax, [rdi + {rax}]",
        "mov rcx, [rdi + {rcx}]",
        "mov rdx, [rdi + {rdx}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rbp, [rdi + {rbp}]",
        "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + {r8}]",
        "mov r9, [rdi + {r9}]",
        "mov r10, [rdi + {r10}]",
        "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]",
        "mov r13, [rdi + {r13}]",
        "mov r14, [rdi + {r14}]",
        "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "jz 3f",
        "vmresume",
        "jmp 4f",
        "3:",
        "vmlaunch",
        "4:", // only a failed entry comes here; the registers still hold the guest's values
        "pop rdi",
        "mov eax, 1",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        host_rsp = const offset_of!(Frame, host_rsp),
        host_rsp_field = const field::HOST_RSP.0,
        entry_tsc = const offset_of!(Frame, entry_tsc),
        rax = const at(Gpr::Rax),
        rcx = const at(Gpr::Rcx),
        rdx = const at(Gpr::Rdx),
        rbx = const at(Gpr::Rbx),
        rbp = const at(Gpr::Rbp),
        rsi = const at(Gpr::Rsi),
        rdi = const at(Gpr::Rdi),
        r8 = const at(Gpr::R8),
        r9 = const at(Gpr::R9),
        r10 = const at(Gpr::R10),
        r11 = const at(Gpr::R11),
        r12 = const at(Gpr::R12),
        r13 = const at(Gpr::R13),
        r14 = const at(Gpr::R14),
        r15 = const at(Gpr::R15),
    )
}

/// The host RIP of every VMCS: exits arrive here with the stack as [`enter`] left it, and return from it.
/// Never called.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn landing() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + {rax}], rax",
        "mov [rdi + {rdx}], rdx",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rdi + {exit_tsc}], rax",
        "pop rax", // the guest's RDI
        "mov [rdi + {rdi}], rax",
        "mov [rdi + {rcx}], rcx",
        "mov [rdi + {rbx}], rbx",
        "mov [rdi + {rbp}], rbp",
        "mov [rdi + {rsi}], rsi",
        "mov [rdi + {r8}], r8",
        "mov [rdi + {r9}], r9",
        "mov [rdi + {r10}], r10",
        "mov [rdi + {r11}], r11",
        "mov [rdi + {r12}], r12",
        "mov [rdi + {r13}], r13",
        "mov [rdi + {r14}], r14",
        "mov [rdi + {r15}], r15",
        "pop rdi",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        exit_tsc = const offset_of!(Frame, exit_tsc),
        rax = const at(Gpr::Rax),
        rcx = const at(Gpr::Rcx),
        rdx = const at(Gpr::Rdx),
        rbx = const at(Gpr::Rbx),
        rbp = const at(Gpr::Rbp),
        rsi = const at(Gpr::Rsi),
        rdi = const at(Gpr::Rdi),
        r8 = const at(Gpr::R8),
        r9 = const at(Gpr::R9),
        r10 = const at(Gpr::R10),
        r11 = const at(Gpr::R11),
        r12 = const at(Gpr::R12),
        r13 = const at(Gpr::R13),
        r14 = const at(Gpr::R14),
        r15 = const at(Gpr::R15),
    )
}

/// Has the host's own handler for `VECTOR` deal with what ended the guest's run: an NMI or machine check that
/// the exit has consumed. The handler's IRET also ends the blocking of further NMIs.
pub fn raise_on_host<const VECTOR: u8>() {
    // SAFETY: the host's IDT has a handler for every vector, which saves all registers. (The kernel has no
    // red zone, so the interrupt's frame may lie right below RSP.)
    unsafe { core::arch::asm!("int {}", const VECTOR) };
}
