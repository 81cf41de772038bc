//! How the wire reaches what is at a port: datagram sockets, never blocking, one frame in each datagram.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Where Bochs looks for its peer.
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// UDP ports for Bochs, below those that the system gives away (`ip_local_port_range`).
const UDP_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What came of an attempt to hand a frame over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Taken.
    Taken,
    /// The peer has no room.
    Later,
    /// There is no peer.
    Nobody,
}

/// The wire's end of a port.
pub(super) enum Socket {
    /// Of an endpoint in this process.
    Pair(UnixDatagram),
    /// Of QEMU, which binds a path of its own and sends to ours.
    Paths {
        /// Bound to our path, and open to all: a restarted QEMU is a new peer.
        from: UnixDatagram,
        /// Connected with QEMU's path when QEMU is there, because only then the system says when it has room.
        to: UnixDatagram,
        /// QEMU's path.
        machine: PathBuf,
    },
    /// Of Bochs, which binds one UDP port and sends to the next.
    Udp(UdpSocket),
}

impl Socket {
    pub(super) fn paths(wire: &PathBuf, machine: PathBuf) -> io::Result<Self> {
        let from = UnixDatagram::bind(wire)?;
        let to = UnixDatagram::unbound()?;
        from.set_nonblocking(true)?;
        to.set_nonblocking(true)?;
        Ok(Socket::Paths { from, to, machine })
    }

    /// Chooses a pair of ports, of which Bochs's is returned.
    ///
    /// The even ones are for Bochs and the odd ones for wires: who has bound an odd one owns the pair, so that nobody
    /// takes Bochs's before it starts.
    pub(super) fn udp() -> io::Result<(Self, u16)> {
        let pairs = u32::from(UDP_PORTS.end - UDP_PORTS.start) / 2;
        let first = std::process::id() % pairs;
        for pair in (0..pairs).map(|offset| (first + offset) % pairs) {
            let port = UDP_PORTS.start + 2 * pair as u16;
            let Ok(socket) = UdpSocket::bind((LOCALHOST, port + 1)) else {
                continue;
            };
            if UdpSocket::bind((LOCALHOST, port)).is_ok() {
                socket.connect((LOCALHOST, port))?;
                socket.set_nonblocking(true)?;
                return Ok((Socket::Udp(socket), port));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("no pair of UDP ports is free in {UDP_PORTS:?}"),
        ))
    }

    /// Takes a frame; `None` if there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let received = match self {
            Socket::Pair(socket) | Socket::Paths { from: socket, .. } => socket.recv(buffer),
            // What comes first may be that nobody took an earlier frame.
            Socket::Udp(socket) => socket.recv(buffer).or_else(|_| socket.recv(buffer)),
        };
        received.ok()
    }

    /// Hands a frame over.
    pub(super) fn send(&self, frame: &[u8]) -> Sent {
        let sent = match self {
            Socket::Pair(socket) => socket.send(frame),
            Socket::Paths { to, machine, .. } => match to.send(frame) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    to.connect(machine).and_then(|()| to.send(frame))
                }
                sent => sent,
            },
            Socket::Udp(socket) => match socket.send(frame) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    socket.send(frame)
                }
                sent => sent,
            },
        };
        match sent {
            Ok(_) => Sent::Taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            Err(_) => Sent::Nobody,
        }
    }

    /// Readable when there is a frame.
    pub(super) fn incoming(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Pair(socket) | Socket::Paths { from: socket, .. } => socket.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }

    /// Writable when there is room for one.
    pub(super) fn outgoing(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Pair(socket) | Socket::Paths { to: socket, .. } => socket.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}
