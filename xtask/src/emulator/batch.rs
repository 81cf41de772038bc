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

/// Somebody at the keyboard.
#[derive(Clone, Copy, Debug)]
pub struct Typist {
    /// He begins when the machine has said this.
    pub behind: &'static str,
    /// What he types each time.
    pub text: &'static [u8],
    /// How often.
    pub times: u32,
    /// After which he rests.
    pub pause: Duration,
}

/// Starts `machine`, waits for its end and returns what it said; `log` receives it as it comes.
///
/// # Errors
///
/// The emulator cannot be started. That it is ended after `timeout` is no error but an [`End`].
pub fn run(machine: &Machine, log: &Path, timeout: Duration) -> Result<Outcome> {
    run_typing(machine, log, timeout, None)
}

/// The same with somebody at the keyboard.
///
/// # Errors
///
/// The emulator cannot be started.
pub fn run_typing(
    machine: &Machine,
    log: &Path,
    timeout: Duration,
    typist: Option<Typist>,
) -> Result<Outcome> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let directory = tempfile::tempdir().context("temporary directory")?;
    let (status, serial) = match machine.platform {
        Platform::Qemu | Platform::Kvm => {
            run_qemu(machine, file, directory.path(), timeout, typist)?
        }
        Platform::Bochs => run_bochs(machine, file, directory.path(), timeout, typist)?,
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
    typist: Option<Typist>,
) -> Result<(Option<ExitStatus>, String)> {
    qemu::prepare(machine, directory)?;
    let complaints = File::create(directory.join("stderr"))?;
    let mut child = command(qemu::PROGRAM)
        .args(qemu::arguments(machine, qemu::Serial::Pipe, directory))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(complaints)
        .spawn()
        .with_context(|| format!("cannot start {}", qemu::PROGRAM))?;
    let output = child.stdout.take().context("output of the emulator")?;
    let keyboard = child.stdin.take().context("input of the emulator")?;
    let keyboard = Keyboard::new(typist, keyboard);
    let serial = std::thread::spawn(move || record(output, file, keyboard));
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
    typist: Option<Typist>,
) -> Result<(Option<ExitStatus>, String)> {
    let bochs::Bochs { mut child, serial } = bochs::start(machine, directory)?;
    let ended = serial.ended();
    let serial = std::thread::spawn(move || match serial.accept()? {
        Some(stream) => {
            let keyboard = Keyboard::new(typist, stream.try_clone()?);
            record(stream, file, keyboard)
        }
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

/// What a typist sits at.
struct Keyboard {
    typist: Typist,
    to: Box<dyn Write + Send>,
}

impl Keyboard {
    fn new(typist: Option<Typist>, to: impl Write + Send + 'static) -> Option<Self> {
        let to = Box::new(to);
        typist.map(|typist| Self { typist, to })
    }

    /// Whether the machine has just said, with its last `count` bytes, what the typist waits for.
    fn is_waited_for(&self, said: &[u8], count: usize) -> bool {
        let behind = self.typist.behind.as_bytes();
        let from = said.len().saturating_sub(count + behind.len());
        said.get(from..)
            .unwrap_or_default()
            .windows(behind.len())
            .any(|words| words == behind)
    }

    /// Types until he is done or the machine is gone.
    fn begin(mut self) {
        std::thread::spawn(move || {
            for _ in 0..self.typist.times {
                if self.to.write_all(self.typist.text).is_err() || self.to.flush().is_err() {
                    break;
                }
                std::thread::sleep(self.typist.pause);
            }
        });
    }
}

/// Copies to the log as it comes; what is not UTF-8 is replaced.
fn record(mut from: impl Read, mut log: File, mut keyboard: Option<Keyboard>) -> Result<String> {
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
        if let Some(keyboard) = keyboard.take_if(|k| k.is_waited_for(&bytes, count)) {
            keyboard.begin();
        }
    }
}

fn join(serial: JoinHandle<Result<String>>) -> Result<String> {
    serial
        .join()
        .map_err(|_| anyhow!("the thread that reads the serial port panicked"))?
}
