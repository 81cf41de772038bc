//! The initrd: a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! It is not compressed: a disk reads it faster than a guest in an emulator unpacks it.

use std::collections::BTreeMap;

use anyhow::Result;
use cpio::newc::{Builder, trailer};

/// What `init` expects to be there.
const DIRECTORIES: [&str; 9] = [
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "proc",
    "root",
    "sys",
    "tmp",
];
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The archive: `init` as the first process, busybox as `/bin/busybox`, and modules, which are loaded in
/// this order.
///
/// # Errors
///
/// A file is larger than the format allows.
pub(super) fn build(init: &str, busybox: &[u8], modules: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.append(directory, DIRECTORY, &[])?;
    }
    archive.console()?;
    archive.append("init", PROGRAM, init.as_bytes())?;
    archive.append("bin/busybox", PROGRAM, busybox)?;
    let mut order = String::new();
    for (name, bytes) in modules {
        archive.append(&format!("lib/modules/{name}.ko"), FILE, bytes)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.append("lib/modules/order", FILE, order.as_bytes())?;
    Ok(trailer(archive.bytes)?)
}

/// An archive of programs and libraries by their paths, to be put behind the initrd: Linux unpacks one after the other.
///
/// # Errors
///
/// A file is larger than the format allows.
pub(super) fn programs(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.append("lib64", DIRECTORY, &[])?;
    for (path, bytes) in files {
        archive.append(path, PROGRAM, bytes)?;
    }
    Ok(trailer(archive.bytes)?)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    /// Inodes so far.
    inodes: u32,
}

impl Archive {
    fn entry(&mut self, path: &str, mode: u32) -> Builder {
        self.inodes += 1;
        Builder::new(path).ino(self.inodes).mode(mode).nlink(1)
    }

    fn append(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let entry = self.entry(path, mode);
        let mut writer = entry.write(&mut self.bytes, u32::try_from(contents.len())?);
        std::io::Write::write_all(&mut writer, contents)?;
        writer.finish()?;
        Ok(())
    }

    /// `/dev/console`, which the kernel opens before anything is mounted.
    fn console(&mut self) -> Result<()> {
        let entry = self.entry("dev/console", CHARACTER_DEVICE);
        let device = entry.rdev_major(5).rdev_minor(1);
        device.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn the_archive_holds_everything_with_its_mode() {
        let modules = [("b", b"BB".to_vec()), ("a", b"A".to_vec())];
        let bytes = build("#!x", b"box", &modules).unwrap();
        // Four bytes of alignment is what the kernel asks of archives that follow each other.
        assert_eq!(bytes.len() % 4, 0);
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            let entry = reader.entry();
            let device = (entry.rdev_major(), entry.rdev_minor());
            found.push((entry.name().to_owned(), entry.mode(), device, contents));
            rest = reader.finish().unwrap();
        }
        let entry =
            |name: &str, mode, contents: &str| (name.to_owned(), mode, (0, 0), contents.to_owned());
        let directories = DIRECTORIES.map(|name| entry(name, 0o040_755, ""));
        let others = [
            ("dev/console".to_owned(), 0o020_600, (5, 1), String::new()),
            entry("init", 0o100_755, "#!x"),
            entry("bin/busybox", 0o100_755, "box"),
            entry("lib/modules/b.ko", 0o100_644, "BB"),
            entry("lib/modules/a.ko", 0o100_644, "A"),
            entry("lib/modules/order", 0o100_644, "b\na\n"),
        ];
        assert_eq!(found, [&directories[..], &others[..]].concat());
    }
}
