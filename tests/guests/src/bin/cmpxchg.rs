//! What a comparing exchange of two words leaves in RFLAGS: ZF, and nothing else changes.
//!
//! Broken by: a processor that takes the other flags from an instruction long past, as the emulators' translations do, so
//! that they depend on where the guest was stopped last. Linux's allocator does this at every allocation.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // a kernel: it executes the instructions it is about

use core::arch::asm;

use guests::check::{self, equal};
use guests::cpu;
use guests::racy::{Page, Racy};

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
const PF: u64 = 1 << 2;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;

static PAIR: Racy<[Page; 1]> = Racy::new([Page::ZERO; 1]);

/// Runs a comparing exchange that succeeds, behind a comparison that sets CF in a block by itself and an OR that sets
/// SF and PF and clears the rest. Returns the flags.
macro_rules! flags_behind {
    ($exchange:literal) => {{
        let flags: u64;
        // SAFETY: it exchanges zeros for zeros in memory that nothing else uses.
        unsafe {
            asm!(
                "push rbx",
                "xor eax, eax", "xor edx, edx", "xor ebx, ebx", "xor ecx, ecx",
                "cmp eax, 2",
                "jmp 2f",
                "2:",
                "or r8, -1",
                $exchange,
                "pushfq",
                "pop r9",
                "pop rbx",
                in("rdi") PAIR.address(), out("rax") _, out("rdx") _, out("rcx") _, out("r8") _, out("r9") flags,
            );
        }
        flags & ARITHMETIC & !(1 << 4)
    }};
}

fn run() {
    const CX16: u32 = 13;
    if cpu::has_1c(CX16) {
        equal(
            "flags behind CMPXCHG16B",
            flags_behind!("cmpxchg16b [rdi]"),
            SF | ZF | PF,
        );
    } else {
        check::skip("flags behind CMPXCHG16B", "not there");
    }
    if cpu::is_tcg() {
        check::skip(
            "flags behind CMPXCHG8B",
            "QEMU takes them from an instruction long past",
        );
    } else {
        equal(
            "flags behind CMPXCHG8B",
            flags_behind!("cmpxchg8b [rdi]"),
            SF | ZF | PF,
        );
    }
}

guests::main!(run);
