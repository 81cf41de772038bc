//! Program headers of a 64-bit ELF file (System V ABI, "Object Files" and "Program Loading").
//!
//! Only what mapping an already loaded image needs; loading is done elsewhere.

use core::fmt;

/// Bytes of the file header.
const HEADER_BYTES: usize = 64;
/// Bytes of one program header.
const ENTRY_BYTES: usize = 56;

/// `p_type` of a segment that is loaded.
pub const LOAD: u32 = 1;
/// `p_type` of the range that is read-only once relocations are applied.
pub const GNU_RELRO: u32 = 0x6474_e552;
/// `p_flags`: executable.
pub const EXECUTE: u32 = 1;
/// `p_flags`: writable.
pub const WRITE: u32 = 2;

/// Why a file was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not a little-endian 64-bit ELF file.
    NotElf64,
    /// The program headers have an unknown size or lie outside the file.
    BadTable,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElfError::NotElf64 => "not a little-endian 64-bit ELF file",
            ElfError::BadTable => "ELF program headers are malformed or outside the file",
        })
    }
}

impl core::error::Error for ElfError {}

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// [`LOAD`], [`GNU_RELRO`] or another kind.
    pub kind: u32,
    /// [`EXECUTE`], [`WRITE`] and "readable".
    pub flags: u32,
    /// First byte in the file.
    pub offset: u64,
    /// First address, before the image's offset is added.
    pub address: u64,
    /// Bytes taken from the file.
    pub file_bytes: u64,
    /// Bytes in memory; what exceeds `file_bytes` is zero.
    pub memory_bytes: u64,
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = bytes.get(at..at.saturating_add(N)) {
        out.copy_from_slice(found);
    }
    out
}

/// The program headers of `file`, of which only the beginning need be given.
///
/// # Errors
///
/// The file is not ELF64 or its table of program headers is not inside `file`.
pub fn segments(file: &[u8]) -> Result<impl Iterator<Item = Segment> + '_, ElfError> {
    const IDENTITY: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    if file.len() < HEADER_BYTES || !file.starts_with(&IDENTITY) {
        return Err(ElfError::NotElf64);
    }
    let table =
        usize::try_from(u64::from_le_bytes(word(file, 32))).map_err(|_| ElfError::BadTable)?;
    let entry = usize::from(u16::from_le_bytes(word(file, 54)));
    let count = usize::from(u16::from_le_bytes(word(file, 56)));
    let end = table.checked_add(count * ENTRY_BYTES);
    let bytes = end.and_then(|end| file.get(table..end));
    let bytes = bytes
        .filter(|_| entry == ENTRY_BYTES)
        .ok_or(ElfError::BadTable)?;
    Ok(bytes.chunks_exact(ENTRY_BYTES).map(|header| Segment {
        kind: u32::from_le_bytes(word(header, 0)),
        flags: u32::from_le_bytes(word(header, 4)),
        offset: u64::from_le_bytes(word(header, 8)),
        address: u64::from_le_bytes(word(header, 16)),
        file_bytes: u64::from_le_bytes(word(header, 32)),
        memory_bytes: u64::from_le_bytes(word(header, 40)),
    }))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn file(entry_bytes: u16, count: u16) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&entry_bytes.to_le_bytes());
        file[56..58].copy_from_slice(&count.to_le_bytes());
        let mut header = [0; 56];
        header[0..4].copy_from_slice(&LOAD.to_le_bytes());
        header[4..8].copy_from_slice(&(WRITE | 4).to_le_bytes());
        header[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
        header[16..24].copy_from_slice(&0x20_1000u64.to_le_bytes());
        header[32..40].copy_from_slice(&0x234u64.to_le_bytes());
        header[40..48].copy_from_slice(&0x5678u64.to_le_bytes());
        file.extend_from_slice(&header);
        file
    }

    #[test]
    fn every_field_is_taken_from_its_place() {
        let file = file(56, 1);
        let all: Vec<_> = segments(&file).unwrap().collect();
        let expected = Segment {
            kind: LOAD,
            flags: WRITE | 4,
            offset: 0x1000,
            address: 0x20_1000,
            file_bytes: 0x234,
            memory_bytes: 0x5678,
        };
        assert_eq!(all, [expected]);
    }

    #[test]
    fn a_table_outside_the_file_or_of_another_size_is_refused() {
        assert_eq!(segments(&file(56, 2)).err(), Some(ElfError::BadTable));
        assert_eq!(segments(&file(32, 1)).err(), Some(ElfError::BadTable));
        let mut far = file(56, 1);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(segments(&far).err(), Some(ElfError::BadTable));
        assert_eq!(segments(&far[..63]).err(), Some(ElfError::NotElf64));
        far[4] = 1;
        assert_eq!(segments(&far).err(), Some(ElfError::NotElf64));
    }
}
