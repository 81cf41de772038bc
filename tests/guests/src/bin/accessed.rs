//! Reads accessed bits back that it has cleared without a flush: the known limit of replaying.
//!
//! Whether the bit is set again depends on whether the processor has kept the translation, which an exit that the guest
//! knows nothing of may end. Two runs of this guest are not the same, and the report has to say why (docs/determinism.md).
//! Linux does this when it looks for pages to swap out.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // a kernel: it writes to its page tables

use core::arch::asm;

use guests::racy::{Page, Racy};
use guests::{check, paging};

static TARGET: Racy<[Page; 1]> = Racy::new([Page::ZERO; 1]);

const ROUNDS: u32 = 3000;
/// Turns of a loop between an access and the next one.
const SPIN: u64 = 300;

fn run() {
    let at = TARGET.address();
    let entry = paging::entry(at, 1);
    let mut again = 0;
    for _ in 0..ROUNDS {
        let read: u64;
        // SAFETY: the page and its entry are this guest's; the entry goes on mapping the page.
        unsafe {
            asm!(
                "mov rax, [rdi]",
                "and qword ptr [rsi], -33",
                "2: dec r9",
                "jnz 2b",
                "mov rax, [rdi]",
                "mov r8, [rsi]",
                // An exit, at which the registers are compared.
                "push rbx", "xor eax, eax", "cpuid", "pop rbx",
                in("rdi") at, in("rsi") entry, inout("r9") SPIN => _,
                out("r8") read, out("rax") _, out("rcx") _, out("rdx") _,
            );
        }
        again += u64::from(read & paging::A != 0);
    }
    check::that(
        "accessed bits were set again",
        again <= u64::from(ROUNDS),
        again,
    );
    check::finish();
}

guests::main!(run);
