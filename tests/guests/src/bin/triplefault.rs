//! Ends with a triple fault: an empty interrupt table and an exception.
//!
//! Broken by: a host that takes the guest's shutdown for its own, or runs the guest on.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::{check, idt, println};

guests::main!(run);

fn run() {
    println!("about to triple fault");
    // SAFETY: the point of this guest.
    unsafe {
        idt::load_from(0, 0);
        core::arch::asm!("ud2");
    }
    check::fail("triple fault", format_args!("still running"));
}
