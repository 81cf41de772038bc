//! A Linux guest of a run: which files, how much memory, which command line.

use std::path::PathBuf;

use arch::nic::Mac;
use boot::GuestFile;

/// The kernel's name among the guest files.
pub const KERNEL: &str = "vmlinuz";
/// The initrd's name among the guest files.
pub const INITRD: &str = "initrd";

/// A guest that is started from a bzImage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    /// RAM in MiB.
    pub memory_mib: u32,
    /// The bzImage.
    pub kernel: PathBuf,
    /// Its initrd, if it takes one.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
    /// The address of its network card, if it has one. It has a card of the host's for itself, with the same address, since
    /// one in Bochs takes no frames for others.
    pub mac: Option<Mac>,
    /// The host stops it after so many instructions.
    pub instruction_limit: Option<u64>,
}

impl Linux {
    /// The guest files it needs.
    #[must_use]
    pub fn files(&self) -> Vec<GuestFile> {
        let file = |name: &str, path: &PathBuf| GuestFile {
            name: name.to_owned(),
            path: path.clone(),
        };
        let initrd = self.initrd.iter().map(|path| file(INITRD, path));
        std::iter::once(file(KERNEL, &self.kernel))
            .chain(initrd)
            .collect()
    }
}
