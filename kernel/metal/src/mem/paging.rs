//! Duet's own page tables.
//!
//! ```text
//!   the image         where the boot loader put it: text executable, the rest not; text and constants read-only
//!   ffff_8000…        physical map: all RAM but the kernel file, writable
//!   ffff_a000…        firmware tables, read-only, mapped when asked for
//!   ffff_c000…        device registers, uncached, mapped when asked for
//!   ffff_e000…        stacks, an unmapped page at both ends of each
//!   ffff_f000…        the guest archive
//! ```
//! Firmware and device windows map physical address `a` at window + `a`, so asking twice costs nothing.

use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;

use arch::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use arch::regs::Efer;
use arch::{elf, msr};
use spin::Mutex;
use x86_64::structures::paging::mapper::{MapToError, MappedFrame, TranslateResult};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags as Flags, PhysFrame,
    Size2MiB, Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use super::{frames, physmap};
use crate::boot_info::{Boot, PHYSMAP_BASE, PHYSMAP_LIMIT, RegionKind};
use crate::x86;

const FIRMWARE_BASE: u64 = 0xffff_a000_0000_0000;
const MMIO_BASE: u64 = 0xffff_c000_0000_0000;
/// Where stacks are mapped.
pub const STACKS_BASE: u64 = 0xffff_e000_0000_0000;
/// Where the guest archive is mapped.
pub const ARCHIVE_BASE: u64 = 0xffff_f000_0000_0000;

/// Present and not executable: every mapping but the kernel's text.
const DATA: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE);
/// PAT entry 3, "uncacheable" after reset and as firmware leaves it (SDM 3 13.12.4, table 13-12).
const UNCACHED: Flags = Flags::NO_CACHE.union(Flags::WRITE_THROUGH);

/// Why something cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a page table.
    OutOfMemory,
    /// The range wraps or lies above what a window can hold.
    OutOfRange(Hpa),
    /// Something else is mapped there.
    Occupied(u64),
    /// The kernel's own program headers cannot be read.
    Image(elf::ElfError),
    /// A page of the kernel image was not mapped by the boot loader.
    ImagePage(u64),
    /// The processor has no execute-disable bit, or firmware has switched it off.
    NoExecuteDisable,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::OutOfMemory => f.write_str("paging: no memory for page tables"),
            MapError::OutOfRange(hpa) => write!(f, "paging: {hpa:?} cannot be mapped"),
            MapError::Occupied(at) => write!(f, "paging: {at:#x} is mapped already"),
            MapError::Image(error) => write!(f, "paging: kernel image: {error}"),
            MapError::ImagePage(at) => write!(f, "paging: kernel page {at:#x} is missing"),
            MapError::NoExecuteDisable => {
                f.write_str("paging: the processor has no execute-disable bit")
            }
        }
    }
}

struct TableFrames;

// SAFETY: a frame just allocated belongs to nobody else.
unsafe impl FrameAllocator<Size4KiB> for TableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = frames::alloc_zeroed()?;
        Some(PhysFrame::containing_address(PhysAddr::new(frame.0)))
    }
}

/// The tables in use, from the moment they are.
static TABLES: Mutex<Option<OffsetPageTable<'static>>> = Mutex::new(None);

fn tables_at(root: u64) -> OffsetPageTable<'static> {
    let table = physmap::ptr(Hpa(root)).cast::<PageTable>();
    // SAFETY: `root` is CR3 or a frame just allocated for this; all page tables lie in RAM, which is mapped
    // at this offset; each root has one `OffsetPageTable` at a time.
    unsafe { OffsetPageTable::new(&mut *table, VirtAddr::new(PHYSMAP_BASE)) }
}

fn occupied<S: x86_64::structures::paging::PageSize>(error: MapToError<S>, at: u64) -> MapError {
    match error {
        MapToError::FrameAllocationFailed => MapError::OutOfMemory,
        MapToError::ParentEntryHugePage | MapToError::PageAlreadyMapped(_) => {
            MapError::Occupied(at)
        }
    }
}

fn map_small(
    to: &mut OffsetPageTable<'_>,
    at: u64,
    hpa: u64,
    flags: Flags,
) -> Result<(), MapError> {
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at));
    let frame = PhysFrame::containing_address(PhysAddr::new(hpa));
    // SAFETY: callers map RAM that the frame allocator or the memory map gave them, or device memory;
    // addresses are in windows that belong to this module.
    let flush = unsafe { to.map_to(page, frame, flags, &mut TableFrames) };
    // The processor keeps no record of pages that are not present: nothing to flush.
    flush.map_err(|error| occupied(error, at))?.ignore();
    Ok(())
}

fn map_large(
    to: &mut OffsetPageTable<'_>,
    at: u64,
    hpa: u64,
    flags: Flags,
) -> Result<(), MapError> {
    let page = Page::<Size2MiB>::containing_address(VirtAddr::new(at));
    let frame = PhysFrame::containing_address(PhysAddr::new(hpa));
    // SAFETY: as in `map_small`.
    let flush = unsafe { to.map_to(page, frame, flags, &mut TableFrames) };
    // The processor keeps no record of pages that are not present: nothing to flush.
    flush.map_err(|error| occupied(error, at))?.ignore();
    Ok(())
}

/// Maps whole pages, large ones where both sides are aligned.
fn map_range(
    to: &mut OffsetPageTable<'_>,
    at: u64,
    hpa: u64,
    bytes: u64,
    flags: Flags,
) -> Result<(), MapError> {
    let mut done = 0;
    while done < bytes {
        let (at, hpa) = (at + done, hpa + done);
        if (at | hpa).is_multiple_of(LARGE_PAGE_SIZE) && bytes - done >= LARGE_PAGE_SIZE {
            map_large(to, at, hpa, flags)?;
            done += LARGE_PAGE_SIZE;
        } else {
            map_small(to, at, hpa, flags)?;
            done += PAGE_SIZE;
        }
    }
    Ok(())
}

fn page_range(start: u64, bytes: u64) -> (u64, u64) {
    (
        start & !(PAGE_SIZE - 1),
        (start + bytes).next_multiple_of(PAGE_SIZE),
    )
}

/// All RAM except the frames of the kernel file, which hold the kernel's text.
fn map_ram(to: &mut OffsetPageTable<'_>, boot: &Boot) -> Result<(), MapError> {
    let (kernel, kernel_end) = page_range(boot.kernel_file.start, boot.kernel_file.length);
    for region in boot
        .regions()
        .iter()
        .filter(|r| r.kind != RegionKind::Firmware)
    {
        let (start, end) = (region.start.0, region.end.0);
        for (from, until) in [(start, end.min(kernel)), (start.max(kernel_end), end)] {
            if from < until {
                map_range(
                    to,
                    PHYSMAP_BASE + from,
                    from,
                    until - from,
                    DATA | Flags::WRITABLE,
                )?;
            }
        }
    }
    Ok(())
}

fn segment_flags(segment: &elf::Segment) -> Flags {
    // Never both: a segment that claims both is text.
    if segment.flags & elf::EXECUTE != 0 {
        Flags::PRESENT
    } else if segment.flags & elf::WRITE != 0 {
        DATA | Flags::WRITABLE
    } else {
        DATA
    }
}

/// Maps the kernel image at its present addresses, with the protection its segments ask for. Returns the
/// frames behind it that are not the kernel file's.
fn map_image(
    to: &mut OffsetPageTable<'_>,
    from: &OffsetPageTable<'_>,
    boot: &Boot,
) -> Result<Vec<Hpa>, MapError> {
    // SAFETY: the range was found to be RAM of the boot loader's, which maps all RAM; nothing writes to the
    // program headers.
    let file = unsafe {
        core::slice::from_raw_parts(
            physmap::ptr(Hpa(boot.kernel_file.start)),
            boot.kernel_file.length as usize,
        )
    };
    let (file_start, file_end) = page_range(boot.kernel_file.start, boot.kernel_file.length);
    let mut frames = Vec::new();
    for segment in elf::segments(file)
        .map_err(MapError::Image)?
        .filter(|s| s.kind == elf::LOAD)
    {
        let (start, end) = page_range(
            segment.address.wrapping_add(boot.kernel_offset),
            segment.memory_bytes,
        );
        for at in (start..end).step_by(PAGE_SIZE as usize) {
            let frame = from
                .translate_addr(VirtAddr::new(at))
                .ok_or(MapError::ImagePage(at))?;
            map_small(to, at, frame.as_u64(), segment_flags(&segment))?;
            if !(file_start..file_end).contains(&frame.as_u64()) {
                frames.push(Hpa(frame.as_u64()));
            }
        }
    }
    let relro = elf::segments(file)
        .map_err(MapError::Image)?
        .filter(|s| s.kind == elf::GNU_RELRO);
    for segment in relro {
        let start = segment
            .address
            .wrapping_add(boot.kernel_offset)
            .next_multiple_of(PAGE_SIZE);
        let end = (segment.address.wrapping_add(boot.kernel_offset) + segment.memory_bytes)
            & !(PAGE_SIZE - 1);
        for at in (start..end).step_by(PAGE_SIZE as usize) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at));
            // SAFETY: relocation is done, so nothing writes there again.
            let flush = unsafe { to.update_flags(page, DATA) };
            // These tables are not in use yet.
            flush.map_err(|_| MapError::ImagePage(at))?.ignore();
        }
    }
    frames.sort_unstable();
    Ok(frames)
}

/// What building the tables leaves to its caller.
pub struct Built {
    /// The new root, for CR3.
    pub root: Hpa,
    /// Frames of the kernel image that lie outside the kernel file, in ascending order.
    pub image_frames: Vec<Hpa>,
    /// The ramdisk's first byte.
    pub ramdisk: Option<Hpa>,
}

/// Builds Duet's tables beside the boot loader's, which stay in use until CR3 is written.
///
/// # Errors
///
/// Out of memory, or the kernel image is not as its file says.
pub fn build(boot: &Boot) -> Result<Built, MapError> {
    // SAFETY: every processor with long mode has EFER.
    if unsafe { x86::rdmsr(msr::EFER) } & Efer::NXE.bits() == 0 {
        return Err(MapError::NoExecuteDisable);
    }
    let root = frames::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
    let mut tables = tables_at(root.0);
    let loader = tables_at(x86::cr3() & CR3_ADDRESS);
    map_ram(&mut tables, boot)?;
    let image_frames = map_image(&mut tables, &loader, boot)?;
    let ramdisk = boot
        .ramdisk
        .and_then(|r| loader.translate_addr(VirtAddr::try_new(r.start).ok()?));
    *TABLES.lock() = Some(tables);
    Ok(Built {
        root,
        image_frames,
        ramdisk: ramdisk.map(|address| Hpa(address.as_u64())),
    })
}

/// Makes the new tables the current ones and goes on at `entry` on a new stack.
///
/// # Safety
///
/// `root` is from [`build`], `top` is the initial stack pointer of a stack that these tables map, and nothing
/// on the old stack is needed any more.
pub unsafe fn switch(root: Hpa, top: u64, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: the image is mapped at the same addresses by both sets of tables. The pushed zero ends the
    // chain of frame pointers.
    unsafe {
        asm!(
            "mov cr3, {root}",
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {entry}",
            "ud2",
            root = in(reg) root.0,
            top = in(reg) top,
            entry = in(reg) entry,
            options(noreturn),
        )
    }
}

/// Address bits of CR3 and of table entries.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn with<T>(
    f: impl FnOnce(&mut OffsetPageTable<'static>) -> Result<T, MapError>,
) -> Result<T, MapError> {
    TABLES.lock().as_mut().map_or(Err(MapError::OutOfMemory), f)
}

/// Maps `[hpa, hpa + bytes)` in the window at `base` unless it is mapped there already.
fn map_window(base: u64, hpa: Hpa, bytes: u64, flags: Flags) -> Result<*mut u8, MapError> {
    let end = hpa.0.checked_add(bytes).filter(|end| *end <= PHYSMAP_LIMIT);
    let end = end
        .ok_or(MapError::OutOfRange(hpa))?
        .next_multiple_of(PAGE_SIZE);
    with(|tables| {
        let mut at = hpa.page().0;
        while at < end {
            let (step, mapped) = match tables.translate(VirtAddr::new(base + at)) {
                TranslateResult::Mapped {
                    frame: MappedFrame::Size2MiB(_),
                    ..
                } => (LARGE_PAGE_SIZE, true),
                TranslateResult::Mapped { .. } => (PAGE_SIZE, true),
                _ if at.is_multiple_of(LARGE_PAGE_SIZE) && end - at >= LARGE_PAGE_SIZE => {
                    (LARGE_PAGE_SIZE, false)
                }
                _ => (PAGE_SIZE, false),
            };
            if !mapped {
                // A large page can be refused where a small one was mapped before.
                let large =
                    step == LARGE_PAGE_SIZE && map_large(tables, base + at, at, flags).is_ok();
                if !large {
                    map_small(tables, base + at, at, flags)?;
                    at += PAGE_SIZE;
                    continue;
                }
            }
            at = (at & !(step - 1)) + step;
        }
        Ok((base + hpa.0) as *mut u8)
    })
}

/// Maps device registers: writable, uncached, not executable.
///
/// # Errors
///
/// The address is too high, or no memory is left for tables.
pub fn map_mmio(hpa: Hpa, bytes: u64) -> Result<*mut u8, MapError> {
    map_window(MMIO_BASE, hpa, bytes, DATA | Flags::WRITABLE | UNCACHED)
}

/// Maps tables that firmware left in memory: read-only.
///
/// # Errors
///
/// The address is too high, or no memory is left for tables.
pub fn map_firmware(hpa: Hpa, bytes: u64) -> Result<*const u8, MapError> {
    map_window(FIRMWARE_BASE, hpa, bytes, DATA).map(<*mut u8>::cast_const)
}

/// Maps RAM from the frame allocator at a fixed address, writable or not.
///
/// # Errors
///
/// Something is mapped there, or no memory is left for tables.
pub fn map_at(at: u64, hpa: Hpa, bytes: u64, writable: bool) -> Result<(), MapError> {
    let flags = if writable {
        DATA | Flags::WRITABLE
    } else {
        DATA
    };
    with(|tables| map_range(tables, at, hpa.0, bytes, flags))
}

/// Removes a large page that [`map_at`] mapped.
pub fn unmap_large(at: u64) {
    let page = Page::<Size2MiB>::containing_address(VirtAddr::new(at));
    if let Some(tables) = TABLES.lock().as_mut()
        && let Ok((_, flush)) = tables.unmap(page)
    {
        flush.flush();
    }
}

/// What the tables map, by protection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Bytes executable and not writable.
    pub executable: u64,
    /// Bytes writable and not executable.
    pub writable: u64,
    /// Bytes neither writable nor executable.
    pub read_only: u64,
    /// First address that is both.
    pub violation: Option<u64>,
}

fn audit_table(table: u64, level: u32, base: u64, inherited: Flags, audit: &mut Audit) {
    // SAFETY: `table` comes from CR3 or from a present entry of a table above, so it is a page table of
    // ours in RAM; nothing changes it meanwhile.
    let entries = unsafe { &*physmap::ptr(Hpa(table)).cast::<PageTable>() };
    let bytes = PAGE_SIZE << (9 * (level - 1));
    for (index, entry) in (0u64..).zip(entries.iter()) {
        let flags = entry.flags();
        if !flags.contains(Flags::PRESENT) {
            continue;
        }
        let at = base + index * bytes;
        // A page is writable if every level allows it, and not executable if any level forbids it.
        let writable = (flags & inherited) & Flags::WRITABLE;
        let effective = writable | ((flags | inherited) & Flags::NO_EXECUTE);
        if level > 1 && !flags.contains(Flags::HUGE_PAGE) {
            audit_table(entry.addr().as_u64(), level - 1, at, effective, audit);
            continue;
        }
        match (
            effective.contains(Flags::WRITABLE),
            effective.contains(Flags::NO_EXECUTE),
        ) {
            (true, false) => audit.violation = audit.violation.or(Some(at)),
            (false, false) => audit.executable += bytes,
            (true, true) => audit.writable += bytes,
            (false, true) => audit.read_only += bytes,
        }
    }
}

/// Walks the tables in use: what is mapped how.
pub fn audit() -> Audit {
    let mut audit = Audit::default();
    audit_table(x86::cr3() & CR3_ADDRESS, 4, 0, Flags::WRITABLE, &mut audit);
    audit
}
