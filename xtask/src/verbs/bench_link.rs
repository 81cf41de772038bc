//! `cargo xtask bench link`: the figures of the replication protocol.

use anyhow::Result;

use crate::workspace::{cargo, check, output};

/// What keeps the ciphers on their portable back ends, as the hypervisor has them.
const SOFT_CIPHERS: &str = "--cfg chacha20_backend=\"soft\" --cfg poly1305_backend=\"soft\" \
    --cfg curve25519_dalek_backend=\"serial\" --cfg chacha20_force_soft --cfg poly1305_force_soft";

/// Builds the measurement with the soft ciphers, optimised and in a target directory of its own, and
/// runs it.
///
/// # Errors
///
/// It does not build or does not run.
pub fn run() -> Result<()> {
    let directory = output("bench-link")?;
    let mut command = cargo();
    command
        .env("RUSTFLAGS", SOFT_CIPHERS)
        .env("CARGO_TARGET_DIR", directory)
        .args(["run", "--quiet", "--release", "--package", "sim"])
        .args(["--features", "bench", "--bin", "link-bench"]);
    check(&mut command)
}
