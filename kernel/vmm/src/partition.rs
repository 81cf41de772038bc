//! The partition table in the first sector of a disk.

use core::fmt;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

const TABLE: usize = 446;
const ENTRY_BYTES: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// A partition, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Type byte; never 0.
    pub kind: u8,
    /// First sector.
    pub start: u64,
    /// Number of sectors; never 0.
    pub sectors: u64,
}

/// Why a sector is no partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionError {
    /// The signature is missing.
    NoSignature,
    /// Partition `number` (from 1) reaches beyond the disk.
    BeyondDisk {
        /// Which entry.
        number: usize,
    },
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("no partition table (signature 55 aa is missing)"),
            Self::BeyondDisk { number } => write!(f, "partition {number} reaches beyond the disk"),
        }
    }
}

impl core::error::Error for PartitionError {}

/// The first partition of type `kind` on a disk of `disk_sectors` whose first sector is `sector`.
///
/// # Errors
///
/// There is no table, or the partition is not wholly on the disk.
pub fn find(
    sector: &[u8; SECTOR_BYTES],
    disk_sectors: u64,
    kind: u8,
) -> Result<Option<Partition>, PartitionError> {
    if !sector.ends_with(&SIGNATURE) {
        return Err(PartitionError::NoSignature);
    }
    let table = sector
        .get(TABLE..SECTOR_BYTES - SIGNATURE.len())
        .unwrap_or(&[]);
    for (number, entry) in (1..).zip(table.chunks_exact(ENTRY_BYTES)) {
        let number_at = |at: usize| {
            let bytes = entry.get(at..at + 4).and_then(|b| b.try_into().ok());
            u64::from(u32::from_le_bytes(bytes.unwrap_or([0; 4])))
        };
        let partition = Partition {
            kind: entry.get(4).copied().unwrap_or(0),
            start: number_at(8),
            sectors: number_at(12),
        };
        if partition.kind == 0 || partition.kind != kind || partition.sectors == 0 {
            continue;
        }
        if partition.start + partition.sectors > disk_sectors {
            return Err(PartitionError::BeyondDisk { number });
        }
        return Ok(Some(partition));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(entries: [(u8, u32, u32); 4]) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        for (index, (kind, start, sectors)) in entries.into_iter().enumerate() {
            let at = TABLE + index * ENTRY_BYTES;
            sector[at + 4] = kind;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&SIGNATURE);
        sector
    }

    #[test]
    fn the_partition_is_found_by_its_type() {
        let disk = sector([(0x20, 1, 99), (0x0c, 100, 900), (0xda, 2048, 50), (0, 0, 0)]);
        let expected = Partition {
            kind: 0xda,
            start: 2048,
            sectors: 50,
        };
        assert_eq!(find(&disk, 2098, 0xda), Ok(Some(expected)));
        assert_eq!(find(&disk, 2098, 0x83), Ok(None));
    }

    #[test]
    fn a_partition_beyond_the_disk_is_named() {
        let disk = sector([(0x20, 1, 99), (0, 0, 0), (0xda, 2048, 50), (0, 0, 0)]);
        let error = Err(PartitionError::BeyondDisk { number: 3 });
        assert_eq!(find(&disk, 2097, 0xda), error);
        let wrapping = sector([(0xda, u32::MAX, u32::MAX), (0, 0, 0), (0, 0, 0), (0, 0, 0)]);
        let error = Err(PartitionError::BeyondDisk { number: 1 });
        assert_eq!(find(&wrapping, 4096, 0xda), error);
    }

    #[test]
    fn no_signature_no_table() {
        let mut disk = sector([(0xda, 1, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)]);
        disk[511] = 0;
        assert_eq!(find(&disk, 100, 0xda), Err(PartitionError::NoSignature));
        // An empty slot is not a partition of type 0.
        assert_eq!(find(&sector([(0, 1, 1); 4]), 100, 0), Ok(None));
    }
}
