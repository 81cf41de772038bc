//! What a verb needs of this machine, and getting what is missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::emulator::Platform;
use crate::progress;
use crate::workspace::{BARE_TARGET, output_of, root};

/// Something a verb cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The bare-metal target's libraries.
    BareTarget,
    /// `llvm-objcopy` and `llvm-objdump`.
    LlvmTools,
    /// The standard library's source, from which the boot loader builds its own.
    RustSource,
    /// The linter.
    Clippy,
    /// The formatter.
    Rustfmt,
    /// QEMU.
    Qemu,
    /// UEFI firmware for QEMU.
    Ovmf,
    /// Bochs with its firmware and its terminal screen.
    Bochs,
    /// etcd, in front of which the witness is tested.
    Etcd,
}

/// What compiling an image takes.
pub const BUILD: [Need; 3] = [Need::BareTarget, Need::LlvmTools, Need::RustSource];

/// What lies where when a need is met, and what provides it.
#[derive(Debug, PartialEq, Eq)]
enum Provider {
    /// `rustup target add`; a path in the toolchain.
    Target(&'static str, PathBuf),
    /// `rustup component add`; a path in the toolchain.
    Component(&'static str, PathBuf),
    /// Debian packages, each with a file of it.
    Packages(&'static [(&'static str, &'static str)]),
}

impl Need {
    /// What an emulator takes.
    #[must_use]
    pub fn of_platform(platform: Platform, uefi: bool) -> Vec<Need> {
        match platform {
            Platform::Bochs => vec![Need::Bochs],
            Platform::Qemu | Platform::Kvm if uefi => vec![Need::Qemu, Need::Ovmf],
            Platform::Qemu | Platform::Kvm => vec![Need::Qemu],
        }
    }

    fn provider(self) -> Provider {
        match self {
            Need::BareTarget => {
                Provider::Target(BARE_TARGET, format!("lib/rustlib/{BARE_TARGET}").into())
            }
            Need::LlvmTools => Provider::Component(
                "llvm-tools",
                concat!(
                    "lib/rustlib/",
                    "x86_64-unknown-linux-gnu",
                    "/bin/llvm-objcopy"
                )
                .into(),
            ),
            Need::RustSource => {
                Provider::Component("rust-src", "lib/rustlib/src/rust/library/core".into())
            }
            Need::Clippy => Provider::Component("clippy", "bin/cargo-clippy".into()),
            Need::Rustfmt => Provider::Component("rustfmt", "bin/rustfmt".into()),
            Need::Qemu => Provider::Packages(&[("qemu-system-x86", "/usr/bin/qemu-system-x86_64")]),
            Need::Ovmf => Provider::Packages(&[("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd")]),
            Need::Etcd => Provider::Packages(&[("etcd-server", "/usr/bin/etcd")]),
            Need::Bochs => Provider::Packages(&[
                ("bochs", "/usr/bin/bochs"),
                (
                    "bochs-term",
                    "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
                ),
                ("bochsbios", "/usr/share/bochs/BIOS-bochs-latest"),
                ("vgabios", "/usr/share/vgabios/vgabios.bin"),
            ]),
        }
    }
}

/// What is missing, by who provides it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    targets: BTreeSet<&'static str>,
    components: BTreeSet<&'static str>,
    packages: BTreeSet<&'static str>,
}

impl Missing {
    /// Looks for `needs` in a toolchain and, for packages, below `system`.
    fn find(needs: &[Need], toolchain: &Path, system: &Path) -> Self {
        let mut missing = Self::default();
        for need in needs {
            match need.provider() {
                Provider::Target(name, path) if !toolchain.join(&path).exists() => {
                    missing.targets.insert(name);
                }
                Provider::Component(name, path) if !toolchain.join(&path).exists() => {
                    missing.components.insert(name);
                }
                Provider::Target(..) | Provider::Component(..) => {}
                Provider::Packages(packages) => {
                    let absent = |file: &str| !system.join(file.trim_start_matches('/')).exists();
                    missing.packages.extend(
                        packages
                            .iter()
                            .filter(|(_, file)| absent(file))
                            .map(|(package, _)| package),
                    );
                }
            }
        }
        missing
    }
}

/// Makes sure that `needs` are met: adds what rustup provides, installs packages where that is possible.
///
/// # Errors
///
/// Something is missing and cannot be added; the error names the exact command.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let toolchain = output_of(
        Command::new("rustc")
            .current_dir(root())
            .args(["--print", "sysroot"]),
    )?;
    let missing = Missing::find(needs, Path::new(toolchain.trim()), Path::new("/"));
    rustup("target", &missing.targets)?;
    rustup("component", &missing.components)?;
    packages(&missing.packages)
}

fn rustup(kind: &str, names: &BTreeSet<&str>) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = names.iter().copied().collect();
    let list = list.join(" ");
    progress::quietly(
        &format!("rustup {kind} add {list}"),
        Command::new("rustup")
            .current_dir(root())
            .args([kind, "add"])
            .args(names),
    )
    .with_context(|| format!("missing from the toolchain: {list}. Run: rustup {kind} add {list}"))
}

fn packages(names: &BTreeSet<&str>) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = names.iter().copied().collect();
    let list = list.join(" ");
    let hint = format!("missing packages: {list}. Run: apt-get update && apt-get install {list}");
    let debian = Path::new("/usr/bin/apt-get").exists();
    if !debian || !rustix::process::geteuid().is_root() {
        bail!("{hint}");
    }
    let install = || {
        progress::quietly(
            &format!("apt-get install {list}"),
            apt_get()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(names),
        )
    };
    // The lists may be missing or old; fetching them takes longer than most installations.
    install()
        .or_else(|_| {
            progress::quietly("apt-get update", apt_get().arg("update"))?;
            install()
        })
        .context(hint)
}

/// `apt-get` that asks nothing.
#[must_use]
pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Need; 8] = [
        Need::BareTarget,
        Need::LlvmTools,
        Need::RustSource,
        Need::Clippy,
        Need::Rustfmt,
        Need::Qemu,
        Need::Ovmf,
        Need::Bochs,
    ];

    #[test]
    fn everything_is_missing_from_an_empty_system() {
        let empty = tempfile::tempdir().unwrap();
        let missing = Missing::find(&ALL, empty.path(), empty.path());
        assert_eq!(missing.targets, BTreeSet::from([BARE_TARGET]));
        assert_eq!(
            missing.components,
            BTreeSet::from(["clippy", "llvm-tools", "rust-src", "rustfmt"])
        );
        assert_eq!(
            missing.packages,
            BTreeSet::from([
                "bochs",
                "bochs-term",
                "bochsbios",
                "ovmf",
                "qemu-system-x86",
                "vgabios"
            ])
        );
    }

    #[test]
    fn only_what_is_absent_is_asked_for() {
        let system = tempfile::tempdir().unwrap();
        let file = system.path().join("usr/bin/bochs");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
        let missing = Missing::find(&[Need::Bochs], system.path(), system.path());
        assert_eq!(
            missing.packages,
            BTreeSet::from(["bochs-term", "bochsbios", "vgabios"])
        );
        assert_eq!(missing.components, BTreeSet::new());
    }

    #[test]
    fn platforms_need_their_emulator() {
        assert_eq!(Need::of_platform(Platform::Bochs, false), [Need::Bochs]);
        assert_eq!(Need::of_platform(Platform::Qemu, false), [Need::Qemu]);
        assert_eq!(
            Need::of_platform(Platform::Kvm, true),
            [Need::Qemu, Need::Ovmf]
        );
    }
}
