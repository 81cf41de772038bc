//! How a run of the host ends.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::{serial, x86};

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guest ended well.
    Success,
    /// A guest or the start failed.
    Failure,
    /// Duet itself failed.
    Panic,
}

/// An emulator that can be told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EmulatorExit {
    /// There is none.
    None = 0,
    /// QEMU's `isa-debug-exit` at port 0xf4.
    Qemu = 1,
    /// Bochs's shutdown port 0x8900.
    Bochs = 2,
}

/// As configured; until then, what the processor says it is.
static EMULATOR: AtomicU8 = AtomicU8::new(0);

/// Sets which emulator is told to end.
pub fn set_emulator_exit(emulator: EmulatorExit) {
    EMULATOR.store(emulator as u8, Ordering::Relaxed);
}

/// Ends the run.
pub fn end(outcome: Outcome) -> ! {
    serial::drain();
    // SAFETY: these ports belong to the emulator that the configuration names.
    unsafe {
        match EMULATOR.load(Ordering::Relaxed) {
            1 => x86::outl(
                0xf4,
                match outcome {
                    Outcome::Success => 0x10,
                    Outcome::Failure => 0x11,
                    Outcome::Panic => 0x12,
                },
            ),
            2 => {
                let text: &[u8] = if outcome == Outcome::Success {
                    b"D"
                } else {
                    b"Shutdown"
                };
                for byte in text {
                    x86::outb(0x8900, *byte);
                }
            }
            _ => {}
        }
    }
    x86::halt()
}

/// Says why the host cannot go on and ends the run.
pub fn fail(reason: core::fmt::Arguments<'_>) -> ! {
    log::error!("{reason}");
    end(Outcome::Failure)
}
