//! Ring 3: a stack, user pages for code, and the way there and back by IRET and INT 0x80.

use core::arch::global_asm;

use crate::gdt;
use crate::idt::{self, Fault, Frame};
use crate::paging::{self, P, U, W};
use crate::racy::{Page, Racy};

static STACK: Racy<[Page; 2]> = Racy::new([Page::ZERO; 2]);
static RESULT: Racy<Option<u64>> = Racy::new(None);

/// The system call that ends user code; the result is in RAX.
pub const RETURN_VECTOR: u8 = 0x80;

global_asm!(
    ".pushsection .text",
    ".global enter_user",
    // enter_user(entry, argument, stack, code selector, data selector, flags)
    "enter_user:",
    "push r8",
    "push rdx",
    "push r9",
    "push rcx",
    "push rdi",
    "mov rdi, rsi",
    "iretq",
    ".popsection",
);

unsafe extern "C" {
    fn enter_user(entry: u64, argument: u64, stack: u64, code: u64, data: u64, flags: u64);
}

/// Lets ring 3 use the pages that hold `address`.
pub fn share(address: u64, bytes: u64) {
    let mut page = address & !0xfff;
    while page < address + bytes {
        paging::protect(page, P | W | U);
        page += 4096;
    }
}

/// Top of the user stack, shared.
pub fn stack() -> u64 {
    share(STACK.address(), 8192);
    STACK.address() + 8192
}

fn on_return(frame: &mut Frame) {
    // SAFETY: the main flow is interrupted.
    unsafe { RESULT.get().write(Some(frame.rax)) };
    idt::abandon(frame);
}

/// Runs 64-bit code in ring 3 until it executes INT 0x80: RAX, or the fault that ended it.
///
/// # Errors
/// The fault.
pub fn run(entry: u64, argument: u64) -> Result<u64, Fault> {
    run_with(entry, argument, gdt::USER_CODE64, 2)
}

/// As [`run`], with a code selector and flags.
///
/// # Errors
/// The fault.
pub fn run_with(entry: u64, argument: u64, code: u16, flags: u64) -> Result<u64, Fault> {
    share(entry, 64);
    enter(entry, argument, code, flags)
}

/// As [`run_with`], for code that ring 3 can reach already.
///
/// # Errors
/// The fault.
pub fn enter(entry: u64, argument: u64, code: u16, flags: u64) -> Result<u64, Fault> {
    let stack = stack();
    idt::hook(RETURN_VECTOR, Some(on_return));
    idt::set_gate(
        RETURN_VECTOR,
        idt::stub(RETURN_VECTOR),
        gdt::CODE64,
        idt::USER_GATE,
        0,
    );
    // SAFETY: no handler runs.
    unsafe { RESULT.get().write(None) };
    let fault = idt::catch(|| {
        // SAFETY: user code can touch what is shared only.
        unsafe {
            enter_user(
                entry,
                argument,
                stack,
                u64::from(code),
                u64::from(gdt::USER_DATA),
                flags,
            );
        }
    });
    // SAFETY: a copy; handlers have returned.
    match (unsafe { RESULT.get().read_volatile() }, fault) {
        (Some(value), _) => Ok(value),
        (None, Some(fault)) => Err(fault),
        (None, None) => Ok(0),
    }
}
