//! The gateway's thread: its stack on the wire, and the sockets of this host.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::super::endpoint::{Endpoint, Stack};
use super::super::waker::{self, Woken};
use super::connection::{self, Connection, Progress};
use super::dhcp::Leases;
use super::ping::{self, Ping};
use super::{ADDRESS, Command, MAC, PREFIX};

/// The most forwarded connections at a time; further clients wait until one is over.
const MAX_CONNECTIONS: usize = 256;
/// Local ports of connections to guests.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
const DHCP_SERVER_PORT: u16 = 67;
const DHCP_CLIENT_PORT: u16 = 68;
/// The most datagrams that wait in a socket of the gateway.
const DATAGRAMS: usize = 16;
/// Bytes for them.
const DATAGRAM_BYTES: usize = 1 << 14;

/// A port of this host that leads to a guest.
struct Forwarded {
    listener: TcpListener,
    to: SocketAddrV4,
}

/// Everything that the gateway's thread has.
pub(super) struct Server {
    start: Instant,
    device: Stack,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    icmp: SocketHandle,
    leases: Arc<Mutex<Leases>>,
    forwarded: Vec<Forwarded>,
    connections: Vec<Connection>,
    /// Their guests are told at the next poll.
    aborted: Vec<SocketHandle>,
    pings: Vec<Ping>,
    /// Of the last echo request.
    echo_sequence: u16,
    last_port: u16,
}

impl Server {
    pub(super) fn new(endpoint: Endpoint, leases: Arc<Mutex<Leases>>) -> Self {
        let mut device = Stack::new(endpoint);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC.0)));
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The first of several that fit.
            addresses.push(IpCidr::new(ADDRESS.into(), PREFIX)).ok();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = sockets.add(dhcp_socket());
        let icmp = sockets.add(icmp_socket());
        Self {
            start: super::super::now(),
            device,
            interface,
            sockets,
            dhcp,
            icmp,
            leases,
            forwarded: Vec::new(),
            connections: Vec::new(),
            aborted: Vec::new(),
            pings: Vec::new(),
            echo_sequence: 0,
            last_port: *LOCAL_PORTS.end(),
        }
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self, requests: &Receiver<Command>, woken: &Woken) {
        loop {
            woken.clear();
            if !self.obey(requests) {
                return;
            }
            self.accept();
            let now = super::super::now();
            self.device.begin();
            self.interface
                .poll(self.time(now), &mut self.device, &mut self.sockets);
            self.serve_dhcp();
            self.serve_pings(now);
            self.serve_connections();
            let sent =
                self.interface
                    .poll_egress(self.time(now), &mut self.device, &mut self.sockets);
            if sent == PollResult::None {
                self.wait(now, woken);
            }
        }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let passed = now.duration_since(self.start);
        smoltcp::time::Instant::from_micros(passed.as_micros() as i64)
    }

    /// Does what was asked for; whether to go on.
    fn obey(&mut self, requests: &Receiver<Command>) -> bool {
        loop {
            match requests.try_recv() {
                Ok(Command::Forward(listener, to)) => {
                    self.forwarded.push(Forwarded { listener, to });
                }
                Ok(Command::Ping(ping)) => self.pings.push(ping),
                Ok(Command::End) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn accept(&mut self) {
        for number in 0..self.forwarded.len() {
            while self.connections.len() < MAX_CONNECTIONS
                && let Ok((client, _)) = self.forwarded[number].listener.accept()
            {
                let to = self.forwarded[number].to;
                let local = self.local_port();
                let mut socket = connection::socket();
                let context = self.interface.context();
                let guest = (IpAddress::Ipv4(*to.ip()), to.port());
                if socket.connect(context, guest, local).is_err() {
                    // Port 0, or no address.
                    connection::reset(&client);
                    continue;
                }
                let handle = self.sockets.add(socket);
                match Connection::new(client, handle) {
                    Ok(connection) => self.connections.push(connection),
                    Err(_) => drop(self.sockets.remove(handle)),
                }
            }
        }
    }

    /// The next port that no connection uses; there are more ports than connections.
    fn local_port(&mut self) -> u16 {
        loop {
            self.last_port = match self.last_port {
                port if port == *LOCAL_PORTS.end() => *LOCAL_PORTS.start(),
                port => port + 1,
            };
            let used = self.connections.iter().any(|connection| {
                let socket = self.sockets.get::<tcp::Socket<'_>>(connection.socket);
                socket.local_endpoint().map(|local| local.port) == Some(self.last_port)
            });
            if !used {
                return self.last_port;
            }
        }
    }

    fn serve_dhcp(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dhcp);
        let everybody = IpEndpoint::new(Ipv4Addr::BROADCAST.into(), DHCP_CLIENT_PORT);
        while let Ok((message, _)) = socket.recv() {
            let answer = super::lock(&self.leases).answer(message);
            if let Some(answer) = answer {
                // A client that is not answered asks again.
                socket.send_slice(&answer, everybody).ok();
            }
        }
    }

    fn serve_pings(&mut self, now: Instant) {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.icmp);
        while let Ok((packet, from)) = socket.recv() {
            if let Some(sequence) = ping::answered(packet) {
                self.pings.retain(|ping| ping.answered(from, sequence));
            }
        }
        let sequence = &mut self.echo_sequence;
        self.pings
            .retain_mut(|ping| ping.poll(now, socket, sequence));
    }

    fn serve_connections(&mut self) {
        for handle in self.aborted.drain(..) {
            self.sockets.remove(handle);
        }
        let (sockets, aborted) = (&mut self.sockets, &mut self.aborted);
        self.connections.retain_mut(|connection| {
            let handle = connection.socket;
            match connection.pump(sockets.get_mut(handle)) {
                Progress::Open => return true,
                Progress::Over => drop(sockets.remove(handle)),
                Progress::Aborted => aborted.push(handle),
            }
            false
        });
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant, woken: &Woken) {
        let delay = self.interface.poll_delay(self.time(now), &self.sockets);
        let stack = delay.map(|delay| now + Duration::from(delay));
        let pings = self.pings.iter().map(Ping::due);
        let until = pings.chain(stack).min();

        let mut polled = vec![
            PollFd::new(woken, PollFlags::IN),
            PollFd::new(self.device.endpoint(), PollFlags::IN),
        ];
        if self.connections.len() < MAX_CONNECTIONS {
            let listeners = self.forwarded.iter().map(|f| &f.listener);
            polled.extend(listeners.map(|l| PollFd::new(l, PollFlags::IN)));
        }
        for connection in &self.connections {
            let socket = self.sockets.get::<tcp::Socket<'_>>(connection.socket);
            polled.extend(connection.interest(socket));
        }
        waker::wait(&mut polled, now, until);
    }
}

fn dhcp_socket() -> udp::Socket<'static> {
    let buffer = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
            vec![0; DATAGRAM_BYTES],
        )
    };
    let mut socket = udp::Socket::new(buffer(), buffer());
    let bound = socket.bind(DHCP_SERVER_PORT);
    debug_assert!(bound.is_ok(), "a fresh socket and a port");
    socket
}

fn icmp_socket() -> icmp::Socket<'static> {
    let buffer = || {
        icmp::PacketBuffer::new(
            vec![icmp::PacketMetadata::EMPTY; DATAGRAMS],
            vec![0; DATAGRAM_BYTES],
        )
    };
    let mut socket = icmp::Socket::new(buffer(), buffer());
    let bound = socket.bind(icmp::Endpoint::Ident(ping::IDENT));
    debug_assert!(bound.is_ok(), "a fresh socket and an identifier");
    socket
}
