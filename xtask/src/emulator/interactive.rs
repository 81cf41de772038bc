//! Runs a machine with its serial port on the terminal. Ctrl-A x ends it, on every platform.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Child;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::{End, Machine, Platform, bochs, command, qemu};

/// Ctrl-A, the key before a command to the emulator.
const ESCAPE: u8 = 1;

/// Starts `machine` and returns how it ended.
///
/// # Errors
///
/// The emulator cannot be started.
pub fn run(machine: &Machine) -> Result<End> {
    let directory = tempfile::tempdir().context("temporary directory")?;
    match machine.platform {
        Platform::Qemu | Platform::Kvm => {
            qemu::prepare(machine, directory.path())?;
            let arguments = qemu::arguments(machine, qemu::Serial::Terminal, directory.path());
            let status = command(qemu::PROGRAM)
                .args(arguments)
                .status()
                .with_context(|| format!("cannot start {}", qemu::PROGRAM))?;
            Ok(End::of(machine.platform, status, ""))
        }
        Platform::Bochs => {
            let bochs::Bochs { child, serial } = bochs::start(machine, directory.path())?;
            let ended = serial.ended();
            let waiter = std::thread::spawn(move || wait(child, &ended));
            let said = match serial.accept()? {
                Some(stream) => converse(stream)?,
                None => std::fs::read_to_string(directory.path().join("bochs.log"))
                    .inspect(|log| eprintln!("{log}"))?,
            };
            let status = waiter.join().map_err(|_| anyhow!("waiting for bochs"))??;
            Ok(End::of(machine.platform, status, &said))
        }
    }
}

fn wait(
    mut child: Child,
    ended: &std::sync::atomic::AtomicBool,
) -> io::Result<std::process::ExitStatus> {
    let status = child.wait();
    ended.store(true, Ordering::Relaxed);
    status
}

/// Connects `serial` with the terminal until the machine closes it; returns what the machine said.
fn converse(serial: TcpStream) -> Result<String> {
    let raw = RawTerminal::enter()?;
    let keyboard = serial.try_clone()?;
    std::thread::spawn(move || type_into(keyboard));
    let mut said = Vec::new();
    let mut serial = serial;
    let mut buffer = [0; 4096];
    let mut screen = io::stdout();
    loop {
        let count = serial.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            break;
        }
        screen.write_all(&buffer[..count])?;
        screen.flush()?;
        said.extend_from_slice(&buffer[..count]);
    }
    drop(raw);
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Sends keys to the machine. Ends with the process, or when the machine is gone.
fn type_into(mut serial: TcpStream) {
    let mut escaped = false;
    for key in io::stdin().lock().bytes().map_while(Result::ok) {
        if escaped && (key == b'x' || key == b'X') {
            // Bochs ends the run when its serial port is closed on it.
            serial.shutdown(Shutdown::Both).ok();
            return;
        }
        escaped = key == ESCAPE && !escaped;
        if !escaped && serial.write_all(&[key]).is_err() {
            return;
        }
    }
}

/// The terminal without line editing, echo and signals, until dropped.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        if !isatty(io::stdin()) {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(io::stdin()).context("terminal settings")?;
        let mut raw = before.clone();
        raw.local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("terminal settings")?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing is left to be done about a terminal that refuses.
            tcsetattr(io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}
