//! The ACPI tables of a guest machine (ACPI 6.5): one processor, one I/O APIC, an ACPI timer, a PCI Express
//! root, two serial ports, a clock. The same for every guest.

mod dsdt;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use arch::addr::Gpa;
use devices::acpi_pm::spec as pm;
use devices::pci::spec as pci;
use devices::{chipset, ioapic, lapic, rtc};

use crate::config::MAX_MEMORY_MIB;

/// Where the tables lie: the BIOS area, which kernels search for the RSDP. Memory maps reserve it.
pub const BASE: u64 = 0xf_0000;
/// First byte behind that area.
pub const END: u64 = 0x10_0000;

/// PCI configuration space of the one bus.
pub const ECAM: Range<u64> = pci::ECAM..pci::ECAM + pci::ECAM_BYTES;

const _: () = assert!(MAX_MEMORY_MIB << 20 <= pci::ECAM);

const OEM: [u8; 6] = *b"DUET  ";
const OEM_TABLE: [u8; 8] = *b"DUETVM  ";
const OEM_REVISION: u32 = 1;

/// Tables start at multiples of this; the FACS requires it.
const ALIGNMENT: usize = 64;

/// Tables for one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Where the RSDP is once they are in their place.
    pub rsdp: Gpa,
}

/// The tables as they have to lie from `base`, below 4 GiB and a multiple of 64, on.
#[must_use]
pub fn at(base: u64) -> Tables {
    let mut area = Area {
        base,
        bytes: alloc::vec![0; Rsdp::len()],
    };
    let dsdt = area.append(dsdt::table().as_slice());
    let facs = area.append_aml(&FACS::new());
    let fadt = area.append_aml(&fadt(dsdt, facs).finalize());
    let madt = area.append(madt().as_slice());
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(pci::ECAM, 0, 0, 0);
    let mcfg = area.append_aml(&mcfg);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = area.append_aml(&xsdt);
    // The root comes first, on a 16-byte boundary (5.2.5.1), and points to what was placed behind it.
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    for (to, from) in area.bytes.iter_mut().zip(rsdp) {
        *to = from;
    }
    Tables {
        bytes: area.bytes,
        rsdp: Gpa(base),
    }
}

/// Tables one behind the other.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.base + at as u64
    }

    fn append_aml(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.append(&bytes)
    }
}

/// A table of this machine with nothing in it.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER_BYTES: u32 = 36;
    Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    )
}

/// Registers in I/O space.
fn ports(first: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8 * bytes,
        0,
        access,
        u64::from(first),
    )
}

/// Fixed hardware (5.2.9). There is no SMI command port: the machine is always in ACPI mode.
fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    // 5.2.9.3: devices on the ISA bus; no 8042, no VGA, no ASPM control; MSI works.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    // Latencies that say: no C2, no C3.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    const EVENT_BYTES: u8 = 4;
    const CONTROL_BYTES: u8 = 2;
    const TIMER_BYTES: u8 = 4;
    const GENERAL_BYTES: u8 = 4;

    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Both, and equal: old kernels know only the first.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(pm::IRQ).into();
    fadt.pm1a_evt_blk = u32::from(pm::EVENT_PORT).into();
    fadt.pm1_evt_len = EVENT_BYTES;
    fadt.x_pm1a_evt_blk = ports(pm::EVENT_PORT, EVENT_BYTES, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pm::CONTROL_PORT).into();
    fadt.pm1_cnt_len = CONTROL_BYTES;
    fadt.x_pm1a_cnt_blk = ports(pm::CONTROL_PORT, CONTROL_BYTES, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(pm::TIMER_PORT).into();
    fadt.pm_tmr_len = TIMER_BYTES;
    fadt.x_pm_tmr_blk = ports(pm::TIMER_PORT, TIMER_BYTES, AccessSize::DwordAccess);
    fadt.gpe0_blk = u32::from(pm::GENERAL_PORT).into();
    fadt.gpe0_blk_len = GENERAL_BYTES;
    fadt.x_gpe0_blk = ports(pm::GENERAL_PORT, GENERAL_BYTES, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = rtc::spec::CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_ASPM).into();
    fadt.reset_reg = ports(pm::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    fadt
}

/// Interrupt controllers (5.2.12).
fn madt() -> Sdt {
    const REVISION: u8 = 5;
    const PCAT_COMPATIBLE: u32 = 1 << 0;
    const LEVEL_ACTIVE_HIGH: u16 = 0xd;
    const ALL_PROCESSORS: u8 = 0xff;
    const TIMER_LINE: u8 = 0;
    let mut entries = Vec::new();
    ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    IoApic::new(0, ioapic::spec::ADDRESS as u32, 0).to_aml_bytes(&mut entries);
    entries.extend(source_override(TIMER_LINE, chipset::spec::TIMER_PIN, 0));
    entries.extend(source_override(pm::IRQ, pm::IRQ, LEVEL_ACTIVE_HIGH));
    // 5.2.12.7: LINT1 of every local APIC is the NMI input.
    entries.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);
    let mut table = table(*b"APIC", REVISION);
    let lapic = lapic::spec::ADDRESS as u32;
    table.append_slice(&lapic.to_le_bytes());
    table.append_slice(&PCAT_COMPATIBLE.to_le_bytes());
    table.append_slice(&entries);
    table
}

/// An ISA line that is another GSI, or signalled otherwise than its bus does (5.2.12.5).
fn source_override(line: u8, gsi: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, 0, line, gsi, 0, 0, 0, low, high]
}
