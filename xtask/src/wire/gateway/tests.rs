//! Clients reach a guest, which is another `smoltcp` in this process, through the gateway and the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr,
    IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr,
};

use super::*;
use crate::wire::{Direction, Endpoint, Faults, Stack};

const SOON: Duration = Duration::from_secs(60);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 7]);
/// The guest sends back what it receives.
const ECHO: u16 = 7;
/// The guest takes its leave, and then only receives.
const FAREWELL: u16 = 8;
/// The guest resets a connection when something comes.
const RESETTING: u16 = 9;
/// Nobody listens there.
const NOBODY: u16 = 10;
/// So many connections at a time to each port.
const LISTENERS: usize = 8;

/// A guest with services, until dropped.
struct Guest {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// How many bytes came behind a farewell, when that connection is over.
    after_farewell: Receiver<usize>,
}

impl Guest {
    /// With this address, or with a leased one.
    fn start(endpoint: Endpoint, address: Option<Ipv4Addr>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        let (total, after_farewell) = mpsc::channel();
        let thread = std::thread::spawn(move || Services::new(endpoint, address, total).run(&flag));
        Self {
            ended,
            thread: Some(thread),
            after_farewell,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

struct Services {
    device: Stack,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    listening: Vec<(u16, SocketHandle)>,
    after_farewell: usize,
    total: Sender<usize>,
}

impl Services {
    fn new(endpoint: Endpoint, address: Option<Ipv4Addr>, total: Sender<usize>) -> Self {
        let mut device = Stack::new(endpoint);
        let config = Config::new(EthernetAddress(GUEST.0).into());
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = match address {
            Some(address) => {
                let address = IpCidr::new(address.into(), PREFIX);
                interface.update_ip_addrs(|addresses| addresses.push(address).unwrap());
                None
            }
            None => Some(sockets.add(dhcpv4::Socket::new())),
        };
        let ports = [ECHO, FAREWELL, RESETTING];
        let listening = ports
            .into_iter()
            .flat_map(|port| [port; LISTENERS])
            .map(|port| {
                let mut socket = connection::socket();
                socket.listen(port).unwrap();
                (port, sockets.add(socket))
            })
            .collect();
        Self {
            device,
            interface,
            sockets,
            dhcp,
            listening,
            after_farewell: 0,
            total,
        }
    }

    fn run(mut self, ended: &AtomicBool) {
        let start = crate::wire::now();
        while !ended.load(Ordering::Relaxed) {
            let passed = crate::wire::now().duration_since(start);
            let now = smoltcp::time::Instant::from_micros(passed.as_micros() as i64);
            self.device.begin();
            self.interface
                .poll(now, &mut self.device, &mut self.sockets);
            self.configure();
            for (port, handle) in self.listening.clone() {
                self.serve(port, handle);
            }
            let mut sockets = [rustix::event::PollFd::new(
                self.device.endpoint(),
                rustix::event::PollFlags::IN,
            )];
            let now = crate::wire::now();
            waker::wait(&mut sockets, now, Some(now + Duration::from_millis(1)));
        }
    }

    fn configure(&mut self) {
        let Some(dhcp) = self.dhcp else { return };
        let event = self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll();
        if let Some(dhcpv4::Event::Configured(config)) = event {
            assert_eq!(config.router, Some(ADDRESS));
            self.interface.update_ip_addrs(|addresses| {
                addresses.clear();
                addresses.push(IpCidr::Ipv4(config.address)).unwrap();
            });
        }
    }

    fn serve(&mut self, port: u16, handle: SocketHandle) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        match port {
            ECHO => {
                while socket.can_recv() && socket.can_send() {
                    let room = socket.send_capacity() - socket.send_queue();
                    let mut bytes = vec![0; room.min(4096)];
                    let count = socket.recv_slice(&mut bytes).unwrap();
                    assert_eq!(socket.send_slice(&bytes[..count]), Ok(count));
                }
                if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                    socket.close();
                }
            }
            FAREWELL => {
                if socket.state() == tcp::State::Established {
                    socket.send_slice(b"farewell").unwrap();
                    socket.close();
                }
                while socket.can_recv() {
                    self.after_farewell += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
                }
            }
            _ if socket.can_recv() => socket.abort(),
            _ => {}
        }
        if !socket.is_open() || socket.state() == tcp::State::TimeWait {
            if socket.state() == tcp::State::TimeWait && port == FAREWELL {
                self.total.send(self.after_farewell).ok();
            }
            socket.abort();
            socket.listen(port).unwrap();
        }
    }
}

struct Lab {
    guest: Guest,
    gateway: Gateway,
    wire: Wire,
    port: crate::wire::Port,
}

impl Lab {
    /// A wire with a gateway and a guest.
    fn new() -> Self {
        let wire = Wire::start(5).unwrap();
        let gateway = Gateway::start(&wire).unwrap();
        let endpoint = wire.endpoint("guest").unwrap();
        let port = endpoint.port();
        let guest = Guest::start(endpoint, Some(FIRST_LEASE));
        Self {
            guest,
            gateway,
            wire,
            port,
        }
    }

    /// A connection to this port of the guest.
    fn connect(&self, port: u16) -> TcpStream {
        let to = SocketAddrV4::new(FIRST_LEASE, port);
        let local = self.gateway.forward(0, to).unwrap();
        connect(local)
    }
}

fn connect(local: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends `length` bytes and expects the same back, then the end.
fn echo(mut stream: TcpStream, seed: u64, length: usize) {
    let mut sent = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut sent);
    let mut sender = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let sending = std::thread::spawn(move || {
        sender.write_all(&bytes).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(sent == received, "{} bytes of {length}", received.len());
}

#[test]
fn a_guest_has_its_lease_and_answers() {
    let wire = Wire::start(5).unwrap();
    let gateway = Gateway::start(&wire).unwrap();
    // Somebody else has reserved the first address.
    assert_eq!(gateway.reserve(Mac([2; 6])).unwrap(), FIRST_LEASE);
    assert_eq!(gateway.lease(GUEST), None);
    let _guest = Guest::start(wire.endpoint("guest").unwrap(), None);
    let second = Ipv4Addr::new(10, 0, 2, 16);
    assert!(gateway.ping(second, SOON).unwrap());
    assert_eq!(gateway.lease(GUEST), Some(second));
    assert!(
        !gateway
            .ping(FIRST_LEASE, Duration::from_millis(20))
            .unwrap()
    );
}

#[test]
fn large_data_pass_both_ways() {
    let lab = Lab::new();
    echo(lab.connect(ECHO), 1, 5_000_001);
}

#[test]
fn data_pass_a_bad_wire() {
    let lab = Lab::new();
    let faults = Faults {
        drop: 0.01,
        duplicate: 0.02,
        reorder: 0.02,
        corrupt: 0.01,
        ..Faults::default()
    };
    lab.wire.set_faults_both_ways(lab.port, faults);
    echo(lab.connect(ECHO), 2, 300_000);
    let counts = lab.wire.counts(lab.port);
    for passed in [counts.sent, counts.received] {
        assert!(passed.dropped > 0 && passed.corrupted > 0, "{passed:?}");
    }
}

#[test]
fn several_clients_at_a_time_and_one_after_the_other() {
    let lab = Lab::new();
    let to = SocketAddrV4::new(FIRST_LEASE, ECHO);
    let local = lab.gateway.forward(0, to).unwrap();
    let mut idle = connect(local);
    idle.write_all(b"x").unwrap();
    // A client that comes again may be faster than the guest, which has a second socket for it.
    let clients: Vec<_> = (0..LISTENERS / 2 - 1)
        .map(|client| {
            std::thread::spawn(move || {
                for round in 0..5 {
                    echo(connect(local), (client * 10 + round) as u64, 50_000);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let mut answer = [0];
    idle.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"x");
}

#[test]
fn a_guest_may_end_first_and_still_listen() {
    let lab = Lab::new();
    let mut stream = lab.connect(FAREWELL);
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    assert_eq!(received, "farewell");
    stream.write_all(&[1; 30_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(lab.guest.after_farewell.recv_timeout(SOON), Ok(30_000));
}

/// Whether the other side has reset the connection, which an ordinary end is not.
fn is_reset(mut stream: TcpStream) -> bool {
    let error = stream.read(&mut [0; 10]).map_err(|error| error.kind());
    error == Err(ErrorKind::ConnectionReset)
}

#[test]
fn a_connection_that_cannot_be_made_is_reset() {
    let lab = Lab::new();
    assert!(is_reset(lab.connect(NOBODY)));
    let port_zero = lab.connect(0);
    assert!(is_reset(port_zero));
}

#[test]
fn a_reset_by_the_guest_reaches_the_client() {
    let lab = Lab::new();
    let mut stream = lab.connect(RESETTING);
    stream.write_all(b"x").unwrap();
    assert!(is_reset(stream));
}

#[test]
fn a_reset_by_the_client_reaches_the_guest() {
    let lab = Lab::new();
    let to = SocketAddrV4::new(FIRST_LEASE, ECHO);
    let local = lab.gateway.forward(0, to).unwrap();
    // The guest has few sockets: each has to become free again.
    for _ in 0..3 * LISTENERS {
        let mut stream = connect(local);
        stream.write_all(b"xx").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        connection::reset(&stream);
        drop(stream);
        // The gateway has read of it before it makes another connection.
        assert!(lab.gateway.ping(FIRST_LEASE, SOON).unwrap());
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let lab = Lab::new();
    let to = SocketAddrV4::new(FIRST_LEASE, ECHO);
    let taken = lab.gateway.forward(0, to).unwrap();
    let error = format!("{:#}", lab.gateway.forward(taken, to).unwrap_err());
    assert!(error.contains(&taken.to_string()), "{error}");
}

#[test]
fn connections_end_with_the_gateway() {
    let lab = Lab::new();
    let mut stream = lab.connect(ECHO);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    drop(lab.gateway);
    assert!(!matches!(stream.read(&mut [0]), Ok(1)));
}

#[test]
fn the_gateway_is_cut_off_like_any_port() {
    let lab = Lab::new();
    lab.wire
        .set_faults(lab.port, Direction::Sent, Faults::cut());
    let short = Duration::from_millis(20);
    assert!(!lab.gateway.ping(FIRST_LEASE, short).unwrap());
    lab.wire
        .set_faults(lab.port, Direction::Sent, Faults::default());
    assert!(lab.gateway.ping(FIRST_LEASE, SOON).unwrap());
}

#[test]
fn the_gateway_answers_echo_requests() {
    let wire = Wire::start(5).unwrap();
    let _gateway = Gateway::start(&wire).unwrap();
    let card = wire.endpoint("card").unwrap();
    let from = Ipv4Addr::new(10, 0, 2, 99);
    let echo = Icmpv4Repr::EchoRequest {
        ident: 1,
        seq_no: 2,
        data: b"anybody there?",
    };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: ADDRESS,
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(GUEST.0),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; 14 + 20 + echo.buffer_len()];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &checksums);
    echo.emit(
        &mut Icmpv4Packet::new_unchecked(&mut bytes[34..]),
        &checksums,
    );
    assert!(card.send(&bytes));
    // It asks for the address of who asked; the answer follows.
    let request = card.receive(SOON).unwrap();
    assert_eq!(request[12..14], [8, 6], "ARP");
    let mut reply = request.clone();
    reply[..6].copy_from_slice(&MAC.0);
    reply[6..12].copy_from_slice(&GUEST.0);
    reply[21] = 2;
    reply[22..28].copy_from_slice(&GUEST.0);
    reply[28..32].copy_from_slice(&from.octets());
    reply[32..38].copy_from_slice(&MAC.0);
    reply[38..42].copy_from_slice(&ADDRESS.octets());
    assert!(card.send(&reply));
    // The first answer was given up for the question; the second one comes.
    assert!(card.send(&bytes));
    let answer = card.receive(SOON).unwrap();
    assert_eq!((&answer[..6], answer[34]), (&GUEST.0[..], 0));
    assert_eq!(&answer[42..], b"anybody there?");
}
