//! ACPI's fixed hardware: power management events, sleep control, timer; and the ports that reset a PC.

use spec::CLOCK;

use crate::time::GuestTime;

/// Facts of the registers (ACPI 6.5, section 4.8; port 0xcf9 and 0x92: Intel ICH9 data sheet 316972-004, 13.7). Where the
/// blocks are is this machine's choice and stands in its FADT.
pub mod spec {
    use crate::time::Clock;

    /// PM1a event block: status, then enable, two bytes each.
    pub const EVENT_PORT: u16 = 0x600;
    /// PM1a control block, two bytes.
    pub const CONTROL_PORT: u16 = 0x604;
    /// Power management timer, four bytes.
    pub const TIMER_PORT: u16 = 0x608;
    /// The last of them, and of the fixed blocks, which lie side by side.
    pub const TIMER_LAST_PORT: u16 = TIMER_PORT + 3;
    /// General-purpose event block 0: status, then enable, two bytes each.
    pub const GENERAL_PORT: u16 = 0x620;
    /// Interrupt line of the system control interrupt: level, active high.
    pub const IRQ: u8 = 9;

    /// Event: the top bit of the timer changed.
    pub const TIMER_EVENT: u16 = 1 << 0;
    /// Event: the power button was pressed.
    pub const POWER_BUTTON_EVENT: u16 = 1 << 8;
    /// Events that can happen.
    pub const EVENTS: u16 = TIMER_EVENT | POWER_BUTTON_EVENT;
    /// Enable bits that can be set: timer, global, power button, sleep button, clock.
    pub const ENABLES: u16 = 0x0721;

    /// Control: events raise the system control interrupt. Always: there is no other mode.
    pub const SCI_ENABLE: u16 = 1 << 0;
    /// Control: bits that keep what is written: bus master reload, sleep type.
    pub const CONTROL_WRITABLE: u16 = 1 << 1 | 7 << SLEEP_TYPE_SHIFT;
    /// Control: first bit of the sleep type.
    pub const SLEEP_TYPE_SHIFT: u32 = 10;
    /// Control: go to sleep.
    pub const SLEEP_ENABLE: u16 = 1 << 13;
    /// Sleep type of S5, power off.
    pub const SLEEP_TYPE_OFF: u8 = 5;

    /// The timer: 315/88 MHz.
    pub const CLOCK: Clock = Clock::new(315, 88_000);

    /// Reset control.
    pub const RESET_PORT: u16 = 0xcf9;
    /// What the FADT says to write there.
    pub const RESET_VALUE: u8 = 0x06;
    /// Reset control: a rising edge resets.
    pub const RESET_GO: u8 = 1 << 2;
    /// Reset control: the bits that can be written.
    pub const RESET_WRITABLE: u8 = 0x0e;

    /// System control port A.
    pub const CONTROL_A_PORT: u16 = 0x92;
    /// Port A: a rising edge resets.
    pub const CONTROL_A_RESET: u8 = 1 << 0;
    /// Port A: address line 20 is let through. It always is.
    pub const CONTROL_A_A20: u8 = 1 << 1;

    /// Command port of the keyboard controller.
    pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
    /// Keyboard controller commands that pulse outputs, of which a zero in bit 0 is the reset line.
    pub const KEYBOARD_PULSE: u8 = 0xf0;
}

/// What a write led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Nothing.
    Stay,
    /// The machine switches itself off.
    Off,
    /// The machine is reset.
    Reset,
}

/// Width of the power management timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimerWidth {
    /// 24 bits.
    Bits24 = 24,
    /// 32 bits: TMR_VAL_EXT in the FADT.
    Bits32 = 32,
}

/// The power management block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiPm {
    width: TimerWidth,
    status: u16,
    enable: u16,
    control: u16,
    general_enable: u16,
    reset_control: u8,
    control_a: u8,
    seen: GuestTime,
}

impl AcpiPm {
    /// A block whose timer is that wide.
    #[must_use]
    pub const fn new(width: TimerWidth) -> Self {
        Self {
            width,
            status: 0,
            enable: 0,
            control: spec::SCI_ENABLE,
            general_enable: 0,
            reset_control: 0,
            control_a: spec::CONTROL_A_A20,
            seen: GuestTime(0),
        }
    }

    /// The machine is reset; the timer goes on.
    pub const fn reset(&mut self, now: GuestTime) {
        *self = Self::new(self.width);
        self.seen = now;
    }

    /// IN of one byte; `None` where no register is.
    #[must_use]
    pub fn read(&mut self, now: GuestTime, port: u16) -> Option<u8> {
        self.advance(now);
        let byte = |value: u16| value.to_le_bytes()[usize::from(port & 1)];
        Some(match port {
            0x600..=0x601 => byte(self.status),
            0x602..=0x603 => byte(self.enable),
            0x604..=0x605 => byte(self.control),
            // Not a register, but inside of an aligned access to the control block.
            0x606..=0x607 => 0,
            0x608..=0x60b => self.timer(now).to_le_bytes()[usize::from(port - spec::TIMER_PORT)],
            // No general-purpose event ever happens.
            0x620..=0x621 => 0,
            0x622..=0x623 => byte(self.general_enable),
            spec::RESET_PORT => self.reset_control,
            spec::CONTROL_A_PORT => self.control_a,
            _ => return None,
        })
    }

    /// OUT of one byte; `None` where no register is.
    pub fn write(&mut self, now: GuestTime, port: u16, value: u8) -> Option<Power> {
        self.advance(now);
        let high = port & 1 != 0;
        let (bits, mask) = if high {
            (u16::from(value) << 8, 0xff00)
        } else {
            (value.into(), 0x00ff)
        };
        match port {
            // Writing a one clears.
            0x600..=0x601 => self.status &= !bits,
            0x602..=0x603 => self.enable = (self.enable & !mask | bits) & spec::ENABLES,
            0x604..=0x605 => return Some(self.write_control(bits, mask)),
            0x606..=0x60b | 0x620..=0x621 => {}
            0x622..=0x623 => self.general_enable = self.general_enable & !mask | bits,
            spec::RESET_PORT => {
                let rises = value & !self.reset_control & spec::RESET_GO != 0;
                self.reset_control = value & spec::RESET_WRITABLE;
                return Some(reset_if(rises));
            }
            spec::CONTROL_A_PORT => {
                let rises = value & !self.control_a & spec::CONTROL_A_RESET != 0;
                self.control_a = value | spec::CONTROL_A_A20;
                return Some(reset_if(rises));
            }
            spec::KEYBOARD_COMMAND_PORT => {
                let pulses = value & spec::KEYBOARD_PULSE == spec::KEYBOARD_PULSE;
                return Some(reset_if(pulses && value & 1 == 0));
            }
            _ => return None,
        }
        Some(Power::Stay)
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= spec::POWER_BUTTON_EVENT;
    }

    /// Whether the system control interrupt is asserted.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.status & self.enable != 0
    }

    /// When the timer's event asserts the interrupt.
    #[must_use]
    pub fn deadline(&self) -> Option<GuestTime> {
        if self.enable & !self.status & spec::TIMER_EVENT == 0 {
            return None;
        }
        let half = CLOCK.ticks_at(self.seen) >> self.half_bits();
        CLOCK.instant_of((half + 1) << self.half_bits())
    }

    /// Time has come to `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if now <= self.seen {
            return;
        }
        let half = |instant| CLOCK.ticks_at(instant) >> self.half_bits();
        if half(self.seen) != half(now) {
            self.status |= spec::TIMER_EVENT;
        }
        self.seen = now;
    }

    /// The timer's value.
    #[must_use]
    pub const fn timer(&self, now: GuestTime) -> u32 {
        let mask = (1u64 << self.width as u8) - 1;
        (CLOCK.ticks_at(now) & mask) as u32
    }

    /// Ticks between two changes of the timer's top bit, as a power of two.
    const fn half_bits(&self) -> u8 {
        self.width as u8 - 1
    }

    fn write_control(&mut self, bits: u16, mask: u16) -> Power {
        let writable = spec::CONTROL_WRITABLE & mask;
        self.control = self.control & !writable | bits & writable;
        let sleep_type = self.control >> spec::SLEEP_TYPE_SHIFT & 7;
        let off = bits & spec::SLEEP_ENABLE != 0 && sleep_type == u16::from(spec::SLEEP_TYPE_OFF);
        if off { Power::Off } else { Power::Stay }
    }
}

const fn reset_if(condition: bool) -> Power {
    if condition { Power::Reset } else { Power::Stay }
}

#[cfg(test)]
mod tests;
