//! The devices of one guest and where they answer: the chips of a PC, or those that test guests need.

use alloc::boxed::Box;
use alloc::string::String;

use arch::addr::Gpa;
use arch::event::{Event, EventKind};
use arch::msr;
use devices::all_ones;
use devices::chipset::{self, Chipset, Serial};
use devices::debug_console::{self, DebugConsole};
use devices::lapic::GeneralProtection;
use devices::test_device::{self, TestDevice};
use devices::time::GuestTime;
use devices::virtio;
use devices::virtio::net::Net;

use crate::cpu::{Icount, Window};
use crate::emulate::Bus;
use crate::host::Host;
use crate::log::MAX_DATA;
use crate::memory::GuestMemory;
use crate::nondet::Door;

/// No card has frames that an entry of the log cannot carry.
const _: () = {
    use virtio::net::spec::{ETHERNET_BYTES, MAX_MTU, VLAN_BYTES};
    assert!(MAX_MTU as usize + (ETHERNET_BYTES + VLAN_BYTES) as usize <= MAX_DATA);
};

/// Accesses to nothing that are noted in the log; all are counted.
const NOTED_UNCLAIMED: u64 = 8;

/// Which devices a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Those of test guests.
    Test,
    /// The chips of a PC.
    Pc {
        /// What they are told at power-on.
        chips: chipset::Config,
        /// COM1 is passed on byte by byte, not line by line.
        serial: bool,
        /// The debug console at port 0xe9 and the exit port are there too.
        test_ports: bool,
    },
}

/// What the guest wants of its machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To end, with this status.
    Exit(u32),
    /// To be switched off.
    PowerOff,
    /// To be started again.
    Reset,
}

/// What waits for the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// A maskable one above the processor's priority.
    pub interrupt: bool,
}

impl Pending {
    /// Whether anything that this window is for waits.
    #[must_use]
    pub const fn includes(self, window: Window) -> bool {
        match window {
            Window::Nmi => self.nmi,
            Window::Interrupt => self.interrupt,
        }
    }
}

/// All devices of a guest.
#[derive(Debug)]
pub struct Board {
    guest: String,
    /// The lines of COM1 or the debug port, of COM2, and of the virtio console.
    lines: [DebugConsole; 3],
    serial: bool,
    test_ports: bool,
    test: Option<TestDevice>,
    chipset: Option<Box<Chipset>>,
    /// CR8 of a machine without a local APIC.
    task_priority: u8,
    request: Option<Request>,
    unclaimed: u64,
}

impl Board {
    /// The devices of the guest named `guest`.
    #[must_use]
    pub fn new(guest: String, kind: &Kind) -> Self {
        let (chipset, serial, test_ports) = match kind {
            Kind::Pc {
                chips,
                serial,
                test_ports,
            } => (Some(Box::new(Chipset::new(chips))), *serial, *test_ports),
            Kind::Test => (None, false, true),
        };
        Self {
            guest,
            lines: <[DebugConsole; 3]>::default(),
            serial,
            test_ports,
            test: (*kind == Kind::Test).then(TestDevice::default),
            chipset,
            task_priority: 0,
            request: None,
            unclaimed: 0,
        }
    }

    /// What the guest asked for since the last reset.
    #[inline]
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        self.request
    }

    /// Accesses to ports and addresses where no device is.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    // Time.

    /// The next point at which a device wants attention.
    #[inline]
    #[must_use]
    pub fn due(&self) -> Option<Icount> {
        self.test.as_ref().and_then(TestDevice::due).map(Icount)
    }

    /// The next instant at which a device acts by itself.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        self.chipset.as_ref()?.deadline()
    }

    /// Time has come to `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if let Some(chipset) = &mut self.chipset {
            chipset.advance(now);
        }
    }

    // Interrupts.

    /// What devices hold pending for the processor.
    #[inline]
    #[must_use]
    pub fn pending(&self, now: Icount) -> Pending {
        if let Some(chipset) = &self.chipset {
            let pending = chipset.pending();
            return Pending {
                nmi: pending.nmi,
                interrupt: pending.interrupt.is_some(),
            };
        }
        match self.test.as_ref().and_then(|test| test.pending(now.0)) {
            None => Pending::default(),
            Some(event) if event.kind == EventKind::Nmi => Pending {
                nmi: true,
                interrupt: false,
            },
            Some(event) => Pending {
                nmi: false,
                interrupt: event.vector >> 4 > self.task_priority,
            },
        }
    }

    /// The processor takes what is pending for this window.
    pub fn acknowledge(&mut self, now: Icount, window: Window) -> Option<Event> {
        if let Some(chipset) = &mut self.chipset {
            return match window {
                Window::Nmi => {
                    chipset.acknowledge_nmi();
                    Some(Event::nmi())
                }
                Window::Interrupt => chipset.acknowledge().map(Event::interrupt),
            };
        }
        let test = self.test.as_mut()?;
        let event = test.pending(now.0);
        test.delivered();
        event
    }

    /// The processor waits. Whether anything could end that.
    pub fn wait(&mut self, now: Icount) -> bool {
        self.chipset.is_some() || self.test.as_mut().is_some_and(|t| t.wait(now.0))
    }

    /// Whether its devices live in time, not by the guest's own execution alone.
    #[inline]
    #[must_use]
    pub fn has_time(&self) -> bool {
        self.chipset.is_some()
    }

    /// CR8, 0 … 15.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.chipset
            .as_ref()
            .map_or(self.task_priority, |chipset| chipset.cr8())
    }

    /// MOV to CR8 of 0 … 15.
    pub fn set_task_priority(&mut self, priority: u8) {
        match &mut self.chipset {
            Some(chipset) => chipset.set_cr8(priority),
            None => self.task_priority = priority,
        }
    }

    // MSRs.

    /// Whether there is a local APIC and it is not switched off.
    #[must_use]
    pub fn has_apic(&self) -> bool {
        self.chipset.as_ref().is_some_and(|chips| chips.has_apic())
    }

    /// Whether a device has this MSR.
    #[must_use]
    pub fn has_msr(&self, number: u32) -> bool {
        self.chipset.is_some() && Chipset::has_msr(number)
    }

    /// RDMSR of one that a device has.
    ///
    /// # Errors
    ///
    /// #GP.
    pub fn read_msr(
        &mut self,
        host: &mut impl Host,
        door: &mut Door,
        number: u32,
    ) -> Result<u64, GeneralProtection> {
        let chipset = self.chipset.as_mut().ok_or(GeneralProtection)?;
        chipset.read_msr(instant(door, host, msr_shows_time(number)), number)
    }

    /// WRMSR to one that a device has.
    ///
    /// # Errors
    ///
    /// #GP.
    pub fn write_msr(
        &mut self,
        host: &mut impl Host,
        door: &mut Door,
        number: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let chipset = self.chipset.as_mut().ok_or(GeneralProtection)?;
        let now = instant(door, host, msr_shows_time(number));
        let effect = chipset.write_msr(now, number, value)?;
        self.perform(host, door, effect);
        Ok(())
    }

    /// The time-stamp counter is ahead of guest time by `offset` from `now` on.
    pub fn set_tsc_offset(&mut self, now: GuestTime, offset: u64) {
        if let Some(chipset) = &mut self.chipset {
            chipset.set_tsc_offset(now, offset);
        }
    }

    // The outside.

    /// Whether somebody can type on its console.
    #[inline]
    #[must_use]
    pub fn hears(&self) -> bool {
        self.serial
    }

    /// Takes in what was typed on the guest's console: the virtio console once a driver has it, COM1 before.
    pub fn receive(&mut self, now: GuestTime, bytes: &[u8], memory: &mut impl GuestMemory) {
        if let Some(chipset) = self.chipset.as_mut().filter(|_| self.serial) {
            // A full queue drops, as a line without flow control does.
            if chipset.has_virtio_console() {
                chipset.receive_virtio(now, bytes, &mut Ram(memory));
            } else {
                chipset.receive(now, Serial::One, bytes);
            }
        }
    }

    /// Network card `nic`.
    #[must_use]
    pub fn nic(&self, nic: u8) -> Option<&Net> {
        self.chipset.as_ref()?.nic(nic)
    }

    /// Whether network card `nic` would give a frame that came now to its driver.
    #[must_use]
    pub fn wants_frame(&self, nic: u8, frame: &[u8]) -> bool {
        let chipset = self.chipset.as_ref();
        chipset.is_some_and(|chipset| chipset.wants_frame(nic, frame))
    }

    /// A frame enters through network card `nic`. Without buffers for it the card drops it.
    pub fn receive_frame(
        &mut self,
        now: GuestTime,
        nic: u8,
        frame: &[u8],
        memory: &mut impl GuestMemory,
    ) {
        if let Some(chipset) = &mut self.chipset {
            chipset.receive_frame(now, nic, frame, &mut Ram(memory));
        }
    }

    /// The link of network card `nic` goes up or down.
    pub fn set_link(&mut self, now: GuestTime, nic: u8, up: bool) {
        if let Some(chipset) = &mut self.chipset {
            chipset.set_link(now, nic, up);
        }
    }

    /// Whether a device has been kicked: it is to be [served](Self::serve) before the guest runs on.
    #[inline]
    #[must_use]
    pub fn is_kicked(&self) -> bool {
        self.chipset.as_ref().is_some_and(|chips| chips.is_kicked())
    }

    /// Lets devices that were kicked read and write the guest's memory. What it puts out leaves through the door.
    pub fn serve(&mut self, host: &mut impl Host, door: &mut Door, memory: &mut impl GuestMemory) {
        let Some(chipset) = &mut self.chipset else {
            return;
        };
        let now = door.last();
        let [.., line] = &mut self.lines;
        let (guest, serial) = (&self.guest, self.serial);
        chipset.serve(now, &mut Ram(memory), &mut |output| match output {
            virtio::Output::Frame { nic, bytes } => door.transmit(host, guest, nic, bytes),
            virtio::Output::Console(bytes) => bytes.iter().for_each(|byte| {
                if serial {
                    door.console_byte(host, *byte);
                } else if let Some(line) = line.write(*byte) {
                    door.console_line(host, guest, line);
                }
            }),
        });
    }

    /// Somebody presses the power button. A machine without one does not notice.
    pub fn press_power_button(&mut self, now: GuestTime) {
        if let Some(chipset) = &mut self.chipset {
            chipset.press_power_button(now);
        }
    }

    /// Somebody presses the NMI button.
    pub fn press_nmi_button(&mut self, now: GuestTime) {
        if let Some(chipset) = &mut self.chipset {
            chipset.press_nmi_button(now);
        }
    }

    /// The machine is reset.
    pub fn reset(&mut self, now: GuestTime) {
        if let Some(chipset) = &mut self.chipset {
            chipset.reset(now);
        }
        self.task_priority = 0;
        self.request = None;
    }

    /// Passes on what stands on unfinished console lines.
    pub fn flush(&mut self, host: &mut impl Host, door: &mut Door) {
        for lines in &mut self.lines {
            let line = lines.take();
            if !line.is_empty() {
                door.console_line(host, &self.guest, line);
            }
        }
    }

    /// The board as a bus for an instruction that retires as number `now`.
    pub fn bus<'a, H: Host>(
        &'a mut self,
        host: &'a mut H,
        door: &'a mut Door,
        now: Icount,
    ) -> BoardBus<'a, H> {
        BoardBus {
            board: self,
            host,
            door,
            now,
        }
    }

    fn perform(&mut self, host: &mut impl Host, door: &mut Door, effect: chipset::Effect) {
        match effect {
            chipset::Effect::None => {}
            chipset::Effect::Console(Serial::One, byte) if self.serial => {
                door.console_byte(host, byte);
            }
            chipset::Effect::Console(serial, byte) => self.print(host, door, serial, byte),
            chipset::Effect::PowerOff => self.request = Some(Request::PowerOff),
            chipset::Effect::Reset => self.request = Some(Request::Reset),
        }
    }

    fn print(&mut self, host: &mut impl Host, door: &mut Door, serial: Serial, byte: u8) {
        if let Some(line) = self.lines[serial as usize].write(byte) {
            door.console_line(host, &self.guest, line);
        }
    }

    fn note_unclaimed(&mut self, what: core::fmt::Arguments<'_>) {
        self.unclaimed = self.unclaimed.saturating_add(1);
        if self.unclaimed <= NOTED_UNCLAIMED {
            log::debug!("vm {}: no device at {what}", self.guest);
        }
    }
}

/// Guest memory for virtio devices.
struct Ram<'a, M>(&'a mut M);

impl<M: GuestMemory> virtio::Memory for Ram<'_, M> {
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), virtio::NotRam> {
        self.0.read(Gpa(from), to).map_err(|_| virtio::NotRam)
    }

    fn write(&mut self, to: u64, from: &[u8]) -> Result<(), virtio::NotRam> {
        self.0.write(Gpa(to), from).map_err(|_| virtio::NotRam)
    }
}

/// The time of an access: asked for where the access shows or starts a clock, so that all others cost the
/// log nothing.
#[inline]
fn instant(door: &mut Door, host: &mut impl Host, shows_time: bool) -> GuestTime {
    if shows_time {
        door.now(host)
    } else {
        door.last()
    }
}

/// The x2APIC's timer: LVT, initial and current count, divider. A TSC deadline is absolute.
const fn msr_shows_time(number: u32) -> bool {
    matches!(
        number.wrapping_sub(msr::X2APIC_BASE),
        0x32 | 0x38 | 0x39 | 0x3e
    )
}

/// The same registers of an xAPIC, wherever it lies.
const fn memory_shows_time(gpa: Gpa) -> bool {
    matches!(gpa.page_offset() & 0xff0, 0x320 | 0x380 | 0x390 | 0x3e0)
}

/// The timer chip and the speaker port, the clock, the power management timer.
const fn port_shows_time(port: u16) -> bool {
    use devices::{acpi_pm, pit, rtc};
    const TIMER_LAST_PORT: u16 = acpi_pm::spec::TIMER_PORT + 3;
    matches!(
        port,
        pit::spec::COUNTER_PORT..=pit::spec::CONTROL_PORT
            | pit::spec::CONTROL_B_PORT
            | rtc::spec::INDEX_PORT..=rtc::spec::DATA_PORT
            | acpi_pm::spec::EVENT_PORT..=TIMER_LAST_PORT
    )
}

/// The board while one instruction is executed.
pub struct BoardBus<'a, H: Host> {
    board: &'a mut Board,
    host: &'a mut H,
    door: &'a mut Door,
    now: Icount,
}

impl<H: Host> BoardBus<'_, H> {
    fn scratch_offset(gpa: Gpa) -> Option<u64> {
        use test_device::spec::{SCRATCH, SCRATCH_BYTES};
        gpa.0
            .checked_sub(SCRATCH)
            .filter(|offset| *offset < SCRATCH_BYTES as u64)
    }

    fn read_test_port(&self, port: u16, size: u8) -> Option<u32> {
        if port == debug_console::spec::PORT {
            return Some(all_ones(size) as u32 & !0xff | u32::from(debug_console::spec::SIGNATURE));
        }
        self.board.test.as_ref()?.read_port(port)
    }

    /// Whether a device for tests took it.
    fn write_test_port(&mut self, port: u16, value: u32) -> bool {
        match port {
            _ if !self.board.test_ports => return false,
            debug_console::spec::PORT => {
                self.board
                    .print(self.host, self.door, Serial::One, value as u8);
                return true;
            }
            test_device::spec::EXIT_PORT => {
                self.board.request = Some(Request::Exit(value));
                return true;
            }
            _ => {}
        }
        let now = self.now.0;
        let test = self.board.test.as_mut();
        test.is_some_and(|test| test.write_port(now, port, value))
    }
}

impl<H: Host> Bus for BoardBus<'_, H> {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        if let Some(chipset) = &mut self.board.chipset {
            let now = instant(self.door, self.host, memory_shows_time(gpa));
            if let Some(value) = chipset.read_memory(now, gpa.0, size) {
                return value;
            }
        } else if let (Some(test), Some(offset)) = (&self.board.test, Self::scratch_offset(gpa)) {
            return test.read_scratch(offset, size);
        }
        self.board
            .note_unclaimed(format_args!("guest physical {:#x} (read {size})", gpa.0));
        all_ones(size)
    }

    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if let Some(chipset) = &mut self.board.chipset {
            let now = instant(self.door, self.host, memory_shows_time(gpa));
            if let Some(effect) = chipset.write_memory(now, gpa.0, size, value) {
                return self.board.perform(self.host, self.door, effect);
            }
        } else if let (Some(test), Some(offset)) = (&mut self.board.test, Self::scratch_offset(gpa))
        {
            return test.write_scratch(offset, size, value);
        }
        self.board
            .note_unclaimed(format_args!("guest physical {:#x} (write {size})", gpa.0));
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        let value = if let Some(chipset) = &mut self.board.chipset {
            let now = instant(self.door, self.host, port_shows_time(port));
            chipset.read_port(now, port, size)
        } else {
            self.read_test_port(port, size)
        };
        value.unwrap_or_else(|| {
            self.board
                .note_unclaimed(format_args!("port {port:#x} (read {size})"));
            u32::MAX
        }) & all_ones(size) as u32
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        let value = value & all_ones(size) as u32;
        let taken = if let Some(chipset) = &mut self.board.chipset {
            let now = instant(self.door, self.host, port_shows_time(port));
            let effect = chipset.write_port(now, port, size, value);
            self.board.perform(
                self.host,
                self.door,
                effect.unwrap_or(chipset::Effect::None),
            );
            effect.is_some() || self.write_test_port(port, value)
        } else {
            self.write_test_port(port, value)
        };
        if !taken {
            self.board
                .note_unclaimed(format_args!("port {port:#x} (write {size})"));
        }
    }
}
