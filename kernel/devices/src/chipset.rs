//! All chips of the guest's PC and the wires between them.
//!
//! Every call brings the machine to its instant first, performs the access, and settles all interrupt lines if the
//! access has changed one. So the state is a function of the configuration and of the sequence of calls, and of nothing
//! else.

mod virtio;

use alloc::vec::Vec;

use arch::msr;

use crate::acpi_pm::{self, AcpiPm, Power, TimerWidth};
use crate::ioapic::{self, IoApic};
use crate::lapic::{self, Action, Delivery, GeneralProtection, Lapic, Pin};
use crate::message::Message;
use crate::pci::{self, Bus};
use crate::pic::Pic;
use crate::pit::{self, Pit};
use crate::rtc::{self, Rtc};
use crate::time::{GuestTime, earliest};
use crate::uart::{self, Uart};
use crate::virtio::{self as virtio_devices, Device};

/// Ports that are here so that guests need not be told they are not.
pub mod spec {
    /// Data port of a keyboard controller. It and the command port read as ones: there is none.
    pub const KEYBOARD_DATA_PORT: u16 = 0x60;
    /// Power-on self-test codes; Linux writes it to wait.
    pub const DIAGNOSTIC_PORT: u16 = 0x80;
    /// The other port used to wait.
    pub const DELAY_PORT: u16 = 0xed;
    /// First and last MSR of the x2APIC.
    pub const X2APIC_MSRS: (u32, u32) = (arch::msr::X2APIC_BASE, arch::msr::X2APIC_BASE + 0xff);
    /// The I/O APIC's pin of the timer; its interrupt line 0 has none.
    pub const TIMER_PIN: u8 = 2;
}

/// What a machine's chips are told at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of RAM below 4 GiB.
    pub low_memory: u64,
    /// Bytes of RAM above 4 GiB.
    pub high_memory: u64,
    /// What the clock shows at power-on, in seconds since 1970.
    pub clock_base: u64,
    /// Whether COM1 and COM2 exist.
    pub serial: [bool; 2],
    /// Physical address bits of the processor.
    pub physical_address_bits: u8,
    /// Width of the power management timer.
    pub timer_width: TimerWidth,
    /// Virtio devices.
    pub virtio: virtio_devices::Config,
}

/// A serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// COM1.
    One = 0,
    /// COM2.
    Two = 1,
}

/// What an access leads to outside of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A byte leaves a serial port.
    Console(Serial, u8),
    /// The machine is off.
    PowerOff,
    /// The machine is reset.
    Reset,
}

impl From<Power> for Effect {
    fn from(power: Power) -> Self {
        match power {
            Power::Stay => Self::None,
            Power::Off => Self::PowerOff,
            Power::Reset => Self::Reset,
        }
    }
}

/// Who interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The 8259A: its vector is known when the processor acknowledges. CR8 does not hold it back.
    Pic,
    /// The local APIC, with this vector, which is above the processor's priority.
    Lapic(u8),
}

/// What waits for the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// An NMI.
    pub nmi: bool,
    /// An interrupt the processor would take if it takes interrupts at all.
    pub interrupt: Option<Source>,
}

/// The machine's chips.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chipset {
    config: Config,
    now: GuestTime,
    /// The next instant at which one of the chips behind the interrupt controllers acts.
    board_deadline: Option<GuestTime>,
    uarts: [Option<Uart>; 2],
    pit: Pit,
    pic: Pic,
    rtc: Rtc,
    pm: AcpiPm,
    lapic: Lapic,
    ioapic: IoApic,
    pci: Bus,
    virtio: Vec<Device>,
    /// One of them has been kicked.
    kicked: bool,
}

impl Chipset {
    /// The chips as firmware hands them to an operating system.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut lapic = Lapic::new(config.physical_address_bits);
        lapic.hand_over();
        let mut pic = Pic::new(TICK);
        // The system control interrupt is a level, of the second controller.
        let elcr = crate::pic::spec::EDGE_LEVEL_PORT + 1;
        pic.write(elcr, 1 << (acpi_pm::spec::IRQ - 8));
        let mut pci = Bus::default();
        let virtio = virtio::plug(&config.virtio, &mut pci);
        let mut chipset = Self {
            config: *config,
            now: GuestTime(0),
            board_deadline: None,
            uarts: config.serial.map(|exists| exists.then(Uart::default)),
            pit: Pit::default(),
            pic,
            rtc: Rtc::new(config.clock_base, config.low_memory, config.high_memory),
            pm: AcpiPm::new(config.timer_width),
            lapic,
            ioapic: IoApic::default(),
            pci,
            virtio,
            kicked: false,
        };
        chipset.settle();
        chipset
    }

    /// Resets the machine at `now`. Date, time, CMOS memory and the state of network links stay; the time-stamp counter
    /// is guest time again.
    pub fn reset(&mut self, now: GuestTime) {
        self.advance(now);
        let mut fresh = Self::new(&self.config);
        fresh.keep_outside(&self.virtio);
        self.rtc.reset(self.now);
        self.pm.reset(self.now);
        *self = Self {
            now: self.now,
            rtc: self.rtc.clone(),
            pm: self.pm.clone(),
            ..fresh
        };
        self.settle();
    }

    // Time.

    /// The instant up to which everything has happened.
    #[must_use]
    pub const fn now(&self) -> GuestTime {
        self.now
    }

    /// The next instant at which an interrupt can come by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        earliest(self.board_deadline, self.lapic.deadline())
    }

    /// Time has come to `now`. An instant that is past already changes nothing.
    pub fn advance(&mut self, now: GuestTime) {
        self.now = self.now.max(now);
        if self
            .board_deadline
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.advance_board();
        }
        self.lapic.advance(self.now);
    }

    /// The guest's time-stamp counter is ahead of guest time by `offset` from `now` on, modulo 2⁶⁴.
    pub fn set_tsc_offset(&mut self, now: GuestTime, offset: u64) {
        self.advance(now);
        self.lapic.set_tsc_offset(self.now, offset);
    }

    // The processor's accesses.

    /// IN of 1, 2 or 4 bytes; `None` where no chip answers.
    pub fn read_port(&mut self, now: GuestTime, port: u16, size: u8) -> Option<u32> {
        self.advance(now);
        self.before_config_read(self.pci.selected_function(port), size);
        if let Some(value) = self.pci.read_port(port, size) {
            return Some(value);
        }
        let before = self.signals(port, size);
        // The chips are eight bits wide: the bus makes one access per byte.
        let mut answered = false;
        let mut value = 0;
        for i in 0..size.min(4) {
            let byte = self.read_port_byte(port.wrapping_add(i.into()));
            answered |= byte.is_some();
            value |= u32::from(byte.unwrap_or(0xff)) << (8 * u32::from(i));
        }
        if answered {
            self.settle_unless(before, port, size);
        }
        answered.then_some(value)
    }

    /// OUT of 1, 2 or 4 bytes; `None` where no chip answers.
    pub fn write_port(
        &mut self,
        now: GuestTime,
        port: u16,
        size: u8,
        value: u32,
    ) -> Option<Effect> {
        self.advance(now);
        let mut effect = self
            .pci
            .write_port(port, size, value)
            .then_some(Effect::None);
        let before = self.signals(port, size);
        if effect.is_some() {
            self.after_config_write(self.pci.selected_function(port), size);
        } else {
            for (i, byte) in (0..size.min(4)).zip(value.to_le_bytes()) {
                let one = self.write_port_byte(port.wrapping_add(i.into()), byte);
                // No two bytes of one access have an effect.
                effect = match effect {
                    None | Some(Effect::None) => one.or(effect),
                    some => some,
                };
            }
        }
        if effect.is_some() {
            self.settle_unless(before, port, size);
        }
        effect
    }

    /// Reads 1 … 8 bytes at a guest physical address; `None` where no chip answers.
    pub fn read_memory(&mut self, now: GuestTime, address: u64, size: u8) -> Option<u64> {
        self.advance(now);
        let (window, offset) = self.window(address)?;
        Some(match window {
            Window::Lapic => self.lapic.read_memory(self.now, offset, size),
            Window::IoApic => self.ioapic.read(offset, size),
            Window::Ecam => {
                self.before_config_read(Bus::function_in_window(offset), size);
                self.pci.read_window(offset, size)
            }
            Window::Virtio(index) => self.read_virtio(index, offset, size),
        })
    }

    /// Writes 1 … 8 bytes at a guest physical address; `None` where no chip answers.
    pub fn write_memory(
        &mut self,
        now: GuestTime,
        address: u64,
        size: u8,
        value: u64,
    ) -> Option<Effect> {
        self.advance(now);
        let (window, offset) = self.window(address)?;
        match window {
            Window::Lapic => {
                let action = self.lapic.write_memory(self.now, offset, size, value);
                return Some(self.perform(action));
            }
            Window::IoApic => self
                .ioapic
                .write(offset, value, &mut sender(&mut self.lapic)),
            Window::Ecam => {
                self.pci.write_window(offset, size, value);
                self.after_config_write(Bus::function_in_window(offset), size);
                self.settle();
            }
            Window::Virtio(index) => self.write_virtio(index, offset, size, value),
        }
        Some(Effect::None)
    }

    /// Whether an MSR is one of the local APIC.
    #[must_use]
    pub const fn has_msr(number: u32) -> bool {
        let (first, last) = spec::X2APIC_MSRS;
        number == msr::APIC_BASE || number == msr::TSC_DEADLINE || first <= number && number <= last
    }

    /// RDMSR of one of those for which [`Chipset::has_msr`] says yes.
    ///
    /// # Errors
    ///
    /// #GP where the APIC's mode has no such register to read.
    pub fn read_msr(&mut self, now: GuestTime, number: u32) -> Result<u64, GeneralProtection> {
        self.advance(now);
        self.lapic.read_msr(self.now, number)
    }

    /// WRMSR of one of the same.
    ///
    /// # Errors
    ///
    /// #GP where the APIC's mode has no such register to write, or the value is not allowed.
    pub fn write_msr(
        &mut self,
        now: GuestTime,
        number: u32,
        value: u64,
    ) -> Result<Effect, GeneralProtection> {
        self.advance(now);
        let action = self.lapic.write_msr(self.now, number, value)?;
        Ok(self.perform(action))
    }

    /// Whether IA32_APIC_BASE has the local APIC switched on: a processor without one says so in CPUID.
    #[must_use]
    pub const fn has_apic(&self) -> bool {
        self.lapic.is_enabled()
    }

    /// CR8, 0 … 15.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.lapic.cr8()
    }

    /// MOV to CR8, of whose value the low four bits count.
    pub fn set_cr8(&mut self, value: u8) {
        self.lapic.set_cr8(value);
    }

    // Interrupts.

    /// What waits for the processor.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let external =
            self.pic.interrupt() && (self.lapic.passes_external() || self.ioapic.passes_external());
        let interrupt = if external {
            Some(Source::Pic)
        } else {
            self.lapic.deliverable().map(Source::Lapic)
        };
        Pending {
            nmi: self.lapic.nmi(),
            interrupt,
        }
    }

    /// The processor takes the pending interrupt. Returns its vector. Time should have been advanced first: a
    /// timer that expired before is part of the interrupt taken, not a new one.
    pub fn acknowledge(&mut self) -> Option<u8> {
        match self.pending().interrupt? {
            Source::Lapic(_) => self.lapic.acknowledge(),
            Source::Pic => {
                let vector = self.pic.acknowledge();
                self.settle();
                Some(vector)
            }
        }
    }

    /// The processor takes the NMI.
    pub fn acknowledge_nmi(&mut self) {
        self.lapic.acknowledge_nmi();
    }

    // What comes from outside.

    /// Bytes for a serial port. Returns how many it took; without the port it takes, and drops, all.
    pub fn receive(&mut self, now: GuestTime, serial: Serial, bytes: &[u8]) -> usize {
        self.advance(now);
        let Some(uart) = &mut self.uarts[serial as usize] else {
            return bytes.len();
        };
        let accepted = uart.receive(self.now, bytes);
        self.settle();
        accepted
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self, now: GuestTime) {
        self.advance(now);
        self.pm.press_power_button();
        self.settle();
    }

    /// Somebody presses the NMI button. The guest's CMOS index port and its LINT1 decide what comes of it.
    pub fn press_nmi_button(&mut self, now: GuestTime) {
        self.advance(now);
        if self.rtc.nmi_enabled() {
            self.lapic.set_pin(Pin::Lint1, true);
            self.lapic.set_pin(Pin::Lint1, false);
        }
    }

    // For devices on the PCI bus.

    /// The PCI bus. It tells whose BAR an access is for that no chip here answers.
    #[must_use]
    pub const fn pci(&self) -> &Bus {
        &self.pci
    }

    /// The PCI bus, to plug functions and to change what a guest sees of them.
    pub const fn pci_mut(&mut self) -> &mut Bus {
        &mut self.pci
    }

    /// Sets the level of a PCI device's interrupt pin.
    pub fn set_pci_interrupt(&mut self, now: GuestTime, device: u8, level: bool) {
        self.advance(now);
        if let Some(function) = self.pci.function_mut(device) {
            function.set_interrupt(level);
            self.settle();
        }
    }

    /// A PCI device writes an interrupt message. Returns whether the processor accepted it.
    pub fn signal(&mut self, now: GuestTime, address: u64, data: u32) -> bool {
        self.advance(now);
        Message::from_write(address, data).is_some_and(|message| sender(&mut self.lapic)(&message))
    }

    // Wires.

    fn window(&self, address: u64) -> Option<(Window, u64)> {
        let within =
            |first: u64, bytes: u64| address.checked_sub(first).filter(|offset| *offset < bytes);
        if let Some(offset) = self
            .lapic
            .window()
            .and_then(|first| within(first, lapic::spec::BYTES))
        {
            return Some((Window::Lapic, offset));
        }
        if let Some(offset) = within(ioapic::spec::ADDRESS, ioapic::spec::BYTES) {
            return Some((Window::IoApic, offset));
        }
        if let Some(offset) = within(pci::spec::ECAM, pci::spec::ECAM_BYTES) {
            return Some((Window::Ecam, offset));
        }
        let (index, offset) = self.virtio_at(address)?;
        Some((Window::Virtio(index), offset))
    }

    fn uart_at(&mut self, port: u16) -> Option<(&mut Uart, Serial, u8)> {
        let (serial, first) = match port & !(uart::spec::PORTS - 1) {
            uart::spec::COM1_PORT => (Serial::One, uart::spec::COM1_PORT),
            uart::spec::COM2_PORT => (Serial::Two, uart::spec::COM2_PORT),
            _ => return None,
        };
        let uart = self.uarts[serial as usize].as_mut()?;
        Some((uart, serial, (port - first) as u8))
    }

    fn read_port_byte(&mut self, port: u16) -> Option<u8> {
        let now = self.now;
        if let Some((uart, _, register)) = self.uart_at(port) {
            return Some(uart.read(now, register));
        }
        match port {
            pit::spec::COUNTER_PORT..=pit::spec::CONTROL_PORT => Some(self.pit.read(now, port)),
            pit::spec::CONTROL_B_PORT => Some(self.pit.read_control_b(now)),
            rtc::spec::INDEX_PORT => Some(self.rtc.read_index()),
            rtc::spec::DATA_PORT => Some(self.rtc.read(now)),
            _ if is_empty(port) => Some(0xff),
            _ => self.pic.read(port).or_else(|| self.pm.read(now, port)),
        }
    }

    fn write_port_byte(&mut self, port: u16, value: u8) -> Option<Effect> {
        let now = self.now;
        if let Some((uart, serial, register)) = self.uart_at(port) {
            let sent = uart.write(now, register, value);
            return Some(sent.map_or(Effect::None, |byte| Effect::Console(serial, byte)));
        }
        match port {
            pit::spec::COUNTER_PORT..=pit::spec::CONTROL_PORT => self.pit.write(now, port, value),
            pit::spec::CONTROL_B_PORT => self.pit.write_control_b(now, value),
            rtc::spec::INDEX_PORT => self.rtc.write_index(value),
            rtc::spec::DATA_PORT => self.rtc.write(now, value),
            _ if self.pic.write(port, value) => {}
            _ => {
                let power = self.pm.write(now, port, value).map(Effect::from);
                return power.or_else(|| is_empty(port).then_some(Effect::None));
            }
        }
        Some(Effect::None)
    }

    fn perform(&mut self, action: Action) -> Effect {
        let send = &mut sender(&mut self.lapic);
        match action {
            Action::EndOfInterrupt(vector) => self.ioapic.end_of_interrupt(vector, send),
            // What the local APIC refused before, it may accept now.
            Action::None => self.ioapic.retry(send),
            // The one processor starts over, and with it the machine.
            Action::Init => return Effect::Reset,
        }
        Effect::None
    }

    /// Lets the chips behind the interrupt controllers do what is due.
    fn advance_board(&mut self) {
        for uart in self.uarts.iter_mut().flatten() {
            uart.advance(self.now);
        }
        self.rtc.advance(self.now);
        self.pm.advance(self.now);
        if self.pit.advance(self.now) {
            self.drive_lines(self.lines() & !TICK);
        }
        self.settle();
    }

    /// What a chip with registers at these ports tells the others: its interrupt and when it acts next. Most accesses
    /// change neither, and what follows from them need not be worked out again.
    fn signals(&self, port: u16, size: u8) -> Signals {
        let last = port.wrapping_add(u16::from(size.saturating_sub(1)));
        let uart = |serial: Serial| {
            let uart = self.uarts[serial as usize].as_ref();
            uart.map_or(Signals::Silent, |uart| {
                Signals::Of(uart.interrupt(), uart.deadline())
            })
        };
        match (port, last) {
            (acpi_pm::spec::EVENT_PORT.., ..=acpi_pm::spec::TIMER_LAST_PORT) => {
                Signals::Of(self.pm.interrupt(), self.pm.deadline())
            }
            _ if size != 1 => Signals::Unknown,
            (COM1..=COM1_LAST, _) => uart(Serial::One),
            (COM2..=COM2_LAST, _) => uart(Serial::Two),
            // Only counter 0 is wired to an interrupt.
            (PIT_COUNTER_1 | PIT_COUNTER_2 | pit::spec::CONTROL_B_PORT, _) => Signals::Silent,
            (rtc::spec::INDEX_PORT, _) => Signals::Silent,
            (rtc::spec::DATA_PORT, _) => Signals::Of(self.rtc.interrupt(), self.rtc.deadline()),
            _ => Signals::Unknown,
        }
    }

    fn settle_unless(&mut self, before: Signals, port: u16, size: u8) {
        if before == Signals::Unknown || self.signals(port, size) != before {
            self.settle();
        }
    }

    /// Brings the interrupt lines and the next deadline to what the chips say.
    fn settle(&mut self) {
        self.drive_lines(self.lines());
        let uarts = self.uarts.iter().flatten().map(Uart::deadline);
        self.board_deadline = uarts
            .chain([self.pit.deadline(), self.rtc.deadline(), self.pm.deadline()])
            .fold(None, earliest);
    }

    /// The 16 interrupt lines of ISA. The timer's rests high and falls for a moment with each tick, whatever its
    /// output's shape: a tick that waits is not withdrawn, and it does not matter who looks when.
    fn lines(&self) -> u16 {
        let serial = |serial: Serial| {
            self.uarts[serial as usize]
                .as_ref()
                .is_some_and(Uart::interrupt)
        };
        [
            (uart::spec::COM1_IRQ, serial(Serial::One)),
            (uart::spec::COM2_IRQ, serial(Serial::Two)),
            (rtc::spec::IRQ, self.rtc.interrupt()),
            (acpi_pm::spec::IRQ, self.pm.interrupt()),
        ]
        .into_iter()
        .fold(TICK, |lines, (irq, level)| lines | u16::from(level) << irq)
    }

    fn drive_lines(&mut self, lines: u16) {
        self.pic.set_lines(lines);
        let external = self.pic.interrupt();
        // Line 0 is at pin 2; pin 0 is the 8259A's request.
        let timer = u32::from(lines & TICK != 0) << spec::TIMER_PIN;
        let pins = u32::from(lines & !TICK) | timer | u32::from(external) | self.pci.lines();
        self.ioapic.set_lines(pins, &mut sender(&mut self.lapic));
        self.lapic.set_pin(Pin::Lint0, external);
    }
}

/// What a chip tells the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signals {
    /// Nothing, whatever is done to this register.
    Silent,
    /// The level of its interrupt line and its deadline.
    Of(bool, Option<GuestTime>),
    /// More than these: a controller of interrupts, or the timer, whose ticks are no level.
    Unknown,
}

const COM1: u16 = uart::spec::COM1_PORT;
const COM1_LAST: u16 = COM1 + uart::spec::PORTS - 1;
const COM2: u16 = uart::spec::COM2_PORT;
const COM2_LAST: u16 = COM2 + uart::spec::PORTS - 1;
const PIT_COUNTER_1: u16 = pit::spec::COUNTER_PORT + 1;
const PIT_COUNTER_2: u16 = pit::spec::COUNTER_PORT + 2;

/// The timer's interrupt line.
const TICK: u16 = 1 << pit::spec::IRQ;

/// Who answers at an address.
enum Window {
    Lapic,
    IoApic,
    Ecam,
    Virtio(usize),
}

/// Ports where a guest finds nothing and that count as nobody's mistake.
const fn is_empty(port: u16) -> bool {
    matches!(
        port,
        spec::KEYBOARD_DATA_PORT
            | acpi_pm::spec::KEYBOARD_COMMAND_PORT
            | spec::DIAGNOSTIC_PORT
            | spec::DELAY_PORT
            | pci::spec::ADDRESS_PORT..=0xcfb
    ) && port != acpi_pm::spec::RESET_PORT
}

/// Carries messages to the local APIC. An INIT from a device is taken and does nothing.
fn sender(lapic: &mut Lapic) -> impl FnMut(&Message) -> bool {
    |message| lapic.deliver(message) != Delivery::Refused
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod tests;
