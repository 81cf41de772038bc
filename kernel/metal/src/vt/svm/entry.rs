//! The way into the guest and back: the only code that runs with the guest's registers.
//!
//! Nothing here may change without looking at `counter`: the number of instructions between the two reads of the
//! time-stamp counter, and between the write of the timer and VMRUN, are constants that are calibrated at start.

use core::arch::naked_asm;
use core::mem::offset_of;

use arch::msr;
use arch::regs::Gprs;
use arch::svm::vmcb::{OFFSET_RAX, OFFSET_RSP};

/// What the entry code reads and writes.
#[derive(Debug)]
#[repr(C)]
pub(super) struct EntryBlock {
    /// Physical address of the guest's control block.
    pub(super) guest: u64,
    /// The same block, mapped.
    pub(super) guest_mapped: u64,
    /// Physical address of the page that holds the host's FS, GS, TR, LDTR and system-call registers meanwhile.
    pub(super) host: u64,
    /// The LAPIC's initial-count register, mapped; 0: x2APIC mode, where it is an MSR.
    pub(super) timer_register: u64,
    /// What to write to it; at least 1.
    pub(super) timer_ticks: u64,
    /// Time-stamp counter before the entry.
    pub(super) tsc_entry: u64,
    /// Time-stamp counter after the exit.
    pub(super) tsc_exit: u64,
    /// The guest's registers, RAX and RSP included.
    pub(super) gprs: Gprs,
}

const GPR: usize = offset_of!(EntryBlock, gprs);
/// MSR of the LAPIC timer's initial count in x2APIC mode (SDM 3 12.12.1).
const X2APIC_TIMER_INITIAL: u32 = msr::X2APIC_BASE + 0x38;

/// Runs the guest until its next exit, then takes pending host interrupts.
///
/// From CLGI to STGI no interrupt and no NMI is taken, so the two reads of the time-stamp counter see the guest and
/// a fixed path only. VMRUN keeps the IF = 1 that STI set here as the host's, which is what makes physical
/// interrupts leave the guest (V_INTR_MASKING, APM 2 15.21.1). The timer is stopped before STGI, so that
/// behind the CLI nothing of it is pending; NOP is the boundary at which what came meanwhile is taken.
///
/// # Safety
///
/// SVM is on, VM_HSAVE_PA is set; all addresses in `block` are those of live pages that nothing else
/// accesses now; the control block intercepts everything that could reach the host. Interrupts are masked.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(block: *mut EntryBlock) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "clgi",
        "sti",
        // Guest RAX and RSP travel in the control block.
        "mov r8, [rdi + {guest_mapped}]",
        "mov rax, [rdi + {gpr} + 0]",
        "mov [r8 + {vmcb_rax}], rax",
        "mov rax, [rdi + {gpr} + 32]",
        "mov [r8 + {vmcb_rsp}], rax",
        "mov rax, [rdi + {host}]",
        "vmsave rax",
        "mov rsi, [rdi + {timer_register}]",
        "mov r9, [rdi + {timer_ticks}]",
        "rdtsc",
        "mov [rdi + {tsc_entry}], eax",
        "mov [rdi + {tsc_entry} + 4], edx",
        "test rsi, rsi",
        "jz 5f",
        "mov [rsi], r9d",
        "2:",
        "mov rax, [rdi + {guest}]",
        "vmload rax",
        "mov rcx, [rdi + {gpr} + 8]",
        "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]",
        "mov rbp, [rdi + {gpr} + 40]",
        "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]",
        "mov r9, [rdi + {gpr} + 72]",
        "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]",
        "mov r12, [rdi + {gpr} + 96]",
        "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]",
        "mov r15, [rdi + {gpr} + 120]",
        "mov rdi, [rdi + {gpr} + 56]",
        "vmrun rax",
        // RAX is the host's again, RSP too.
        "vmsave rax",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + {gpr} + 8], rcx",
        "mov [rdi + {gpr} + 16], rdx",
        "rdtsc",
        "mov [rdi + {tsc_exit}], eax",
        "mov [rdi + {tsc_exit} + 4], edx",
        "mov [rdi + {gpr} + 24], rbx",
        "mov [rdi + {gpr} + 40], rbp",
        "mov [rdi + {gpr} + 48], rsi",
        "pop [rdi + {gpr} + 56]",
        "mov [rdi + {gpr} + 64], r8",
        "mov [rdi + {gpr} + 72], r9",
        "mov [rdi + {gpr} + 80], r10",
        "mov [rdi + {gpr} + 88], r11",
        "mov [rdi + {gpr} + 96], r12",
        "mov [rdi + {gpr} + 104], r13",
        "mov [rdi + {gpr} + 112], r14",
        "mov [rdi + {gpr} + 120], r15",
        "mov rax, [rdi + {host}]",
        "vmload rax",
        "mov r8, [rdi + {guest_mapped}]",
        "mov rax, [r8 + {vmcb_rax}]",
        "mov [rdi + {gpr} + 0], rax",
        "mov rax, [r8 + {vmcb_rsp}]",
        "mov [rdi + {gpr} + 32], rax",
        "mov rsi, [rdi + {timer_register}]",
        "test rsi, rsi",
        "jz 6f",
        "mov dword ptr [rsi], 0",
        "3:",
        "stgi",
        "nop",
        "cli",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        // The timer in x2APIC mode.
        "5:",
        "mov ecx, {timer_msr}",
        "mov eax, r9d",
        "xor edx, edx",
        "wrmsr",
        "jmp 2b",
        "6:",
        "mov ecx, {timer_msr}",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "jmp 3b",
        guest = const offset_of!(EntryBlock, guest),
        guest_mapped = const offset_of!(EntryBlock, guest_mapped),
        host = const offset_of!(EntryBlock, host),
        timer_register = const offset_of!(EntryBlock, timer_register),
        timer_ticks = const offset_of!(EntryBlock, timer_ticks),
        tsc_entry = const offset_of!(EntryBlock, tsc_entry),
        tsc_exit = const offset_of!(EntryBlock, tsc_exit),
        gpr = const GPR,
        vmcb_rax = const OFFSET_RAX,
        vmcb_rsp = const OFFSET_RSP,
        timer_msr = const X2APIC_TIMER_INITIAL,
    )
}

/// Drops the translations of one page of an address space (APM 2 15.16.3).
pub(super) fn invalidate(gva: u64, asid: u32) {
    // SAFETY: SVM is on whenever a guest processor exists; the translations are a guest's, not the host's,
    // since `asid` is never 0.
    unsafe {
        core::arch::asm!("invlpga rax, ecx", in("rax") gva, in("ecx") asid,
            options(nostack, preserves_flags));
    }
}
