//! The test guests: their list `tests/guests/guests.toml`, and making loadable images of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use boot::GuestFile;
use serde::Deserialize;

use crate::emulator::Platform;
use crate::progress;
use crate::workspace::{BARE_TARGET, cargo, llvm_tool, output, output_of, root, target};

/// How a guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An ELF32 Multiboot 1 kernel.
    Multiboot,
    /// Raw bytes entered in real mode.
    Flat,
}

/// How a guest has to end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Expect {
    /// It writes this status to its exit port.
    Exit(u32),
    /// Its processor shuts down.
    TripleFault,
    /// It halts with nothing to wake it.
    Halted,
    /// Never by itself: the instruction limit stops it.
    Budget,
    /// However it ends, the host survives.
    Any,
}

impl TryFrom<String> for Expect {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "triple fault" => Ok(Expect::TripleFault),
            "halted" => Ok(Expect::Halted),
            "budget" => Ok(Expect::Budget),
            "any" => Ok(Expect::Any),
            other => other
                .strip_prefix("exit ")
                .and_then(|status| status.parse().ok())
                .map(Expect::Exit)
                .ok_or_else(|| format!("expect: {other:?} is no way to end")),
        }
    }
}

impl Expect {
    /// Whether the host's reason for stopping the guest is the expected one.
    #[must_use]
    pub fn matches(&self, reason: &str) -> bool {
        match self {
            Expect::Exit(status) => reason == format!("exit status {status}"),
            Expect::TripleFault => reason.starts_with("triple fault"),
            Expect::Halted => reason.starts_with("halted"),
            Expect::Budget => matches!(reason, "instruction limit" | "exit limit"),
            Expect::Any => true,
        }
    }
}

/// One test guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Unique; the VM's name.
    pub name: String,
    /// Binary of the crate `guests`.
    pub bin: String,
    /// How it is started.
    pub format: Format,
    /// Flat only: where it is loaded and entered.
    pub load_address: Option<u16>,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Multiboot only: command line.
    pub cmdline: Option<String>,
    /// Multiboot only: module strings; the first word is a file in `tests/guests/modules`.
    #[serde(default)]
    pub modules: Vec<String>,
    /// The host stops it after so many instructions.
    pub instruction_limit: Option<u64>,
    /// The host stops it after about so many exits.
    pub exit_limit: Option<u64>,
    /// How it has to end.
    pub expect: Expect,
    /// What has to occur in lines of its output.
    #[serde(default)]
    pub expect_output: Vec<String>,
    /// It has the chips of a PC, and of a test guest's devices only the ports.
    #[serde(default)]
    pub pc: bool,
    /// Guests of one group share a host.
    #[serde(default)]
    pub group: String,
    /// Where it runs.
    #[serde(default = "both")]
    pub platforms: Vec<String>,
    /// Where it is replayed too.
    #[serde(default = "both")]
    pub replayed: Vec<String>,
}

fn both() -> Vec<String> {
    vec!["qemu".to_owned(), "bochs".to_owned()]
}

fn lists(names: &[String], platform: Platform) -> bool {
    let name = match platform {
        Platform::Qemu | Platform::Kvm => "qemu",
        Platform::Bochs => "bochs",
    };
    names.iter().any(|listed| listed == name)
}

impl Guest {
    /// Whether it is meant for `platform`; what runs in QEMU runs on KVM.
    #[must_use]
    pub fn runs_on(&self, platform: Platform) -> bool {
        lists(&self.platforms, platform)
    }

    /// Whether a replay of it on `platform` has to be the same.
    #[must_use]
    pub fn is_replayed_on(&self, platform: Platform) -> bool {
        self.runs_on(platform) && lists(&self.replayed, platform)
    }

    /// Instructions after which the host stops it: what its entry says, else little for a guest that is to be
    /// stopped, and for others so much that only a guest that hangs reaches it.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.instruction_limit.unwrap_or(match self.expect {
            Expect::Budget | Expect::Any => 50_000_000,
            Expect::Exit(_) | Expect::TripleFault | Expect::Halted => 4_000_000_000,
        })
    }

    /// Its image's name in the archive.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self.format {
            Format::Multiboot => format!("{}.elf", self.bin),
            Format::Flat => format!("{}.bin", self.bin),
        }
    }
}

/// All test guests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guests {
    /// In the order of the file.
    #[serde(rename = "guest")]
    pub list: Vec<Guest>,
}

fn directory() -> PathBuf {
    root().join("tests").join("guests")
}

impl Guests {
    /// Reads the list.
    ///
    /// # Errors
    ///
    /// It is missing or malformed; line and key are named.
    pub fn load() -> Result<Self> {
        let path = directory().join("guests.toml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let guests: Self = toml::from_str(text)?;
        let mut seen = BTreeMap::new();
        for guest in &guests.list {
            if seen.insert(&guest.name, ()).is_some() {
                bail!("guest {:?} is there twice", guest.name);
            }
        }
        Ok(guests)
    }

    /// The guest of that name.
    ///
    /// # Errors
    ///
    /// There is none; the error lists those there are.
    pub fn named(&self, name: &str) -> Result<&Guest> {
        self.list.iter().find(|g| g.name == name).with_context(|| {
            let names: Vec<_> = self.list.iter().map(|g| g.name.as_str()).collect();
            format!("no guest {name:?}; there are: {}", names.join(", "))
        })
    }
}

/// The files that `guests` need, by name in the archive, from images made by [`build`].
#[must_use]
pub fn files<'a>(images: &Path, guests: impl IntoIterator<Item = &'a Guest>) -> Vec<GuestFile> {
    let mut files = BTreeMap::new();
    for guest in guests {
        let name = guest.file_name();
        files.insert(name.clone(), images.join(name));
        for module in guest
            .modules
            .iter()
            .filter_map(|m| vmm::config::module_file(m))
        {
            files.insert(module.to_owned(), directory().join("modules").join(module));
        }
    }
    files
        .into_iter()
        .map(|(name, path)| GuestFile { name, path })
        .collect()
}

/// Compiles the crate `guests` and converts each binary; returns the directory of the images.
///
/// # Errors
///
/// A guest does not compile, or `llvm-objcopy` is missing.
pub fn build(guests: &Guests) -> Result<PathBuf> {
    progress::quietly(
        "compiling the test guests",
        cargo()
            .args([
                "build",
                "--quiet",
                "--package",
                "guests",
                "--bins",
                "--profile",
                "kernel",
            ])
            .args(["--target", BARE_TARGET]),
    )?;
    let objcopy = llvm_tool("llvm-objcopy")?;
    let compiled = target().join(BARE_TARGET).join("kernel");
    let images = output("guests")?;
    let converted: BTreeMap<_, _> = guests.list.iter().map(|g| (g.file_name(), g)).collect();
    for (name, guest) in converted {
        let format: &[&str] = match guest.format {
            Format::Multiboot => &["-O", "elf32-i386", "--strip-all"],
            Format::Flat => &["-O", "binary"],
        };
        output_of(
            Command::new(&objcopy)
                .args(format)
                .arg(compiled.join(&guest.bin))
                .arg(images.join(&name)),
        )
        .with_context(|| format!("guest {}: converting {}", guest.name, guest.bin))?;
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_well_formed() {
        let guests = Guests::load().unwrap();
        assert!(guests.named("hello").is_ok());
        let error = guests.named("nobody").unwrap_err().to_string();
        assert!(error.contains("hello"), "{error}");
    }

    #[test]
    fn a_name_twice_is_refused() {
        let guest =
            "[[guest]]\nname=\"a\"\nbin=\"a\"\nformat=\"flat\"\nmemory_mib=1\nexpect=\"any\"\n";
        assert!(Guests::parse(guest).is_ok());
        assert!(Guests::parse(&guest.repeat(2)).is_err());
    }

    #[test]
    fn ends_are_recognised() {
        let expect = |text: &str| Expect::try_from(text.to_owned()).unwrap();
        assert!(expect("exit 0").matches("exit status 0"));
        assert!(!expect("exit 0").matches("exit status 01"));
        assert!(!expect("exit 0").matches("triple fault"));
        assert!(expect("triple fault").matches("triple fault"));
        assert!(expect("halted").matches("halted"));
        assert!(expect("budget").matches("instruction limit"));
        assert!(expect("budget").matches("exit limit"));
        assert!(expect("any").matches("error: x"));
        assert!(Expect::try_from("exit x".to_owned()).is_err());
    }
}
