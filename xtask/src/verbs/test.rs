//! `cargo xtask test`: style, host tests, and Duet in the emulators.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use crate::artifacts::{Artifacts, loader_command};
use crate::emulator::Platform;
use crate::guests::{self, Guests};
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
    /// Runs the long tests too: more random cases, deliberate faults, every guest under UEFI.
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
    needs::ensure(&[Need::Clippy, Need::Rustfmt, Need::Etcd])?;
    match arguments.platform {
        Some(platform) => needs::ensure(&Need::of_platform(platform, true))?,
        None => needs::ensure(&[Need::Qemu, Need::Ovmf, Need::Bochs])?,
    }
    if arguments.filter.is_none() {
        progress::quietly("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    }
    // What goes into images is compiled beside the rest: it waits for other locks, and ends in one thread.
    let images = std::thread::spawn(compile_images);
    let host = compile_host(arguments);
    let images = images
        .join()
        .map_err(|_| anyhow!("the thread that compiles the images panicked"))?;
    host.and(images)?;
    if arguments.full {
        lint_loader()?;
    }
    run_tests(arguments)
}

/// Runs the tests of this machine beside the emulators, which leave a processor idle while a guest sleeps. Their
/// output comes behind that of the emulators.
fn run_tests(arguments: &Arguments) -> Result<()> {
    let mut host = tests(arguments, &["--exclude", "emu"]);
    let host = std::thread::spawn(move || host.output());
    let emulated = check(&mut tests(arguments, &["--test", "emulators"]));
    let host = host
        .join()
        .map_err(|_| anyhow!("the thread that runs the host's tests panicked"))?
        .context("cannot start cargo")?;
    std::io::stderr().write_all(&host.stderr)?;
    std::io::stdout().write_all(&host.stdout)?;
    emulated?;
    ensure!(host.status.success(), "cargo test failed: {}", host.status);
    Ok(())
}

fn compile_host(arguments: &Arguments) -> Result<()> {
    if arguments.filter.is_none() {
        lint()?;
    }
    let mut tests = tests(arguments, &[]);
    progress::quietly("compiling the tests", tests.args(["--no-run", "--quiet"]))
}

fn compile_images() -> Result<()> {
    Artifacts::build()?;
    guests::build(&Guests::load()?)?;
    Ok(())
}

/// Everything that is compiled for this machine.
const HOST_PACKAGES: [&str; 7] = [
    "--workspace",
    "--exclude",
    "metal",
    "--exclude",
    "guests",
    "--exclude",
    "loader",
];
const DENY_WARNINGS: [&str; 3] = ["--", "--deny", "warnings"];

fn lint() -> Result<()> {
    progress::quietly(
        "linting what runs on this machine",
        cargo()
            .args(["clippy", "--quiet", "--all-targets"])
            .args(HOST_PACKAGES)
            .args(DENY_WARNINGS),
    )?;
    progress::quietly(
        "linting what runs on bare metal",
        cargo()
            // In the profile of the build, with which it shares what is compiled for this machine.
            .args(["clippy", "--quiet", "--profile", "kernel"])
            .args(["--target", BARE_TARGET])
            .args(["--package", "metal", "--package", "guests"])
            .args(DENY_WARNINGS),
    )
}

fn lint_loader() -> Result<()> {
    let (mut clippy, _) = loader_command("clippy");
    progress::quietly(
        "linting the boot loader's image builder",
        clippy.args(DENY_WARNINGS),
    )
}

/// The command that runs them, or those that cargo's further arguments `which` select.
fn tests(arguments: &Arguments, which: &[&str]) -> Command {
    let mut command = cargo();
    command
        .args(["test", "--no-fail-fast"])
        .args(HOST_PACKAGES)
        .args(which)
        .args(&arguments.filter);
    if let Some(platform) = arguments.platform {
        command.env(PLATFORM_VARIABLE, platform.to_string());
    }
    if arguments.full {
        command
            .env(FULL_VARIABLE, "1")
            .env("PROPTEST_CASES", "4096");
    }
    command
}
