//! `cargo xtask replay`, as a developer uses it: a guest recorded to a file, run again from there, and files that do not
//! fit.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use xtask::emulator::Platform;
use xtask::guests::Guests;
use xtask::workspace;

use crate::Lab;
use crate::run::Judged;

/// Which guest, whose memory is a number of MiB that is changed later.
const GUEST: &str = "rdtsc";

/// Records and replays on `platform`.
///
/// # Errors
///
/// What was not as it should be, with what the command said.
pub fn judge_replay_file(platform: Platform) -> Judged {
    let lab = Lab::get()?;
    let guests = Guests::load()?;
    let guest = guests.named(GUEST)?;
    let directory = workspace::output("emu")?.join(format!("{platform}-replay-file"));
    std::fs::create_dir_all(&directory)?;
    for file in xtask::guests::files(&lab.images, [guest]) {
        std::fs::copy(&file.path, directory.join(&file.name))?;
    }
    let config = directory.join("duet.toml");
    let text = xtask::config::compose(platform, std::slice::from_ref(guest))?;
    std::fs::write(&config, &text)?;
    let recording = directory.join("recording");
    let config_word = config.to_str().context("a path that is not UTF-8")?;
    let platform_word = platform.to_string();

    let with_config = ["--platform", &platform_word, "--config", config_word];
    let said = replay("record", &recording, &with_config, true)?;
    ensure!(said.contains("stopped: exit status 0"), "recorded: {said}");
    let said = replay("replay", &recording, &["--slices", "5"], true)?;
    ensure!(said.contains("replayed: exit status 0"), "replayed: {said}");
    let said = replay("replay", &recording, &["--stop-at", "100+0"], true)?;
    ensure!(
        said.contains("at 100+0") && said.contains("Rip "),
        "stopped at a point: {said}"
    );

    let other = text.replace("memory_mib = 16", "memory_mib = 18");
    ensure!(other != text, "the guest has no 16 MiB");
    std::fs::write(&config, other)?;
    let said = replay("replay", &recording, &[], false)?;
    ensure!(said.contains("bytes of memory"), "another machine: {said}");
    std::fs::write(&config, text)?;

    let mut bytes = std::fs::read(&recording)?;
    // In the digest of the memory that was left: registers in plain, for example, are there for the reader only.
    let last = bytes.len().saturating_sub(4);
    bytes[last] ^= 1;
    std::fs::write(&recording, bytes)?;
    let said = replay("replay", &recording, &[], false)?;
    ensure!(said.contains("divergence"), "a damaged recording: {said}");
    Ok(())
}

/// Runs `cargo xtask replay`, which has to succeed or not. Returns what it said.
fn replay(verb: &str, recording: &Path, options: &[&str], succeeds: bool) -> Result<String> {
    let output = workspace::cargo()
        .args(["xtask", "replay", verb])
        .arg(recording)
        .args(options)
        .stdin(Stdio::null())
        .output()
        .context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() == succeeds,
        "{verb} {options:?}: {}\n{said}",
        output.status
    );
    Ok(said.into_owned())
}
