//! What the boot loader hands over, checked once and copied.
//!
//! Nothing else reads the boot loader's structures: they lie in memory that is given away later.

use core::fmt;

use arch::addr::{Hpa, PAGE_SIZE};
use bootloader_api::config::Mapping;
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootInfo, BootloaderConfig};

/// Where all of RAM is mapped, by the boot loader and later by Duet.
pub const PHYSMAP_BASE: u64 = 0xffff_8000_0000_0000;

/// What Duet asks of the boot loader.
pub static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::FixedAddress(PHYSMAP_BASE));
    config.kernel_stack_size = 128 << 10;
    config
};

/// Most memory regions that are kept.
const MAX_REGIONS: usize = 192;

/// Bytes of physical address space that can be mapped at [`PHYSMAP_BASE`]; everything Duet maps elsewhere
/// lies above.
pub const PHYSMAP_LIMIT: u64 = 1 << 45;

/// What a range of physical memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free RAM.
    Usable,
    /// RAM with the kernel, the ramdisk and the boot loader's own structures.
    Bootloader,
    /// RAM or device memory that the firmware keeps for itself.
    Firmware,
}

/// A range of physical memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First byte.
    pub start: Hpa,
    /// Behind the last byte.
    pub end: Hpa,
    /// What it is.
    pub kind: RegionKind,
}

/// A range of bytes by address and length.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// What Duet knows from the boot loader.
pub struct Boot {
    regions: [Region; MAX_REGIONS],
    region_count: usize,
    /// Regions that did not fit and stay unused.
    pub regions_dropped: usize,
    /// ACPI root pointer.
    pub rsdp: Option<Hpa>,
    /// The ramdisk, as virtual addresses of the boot loader's mapping.
    pub ramdisk: Option<Range>,
    /// The kernel's ELF file, in physical memory.
    pub kernel_file: Range,
    /// What is added to the ELF file's addresses.
    pub kernel_offset: u64,
}

/// Why the boot loader's information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Physical memory is not mapped where it was asked for.
    PhysmapMissing,
    /// A region of the memory map ends before it starts.
    RegionReversed(u64),
    /// Two regions of the memory map, one of them RAM, overlap at this address.
    RegionsOverlap(u64),
    /// RAM at an address too high to map.
    RegionTooHigh(u64),
    /// No free RAM at all.
    NoMemory,
    /// The kernel's ELF file is not where the boot loader says.
    KernelFileMissing,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::PhysmapMissing => {
                write!(
                    f,
                    "boot loader: physical memory is not mapped at {PHYSMAP_BASE:#x}"
                )
            }
            BootError::RegionReversed(at) => {
                write!(f, "memory map: region at {at:#x} ends before it starts")
            }
            BootError::RegionsOverlap(at) => write!(f, "memory map: regions overlap at {at:#x}"),
            BootError::RegionTooHigh(at) => write!(f, "memory map: RAM at {at:#x} is too high"),
            BootError::NoMemory => write!(f, "memory map: no usable RAM"),
            BootError::KernelFileMissing => write!(f, "boot loader: kernel file not in RAM"),
        }
    }
}

impl Boot {
    /// Checks and copies the boot loader's information.
    ///
    /// # Errors
    ///
    /// Something is missing or contradicts itself.
    pub fn take(info: &BootInfo) -> Result<Self, BootError> {
        if info.physical_memory_offset.into_option() != Some(PHYSMAP_BASE) {
            return Err(BootError::PhysmapMissing);
        }
        let none = Region {
            start: Hpa(0),
            end: Hpa(0),
            kind: RegionKind::Firmware,
        };
        let mut boot = Self {
            regions: [none; MAX_REGIONS],
            region_count: 0,
            regions_dropped: 0,
            rsdp: info.rsdp_addr.into_option().map(Hpa),
            ramdisk: info.ramdisk_addr.into_option().map(|start| Range {
                start,
                length: info.ramdisk_len,
            }),
            kernel_file: Range {
                start: info.kernel_addr,
                length: info.kernel_len,
            },
            kernel_offset: info.kernel_image_offset,
        };
        for region in info.memory_regions.iter() {
            let kind = match region.kind {
                MemoryRegionKind::Usable => RegionKind::Usable,
                MemoryRegionKind::Bootloader => RegionKind::Bootloader,
                _ => RegionKind::Firmware,
            };
            boot.add_region(region.start, region.end, kind)?;
        }
        boot.check()?;
        Ok(boot)
    }

    /// The memory map in ascending order, page-aligned, without overlaps that touch RAM.
    pub fn regions(&self) -> &[Region] {
        self.regions.get(..self.region_count).unwrap_or(&[])
    }

    /// Bytes of RAM that belong to nobody else.
    pub fn ram_bytes(&self) -> u64 {
        self.regions()
            .iter()
            .filter(|r| r.kind != RegionKind::Firmware)
            .map(|r| r.end.0 - r.start.0)
            .sum()
    }

    fn add_region(&mut self, start: u64, end: u64, kind: RegionKind) -> Result<(), BootError> {
        if end < start {
            return Err(BootError::RegionReversed(start));
        }
        // Free RAM shrinks to whole pages, everything else grows.
        let (start, end) = if kind == RegionKind::Usable {
            (start.next_multiple_of(PAGE_SIZE), end & !(PAGE_SIZE - 1))
        } else {
            (
                start & !(PAGE_SIZE - 1),
                end.checked_next_multiple_of(PAGE_SIZE)
                    .unwrap_or(!(PAGE_SIZE - 1)),
            )
        };
        if end <= start {
            return Ok(());
        }
        if kind != RegionKind::Firmware && end > PHYSMAP_LIMIT {
            return Err(BootError::RegionTooHigh(start));
        }
        let Some(slot) = self.regions.get_mut(self.region_count) else {
            self.regions_dropped += 1;
            return Ok(());
        };
        *slot = Region {
            start: Hpa(start),
            end: Hpa(end),
            kind,
        };
        self.region_count += 1;
        Ok(())
    }

    fn check(&mut self) -> Result<(), BootError> {
        let regions = self.regions.get_mut(..self.region_count).unwrap_or(&mut []);
        regions.sort_unstable_by_key(|r| r.start);
        for pair in regions.windows(2) {
            if let [a, b] = pair
                && a.end > b.start
                && (a.kind == RegionKind::Usable || b.kind == RegionKind::Usable)
            {
                return Err(BootError::RegionsOverlap(b.start.0));
            }
        }
        if !regions.iter().any(|r| r.kind == RegionKind::Usable) {
            return Err(BootError::NoMemory);
        }
        let kernel = self.kernel_file;
        let kernel_end = kernel.start.checked_add(kernel.length);
        let inside = |r: &Region| {
            r.kind == RegionKind::Bootloader
                && r.start.0 <= kernel.start
                && kernel_end.is_some_and(|end| end <= r.end.0)
        };
        if kernel.length == 0 || !regions.iter().any(inside) {
            return Err(BootError::KernelFileMissing);
        }
        Ok(())
    }
}
