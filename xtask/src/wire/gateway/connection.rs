//! One forwarded connection: a client on localhost, and a TCP connection on the wire.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::set_socket_linger;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

/// The most bytes in either direction that wait for the other side.
const BUFFER: usize = 1 << 16;
/// A guest that acknowledges nothing for so long is gone; emulated ones can be slow.
const PATIENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// How often an idle guest is asked for a sign of life. Its answers also free smoltcp 0.14 from waiting forever: it can
/// stop its timer with an end of data under way that was lost, and three answers make it send that again.
const SIGN_OF_LIFE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(2);

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on.
    Open,
    /// It is over on both sides.
    Over,
    /// The client is gone; the guest is still to be told.
    Aborted,
}

/// A forwarded connection.
pub(super) struct Connection {
    client: TcpStream,
    /// Its socket on the wire.
    pub(super) socket: SocketHandle,
    /// The client sends no more.
    client_done: bool,
    /// The guest sends no more, and the client was told.
    guest_done: bool,
}

/// A socket for a connection.
pub(super) fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_timeout(Some(PATIENCE));
    socket.set_keep_alive(Some(SIGN_OF_LIFE));
    // Clients have decided already what goes together.
    socket.set_nagle_enabled(false);
    socket
}

impl Connection {
    pub(super) fn new(client: TcpStream, socket: SocketHandle) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        Ok(Self {
            client,
            socket,
            client_done: false,
            guest_done: false,
        })
    }

    /// Moves what can be moved.
    pub(super) fn pump(&mut self, socket: &mut tcp::Socket<'_>) -> Progress {
        if self.forth(socket).and_then(|()| self.back(socket)).is_err() {
            socket.abort();
            return Progress::Aborted;
        }
        match socket.state() {
            _ if socket.recv_queue() > 0 => Progress::Open,
            tcp::State::Closed if self.guest_done => Progress::Over,
            // Never made, reset, or given up: the client must not take it for an orderly end.
            tcp::State::Closed => {
                reset(&self.client);
                Progress::Over
            }
            // Both have ended, and everything was acknowledged: nothing is left to wait for.
            tcp::State::TimeWait if self.guest_done => Progress::Over,
            _ => Progress::Open,
        }
    }

    /// From the client to the guest.
    fn forth(&mut self, socket: &mut tcp::Socket<'_>) -> io::Result<()> {
        while !self.client_done && socket.can_send() {
            let read = socket.send(|room| transferred(self.client.read(room)));
            match read.map_err(io::Error::other)? {
                Ok(0) => {
                    self.client_done = true;
                    socket.close();
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// From the guest to the client.
    fn back(&mut self, socket: &mut tcp::Socket<'_>) -> io::Result<()> {
        while socket.can_recv() {
            let written = socket.recv(|bytes| transferred(self.client.write(bytes)));
            match written.map_err(io::Error::other)? {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let ended = matches!(
            socket.state(),
            tcp::State::CloseWait
                | tcp::State::LastAck
                | tcp::State::Closing
                | tcp::State::TimeWait
        );
        if ended && !self.guest_done && socket.recv_queue() == 0 {
            self.guest_done = true;
            self.client.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// What the client is to be waited for, if for anything.
    pub(super) fn interest(&self, socket: &tcp::Socket<'_>) -> Option<PollFd<'_>> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, !self.client_done && socket.can_send());
        events.set(PollFlags::OUT, socket.can_recv());
        (!events.is_empty()).then(|| PollFd::new(&self.client, events))
    }
}

/// For `smoltcp`: how many bytes were moved, and the result.
fn transferred(result: io::Result<usize>) -> (usize, io::Result<usize>) {
    let count = result.as_ref().map_or(0, |count| *count);
    (count, result)
}

/// Lets the end of `client`, when it is dropped, be a reset. Should the system refuse, it is an ordinary end.
pub(super) fn reset(client: &TcpStream) {
    set_socket_linger(client, Some(Duration::ZERO)).ok();
}
