//! `cargo xtask image`: a bootable disk for a real server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use boot::{Firmware, GuestFile, Payload};
use vmm::config::Config;

use crate::artifacts::{Artifacts, seed};
use crate::needs;
use crate::workspace::root;

/// Builds a bootable disk of the hypervisor, a configuration and the guest files it names.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The configuration; guest files are looked for beside it [default: boot/duet.toml].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the disk goes.
    #[arg(long, value_name = "FILE", default_value = "duet.img")]
    pub out: PathBuf,
    /// A GPT disk for UEFI instead of an MBR disk for a BIOS.
    #[arg(long)]
    pub uefi: bool,
    /// Puts fresh randomness into the image; it must then be started only once.
    #[arg(long)]
    pub seed: bool,
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, wrong with the configuration, or too large.
pub fn run(arguments: &Arguments) -> Result<()> {
    let default = root().join("boot").join("duet.toml");
    let (config, files) = read_config(arguments.config.as_deref().unwrap_or(&default))?;
    needs::ensure(&needs::BUILD)?;
    let seed = if arguments.seed { Some(seed()?) } else { None };
    let payload = Payload {
        config,
        files,
        seed,
    };
    let firmware = firmware(arguments.uefi);
    Artifacts::build()?.image(firmware, &payload, &arguments.out)?;
    println!("{}", arguments.out.display());
    Ok(())
}

/// BIOS unless `uefi`.
#[must_use]
pub fn firmware(uefi: bool) -> Firmware {
    if uefi { Firmware::Uefi } else { Firmware::Bios }
}

/// Reads and checks a configuration; returns its text and the guest files beside it.
///
/// # Errors
///
/// The file cannot be read, or what is wrong in which line.
pub fn read_config(path: &Path) -> Result<(String, Vec<GuestFile>)> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("configuration {}", path.display()))?;
    let config = Config::parse(&text).with_context(|| path.display().to_string())?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let mut names: Vec<_> = config.guests.iter().flat_map(|g| g.image.files()).collect();
    names.sort_unstable();
    names.dedup();
    let files = names
        .into_iter()
        .map(|name| GuestFile {
            name: name.to_owned(),
            path: beside.join(name),
        })
        .collect();
    Ok((text, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid_and_needs_no_files() {
        let (_, files) = read_config(&root().join("boot").join("duet.toml")).unwrap();
        assert_eq!(files, []);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine.toml");
        let missing = format!("{:#}", read_config(&path).unwrap_err());
        assert!(missing.contains("mine.toml"), "{missing}");
        std::fs::write(&path, "[node]\nname = \"a\"\n[serial]\nbaud = 7\n").unwrap();
        let wrong = format!("{:#}", read_config(&path).unwrap_err());
        assert!(
            wrong.contains("mine.toml") && wrong.contains("line 4"),
            "{wrong}"
        );
        assert!(wrong.contains("serial.baud"), "{wrong}");
    }

    #[test]
    fn guest_files_lie_beside_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("duet.toml");
        let vm = |name| {
            format!(
                "[[vm]]\nname = \"{name}\"\nmemory_mib = 16\nkernel = \"k.elf\"\nformat = \"multiboot\"\nmodules = [\"m a\"]\n"
            )
        };
        let text = format!("[node]\nname = \"a\"\n{}{}", vm("x"), vm("y"));
        std::fs::write(&path, text).unwrap();
        let (_, files) = read_config(&path).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["k.elf", "m"]);
        assert_eq!(files[0].path, directory.path().join("k.elf"));
    }
}
