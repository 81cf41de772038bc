//! A card in this process: frames by call, or as a device of `smoltcp`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::switch::MAX_FRAME;
use super::{Port, waker};

/// The longest frame that a [`Stack`] sends, in bytes.
const STACK_FRAME: usize = 1514;
/// The most frames that a [`Stack`] takes before it is asked for other work.
const BUDGET: usize = 64;

/// A card in this process, at a port of a wire.
#[derive(Debug)]
pub struct Endpoint {
    socket: UnixDatagram,
    port: Port,
}

impl Endpoint {
    pub(super) fn new(socket: UnixDatagram, port: Port) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, port })
    }

    /// The port that it is at.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }

    /// Sends a frame; never waits. `false` if the wire has no room for it now: it is not sent then.
    pub fn send(&self, frame: &[u8]) -> bool {
        self.socket.send(frame).is_ok()
    }

    /// Takes the next frame; `None` if there is none within `timeout`.
    #[must_use]
    pub fn receive(&self, timeout: Duration) -> Option<Vec<u8>> {
        let start = super::now();
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            let now = super::now();
            if now.duration_since(start) >= timeout {
                return None;
            }
            let mut sockets = [PollFd::new(&self.socket, PollFlags::IN)];
            waker::wait(&mut sockets, now, start.checked_add(timeout));
        }
    }

    /// Takes the next frame if it is there.
    fn take(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; MAX_FRAME];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An endpoint as the card of a `smoltcp` interface.
#[derive(Debug)]
pub struct Stack {
    endpoint: Endpoint,
    budget: usize,
}

impl Stack {
    /// Makes `endpoint` the card of an interface.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            budget: BUDGET,
        }
    }

    /// The card.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// To be called before each poll of the interface, which would go on for as long as frames come.
    pub fn begin(&mut self) {
        self.budget = BUDGET;
    }
}

/// A received frame.
pub struct Received(Vec<u8>);

/// A frame to send.
pub struct Sending<'a>(&'a Endpoint);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        // A full wire loses frames like any other.
        self.0.send(&frame);
        result
    }
}

impl Device for Stack {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        self.budget = self.budget.checked_sub(1)?;
        let frame = self.endpoint.take()?;
        Some((Received(frame), Sending(&self.endpoint)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.endpoint))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = STACK_FRAME;
        capabilities
    }
}
