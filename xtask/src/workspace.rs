//! Where things are: the checkout, what cargo builds, the tools of the toolchain.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The bare-metal target of hypervisor and test guests.
pub const BARE_TARGET: &str = "x86_64-unknown-none";

/// The checkout's root.
#[must_use]
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target directory, where everything that is made goes.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A directory below the target directory, created if need be.
///
/// # Errors
///
/// It cannot be created.
pub fn output(name: &str) -> Result<PathBuf> {
    let path = target().join("duet").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// `cargo` of the pinned toolchain, in the checkout's root.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program of the `llvm-tools` component.
///
/// # Errors
///
/// The component is not installed; `setup` adds it.
pub fn llvm_tool(name: &str) -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let libdir = output_of(
        command
            .current_dir(root())
            .args(["--print", "target-libdir"]),
    )?;
    let path = Path::new(libdir.trim()).with_file_name("bin").join(name);
    if !path.exists() {
        bail!(
            "{name} is missing from the toolchain: rustup component add llvm-tools ({})",
            path.display()
        );
    }
    Ok(path)
}

/// Runs a command and returns its standard output.
///
/// # Errors
///
/// It cannot be started or fails; the error holds its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, text.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {name}"))
}

/// Runs a command whose output goes to the terminal.
///
/// # Errors
///
/// It cannot be started or fails.
pub fn check(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!("{name} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
