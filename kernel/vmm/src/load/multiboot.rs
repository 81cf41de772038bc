//! Multiboot 1 kernels (Multiboot Specification 0.6.96): header, modules, boot information.

use alloc::string::String;
use alloc::vec::Vec;

use arch::regs::{CpuState, Gpr};

use super::elf32::{self, Loaded, u32_at};
use super::{Cause, GuestFiles, LoadError, find, named, place};
use crate::config::module_file;
use crate::memory::GuestMemory;

/// Section 3.1.1; `spec` facts of the header and the boot information.
mod spec {
    pub(super) const HEADER_MAGIC: u32 = 0x1bad_b002;
    pub(super) const LOADER_MAGIC: u32 = 0x2bad_b002;
    pub(super) const SEARCH_BYTES: usize = 8192;
    pub(super) const FLAG_PAGE_ALIGN: u32 = 1 << 0;
    pub(super) const FLAG_MEMORY_INFO: u32 = 1 << 1;
    pub(super) const FLAG_ADDRESSES: u32 = 1 << 16;
    /// Flags whose requirement must be met or the kernel refused.
    pub(super) const REQUIREMENTS: u32 = 0xffff;

    pub(super) const INFO_BYTES: usize = 120;
    pub(super) const INFO_MEMORY: u32 = 1 << 0;
    pub(super) const INFO_CMDLINE: u32 = 1 << 2;
    pub(super) const INFO_MODULES: u32 = 1 << 3;
    pub(super) const INFO_MEMORY_MAP: u32 = 1 << 6;
    pub(super) const INFO_LOADER_NAME: u32 = 1 << 9;
    pub(super) const MEMORY_AVAILABLE: u32 = 1;
    pub(super) const MEMORY_RESERVED: u32 = 2;
}

const PAGE: u64 = 4096;
/// End of conventional memory, as a PC reports it.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

struct Header {
    at: usize,
    flags: u32,
}

fn header(file: &[u8]) -> Result<Header, Cause> {
    let searched = file.get(..spec::SEARCH_BYTES).unwrap_or(file);
    let (words, _) = searched.as_chunks::<4>();
    let word = |i: usize| words.get(i).map(|w| u32::from_le_bytes(*w));
    for i in 0..words.len() {
        let (Some(spec::HEADER_MAGIC), Some(flags), Some(checksum)) =
            (word(i), word(i + 1), word(i + 2))
        else {
            continue;
        };
        if spec::HEADER_MAGIC
            .wrapping_add(flags)
            .wrapping_add(checksum)
            != 0
        {
            continue;
        }
        let offered = spec::FLAG_PAGE_ALIGN | spec::FLAG_MEMORY_INFO;
        return if flags & spec::REQUIREMENTS & !offered == 0 {
            Ok(Header { at: 4 * i, flags })
        } else {
            Err(Cause::Required(flags))
        };
    }
    Err(Cause::NoMultibootHeader)
}

/// Loads by the address fields of the header (section 3.1.3).
fn load_by_addresses<M: GuestMemory>(
    file: &[u8],
    header: &Header,
    memory: &mut M,
) -> Result<Loaded, Cause> {
    let field = |i: usize| u32_at(file, header.at + 4 * i);
    let (header_addr, load, load_end) = (field(3)?, field(4)?, field(5)?);
    let (bss_end, entry) = (field(6)?, field(7)?);
    let before = header_addr.checked_sub(load).ok_or(Cause::Contradictory)? as usize;
    let start = header.at.checked_sub(before).ok_or(Cause::Contradictory)?;
    let bytes = if load_end == 0 {
        file.get(start..).ok_or(Cause::Truncated)?
    } else {
        let length = load_end.checked_sub(load).ok_or(Cause::Contradictory)? as usize;
        start
            .checked_add(length)
            .and_then(|end| file.get(start..end))
            .ok_or(Cause::Truncated)?
    };
    let loaded_end = u64::from(load) + bytes.len() as u64;
    let end = loaded_end.max(u64::from(bss_end));
    if end > memory.size() {
        return Err(Cause::DoesNotFit {
            end,
            memory: memory.size(),
        });
    }
    place(memory, u64::from(load), bytes)?;
    if u64::from(entry) < u64::from(load) || u64::from(entry) >= loaded_end {
        return Err(Cause::BadEntry(entry));
    }
    Ok(Loaded { entry, end })
}

/// Loads kernel and modules and leaves the boot information behind them.
pub(super) fn load<M: GuestMemory>(
    kernel: &str,
    cmdline: &str,
    modules: &[String],
    files: &impl GuestFiles,
    memory: &mut M,
) -> Result<CpuState, LoadError> {
    let file = find(files, kernel)?;
    let loaded = header(file)
        .and_then(|header| {
            if header.flags & spec::FLAG_ADDRESSES != 0 {
                load_by_addresses(file, &header, memory)
            } else {
                elf32::load(file, memory)
            }
        })
        .map_err(|cause| named(kernel, cause))?;
    let mut next = align(loaded.end.max(HIGH_START));
    let mut ranges = Vec::new();
    for module in modules {
        let name = module_file(module).unwrap_or_default();
        let bytes = find(files, name)?;
        place(memory, next, bytes).map_err(|cause| named(name, cause))?;
        let end = next + bytes.len() as u64;
        ranges.push((next, end, module.as_str()));
        next = align(end);
    }
    let info = Information::new(next, memory.size(), cmdline, &ranges);
    place(memory, next, &info.bytes).map_err(|cause| named(kernel, cause))?;
    let mut state = CpuState::protected_mode(loaded.entry);
    state.gprs[Gpr::Rax] = u64::from(spec::LOADER_MAGIC);
    state.gprs[Gpr::Rbx] = next;
    Ok(state)
}

const fn align(address: u64) -> u64 {
    address.next_multiple_of(PAGE)
}

/// The boot information and all it points to, laid out from one address up. Guest RAM ends below 4 GiB,
/// so that every address fits the structure's 32-bit fields; what does not fit RAM is refused when placed.
struct Information {
    base: u64,
    bytes: Vec<u8>,
}

impl Information {
    fn new(base: u64, memory: u64, cmdline: &str, modules: &[(u64, u64, &str)]) -> Self {
        let mut info = Self {
            base,
            bytes: alloc::vec![0; spec::INFO_BYTES],
        };
        let cmdline_at = info.string(cmdline);
        let name_at = info.string("duet");
        let mut table = Vec::new();
        for (start, end, text) in modules {
            let text_at = info.string(text);
            for word in [*start as u32, *end as u32, text_at, 0] {
                table.extend_from_slice(&word.to_le_bytes());
            }
        }
        let modules_at = info.append(&table);
        let map = memory_map(memory);
        let map_at = info.append(&map);
        let flags = spec::INFO_MEMORY
            | spec::INFO_CMDLINE
            | spec::INFO_MODULES
            | spec::INFO_MEMORY_MAP
            | spec::INFO_LOADER_NAME;
        let kib = |bytes: u64| (bytes / 1024) as u32;
        info.field(0, flags);
        info.field(4, kib(memory.min(LOW_END)));
        info.field(8, kib(memory.saturating_sub(HIGH_START)));
        info.field(16, cmdline_at);
        info.field(20, modules.len() as u32);
        info.field(24, modules_at);
        info.field(44, map.len() as u32);
        info.field(48, map_at);
        info.field(64, name_at);
        info
    }

    fn field(&mut self, at: usize, value: u32) {
        if let Some(place) = self
            .bytes
            .get_mut(at..)
            .and_then(<[u8]>::first_chunk_mut::<4>)
        {
            *place = value.to_le_bytes();
        }
    }

    fn append(&mut self, bytes: &[u8]) -> u32 {
        let at = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        (self.base + at as u64) as u32
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.append(text.as_bytes());
        self.bytes.push(0);
        at
    }
}

/// Entries of section 3.3's `mmap`: size, base, length, type.
fn memory_map(memory: u64) -> Vec<u8> {
    let low = memory.min(LOW_END);
    let hole = HIGH_START.min(memory).saturating_sub(low);
    let entries = [
        (0, low, spec::MEMORY_AVAILABLE),
        (low, hole, spec::MEMORY_RESERVED),
        (
            HIGH_START,
            memory.saturating_sub(HIGH_START),
            spec::MEMORY_AVAILABLE,
        ),
    ];
    let mut map = Vec::new();
    for (base, length, kind) in entries.into_iter().filter(|(_, length, _)| *length != 0) {
        map.extend_from_slice(&20_u32.to_le_bytes());
        map.extend_from_slice(&u64::to_le_bytes(base));
        map.extend_from_slice(&u64::to_le_bytes(length));
        map.extend_from_slice(&kind.to_le_bytes());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Ram;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    struct Files(Vec<(&'static str, Vec<u8>)>);

    impl GuestFiles for Files {
        fn file(&self, name: &str) -> Option<&[u8]> {
            self.0
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, b)| b.as_slice())
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// An ELF32 kernel: headers, then the Multiboot header, then four bytes of code at the entry.
    fn elf_kernel() -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend_from_slice(&[2, 0, 3, 0, 1, 0, 0, 0]);
        file.extend_from_slice(&words(&[0xc010_000c, 52, 0, 0]));
        file.extend_from_slice(&[52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file.len(), 52);
        file.extend_from_slice(&words(&[
            1,
            84,
            0xc010_0000,
            0x10_0000,
            16,
            0x2000,
            7,
            0x1000,
        ]));
        let flags = 3_u32;
        let checksum = 0_u32.wrapping_sub(spec::HEADER_MAGIC).wrapping_sub(flags);
        file.extend_from_slice(&words(&[spec::HEADER_MAGIC, flags, checksum, 0x9090_9090]));
        file
    }

    fn flat_kernel(load: u32, end: u32, entry: u32) -> Vec<u8> {
        let flags = spec::FLAG_ADDRESSES;
        let checksum = 0_u32.wrapping_sub(spec::HEADER_MAGIC).wrapping_sub(flags);
        words(&[
            0x1234,
            spec::HEADER_MAGIC,
            flags,
            checksum,
            load + 4,
            load,
            end,
            0,
            entry,
        ])
    }

    fn start(file: Vec<u8>, ram: &mut Ram) -> Result<CpuState, Cause> {
        let files = Files(vec![("k", file), ("m", vec![7; 5000])]);
        load("k", "hi there", &["m x y".to_string()], &files, ram).map_err(|e| e.cause)
    }

    #[test]
    fn an_elf_kernel_finds_its_modules_and_memory_map() {
        let mut ram = Ram::new(2 << 20);
        let state = start(elf_kernel(), &mut ram).expect("loads");
        assert_eq!(state.rip, 0x10_000c);
        assert_eq!(state.gprs[Gpr::Rax], 0x2bad_b002);
        let info = state.gprs[Gpr::Rbx];
        let read = |at: u64| ram.read_u32(arch::addr::Gpa(at)).expect("RAM");
        assert_eq!(read(info + 8), 1024);
        let cmdline = u64::from(read(info + 16)) as usize;
        assert_eq!(&ram.0[cmdline..cmdline + 9], b"hi there\0");
        assert_eq!(read(info + 20), 1);
        let module = u64::from(read(info + 24));
        assert_eq!(
            (read(module), read(module + 4)),
            (0x10_2000, 0x10_2000 + 5000)
        );
        assert_eq!(ram.0[0x10_2000 + 4999], 7);
        let map = u64::from(read(info + 48));
        assert_eq!(read(info + 44), 72);
        assert_eq!(
            (read(map), read(map + 4), read(map + 12), read(map + 20)),
            (20, 0, 0x9_fc00, 1)
        );
    }

    #[test]
    fn address_fields_replace_the_file_format() {
        let mut ram = Ram::new(2 << 20);
        let state = start(flat_kernel(0x10_0000, 0, 0x10_0000), &mut ram).expect("loads");
        assert_eq!(state.rip, 0x10_0000);
        assert_eq!(ram.0[0x10_0000..0x10_0002], [0x34, 0x12]);
        let bad = start(flat_kernel(0x10_0000, 0, 0x20_0000), &mut ram);
        assert_eq!(bad, Err(Cause::BadEntry(0x20_0000)));
        let end = start(flat_kernel(0x10_0000, 0x10_1000, 0x10_0000), &mut ram);
        assert_eq!(end, Err(Cause::Truncated));
        let before = start(flat_kernel(0x10_0000, 0xf_0000, 0x10_0000), &mut ram);
        assert_eq!(before, Err(Cause::Contradictory));
    }

    #[test]
    fn wrong_files_are_named() {
        let mut ram = Ram::new(2 << 20);
        assert_eq!(
            start(vec![0; 9000], &mut ram),
            Err(Cause::NoMultibootHeader)
        );
        let files = Files(vec![("k", elf_kernel()), ("e", vec![])]);
        let missing = load("k", "", &["no such".to_string()], &files, &mut ram);
        assert_eq!(missing, Err(named("no", Cause::Missing)));
        assert_eq!(
            load("e", "", &[], &files, &mut ram),
            Err(named("e", Cause::Empty))
        );
        let mut small = Ram::new(1 << 20);
        let memory = 1 << 20;
        assert_eq!(
            start(elf_kernel(), &mut small),
            Err(Cause::DoesNotFit {
                end: 0x10_2000,
                memory
            })
        );
        let mut video = elf_kernel();
        video[88] |= 4;
        video[92] = video[92].wrapping_sub(4);
        assert_eq!(start(video, &mut ram), Err(Cause::Required(7)));
    }

    #[test]
    fn every_truncation_is_refused_or_harmless() {
        let whole = elf_kernel();
        for length in 1..whole.len() {
            let mut ram = Ram::new(2 << 20);
            assert!(
                start(whole[..length].to_vec(), &mut ram).is_err(),
                "{length} bytes"
            );
        }
    }

    proptest! {
        #[test]
        fn any_change_is_survived(at in 0_usize..100, value: u8, at2 in 0_usize..100, value2: u8) {
            let mut file = elf_kernel();
            file[at] = value;
            file[at2] = value2;
            let mut ram = Ram::new(2 << 20);
            let outcome = start(file, &mut ram);
            prop_assert!(outcome.is_ok() || outcome.is_err());
        }
    }
}
