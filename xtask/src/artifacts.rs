//! What is compiled for an image: the hypervisor and the boot loader's image builder.

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::{BARE_TARGET, cargo, check, llvm_tool, output, root, target};

/// Compiles the hypervisor; returns its ELF with symbols.
///
/// # Errors
///
/// It does not compile.
pub fn kernel() -> Result<PathBuf> {
    check(cargo().args(["build", "--quiet", "--package", "metal"]).args([
        "--target",
        BARE_TARGET,
        "--profile",
        "kernel",
    ]))?;
    Ok(target().join(BARE_TARGET).join("kernel").join("duet"))
}

/// The hypervisor without symbols, as it goes into images: a BIOS reads about 1 MB/s.
///
/// # Errors
///
/// It does not compile, or `llvm-objcopy` is missing.
pub fn stripped_kernel() -> Result<PathBuf> {
    let kernel = kernel()?;
    let stripped = output("kernel")?.join("duet");
    check(
        std::process::Command::new(llvm_tool("llvm-objcopy")?)
            .arg("--strip-all")
            .arg(kernel)
            .arg(&stripped),
    )?;
    Ok(stripped)
}

/// Compiles the boot loader's image builder; returns the program.
///
/// It has a target directory of its own, always the checkout's: crates that look at `RUSTC_BOOTSTRAP` would
/// otherwise be compiled anew at every change of sides, and it takes minutes.
///
/// # Errors
///
/// It does not compile.
pub fn loader() -> Result<PathBuf> {
    let target = root().join("target").join("loader");
    check(
        cargo()
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["build", "--quiet", "--package", "loader", "--target-dir"])
            .arg(&target),
    )?;
    Ok(target.join("debug").join("loader"))
}
