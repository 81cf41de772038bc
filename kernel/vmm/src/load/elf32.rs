//! ELF32 executables for the 386, as far as a loader needs them (System V ABI, Intel386 supplement).

use super::{Cause, place};
use crate::memory::GuestMemory;

const HEADER_BYTES: usize = 52;
const PROGRAM_HEADER_BYTES: usize = 32;
const MACHINE_386: u16 = 3;
const TYPE_EXECUTABLE: u16 = 2;
const SEGMENT_LOAD: u32 = 1;
const MAX_SEGMENTS: u16 = 64;

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Physical address of the entry point.
    pub(super) entry: u32,
    /// First byte behind the last segment.
    pub(super) end: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Cause> {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>);
    field
        .map(|b| u16::from_le_bytes(*b))
        .ok_or(Cause::Truncated)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Cause> {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    field
        .map(|b| u32::from_le_bytes(*b))
        .ok_or(Cause::Truncated)
}

/// Copies the loadable segments to their physical addresses; RAM is zero, so nothing is cleared.
pub(super) fn load<M: GuestMemory>(file: &[u8], memory: &mut M) -> Result<Loaded, Cause> {
    // Magic, 32 bit, little endian.
    if !file.starts_with(b"\x7fELF\x01\x01") {
        return Err(Cause::NotElf32);
    }
    if file.len() < HEADER_BYTES {
        return Err(Cause::Truncated);
    }
    let right_kind = u16_at(file, 16)? == TYPE_EXECUTABLE && u16_at(file, 18)? == MACHINE_386;
    let (header_bytes, segments) = (u16_at(file, 42)?, u16_at(file, 44)?);
    if !right_kind || usize::from(header_bytes) < PROGRAM_HEADER_BYTES || segments > MAX_SEGMENTS {
        return Err(Cause::NotElf32);
    }
    let virtual_entry = u32_at(file, 24)?;
    let mut loaded = Loaded { entry: 0, end: 0 };
    let mut entry = None;
    for i in 0..usize::from(segments) {
        let at = (u32_at(file, 28)? as usize).saturating_add(i * usize::from(header_bytes));
        if u32_at(file, at)? != SEGMENT_LOAD {
            continue;
        }
        let field = |n: usize| u32_at(file, at.saturating_add(4 * n));
        let (offset, virt, phys) = (field(1)? as usize, field(2)?, field(3)?);
        let (file_bytes, memory_bytes) = (field(4)?, field(5)?);
        if file_bytes > memory_bytes {
            return Err(Cause::Contradictory);
        }
        let bytes = offset
            .checked_add(file_bytes as usize)
            .and_then(|end| file.get(offset..end))
            .ok_or(Cause::Truncated)?;
        let end = u64::from(phys) + u64::from(memory_bytes);
        if end > memory.size() {
            return Err(Cause::DoesNotFit {
                end,
                memory: memory.size(),
            });
        }
        place(memory, u64::from(phys), bytes)?;
        loaded.end = loaded.end.max(end);
        let within = virtual_entry.wrapping_sub(virt);
        if virtual_entry >= virt && within < memory_bytes {
            entry = Some(phys.wrapping_add(within));
        }
    }
    loaded.entry = entry.ok_or(Cause::BadEntry(virtual_entry))?;
    Ok(loaded)
}
