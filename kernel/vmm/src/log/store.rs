//! The partition that a log is written to: a label in its first sector, then the log.
//!
//! ```text
//! sector 0   "DUETLOGP" │ bytes of the log so far, u64 little endian │ zeroes
//! sector 1 … the log
//! ```

use crate::partition::SECTOR_BYTES;

/// Type of the partition in the MBR. Nobody else's in use.
pub const PARTITION_TYPE: u8 = 0xd9;

const MAGIC: [u8; 8] = *b"DUETLOGP";

/// The first sector of a partition with a log of `bytes`.
#[must_use]
pub fn label(bytes: u64) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let fields = MAGIC.into_iter().chain(bytes.to_le_bytes());
    sector
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    sector
}

/// The log in a partition; `None` if it has none, or a part of it is missing.
#[must_use]
pub fn log(partition: &[u8]) -> Option<&[u8]> {
    let (magic, rest) = partition.split_first_chunk()?;
    let length = u64::from_le_bytes(*rest.first_chunk()?);
    let content = partition.get(SECTOR_BYTES..)?;
    (*magic == MAGIC).then_some(())?;
    content.get(..usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_found_behind_its_label() {
        let mut partition = label(3).to_vec();
        partition.extend(b"logrest");
        assert_eq!(log(&partition), Some(&b"log"[..]));
        assert_eq!(log(&partition[..514]), None);
        partition[0] = 0;
        assert_eq!(log(&partition), None);
        assert_eq!(log(&[]), None);
        assert_eq!(log(&label(0)), Some(&[][..]));
    }
}
