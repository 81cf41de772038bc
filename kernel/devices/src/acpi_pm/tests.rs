//! Fixed hardware as ACPI tells and as Linux uses it.

use super::spec::*;
use super::{AcpiPm, GuestTime, Power, TimerWidth};

const T0: GuestTime = GuestTime(0);

fn block() -> AcpiPm {
    AcpiPm::new(TimerWidth::Bits24)
}

fn word(pm: &mut AcpiPm, now: GuestTime, port: u16) -> u16 {
    u16::from_le_bytes([port, port + 1].map(|p| pm.read(now, p).unwrap()))
}

fn write_word(pm: &mut AcpiPm, now: GuestTime, port: u16, value: u16) -> Power {
    let [low, high] = value.to_le_bytes();
    let first = pm.write(now, port, low).unwrap();
    assert_eq!(first, Power::Stay);
    pm.write(now, port + 1, high).unwrap()
}

fn at(tick: u64) -> GuestTime {
    CLOCK.instant_of(tick).unwrap()
}

#[test]
fn the_timer_counts_at_its_frequency_and_wraps() {
    let mut pm = block();
    // 3 579 545 ticks in a second, rounded down.
    assert_eq!(pm.timer(GuestTime(1_000_000_000)), 3_579_545);
    assert_eq!(pm.timer(at(0x100_0005)), 5);
    assert_eq!(
        AcpiPm::new(TimerWidth::Bits32).timer(at(0x100_0005)),
        0x100_0005
    );
    assert_eq!(AcpiPm::new(TimerWidth::Bits32).timer(at(0x1_0000_0005)), 5);
    let bytes = [0, 1, 2, 3].map(|i| pm.read(at(0x12_3456), TIMER_PORT + i).unwrap());
    assert_eq!(bytes, [0x56, 0x34, 0x12, 0]);
}

#[test]
fn the_timers_top_bit_is_an_event() {
    let mut pm = block();
    assert_eq!(pm.deadline(), None);
    write_word(&mut pm, T0, EVENT_PORT + 2, TIMER_EVENT);
    for half in 1..4 {
        let deadline = at(half << 23);
        assert_eq!(pm.deadline(), Some(deadline));
        pm.advance(GuestTime(deadline.0 - 1));
        assert!(!pm.interrupt());
        pm.advance(deadline);
        assert!(pm.interrupt());
        assert_eq!(pm.deadline(), None);
        assert_eq!(word(&mut pm, deadline, EVENT_PORT), TIMER_EVENT);
        write_word(&mut pm, deadline, EVENT_PORT, TIMER_EVENT);
        assert!(!pm.interrupt());
    }
    // Hours later it is one event.
    pm.advance(at(1000 << 23));
    write_word(&mut pm, at(1000 << 23), EVENT_PORT, TIMER_EVENT);
    assert_eq!(pm.deadline(), Some(at(1001 << 23)));
}

#[test]
fn linux_finds_acpi_mode_and_switches_off() {
    let mut pm = block();
    assert_eq!(word(&mut pm, T0, CONTROL_PORT) & SCI_ENABLE, SCI_ENABLE);
    // acpi_hw_legacy_sleep(): first the type, then the type with the enable bit.
    let kind = SCI_ENABLE | u16::from(SLEEP_TYPE_OFF) << SLEEP_TYPE_SHIFT;
    assert_eq!(write_word(&mut pm, T0, CONTROL_PORT, kind), Power::Stay);
    assert_eq!(word(&mut pm, T0, CONTROL_PORT), kind);
    let off = write_word(&mut pm, T0, CONTROL_PORT, kind | SLEEP_ENABLE);
    assert_eq!(off, Power::Off);
    assert_eq!(word(&mut pm, T0, CONTROL_PORT), kind);
    // Another state is none.
    let other = write_word(&mut pm, T0, CONTROL_PORT, SLEEP_ENABLE);
    assert_eq!(other, Power::Stay);
    assert_eq!(word(&mut pm, T0, CONTROL_PORT), SCI_ENABLE);
}

#[test]
fn the_power_button_interrupts_if_enabled() {
    let mut pm = block();
    pm.press_power_button();
    assert!(!pm.interrupt());
    write_word(&mut pm, T0, EVENT_PORT + 2, POWER_BUTTON_EVENT);
    assert!(pm.interrupt());
    assert_eq!(word(&mut pm, T0, EVENT_PORT + 2), POWER_BUTTON_EVENT);
    write_word(&mut pm, T0, EVENT_PORT + 2, 0xffff);
    assert_eq!(word(&mut pm, T0, EVENT_PORT + 2), 0x0721);
    write_word(&mut pm, T0, EVENT_PORT, !POWER_BUTTON_EVENT);
    assert!(pm.interrupt());
    write_word(&mut pm, T0, EVENT_PORT, POWER_BUTTON_EVENT);
    assert!(!pm.interrupt());
}

#[test]
fn general_purpose_events_can_be_enabled_and_never_come() {
    let mut pm = block();
    write_word(&mut pm, T0, GENERAL_PORT, 0xffff);
    write_word(&mut pm, T0, GENERAL_PORT + 2, 0xa5c3);
    assert_eq!(word(&mut pm, T0, GENERAL_PORT), 0);
    assert_eq!(word(&mut pm, T0, GENERAL_PORT + 2), 0xa5c3);
    assert!(!pm.interrupt());
}

#[test]
fn three_ports_reset() {
    let mut pm = block();
    // Linux's reboot=pci: first the kind, then the edge.
    assert_eq!(pm.write(T0, RESET_PORT, 0x02), Some(Power::Stay));
    assert_eq!(pm.write(T0, RESET_PORT, 0x06), Some(Power::Reset));
    assert_eq!(pm.write(T0, RESET_PORT, 0x0e), Some(Power::Stay));
    assert_eq!(pm.read(T0, RESET_PORT), Some(0x0e));
    assert_eq!(
        block().write(T0, RESET_PORT, RESET_VALUE),
        Some(Power::Reset)
    );
    let mut pm = block();
    assert_eq!(pm.read(T0, CONTROL_A_PORT), Some(0x02));
    assert_eq!(pm.write(T0, CONTROL_A_PORT, 0x00), Some(Power::Stay));
    assert_eq!(pm.read(T0, CONTROL_A_PORT), Some(0x02));
    assert_eq!(pm.write(T0, CONTROL_A_PORT, 0x03), Some(Power::Reset));
    for (command, power) in [
        (0xfe, Power::Reset),
        (0xff, Power::Stay),
        (0xd1, Power::Stay),
    ] {
        assert_eq!(pm.write(T0, KEYBOARD_COMMAND_PORT, command), Some(power));
    }
}

#[test]
fn other_ports_are_nobodys() {
    let mut pm = block();
    for port in [0x5ff, 0x60c, 0x61f, 0x624, 0xcf8] {
        assert_eq!(pm.read(T0, port), None);
        assert_eq!(pm.write(T0, port, 0xff), None);
    }
    assert_eq!(pm.write(T0, TIMER_PORT, 0xff), Some(Power::Stay));
}
