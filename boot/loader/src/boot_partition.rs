//! The boot partition of a BIOS disk, in clusters that the loader's second stage reads at once.
//!
//! That stage reads 16 KiB for each cluster and looks the next one up on the disk (`bootloader` 0.11.15,
//! `bios/stage-2/src/main.rs`, `try_load_file`), while the image builder makes clusters of 512 bytes: everything was
//! read more than thirty times.

use std::fs::OpenOptions;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// The second stage's buffer.
const CLUSTER_BYTES: u32 = 16 << 10;
const SECTOR: u64 = 512;
/// Offset in sector 0 of the first sector and the length of the second partition.
const SECOND_ENTRY: usize = 446 + 16 + 8;
/// Besides the clusters: boot sector, tables, root directory.
const OVERHEAD_CLUSTERS: u32 = 4;

/// Formats the boot partition of the disk at `path` anew, with the same files, and ends the disk behind it.
///
/// # Errors
///
/// The disk is not as the image builder makes it, or cannot be written.
pub(crate) fn with_large_clusters(path: &Path) -> Result<()> {
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context("cannot open it")?;
    let mut sector = [0; SECTOR as usize];
    disk.read_exact(&mut sector)?;
    let word = |at: usize| {
        u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
    };
    let start = u64::from(word(SECOND_ENTRY)) * SECTOR;
    let length = u64::from(word(SECOND_ENTRY + 4)) * SECTOR;
    let mut old = vec![0; usize::try_from(length)?];
    disk.seek(SeekFrom::Start(start))?;
    disk.read_exact(&mut old).context("the boot partition")?;

    let new = reformat(old)?;
    disk.seek(SeekFrom::Start(start))?;
    disk.write_all(&new)?;
    disk.set_len(start + new.len() as u64)?;
    let sectors = u32::try_from(new.len() as u64 / SECTOR)?;
    disk.seek(SeekFrom::Start(SECOND_ENTRY as u64 + 4))?;
    disk.write_all(&sectors.to_le_bytes())?;
    Ok(())
}

/// A file system in large clusters with the files of `old`, which are all in its root directory.
fn reformat(old: Vec<u8>) -> Result<Vec<u8>> {
    let old = FileSystem::new(Cursor::new(old), FsOptions::new()).context("the boot partition")?;
    let mut files = Vec::new();
    let mut clusters = OVERHEAD_CLUSTERS;
    for entry in old.root_dir().iter() {
        let entry = entry?;
        ensure!(entry.is_file(), "a directory in the boot partition");
        let mut bytes = Vec::new();
        entry.to_file().read_to_end(&mut bytes)?;
        clusters += u32::try_from(bytes.len())?.div_ceil(CLUSTER_BYTES);
        files.push((entry.file_name(), bytes));
    }
    let mut new = Cursor::new(vec![0; (clusters * CLUSTER_BYTES) as usize]);
    let format = FormatVolumeOptions::new()
        .bytes_per_cluster(CLUSTER_BYTES)
        .volume_label(*b"DUET       ");
    fatfs::format_volume(&mut new, format)?;
    let system = FileSystem::new(&mut new, FsOptions::new())?;
    for (name, bytes) in files {
        system.root_dir().create_file(&name)?.write_all(&bytes)?;
    }
    system.unmount()?;
    Ok(new.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_the_same_in_other_clusters() {
        let files: [(&str, Vec<u8>); 3] = [
            ("boot-stage-3", vec![1; 513]),
            ("kernel-x86_64", (0..100_000_u32).map(|n| n as u8).collect()),
            ("boot.json", b"{}".to_vec()),
        ];
        let mut old = Cursor::new(vec![0; 2 << 20]);
        fatfs::format_volume(&mut old, FormatVolumeOptions::new()).unwrap();
        let system = FileSystem::new(&mut old, FsOptions::new()).unwrap();
        assert!(system.cluster_size() < CLUSTER_BYTES);
        for (name, bytes) in &files {
            let mut file = system.root_dir().create_file(name).unwrap();
            file.write_all(bytes).unwrap();
        }
        system.unmount().unwrap();

        let new = reformat(old.into_inner()).unwrap();
        let system = FileSystem::new(Cursor::new(new), FsOptions::new()).unwrap();
        assert_eq!(system.cluster_size(), CLUSTER_BYTES);
        for (name, bytes) in &files {
            let mut found = Vec::new();
            let mut file = system.root_dir().open_file(name).unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(&found == bytes, "{name}");
        }
    }

    #[test]
    fn a_disk_without_a_boot_partition_is_refused() {
        assert!(reformat(vec![0; 1 << 20]).is_err());
    }
}
