//! The devices of one guest and where they answer.

use alloc::string::String;

use arch::addr::Gpa;
use arch::event::Event;
use devices::all_ones;
use devices::debug_console::{self, DebugConsole};
use devices::test_device::{self, Effect, TestDevice};

use crate::cpu::Icount;
use crate::emulate::Bus;
use crate::host::Host;

/// Accesses to nothing that are noted in the log; all are counted.
const NOTED_UNCLAIMED: u64 = 8;

/// All devices of a guest.
#[derive(Debug)]
pub struct Board {
    guest: String,
    console: DebugConsole,
    test: Option<TestDevice>,
    exit: Option<u32>,
    unclaimed: u64,
}

impl Board {
    /// The devices of the guest named `guest`.
    #[must_use]
    pub fn new(guest: String, test_devices: bool) -> Self {
        Self {
            guest,
            console: DebugConsole::default(),
            test: test_devices.then(TestDevice::default),
            exit: None,
            unclaimed: 0,
        }
    }

    /// The status with which the guest asked to end.
    #[must_use]
    pub fn exit_status(&self) -> Option<u32> {
        self.exit
    }

    /// Accesses to ports and addresses where no device is.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// The next point at which a device wants attention.
    #[must_use]
    pub fn due(&self) -> Option<Icount> {
        self.test.as_ref().and_then(TestDevice::due).map(Icount)
    }

    /// The event that devices hold pending for the processor.
    #[must_use]
    pub fn pending(&self, now: Icount) -> Option<Event> {
        self.test.as_ref().and_then(|t| t.pending(now.0))
    }

    /// The pending event was given to the processor.
    pub fn delivered(&mut self) {
        if let Some(test) = &mut self.test {
            test.delivered();
        }
    }

    /// The processor waits. Whether any event is or has become pending.
    pub fn wait(&mut self, now: Icount) -> bool {
        self.test.as_mut().is_some_and(|t| t.wait(now.0))
    }

    /// Passes on what stands on an unfinished console line.
    pub fn flush(&mut self, host: &mut impl Host) {
        let line = self.console.take();
        if !line.is_empty() {
            host.console_line(&self.guest, line);
        }
    }

    /// The board as a bus for an instruction that retires as number `now`.
    pub fn bus<'a, H: Host>(&'a mut self, host: &'a mut H, now: Icount) -> BoardBus<'a, H> {
        BoardBus {
            board: self,
            host,
            now,
        }
    }

    fn note_unclaimed(&mut self, what: core::fmt::Arguments<'_>) {
        self.unclaimed = self.unclaimed.saturating_add(1);
        if self.unclaimed <= NOTED_UNCLAIMED {
            log::debug!("vm {}: no device at {what}", self.guest);
        }
    }
}

/// The board while one instruction is executed.
pub struct BoardBus<'a, H: Host> {
    board: &'a mut Board,
    host: &'a mut H,
    now: Icount,
}

impl<H: Host> BoardBus<'_, H> {
    fn scratch_offset(gpa: Gpa) -> Option<u64> {
        use test_device::spec::{SCRATCH, SCRATCH_BYTES};
        gpa.0
            .checked_sub(SCRATCH)
            .filter(|offset| *offset < SCRATCH_BYTES as u64)
    }
}

impl<H: Host> Bus for BoardBus<'_, H> {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        if let (Some(test), Some(offset)) = (&self.board.test, Self::scratch_offset(gpa)) {
            return test.read_scratch(offset, size);
        }
        self.board
            .note_unclaimed(format_args!("guest physical {:#x} (read {size})", gpa.0));
        all_ones(size)
    }

    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if let (Some(test), Some(offset)) = (&mut self.board.test, Self::scratch_offset(gpa)) {
            test.write_scratch(offset, size, value);
            return;
        }
        self.board
            .note_unclaimed(format_args!("guest physical {:#x} (write {size})", gpa.0));
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        if port == debug_console::spec::PORT {
            return all_ones(size) as u32 & !0xff | u32::from(debug_console::spec::SIGNATURE);
        }
        if let Some(value) = self.board.test.as_ref().and_then(|t| t.read_port(port)) {
            return value & all_ones(size) as u32;
        }
        self.board
            .note_unclaimed(format_args!("port {port:#x} (read {size})"));
        all_ones(size) as u32
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        let value = value & all_ones(size) as u32;
        if port == debug_console::spec::PORT {
            if let Some(line) = self.board.console.write(value as u8) {
                self.host.console_line(&self.board.guest, line);
            }
            return;
        }
        let now = self.now.0;
        match self
            .board
            .test
            .as_mut()
            .and_then(|t| t.write_port(now, port, value))
        {
            Some(Effect::Exit(status)) => self.board.exit = Some(status),
            Some(Effect::None) => {}
            None => self
                .board
                .note_unclaimed(format_args!("port {port:#x} (write {size})")),
        }
    }
}
