//! The ACPI tables of a guest machine (ACPI 6.5): one processor, one I/O APIC, an ACPI timer, a PCI Express
//! root, two serial ports, a clock. The same for every guest.

mod dsdt;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

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

/// Where the tables lie: the BIOS area, which kernels search for the RSDP. Memory maps reserve it.
pub const BASE: u64 = 0xf_0000;
/// First byte behind that area.
pub const END: u64 = 0x10_0000;

/// Where things are in the guest machine, as the tables describe it.
pub mod spec {
    /// First guest physical address that is never RAM; devices and PCI functions from here on.
    pub const MMIO_BASE: u64 = 0xc000_0000;
    /// PCI functions are placed from [`MMIO_BASE`] up to, and not including, this address.
    pub const MMIO_END: u64 = 0xe000_0000;
    /// PCI configuration space of all buses, 1 MiB each.
    pub const ECAM_BASE: u64 = MMIO_END;
    /// Last bus with configuration space.
    pub const LAST_BUS: u8 = 255;
    /// First byte behind the PCI configuration space.
    pub const ECAM_END: u64 = ECAM_BASE + ((LAST_BUS as u64 + 1) << 20);
    /// Registers of the I/O APIC, whose first pin is GSI 0.
    pub const IOAPIC_BASE: u32 = 0xfec0_0000;
    /// Registers of the local APIC.
    pub const LAPIC_BASE: u32 = 0xfee0_0000;

    /// PM1a event block: status, then enable register, 16 bits each.
    pub const PM1_EVENT_PORT: u16 = 0x600;
    /// PM1a control register, 16 bits.
    pub const PM1_CONTROL_PORT: u16 = 0x604;
    /// Power-management timer, 32 bits.
    pub const PM_TIMER_PORT: u16 = 0x608;
    /// General-purpose event block 0: status, then enable registers.
    pub const GPE0_PORT: u16 = 0x620;
    /// Bytes of that block.
    pub const GPE0_BYTES: u8 = 16;
    /// The system control interrupt's ISA line and GSI: level, active high.
    pub const SCI: u8 = 9;
    /// SLP_TYP of state S5.
    pub const S5_SLEEP_TYPE: u8 = 0;
    /// Reset register.
    pub const RESET_PORT: u16 = 0xcf9;
    /// Written there it resets the machine.
    pub const RESET_VALUE: u8 = 6;
    /// CMOS index of the century.
    pub const RTC_CENTURY: u8 = 0x32;
    /// The GSI of the timer, which is ISA line 0.
    pub const PIT_GSI: u8 = 2;
    /// GSI of the first of four PCI interrupt lines.
    pub const PCI_FIRST_GSI: u32 = 16;

    /// The GSI of a PCI function's interrupt pin (0 is INTA) in slot `device` of bus 0: level, active low.
    #[must_use]
    pub const fn pci_gsi(device: u8, pin: u8) -> u32 {
        PCI_FIRST_GSI + (device as u32 + pin as u32) % 4
    }
}

const _: () = assert!(crate::config::MAX_MEMORY_MIB << 20 <= spec::MMIO_BASE);

const OEM: [u8; 6] = *b"DUET  ";
const OEM_TABLE: [u8; 8] = *b"DUETVM  ";
const OEM_REVISION: u32 = 1;

const HEADER_BYTES: u32 = 36;
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
    mcfg.add_ecam(spec::ECAM_BASE, 0, 0, spec::LAST_BUS);
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

/// Registers in I/O space, `bits` in all.
fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(address))
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
    fadt.sci_int = u16::from(spec::SCI).into();
    fadt.pm1a_evt_blk = u32::from(spec::PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(spec::PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(spec::PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(spec::PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(spec::PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(spec::PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.gpe0_blk = u32::from(spec::GPE0_PORT).into();
    fadt.gpe0_blk_len = spec::GPE0_BYTES;
    fadt.x_gpe0_blk = port(
        spec::GPE0_PORT,
        8 * spec::GPE0_BYTES,
        AccessSize::ByteAccess,
    );
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = spec::RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_ASPM).into();
    fadt.reset_reg = port(spec::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = spec::RESET_VALUE;
    fadt
}

/// Interrupt controllers (5.2.12).
fn madt() -> Sdt {
    const REVISION: u8 = 5;
    const PCAT_COMPATIBLE: u32 = 1 << 0;
    const LEVEL_ACTIVE_HIGH: u16 = 0xd;
    const ALL_PROCESSORS: u8 = 0xff;
    let mut entries = Vec::new();
    ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    IoApic::new(0, spec::IOAPIC_BASE, 0).to_aml_bytes(&mut entries);
    entries.extend(source_override(0, spec::PIT_GSI, 0));
    entries.extend(source_override(spec::SCI, spec::SCI, LEVEL_ACTIVE_HIGH));
    // 5.2.12.7: LINT1 of every local APIC is the NMI input.
    entries.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);
    let mut table = Sdt::new(
        *b"APIC",
        HEADER_BYTES,
        REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    table.append_slice(&spec::LAPIC_BASE.to_le_bytes());
    table.append_slice(&PCAT_COMPATIBLE.to_le_bytes());
    table.append_slice(&entries);
    table
}

/// An ISA line that is another GSI, or signalled otherwise than its bus does (5.2.12.5).
fn source_override(line: u8, gsi: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, 0, line, gsi, 0, 0, 0, low, high]
}
