//! The way from ordinary clients to guests: a host on the wire that forwards ports of localhost.
//!
//! At 10.0.2.2/24 it answers ARP and ping, leases addresses by DHCP, and makes a TCP connection to a guest of each
//! that comes to a forwarded port. It routes nothing: a guest reaches nobody through it.

mod connection;
mod dhcp;
mod ping;
mod server;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arch::nic::Mac;

use super::Wire;
use super::waker::{self, Waker};
use dhcp::Leases;
use ping::Ping;
use server::Server;

/// The gateway's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The bits of an address that are the network's.
pub const PREFIX: u8 = 24;
/// The gateway's card.
pub const MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);
/// The first address that is leased; the others follow up to 10.0.2.254.
pub const FIRST_LEASE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// What the gateway's thread is asked for.
enum Command {
    Forward(TcpListener, SocketAddrV4),
    Ping(Ping),
    End,
}

/// A gateway; it ends when dropped, and its connections with it.
pub struct Gateway {
    commands: Sender<Command>,
    waker: Waker,
    leases: Arc<Mutex<Leases>>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts a gateway at a new port of `wire`.
    ///
    /// # Errors
    ///
    /// No socket or thread can be made.
    pub fn start(wire: &Wire) -> Result<Self> {
        let endpoint = wire.endpoint("gateway")?;
        let (waker, woken) = waker::pair().context("the gateway")?;
        let (commands, requests) = mpsc::channel();
        let leases = Arc::new(Mutex::new(Leases::default()));
        let server = Server::new(endpoint, Arc::clone(&leases));
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || server.run(&requests, &woken))
            .context("the gateway's thread")?;
        Ok(Self {
            commands,
            waker,
            leases,
            thread: Some(thread),
        })
    }

    /// Lets clients of `port` on localhost reach `to` on the wire; returns the port, which is chosen if 0 was given.
    ///
    /// A client whose connection cannot be made, or is reset, has its own reset.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn forward(&self, port: u16, to: SocketAddrV4) -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("port {port} of localhost"))?;
        listener.set_nonblocking(true)?;
        let chosen = listener.local_addr()?.port();
        self.command(Command::Forward(listener, to))?;
        Ok(chosen)
    }

    /// The address that the card `mac` is given by DHCP, now or later: what it has already, or the next free one.
    ///
    /// # Errors
    ///
    /// All addresses are given away.
    pub fn reserve(&self, mac: Mac) -> Result<Ipv4Addr> {
        let address = lock(&self.leases).of(mac);
        address.context("the gateway has no address left")
    }

    /// The address that the card `mac` was given, or that is reserved for it.
    #[must_use]
    pub fn lease(&self, mac: Mac) -> Option<Ipv4Addr> {
        lock(&self.leases).known(mac)
    }

    /// Sends echo requests to `address` until one is answered; `false` if none is within `timeout`.
    ///
    /// # Errors
    ///
    /// The gateway's thread has panicked.
    pub fn ping(&self, address: Ipv4Addr, timeout: Duration) -> Result<bool> {
        let (answer, answered) = mpsc::channel();
        self.command(Command::Ping(Ping::new(address, timeout, answer)))?;
        answered.recv().map_err(|_| gone())
    }

    fn command(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())?;
        self.waker.wake();
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A thread that has ended already cannot be told, and one that panicked has said so.
        self.command(Command::End).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the gateway's thread panicked")
}

fn lock(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}
