//! Linux kernels and whatever else comes as a bzImage, by the 64-bit boot protocol or, where the image has
//! no 64-bit entry, the 32-bit one (Linux 6.12, Documentation/arch/x86/boot.rst).

mod boot_params;
mod header;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use arch::addr::Gpa;
use arch::regs::{
    ControlRegisters, CpuState, Cr0, Cr4, DescriptorTable, Efer, Gpr, Segment, SegmentName,
};

use self::boot_params::Handover;
use self::header::{BzImage, Entry};
use super::{Cause, GuestFiles, LoadError, find, named, place};
use crate::config::MAX_MEMORY_MIB;
use crate::memory::{GuestMemory, NotRam};
use crate::tables;

/// Facts of the boot protocol: offsets in the file, which are those in `boot_params` from [`spec::HEADER`] on.
mod spec {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP: usize = 0x200;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;

    /// Where the setup header begins.
    pub(super) const HEADER: usize = SETUP_SECTS;
    /// It ends with `init_size` or later, and before the next field of `boot_params`.
    pub(super) const SHORTEST_HEADER_END: usize = INIT_SIZE + 4;
    pub(super) const LONGEST_HEADER_END: usize = 0x290;

    pub(super) const BOOT_PARAMS_BYTES: usize = 4096;
    pub(super) const E820_ENTRY_BYTES: usize = 20;
    pub(super) const SECTOR: usize = 512;
    pub(super) const PARAGRAPH: usize = 16;
    pub(super) const DEFAULT_SETUP_SECTS: usize = 4;
    pub(super) const DEFAULT_LOAD_ADDRESS: u64 = 0x10_0000;
    pub(super) const LONG_ENTRY_OFFSET: u64 = 0x200;

    pub(super) const BOOT_FLAG_VALUE: u16 = 0xaa55;
    pub(super) const MAGIC_VALUE: &[u8; 4] = b"HdrS";
    /// The first version with `pref_address` and `init_size`.
    pub(super) const OLDEST: u16 = 0x020a;
    pub(super) const FIRST_WITH_XLOADFLAGS: u16 = 0x020c;
    pub(super) const LOADED_HIGH: u8 = 1 << 0;
    pub(super) const XLF_KERNEL_64: u16 = 1 << 0;
    /// `type_of_loader` of a loader without a number of its own.
    pub(super) const LOADER_UNDEFINED: u8 = 0xff;

    /// `SETUP_RNG_SEED` (Linux 6.0, arch/x86/include/uapi/asm/bootparam.h).
    pub(super) const SETUP_RNG_SEED: u32 = 9;

    /// `__BOOT_CS` and `__BOOT_DS`.
    pub(super) const BOOT_CS: u16 = 0x10;
    pub(super) const BOOT_DS: u16 = 0x18;
}

/// The boot GDT; all of these are in conventional memory, which the kernel reuses once it is done with them.
const GDT: u64 = 0x1000;
/// Page tables for 4 GiB: one PML4, one page-directory-pointer table, four page directories.
const PML4: u64 = 0x2000;
const BOOT_PARAMS: u64 = 0x8000;
const CMDLINE: u64 = 0x9000;
/// Room for the command line and its NUL.
const CMDLINE_ROOM: u32 = 0x1000;

/// `struct setup_data` with the seed.
const SEED: u64 = 0xa000;

const PAGE: u64 = 4096;
const GIB_MAPPED: u64 = 4;
const LARGE_PAGE: u64 = 2 << 20;

/// Flat descriptors (SDM 3 3.4.5): 64-bit code, 32-bit code, data.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE_64_ATTRIBUTES: u32 = 0xa09b;
const CODE_32_ATTRIBUTES: u32 = 0xc09b;
const DATA_ATTRIBUTES: u32 = 0xc093;

/// Loads kernel and initrd, ACPI tables and boot parameters, and returns the state at the kernel's entry.
pub(super) fn load<M: GuestMemory>(
    kernel: &str,
    initrd: Option<&str>,
    cmdline: &str,
    files: &impl GuestFiles,
    memory: &mut M,
) -> Result<CpuState, LoadError> {
    let file = find(files, kernel)?;
    let image = kernel_into(file, cmdline, memory).map_err(|cause| named(kernel, cause))?;
    let initrd = match initrd {
        None => (0, 0),
        Some(name) => {
            let bytes = find(files, name)?;
            initrd_into(bytes, &image, memory).map_err(|cause| named(name, cause))?
        }
    };
    parameters_into(&image, cmdline, initrd, memory).map_err(|cause| named(kernel, cause))
}

/// Gives the loaded kernel a seed for its random numbers. Without one it makes its own out of the time that instructions
/// take, for which it reads the time-stamp counter half a million times.
pub(super) fn seed<M: GuestMemory>(memory: &mut M, seed: [u64; 4]) -> Result<(), NotRam> {
    let bytes: Vec<u8> = seed.into_iter().flat_map(u64::to_le_bytes).collect();
    let mut data = 0u64.to_le_bytes().to_vec();
    data.extend(spec::SETUP_RNG_SEED.to_le_bytes());
    data.extend((bytes.len() as u32).to_le_bytes());
    data.extend(bytes);
    memory.write(Gpa(SEED), &data)?;
    memory.write(
        Gpa(BOOT_PARAMS + spec::SETUP_DATA as u64),
        &SEED.to_le_bytes(),
    )
}

/// Copies the kernel to where it wants to be.
fn kernel_into<'a, M: GuestMemory>(
    file: &'a [u8],
    cmdline: &str,
    memory: &mut M,
) -> Result<BzImage<'a>, Cause> {
    if memory.size() > MAX_MEMORY_MIB << 20 {
        return Err(Cause::TooMuchMemory {
            memory: memory.size(),
            limit: MAX_MEMORY_MIB << 20,
        });
    }
    let image = BzImage::parse(file)?;
    let limit = image.cmdline_limit.min(CMDLINE_ROOM - 1);
    if cmdline.len() > limit as usize {
        return Err(Cause::CommandLineTooLong {
            bytes: cmdline.len(),
            limit,
        });
    }
    if image.runtime_end > memory.size() {
        return Err(Cause::DoesNotFit {
            end: image.runtime_end,
            memory: memory.size(),
        });
    }
    place(memory, image.load_address, image.payload)?;
    Ok(image)
}

/// Copies the initrd as high as the kernel can find it; returns its address and length.
fn initrd_into<M: GuestMemory>(
    bytes: &[u8],
    image: &BzImage<'_>,
    memory: &mut M,
) -> Result<(u64, u64), Cause> {
    let limit = memory.size().min(u64::from(image.initrd_limit) + 1);
    let length = bytes.len() as u64;
    let start = limit.checked_sub(length).map(|start| start & !(PAGE - 1));
    match start.filter(|start| *start >= image.runtime_end) {
        None => Err(Cause::NoRoom {
            bytes: length,
            from: image.runtime_end,
            to: limit,
        }),
        Some(start) => {
            place(memory, start, bytes)?;
            Ok((start, length))
        }
    }
}

/// Leaves everything in low memory that the kernel's entry needs; returns the state of the processor there.
fn parameters_into<M: GuestMemory>(
    image: &BzImage<'_>,
    cmdline: &str,
    initrd: (u64, u64),
    memory: &mut M,
) -> Result<CpuState, Cause> {
    let acpi = tables::at(tables::BASE);
    place(memory, tables::BASE, &acpi.bytes)?;
    place(memory, CMDLINE, cmdline.as_bytes())?;
    let handover = Handover {
        cmdline: CMDLINE,
        initrd,
        rsdp: acpi.rsdp.0,
        memory: memory.size(),
    };
    place(memory, BOOT_PARAMS, &boot_params::bytes(image, &handover))?;
    let code = match image.entry {
        Entry::Long => CODE_64,
        Entry::Protected => CODE_32,
    };
    let gdt: Vec<u8> = [0, 0, code, DATA]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    place(memory, GDT, &gdt)?;
    let mut state = match image.entry {
        Entry::Long => {
            identity_map_into(memory)?;
            long_mode()
        }
        Entry::Protected => CpuState::protected_mode(0),
    };
    let data = Segment::flat(spec::BOOT_DS, DATA_ATTRIBUTES);
    for name in [
        SegmentName::Es,
        SegmentName::Ss,
        SegmentName::Ds,
        SegmentName::Fs,
        SegmentName::Gs,
    ] {
        state.segments[name] = data;
    }
    let attributes = match image.entry {
        Entry::Long => CODE_64_ATTRIBUTES,
        Entry::Protected => CODE_32_ATTRIBUTES,
    };
    state.segments[SegmentName::Cs] = Segment::flat(spec::BOOT_CS, attributes);
    state.gdtr = DescriptorTable {
        base: GDT,
        limit: (gdt.len() - 1) as u16,
    };
    state.rip = image.entry_address;
    state.gprs[Gpr::Rsi] = BOOT_PARAMS;
    Ok(state)
}

/// 64-bit mode with the identity map of [`identity_map_into`]; the segments are the caller's.
fn long_mode() -> CpuState {
    let mut state = CpuState::protected_mode(0);
    state.control = ControlRegisters {
        cr0: Cr0::PE | Cr0::PG | Cr0::ET,
        cr3: PML4,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        ..state.control
    };
    state
}

/// Maps the first 4 GiB to themselves by 2 MiB pages.
fn identity_map_into<M: GuestMemory>(memory: &mut M) -> Result<(), Cause> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 1 << 7;
    let pointers = PML4 + PAGE;
    let directories = pointers + PAGE;
    place(memory, PML4, &(pointers | PRESENT_WRITABLE).to_le_bytes())?;
    for gib in 0..GIB_MAPPED {
        let entry = (directories + gib * PAGE) | PRESENT_WRITABLE;
        place(memory, pointers + 8 * gib, &entry.to_le_bytes())?;
    }
    let large_pages = (GIB_MAPPED << 30) / LARGE_PAGE;
    let entries: Vec<u8> = (0..large_pages)
        .flat_map(|i| ((i * LARGE_PAGE) | LARGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    place(memory, directories, &entries)
}
