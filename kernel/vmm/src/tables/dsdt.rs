//! The definition block: what has no discovery of its own (ACPI 6.5, chapters 6 and 20).

use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, CreateDWordField, Device, EISAName, Equal, IO, If,
    Interrupt, Memory32Fixed, Method, Name, Or, Package, PackageBuilder, Path, ResourceTemplate,
    Return, Scope, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;

use devices::acpi_pm::spec::SLEEP_TYPE_OFF;
use devices::pci::{Bus, spec as pci};
use devices::rtc::spec as rtc;
use devices::uart::spec as uart;

/// Two, because integers have 64 bits from there on.
const REVISION: u8 = 2;

/// Ports of configuration mechanism #1.
const CONFIG_PORTS: u8 = 8;
const PCI_PINS: u8 = 4;

/// The table.
pub(super) fn table() -> Sdt {
    let mut code = Vec::new();
    sleep_state_s5(&mut code);
    let mut devices = Vec::new();
    processor(&mut devices);
    pci_root(&mut devices);
    reserved(&mut devices);
    serial("COM1", 1, uart::COM1_PORT, uart::COM1_IRQ, &mut devices);
    serial("COM2", 2, uart::COM2_PORT, uart::COM2_IRQ, &mut devices);
    clock(&mut devices);
    code.extend(Scope::raw(Path::new("\\_SB_"), devices));
    let mut table = super::table(*b"DSDT", REVISION);
    table.append_slice(&code);
    table
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// What is written to the PM1 control register to switch the machine off (7.4.2).
fn sleep_state_s5(code: &mut Vec<u8>) {
    let kind = SLEEP_TYPE_OFF;
    let values = Package::new(alloc::vec![&kind, &kind, &ZERO, &ZERO]);
    name("\\_S5_", &values).to_aml_bytes(code);
}

/// The processor of the MADT.
fn processor(devices: &mut Vec<u8>) {
    Device::new(
        Path::new("CPU0"),
        alloc::vec![&name("_HID", &"ACPI0007"), &name("_UID", &ZERO)],
    )
    .to_aml_bytes(devices);
}

/// The root of the PCI hierarchy: what it decodes, and where its interrupt lines go.
fn pci_root(devices: &mut Vec<u8>) {
    let buses = AddressSpace::<u16>::new_bus_number(0, 0);
    let config = IO::new(pci::ADDRESS_PORT, pci::ADDRESS_PORT, 1, CONFIG_PORTS);
    let last_port = pci::IO_PORT + (pci::IO_PORTS - 1);
    let ports = AddressSpace::<u16>::new_io(pci::IO_PORT, last_port, None);
    let last_byte = pci::MEMORY + (pci::MEMORY_BYTES - 1);
    let memory = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        pci::MEMORY as u32,
        last_byte as u32,
        None,
    );
    let resources = ResourceTemplate::new(alloc::vec![&buses, &config, &ports, &memory]);
    let mut routes = PackageBuilder::new();
    for device in 0..pci::DEVICES as u8 {
        for pin in 0..PCI_PINS {
            // 6.2.13: all functions of the device, the pin, no link device, the GSI, which is the pin of
            // the only I/O APIC.
            let address = u32::from(device) << 16 | 0xffff;
            // A bus numbers its pins from 1.
            let gsi = Bus::route(device, pin + 1);
            routes.add_element(&Package::new(alloc::vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    Device::new(
        Path::new("PCI0"),
        alloc::vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &name("_UID", &ZERO),
            &name("_CRS", &resources),
            &name("_PRT", &routes),
            &operating_system_capabilities(),
        ],
    )
    .to_aml_bytes(devices);
}

/// `_OSC` (PCI Firmware 3.3, 4.5): the system may control every PCI Express feature it asks for.
fn operating_system_capabilities() -> OwnedAml {
    const UNRECOGNISED_UUID: u8 = 1 << 2;
    let status = Path::new("CDW1");
    let fields = CreateDWordField::new(&status, &Arg(3), &ZERO);
    let mut code = Vec::new();
    Method::new(
        Path::new("_OSC"),
        4,
        false,
        alloc::vec![
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                alloc::vec![&Return::new(&Arg(3))],
            ),
            &fields,
            &Or::new(&status, &status, &UNRECOGNISED_UUID),
            &Return::new(&Arg(3)),
        ],
    )
    .to_aml_bytes(&mut code);
    OwnedAml(code)
}

/// The PCI configuration space, which no device of its own decodes.
fn reserved(devices: &mut Vec<u8>) {
    let (base, length) = (pci::ECAM as u32, pci::ECAM_BYTES as u32);
    Device::new(
        Path::new("MBRD"),
        alloc::vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &ZERO),
            &name(
                "_CRS",
                &ResourceTemplate::new(alloc::vec![&Memory32Fixed::new(true, base, length)]),
            ),
        ],
    )
    .to_aml_bytes(devices);
}

/// A 16550 with an ISA interrupt line.
fn serial(path: &str, number: u8, port: u16, line: u8, devices: &mut Vec<u8>) {
    Device::new(
        Path::new(path),
        alloc::vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &number),
            &name(
                "_CRS",
                &ResourceTemplate::new(alloc::vec![
                    &IO::new(port, port, 1, uart::PORTS as u8),
                    &isa_line(line)
                ]),
            ),
        ],
    )
    .to_aml_bytes(devices);
}

/// The CMOS clock.
fn clock(devices: &mut Vec<u8>) {
    Device::new(
        Path::new("RTC0"),
        alloc::vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name(
                "_CRS",
                &ResourceTemplate::new(alloc::vec![
                    &IO::new(rtc::INDEX_PORT, rtc::INDEX_PORT, 1, 2),
                    &isa_line(rtc::IRQ)
                ]),
            ),
        ],
    )
    .to_aml_bytes(devices);
}

/// Edge, active high, not shared.
fn isa_line(line: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(line))
}

/// Byte code made before.
struct OwnedAml(Vec<u8>);

impl Aml for OwnedAml {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
