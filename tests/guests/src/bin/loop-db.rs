//! Never ends: a data breakpoint on the stack word that the delivery of #DB writes, so that each delivery
//! causes the next (CVE-2015-8104). Where the processor does not loop, the handler does.
//!
//! Command line: `watch=0` leaves the breakpoints out and only single-steps; QEMU's TCG aborts with them, on
//! whatever machine.
//!
//! Broken by: a host that cannot leave the guest because the processor delivers events for ever.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};

use guests::racy::{Page, Racy};
use guests::{command_line, cpu, gdt, idt, println};

static STACK: Racy<Page> = Racy::new(Page::ZERO);

global_asm!(".global return_for_ever", "return_for_ever:", "iretq",);

unsafe extern "C" {
    fn return_for_ever();
}

guests::main!(run);

fn run() {
    println!("looping in #DB");
    // SAFETY: the point of this guest; the gate's handler is IRET alone, on interrupt stack 3.
    unsafe {
        let top = STACK.address() + 4096;
        (*gdt::task()).ist[2] = top;
        idt::set_gate(
            1,
            return_for_ever as *const () as u64,
            gdt::CODE64,
            idt::INTERRUPT_GATE,
            3,
        );
        cpu::set_dr0(top - 8);
        cpu::set_dr1(top - 40);
        // Writes of 8 bytes, both.
        if command_line::number("watch", 1) != 0 {
            cpu::set_dr7(0x400 | 0xa | 9 << 16 | 9 << 20);
        }
        asm!(
            "pushfq",
            "or dword ptr [rsp], 0x100",
            "popfq",
            "3: jmp 3b",
            options(noreturn)
        );
    }
}
