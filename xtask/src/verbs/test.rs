//! `cargo xtask test`: style, host tests, and Duet in the emulators.

use std::process::Child;

use anyhow::{Context, Result, bail};

use crate::artifacts::loader_command;
use crate::emulator::Platform;
use crate::needs::{self, Need};
use crate::progress;
use crate::workspace::{BARE_TARGET, cargo, check};

/// The variable that limits the emulator tests to one platform.
pub const PLATFORM_VARIABLE: &str = "DUET_TEST_PLATFORM";
/// The variable that asks for the long tests.
pub const FULL_VARIABLE: &str = "DUET_TEST_FULL";

/// Checks style, runs the host's tests and then Duet in the emulators.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Runs only tests whose name contains this, and no style checks.
    pub filter: Option<String>,
    /// Runs the long tests too: more random cases, every guest under UEFI.
    #[arg(long)]
    pub full: bool,
    /// Runs emulator tests on this platform only [default: qemu and bochs].
    #[arg(long, value_enum)]
    pub platform: Option<Platform>,
}

/// Runs the verb.
///
/// # Errors
///
/// The first thing that failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&[Need::Clippy, Need::Rustfmt])?;
    match arguments.platform {
        Some(platform) => needs::ensure(&Need::of_platform(platform, true))?,
        None => needs::ensure(&[Need::Qemu, Need::Ovmf, Need::Bochs])?,
    }
    // The boot loader takes longest to compile and has a target directory of its own: begin with it.
    let loader = Background::start()?;
    if arguments.filter.is_none() {
        style()?;
    }
    tests(arguments, &[])?;
    loader.finish()?;
    tests(arguments, &["--package", "emu"])
}

fn style() -> Result<()> {
    progress::quietly("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    let deny = ["--", "--deny", "warnings"];
    progress::quietly(
        "linting what runs on this machine",
        cargo().args(["clippy", "--all-targets"]).args(deny),
    )?;
    progress::quietly(
        "linting the emulator tests",
        cargo()
            .args(["clippy", "--all-targets", "--package", "emu"])
            .args(deny),
    )?;
    progress::quietly(
        "linting what runs on bare metal",
        cargo()
            .args(["clippy", "--package", "metal", "--package", "guests"])
            .args(["--target", BARE_TARGET])
            .args(deny),
    )
}

fn tests(arguments: &Arguments, packages: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.arg("test").args(packages).args(&arguments.filter);
    if let Some(platform) = arguments.platform {
        command.env(PLATFORM_VARIABLE, platform.to_string());
    }
    if arguments.full {
        command
            .env(FULL_VARIABLE, "1")
            .env("PROPTEST_CASES", "4096");
    }
    check(&mut command)
}

/// The boot loader being compiled while other things go on.
struct Background(Option<Child>);

impl Background {
    fn start() -> Result<Self> {
        let (mut command, _) = loader_command();
        let child = command
            .arg("--quiet")
            .spawn()
            .context("cannot start cargo for the boot loader")?;
        Ok(Self(Some(child)))
    }

    fn finish(mut self) -> Result<()> {
        let Some(mut child) = self.0.take() else {
            return Ok(());
        };
        let status = progress::step("compiling the boot loader", || Ok(child.wait()?))?;
        if !status.success() {
            bail!("the boot loader does not compile: {status}");
        }
        Ok(())
    }
}

impl Drop for Background {
    /// After a failure elsewhere nobody needs it any more.
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}
