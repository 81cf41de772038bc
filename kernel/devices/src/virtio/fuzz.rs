//! Whatever a guest does to its virtio devices and their rings, they stay alive, bounded and deterministic.

use super::pci::spec::{self, common};
use super::queue::spec as ring;
use super::testing::{BUFFERS, CONSOLE_SLOT, Driver, NIC, NIC_SLOT, RINGS, Ring, put_descriptor};
use super::{console, net};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Descriptors in the rings of these tests.
const SIZE: u16 = 8;

/// What a driver, or somebody outside, does.
#[derive(Clone, Debug)]
enum Step {
    Read(u32, u8),
    Write(u32, u8, u64),
    ConfigRead(u16, u8),
    ConfigWrite(u16, u8, u32),
    /// A descriptor of a queue, or of the table at `BUFFERS`.
    Describe(usize, u16, (u64, u32, u16, u16)),
    /// Chains become available.
    Offer(usize, u16),
    /// The available ring's index, or another word of its area, is something.
    Spoil(usize, u64, u16),
    Fill(u64, Vec<u8>),
    Kick(u16),
    Receive(usize, u8),
    Type(usize),
    Link(bool),
    Start(u64),
    Reset,
}

fn register() -> impl Strategy<Value = u32> {
    const AREAS: [u32; 5] = [
        spec::ISR,
        spec::DEVICE,
        spec::NOTIFY,
        spec::MSIX_TABLE,
        spec::MSIX_PENDING,
    ];
    prop_oneof![
        6 => (0..16u32).prop_map(|field| 4 * field),
        3 => 0..spec::COMMON_BYTES,
        4 => (prop::sample::select(&AREAS[..]), 0..80u32).prop_map(|(area, at)| area + at),
        1 => 0..spec::BAR_BYTES as u32,
    ]
}

fn size() -> impl Strategy<Value = u8> {
    prop::sample::select(&[1u8, 2, 4, 8][..])
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..16u64,
        0..0x300u64,
        (0..16u64).prop_map(|n| RINGS + 0x800 * n),
        any::<u64>()
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        8 => (0..0x1000u64).prop_map(|at| BUFFERS + at),
        2 => (0..16u64).prop_map(|n| RINGS + 0x800 * n),
        1 => any::<u64>(),
    ];
    let bytes =
        prop_oneof![8 => 0..200u32, 2 => (0..20u32).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address, bytes, flags, next)
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..3usize;
    prop_oneof![
        3 => (register(), size()).prop_map(|(r, s)| Step::Read(r, s)),
        3 => (register(), size(), value()).prop_map(|(r, s, v)| Step::Write(r, s, v)),
        1 => (0..256u16, size()).prop_map(|(r, s)| Step::ConfigRead(r, s)),
        1 => (0x40..256u16, size(), any::<u32>()).prop_map(|(r, s, v)| Step::ConfigWrite(r, s, v)),
        12 => (0..4usize, 0..SIZE, descriptor()).prop_map(|(q, i, d)| Step::Describe(q, i, d)),
        8 => (queue(), 0..SIZE + 1).prop_map(|(q, head)| Step::Offer(q, head)),
        1 => (queue(), 0..64u64, any::<u16>()).prop_map(|(q, at, v)| Step::Spoil(q, at, v)),
        2 => (0..0x800u64, prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(a, b)| Step::Fill(a, b)),
        8 => (0..4u16).prop_map(Step::Kick),
        6 => (0..1600usize, any::<u8>()).prop_map(|(n, to)| Step::Receive(n, to)),
        3 => (0..100usize).prop_map(Step::Type),
        1 => any::<bool>().prop_map(Step::Link),
        2 => any::<u64>().prop_map(Step::Start),
        1 => Just(Step::Reset),
    ]
}

/// A device with queues, one way or another.
fn start(driver: &mut Driver, features: u64) {
    let bar = driver.bar() as u32;
    driver.config_write(0x10, 4, bar);
    driver.config_write(0x04, 2, 6);
    let offered = match driver.slot {
        NIC_SLOT => net::LAYOUT.features,
        _ => console::LAYOUT.features,
    } | spec::INDIRECT_DESC
        | spec::EVENT_IDX;
    driver.negotiate(features & offered | spec::VERSION_1);
    driver.ram.0[RINGS as usize..][..3 * Ring::BYTES as usize].fill(0);
    driver.rings.clear();
    for number in 0..3 {
        driver.add_queue(
            number,
            Ring::new(RINGS + u64::from(number) * Ring::BYTES, SIZE),
        );
    }
    if features >> 62 & 1 != 0 {
        driver.use_messages();
    }
    driver.write(common::STATUS, 1, 0xf);
}

/// Performs a step and returns what the guest sees of it.
fn perform(driver: &mut Driver, step: &Step) -> u64 {
    let mut seen = 0;
    match step {
        Step::Read(at, size) => {
            let at = driver.bar() + u64::from(*at);
            seen = driver.chips.read_memory(driver.now, at, *size).unwrap_or(7);
        }
        Step::Write(at, size, value) => {
            let at = driver.bar() + u64::from(*at);
            let effect = driver.chips.write_memory(driver.now, at, *size, *value);
            seen = effect.is_some().into();
        }
        Step::ConfigRead(at, size) => seen = driver.config_read(*at, *size).into(),
        Step::ConfigWrite(at, size, value) => driver.config_write(*at, *size, *value),
        Step::Describe(queue, index, descriptor) => {
            let table = match queue {
                3 => BUFFERS,
                _ => RINGS + *queue as u64 * Ring::BYTES,
            };
            put_descriptor(&mut driver.ram, table + 16 * u64::from(*index), *descriptor);
        }
        Step::Offer(queue, head) => driver.rings[*queue].offer(&mut driver.ram, *head),
        Step::Spoil(queue, at, value) => {
            let at = RINGS + *queue as u64 * Ring::BYTES + 0x1000 + at;
            driver.ram.put(at, &value.to_le_bytes());
        }
        Step::Fill(at, bytes) => driver.ram.put(BUFFERS + at, bytes),
        Step::Kick(number) => {
            let at = driver.bar() + u64::from(spec::NOTIFY) + 4 * u64::from(*number);
            driver.chips.write_memory(driver.now, at, 2, 0);
        }
        Step::Receive(bytes, to) => driver.receive(&vec![*to; *bytes]),
        Step::Type(bytes) => {
            let bytes = vec![b'x'; *bytes];
            seen = driver
                .chips
                .receive_virtio(driver.now, &bytes, &mut driver.ram) as u64;
        }
        Step::Link(up) => seen = driver.chips.set_link(driver.now, NIC, *up).into(),
        Step::Start(features) => start(driver, *features),
        Step::Reset => driver.chips.reset(driver.now),
    }
    driver.serve();
    seen
}

fn slot() -> impl Strategy<Value = u8> {
    prop::sample::select(&[NIC_SLOT, CONSOLE_SLOT][..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn devices_survive_and_put_out_no_more_than_they_may(
        slot in slot(), features in any::<u64>(), steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut driver = Driver::plugged(slot);
        start(&mut driver, features);
        for step in &steps {
            let said = driver.said.len();
            let sent = driver.frames.len();
            perform(&mut driver, step);
            prop_assert!(driver.frames.len() - sent <= ring::MAX_SIZE.into());
            let most = usize::from(ring::MAX_SIZE) * console::spec::CHAIN_BYTES as usize;
            prop_assert!(driver.said.len() - said <= most);
        }
        prop_assert!(driver.frames.iter().all(|frame| (14..=1518).contains(&frame.len())));
        // However broken, a reset helps.
        start(&mut driver, 0);
        prop_assert_eq!(driver.status(), 0xf);
    }

    #[test]
    fn equal_steps_lead_to_equal_devices_and_memory(
        slot in slot(), features in any::<u64>(), steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut one = Driver::plugged(slot);
        start(&mut one, features);
        let mut two = one.clone();
        for (i, step) in steps.iter().enumerate() {
            prop_assert_eq!(perform(&mut one, step), perform(&mut two, step));
            if i == steps.len() / 2 {
                two = two.clone();
            }
        }
        prop_assert_eq!(one.chips, two.chips);
        prop_assert!(one.ram == two.ram && one.frames == two.frames && one.said == two.said);
    }
}
