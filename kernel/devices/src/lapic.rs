//! The local APIC of the one processor, as memory (xAPIC) and as model-specific registers (x2APIC).

mod timer;
mod vectors;

use arch::msr;
use bitflags::bitflags;
use timer::{Timer, TimerMode};
use vectors::VectorSet;

use crate::message::{DeliveryMode, Message, wide_destination};
use crate::time::GuestTime;

/// Facts of the chip (SDM 3 chapter 12, "Advanced Programmable Interrupt Controller").
pub mod spec {
    /// Guest physical address after reset.
    pub const ADDRESS: u64 = 0xfee0_0000;
    /// Bytes of its page.
    pub const BYTES: u64 = 4096;
    /// Frequency of the timer before division, in Hz: one count is a nanosecond, as of the time-stamp counter.
    pub const BUS_HZ: u64 = 1_000_000_000;
    /// Version register: version 0x14, six LVT entries.
    pub const VERSION: u32 = 0x14 | 5 << 16;

    /// IA32_APIC_BASE: this is the processor that boots.
    pub const BASE_BOOT_PROCESSOR: u64 = 1 << 8;
    /// IA32_APIC_BASE: x2APIC mode.
    pub const BASE_X2APIC: u64 = 1 << 10;
    /// IA32_APIC_BASE: the APIC is there.
    pub const BASE_ENABLE: u64 = 1 << 11;

    /// Numbers of the registers: bits 11:4 of their address, and what their MSRs are ahead of 0x800 (table 12-6).
    #[allow(missing_docs)] // the names are the manual's
    pub mod register {
        pub const ID: u8 = 0x02;
        pub const VERSION: u8 = 0x03;
        pub const TASK_PRIORITY: u8 = 0x08;
        pub const ARBITRATION_PRIORITY: u8 = 0x09;
        pub const PROCESSOR_PRIORITY: u8 = 0x0a;
        pub const END_OF_INTERRUPT: u8 = 0x0b;
        pub const REMOTE_READ: u8 = 0x0c;
        pub const LOGICAL_DESTINATION: u8 = 0x0d;
        pub const DESTINATION_FORMAT: u8 = 0x0e;
        pub const SPURIOUS: u8 = 0x0f;
        pub const IN_SERVICE: u8 = 0x10;
        pub const TRIGGER_MODE: u8 = 0x18;
        pub const REQUEST: u8 = 0x20;
        pub const ERROR_STATUS: u8 = 0x28;
        pub const COMMAND: u8 = 0x30;
        pub const COMMAND_HIGH: u8 = 0x31;
        pub const LVT_TIMER: u8 = 0x32;
        pub const LVT_THERMAL: u8 = 0x33;
        pub const LVT_PERFORMANCE: u8 = 0x34;
        pub const LVT_LINT0: u8 = 0x35;
        pub const LVT_LINT1: u8 = 0x36;
        pub const LVT_ERROR: u8 = 0x37;
        pub const TIMER_INITIAL: u8 = 0x38;
        pub const TIMER_CURRENT: u8 = 0x39;
        pub const TIMER_DIVIDE: u8 = 0x3e;
        pub const SELF_IPI: u8 = 0x3f;
    }

    /// Writable bits of the six LVT entries, from the timer on (figure 12-8).
    pub const LVT_WRITABLE: [u32; 6] = [
        0x0007_00ff,
        0x0001_07ff,
        0x0001_07ff,
        0x0001_a7ff,
        0x0001_a7ff,
        0x0001_00ff,
    ];
    /// LVT: masked.
    pub const LVT_MASKED: u32 = 1 << 16;
    /// LVT: level-triggered.
    pub const LVT_LEVEL: u32 = 1 << 15;
    /// LVT: a level is being served.
    pub const LVT_REMOTE_IRR: u32 = 1 << 14;
    /// LVT: what software reads and cannot write, remote IRR and delivery status.
    pub const LVT_STATUS: u32 = LVT_REMOTE_IRR | 1 << 12;
    /// Spurious vector register: the APIC is enabled by software.
    pub const SOFTWARE_ENABLE: u32 = 1 << 8;
    /// Vectors below this one are the processor's exceptions.
    pub const FIRST_VECTOR: u8 = 16;

    /// Interrupt command: the destination is logical.
    pub const COMMAND_LOGICAL: u32 = 1 << 11;
    /// Interrupt command: delivery status, which is only for reading and always idle.
    pub const COMMAND_PENDING: u64 = 1 << 12;
    /// Interrupt command: assert, which every command but an INIT de-assert is.
    pub const COMMAND_ASSERT: u32 = 1 << 14;
    /// Interrupt command: bits that can be written in x2APIC mode (figure 12-28).
    pub const COMMAND_WRITABLE: u64 = 0xffff_ffff_000c_dfff;
}

use spec::register;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a write led to outside of the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The I/O APIC has to know that a level-triggered vector was served.
    EndOfInterrupt(u8),
    /// The processor sent itself an INIT.
    Init,
}

/// Whether a message reached the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It did.
    Accepted,
    /// Nobody wanted it.
    Refused,
    /// It is an INIT.
    Init,
}

bitflags! {
    /// Error status register (SDM 3, figure 12-9).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Errors: u32 {
        const SEND_ILLEGAL_VECTOR = 1 << 5;
        const RECEIVE_ILLEGAL_VECTOR = 1 << 6;
        const ILLEGAL_REGISTER = 1 << 7;
    }
}

/// An input pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The 8259A's output.
    Lint0,
    /// The machine's NMI.
    Lint1,
}

impl Pin {
    const fn lvt(self) -> usize {
        match self {
            Self::Lint0 => (register::LVT_LINT0 - register::LVT_TIMER) as usize,
            Self::Lint1 => (register::LVT_LINT1 - register::LVT_TIMER) as usize,
        }
    }
}

const TIMER: usize = 0;
const ERROR: usize = (register::LVT_ERROR - register::LVT_TIMER) as usize;

/// The local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    base: u64,
    /// Bits of IA32_APIC_BASE that exist.
    base_writable: u64,
    task_priority: u8,
    logical_destination: u8,
    /// Bits 31:28: all ones are the flat model.
    destination_format: u32,
    spurious: u32,
    in_service: VectorSet,
    trigger_mode: VectorSet,
    requests: VectorSet,
    errors: Errors,
    shown_errors: Errors,
    command: u64,
    lvt: [u32; 6],
    pins: [bool; 2],
    timer: Timer,
    nmi: bool,
}

impl Lapic {
    /// A local APIC after reset, of a processor with so many bits of physical address.
    #[must_use]
    pub fn new(physical_address_bits: u8) -> Self {
        let page = 1u64
            .checked_shl(physical_address_bits.into())
            .unwrap_or(0)
            .wrapping_sub(spec::BYTES);
        Self {
            base: spec::ADDRESS | spec::BASE_ENABLE | spec::BASE_BOOT_PROCESSOR,
            base_writable: page | spec::BASE_ENABLE | spec::BASE_X2APIC | spec::BASE_BOOT_PROCESSOR,
            task_priority: 0,
            logical_destination: 0,
            destination_format: 0xf000_0000,
            spurious: 0xff,
            in_service: VectorSet::default(),
            trigger_mode: VectorSet::default(),
            requests: VectorSet::default(),
            errors: Errors::empty(),
            shown_errors: Errors::empty(),
            command: 0,
            lvt: [spec::LVT_MASKED; 6],
            pins: [false; 2],
            timer: Timer::new(0),
            nmi: false,
        }
    }

    /// Does what firmware does: enabled, the 8259A at LINT0, NMIs at LINT1 (MP 1.4, 3.6.2.2, virtual wire mode).
    pub fn hand_over(&mut self) {
        self.spurious |= spec::SOFTWARE_ENABLE;
        self.lvt[Pin::Lint0.lvt()] = 0x700;
        self.lvt[Pin::Lint1.lvt()] = 0x400;
    }

    // What the processor sees.

    /// The vector to deliver next: requested and above the processor's priority.
    #[must_use]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.requests.highest().filter(|_| self.is_enabled())?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor takes the deliverable vector.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.requests.set(vector, false);
        self.in_service.set(vector, true);
        Some(vector)
    }

    /// Whether an NMI waits.
    #[must_use]
    pub const fn nmi(&self) -> bool {
        self.nmi
    }

    /// The processor takes the NMI.
    pub fn acknowledge_nmi(&mut self) {
        self.nmi = false;
    }

    /// Whether the 8259A's request reaches the processor through LINT0.
    #[must_use]
    pub const fn passes_external(&self) -> bool {
        let lvt = self.lvt[Pin::Lint0.lvt()];
        // An APIC that is off leaves the pin to the processor.
        !self.is_enabled() || lvt & (spec::LVT_MASKED | 0x700) == 0x700
    }

    /// CR8: bits 7:4 of the task priority.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// MOV to CR8, of which four bits count.
    pub fn set_cr8(&mut self, value: u8) {
        self.task_priority = value << 4;
    }

    // What the machine does to it.

    /// A message comes in.
    pub fn deliver(&mut self, message: &Message) -> Delivery {
        if !self.is_enabled() || !self.is_addressed(message.destination, message.logical) {
            return Delivery::Refused;
        }
        self.accept(message.mode, message.vector, message.level)
    }

    /// The level of an input pin.
    pub fn set_pin(&mut self, pin: Pin, level: bool) {
        let before = core::mem::replace(&mut self.pins[pin as usize], level);
        let rises = level && !before;
        let lvt = self.lvt[pin.lvt()];
        if !self.is_enabled() {
            // The pins of an APIC that is off are the processor's INTR and NMI.
            self.nmi |= rises && pin == Pin::Lint1;
            return;
        }
        if lvt & spec::LVT_MASKED != 0 {
            return;
        }
        match DeliveryMode::of(lvt) {
            DeliveryMode::NMI => self.nmi |= rises,
            DeliveryMode::FIXED if Self::is_level(pin, lvt) => self.sample(pin),
            DeliveryMode::FIXED if rises => {
                self.accept(DeliveryMode::FIXED, lvt as u8, false);
            }
            _ => {}
        }
    }

    /// When the timer requests an interrupt. An expiry that changes no request is none: the timer is
    /// masked, or its vector waits already.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        let lvt = self.lvt[TIMER];
        let requests = lvt & spec::LVT_MASKED == 0 && !self.requests.contains(lvt as u8);
        self.timer.expiry().filter(|_| requests)
    }

    /// Time has come to `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if self.timer.advance(now) {
            self.fire(TIMER);
        }
    }

    /// The guest's time-stamp counter is ahead of guest time by `offset` from now on, modulo 2⁶⁴.
    pub fn set_tsc_offset(&mut self, now: GuestTime, offset: u64) {
        self.timer.set_tsc_offset(now, offset);
        self.advance(now);
    }

    // Register access.

    /// Where the registers are in guest physical memory, if they are.
    #[must_use]
    pub const fn window(&self) -> Option<u64> {
        if self.base & (spec::BASE_ENABLE | spec::BASE_X2APIC) == spec::BASE_ENABLE {
            Some(self.base & !(spec::BYTES - 1))
        } else {
            None
        }
    }

    /// Reads `size` bytes at `offset` in the page. What lies between the registers reads as zero.
    pub fn read_memory(&mut self, now: GuestTime, offset: u64, size: u8) -> u64 {
        if offset & 0xc != 0 {
            return 0;
        }
        let value = match self.read_register(now, (offset >> 4) as u8) {
            Some(value) => u64::from(value),
            None => {
                self.error(Errors::ILLEGAL_REGISTER);
                0
            }
        };
        value >> (8 * (offset & 3)) & crate::all_ones(size)
    }

    /// Writes to the page. Only writes of whole registers count.
    pub fn write_memory(&mut self, now: GuestTime, offset: u64, size: u8, value: u64) -> Action {
        if offset & 0xf != 0 || size < 4 {
            return Action::None;
        }
        let value = value as u32;
        match (offset >> 4) as u8 {
            register::COMMAND => {
                self.command = self.command & !0xffff_ffff
                    | u64::from(value) & spec::COMMAND_WRITABLE & !spec::COMMAND_PENDING;
                let destination = wide_destination((self.command >> 56) as u8);
                self.send(destination)
            }
            register::COMMAND_HIGH => {
                self.command = self.command & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                Action::None
            }
            register::LOGICAL_DESTINATION => {
                self.logical_destination = (value >> 24) as u8;
                Action::None
            }
            register::DESTINATION_FORMAT => {
                self.destination_format = value & 0xf000_0000;
                Action::None
            }
            number
                if self.read_register(now, number).is_none()
                    && number != register::END_OF_INTERRUPT =>
            {
                self.error(Errors::ILLEGAL_REGISTER);
                Action::None
            }
            number => self.write_register(now, number, value),
        }
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    ///
    /// #GP for registers that do not exist in the current mode or cannot be read.
    pub fn read_msr(&self, now: GuestTime, number: u32) -> Result<u64, GeneralProtection> {
        match number {
            msr::APIC_BASE => return Ok(self.base),
            msr::TSC_DEADLINE => return Ok(self.timer.tsc_deadline()),
            _ => {}
        }
        let register = self.x2apic_register(number)?;
        let value = match register {
            register::COMMAND => return Ok(self.command),
            register::ARBITRATION_PRIORITY
            | register::END_OF_INTERRUPT
            | register::REMOTE_READ
            | register::DESTINATION_FORMAT
            | register::COMMAND_HIGH => None,
            _ => self.read_register(now, register),
        };
        value.map(u64::from).ok_or(GeneralProtection)
    }

    /// WRMSR of the same.
    ///
    /// # Errors
    ///
    /// #GP for registers that do not exist or cannot be written, for reserved bits, and for changes of mode that
    /// are not allowed.
    pub fn write_msr(
        &mut self,
        now: GuestTime,
        number: u32,
        value: u64,
    ) -> Result<Action, GeneralProtection> {
        match number {
            msr::APIC_BASE => return self.write_base(value).map(|()| Action::None),
            msr::TSC_DEADLINE => {
                self.timer.set_tsc_deadline(now, value);
                self.advance(now);
                return Ok(Action::None);
            }
            _ => {}
        }
        let register = self.x2apic_register(number)?;
        if value & !x2apic_writable(register) != 0 {
            return Err(GeneralProtection);
        }
        let low = value as u32;
        match register {
            register::COMMAND => {
                self.command = value & !spec::COMMAND_PENDING;
                Ok(self.send((value >> 32) as u32))
            }
            register::SELF_IPI => {
                self.accept(DeliveryMode::FIXED, low as u8, false);
                Ok(Action::None)
            }
            _ if is_writable(register) => Ok(self.write_register(now, register, low)),
            _ => Err(GeneralProtection),
        }
    }

    fn x2apic_register(&self, number: u32) -> Result<u8, GeneralProtection> {
        let offset = number
            .checked_sub(msr::X2APIC_BASE)
            .filter(|_| self.is_x2apic());
        offset
            .and_then(|o| u8::try_from(o).ok())
            .ok_or(GeneralProtection)
    }

    fn read_register(&self, now: GuestTime, number: u8) -> Option<u32> {
        Some(match number {
            register::ID
            | register::ARBITRATION_PRIORITY
            | register::END_OF_INTERRUPT
            | register::REMOTE_READ => 0,
            register::VERSION => spec::VERSION,
            register::TASK_PRIORITY => self.task_priority.into(),
            register::PROCESSOR_PRIORITY => self.processor_priority().into(),
            // Cluster 0, processor 0 of it.
            register::LOGICAL_DESTINATION if self.is_x2apic() => 1,
            register::LOGICAL_DESTINATION => u32::from(self.logical_destination) << 24,
            register::DESTINATION_FORMAT => self.destination_format | 0x0fff_ffff,
            register::SPURIOUS => self.spurious,
            register::IN_SERVICE..=0x17 => self.in_service.word(number & 7),
            register::TRIGGER_MODE..=0x1f => self.trigger_mode.word(number & 7),
            register::REQUEST..=0x27 => self.requests.word(number & 7),
            register::ERROR_STATUS => self.shown_errors.bits(),
            register::COMMAND => self.command as u32,
            register::COMMAND_HIGH => (self.command >> 32) as u32,
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.lvt[usize::from(number - register::LVT_TIMER)]
            }
            register::TIMER_INITIAL => self.timer.initial(),
            register::TIMER_CURRENT => self.timer.current(now),
            register::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes what both modes have alike. Registers that are only for reading ignore it.
    fn write_register(&mut self, now: GuestTime, number: u8, value: u32) -> Action {
        match number {
            register::TASK_PRIORITY => self.task_priority = value as u8,
            register::END_OF_INTERRUPT => return self.end_of_interrupt(),
            register::SPURIOUS => {
                self.spurious = value & 0x1ff;
                if self.spurious & spec::SOFTWARE_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= spec::LVT_MASKED);
                }
            }
            register::ERROR_STATUS => {
                self.shown_errors = self.errors;
                self.errors = Errors::empty();
            }
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.write_lvt(usize::from(number - register::LVT_TIMER), value)
            }
            register::TIMER_INITIAL => self.timer.set_initial(now, value),
            register::TIMER_DIVIDE => self.timer.set_divide(now, value & 0xb),
            _ => {}
        }
        Action::None
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let writable = spec::LVT_WRITABLE[index];
        let mut new = self.lvt[index] & spec::LVT_REMOTE_IRR | value & writable;
        if self.spurious & spec::SOFTWARE_ENABLE == 0 {
            new |= spec::LVT_MASKED;
        }
        if new & spec::LVT_LEVEL == 0 {
            new &= !spec::LVT_REMOTE_IRR;
        }
        self.lvt[index] = new;
        if index == TIMER {
            self.timer.set_mode(TimerMode::of(value));
        }
        self.sample(Pin::Lint0);
    }

    /// IA32_APIC_BASE (SDM 3 12.12.5, figure 12-27).
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        const BOTH: u64 = spec::BASE_ENABLE | spec::BASE_X2APIC;
        let (old, new) = (self.base & BOTH, value & BOTH);
        let forbidden = matches!(
            (old, new),
            (_, spec::BASE_X2APIC) | (0, BOTH) | (BOTH, spec::BASE_ENABLE)
        );
        if forbidden || value & !self.base_writable != 0 {
            return Err(GeneralProtection);
        }
        if old != 0 && new == 0 {
            let offset = self.timer.tsc_offset();
            *self = Self {
                base_writable: self.base_writable,
                pins: self.pins,
                nmi: self.nmi,
                timer: Timer::new(offset),
                ..Self::new(0)
            };
        }
        self.base = value;
        Ok(())
    }

    // Priorities and delivery.

    /// Whether IA32_APIC_BASE has it switched on.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.base & spec::BASE_ENABLE != 0
    }

    const fn is_x2apic(&self) -> bool {
        self.base & spec::BASE_X2APIC != 0
    }

    fn processor_priority(&self) -> u8 {
        let serving = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= serving >> 4 {
            self.task_priority
        } else {
            serving & 0xf0
        }
    }

    /// Whether a destination names this processor, whose identifier is 0 (SDM 3 12.6.2).
    const fn is_addressed(&self, destination: u32, logical: bool) -> bool {
        if destination == u32::MAX {
            return true;
        }
        if !logical {
            return destination == 0;
        }
        if self.is_x2apic() {
            return destination >> 16 == 0 && destination & 1 != 0;
        }
        let (destination, own) = (destination as u8, self.logical_destination);
        let flat = self.destination_format == 0xf000_0000;
        if flat {
            destination & own != 0
        } else {
            destination >> 4 == own >> 4 && destination & own & 0xf != 0
        }
    }

    fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool) -> Delivery {
        match mode {
            DeliveryMode::FIXED | DeliveryMode::LOWEST_PRIORITY => {
                if self.spurious & spec::SOFTWARE_ENABLE == 0 {
                    return Delivery::Refused;
                }
                if vector < spec::FIRST_VECTOR {
                    self.error(Errors::RECEIVE_ILLEGAL_VECTOR);
                } else {
                    self.requests.set(vector, true);
                    self.trigger_mode.set(vector, level);
                }
            }
            DeliveryMode::NMI => self.nmi = true,
            DeliveryMode::INIT => return Delivery::Init,
            // There is no system management mode, and the boot processor runs.
            _ => {}
        }
        Delivery::Accepted
    }

    /// The interrupt of an LVT entry that has no pin.
    fn fire(&mut self, index: usize) {
        let lvt = self.lvt[index];
        if lvt & spec::LVT_MASKED == 0 {
            self.accept(DeliveryMode::FIXED, lvt as u8, false);
        }
    }

    fn error(&mut self, error: Errors) {
        let new = !self.errors.contains(error);
        self.errors |= error;
        // An error entry whose own vector is illegal must not fire forever.
        if new && self.lvt[ERROR] as u8 >= spec::FIRST_VECTOR {
            self.fire(ERROR);
        }
    }

    /// Only LINT0 can be level-triggered (SDM 3 12.5.1).
    fn is_level(pin: Pin, lvt: u32) -> bool {
        pin == Pin::Lint0 && lvt & spec::LVT_LEVEL != 0
    }

    /// Requests what a level-triggered pin asks for, unless it is being served.
    fn sample(&mut self, pin: Pin) {
        let lvt = self.lvt[pin.lvt()];
        let wants = Self::is_level(pin, lvt)
            && lvt & (spec::LVT_MASKED | spec::LVT_REMOTE_IRR) == 0
            && DeliveryMode::of(lvt) == DeliveryMode::FIXED
            && self.pins[pin as usize];
        if wants && self.accept(DeliveryMode::FIXED, lvt as u8, true) == Delivery::Accepted {
            self.lvt[pin.lvt()] |= spec::LVT_REMOTE_IRR;
        }
    }

    fn end_of_interrupt(&mut self) -> Action {
        let Some(vector) = self.in_service.highest() else {
            return Action::None;
        };
        self.in_service.set(vector, false);
        if !self.trigger_mode.contains(vector) {
            return Action::None;
        }
        let lvt = &mut self.lvt[Pin::Lint0.lvt()];
        if *lvt as u8 == vector {
            *lvt &= !spec::LVT_REMOTE_IRR;
            self.sample(Pin::Lint0);
        }
        Action::EndOfInterrupt(vector)
    }

    /// Performs the interrupt command (SDM 3 12.6.1). The only processor it can reach is this one.
    fn send(&mut self, destination: u32) -> Action {
        let command = self.command as u32;
        let mode = DeliveryMode::of(command);
        let reaches = match command >> 18 & 3 {
            0 => self.is_addressed(destination, command & spec::COMMAND_LOGICAL != 0),
            shorthand => shorthand != 3,
        };
        let has_vector = mode == DeliveryMode::FIXED || mode == DeliveryMode::LOWEST_PRIORITY;
        if has_vector && (command as u8) < spec::FIRST_VECTOR {
            self.error(Errors::SEND_ILLEGAL_VECTOR);
            return Action::None;
        }
        let deasserts = mode == DeliveryMode::INIT && command & spec::COMMAND_ASSERT == 0;
        if !reaches || deasserts || !self.is_enabled() {
            return Action::None;
        }
        match self.accept(mode, command as u8, false) {
            Delivery::Init => Action::Init,
            Delivery::Accepted | Delivery::Refused => Action::None,
        }
    }
}

/// Whether both modes can write the register.
const fn is_writable(number: u8) -> bool {
    matches!(
        number,
        register::TASK_PRIORITY
            | register::END_OF_INTERRUPT
            | register::SPURIOUS
            | register::ERROR_STATUS
            | register::LVT_TIMER..=register::TIMER_INITIAL | register::TIMER_DIVIDE
    )
}

/// Bits of an x2APIC register that are not reserved (SDM 3 12.12.1.2).
const fn x2apic_writable(number: u8) -> u64 {
    match number {
        register::TASK_PRIORITY | register::SELF_IPI => 0xff,
        register::SPURIOUS => 0x1ff,
        register::COMMAND => spec::COMMAND_WRITABLE,
        register::LVT_TIMER..=register::LVT_ERROR => {
            // Status bits are only for reading, not reserved.
            (spec::LVT_WRITABLE[(number - register::LVT_TIMER) as usize] | spec::LVT_STATUS) as u64
        }
        register::TIMER_INITIAL => 0xffff_ffff,
        register::TIMER_DIVIDE => 0xb,
        // An end of interrupt and a latch of errors are written as zero.
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
