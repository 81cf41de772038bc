//! Ends with HLT, interrupts on and nothing that could wake it.
//!
//! Broken by: a host that waits for ever, or skips HLT.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::{check, cpu, println};

guests::main!(run);

fn run() {
    println!("about to halt");
    // SAFETY: nothing raises an interrupt.
    unsafe { cpu::sti_hlt() };
    check::fail("halt", format_args!("still running"));
}
