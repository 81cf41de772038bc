//! How a run of the host ends: emulator, machine, or just this processor.

use core::fmt::Arguments;
use core::sync::atomic::{AtomicU8, Ordering};

use spin::Once;
use vmm::config::EmulatorExit;

use crate::acpi::PowerOff;
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

impl Outcome {
    /// Success or failure.
    pub const fn of(success: bool) -> Self {
        if success {
            Self::Success
        } else {
            Self::Failure
        }
    }

    /// The worse of two.
    pub const fn and(self, other: Self) -> Self {
        match self {
            Self::Success => other,
            worse => worse,
        }
    }
}

/// An [`EmulatorExit`].
static EMULATOR: AtomicU8 = AtomicU8::new(EmulatorExit::None as u8);
static POWER_OFF: Once<PowerOff> = Once::new();

/// Polls of the PM1 control register for the firmware to hand it over.
const ENABLE_POLLS: u32 = 100_000;

/// Sets which emulator is told to end.
pub fn set_emulator_exit(emulator: EmulatorExit) {
    EMULATOR.store(emulator as u8, Ordering::Relaxed);
}

/// Sets how the machine is switched off.
pub fn set_power_off(how: PowerOff) {
    POWER_OFF.call_once(|| how);
}

fn end_emulator(outcome: Outcome) {
    let emulator = EMULATOR.load(Ordering::Relaxed);
    // SAFETY: the configuration says that these ports belong to the emulator's exit device.
    unsafe {
        if emulator == EmulatorExit::Qemu as u8 {
            let code = match outcome {
                Outcome::Success => 0x10,
                Outcome::Failure => 0x11,
                Outcome::Panic => 0x12,
            };
            x86::outl(0xf4, code);
        } else if emulator == EmulatorExit::Bochs as u8 {
            let text: &[u8] = if outcome == Outcome::Success {
                b"D"
            } else {
                b"Shutdown"
            };
            for byte in text {
                x86::outb(0x8900, *byte);
            }
        }
    }
}

/// Enters ACPI state S5 (ACPI 6.4, 7.4.2, 16.1.7).
fn switch_off(how: &PowerOff) {
    const SCI_ENABLE: u16 = 1 << 0;
    const SLEEP_ENABLE: u16 = 1 << 13;
    const SLEEP_TYPE_SHIFT: u32 = 10;
    const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    // SAFETY: the ACPI tables say that these are the PM1 control registers and the hand-over port.
    unsafe {
        if let Some((port, value)) = how.enable
            && x86::inw(how.pm1a) & SCI_ENABLE == 0
        {
            x86::outb(port, value);
            for _ in 0..ENABLE_POLLS {
                if x86::inw(how.pm1a) & SCI_ENABLE != 0 {
                    break;
                }
            }
        }
        let sleep = |port: u16, kind: u8| {
            let other = x86::inw(port) & !(SLEEP_TYPE | SLEEP_ENABLE);
            x86::outw(
                port,
                other | u16::from(kind) << SLEEP_TYPE_SHIFT | SLEEP_ENABLE,
            );
        };
        sleep(how.pm1a, how.types.a);
        if let Some(pm1b) = how.pm1b {
            sleep(pm1b, how.types.b);
        }
    }
}

/// Ends the run: tells the emulator, else switches the machine off, else stops the processor. After a panic
/// the machine stays on, so that the report stays readable.
pub fn end(outcome: Outcome) -> ! {
    serial::drain();
    end_emulator(outcome);
    if outcome != Outcome::Panic
        && let Some(how) = POWER_OFF.get()
    {
        switch_off(how);
    }
    x86::halt()
}

/// Ends the run and leaves the machine on; an emulator is told to end.
pub fn stay(outcome: Outcome) -> ! {
    serial::drain();
    end_emulator(outcome);
    x86::halt()
}

/// Says why the host cannot go on and ends the run.
pub fn fail(reason: Arguments<'_>) -> ! {
    log::error!("{reason}");
    log::error!("the host cannot start");
    end(Outcome::Failure)
}
