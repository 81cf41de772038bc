//! The runtime that the test guests share: what is needed to get from the first instruction to a
//! check in a few lines, and nothing that only one guest uses.
//!
//! A guest is a kernel that examines the machine it runs on. It prints one line per check to the
//! debug console (port 0xe9), `ok name`, `FAIL name: got … want …` or `skip name: why`, and ends with
//! a write of the number of failures to port 0xf4. The same guests run on a bare emulator, where
//! they must pass too: that shows that what they expect is what a processor does.
//!
//! Guests run with one processor, identity-mapped, and mostly with interrupts off. Statics are
//! plain atomics or `Racy` cells; an interrupt handler is the only thing that can run in between.

#![no_std]
#![allow(unsafe_code)]

pub mod boot;
pub mod check;
pub mod command_line;
pub mod console;
pub mod cpu;
pub mod gdt;
pub mod generator;
pub mod idt;
pub mod multiboot;
pub mod paging;
pub mod racy;
pub mod random;
pub mod sandbox;
pub mod scratch;
pub mod state;
pub mod user;

use core::panic::PanicInfo;

/// Defines the guest's entry: `main!(run);` where `run` is `fn()`. When it returns, the guest
/// exits with the number of failed checks.
#[macro_export]
macro_rules! main {
    ($run:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $run();
            $crate::check::finish()
        }
    };
}

/// Defines a function of machine code: `snippet!(name, [before…], [at…]);`. `name` is callable,
/// `name_at` is the address of the first instruction of the second list, whose fault is expected. A `ret` is
/// appended.
#[macro_export]
macro_rules! snippet {
    ($name:ident, $at:ident, [$($before:literal),* $(,)?], [$($code:literal),+ $(,)?]) => {
        core::arch::global_asm!(
            ".pushsection .text",
            concat!(".global ", stringify!($name)),
            concat!(".global ", stringify!($at)),
            concat!(stringify!($name), ":"),
            $($before,)*
            concat!(stringify!($at), ":"),
            $($code,)+
            "ret",
            ".popsection",
        );
        unsafe extern "C" {
            fn $name();
            fn $at();
        }
    };
}

/// Status of a guest that panicked.
const PANICKED: u32 = 99;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAIL panic: {info}");
    console::exit(PANICKED)
}
