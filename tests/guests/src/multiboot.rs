//! The Multiboot 1 information structure (specification 0.6.96, section 3.3), as the loader left it.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// EAX at entry.
pub const MAGIC: u32 = 0x2bad_b002;

/// EAX at entry, stored by the boot code.
pub(crate) static MULTIBOOT_MAGIC: AtomicU32 = AtomicU32::new(0);
/// EBX at entry, stored by the boot code.
pub(crate) static MULTIBOOT_INFO: AtomicU32 = AtomicU32::new(0);

/// One range of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// 1 is RAM.
    pub kind: u32,
}

/// One loaded module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its bytes.
    pub bytes: &'static [u8],
    /// Its string.
    pub text: &'static str,
}

/// Whether the magic number was right.
pub fn valid() -> bool {
    MULTIBOOT_MAGIC.load(Relaxed) == MAGIC
}

fn field(offset: u32) -> u32 {
    let address = MULTIBOOT_INFO.load(Relaxed).wrapping_add(offset);
    read(address)
}

fn read(address: u32) -> u32 {
    // SAFETY: the loader's structure, somewhere in identity-mapped RAM.
    unsafe { (address as *const u32).read_unaligned() }
}

fn has(bit: u32) -> bool {
    field(0) & 1 << bit != 0
}

fn string(address: u32) -> &'static str {
    // SAFETY: the specification promises a zero-terminated string, and nobody changes it.
    let text = unsafe { CStr::from_ptr(address as *const core::ffi::c_char) };
    text.to_str().unwrap_or("<not UTF-8>")
}

/// KiB below 1 MiB and from 1 MiB up.
pub fn basic_memory() -> Option<(u32, u32)> {
    has(0).then(|| (field(4), field(8)))
}

/// The command line, empty if there is none.
pub fn command_line() -> &'static str {
    if has(2) { string(field(16)) } else { "" }
}

/// The boot loader's name.
pub fn loader_name() -> Option<&'static str> {
    has(9).then(|| string(field(64)))
}

/// The modules.
pub fn modules() -> impl Iterator<Item = Module> {
    let (count, first) = if has(3) {
        (field(20), field(24))
    } else {
        (0, 0)
    };
    (0..count).map(move |index| {
        let entry = first + index * 16;
        let (start, end) = (read(entry), read(entry + 4));
        Module {
            // SAFETY: the loader says that the module lies there.
            bytes: unsafe {
                core::slice::from_raw_parts(start as *const u8, end.wrapping_sub(start) as usize)
            },
            text: string(read(entry + 8)),
        }
    })
}

/// The memory map.
pub fn memory_map() -> impl Iterator<Item = Range> {
    let (length, first) = if has(6) {
        (field(44), field(48))
    } else {
        (0, 0)
    };
    let mut offset = 0;
    core::iter::from_fn(move || {
        if offset >= length {
            return None;
        }
        let entry = first + offset;
        offset += read(entry) + 4;
        let wide = |at: u32| u64::from(read(entry + at + 4)) << 32 | u64::from(read(entry + at));
        Some(Range {
            base: wide(4),
            length: wide(12),
            kind: read(entry + 20),
        })
    })
}

/// End of the RAM that begins at 1 MiB.
pub fn memory_end() -> u64 {
    let from_map = memory_map()
        .filter(|range| range.kind == 1 && range.base <= 0x10_0000)
        .map(|range| range.base + range.length)
        .max();
    let basic = basic_memory().map_or(0, |(_, upper)| 0x10_0000 + u64::from(upper) * 1024);
    from_map.unwrap_or(basic)
}

/// Where the information lies.
pub fn address() -> u64 {
    u64::from(MULTIBOOT_INFO.load(Relaxed))
}
