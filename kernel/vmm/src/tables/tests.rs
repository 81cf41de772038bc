//! The tables as a kernel would walk them.

use arch::acpi::{MadtEntry, SoftOff, madt_entries, soft_off};

use super::*;

fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("inside of the table")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(word(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(word(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(word(bytes, at))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

/// Memory in which the tables lie at their place.
struct Placed {
    base: u64,
    bytes: Vec<u8>,
}

impl Placed {
    fn new(base: u64) -> Self {
        let tables = at(base);
        assert_eq!(tables.rsdp, Gpa(base));
        Self {
            base,
            bytes: tables.bytes,
        }
    }

    fn rest(&self, address: u64) -> &[u8] {
        let offset = address.checked_sub(self.base).expect("behind the base");
        &self.bytes[offset as usize..]
    }

    /// A table with a right length and checksum.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        let rest = self.rest(address);
        assert_eq!(&rest[..4], signature);
        let table = &rest[..u32_at(rest, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {signature:?}");
        assert_eq!(address % 16, 0);
        table
    }

    /// The table that the XSDT lists with this signature.
    fn listed(&self, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.table(u64_at(self.rest(self.base), 24), b"XSDT");
        let entries = xsdt[36..].chunks_exact(8).map(|entry| u64_at(entry, 0));
        let mut found = entries.filter(|entry| &self.rest(*entry)[..4] == signature);
        let table = found.next().expect("the XSDT lists it");
        assert_eq!(found.next(), None);
        self.table(table, signature)
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.listed(b"FACP"), 140), b"DSDT")
    }
}

/// How often `part` occurs in `bytes`.
fn occurrences(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|w| *w == part).count()
}

#[test]
fn the_root_pointer_is_where_kernels_look_and_has_both_checksums() {
    let placed = Placed::new(BASE);
    let rsdp = &placed.bytes[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36));
    assert!(placed.bytes.len() as u64 <= END - BASE);
}

#[test]
fn tables_hold_together_wherever_they_lie() {
    for base in [BASE, 0x700_0000] {
        let placed = Placed::new(base);
        for signature in [b"FACP", b"APIC", b"MCFG"] {
            placed.listed(signature);
        }
        let fadt = placed.listed(b"FACP");
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
        let facs = placed.rest(u64::from(u32_at(fadt, 36)));
        assert_eq!((&facs[..4], u32_at(facs, 4)), (&b"FACS"[..], 64));
        // The FACS must be aligned (5.2.10).
        assert_eq!(u32_at(fadt, 36) % 64, 0);
        placed.dsdt();
    }
}

#[test]
fn fixed_hardware_is_where_it_answers() {
    let placed = Placed::new(BASE);
    let fadt = placed.listed(b"FACP");
    // Each block: its 32-bit address, its length in bytes, its generic address.
    for (old, length, new, address, bytes) in [
        (56, 88, 148, 0x600_u16, 4),
        (64, 89, 172, 0x604, 2),
        (76, 91, 208, 0x608, 4),
        (80, 92, 220, 0x620, 4),
    ] {
        assert_eq!(u32_at(fadt, old), u32::from(address));
        assert_eq!(fadt[length], bytes);
        assert_eq!((fadt[new], fadt[new + 1]), (1, 8 * bytes));
        assert_eq!(u64_at(fadt, new + 4), u64::from(address));
    }
    assert_eq!(u16_at(fadt, 46), 9);
    assert_eq!(fadt[108], 0x32);
    // Legacy devices and no 8042; 32-bit timer, reset register, not hardware-reduced.
    assert_eq!(u16_at(fadt, 109) & 3, 1);
    let flags = u32_at(fadt, 112);
    assert_eq!(
        (flags >> 8 & 1, flags >> 10 & 1, flags >> 20 & 1),
        (1, 1, 0)
    );
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0xcf9, 6));
    // No SMI command port: ACPI mode needs no switch.
    assert_eq!(u32_at(fadt, 48), 0);
}

#[test]
fn interrupts_are_routed_as_the_chips_are_wired() {
    let placed = Placed::new(BASE);
    let madt = placed.listed(b"APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let known: Vec<_> = madt_entries(madt).collect();
    let expected = [
        MadtEntry::Processor { apic_id: 0 },
        MadtEntry::IoApic {
            address: 0xfec0_0000,
        },
    ];
    assert_eq!(known, expected);
    let mut rest = &madt[44..];
    let mut overrides = Vec::new();
    let mut nmi = Vec::new();
    while !rest.is_empty() {
        let (entry, more) = rest.split_at(usize::from(rest[1]));
        match entry[0] {
            2 => overrides.push((entry[3], u32_at(entry, 4), u16_at(entry, 8))),
            4 => nmi.push((entry[2], entry[5])),
            _ => {}
        }
        rest = more;
    }
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
    assert_eq!(nmi, [(0xff, 1)]);
}

#[test]
fn configuration_space_is_announced_and_reserved() {
    let placed = Placed::new(BASE);
    let mcfg = placed.listed(b"MCFG");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(u64_at(mcfg, 44), 0xe000_0000);
    assert_eq!((u16_at(mcfg, 52), mcfg[54], mcfg[55]), (0, 0, 0));
    // Memory32Fixed (6.4.3.4): read-write, base, length.
    let mut fixed = alloc::vec![0x86, 9, 0, 1];
    fixed.extend(0xe000_0000_u32.to_le_bytes());
    fixed.extend(0x10_0000_u32.to_le_bytes());
    assert_eq!(occurrences(placed.dsdt(), &fixed), 1);
}

#[test]
fn the_definition_block_has_power_off_and_the_devices() {
    let placed = Placed::new(BASE);
    let dsdt = placed.dsdt();
    let kind = 5;
    assert_eq!(soft_off(dsdt), Some(SoftOff { a: kind, b: kind }));
    // EISA identifiers (19.3.4): PNP0A08, PNP0A03, PNP0C02, PNP0B00, and PNP0501 twice.
    for (low, high, times) in [
        (0x0a, 8, 1),
        (0x0a, 3, 1),
        (0x0c, 2, 1),
        (0x0b, 0, 1),
        (5, 1, 2),
    ] {
        assert_eq!(occurrences(dsdt, &[0x0c, 0x41, 0xd0, low, high]), times);
    }
    // Ports with a length, and extended interrupts: COM1, COM2, clock, configuration ports.
    for (port, ports) in [(0x3f8_u16, 8), (0x2f8, 8), (0x70, 2), (0xcf8, 8)] {
        let [low, high] = port.to_le_bytes();
        let resource = [0x47, 1, low, high, low, high, 1, ports];
        assert_eq!(occurrences(dsdt, &resource), 1, "port {port:#x}");
    }
    // Windows of the PCI root (6.4.3.5): one bus, ports, memory; each with limits and length.
    let windows: [&[u8]; 3] = [
        &[0x88, 13, 0, 2, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[
            0x88, 13, 0, 1, 12, 3, 0, 0, 0, 0xc0, 0xff, 0xff, 0, 0, 0, 0x40,
        ],
        &[
            0x87, 23, 0, 0, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xff, 0xbf, 0xfe, 0, 0, 0, 0,
            0, 0, 0xc0, 0x0e,
        ],
    ];
    for window in windows {
        assert_eq!(occurrences(dsdt, window), 1, "{window:x?}");
    }
    for line in [4, 3, 8] {
        let interrupt = [0x89, 6, 0, 3, 1, line, 0, 0, 0];
        assert_eq!(occurrences(dsdt, &interrupt), 1, "line {line}");
    }
}

#[test]
fn every_pin_of_every_slot_has_a_route() {
    let placed = Placed::new(BASE);
    let dsdt = placed.dsdt();
    let mut lines = [0; 4];
    for device in 1..32_u8 {
        for pin in 0..4_u8 {
            let gsi = 16 + (device + pin) % 4;
            lines[usize::from(gsi) - 16] += 1;
            // A package of four: address, pin, no link, GSI; 0 and 1 have encodings of their own.
            let mut route = alloc::vec![4, 0x0c, 0xff, 0xff, device, 0];
            route.extend_from_slice(match pin {
                0 => &[0],
                1 => &[1],
                2 => &[0x0a, 2],
                _ => &[0x0a, 3],
            });
            route.extend([0, 0x0a, gsi]);
            assert_eq!(occurrences(dsdt, &route), 1, "slot {device} pin {pin}");
        }
    }
    assert_eq!(lines, [31; 4]);
}
