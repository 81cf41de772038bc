//! The console, said to and typed on.

use super::*;
use crate::virtio::pci::spec::EVENT_IDX;
use crate::virtio::queue::spec::WRITE;
use crate::virtio::testing::{BUFFERS, CONSOLE_SLOT, Driver};
use alloc::vec;

fn console(driver: &Driver) -> &Console {
    match driver.chips.virtio()[1].model() {
        crate::virtio::Model::Console(console) => console,
        other => panic!("{other:?}"),
    }
}

fn typed(driver: &mut Driver, bytes: &[u8]) -> usize {
    driver
        .chips
        .receive_virtio(driver.now, bytes, &mut driver.ram)
}

#[test]
fn what_is_said_comes_out_in_order() {
    let mut driver = Driver::started(CONSOLE_SLOT, 0, 8);
    let long: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
    driver.ram.put(BUFFERS, &long);
    driver.offer(1, 0, &[(BUFFERS, 10, 0), (BUFFERS + 10, 1500, 0)]);
    driver.offer(1, 2, &[(BUFFERS + 1510, 1490, 0)]);
    driver.kick(spec::TRANSMIT);
    assert_eq!(driver.said, long);
    assert_eq!(driver.used(1), 2);
    assert_eq!(console(&driver).said(), 3000);
}

#[test]
fn too_much_in_a_chain_is_cut() {
    let mut driver = Driver::started(CONSOLE_SLOT, 0, 8);
    driver.offer(1, 0, &[(BUFFERS, spec::CHAIN_BYTES + 100, 0)]);
    driver.kick(spec::TRANSMIT);
    assert_eq!(driver.said.len(), spec::CHAIN_BYTES as usize);
    assert_eq!((driver.used(1), console(&driver).dropped()), (1, 100));
    // What is dropped need not even be RAM.
    driver.offer(1, 0, &[(BUFFERS, spec::CHAIN_BYTES, 0), (1 << 40, 7, 0)]);
    driver.kick(spec::TRANSMIT);
    assert_eq!(console(&driver).dropped(), 107);
}

#[test]
fn what_is_typed_finds_buffers_now_or_later() {
    let mut driver = Driver::started(CONSOLE_SLOT, EVENT_IDX, 8);
    driver.use_messages();
    assert_eq!(typed(&mut driver, b"early"), 5);
    driver.offer(0, 0, &[(BUFFERS, 3, WRITE)]);
    driver.kick(spec::RECEIVE);
    assert_eq!(driver.ram.bytes(BUFFERS, 4), b"ear\0");
    assert_eq!(driver.interrupts(), [0x40]);
    // Bytes wait: the next buffer is to be kicked for.
    let (_, kick_at) = driver.rings[0].events();
    assert_eq!(driver.ram.u16(kick_at), 1);
    driver.offer(0, 1, &[(BUFFERS + 16, 8, WRITE)]);
    driver.kick(spec::RECEIVE);
    assert_eq!(driver.ram.bytes(BUFFERS + 16, 4), b"ly\0\0");
    assert_eq!(driver.rings[0].used_entry(&driver.ram, 1), (1, 2));
    // None do: it need not.
    assert_eq!(driver.ram.u16(kick_at), 1);
    driver.offer(0, 2, &[(BUFFERS + 32, 1, WRITE), (BUFFERS + 40, 8, WRITE)]);
    assert_eq!(typed(&mut driver, b"xyz"), 3);
    assert_eq!(driver.ram.bytes(BUFFERS + 32, 1), b"x");
    assert_eq!(driver.ram.bytes(BUFFERS + 40, 3), b"yz\0");
}

#[test]
fn more_than_can_wait_is_not_taken() {
    let mut driver = Driver::started(CONSOLE_SLOT, 0, 8);
    assert_eq!(typed(&mut driver, &vec![b'a'; 2000]), spec::INPUT_BYTES);
    assert_eq!(typed(&mut driver, b"b"), 0);
    driver.write(crate::virtio::pci::spec::common::STATUS, 1, 0);
    assert_eq!(typed(&mut driver, b"b"), 1);
}

#[test]
fn the_size_of_the_screen_is_told() {
    let mut driver = Driver::started(CONSOLE_SLOT, spec::SIZE, 8);
    let size = driver.read(crate::virtio::pci::spec::DEVICE, 8);
    assert_eq!(size, 0x0000_0001_0019_0050);
}

#[test]
fn buffers_of_the_wrong_direction_break_it() {
    let mut driver = Driver::started(CONSOLE_SLOT, 0, 8);
    driver.offer(1, 0, &[(BUFFERS, 5, 0), (BUFFERS, 5, WRITE)]);
    driver.kick(spec::TRANSMIT);
    assert!(driver.is_broken() && driver.said.is_empty());
    let mut driver = Driver::started(CONSOLE_SLOT, 0, 8);
    driver.offer(0, 0, &[(BUFFERS, 5, 0)]);
    typed(&mut driver, b"x");
    assert!(driver.is_broken());
}
