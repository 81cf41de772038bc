//! Runs a machine to its end without a terminal, keeping what its serial port says.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use wait_timeout::ChildExt;

use super::{End, Machine, Platform, bochs, command, qemu};

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Everything the serial port said.
    pub serial: String,
    /// The file that holds the same.
    pub log: PathBuf,
}

/// Starts `machine`, waits for its end and returns what it said; `log` receives it as it comes.
///
/// # Errors
///
/// The emulator cannot be started. That it is ended after `timeout` is no error but an [`End`].
pub fn run(machine: &Machine, log: &Path, timeout: Duration) -> Result<Outcome> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let directory = tempfile::tempdir().context("temporary directory")?;
    let (status, serial) = match machine.platform {
        Platform::Qemu | Platform::Kvm => run_qemu(machine, file, directory.path(), timeout)?,
        Platform::Bochs => run_bochs(machine, file, directory.path(), timeout)?,
    };
    let end = match status {
        Some(status) => End::of(machine.platform, status, &serial),
        None => End::TimedOut(timeout.as_secs()),
    };
    Ok(Outcome {
        end,
        serial,
        log: log.to_path_buf(),
    })
}

fn run_qemu(
    machine: &Machine,
    file: File,
    directory: &Path,
    timeout: Duration,
) -> Result<(Option<ExitStatus>, String)> {
    qemu::prepare(machine, directory)?;
    let complaints = File::create(directory.join("stderr"))?;
    let mut child = command(qemu::PROGRAM)
        .args(qemu::arguments(machine, qemu::Serial::Pipe, directory))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints)
        .spawn()
        .with_context(|| format!("cannot start {}", qemu::PROGRAM))?;
    let output = child.stdout.take().context("output of the emulator")?;
    let serial = std::thread::spawn(move || record(output, file));
    let status = wait(&mut child, timeout)?;
    let mut serial = join(serial)?;
    serial.push_str(&std::fs::read_to_string(directory.join("stderr")).unwrap_or_default());
    Ok((status, serial))
}

fn run_bochs(
    machine: &Machine,
    file: File,
    directory: &Path,
    timeout: Duration,
) -> Result<(Option<ExitStatus>, String)> {
    let bochs::Bochs { mut child, serial } = bochs::start(machine, directory)?;
    let ended = serial.ended();
    let serial = std::thread::spawn(move || match serial.accept()? {
        Some(stream) => record(stream, file),
        None => Ok(String::new()),
    });
    let status = wait(&mut child, timeout)?;
    ended.store(true, Ordering::Relaxed);
    let mut serial = join(serial)?;
    if serial.is_empty() {
        // The machine did not get as far as its serial port: Bochs's own log says why.
        serial = std::fs::read_to_string(directory.join("bochs.log")).unwrap_or_default();
    }
    Ok((status, serial))
}

/// Waits for the end of `child`, at most `timeout`; then ends it.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let status = child.wait_timeout(timeout)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(status)
}

/// Copies to the log as it comes; what is not UTF-8 is replaced.
fn record(mut from: impl Read, mut log: File) -> Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // A reset connection is how a killed Bochs ends.
        let count = from.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        log.write_all(&buffer[..count])?;
        bytes.extend_from_slice(&buffer[..count]);
    }
}

fn join(serial: JoinHandle<Result<String>>) -> Result<String> {
    serial
        .join()
        .map_err(|_| anyhow!("the thread that reads the serial port panicked"))?
}
