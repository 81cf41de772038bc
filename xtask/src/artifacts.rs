//! What is compiled for an image: the hypervisor and the boot loader's image builder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use boot::{Firmware, Payload};

use crate::progress;
use crate::workspace::{BARE_TARGET, cargo, llvm_tool, output, output_of, root, target};

/// The compiled parts of an image.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The hypervisor with symbols.
    pub kernel: PathBuf,
    /// The hypervisor without symbols, as it goes into images: a BIOS reads about 1 MB/s.
    pub stripped_kernel: PathBuf,
    /// The boot loader's image builder.
    pub loader: PathBuf,
}

impl Artifacts {
    /// Compiles what is not up to date.
    ///
    /// # Errors
    ///
    /// Something does not compile, or `llvm-objcopy` is missing.
    pub fn build() -> Result<Self> {
        Self::of_kernel(kernel()?, "kernel")
    }

    /// The same with a hypervisor that performs the fault named by a guest file (`docs/bring-up.md`).
    ///
    /// # Errors
    ///
    /// Something does not compile, or `llvm-objcopy` is missing.
    pub fn build_faulty() -> Result<Self> {
        let target = target().join("bring-up");
        progress::quietly(
            "compiling the hypervisor with deliberate faults",
            kernel_command()
                .args(["--features", "bringup-tests", "--target-dir"])
                .arg(&target),
        )?;
        Self::of_kernel(kernel_in(&target), "bring-up")
    }

    fn of_kernel(kernel: PathBuf, name: &str) -> Result<Self> {
        let stripped_kernel = output(name)?.join("duet");
        output_of(
            Command::new(llvm_tool("llvm-objcopy")?)
                .arg("--strip-all")
                .arg(&kernel)
                .arg(&stripped_kernel),
        )?;
        Ok(Self {
            kernel,
            stripped_kernel,
            loader: loader()?,
        })
    }

    /// Writes a bootable disk.
    ///
    /// # Errors
    ///
    /// A file is missing, or all are too large together.
    pub fn image(&self, firmware: Firmware, payload: &Payload, disk: &Path) -> Result<()> {
        self.image_of(firmware, &payload.container()?, disk)
    }

    /// Writes a bootable disk with these bytes where the container belongs.
    ///
    /// # Errors
    ///
    /// The disk cannot be written.
    pub fn image_of(&self, firmware: Firmware, container: &[u8], disk: &Path) -> Result<()> {
        boot::build(
            &self.loader,
            firmware,
            &self.stripped_kernel,
            container,
            disk,
        )?;
        Ok(())
    }
}

/// Compiles the hypervisor; returns its ELF with symbols.
///
/// # Errors
///
/// It does not compile.
pub fn kernel() -> Result<PathBuf> {
    progress::quietly("compiling the hypervisor", &mut kernel_command())?;
    Ok(kernel_in(&target()))
}

fn kernel_command() -> Command {
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--package", "metal"])
        .args(["--profile", "kernel", "--target", BARE_TARGET]);
    command
}

fn kernel_in(target: &Path) -> PathBuf {
    target.join(BARE_TARGET).join("kernel").join("duet")
}

/// Profiles of the boot loader's stages that ask for full optimisation, of which most goes into a `core` of each stage's
/// own. What the stages do is wait for the disk.
const STAGES: [&str; 3] = ["STAGE_3", "STAGE_4", "RELEASE"];

/// The cargo command `verb` on the boot loader's image builder, and the program that "build" makes.
///
/// It has a target directory of its own, always the checkout's: crates that look at `RUSTC_BOOTSTRAP` would
/// otherwise be compiled anew at every change of sides, and the stages of the loader take minutes.
#[must_use]
pub fn loader_command(verb: &str) -> (Command, PathBuf) {
    let target = root().join("target").join("loader");
    let mut command = cargo();
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args([verb, "--quiet", "--package", "loader", "--target-dir"])
        .arg(&target);
    for stage in STAGES {
        command
            .env(format!("CARGO_PROFILE_{stage}_OPT_LEVEL"), "1")
            .env(format!("CARGO_PROFILE_{stage}_DEBUG"), "false");
    }
    (command, target.join("debug").join("loader"))
}

/// Compiles the boot loader's image builder; returns the program.
///
/// # Errors
///
/// It does not compile.
pub fn loader() -> Result<PathBuf> {
    let (mut command, program) = loader_command("build");
    progress::quietly(
        "compiling the boot loader (slow the first time)",
        &mut command,
    )?;
    Ok(program)
}

/// Fresh randomness for one start.
///
/// # Errors
///
/// The system has none.
pub fn seed() -> Result<vmm::container::Seed> {
    let mut seed = vmm::container::Seed([0; vmm::container::SEED_BYTES]);
    getrandom::fill(&mut seed.0).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(seed)
}
