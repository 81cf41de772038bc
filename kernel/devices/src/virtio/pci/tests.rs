//! The transport as a driver meets it: capabilities, status, features, interrupts.

use super::spec::{self, common};
use crate::chipset::Effect;
use crate::pci::spec as bus;
use crate::virtio::queue::spec::MAX_SIZE;
use crate::virtio::testing::{BUFFERS, CONSOLE_SLOT, Driver, NIC, NIC_SLOT, RINGS, Ring};
use crate::virtio::{console, net};
use alloc::vec::Vec;

const RECEIVE: u16 = net::spec::RECEIVE;
const TRANSMIT: u16 = net::spec::TRANSMIT;

/// The vectors of the card's messages: queues, configuration.
const MESSAGES: [u8; 4] = [0x40, 0x41, 0x42, 0x43];

/// Transmits a frame: something that interrupts.
fn transmit(driver: &mut Driver) {
    driver.offer(1, 0, &[(BUFFERS, 12 + 60, 0)]);
    driver.kick(TRANSMIT);
}

#[test]
fn a_driver_finds_its_registers_by_capabilities() {
    for (slot, device, class, queues) in [
        (NIC_SLOT, 0x1041, 0x02_0000, 3),
        (CONSOLE_SLOT, 0x1043, 0x07_8000, 2),
    ] {
        let mut driver = Driver::plugged(slot);
        assert_eq!(driver.config_read(0, 4), device << 16 | 0x1af4);
        assert_eq!(driver.config_read(8, 4), class << 8 | 1);
        assert_eq!(driver.config_read(0x2c, 4), 0x1100_1af4);
        assert_eq!(driver.config_read(0x3d, 1), 1);
        for (kind, offset, bytes, length) in [
            (1, 0x0000, 56, 16),
            (2, 0x3000, 4 * queues, 20),
            (3, 0x1000, 1, 16),
            (4, 0x2000, 16, 16),
            (5, 0, 0, 20),
        ] {
            let at = driver.capability(|driver, at| {
                driver.config_read(at, 1) == 9 && driver.config_read(at + 3, 1) == kind
            });
            let read = [2, 4].map(|offset| driver.config_read(at + offset, 1));
            assert_eq!(read, [length, 0], "{kind}");
            let read = [8, 12].map(|offset| driver.config_read(at + offset, 4));
            assert_eq!(read, [offset, bytes], "{kind}");
            if kind == 2 {
                assert_eq!(driver.config_read(at + 16, 4), 4);
            }
        }
        let msix = driver.capability(|driver, at| driver.config_read(at, 1) == 0x11);
        assert_eq!(driver.config_read(msix + 2, 2), queues);
        assert_eq!(driver.config_read(msix + 4, 4), 0x4000);
        assert_eq!(driver.config_read(msix + 8, 4), 0x5000);
        assert_eq!(driver.read(common::NUM_QUEUES, 2), queues.into());
    }
}

#[test]
fn features_come_in_halves_and_are_checked() {
    let mut driver = Driver::plugged(NIC_SLOT);
    let mut offered = 0;
    for (half, shift) in [(0, 0), (1, 32)] {
        driver.write(common::DEVICE_FEATURE_SELECT, 4, half);
        offered |= driver.read(common::DEVICE_FEATURE, 4) << shift;
    }
    let ours = net::LAYOUT.features;
    assert_eq!(
        offered,
        ours | spec::INDIRECT_DESC | spec::EVENT_IDX | spec::VERSION_1
    );
    driver.write(common::DEVICE_FEATURE_SELECT, 4, 2);
    assert_eq!(driver.read(common::DEVICE_FEATURE, 4), 0);
    for (features, agrees) in [
        (offered, true),
        (spec::VERSION_1, true),
        (ours, false),
        (spec::VERSION_1 | 1 << 40, false),
        (spec::VERSION_1 | 1 << 7, false),
        (spec::VERSION_1 | net::feature::CTRL_RX, false),
        (spec::VERSION_1 | net::feature::CTRL_MAC_ADDR, false),
    ] {
        assert_eq!(driver.negotiate(features), agrees, "{features:#x}");
        driver.write(common::DRIVER_FEATURE_SELECT, 4, 0);
        assert_eq!(
            driver.read(common::DRIVER_FEATURE, 4),
            features & 0xffff_ffff
        );
        // Agreed upon is agreed upon.
        driver.write(common::DRIVER_FEATURE, 4, 0);
        let left = if agrees { features & 0xffff_ffff } else { 0 };
        assert_eq!(driver.read(common::DRIVER_FEATURE, 4), left);
    }
}

#[test]
fn the_status_has_an_order() {
    let mut driver = Driver::plugged(NIC_SLOT);
    // No DRIVER_OK without FEATURES_OK; nothing is cleared but all; NEEDS_RESET is the device's.
    for (written, read) in [(1, 1), (2, 3), (0x4f, 0x3), (0x80, 0x83), (0, 0)] {
        driver.write(common::STATUS, 1, written);
        assert_eq!(u64::from(driver.status()), read, "{written:#x}");
    }
    assert!(driver.negotiate(spec::VERSION_1));
    driver.write(common::STATUS, 1, 0xf);
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn queues_are_set_up_and_reset() {
    let mut driver = Driver::plugged(NIC_SLOT);
    driver.write(common::QUEUE_SELECT, 2, 1);
    assert_eq!(driver.read(common::QUEUE_SIZE, 2), MAX_SIZE.into());
    assert_eq!(driver.read(common::QUEUE_NOTIFY, 2), 1);
    // No queue before the features are agreed upon.
    driver.write(common::QUEUE_ENABLE, 2, 1);
    assert_eq!(driver.read(common::QUEUE_ENABLE, 2), 0);
    assert!(driver.negotiate(spec::VERSION_1));
    driver.write(common::QUEUE_SELECT, 2, 1);
    driver.write(common::QUEUE_SIZE, 2, 64);
    driver.write(common::QUEUE_AREAS, 8, 0x1_2345_6780);
    driver.write(common::QUEUE_AREAS + 12, 4, 1);
    driver.write(common::QUEUE_AREAS + 8, 4, 0xffff_0000_2000);
    // Accesses that no driver makes.
    driver.write(common::QUEUE_AREAS + 12, 8, u64::MAX);
    driver.write(common::QUEUE_AREAS + 2, 4, u64::MAX);
    driver.write(common::QUEUE_SIZE, 4, 3);
    driver.write(common::QUEUE_ENABLE, 2, 1);
    assert_eq!(driver.read(common::QUEUE_AREAS, 8), 0x1_2345_6780);
    assert_eq!(driver.read(common::QUEUE_AREAS + 8, 8), 0x1_0000_2000);
    assert_eq!(driver.read(common::QUEUE_SIZE, 8), 0x0001_0001_ffff_0040);
    // There is no fourth.
    driver.write(common::QUEUE_SELECT, 2, 3);
    assert_eq!(driver.read(common::QUEUE_SIZE, 8), 0);
    driver.write(common::QUEUE_ENABLE, 2, 1);
    assert_eq!(driver.read(common::QUEUE_ENABLE, 2), 0);
    driver.write(common::STATUS, 1, 0);
    driver.write(common::QUEUE_SELECT, 2, 1);
    assert_eq!(driver.read(common::QUEUE_ENABLE, 2), 0);
    assert_eq!(driver.read(common::QUEUE_AREAS, 8), 0);
}

#[test]
fn a_pin_is_a_level_until_the_status_is_read() {
    let mut driver = Driver::started(NIC_SLOT, 0, 8);
    // Slot 3, INTA: the I/O APIC's pin 19, level, active low.
    for (register, value) in [(0x37, 0), (0x36, 0xa051)] {
        for (offset, value) in [(0, register), (0x10, value)] {
            let at = crate::ioapic::spec::ADDRESS + offset;
            driver.chips.write_memory(driver.now, at, 4, value).unwrap();
        }
    }
    transmit(&mut driver);
    assert_eq!(driver.config_read(6, 2) & 8, 8);
    // A level: ended without a look at the cause it comes again.
    assert_eq!(driver.chips.acknowledge(), Some(0x51));
    driver
        .chips
        .write_memory(driver.now, 0xfee0_00b0, 4, 0)
        .unwrap();
    assert_eq!(driver.chips.acknowledge(), Some(0x51));
    assert_eq!(driver.read(spec::ISR, 1), 1);
    driver
        .chips
        .write_memory(driver.now, 0xfee0_00b0, 4, 0)
        .unwrap();
    assert_eq!(driver.chips.acknowledge(), None);
    assert_eq!(driver.read(spec::ISR, 1), 0);
    // Two causes, and a reset that takes both back.
    transmit(&mut driver);
    driver.rings[0].offer(&mut driver.ram, 99);
    driver.receive(&[0; 60]);
    assert!(driver.is_broken());
    assert_eq!(driver.config_read(6, 2) & 8, 8);
    driver.write(common::STATUS, 1, 0);
    assert_eq!(driver.config_read(6, 2) & 8, 0);
    assert_eq!(driver.read(spec::ISR, 1), 0);
}

#[test]
fn messages_go_where_the_table_says() {
    let mut driver = Driver::started(NIC_SLOT, net::feature::STATUS, 8);
    driver.use_messages();
    assert_eq!(driver.read(spec::MSIX_TABLE + 16 + 8, 8), 0x41);
    transmit(&mut driver);
    assert_eq!(driver.interrupts(), [MESSAGES[1]]);
    // A message leaves no level and no status.
    assert_eq!(driver.read(spec::ISR, 1), 0);
    assert_eq!(driver.config_read(6, 2) & 8, 0);
    driver.chips.set_link(driver.now, NIC, false);
    assert_eq!(driver.interrupts(), [MESSAGES[3]]);
    // No message for the queue: none goes.
    driver.write(common::QUEUE_SELECT, 2, 1);
    driver.write(common::QUEUE_VECTOR, 2, 4);
    assert_eq!(
        driver.read(common::QUEUE_VECTOR, 2),
        u64::from(spec::NO_VECTOR)
    );
    transmit(&mut driver);
    assert_eq!(driver.interrupts(), []);
    driver.write(common::CONFIG_VECTOR, 2, 0x1234);
    assert_eq!(
        driver.read(common::CONFIG_VECTOR, 2),
        u64::from(spec::NO_VECTOR)
    );
}

#[test]
fn a_masked_message_waits() {
    let mut driver = Driver::started(NIC_SLOT, 0, 8);
    driver.use_messages();
    let control = spec::MSIX_TABLE + 16 + 12;
    driver.write(control, 4, 0xffff_ffff);
    assert_eq!(driver.read(control, 4), 1);
    transmit(&mut driver);
    assert_eq!(driver.interrupts(), []);
    assert_eq!(driver.read(spec::MSIX_PENDING, 8), 2);
    driver.write(control, 4, 0);
    assert_eq!(driver.interrupts(), [MESSAGES[1]]);
    assert_eq!(driver.read(spec::MSIX_PENDING, 8), 0);
    // All of them …
    driver.set_messages(spec::MSIX_ENABLE | spec::MSIX_MASK);
    transmit(&mut driver);
    transmit(&mut driver);
    assert_eq!(driver.interrupts(), []);
    driver.set_messages(spec::MSIX_ENABLE);
    assert_eq!(driver.interrupts(), [MESSAGES[1]]);
    // … and as long as the function must not write memory.
    driver.chips.set_link(driver.now, NIC, false);
    driver.config_write(4, 2, 2);
    driver.rings[1].offer(&mut driver.ram, 0);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(1), 3);
    driver.config_write(4, 2, 6);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(1), 4);
}

#[test]
fn messages_are_not_reset_with_the_device() {
    let mut driver = Driver::started(NIC_SLOT, 0, 8);
    driver.use_messages();
    driver.set_messages(spec::MSIX_ENABLE | spec::MSIX_MASK);
    transmit(&mut driver);
    driver.write(common::STATUS, 1, 0);
    assert_eq!(driver.read(spec::MSIX_PENDING, 8), 0);
    assert_eq!(driver.read(spec::MSIX_TABLE + 24, 8), 0x41);
    driver.write(common::QUEUE_SELECT, 2, 1);
    assert_eq!(
        driver.read(common::QUEUE_VECTOR, 2),
        u64::from(spec::NO_VECTOR)
    );
}

#[test]
fn kicks_count_only_when_the_driver_is_ready() {
    let mut driver = Driver::plugged(NIC_SLOT);
    assert!(driver.negotiate(spec::VERSION_1));
    for number in 0..2 {
        driver.add_queue(
            number,
            Ring::new(RINGS + u64::from(number) * Ring::BYTES, 8),
        );
    }
    transmit(&mut driver);
    assert_eq!((driver.used(1), driver.frames.len()), (0, 0));
    // What waited is looked at then.
    driver.write(common::STATUS, 1, 0xf);
    driver.serve();
    assert_eq!((driver.used(1), driver.frames.len()), (1, 1));
    // A queue that is off, one that does not exist, addresses between.
    for number in [2, 3, 9, 1023] {
        driver.kick(number);
    }
    driver.write(spec::NOTIFY + 6, 2, 1);
    driver.serve();
    assert!(!driver.is_broken());
}

#[test]
fn a_broken_device_says_so_and_waits_for_a_reset() {
    let mut driver = Driver::started(NIC_SLOT, 0, 8);
    driver.use_messages();
    driver.rings[1].offer(&mut driver.ram, 99);
    driver.kick(TRANSMIT);
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(driver.interrupts(), [MESSAGES[3]]);
    // It does nothing more, and the driver cannot make it.
    transmit(&mut driver);
    driver.receive(&[0; 60]);
    driver.write(common::STATUS, 1, 0xf);
    assert_eq!(driver.status(), 0x4f);
    assert!(driver.frames.is_empty() && driver.interrupts().is_empty());
    driver.write(common::STATUS, 1, 0);
    assert_eq!(driver.status(), 0);
    driver.rings.clear();
    assert!(driver.negotiate(spec::VERSION_1));
    driver.ram.0.fill(0);
    for number in 0..2 {
        driver.add_queue(
            number,
            Ring::new(RINGS + u64::from(number) * Ring::BYTES, 8),
        );
    }
    driver.write(common::STATUS, 1, 0xf);
    driver.serve();
    transmit(&mut driver);
    assert_eq!(driver.frames.len(), 1);
}

#[test]
fn a_queue_that_cannot_be_breaks_the_device_before_it_runs() {
    let mut driver = Driver::plugged(NIC_SLOT);
    assert!(driver.negotiate(spec::VERSION_1));
    driver.rings.clear();
    driver.add_queue(RECEIVE, Ring::new(RINGS, 8));
    driver.use_messages();
    driver.add_queue(TRANSMIT, Ring::new(RINGS + 8, 8));
    assert!(driver.is_broken());
    assert_eq!(driver.interrupts(), []);
    driver.write(common::CONFIG_VECTOR, 2, 1);
    driver.write(common::STATUS, 1, 0xf);
    assert_eq!(driver.interrupts(), [MESSAGES[1]]);
}

#[test]
fn registers_are_reached_by_configuration_space_too() {
    let mut driver = Driver::started(CONSOLE_SLOT, console::spec::SIZE, 8);
    let at = driver.capability(|driver, at| {
        driver.config_read(at, 1) == 9 && driver.config_read(at + 3, 1) == 5
    });
    let aim = |driver: &mut Driver, offset: u32, bytes: u32| {
        driver.config_write(at + 8, 4, offset);
        driver.config_write(at + 12, 4, bytes);
    };
    aim(&mut driver, spec::DEVICE, 2);
    assert_eq!(driver.config_read(at + 16, 4) & 0xffff, 80);
    aim(&mut driver, common::NUM_QUEUES, 2);
    assert_eq!(driver.config_read(at + 16, 2), 2);
    // A kick, by the ports.
    driver.ram.put(BUFFERS, b"hello");
    driver.offer(1, 0, &[(BUFFERS, 5, 0)]);
    aim(&mut driver, spec::NOTIFY + 4, 2);
    let address = 1 << 31 | u32::from(CONSOLE_SLOT) << 11 | u32::from(at + 16);
    for (port, value) in [(bus::ADDRESS_PORT, address), (bus::DATA_PORT, 1)] {
        let effect = driver.chips.write_port(driver.now, port, 4, value);
        assert_eq!(effect, Some(Effect::None));
    }
    driver.serve();
    assert_eq!(driver.said, b"hello");
    aim(&mut driver, common::STATUS, 1);
    let status = driver.chips.read_port(driver.now, bus::DATA_PORT, 1);
    assert_eq!(status, Some(0xf));
    // What is no access.
    for (offset, bytes) in [(1, 2), (0, 3), (0, 0), (2, 4), (0, 8)] {
        aim(&mut driver, offset, bytes);
        driver.config_write(at + 16, 4, 0x1234);
        assert_eq!(driver.config_read(at + 16, 4), 0x1234, "{offset} {bytes}");
    }
    // Another BAR does not exist.
    aim(&mut driver, common::NUM_QUEUES, 2);
    driver.config_write(at + 4, 1, 1);
    assert_eq!(driver.config_read(at + 16, 4), 0x1234);
}

#[test]
fn a_reset_of_the_machine_resets_its_devices() {
    let mut driver = Driver::started(NIC_SLOT, 0, 8);
    driver.use_messages();
    driver.chips.set_link(driver.now, NIC, false);
    transmit(&mut driver);
    driver.chips.reset(driver.now);
    assert_eq!(driver.chips.read_memory(driver.now, driver.bar(), 4), None);
    let card = driver.chips.nic(NIC).unwrap();
    assert!(!card.is_link_up());
    assert_eq!(card.counters().transmit_down, 1);
    let status: Vec<u8> = driver
        .chips
        .virtio()
        .iter()
        .map(|d| d.transport().status())
        .collect();
    assert_eq!(status, [0, 0]);
}
