//! `cargo xtask setup`: everything all verbs need, at once.

use anyhow::Result;

use crate::needs::{self, Need};

/// Adds missing Rust components and installs missing packages.
#[derive(clap::Args, Debug)]
pub struct Arguments {}

/// Runs the verb.
///
/// # Errors
///
/// What is missing and cannot be added, with the command that does.
pub fn run(_: &Arguments) -> Result<()> {
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&[Need::Clippy, Need::Rustfmt, Need::Etcd])?;
    needs::ensure(&[Need::Qemu, Need::Ovmf, Need::Bochs])?;
    println!("nothing is missing");
    Ok(())
}
