//! Two stacks on one wire: echo, UDP, and a DHCP server made of a few bytes.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::*;

const MAC_A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const MAC_B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const IP_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const IP_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn fixed(ip: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Addressing {
    let address = Address { ip, prefix: 24 };
    Addressing::Static { address, gateway }
}

fn pair() -> (Stack, Stack) {
    (
        Stack::new(MAC_A, &fixed(IP_A, None), 1500, 1, 0),
        Stack::new(MAC_B, &fixed(IP_B, None), 1500, 2, 0),
    )
}

/// Moves frames between the two until none is left.
fn exchange(a: &mut Stack, b: &mut Stack, now: u64) {
    for _ in 0..20 {
        a.poll(now);
        b.poll(now);
        while let Some(frame) = a.to_send() {
            b.offer(frame);
            a.sent();
        }
        while let Some(frame) = b.to_send() {
            a.offer(frame);
            b.sent();
        }
    }
}

#[test]
fn an_echo_is_answered() {
    let (mut a, mut b) = pair();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4000]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).expect("is free");
    let handle = a.sockets.add(socket);
    let echo = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 3,
        data: &[0x5a; 1400],
    };
    let socket = a.sockets.get_mut::<icmp::Socket>(handle);
    let space = socket
        .send(echo.buffer_len(), IpAddress::Ipv4(IP_B))
        .expect("room");
    let sums = ChecksumCapabilities::default();
    echo.emit(&mut Icmpv4Packet::new_unchecked(space), &sums);
    exchange(&mut a, &mut b, 1_000_000);
    let socket = a.sockets.get_mut::<icmp::Socket>(handle);
    let (answer, from) = socket.recv().expect("an answer");
    assert_eq!(from, IpAddress::Ipv4(IP_B));
    let packet = Icmpv4Packet::new_checked(answer).expect("is whole");
    let expected = Icmpv4Repr::EchoReply {
        ident: 7,
        seq_no: 3,
        data: &[0x5a; 1400],
    };
    assert_eq!(Icmpv4Repr::parse(&packet, &sums), Ok(expected));
}

#[test]
fn datagrams_pass_both_ways() {
    let (mut a, mut b) = pair();
    let at_a = a.open_udp(4000, 8, 16_000).expect("opens");
    let at_b = b.open_udp(5000, 8, 16_000).expect("opens");
    let to_b = SocketAddrV4::new(IP_B, 5000);
    // The first one waits for the other's address.
    a.send_udp(at_a, to_b, b"one").expect("room");
    a.send_udp(at_a, to_b, &[7; 1472]).expect("a frame full");
    exchange(&mut a, &mut b, 1_000_000);
    assert_eq!(
        b.receive_udp(at_b),
        Some((&b"one"[..], SocketAddrV4::new(IP_A, 4000)))
    );
    let (second, from) = b.receive_udp(at_b).expect("the second");
    assert_eq!(second, [7; 1472]);
    assert_eq!(b.receive_udp(at_b), None);
    b.send_udp(at_b, from, b"back").expect("room");
    exchange(&mut a, &mut b, 2_000_000);
    assert_eq!(a.receive_udp(at_a), Some((&b"back"[..], to_b)));
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let (mut a, _) = pair();
    let socket = a.open_udp(4000, 2, 3000).expect("opens");
    assert_eq!(a.open_udp(4000, 1, 1), Err(UdpError::Port(4000)));
    assert_eq!(a.open_udp(0, 1, 1), Err(UdpError::Port(0)));
    let to = SocketAddrV4::new(IP_B, 5000);
    let long = [0; 1473];
    assert_eq!(a.send_udp(socket, to, &long), Err(UdpError::TooLong(1472)));
    for wrong in [
        SocketAddrV4::new(IP_B, 0),
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 5000),
    ] {
        let error = UdpError::Destination(wrong);
        assert_eq!(a.send_udp(socket, wrong, b"x"), Err(error));
    }
    assert_eq!(a.send_udp(socket, to, b"x"), Ok(()));
    assert_eq!(a.send_udp(socket, to, b"x"), Ok(()));
    assert_eq!(a.send_udp(socket, to, b"x"), Err(UdpError::Full));
    for port in 1..MAX_SOCKETS as u16 {
        a.open_udp(port, 1, 1).expect("opens");
    }
    assert_eq!(a.open_udp(999, 1, 1), Err(UdpError::TooManySockets));
}

#[test]
fn a_flood_is_dropped_and_counted() {
    let (mut a, mut b) = pair();
    let socket = b.open_udp(5000, 4, 4000).expect("opens");
    for _ in 0..QUEUE + 9 {
        b.offer(&[0xff; 60]);
    }
    assert_eq!(b.dropped(), 9);
    exchange(&mut a, &mut b, 1_000_000);
    let from_a = a.open_udp(4000, 4, 4000).expect("opens");
    a.send_udp(from_a, SocketAddrV4::new(IP_B, 5000), b"after")
        .expect("room");
    exchange(&mut a, &mut b, 2_000_000);
    assert!(b.receive_udp(socket).is_some());
}

#[test]
fn any_bytes_are_survived() {
    let (_, mut b) = pair();
    let mut state = 88_172_645_463_325_252_u64;
    for round in 0..20_000_u64 {
        let mut frame = [0; 120];
        for byte in &mut frame {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        // Often enough something that it looks into.
        frame[..6].copy_from_slice(&MAC_B.0);
        frame[12..14].copy_from_slice(&[8, (state >> 60) as u8 & 6]);
        frame[14] = 0x45;
        let length = (state >> 32) as usize % 121;
        b.offer(&frame[..length]);
        b.poll(round * 1000);
        while b.to_send().is_some() {
            b.sent();
        }
    }
    assert_eq!(b.address().map(|a| a.ip), Some(IP_B));
}

#[test]
fn other_networks_are_reached_by_the_gateway() {
    let mut a = Stack::new(MAC_A, &fixed(IP_A, Some(IP_B)), 1500, 1, 0);
    let mut b = Stack::new(MAC_B, &fixed(IP_B, None), 1500, 2, 0);
    let socket = a.open_udp(4000, 4, 4000).expect("opens");
    let far = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 9);
    a.send_udp(socket, far, b"x").expect("room");
    // It asks for the gateway's address, and sends there.
    a.poll(1_000_000);
    let asked = a.to_send().map(<[u8]>::to_vec).expect("asks");
    assert_eq!(asked[12..14], [8, 6]);
    a.sent();
    b.offer(&asked);
    b.poll(1_000_000);
    a.offer(b.to_send().expect("answers"));
    a.poll(2_000_000);
    // Answered, it sends when it next looks.
    let due = a.poll_at(2_000_000).unwrap_or(2_000_000).max(2_000_000);
    a.poll(due);
    let sent = a.to_send().expect("sends");
    assert_eq!(
        (&sent[..6], &sent[30..34]),
        (&MAC_B.0[..], &far.ip().octets()[..])
    );
}

/// The kind of a DHCP message from the client, and its number.
fn asked(frame: &[u8]) -> Option<(DhcpMessageType, u32)> {
    let ip = Ipv4Packet::new_checked(EthernetFrame::new_checked(frame).ok()?.payload()).ok()?;
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    let dhcp = DhcpPacket::new_checked(udp.payload()).ok()?;
    let repr = DhcpRepr::parse(&dhcp).ok()?;
    (repr.client_hardware_address == EthernetAddress(MAC_A.0))
        .then_some((repr.message_type, repr.transaction_id))
}

/// A server's answer, as a frame.
fn answer(kind: DhcpMessageType, number: u32, ip: Ipv4Addr) -> Vec<u8> {
    let dhcp = DhcpRepr {
        message_type: kind,
        transaction_id: number,
        secs: 0,
        client_hardware_address: EthernetAddress(MAC_A.0),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: ip,
        server_ip: IP_B,
        router: Some(IP_B),
        subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(IP_B),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: Some(1000),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let udp = UdpRepr {
        src_port: 67,
        dst_port: 68,
    };
    let length = dhcp.buffer_len();
    let ip = Ipv4Repr {
        src_addr: IP_B,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + length,
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(MAC_B.0),
        dst_addr: EthernetAddress(MAC_A.0),
        ethertype: EthernetProtocol::Ipv4,
    };
    let sums = ChecksumCapabilities::default();
    let mut frame = vec![0; 14 + ip.buffer_len() + ip.payload_len];
    let mut packet = EthernetFrame::new_unchecked(&mut frame);
    ethernet.emit(&mut packet);
    let mut packet = Ipv4Packet::new_unchecked(packet.payload_mut());
    ip.emit(&mut packet, &sums);
    let mut packet = UdpPacket::new_unchecked(packet.payload_mut());
    udp.emit(
        &mut packet,
        &IpAddress::Ipv4(IP_B),
        &IpAddress::Ipv4(Ipv4Addr::BROADCAST),
        length,
        |payload| {
            dhcp.emit(&mut DhcpPacket::new_unchecked(payload))
                .expect("fits");
        },
        &sums,
    );
    frame
}

/// Lets a client run until `until` seconds with a server that gives `ip`; what changed.
fn lease(
    client: &mut Stack,
    from_s: u64,
    until_s: u64,
    ip: Option<Ipv4Addr>,
) -> Vec<AddressChange> {
    let mut changes = vec![];
    for tenth in from_s * 10..until_s * 10 {
        changes.extend(client.poll(tenth * 100_000_000));
        while let Some(frame) = client.to_send().map(<[u8]>::to_vec) {
            client.sent();
            let (Some((kind, number)), Some(ip)) = (asked(&frame), ip) else {
                continue;
            };
            client.offer(&answer(
                match kind {
                    DhcpMessageType::Discover => DhcpMessageType::Offer,
                    _ => DhcpMessageType::Ack,
                },
                number,
                ip,
            ));
        }
    }
    changes
}

#[test]
fn a_dhcp_server_gives_and_takes_the_address() {
    let mut client = Stack::new(MAC_A, &Addressing::Dhcp, 1500, 9, 0);
    assert_eq!(client.address(), None);
    let ip = Ipv4Addr::new(10, 0, 0, 77);
    let address = Address { ip, prefix: 24 };
    let given = AddressChange::Given {
        address,
        gateway: Some(IP_B),
    };
    assert_eq!(lease(&mut client, 0, 30, Some(ip)), [given]);
    assert_eq!(client.address(), Some(address));
    // Renewed while the server answers, and over after the last lease if it does not.
    assert_eq!(lease(&mut client, 30, 2000, Some(ip)), []);
    assert_eq!(lease(&mut client, 2000, 3500, None), [AddressChange::Lost]);
    assert_eq!(client.address(), None);
}

#[test]
fn no_group_is_ever_the_hosts_address() {
    let (mut a, _) = pair();
    let ip = Ipv4Addr::new(224, 0, 0, 1);
    a.set_address(Address { ip, prefix: 24 }, None);
    assert_eq!(a.address(), None);
}

#[test]
fn an_address_that_no_host_can_have_is_not_taken() {
    let mut client = Stack::new(MAC_A, &Addressing::Dhcp, 1500, 9, 0);
    for ip in [
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
    ] {
        lease(&mut client, 0, 60, Some(ip));
        assert_eq!(client.address(), None, "{ip}");
    }
}
