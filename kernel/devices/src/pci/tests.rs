//! The bus as the standard tells and as Linux uses it.

use super::spec::{ADDRESS_PORT, DATA_PORT};
use super::{BarKind, Bus, Function, Hit, Identity};

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1041,
    subsystem_vendor: 0x1af4,
    subsystem: 0x0001,
    class: 0x02_0000,
    revision: 1,
};

/// A bus with a network card at device 3: 16 KiB of 64-bit memory, 64 ports, 4 KiB of 32-bit memory, INTA.
fn bus() -> Bus {
    let mut bus = Bus::default();
    let mut card = Function::new(&IDENTITY);
    card.add_bar(0, BarKind::Memory64, 16 << 10);
    card.add_bar(2, BarKind::Io, 64);
    card.add_bar(3, BarKind::Memory32, 4096);
    card.set_interrupt_pin(1);
    bus.plug(3, card);
    bus
}

fn select(bus: &mut Bus, device: u32, register: u32) {
    let address = 1 << 31 | device << 11 | register;
    assert!(bus.write_port(ADDRESS_PORT, 4, address));
}

fn read(bus: &mut Bus, device: u32, register: u32) -> u32 {
    select(bus, device, register);
    bus.read_port(DATA_PORT, 4).unwrap()
}

fn write(bus: &mut Bus, device: u32, register: u32, value: u32) {
    select(bus, device, register);
    assert!(bus.write_port(DATA_PORT, 4, value));
}

#[test]
fn linux_finds_mechanism_1_and_a_host_bridge() {
    let mut bus = Bus::default();
    // pci_check_type1(): a byte to 0xcfb is not for the address register.
    assert!(!bus.write_port(0xcfb, 1, 1));
    assert!(bus.write_port(ADDRESS_PORT, 4, 0x8000_0000));
    assert_eq!(bus.read_port(ADDRESS_PORT, 4), Some(0x8000_0000));
    // pci_sanity_check(): a host bridge on bus 0.
    assert_eq!(read(&mut bus, 0, 0), 0x0008_1b36);
    assert_eq!(read(&mut bus, 0, 8) >> 8, 0x06_0000);
    select(&mut bus, 0, 8);
    assert_eq!(bus.read_port(DATA_PORT + 2, 2), Some(0x0600));
    for device in 1..32 {
        assert_eq!(read(&mut bus, device, 0), u32::MAX);
    }
}

#[test]
fn addresses_that_are_none_read_as_ones() {
    let mut bus = bus();
    // Not enabled, another bus, another function.
    for address in [0, 0x8001_0000, 0x8000_0100, 0x8001_1800, 0x8000_1900] {
        bus.write_port(ADDRESS_PORT, 4, address);
        assert_eq!(bus.read_port(DATA_PORT, 4), Some(u32::MAX), "{address:#x}");
        bus.write_port(DATA_PORT, 4, 0);
    }
    bus.write_port(ADDRESS_PORT, 4, u32::MAX);
    assert_eq!(bus.read_port(ADDRESS_PORT, 4), Some(0x80ff_fffc));
    assert_eq!(bus.read_port(ADDRESS_PORT, 2), None);
    assert_eq!(bus.read_port(0xcf9, 1), None);
    assert!(!bus.write_port(0xcf9, 1, 6));
}

#[test]
fn all_sizes_at_all_offsets() {
    let mut bus = bus();
    select(&mut bus, 3, 0);
    for (port, size, want) in [
        (0, 1, 0xf4),
        (1, 1, 0x1a),
        (2, 1, 0x41),
        (3, 1, 0x10),
        (0, 2, 0x1af4),
        (1, 2, 0x411a),
        (2, 2, 0x1041),
        // What crosses the end of the port is nobody's.
        (3, 2, 0xff10),
        (2, 4, 0xffff_1041),
        (0, 4, 0x1041_1af4),
    ] {
        assert_eq!(
            bus.read_port(DATA_PORT + port, size),
            Some(want),
            "{port} {size}"
        );
    }
    select(&mut bus, 3, 4);
    bus.write_port(DATA_PORT + 1, 1, 0xff);
    assert_eq!(read(&mut bus, 3, 4), 0x0500);
}

#[test]
fn bars_tell_their_size() {
    let mut bus = bus();
    // __pci_read_base(): read, write ones, read, write back.
    for (register, old, sizing) in [
        (0x10, 0x4, 0xffff_c004),
        (0x14, 0x0, 0xffff_ffff),
        (0x18, 0x1, 0xffff_ffc1),
        (0x1c, 0x0, 0xffff_f000),
        (0x20, 0x0, 0x0),
        (0x30, 0x0, 0x0),
    ] {
        assert_eq!(read(&mut bus, 3, register), old);
        write(&mut bus, 3, register, u32::MAX);
        assert_eq!(read(&mut bus, 3, register), sizing);
        write(&mut bus, 3, register, old);
        assert_eq!(read(&mut bus, 3, register), old);
    }
    assert_eq!(read(&mut bus, 3, 0), 0x1041_1af4);
    write(&mut bus, 3, 0, 0);
    assert_eq!(read(&mut bus, 3, 0), 0x1041_1af4);
}

#[test]
fn bars_answer_where_they_are_and_when_enabled() {
    let mut bus = bus();
    for (register, value) in [
        (0x10, 0xc000_0000),
        (0x14, 0x12),
        (0x18, 0xc040),
        (0x1c, 0xf000_1000),
    ] {
        write(&mut bus, 3, register, value);
    }
    let hit = |bar, offset| Some((3, Hit { bar, offset }));
    assert_eq!(bus.find_memory(0xf000_1000), None);
    write(&mut bus, 3, 4, 0x3);
    assert_eq!(bus.find_memory(0x12_c000_0000), hit(0, 0));
    assert_eq!(bus.find_memory(0x12_c000_3fff), hit(0, 0x3fff));
    assert_eq!(bus.find_memory(0x12_c000_4000), None);
    assert_eq!(bus.find_memory(0xf000_1010), hit(3, 0x10));
    assert_eq!(bus.find_port(0xc07f), hit(2, 0x3f));
    assert_eq!(bus.find_port(0xc080), None);
    assert_eq!(bus.find_memory(0xc040), None);
    let bus_master = |bus: &Bus| bus.function(3).is_some_and(Function::is_bus_master);
    assert!(!bus_master(&bus));
    write(&mut bus, 3, 4, 0x4);
    assert!(bus_master(&bus));
    assert_eq!(
        (bus.find_memory(0xf000_1000), bus.find_port(0xc040)),
        (None, None)
    );
}

#[test]
fn capabilities_are_a_list() {
    let mut bus = bus();
    assert_eq!(read(&mut bus, 3, 4) >> 16, 0);
    let card = bus.function_mut(3).unwrap();
    let first = card.add_capability(0x09, &[16, 1, 0, 0, 0], &[0; 5]);
    let second = card.add_capability(0x11, &[1, 0, 4, 0], &[0, 0xc0, 0, 0]);
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(read(&mut bus, 3, 4) >> 16, 0x10);
    assert_eq!(read(&mut bus, 3, 0x34), 0x40);
    assert_eq!(read(&mut bus, 3, 0x40), 0x0110_4809);
    write(&mut bus, 3, 0x48, u32::MAX);
    assert_eq!(read(&mut bus, 3, 0x48), 0xc001_0011);
}

#[test]
fn interrupts_are_routed_and_can_be_switched_off() {
    let mut bus = bus();
    assert_eq!(bus.lines(), 0);
    bus.function_mut(3).unwrap().set_interrupt(true);
    // INTA of device 3: 16 + 3.
    assert_eq!(bus.lines(), 1 << 19);
    assert_eq!(read(&mut bus, 3, 4) >> 16, 0x08);
    write(&mut bus, 3, 4, 0x400);
    assert_eq!(bus.lines(), 0);
    write(&mut bus, 3, 4, 0);
    bus.function_mut(3).unwrap().set_interrupt(false);
    assert_eq!(bus.lines(), 0);
    assert_eq!(
        [(0, 1), (1, 1), (3, 2), (31, 4)].map(|(d, p)| Bus::route(d, p)),
        [16, 17, 16, 18]
    );
    write(&mut bus, 3, 0x3c, 0xffff_ff0a);
    assert_eq!(read(&mut bus, 3, 0x3c), 0x010a);
}

#[test]
fn the_memory_window_shows_the_same() {
    let mut bus = bus();
    assert_eq!(bus.read_window(3 << 15, 4), 0x1041_1af4);
    assert_eq!(bus.read_window(3 << 15, 8), 0x1041_1af4);
    assert_eq!(bus.read_window(3 << 15 | 0x2c, 4), 0x0001_1af4);
    bus.write_window(3 << 15 | 0x1c, 4, 0xffff_ffff);
    assert_eq!(read(&mut bus, 3, 0x1c), 0xffff_f000);
    bus.write_window(3 << 15 | 0x05, 1, 0xff);
    assert_eq!(bus.read_window(3 << 15 | 4, 2), 0x0500);
    // No extended capabilities, no second function, no such device.
    assert_eq!(bus.read_window(3 << 15 | 0x100, 4), 0);
    assert_eq!(bus.read_window(3 << 15 | 1 << 12, 4), 0xffff_ffff);
    assert_eq!(bus.read_window(4 << 15, 2), 0xffff);
    // Across the end of a function's space.
    bus.write_window(3 << 15 | 0xffe, 8, u64::MAX);
    assert_eq!(bus.read_window(3 << 15 | 0xffe, 4), 0xffff_0000);
}
