//! The debug console (port 0xe9) and the exit port (0xf4).

use core::fmt::{self, Write};

use crate::cpu;

/// Debug console: a byte out is a byte printed.
pub const CONSOLE: u16 = 0xe9;
/// A write ends the machine; the value is the status, 0 for success.
pub const EXIT: u16 = 0xf4;

/// The debug console as a writer; it never fails.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            cpu::out8(CONSOLE, byte);
        }
        Ok(())
    }
}

/// Prints formatted text; used by [`println!`](crate::println).
pub fn print(arguments: fmt::Arguments<'_>) {
    if Console.write_fmt(arguments).is_err() {
        exit(98);
    }
}

/// Prints a line to the debug console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Ends the machine with this status.
pub fn exit(status: u32) -> ! {
    cpu::out32(EXIT, status);
    loop {
        cpu::halt_forever();
    }
}
