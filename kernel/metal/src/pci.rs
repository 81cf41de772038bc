//! PCI functions of the host: found by walking the buses, through ECAM where there is one.

use alloc::vec::Vec;

use arch::addr::PAGE_SIZE;
use pci_types::device_type::DeviceType;
use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, MAX_BARS, PciAddress,
    PciHeader, PciPciBridgeHeader,
};

use crate::acpi::Platform;
use crate::mem::paging;
use crate::x86;
use spin::Once;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Bytes of one bus's memory-mapped configuration space.
const BUS_BYTES: u64 = 1 << 20;
/// Most functions that are kept.
const MAX_FUNCTIONS: usize = 256;

/// A base address register and what it decodes.
#[derive(Clone, Copy, Debug)]
pub struct BarRange {
    /// Register number, 0 … 5.
    pub slot: u8,
    /// What the register holds, with its size for memory.
    pub bar: Bar,
}

/// A function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Bus, device and function.
    pub address: PciAddress,
    /// Vendor and device.
    pub id: (u16, u16),
    /// Class, subclass and interface.
    pub class: (u8, u8, u8),
    /// Base address registers in use; none of bridges.
    pub bars: Vec<BarRange>,
}

/// Configuration space access: a window per memory-mapped range, ports for the rest.
struct Access {
    /// First bus, last bus, address of bus 0.
    windows: Vec<(u8, u8, u64)>,
}

impl Access {
    fn new(platform: &Platform) -> Self {
        let mut windows = Vec::new();
        for range in &platform.ecam {
            let first = range.base.offset(u64::from(range.first_bus) * BUS_BYTES);
            let bytes = (u64::from(range.last_bus.saturating_sub(range.first_bus)) + 1) * BUS_BYTES;
            match paging::map_mmio(first, bytes) {
                Ok(pointer) => {
                    let bus_0 =
                        (pointer as u64).wrapping_sub(u64::from(range.first_bus) * BUS_BYTES);
                    windows.push((range.first_bus, range.last_bus, bus_0));
                }
                Err(error) => log::warn!("PCI: ECAM at {first:?}: {error}"),
            }
        }
        Self { windows }
    }

    fn mapped(&self, address: PciAddress, offset: u16) -> Option<*mut u32> {
        let bus = address.bus();
        let window = self
            .windows
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&bus))?;
        let inside = u64::from(bus) << 20
            | u64::from(address.device()) << 15
            | u64::from(address.function()) << 12
            | u64::from(offset) & (PAGE_SIZE - 4);
        Some(window.2.wrapping_add(inside) as *mut u32)
    }

    fn select(address: PciAddress, offset: u16) {
        let value = ENABLE
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xfc);
        // SAFETY: the address port of the PCI configuration mechanism has no effect by itself.
        unsafe { x86::outl(CONFIG_ADDRESS, value) };
    }
}

impl ConfigRegionAccess for Access {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        if let Some(register) = self.mapped(address, offset) {
            // SAFETY: inside a mapped configuration window; reads of configuration space are harmless.
            return unsafe { register.read_volatile() };
        }
        Self::select(address, offset);
        // SAFETY: likewise, through the ports.
        unsafe { x86::inl(CONFIG_DATA) }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        if let Some(register) = self.mapped(address, offset) {
            // SAFETY: inside a mapped configuration window; the caller vouches for the value.
            unsafe { register.write_volatile(value) };
            return;
        }
        Self::select(address, offset);
        // SAFETY: the caller vouches for the value.
        unsafe { x86::outl(CONFIG_DATA, value) };
    }
}

/// Reads the base address registers with decoding switched off, since sizing writes to them.
fn bars(header: PciHeader, access: &Access) -> Vec<BarRange> {
    let mut found = Vec::new();
    let Some(mut endpoint) = EndpointHeader::from_header(header, access) else {
        return found;
    };
    let before = endpoint.command(access);
    let decoding = CommandRegister::IO_ENABLE | CommandRegister::MEMORY_ENABLE;
    endpoint.update_command(access, |command| command - decoding);
    let mut slot = 0;
    while usize::from(slot) < MAX_BARS {
        let bar = endpoint.bar(slot, access);
        if let Some(bar) = bar {
            found.push(BarRange { slot, bar });
        }
        slot += if matches!(bar, Some(Bar::Memory64 { .. })) {
            2
        } else {
            1
        };
    }
    endpoint.update_command(access, |_| before);
    found
}

/// Looks at one function; gives the bus behind it if it is a bridge.
fn look(address: PciAddress, access: &Access, functions: &mut Vec<Function>) -> Option<u8> {
    let header = PciHeader::new(address);
    let id = header.id(access);
    let (_, base, sub, interface) = header.revision_and_class(access);
    let kind = header.header_type(access);
    let is_host_bridge = DeviceType::from((base, sub)) == DeviceType::HostBridge;
    if functions.len() < MAX_FUNCTIONS {
        let sized = kind == HeaderType::Endpoint && !is_host_bridge;
        functions.push(Function {
            address,
            id,
            class: (base, sub, interface),
            bars: if sized {
                bars(PciHeader::new(address), access)
            } else {
                Vec::new()
            },
        });
    }
    let bridge = PciPciBridgeHeader::from_header(header, access)?;
    Some(bridge.secondary_bus_number(access))
}

/// The way to configuration space, once the buses were walked.
static ACCESS: Once<Access> = Once::new();

/// Reads a word of a function's configuration space; ones before the buses were walked.
pub fn read_config(address: PciAddress, offset: u16) -> u32 {
    // SAFETY: reads of configuration space are harmless.
    ACCESS
        .get()
        .map_or(u32::MAX, |access| unsafe { access.read(address, offset) })
}

/// Writes a word of a function's configuration space.
///
/// # Safety
///
/// The function does not come to use memory that is not its driver's.
pub unsafe fn write_config(address: PciAddress, offset: u16, value: u32) {
    if let Some(access) = ACCESS.get() {
        // SAFETY: the caller vouches for the value.
        unsafe { access.write(address, offset, value) };
    }
}

fn update_command(address: PciAddress, update: impl FnOnce(CommandRegister) -> CommandRegister) {
    if let Some(access) = ACCESS.get()
        && let Some(mut endpoint) = EndpointHeader::from_header(PciHeader::new(address), access)
    {
        endpoint.update_command(access, update);
    }
}

/// Lets a function answer at its memory addresses; its interrupt line is off.
pub fn enable_registers(address: PciAddress) {
    update_command(address, |command| {
        command | CommandRegister::MEMORY_ENABLE | CommandRegister::INTERRUPT_DISABLE
    });
}

/// Lets a function reach memory.
pub fn enable_dma(address: PciAddress) {
    update_command(address, |command| {
        command | CommandRegister::BUS_MASTER_ENABLE
    });
}

/// Keeps a function from reaching memory.
pub fn disable_dma(address: PciAddress) {
    update_command(address, |command| {
        command - CommandRegister::BUS_MASTER_ENABLE
    });
}

fn present(address: PciAddress, access: &Access) -> bool {
    PciHeader::new(address).id(access).0 != 0xffff
}

/// Walks all buses reachable from bus 0.
pub fn enumerate(platform: &Platform) -> Vec<Function> {
    let access = ACCESS.call_once(|| Access::new(platform));
    let mut functions = Vec::new();
    let mut seen = [false; 256];
    let mut buses = alloc::vec![0u8];
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            let first = PciAddress::new(0, bus, device, 0);
            if !present(first, access) {
                continue;
            }
            let last = if PciHeader::new(first).has_multiple_functions(access) {
                7
            } else {
                0
            };
            for number in 0..=last {
                let address = PciAddress::new(0, bus, device, number);
                if present(address, access) {
                    buses.extend(look(address, access, &mut functions));
                }
            }
        }
    }
    log::info!(
        "PCI: {} functions, configuration space by {}",
        functions.len(),
        if access.windows.is_empty() {
            "ports"
        } else {
            "memory"
        }
    );
    functions
}

/// Lists the functions in the log, at level "debug".
pub fn list(functions: &[Function]) {
    for function in functions {
        let (vendor, device) = function.id;
        let (base, sub, interface) = function.class;
        log::debug!(
            "PCI {}: {vendor:04x}:{device:04x} class {base:02x}{sub:02x}{interface:02x}",
            function.address
        );
        for range in &function.bars {
            log::debug!(
                "PCI {}: BAR {} {:x?}",
                function.address,
                range.slot,
                range.bar
            );
        }
    }
}
