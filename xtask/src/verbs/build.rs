//! `cargo xtask build`: everything that goes into an image.

use anyhow::Result;

use crate::artifacts::Artifacts;
use crate::guests::{self, Guests};
use crate::needs;

/// Compiles the hypervisor, the test guests and the boot loader.
#[derive(clap::Args, Debug)]
pub struct Arguments {}

/// Runs the verb.
///
/// # Errors
///
/// What is missing or does not compile.
pub fn run(_: &Arguments) -> Result<()> {
    needs::ensure(&needs::BUILD)?;
    let artifacts = Artifacts::build()?;
    let images = guests::build(&Guests::load()?)?;
    println!("hypervisor    {}", artifacts.kernel.display());
    println!("  stripped    {}", artifacts.stripped_kernel.display());
    println!("test guests   {}", images.display());
    Ok(())
}
