//! Whatever a guest does to its chips, they stay alive, bounded and deterministic.

use super::tests::CONFIG;
use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// One call of the chipset.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Read(u16, u8),
    Write(u16, u8, u32),
    ReadMemory(u64, u8),
    WriteMemory(u64, u8, u64),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Cr8(u8),
    Offset(u64),
    Acknowledge,
    Receive(Vec<u8>),
    Buttons,
    Line(u8, bool),
    Signal(u64, u32),
    Reset,
}

fn port() -> impl Strategy<Value = u16> {
    let ranges: Vec<_> = [
        (0x20..0x22, 4),
        (0xa0..0xa2, 4),
        (0x40..0x44, 6),
        (0x60..0x65, 2),
        (0x70..0x72, 4),
        (0x92..0x93, 1),
        (0x2f8..0x300, 4),
        (0x3f8..0x400, 4),
        (0x4d0..0x4d2, 1),
        (0x600..0x60c, 4),
        (0x620..0x624, 1),
        (0xcf8..0xd00, 4),
        (0..0xffff, 1),
    ]
    .into_iter()
    .map(|(range, weight): (core::ops::Range<u16>, u32)| (weight, range.boxed()))
    .collect();
    proptest::strategy::Union::new_weighted(ranges)
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..0x40u64).prop_map(|register| 0xfee0_0000 + (register << 4)),
        1 => (0..0x1000u64).prop_map(|offset| 0xfee0_0000 + offset),
        2 => Just(0xfec0_0000),
        4 => Just(0xfec0_0010),
        1 => Just(0xfec0_0040),
        1 => (0..0x10_0000u64).prop_map(|offset| 0xe000_0000 + offset),
        1 => any::<u64>(),
    ]
}

/// Register indices, bits, sizes of timers: values near zero matter as much as any.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..64u64,
        0..0x2_0000u64,
        any::<u32>().prop_map(u64::from),
        any::<u64>()
    ]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(msr::APIC_BASE), 2 => Just(msr::TSC_DEADLINE), 4 => 0x800..0x900u32]
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![Just(1u8), Just(2), Just(4), Just(8)]
}

/// APIC_BASE values of the three modes, so that x2APIC is reached.
fn base() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0xfee0_0900u64), Just(0xfee0_0d00), Just(0xfee0_0100)]
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![
        0..1000u64,
        0..10_000_000u64,
        0..100_000_000_000u64,
        0..u64::MAX / 4
    ];
    prop_oneof![
        6 => wait.prop_map(Step::Wait),
        8 => (port(), size()).prop_map(|(p, s)| Step::Read(p, s)),
        16 => (port(), size(), value()).prop_map(|(p, s, v)| Step::Write(p, s, v as u32)),
        4 => (address(), size()).prop_map(|(a, s)| Step::ReadMemory(a, s)),
        12 => (address(), size(), value()).prop_map(|(a, s, v)| Step::WriteMemory(a, s, v)),
        2 => number().prop_map(Step::ReadMsr),
        4 => (number(), value()).prop_map(|(n, v)| Step::WriteMsr(n, v)),
        1 => base().prop_map(|v| Step::WriteMsr(msr::APIC_BASE, v)),
        1 => any::<u8>().prop_map(Step::Cr8),
        1 => any::<u64>().prop_map(Step::Offset),
        4 => Just(Step::Acknowledge),
        2 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Receive),
        1 => Just(Step::Buttons),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(d, l)| Step::Line(d, l)),
        1 => (address(), any::<u32>()).prop_map(|(a, d)| Step::Signal(a, d)),
        1 => Just(Step::Reset),
    ]
}

/// Performs a step and returns what the guest and the host see of it.
fn perform(chips: &mut Chipset, now: &mut GuestTime, step: &Step) -> (u64, Option<Effect>) {
    let at = *now;
    let mut effect = None;
    let mut seen = u64::MAX;
    match step {
        Step::Wait(ns) => {
            *now = GuestTime(now.0.saturating_add(*ns));
            chips.advance(*now);
        }
        Step::Read(port, size) => seen = chips.read_port(at, *port, *size).map_or(seen, u64::from),
        Step::Write(port, size, value) => effect = chips.write_port(at, *port, *size, *value),
        Step::ReadMemory(address, size) => {
            seen = chips.read_memory(at, *address, *size).unwrap_or(seen);
        }
        Step::WriteMemory(address, size, value) => {
            effect = chips.write_memory(at, *address, *size, *value);
        }
        Step::ReadMsr(number) => seen = chips.read_msr(at, *number).unwrap_or(seen),
        Step::WriteMsr(number, value) => effect = chips.write_msr(at, *number, *value).ok(),
        Step::Cr8(value) => chips.set_cr8(*value),
        Step::Offset(offset) => chips.set_tsc_offset(at, *offset),
        Step::Acknowledge => {
            chips.acknowledge_nmi();
            let pending = chips.pending().interrupt.is_some();
            let vector = chips.acknowledge();
            assert_eq!(vector.is_some(), pending);
            seen = vector.map_or(seen, u64::from);
        }
        Step::Receive(bytes) => seen = chips.receive(at, Serial::One, bytes) as u64,
        Step::Buttons => {
            chips.press_power_button(at);
            chips.press_nmi_button(at);
        }
        Step::Line(device, level) => chips.set_pci_interrupt(at, *device, *level),
        Step::Signal(address, data) => seen = chips.signal(at, *address, *data).into(),
        Step::Reset => chips.reset(at),
    }
    (seen, effect)
}

proptest! {
    #[test]
    fn chips_survive_and_time_goes_on(steps in prop::collection::vec(step(), 1..60)) {
        let mut chips = Chipset::new(&CONFIG);
        let mut now = GuestTime(0);
        for step in &steps {
            perform(&mut chips, &mut now, step);
            chips.advance(now);
            // A deadline is always ahead, however long nobody looked.
            if let Some(deadline) = chips.deadline() {
                prop_assert!(deadline > now, "{:?} at {:?} after {:?}", deadline, now, step);
            }
        }
    }

    #[test]
    fn an_access_to_a_port_leaves_nothing_to_settle(steps in prop::collection::vec(step(), 1..60)) {
        let mut chips = Chipset::new(&CONFIG);
        let mut now = GuestTime(0);
        for step in &steps {
            perform(&mut chips, &mut now, step);
            if matches!(step, Step::Read(..) | Step::Write(..)) {
                let mut settled = chips.clone();
                settled.settle();
                prop_assert_eq!(&settled, &chips, "{:?}", step);
            }
        }
    }

    #[test]
    fn equal_calls_lead_to_equal_chips(steps in prop::collection::vec(step(), 1..60)) {
        let (mut one, mut two) = (Chipset::new(&CONFIG), Chipset::new(&CONFIG));
        let (mut now_one, mut now_two) = (GuestTime(0), GuestTime(0));
        for (i, step) in steps.iter().enumerate() {
            let saw = perform(&mut one, &mut now_one, step);
            prop_assert_eq!(perform(&mut two, &mut now_two, step), saw);
            // A copy made on the way is as good as the original.
            if i == steps.len() / 2 {
                two = two.clone();
            }
        }
        prop_assert_eq!(one, two);
    }

    #[test]
    fn looking_in_between_changes_no_interrupt(
        steps in prop::collection::vec(step(), 1..60), looks in 1..50u64,
    ) {
        // Woken at every deadline or only when the guest does something: the guest sees the same. Waits are short,
        // so that the number of deadlines is.
        let (mut eager, mut lazy) = (Chipset::new(&CONFIG), Chipset::new(&CONFIG));
        let (mut now_eager, mut now_lazy) = (GuestTime(0), GuestTime(0));
        for step in &steps {
            let step = match step {
                Step::Wait(ns) => Step::Wait(ns % 1_000_000),
                other => other.clone(),
            };
            if let Step::Wait(ns) = step {
                let end = GuestTime(now_eager.0 + ns);
                for _ in 0..looks {
                    match eager.deadline().filter(|deadline| *deadline < end) {
                        Some(deadline) => eager.advance(deadline),
                        None => break,
                    }
                }
            }
            let saw = perform(&mut eager, &mut now_eager, &step);
            prop_assert_eq!(perform(&mut lazy, &mut now_lazy, &step), saw, "{:?}", step);
            prop_assert_eq!(eager.pending(), lazy.pending(), "{:?}", step);
        }
    }
}
