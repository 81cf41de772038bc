//! The network card, with frames that are right and frames that are not.

use super::*;
use crate::virtio::pci::spec::{EVENT_IDX, common};
use crate::virtio::queue::spec::WRITE;
use crate::virtio::testing::{BUFFERS, Driver, MAC, NIC, NIC_SLOT, frame};
use alloc::vec;

const HEADER: u32 = spec::HEADER_BYTES;
const OTHER: Mac = Mac([0x52, 0x54, 0, 9, 9, 9]);
const GROUP: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

fn start(features: u64) -> Driver {
    Driver::started(NIC_SLOT, features, 16)
}

fn counters(driver: &Driver) -> Counters {
    *driver.chips.nic(NIC).unwrap().counters()
}

/// Transmits what `header` and `bytes` make up.
fn transmit(driver: &mut Driver, header: [u8; 12], bytes: &[u8]) {
    driver.ram.put(BUFFERS, &header);
    driver.ram.put(BUFFERS + 0x100, bytes);
    driver.offer(
        1,
        0,
        &[
            (BUFFERS, HEADER, 0),
            (BUFFERS + 0x100, bytes.len() as u32, 0),
        ],
    );
    driver.kick(spec::TRANSMIT);
}

/// Gives the driver's side of the receive queue buffers of these sizes, 2 KiB apart.
fn provide(driver: &mut Driver, sizes: &[u32]) {
    for (i, bytes) in (0..).zip(sizes) {
        let address = BUFFERS + 0x800 * u64::from(i);
        driver.offer(0, i, &[(address, *bytes, WRITE)]);
    }
}

/// Gives the device a command. Returns its answer.
fn command(driver: &mut Driver, bytes: &[u8]) -> u8 {
    let answer = BUFFERS + 0xff00;
    driver.ram.put(BUFFERS + 0xe000, bytes);
    driver.ram.put(answer, &[0x77]);
    driver.offer(
        2,
        0,
        &[
            (BUFFERS + 0xe000, bytes.len() as u32, 0),
            (answer, 1, WRITE),
        ],
    );
    driver.kick(spec::CONTROL);
    driver.ram.bytes(answer, 1)[0]
}

fn tables(stations: &[Mac], groups: &[Mac]) -> Vec<u8> {
    let mut bytes = vec![spec::CLASS_MAC, spec::MAC_COMMANDS[0]];
    for table in [stations, groups] {
        bytes.extend((table.len() as u32).to_le_bytes());
        table.iter().for_each(|mac| bytes.extend(mac.0));
    }
    bytes
}

#[test]
fn the_configuration_tells_address_link_and_mtu() {
    let mut driver = start(feature::STATUS | feature::MTU);
    let at = crate::virtio::pci::spec::DEVICE;
    assert_eq!(
        driver.read(at, 8).to_le_bytes(),
        [0x52, 0x54, 0, 1, 2, 3, 1, 0]
    );
    assert_eq!(driver.read(at + 8, 4), 1500 << 16 | 1);
    let generation = driver.read(common::GENERATION, 1);
    driver.use_messages();
    assert!(driver.chips.set_link(driver.now, NIC, false));
    assert_eq!(driver.read(at + 6, 2), 0);
    assert_ne!(driver.read(common::GENERATION, 1), generation);
    assert_eq!(driver.interrupts(), [0x43]);
    // No change, no interrupt; no such card.
    assert!(driver.chips.set_link(driver.now, NIC, false));
    assert!(!driver.chips.set_link(driver.now, 0, false));
    assert_eq!(driver.interrupts(), []);
}

#[test]
fn configurations_that_are_none() {
    let config = *start(0).chips.nic(NIC).unwrap().configuration();
    assert!(config.is_valid());
    for (mac, mtu) in [(MAC, 67), (MAC, 9001), (GROUP, 1500), (Mac([0; 6]), 1500)] {
        assert!(!Config { mac, mtu, ..config }.is_valid(), "{mac} {mtu}");
    }
}

// Transmit.

#[test]
fn frames_leave_and_their_buffers_come_back_at_once() {
    let mut driver = start(0);
    driver.use_messages();
    let sent: Vec<_> = [14, 60, 1514, 1518].map(|bytes| frame(OTHER, bytes)).into();
    for one in &sent {
        transmit(&mut driver, [0; 12], one);
    }
    assert_eq!(driver.frames, sent);
    assert_eq!(driver.used(1), 4);
    assert_eq!(driver.rings[1].used_entry(&driver.ram, 3), (0, 0));
    assert_eq!(driver.interrupts(), [0x41]);
    assert_eq!(counters(&driver).transmitted, 4);
}

#[test]
fn frames_of_one_kick_keep_their_order_and_interrupt_once() {
    let mut driver = start(EVENT_IDX);
    driver.use_messages();
    for i in 0..16u16 {
        let at = BUFFERS + 0x100 * u64::from(i);
        driver.ram.put(at + 12, &frame(OTHER, 20 + usize::from(i)));
        driver.offer(1, i, &[(at, HEADER + 20 + u32::from(i), 0)]);
    }
    driver.kick(spec::TRANSMIT);
    let lengths: Vec<_> = driver.frames.iter().map(Vec::len).collect();
    assert_eq!(lengths, (20..36).collect::<Vec<_>>());
    assert_eq!(driver.interrupts(), [0x41]);
    let (_, kick_at) = driver.rings[1].events();
    assert_eq!(driver.ram.u16(kick_at), 16);
}

#[test]
fn what_is_no_frame_is_dropped_and_its_buffer_comes_back() {
    let mut driver = start(0);
    for bytes in [1, 13, 1519, 9000] {
        transmit(&mut driver, [0; 12], &vec![0; bytes]);
    }
    // No frame at all behind the header.
    driver.offer(1, 0, &[(BUFFERS, HEADER, 0)]);
    driver.kick(spec::TRANSMIT);
    // Segmentation, which was not offered; a checksum, which was not accepted.
    transmit(
        &mut driver,
        [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &frame(OTHER, 100),
    );
    transmit(
        &mut driver,
        [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        &frame(OTHER, 100),
    );
    assert!(driver.frames.is_empty() && !driver.is_broken());
    assert_eq!(driver.used(1), 7);
    assert_eq!(counters(&driver).transmit_refused, 7);
}

#[test]
fn checksums_are_completed() {
    let mut driver = start(feature::CSUM);
    let bytes = frame(OTHER, 90);
    transmit(&mut driver, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &bytes);
    let mut want = bytes.clone();
    assert!(checksum::complete(&mut want, 34, 16));
    assert_ne!(want, bytes);
    assert_eq!(driver.frames, [want]);
    // Outside of the frame.
    transmit(&mut driver, [1, 0, 0, 0, 0, 0, 80, 0, 9, 0, 0, 0], &bytes);
    transmit(
        &mut driver,
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        &bytes,
    );
    assert_eq!(counters(&driver).transmit_refused, 2);
    // Not asked for.
    transmit(&mut driver, [0, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &bytes);
    assert_eq!(driver.frames[1], bytes);
}

#[test]
fn without_a_link_nothing_leaves() {
    let mut driver = start(0);
    driver.chips.set_link(driver.now, NIC, false);
    transmit(&mut driver, [0; 12], &frame(OTHER, 60));
    assert_eq!((driver.frames.len(), driver.used(1)), (0, 1));
    assert_eq!(counters(&driver).transmit_down, 1);
    driver.chips.set_link(driver.now, NIC, true);
    transmit(&mut driver, [0; 12], &frame(OTHER, 60));
    assert_eq!(driver.frames.len(), 1);
}

#[test]
fn malformed_chains_to_transmit_break_it() {
    // A part to write; less than a header.
    for chain in [
        &[(BUFFERS, 72, 0), (BUFFERS, 1, WRITE)][..],
        &[(BUFFERS, 72, WRITE)],
        &[(BUFFERS, HEADER - 1, 0)],
        &[(1 << 40, 72, 0)],
        &[(BUFFERS, HEADER, 0), (1 << 40, 72, 0)],
    ] {
        let mut driver = start(0);
        driver.offer(1, 0, chain);
        driver.kick(spec::TRANSMIT);
        assert!(driver.is_broken() && driver.frames.is_empty(), "{chain:x?}");
    }
}

// Receive.

#[test]
fn a_frame_goes_into_one_buffer() {
    let mut driver = start(0);
    driver.use_messages();
    provide(&mut driver, &[1530, 1530]);
    // Kicks are never asked for.
    assert_eq!(driver.ram.u16(driver.rings[0].base + 0x2000), 1);
    let came = frame(MAC, 1514);
    driver.receive(&came);
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(driver.ram.bytes(BUFFERS, 12), header);
    assert_eq!(driver.ram.bytes(BUFFERS + 12, 1514), came);
    assert_eq!(
        (driver.used(0), driver.rings[0].used_entry(&driver.ram, 0)),
        (1, (0, 1526))
    );
    assert_eq!(driver.interrupts(), [0x40]);
    assert_eq!(counters(&driver).received, 1);
}

#[test]
fn a_header_may_lie_in_pieces() {
    let mut driver = start(0);
    let pieces = [
        (BUFFERS, 5, WRITE),
        (BUFFERS + 8, 6, WRITE),
        (BUFFERS + 16, 2000, WRITE),
    ];
    driver.offer(0, 0, &pieces);
    let came = frame(MAC, 60);
    driver.receive(&came);
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(driver.ram.bytes(BUFFERS, 17), header);
    assert_eq!(driver.ram.bytes(BUFFERS + 17, 60), came);
}

#[test]
fn a_frame_is_spread_over_buffers_if_that_is_agreed_upon() {
    let mut driver = start(feature::MRG_RXBUF | EVENT_IDX);
    driver.use_messages();
    provide(&mut driver, &[12, 100, 50, 1000, 1000]);
    let came = frame(MAC, 300);
    driver.receive(&came);
    assert_eq!(driver.used(0), 4);
    let entries = [0, 1, 2, 3].map(|slot| driver.rings[0].used_entry(&driver.ram, slot));
    assert_eq!(entries, [(0, 12), (1, 100), (2, 50), (3, 150)]);
    assert_eq!(driver.ram.bytes(BUFFERS + 10, 2), [4, 0]);
    let parts =
        [(1, 100), (2, 50), (3, 150)].map(|(i, n)| driver.ram.bytes(BUFFERS + 0x800 * i, n));
    assert_eq!(parts.concat(), came);
    // An index that the driver has passed: it kicks no more for buffers.
    let (_, kick_at) = driver.rings[0].events();
    assert_eq!(driver.ram.u16(kick_at), 3);
    assert_eq!(driver.interrupts(), [0x40]);
}

#[test]
fn without_enough_buffers_a_frame_is_dropped_and_none_used() {
    let mut driver = start(feature::MRG_RXBUF);
    driver.use_messages();
    driver.receive(&frame(MAC, 60));
    provide(&mut driver, &[100, 100]);
    driver.receive(&frame(MAC, 189));
    assert_eq!(
        (driver.used(0), counters(&driver).receive_no_buffer),
        (0, 2)
    );
    assert_eq!(driver.interrupts(), []);
    // Exactly enough.
    driver.receive(&frame(MAC, 188));
    assert_eq!((driver.used(0), counters(&driver).received), (2, 1));
    assert_eq!(driver.rings[0].used_entry(&driver.ram, 1), (1, 100));
    // Without the feature one buffer has to do.
    let mut driver = start(0);
    provide(&mut driver, &[100, 100]);
    driver.receive(&frame(MAC, 89));
    assert_eq!(
        (driver.used(0), counters(&driver).receive_no_buffer),
        (0, 1)
    );
    driver.receive(&frame(MAC, 88));
    assert_eq!(driver.used(0), 1);
}

#[test]
fn frames_too_long_too_short_or_without_link_are_dropped() {
    let mut driver = start(0);
    provide(&mut driver, &[2048]);
    for bytes in [0, 13, 1519, 9216] {
        driver.receive(&vec![0xff; bytes]);
    }
    driver.chips.set_link(driver.now, NIC, false);
    driver.receive(&frame(MAC, 60));
    assert!(!driver.chips.wants_frame(NIC, &frame(MAC, 60)));
    driver.chips.set_link(driver.now, NIC, true);
    assert!(driver.chips.wants_frame(NIC, &frame(MAC, 60)));
    assert!(!driver.chips.wants_frame(NIC, &frame(MAC, 1519)));
    let Counters {
        receive_refused,
        receive_down,
        received,
        ..
    } = counters(&driver);
    assert_eq!((receive_refused, receive_down, received), (4, 1, 0));
    driver.receive(&frame(MAC, 1518));
    assert_eq!(counters(&driver).received, 1);
}

#[test]
fn frames_before_the_driver_is_ready_or_may_master_the_bus_are_dropped() {
    let mut driver = Driver::plugged(NIC_SLOT);
    driver.receive(&frame(MAC, 60));
    assert!(!driver.chips.wants_frame(NIC, &frame(MAC, 60)));
    let mut started = start(0);
    provide(&mut started, &[2048]);
    started.config_write(4, 2, 2);
    started.receive(&frame(MAC, 60));
    for driver in [driver, started] {
        assert_eq!(counters(&driver).receive_no_buffer, 1);
    }
    let mut none = start(0);
    assert!(
        !none
            .chips
            .receive_frame(none.now, 0, &[0; 60], &mut none.ram)
    );
}

#[test]
fn malformed_buffers_to_receive_break_it() {
    for chain in [
        &[(BUFFERS, 2000, 0)][..],
        &[(BUFFERS, 1, 0), (BUFFERS, 2000, WRITE)],
        &[(BUFFERS, HEADER - 1, WRITE)],
        &[(1 << 40, 2000, WRITE)],
    ] {
        let mut driver = start(feature::MRG_RXBUF);
        driver.offer(0, 0, chain);
        driver.receive(&frame(MAC, 60));
        assert!(driver.is_broken(), "{chain:x?}");
        assert_eq!(driver.used(0), 0);
    }
}

// Commands.

#[test]
fn the_filter_does_what_it_is_told() {
    let filters = feature::CTRL_VQ | feature::CTRL_RX;
    let mut driver = start(filters);
    let wanted = |driver: &Driver| {
        let frames = [MAC, Mac::BROADCAST, OTHER, GROUP];
        frames.map(|to| driver.chips.wants_frame(NIC, &frame(to, 60)))
    };
    assert_eq!(wanted(&driver), [true, true, false, false]);
    for (bytes, want) in [
        (vec![0, 1, 1], [true, true, false, true]),
        (vec![0, 1, 0], [true, true, false, false]),
        (vec![0, 0, 1], [true; 4]),
        (vec![0, 0, 0], [true, true, false, false]),
        (tables(&[OTHER], &[]), [true, true, true, false]),
        (tables(&[], &[MAC, GROUP]), [true, true, false, true]),
        // More than a table holds: all of that kind.
        (tables(&[MAC; 65], &[]), [true, true, true, false]),
        (tables(&[MAC; 64], &[GROUP; 300]), [true, true, false, true]),
        (tables(&[], &[]), [true, true, false, false]),
    ] {
        assert_eq!(command(&mut driver, &bytes), 0, "{bytes:?}");
        assert_eq!(wanted(&driver), want, "{bytes:?}");
    }
    // And what is not wanted does not arrive.
    provide(&mut driver, &[2048, 2048]);
    driver.receive(&frame(OTHER, 60));
    assert_eq!((driver.used(0), counters(&driver).receive_filtered), (0, 1));
    driver.receive(&frame(MAC, 60));
    assert_eq!(driver.used(0), 1);
    // A driver that cannot filter gets everything.
    assert_eq!(wanted(&start(0)), [true; 4]);
}

#[test]
fn the_address_is_changed_and_comes_back_with_a_reset() {
    let mut driver = start(feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_MAC_ADDR);
    let mut set = vec![spec::CLASS_MAC, spec::MAC_COMMANDS[1]];
    set.extend(OTHER.0);
    assert_eq!(command(&mut driver, &set), 0);
    let at = crate::virtio::pci::spec::DEVICE;
    assert_eq!(driver.read(at, 8).to_le_bytes()[..6], OTHER.0);
    assert!(driver.chips.wants_frame(NIC, &frame(OTHER, 60)));
    assert!(!driver.chips.wants_frame(NIC, &frame(MAC, 60)));
    // An address of a group is none.
    set[2] |= 1;
    assert_eq!(command(&mut driver, &set), 1);
    driver.write(common::STATUS, 1, 0);
    assert_eq!(driver.read(at, 8).to_le_bytes()[..6], MAC.0);
}

#[test]
fn commands_that_are_none_are_refused() {
    let all = feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_MAC_ADDR;
    let mut driver = start(all);
    let mut cut = tables(&[OTHER, MAC], &[GROUP]);
    let mut long = cut.clone();
    long[2..6].fill(0xff);
    let mut commands = vec![
        vec![0, 0],
        vec![0, 2, 1],
        vec![1, 2],
        vec![4, 0, 1, 0],
        vec![1, 1, 2, 2, 2, 2, 2],
        long,
    ];
    while cut.len() > 3 {
        cut.pop();
        commands.push(cut.clone());
    }
    for bytes in &commands {
        assert_eq!(command(&mut driver, bytes), 1, "{bytes:?}");
    }
    assert_eq!(counters(&driver).commands_refused, commands.len() as u64);
    assert!(!driver.chips.wants_frame(NIC, &frame(OTHER, 60)));
    // Commands of features that were not agreed upon.
    let mut driver = start(feature::CTRL_VQ);
    for bytes in [
        vec![0, 0, 1],
        tables(&[], &[]),
        vec![1, 1, 2, 2, 2, 2, 2, 2],
    ] {
        assert_eq!(command(&mut driver, &bytes), 1, "{bytes:?}");
    }
}

#[test]
fn commands_without_words_or_place_for_an_answer_break_it() {
    for chain in [
        &[(BUFFERS, 3, 0)][..],
        &[(BUFFERS, 1, 0), (BUFFERS + 8, 1, WRITE)],
        &[(BUFFERS + 8, 1, WRITE)],
    ] {
        let mut driver = start(feature::CTRL_VQ);
        driver.offer(2, 0, chain);
        driver.kick(spec::CONTROL);
        assert!(driver.is_broken(), "{chain:x?}");
    }
}
