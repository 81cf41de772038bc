//! The local APIC as the manual tells and as Linux uses it.

use super::spec::register::*;
use super::spec::{ADDRESS, BASE_ENABLE, BASE_X2APIC, LVT_MASKED};
use super::{Action, Delivery, GeneralProtection, Lapic, Pin};
use crate::message::{DeliveryMode, Message};
use crate::time::GuestTime;
use arch::msr;

const T0: GuestTime = GuestTime(1000);

fn at(ns: u64) -> GuestTime {
    GuestTime(T0.0 + ns)
}

fn message(vector: u8) -> Message {
    Message {
        vector,
        mode: DeliveryMode::FIXED,
        level: false,
        destination: 0,
        logical: false,
    }
}

fn read(apic: &mut Lapic, now: GuestTime, register: u8) -> u32 {
    apic.read_memory(now, u64::from(register) << 4, 4) as u32
}

fn write(apic: &mut Lapic, now: GuestTime, register: u8, value: u32) -> Action {
    apic.write_memory(now, u64::from(register) << 4, 4, value.into())
}

/// Enabled by software, spurious vector 0xff.
fn enabled() -> Lapic {
    let mut apic = Lapic::new(40);
    write(&mut apic, T0, SPURIOUS, 0x1ff);
    apic
}

fn x2apic() -> Lapic {
    let mut apic = enabled();
    apic.write_msr(T0, msr::APIC_BASE, ADDRESS | 0xd00).unwrap();
    apic
}

#[test]
fn after_reset_it_is_there_and_disabled_by_software() {
    let mut apic = Lapic::new(40);
    assert_eq!(apic.read_msr(T0, msr::APIC_BASE), Ok(0xfee0_0900));
    assert_eq!(apic.window(), Some(0xfee0_0000));
    assert_eq!(read(&mut apic, T0, ID), 0);
    assert_eq!(read(&mut apic, T0, VERSION), 0x0005_0014);
    assert_eq!(read(&mut apic, T0, SPURIOUS), 0xff);
    assert_eq!(read(&mut apic, T0, DESTINATION_FORMAT), 0xffff_ffff);
    for lvt in LVT_TIMER..=LVT_ERROR {
        assert_eq!(read(&mut apic, T0, lvt), LVT_MASKED);
        // Cannot be unmasked before it is enabled.
        write(&mut apic, T0, lvt, 0x40);
        assert_eq!(read(&mut apic, T0, lvt), LVT_MASKED | 0x40);
    }
    // Disabling it masks what was not.
    write(&mut apic, T0, SPURIOUS, 0x1ff);
    write(&mut apic, T0, LVT_TIMER, 0x40);
    assert_eq!(read(&mut apic, T0, LVT_TIMER), 0x40);
    write(&mut apic, T0, SPURIOUS, 0xff);
    assert_eq!(read(&mut apic, T0, LVT_TIMER), LVT_MASKED | 0x40);
    assert_eq!(apic.deliver(&message(0x40)), Delivery::Refused);
    let nmi = Message {
        mode: DeliveryMode::NMI,
        ..message(0)
    };
    assert_eq!(apic.deliver(&nmi), Delivery::Accepted);
    assert!(apic.nmi());
}

#[test]
fn firmware_leaves_virtual_wire_mode() {
    let mut apic = Lapic::new(40);
    assert!(!apic.passes_external());
    apic.hand_over();
    assert!(apic.passes_external());
    apic.set_pin(Pin::Lint1, true);
    assert!(apic.nmi());
    apic.acknowledge_nmi();
    // An edge is one NMI.
    apic.set_pin(Pin::Lint1, true);
    assert!(!apic.nmi());
}

#[test]
fn vectors_are_delivered_by_priority() {
    let mut apic = enabled();
    for vector in [0x41, 0x52, 0x33] {
        assert_eq!(apic.deliver(&message(vector)), Delivery::Accepted);
    }
    assert_eq!(read(&mut apic, T0, REQUEST + 2), 1 << 1 | 1 << 0x12);
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(read(&mut apic, T0, IN_SERVICE + 2), 1 << 0x12);
    assert_eq!(read(&mut apic, T0, PROCESSOR_PRIORITY), 0x50);
    assert_eq!(apic.deliverable(), None);
    apic.deliver(&message(0x5f));
    // The same class waits, a higher one does not.
    assert_eq!(apic.deliverable(), None);
    apic.deliver(&message(0x61));
    assert_eq!(apic.acknowledge(), Some(0x61));
    for want in [0x5f, 0x41, 0x33] {
        write(&mut apic, T0, END_OF_INTERRUPT, 0);
        if want == 0x5f {
            write(&mut apic, T0, END_OF_INTERRUPT, 0);
        }
        assert_eq!(apic.acknowledge(), Some(want));
    }
}

#[test]
fn the_task_priority_is_cr8() {
    let mut apic = enabled();
    apic.deliver(&message(0x41));
    apic.set_cr8(4);
    assert_eq!(read(&mut apic, T0, TASK_PRIORITY), 0x40);
    assert_eq!(apic.deliverable(), None);
    write(&mut apic, T0, TASK_PRIORITY, 0x3f);
    assert_eq!(apic.cr8(), 3);
    assert_eq!(apic.deliverable(), Some(0x41));
    assert_eq!(read(&mut apic, T0, PROCESSOR_PRIORITY), 0x3f);
}

#[test]
fn a_level_is_told_at_its_end() {
    let mut apic = enabled();
    apic.deliver(&Message {
        level: true,
        ..message(0x91)
    });
    assert_eq!(read(&mut apic, T0, TRIGGER_MODE + 4), 1 << 0x11);
    apic.acknowledge();
    assert_eq!(
        write(&mut apic, T0, END_OF_INTERRUPT, 0),
        Action::EndOfInterrupt(0x91)
    );
    apic.deliver(&message(0x91));
    assert_eq!(read(&mut apic, T0, TRIGGER_MODE + 4), 0);
    apic.acknowledge();
    assert_eq!(write(&mut apic, T0, END_OF_INTERRUPT, 0), Action::None);
    // Nothing in service: nothing ends.
    assert_eq!(write(&mut apic, T0, END_OF_INTERRUPT, 0), Action::None);
}

fn reaches(apic: &mut Lapic, destination: u32, logical: bool) -> bool {
    let to = Message {
        destination,
        logical,
        ..message(0x50)
    };
    apic.deliver(&to) == Delivery::Accepted
}

#[test]
fn destinations_select() {
    let mut apic = enabled();
    assert!(reaches(&mut apic, 0, false) && reaches(&mut apic, u32::MAX, false));
    assert!(!reaches(&mut apic, 1, false) && !reaches(&mut apic, 1, true));
    // Linux's flat model: bit 0 is processor 0.
    write(&mut apic, T0, DESTINATION_FORMAT, 0xffff_ffff);
    write(&mut apic, T0, LOGICAL_DESTINATION, 0x0100_0000);
    assert_eq!([3, 2].map(|d| reaches(&mut apic, d, true)), [true, false]);
    // Clusters: processor 0 of cluster 2.
    write(&mut apic, T0, DESTINATION_FORMAT, 0);
    write(&mut apic, T0, LOGICAL_DESTINATION, 0x2100_0000);
    let reached = [0x21, 0x23, 0x22, 0x11].map(|d| reaches(&mut apic, d, true));
    assert_eq!(reached, [true, true, false, false]);
}

#[test]
fn linux_calibrates_the_timer() {
    let mut apic = enabled();
    // __setup_APIC_LVTT(0xffffffff, oneshot, irqen): masked or not, divide by 16.
    write(&mut apic, T0, LVT_TIMER, 0xec);
    write(&mut apic, T0, TIMER_DIVIDE, 3);
    write(&mut apic, T0, TIMER_INITIAL, 0xffff_ffff);
    assert_eq!(read(&mut apic, T0, TIMER_CURRENT), 0xffff_ffff);
    // 100 ms later.
    let now = at(100_000_000);
    assert_eq!(0xffff_ffff - read(&mut apic, now, TIMER_CURRENT), 6_250_000);
    assert_eq!(apic.deadline(), Some(at(0xffff_ffff * 16)));
    write(&mut apic, now, TIMER_INITIAL, 0);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn a_one_shot_fires_once() {
    let mut apic = enabled();
    write(&mut apic, T0, LVT_TIMER, 0xec);
    write(&mut apic, T0, TIMER_DIVIDE, 0xb);
    write(&mut apic, T0, TIMER_INITIAL, 500);
    apic.advance(at(499));
    assert_eq!(read(&mut apic, at(499), TIMER_CURRENT), 1);
    assert_eq!(apic.deliverable(), None);
    apic.advance(at(500));
    assert_eq!(apic.deliverable(), Some(0xec));
    assert_eq!(read(&mut apic, at(600), TIMER_CURRENT), 0);
    assert_eq!(read(&mut apic, at(600), TIMER_INITIAL), 500);
    apic.acknowledge();
    apic.advance(at(100_000));
    assert_eq!((apic.deliverable(), apic.deadline()), (None, None));
}

#[test]
fn a_periodic_timer_keeps_its_phase_over_a_long_sleep() {
    let mut apic = enabled();
    write(&mut apic, T0, TIMER_DIVIDE, 0);
    write(&mut apic, T0, LVT_TIMER, 0xec | 1 << 17);
    write(&mut apic, T0, TIMER_INITIAL, 50_000);
    assert_eq!(apic.deadline(), Some(at(100_000)));
    apic.advance(at(3_600_000_040_000));
    // One request, however many periods went by; until it is taken another changes nothing.
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!(apic.deadline(), Some(at(3_600_000_100_000)));
    assert_eq!(
        read(&mut apic, at(3_600_000_040_000), TIMER_CURRENT),
        30_000
    );
    assert_eq!(apic.deliverable(), None);
}

#[test]
fn a_period_has_a_least_length() {
    let mut apic = enabled();
    write(&mut apic, T0, TIMER_DIVIDE, 0xb);
    write(&mut apic, T0, LVT_TIMER, 0xec | 1 << 17);
    write(&mut apic, T0, TIMER_INITIAL, 1);
    for expiry in [1, 20_001, 40_001] {
        assert_eq!(apic.deadline(), Some(at(expiry)));
        apic.advance(at(expiry));
        assert_eq!(apic.acknowledge(), Some(0xec));
        write(&mut apic, at(expiry), END_OF_INTERRUPT, 0);
        assert_eq!(read(&mut apic, at(expiry), TIMER_CURRENT), 1);
    }
}

#[test]
fn a_new_divisor_keeps_the_count() {
    let mut apic = enabled();
    write(&mut apic, T0, LVT_TIMER, 0xec);
    write(&mut apic, T0, TIMER_DIVIDE, 0xb);
    write(&mut apic, T0, TIMER_INITIAL, 1000);
    write(&mut apic, at(400), TIMER_DIVIDE, 0xa);
    assert_eq!(read(&mut apic, at(400), TIMER_CURRENT), 600);
    assert_eq!(apic.deadline(), Some(at(400 + 600 * 128)));
}

#[test]
fn a_masked_timer_counts_silently() {
    let mut apic = enabled();
    write(&mut apic, T0, TIMER_INITIAL, 100);
    assert_eq!(apic.deadline(), None);
    apic.advance(at(300));
    write(&mut apic, at(300), LVT_TIMER, 0xec);
    assert_eq!((apic.deliverable(), apic.deadline()), (None, None));
}

#[test]
fn the_tsc_deadline_fires_when_the_counter_has_come() {
    let mut apic = x2apic();
    let lvt = msr::X2APIC_BASE + u32::from(LVT_TIMER);
    // Ignored before the mode is chosen.
    apic.write_msr(T0, msr::TSC_DEADLINE, 5000).unwrap();
    assert_eq!(apic.read_msr(T0, msr::TSC_DEADLINE), Ok(0));
    apic.write_msr(T0, lvt, 0xec | 2 << 17).unwrap();
    apic.write_msr(T0, msr::TSC_DEADLINE, 5000).unwrap();
    assert_eq!(apic.deadline(), Some(GuestTime(5000)));
    assert_eq!(apic.read_msr(T0, msr::TSC_DEADLINE), Ok(5000));
    // The guest moves its counter: the deadline moves.
    apic.set_tsc_offset(T0, 1500);
    assert_eq!(apic.deadline(), Some(GuestTime(3500)));
    apic.advance(GuestTime(3500));
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!(apic.read_msr(T0, msr::TSC_DEADLINE), Ok(0));
    assert_eq!(apic.deadline(), None);
    // One that is past fires at once.
    apic.write_msr(GuestTime(4000), END_OF_INTERRUPT_MSR, 0)
        .unwrap();
    apic.write_msr(GuestTime(4000), msr::TSC_DEADLINE, 1)
        .unwrap();
    assert_eq!(apic.deliverable(), Some(0xec));
    // Leaving the mode disarms.
    apic.write_msr(T0, msr::TSC_DEADLINE, u64::MAX).unwrap();
    apic.write_msr(T0, lvt, 0xec).unwrap();
    assert_eq!(apic.read_msr(T0, msr::TSC_DEADLINE), Ok(0));
}

const END_OF_INTERRUPT_MSR: u32 = msr::X2APIC_BASE + END_OF_INTERRUPT as u32;

#[test]
fn modes_change_only_as_allowed() {
    const NONE: u64 = ADDRESS | 0x100;
    const XAPIC: u64 = NONE | BASE_ENABLE;
    const X2APIC: u64 = XAPIC | BASE_X2APIC;
    const INVALID: u64 = NONE | BASE_X2APIC;
    for (from, to, allowed) in [
        (XAPIC, X2APIC, true),
        (XAPIC, NONE, true),
        (XAPIC, INVALID, false),
        (X2APIC, XAPIC, false),
        (X2APIC, NONE, true),
        (X2APIC, INVALID, false),
        (NONE, X2APIC, false),
        (NONE, XAPIC, true),
        (NONE, INVALID, false),
        (XAPIC, XAPIC | 1 << 40, false),
        (XAPIC, XAPIC | 1, false),
        (XAPIC, (1 << 39) | 0x900, true),
    ] {
        let mut apic = Lapic::new(40);
        apic.write_msr(T0, msr::APIC_BASE, from).unwrap();
        let result = apic.write_msr(T0, msr::APIC_BASE, to);
        assert_eq!(result.is_ok(), allowed, "{from:#x} to {to:#x}");
        let now = apic.read_msr(T0, msr::APIC_BASE);
        assert_eq!(now, Ok(if allowed { to } else { from }));
    }
}

#[test]
fn switching_it_off_resets_it() {
    let mut apic = enabled();
    apic.deliver(&message(0x40));
    write(&mut apic, T0, TASK_PRIORITY, 0x20);
    apic.write_msr(T0, msr::APIC_BASE, ADDRESS | 0x100).unwrap();
    assert_eq!((apic.window(), apic.deliverable()), (None, None));
    assert!(apic.passes_external());
    apic.write_msr(T0, msr::APIC_BASE, ADDRESS | 0x900).unwrap();
    assert_eq!(apic, Lapic::new(40));
}

#[test]
fn x2apic_registers_are_strict() {
    let mut apic = x2apic();
    assert_eq!(apic.window(), None);
    let number = |register: u8| msr::X2APIC_BASE + u32::from(register);
    for register in [
        ARBITRATION_PRIORITY,
        END_OF_INTERRUPT,
        DESTINATION_FORMAT,
        COMMAND_HIGH,
        SELF_IPI,
        0x00,
        0xff,
    ] {
        assert_eq!(apic.read_msr(T0, number(register)), Err(GeneralProtection));
    }
    for register in [
        ID,
        VERSION,
        LOGICAL_DESTINATION,
        IN_SERVICE,
        TIMER_CURRENT,
        COMMAND_HIGH,
        0x00,
    ] {
        assert_eq!(
            apic.write_msr(T0, number(register), 0),
            Err(GeneralProtection)
        );
    }
    for (register, value) in [
        (TASK_PRIORITY, 0x100),
        (END_OF_INTERRUPT, 1),
        (ERROR_STATUS, 1),
        (SPURIOUS, 0x1000),
        (LVT_TIMER, 1 << 19),
        (LVT_TIMER, 1 << 32),
        (TIMER_DIVIDE, 4),
        (COMMAND, 1 << 13),
    ] {
        assert_eq!(
            apic.write_msr(T0, number(register), value),
            Err(GeneralProtection)
        );
    }
    assert_eq!(apic.read_msr(T0, number(LOGICAL_DESTINATION)), Ok(1));
    assert_eq!(apic.read_msr(T0, number(SPURIOUS)), Ok(0x1ff));
    assert_eq!(apic.read_msr(T0, 0x900), Err(GeneralProtection));
    // In xAPIC mode there are none.
    let xapic = enabled();
    assert_eq!(xapic.read_msr(T0, number(VERSION)), Err(GeneralProtection));
}

#[test]
fn it_sends_to_itself() {
    let mut apic = enabled();
    // Shorthand self, fixed.
    // The delivery status cannot be written: Linux waits until it is clear.
    write(&mut apic, T0, COMMAND, 0x4_5041);
    assert_eq!(read(&mut apic, T0, COMMAND), 0x4_4041);
    assert_eq!(apic.deliverable(), Some(0x41));
    // Everyone but itself is nobody.
    write(&mut apic, T0, COMMAND, 0xc_4051);
    assert_eq!(apic.deliverable(), Some(0x41));
    // By identifier.
    write(&mut apic, T0, COMMAND_HIGH, 0x0100_0000);
    write(&mut apic, T0, COMMAND, 0x4061);
    assert_eq!(apic.deliverable(), Some(0x41));
    write(&mut apic, T0, COMMAND_HIGH, 0);
    write(&mut apic, T0, COMMAND, 0x4061);
    assert_eq!(apic.deliverable(), Some(0x61));
    write(&mut apic, T0, COMMAND, 0x4_4400);
    assert!(apic.nmi());
    assert_eq!(write(&mut apic, T0, COMMAND, 0x8500), Action::None);
    assert_eq!(write(&mut apic, T0, COMMAND, 0x4500), Action::Init);

    let mut apic = x2apic();
    apic.write_msr(T0, msr::X2APIC_BASE + u32::from(SELF_IPI), 0x71)
        .unwrap();
    assert_eq!(apic.deliverable(), Some(0x71));
    let command = msr::X2APIC_BASE + u32::from(COMMAND);
    apic.write_msr(T0, command, 1 << 32 | 0x4081).unwrap();
    assert_eq!(apic.deliverable(), Some(0x71));
    // Logical: bit 0 of cluster 0.
    apic.write_msr(T0, command, 1 << 32 | 0x5881).unwrap();
    assert_eq!(apic.deliverable(), Some(0x81));
    assert_eq!(apic.read_msr(T0, command), Ok(1 << 32 | 0x4881));
}

#[test]
fn errors_are_latched_and_told() {
    let mut apic = enabled();
    write(&mut apic, T0, LVT_ERROR, 0xfe);
    write(&mut apic, T0, COMMAND, 0x4_4005);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    // Reading shows what the last write latched.
    assert_eq!(read(&mut apic, T0, ERROR_STATUS), 0);
    write(&mut apic, T0, ERROR_STATUS, 0);
    assert_eq!(read(&mut apic, T0, ERROR_STATUS), 0x20);
    write(&mut apic, T0, ERROR_STATUS, 0);
    assert_eq!(read(&mut apic, T0, ERROR_STATUS), 0);
    apic.deliver(&message(3));
    read(&mut apic, T0, 0x05);
    write(&mut apic, T0, SELF_IPI, 0x80);
    write(&mut apic, T0, ERROR_STATUS, 0);
    assert_eq!(read(&mut apic, T0, ERROR_STATUS), 0xc0);
}

#[test]
fn lint0_can_be_an_ordinary_interrupt() {
    let mut apic = enabled();
    // check_timer()'s virtual wire: the 8259A's output as a fixed vector.
    write(&mut apic, T0, LVT_LINT0, 0x30);
    apic.set_pin(Pin::Lint0, true);
    assert_eq!(apic.acknowledge(), Some(0x30));
    apic.set_pin(Pin::Lint0, true);
    write(&mut apic, T0, END_OF_INTERRUPT, 0);
    assert_eq!(apic.deliverable(), None);
    // As a level it comes again until the line falls.
    write(&mut apic, T0, LVT_LINT0, 0x8030);
    assert_eq!(apic.acknowledge(), Some(0x30));
    assert_eq!(read(&mut apic, T0, LVT_LINT0), 0xc030);
    assert_eq!(
        write(&mut apic, T0, END_OF_INTERRUPT, 0),
        Action::EndOfInterrupt(0x30)
    );
    assert_eq!(apic.acknowledge(), Some(0x30));
    apic.set_pin(Pin::Lint0, false);
    write(&mut apic, T0, END_OF_INTERRUPT, 0);
    assert_eq!(apic.deliverable(), None);
    // Or an NMI.
    write(&mut apic, T0, LVT_LINT0, 0x400);
    apic.set_pin(Pin::Lint0, true);
    assert!(apic.nmi());
}

#[test]
fn accesses_other_than_of_whole_registers() {
    let mut apic = enabled();
    assert_eq!(apic.read_memory(T0, 0x31, 1), 0);
    assert_eq!(apic.read_memory(T0, 0x32, 2), 5);
    assert_eq!(apic.read_memory(T0, 0x34, 4), 0);
    assert_eq!(apic.read_memory(T0, 0x30, 8), 0x5_0014);
    apic.write_memory(T0, 0x80, 1, 0x50);
    apic.write_memory(T0, 0x84, 4, 0x50);
    assert_eq!(apic.cr8(), 0);
    apic.write_memory(T0, 0x80, 8, 0xff_0000_0050);
    assert_eq!(apic.cr8(), 5);
}
