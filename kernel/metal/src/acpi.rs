//! The host's ACPI tables: where the timers, interrupt controllers, processors and switches are.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use ::acpi::address::{AddressSpace, GenericAddress};
use ::acpi::fadt::Fadt;
use ::acpi::madt::Madt;
use ::acpi::mcfg::Mcfg;
use ::acpi::{AcpiError, AcpiHandler, AcpiTables, HpetInfo, PhysicalMapping};
use arch::acpi::{MadtEntry, SoftOff, madt_entries, soft_off};
use arch::addr::Hpa;

use crate::mem::paging;

/// Largest table that is looked at, in bytes.
const MAX_TABLE: usize = 16 << 20;

/// A register in I/O or memory space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(Hpa),
}

/// A range of PCI buses whose configuration space is memory-mapped.
#[derive(Clone, Copy, Debug)]
pub struct EcamRange {
    /// Where bus 0's configuration space would be.
    pub base: Hpa,
    /// First bus.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
}

/// How the machine is switched off.
#[derive(Clone, Copy, Debug)]
pub struct PowerOff {
    /// Sleep types of state S5.
    pub types: SoftOff,
    /// PM1a control port.
    pub pm1a: u16,
    /// PM1b control port.
    pub pm1b: Option<u16>,
    /// Port and value that make the firmware hand the PM registers over.
    pub enable: Option<(u16, u8)>,
}

/// What Duet takes from the tables.
#[derive(Debug, Default)]
pub struct Platform {
    /// APIC identifiers of the processors that are present.
    pub processors: Vec<u32>,
    /// I/O APICs.
    pub io_apics: Vec<Hpa>,
    /// HPET registers.
    pub hpet: Option<Hpa>,
    /// PM timer.
    pub pm_timer: Option<Register>,
    /// Memory-mapped PCI configuration space of segment 0.
    pub ecam: Vec<EcamRange>,
    /// How to switch off.
    pub power_off: Option<PowerOff>,
}

/// Why the host's ACPI tables cannot be used.
#[derive(Debug)]
pub enum PlatformError {
    /// The boot loader found no root pointer.
    NoRootPointer,
    /// The root table is malformed.
    Root(AcpiError),
    /// A table is missing or malformed.
    Table(&'static str, AcpiError),
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlatformError::NoRootPointer => f.write_str("ACPI: the firmware has no root pointer"),
            PlatformError::Root(error) => write!(f, "ACPI: root table: {error:?}"),
            PlatformError::Table(name, error) => write!(f, "ACPI: table {name}: {error:?}"),
        }
    }
}

#[derive(Clone)]
struct Firmware;

impl AcpiHandler for Firmware {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let mapped = paging::map_firmware(Hpa(address as u64), size.min(MAX_TABLE) as u64);
        let pointer = mapped
            .ok()
            .and_then(|pointer| NonNull::new(pointer.cast_mut().cast::<T>()));
        let Some(pointer) = pointer else {
            panic!("ACPI: table at {address:#x}, {size} bytes, cannot be mapped");
        };
        // SAFETY: the range is mapped for good, read-only; the crate reads it only.
        unsafe { PhysicalMapping::new(address, pointer, size, size, Firmware) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// Bytes of a table that the firmware left in memory.
fn bytes(address: u64, length: usize) -> Option<&'static [u8]> {
    let pointer = paging::map_firmware(Hpa(address), length as u64).ok()?;
    // SAFETY: the range is mapped for good and nobody writes to firmware tables any more.
    (length <= MAX_TABLE).then(|| unsafe { core::slice::from_raw_parts(pointer, length) })
}

fn register(address: &GenericAddress) -> Option<Register> {
    match address.address_space {
        AddressSpace::SystemIo => u16::try_from(address.address).ok().map(Register::Port),
        AddressSpace::SystemMemory => Some(Register::Memory(Hpa(address.address))),
        _ => None,
    }
}

fn port(address: &GenericAddress) -> Option<u16> {
    match register(address)? {
        Register::Port(port) => Some(port),
        Register::Memory(_) => None,
    }
}

fn power_off(tables: &AcpiTables<Firmware>, fadt: &Fadt) -> Option<PowerOff> {
    let dsdt = tables.dsdt().ok()?;
    let types = soft_off(bytes(dsdt.address as u64, dsdt.length as usize)?)?;
    let command = u16::try_from(fadt.smi_cmd_port)
        .ok()
        .filter(|port| *port != 0);
    Some(PowerOff {
        types,
        pm1a: port(&fadt.pm1a_control_block().ok()?)?,
        pm1b: fadt
            .pm1b_control_block()
            .ok()
            .flatten()
            .and_then(|address| port(&address)),
        enable: command.map(|port| (port, fadt.acpi_enable)),
    })
}

/// Reads the tables that `rsdp` leads to.
///
/// # Errors
///
/// There are none, or MADT or FADT is missing or malformed.
pub fn read(rsdp: Option<Hpa>) -> Result<Platform, PlatformError> {
    let rsdp = rsdp.ok_or(PlatformError::NoRootPointer)?;
    // SAFETY: the boot loader found the root pointer there; the crate checks signature and checksum.
    let tables =
        unsafe { AcpiTables::from_rsdp(Firmware, rsdp.0 as usize) }.map_err(PlatformError::Root)?;
    let mut platform = Platform::default();

    let madt = tables.find_table::<Madt>();
    let madt = madt.map_err(|error| PlatformError::Table("MADT", error))?;
    let table = bytes(madt.physical_start() as u64, madt.region_length()).unwrap_or(&[]);
    for entry in madt_entries(table) {
        match entry {
            MadtEntry::Processor { apic_id } => platform.processors.push(apic_id),
            MadtEntry::IoApic { address } => platform.io_apics.push(Hpa(u64::from(address))),
        }
    }

    let fadt = tables.find_table::<Fadt>();
    let fadt = fadt.map_err(|error| PlatformError::Table("FADT", error))?;
    let pm_timer = fadt.pm_timer_block().ok().flatten();
    platform.pm_timer = pm_timer.as_ref().and_then(register);
    platform.power_off = power_off(&tables, &fadt);

    platform.hpet = HpetInfo::new(&tables)
        .ok()
        .map(|hpet| Hpa(hpet.base_address as u64));
    if let Ok(mcfg) = tables.find_table::<Mcfg>() {
        for entry in mcfg.get().get_ref().entries() {
            if entry.pci_segment_group == 0 {
                platform.ecam.push(EcamRange {
                    base: Hpa(entry.base_address),
                    first_bus: entry.bus_number_start,
                    last_bus: entry.bus_number_end,
                });
            }
        }
    }
    Ok(platform)
}
