//! The host's own addresses on one card: ARP, echo, DHCP and UDP, by smoltcp.
//!
//! No clock and no card: frames are offered and taken, time is an argument.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};

use arch::nic::{FRAME_MIN, Mac};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use super::QUEUE_FRAMES;
use super::queue::FrameQueue;
use crate::config::net::{Address, Addressing};

/// Frames between the switch and the stack, each way.
const QUEUE: usize = QUEUE_FRAMES;
/// Bytes of the headers in front of a UDP datagram's payload.
const UDP_HEADERS: usize = 28;
/// UDP sockets of one stack.
pub const MAX_SOCKETS: usize = 16;

/// The device that smoltcp sees.
struct Queues {
    received: FrameQueue,
    to_send: FrameQueue,
    mtu: usize,
}

struct Incoming<'a>(&'a mut FrameQueue);

struct Outgoing<'a>(&'a mut FrameQueue);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(self.0.front().unwrap_or_default());
        self.0.pop();
        result
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        // A token is given only where there is room, and no frame is longer than the MTU allows: else it is lost.
        self.0
            .push(length, f)
            .unwrap_or_else(|f| f(&mut vec![0; length]))
    }
}

impl Device for Queues {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let ready = !self.received.is_empty() && !self.to_send.is_full();
        ready.then_some((Incoming(&mut self.received), Outgoing(&mut self.to_send)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (!self.to_send.is_full()).then_some(Outgoing(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + FRAME_MIN;
        capabilities
    }
}

/// A UDP socket of a [`Stack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp(SocketHandle);

/// Why a datagram or a socket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpError {
    /// Port 0, or one that is open already.
    Port(u16),
    /// There are [`MAX_SOCKETS`].
    TooManySockets,
    /// As much waits to be sent as there is room for.
    Full,
    /// It does not fit into a frame; so many bytes do.
    TooLong(usize),
    /// No single host has this address, or there is no port 0.
    Destination(SocketAddrV4),
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UdpError::Port(port) => write!(f, "UDP port {port} cannot be opened"),
            UdpError::TooManySockets => write!(f, "more than {MAX_SOCKETS} UDP sockets"),
            UdpError::Full => f.write_str("too much waits to be sent"),
            UdpError::TooLong(most) => write!(f, "a datagram has at most {most} bytes"),
            UdpError::Destination(to) => write!(f, "nothing can be sent to {to}"),
        }
    }
}

/// A change of the host's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressChange {
    /// A DHCP server gave this.
    Given {
        /// The address.
        address: Address,
        /// The way to everywhere else.
        gateway: Option<Ipv4Addr>,
    },
    /// The lease is over.
    Lost,
}

/// The host's addresses on one card.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: Queues,
    dhcp: Option<SocketHandle>,
    sockets_open: usize,
    /// Frames offered while [`QUEUE`] waited.
    dropped: u64,
}

fn instant(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

impl Stack {
    /// A stack for a card. `seed` is random, `now` in nanoseconds, `mtu` in bytes of an IP packet.
    #[must_use]
    pub fn new(mac: Mac, addressing: &Addressing, mtu: u16, seed: u64, now: u64) -> Self {
        let mut queues = Queues {
            received: FrameQueue::new(QUEUE),
            to_send: FrameQueue::new(QUEUE),
            mtu: usize::from(mtu),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let interface = Interface::new(config, &mut queues, instant(now));
        let mut stack = Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            queues,
            dhcp: None,
            sockets_open: 0,
            dropped: 0,
        };
        match *addressing {
            Addressing::Dhcp => stack.dhcp = Some(stack.sockets.add(dhcpv4::Socket::new())),
            Addressing::Static { address, gateway } => stack.set_address(address, gateway),
        }
        stack
    }

    fn set_address(&mut self, address: Address, gateway: Option<Ipv4Addr>) {
        self.clear_address();
        let cidr = IpCidr::Ipv4(Ipv4Cidr::new(address.ip, address.prefix));
        let single = cidr.address().is_unicast();
        self.interface.update_ip_addrs(|addresses| {
            if single && addresses.push(cidr).is_err() {
                log::warn!("network: no room for {address}");
            }
        });
        if let Some(gateway) = gateway
            && self
                .interface
                .routes_mut()
                .add_default_ipv4_route(gateway)
                .is_err()
        {
            log::warn!("network: no room for a route by {gateway}");
        }
    }

    fn clear_address(&mut self) {
        self.interface
            .update_ip_addrs(|addresses| addresses.clear());
        self.interface.routes_mut().remove_default_ipv4_route();
    }

    /// The host's address, if it has one now.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        let IpCidr::Ipv4(cidr) = self.interface.ip_addrs().first()?;
        Some(Address {
            ip: cidr.address(),
            prefix: cidr.prefix_len(),
        })
    }

    /// Frames that were offered faster than they were taken.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Offers a received frame; one that finds the queue full is dropped and counted.
    pub fn offer(&mut self, frame: &[u8]) {
        let taken = self
            .queues
            .received
            .push(frame.len(), |to| to.copy_from_slice(frame));
        if taken.is_err() {
            self.dropped += 1;
        }
    }

    /// The next frame to be sent.
    #[must_use]
    pub fn to_send(&self) -> Option<&[u8]> {
        self.queues.to_send.front()
    }

    /// Takes it out.
    pub fn sent(&mut self) {
        self.queues.to_send.pop();
    }

    /// Handles what was offered, and what is due at `now`, in nanoseconds.
    pub fn poll(&mut self, now: u64) -> Option<AddressChange> {
        // What it returns only says that a socket may have something, which its owner asks himself.
        self.interface
            .poll(instant(now), &mut self.queues, &mut self.sockets);
        let socket = self.sockets.get_mut::<dhcpv4::Socket>(self.dhcp?);
        let change = match socket.poll()? {
            dhcpv4::Event::Deconfigured => AddressChange::Lost,
            dhcpv4::Event::Configured(lease) => AddressChange::Given {
                address: Address {
                    ip: lease.address.address(),
                    prefix: lease.address.prefix_len(),
                },
                gateway: lease.router,
            },
        };
        match change {
            AddressChange::Given { address, gateway } => self.set_address(address, gateway),
            // It says so too before it has ever had one.
            AddressChange::Lost if self.address().is_none() => return None,
            AddressChange::Lost => self.clear_address(),
        }
        Some(change)
    }

    /// When [`poll`](Self::poll) is due without a frame, in nanoseconds; `None`: not by itself.
    #[must_use]
    pub fn poll_at(&mut self, now: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        u64::try_from(at.total_micros())
            .ok()
            .map(|micros| micros.saturating_mul(1000))
    }

    /// Opens a UDP socket that holds so many datagrams, and so many bytes, each way.
    ///
    /// # Errors
    ///
    /// The port is 0 or open, or there are too many sockets.
    pub fn open_udp(&mut self, port: u16, datagrams: usize, bytes: usize) -> Result<Udp, UdpError> {
        if self.sockets_open >= MAX_SOCKETS {
            return Err(UdpError::TooManySockets);
        }
        let taken = self.sockets.iter().any(|(_, socket)| match socket {
            smoltcp::socket::Socket::Udp(socket) => socket.endpoint().port == port,
            _ => false,
        });
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; datagrams.max(1)],
                vec![0; bytes],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        if taken || socket.bind(port).is_err() {
            return Err(UdpError::Port(port));
        }
        self.sockets_open += 1;
        Ok(Udp(self.sockets.add(socket)))
    }

    /// Sends a datagram; it leaves with the next [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// It is too long, for nobody, or finds no room.
    pub fn send_udp(
        &mut self,
        socket: Udp,
        to: SocketAddrV4,
        payload: &[u8],
    ) -> Result<(), UdpError> {
        let most = self.queues.mtu.saturating_sub(UDP_HEADERS);
        if payload.len() > most {
            return Err(UdpError::TooLong(most));
        }
        let socket = self.sockets.get_mut::<udp::Socket>(socket.0);
        socket
            .send_slice(payload, (IpAddress::Ipv4(*to.ip()), to.port()))
            .map_err(|error| match error {
                udp::SendError::Unaddressable => UdpError::Destination(to),
                udp::SendError::BufferFull => UdpError::Full,
            })
    }

    /// The next datagram, and who sent it; it is taken out.
    pub fn receive_udp(&mut self, socket: Udp) -> Option<(&[u8], SocketAddrV4)> {
        let socket = self.sockets.get_mut::<udp::Socket>(socket.0);
        let (payload, from) = socket.recv().ok()?;
        let IpAddress::Ipv4(ip) = from.endpoint.addr;
        Some((payload, SocketAddrV4::new(ip, from.endpoint.port)))
    }
}

#[cfg(test)]
mod tests;
