//! `struct boot_params`, the "zero page" (Linux 6.12, Documentation/arch/x86/zero-page.rst).

use alloc::vec::Vec;

use super::header::BzImage;
use super::spec;
use crate::tables;

/// End of conventional memory, as a PC reports it.
const LOW_END: u64 = 0x9_fc00;
/// What follows up to here would be the extended BIOS data area.
const LOW_RESERVED_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0x10_0000;

const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// What the kernel has to be told besides its own header.
pub(super) struct Handover {
    /// Where the command line is, and NUL behind it.
    pub(super) cmdline: u64,
    /// First byte and length of the initrd, or zeros.
    pub(super) initrd: (u64, u64),
    /// Where the RSDP is.
    pub(super) rsdp: u64,
    /// Bytes of RAM.
    pub(super) memory: u64,
}

/// The page's bytes. All addresses lie below 4 GiB, because RAM does.
pub(super) fn bytes(image: &BzImage<'_>, handover: &Handover) -> Vec<u8> {
    let mut page = alloc::vec![0; spec::BOOT_PARAMS_BYTES];
    put(&mut page, spec::HEADER, image.header);
    put(&mut page, spec::TYPE_OF_LOADER, &[spec::LOADER_UNDEFINED]);
    put_u32(&mut page, spec::CODE32_START, image.load_address);
    put_u32(&mut page, spec::RAMDISK_IMAGE, handover.initrd.0);
    put_u32(&mut page, spec::RAMDISK_SIZE, handover.initrd.1);
    put_u32(&mut page, spec::CMD_LINE_PTR, handover.cmdline);
    put(
        &mut page,
        spec::ACPI_RSDP_ADDR,
        &handover.rsdp.to_le_bytes(),
    );
    let map = memory_map(handover.memory);
    put(&mut page, spec::E820_ENTRIES, &[map.len() as u8]);
    for (i, (start, end, kind)) in map.into_iter().enumerate() {
        let at = spec::E820_TABLE + i * spec::E820_ENTRY_BYTES;
        put(&mut page, at, &u64::to_le_bytes(start));
        put(&mut page, at + 8, &u64::to_le_bytes(end - start));
        put(&mut page, at + 16, &u32::to_le_bytes(kind));
    }
    page
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = page.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn put_u32(page: &mut [u8], at: usize, value: u64) {
    put(page, at, &(value as u32).to_le_bytes());
}

/// Ranges from first byte to the one behind the last, with their kind; ascending, none empty.
fn memory_map(memory: u64) -> Vec<(u64, u64, u32)> {
    let ranges = [
        (0, LOW_END.min(memory), RAM),
        (LOW_END, LOW_RESERVED_END, RESERVED),
        (tables::BASE, tables::END, RESERVED),
        (HIGH_START, memory, RAM),
        (tables::ECAM.start, tables::ECAM.end, RESERVED),
    ];
    ranges.into_iter().filter(|(s, e, _)| s < e).collect()
}
