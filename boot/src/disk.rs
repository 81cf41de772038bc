//! The raw partitions behind the boot loader's own on an MBR disk: guest files, and a log.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use vmm::container::PARTITION_TYPE;
use vmm::log::store;
use vmm::partition;

use crate::ImageError;

const SECTOR: u64 = 512;
/// Partition starts on whole MiB, as partitioning tools do.
const ALIGNMENT: u64 = 1 << 20;
/// Disks end on a whole cylinder of 16 heads and 63 sectors, the geometry that BIOSes assume.
const CYLINDER: u64 = 16 * 63 * SECTOR;
/// Offset of the partition table in sector 0; the loader has its first two entries.
const TABLE: usize = 446;
const ENTRY_BYTES: usize = 16;
/// The entry of the container, and that of the log.
const CONTAINER_ENTRY: usize = 2;
const LOG_ENTRY: usize = 3;
const SIGNATURE: usize = 510;

/// Puts `container` into a new third partition at the end of the disk.
pub(crate) fn append_container(path: &Path, container: &[u8]) -> Result<(), ImageError> {
    let length = container.len() as u64;
    append(path, (CONTAINER_ENTRY, PARTITION_TYPE), container, length)
}

/// Adds a fourth partition of `bytes`, all zero, for the log of a recorded guest.
pub(crate) fn append_log(path: &Path, bytes: u64) -> Result<(), ImageError> {
    append(path, (LOG_ENTRY, store::PARTITION_TYPE), &[], bytes)
}

/// The log in the disk's log partition; `None` if there is no such partition, or no log in it.
pub(crate) fn read_log(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let failed = || ImageError::file("disk image", path);
    let mut disk = std::fs::File::open(path).map_err(failed())?;
    let mut sector = [0; SECTOR as usize];
    disk.read_exact(&mut sector).map_err(failed())?;
    let sectors = disk.metadata().map_err(failed())?.len() / SECTOR;
    let found = partition::find(&sector, sectors, store::PARTITION_TYPE);
    let Ok(Some(partition)) = found else {
        return Ok(None);
    };
    disk.seek(SeekFrom::Start(partition.start * SECTOR))
        .map_err(failed())?;
    let mut content = Vec::new();
    disk.take(partition.sectors * SECTOR)
        .read_to_end(&mut content)
        .map_err(failed())?;
    Ok(store::log(&content).map(<[u8]>::to_vec))
}

/// Adds a partition, by entry and type, of `length` bytes that begin with `content`.
fn append(
    path: &Path,
    (number, kind): (usize, u8),
    content: &[u8],
    length: u64,
) -> Result<(), ImageError> {
    let failed = || ImageError::file("disk image", path);
    let layout = |reason| ImageError::Layout {
        path: path.to_path_buf(),
        reason,
    };
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed())?;
    let mut sector = [0; SECTOR as usize];
    disk.read_exact(&mut sector).map_err(failed())?;
    if sector[SIGNATURE..] != [0x55, 0xaa] {
        return Err(layout("no partition table"));
    }
    let place = TABLE + number * ENTRY_BYTES..TABLE + (number + 1) * ENTRY_BYTES;
    if sector[place.clone()] != [0; ENTRY_BYTES] {
        return Err(layout("the partition is taken"));
    }

    let start = disk
        .seek(SeekFrom::End(0))
        .map_err(failed())?
        .next_multiple_of(ALIGNMENT);
    let length = length.next_multiple_of(SECTOR);
    let entry = partition_entry(kind, start / SECTOR, length / SECTOR)
        .ok_or_else(|| layout("larger than a partition table can say"))?;
    sector[place].copy_from_slice(&entry);

    disk.seek(SeekFrom::Start(start)).map_err(failed())?;
    disk.write_all(content).map_err(failed())?;
    disk.set_len((start + length).next_multiple_of(CYLINDER))
        .map_err(failed())?;
    disk.seek(SeekFrom::Start(0)).map_err(failed())?;
    disk.write_all(&sector).map_err(failed())
}

/// A partition table entry; cylinder, head and sector say "see the sector numbers".
fn partition_entry(kind: u8, start: u64, sectors: u64) -> Option<[u8; 16]> {
    let start = u32::try_from(start).ok()?;
    let sectors = u32::try_from(sectors).ok()?;
    let mut entry = [0; 16];
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = kind;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(boot_sector: [u8; 512], bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&boot_sector).unwrap();
        file.as_file().set_len(bytes as u64).unwrap();
        file
    }

    fn boot_sector() -> [u8; 512] {
        let mut sector = [0; 512];
        sector[SIGNATURE..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[test]
    fn container_lies_where_the_table_says() {
        let file = disk_with(boot_sector(), 3 * 1024 * 1024 + 512);
        let container = vec![0x5a; 1000];
        append_container(file.path(), &container).unwrap();
        let disk = std::fs::read(file.path()).unwrap();
        let entry = &disk[TABLE + 32..TABLE + 48];
        assert_eq!(entry[4], 0xda);
        let start = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize * 512;
        let sectors = u32::from_le_bytes(entry[12..16].try_into().unwrap());
        assert_eq!((start, sectors), (4 << 20, 2));
        assert_eq!(disk[start..start + 1000], container);
        assert_eq!(disk.len() as u64 % CYLINDER, 0);
    }

    #[test]
    fn a_disk_that_is_not_ours_is_left_alone() {
        let file = disk_with([0; 512], 4096);
        let error = append_container(file.path(), &[1]).unwrap_err();
        assert!(error.to_string().contains("no partition table"), "{error}");
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![0; 4096]);

        let mut taken = boot_sector();
        taken[TABLE + 32 + 4] = 0x83;
        let file = disk_with(taken, 4096);
        let error = append_container(file.path(), &[1]).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }

    #[test]
    fn a_log_is_read_from_its_partition() {
        let file = disk_with(boot_sector(), 1 << 20);
        append_container(file.path(), &[1; 512]).unwrap();
        assert_eq!(read_log(file.path()).unwrap(), None);
        append_log(file.path(), 1 << 16).unwrap();
        // There is the partition, but nobody has written to it.
        assert_eq!(read_log(file.path()).unwrap(), None);
        let disk = std::fs::read(file.path()).unwrap();
        let entry = &disk[TABLE + 48..TABLE + 64];
        let start = u64::from(u32::from_le_bytes(entry[8..12].try_into().unwrap())) * SECTOR;
        let mut disk = OpenOptions::new().write(true).open(file.path()).unwrap();
        disk.seek(SeekFrom::Start(start)).unwrap();
        disk.write_all(&store::label(3)).unwrap();
        disk.write_all(b"log").unwrap();
        assert_eq!(read_log(file.path()).unwrap().as_deref(), Some(&b"log"[..]));
    }
}
