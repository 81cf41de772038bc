//! The end of a run that went wrong: say what happened, then stop for good.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::interrupts::Frame;
use crate::logger::Line;
use crate::{power, serial, x86};

static PANICKING: AtomicBool = AtomicBool::new(false);

/// Writes one line past any lock.
pub fn line(text: core::fmt::Arguments<'_>) {
    let mut line = Line::new();
    if line.write_fmt(text).is_ok() {
        serial::write_in_panic(line.finish());
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86::cli();
    if PANICKING.swap(true, Ordering::SeqCst) {
        serial::write_in_panic(b"panic: again while reporting a panic\r\n");
    } else {
        line(format_args!("duet: panic: {info}"));
    }
    power::end(power::Outcome::Panic)
}

/// An exception of the host: dumps the registers and stops.
pub fn on_exception(frame: &Frame) -> ! {
    panic!(
        "exception {} error {:#x} at {:#x}, rsp {:#x}, cr2 {:#x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        x86::cr2()
    )
}
