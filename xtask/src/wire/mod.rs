//! The test wire: an Ethernet in this process that joins emulated machines, endpoints of tests and ordinary clients.
//!
//! ```text
//! QEMU ── unix datagrams ──┐
//! Bochs ─ UDP ─────────────┤ Wire (one thread) ── pcapng
//! Endpoint (a test) ───────┤
//! Gateway ─────────────────┘── localhost ports ── redis-cli, curl, …
//! ```
//!
//! A [`Wire`] is a learning switch. What happens in each direction of each of its ports is decided by [`Faults`] and
//! the seed of the wire: the n-th frame in a direction has the same fate in every run. Whoever does not take its frames,
//! like a stopped emulator, loses them when [`MAX_WAITING`] wait for it; nobody else notices. No privileges are needed.

mod capture;
mod endpoint;
pub mod gateway;
mod lane;
mod socket;
mod switch;
#[cfg(test)]
mod tests;
mod waker;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags};

pub use endpoint::{Endpoint, Stack};
pub use lane::{Faults, Passed};
pub use switch::{Counts, Direction, MAX_FRAME, MAX_WAITING};

use crate::emulator::Platform;
use socket::{Sent, Socket};
use switch::{Moment, Switch};
use waker::{Waker, Woken};

/// The most frames taken from one port before the others are looked at.
const BATCH: usize = 64;

/// A port of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(usize);

/// A port for a card of an emulated machine; it may be started, ended and started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    /// The port.
    pub port: Port,
    /// Where the emulator finds it.
    pub at: At,
}

/// Where an emulator finds its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Unix datagram sockets, for QEMU.
    Paths {
        /// QEMU's.
        machine: PathBuf,
        /// The wire's.
        wire: PathBuf,
    },
    /// UDP on this host, for Bochs: it binds this port and sends to the next.
    Udp(u16),
}

/// A wire; it ends when dropped.
pub struct Wire {
    shared: Arc<Mutex<Shared>>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    /// Where QEMU's sockets are.
    directory: tempfile::TempDir,
}

struct Shared {
    switch: Switch,
    sockets: Vec<Arc<Socket>>,
    ended: bool,
}

/// Now; the wire belongs to the development host and to its clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the wire is outside the machines"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the wire is outside the machines"
)]
fn moment() -> Moment {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Moment {
        at: now(),
        since_epoch: since_epoch.unwrap_or_default(),
    }
}

impl Wire {
    /// Starts a wire without ports. The seed decides about everything that [`Faults`] leave to chance.
    ///
    /// # Errors
    ///
    /// No socket, directory or thread can be made.
    pub fn start(seed: u64) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for the wire's sockets")?;
        let (waker, woken) = waker::pair().context("the wire")?;
        let shared = Arc::new(Mutex::new(Shared {
            switch: Switch::new(seed),
            sockets: Vec::new(),
            ended: false,
        }));
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || run(&work, &woken))
            .context("the wire's thread")?;
        Ok(Self {
            shared,
            waker,
            thread: Some(thread),
            directory,
        })
    }

    /// A card in this process at a new port. `name` is for the capture.
    ///
    /// # Errors
    ///
    /// No socket can be made.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint> {
        let (ours, theirs) = UnixDatagram::pair().context("an endpoint of the wire")?;
        ours.set_nonblocking(true)?;
        let port = self.add(name, Socket::Pair(ours));
        Ok(Endpoint::new(theirs, port)?)
    }

    /// A new port for a card of an emulated machine. `name` is for the capture.
    ///
    /// # Errors
    ///
    /// No socket can be made.
    pub fn plug(&self, platform: Platform, name: &str) -> Result<Plug> {
        let (socket, at) = match platform {
            Platform::Qemu | Platform::Kvm => {
                let number = self.lock().sockets.len();
                let wire = self.directory.path().join(format!("wire-{number}"));
                let machine = self.directory.path().join(format!("machine-{number}"));
                let socket = Socket::paths(&wire, machine.clone());
                let socket = socket.with_context(|| wire.display().to_string())?;
                (socket, At::Paths { machine, wire })
            }
            Platform::Bochs => {
                let (socket, port) = Socket::udp().context("a UDP port for Bochs")?;
                (socket, At::Udp(port))
            }
        };
        let port = self.add(name, socket);
        Ok(Plug { port, at })
    }

    fn add(&self, name: &str, socket: Socket) -> Port {
        let mut shared = self.lock();
        shared.sockets.push(Arc::new(socket));
        let port = shared.switch.add(name);
        drop(shared);
        self.waker.wake();
        Port(port)
    }

    /// Changes what happens to frames in one direction of a port, from the next frame on.
    pub fn set_faults(&self, port: Port, direction: Direction, faults: Faults) {
        self.lock().switch.set_faults(port.0, direction, faults);
        self.waker.wake();
    }

    /// The same in both directions.
    pub fn set_faults_both_ways(&self, port: Port, faults: Faults) {
        self.set_faults(port, Direction::Sent, faults);
        self.set_faults(port, Direction::Received, faults);
    }

    /// Lets frames pass only inside each of `parts`; ports in none of them are a part together. Without parts the wire is
    /// whole again.
    pub fn partition(&self, parts: &[&[Port]]) {
        let parts: Vec<Vec<usize>> = parts
            .iter()
            .map(|part| part.iter().map(|port| port.0).collect())
            .collect();
        let parts: Vec<&[usize]> = parts.iter().map(Vec::as_slice).collect();
        self.lock().switch.partition(&parts);
    }

    /// What came of the frames at a port until now.
    #[must_use]
    pub fn counts(&self, port: Port) -> Counts {
        self.lock().switch.counts(port.0)
    }

    /// Writes all frames from now on to a pcapng file for Wireshark or tcpdump: once at the port where they come from,
    /// as they were before any fault, and once at each port where they go, as they are handed over.
    ///
    /// # Errors
    ///
    /// The file cannot be made.
    pub fn capture(&self, path: &Path) -> Result<()> {
        let mut shared = self.lock();
        let started = shared.switch.capture(path);
        started.with_context(|| path.display().to_string())
    }

    /// Ends the capture and completes its file. Dropping the wire does it too, but cannot report errors.
    ///
    /// # Errors
    ///
    /// A part of the file could not be written.
    pub fn finish_capture(&self) -> Result<()> {
        self.lock().switch.finish_capture().context("the capture")
    }

    /// Ends the wire.
    ///
    /// # Errors
    ///
    /// Its thread panicked, or the capture could not be written.
    pub fn end(mut self) -> Result<()> {
        self.finish_capture()?;
        self.stop().map_err(|()| anyhow!("the wire panicked"))
    }

    fn stop(&mut self) -> Result<(), ()> {
        self.lock().ended = true;
        self.waker.wake();
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| ()),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Who wants to know of errors has called `finish_capture` and `end`.
        self.lock().switch.finish_capture().ok();
        self.stop().ok();
    }
}

/// A panic elsewhere does not make counters and queues useless.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wire's thread.
fn run(shared: &Mutex<Shared>, woken: &Woken) {
    let mut buffer = vec![0; MAX_FRAME + 1];
    loop {
        woken.clear();
        let mut guard = lock(shared);
        if guard.ended {
            return;
        }
        let busy = guard.work(&mut buffer);
        if !busy {
            guard.switch.flush_capture();
        }
        let next = guard.switch.next();
        let sockets = guard.sockets.clone();
        let waiting: Vec<bool> = (0..sockets.len())
            .map(|port| guard.switch.first(port).is_some())
            .collect();
        drop(guard);
        if !busy {
            wait(&sockets, &waiting, woken, next);
        }
    }
}

/// Waits for a frame, for room where frames are `waiting`, or until `next`.
fn wait(sockets: &[Arc<Socket>], waiting: &[bool], woken: &Woken, next: Option<Instant>) {
    let mut polled = vec![PollFd::new(woken, PollFlags::IN)];
    for (socket, waiting) in sockets.iter().zip(waiting) {
        polled.push(PollFd::from_borrowed_fd(socket.incoming(), PollFlags::IN));
        if *waiting {
            polled.push(PollFd::from_borrowed_fd(socket.outgoing(), PollFlags::OUT));
        }
    }
    waker::wait(&mut polled, now(), next);
}

impl Shared {
    /// Moves frames; whether there may be more at once.
    fn work(&mut self, buffer: &mut [u8]) -> bool {
        let now = moment();
        let mut busy = false;
        for port in 0..self.sockets.len() {
            let socket = Arc::clone(&self.sockets[port]);
            let mut frames = 0;
            while frames < BATCH
                && let Some(length) = socket.receive(buffer)
            {
                self.switch.arrive(now, port, &buffer[..length]);
                frames += 1;
            }
            busy |= frames == BATCH;
        }
        self.switch.tick(now);
        for port in 0..self.sockets.len() {
            let socket = Arc::clone(&self.sockets[port]);
            while let Some(frame) = self.switch.first(port) {
                match socket.send(frame) {
                    Sent::Taken => self.switch.taken(port, true),
                    Sent::Nobody => self.switch.taken(port, false),
                    Sent::Later => break,
                }
            }
        }
        busy
    }
}
