//! Tests of the whole wire: its thread, its sockets, and cards in this process.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::*;

/// For what must come: generous.
const SOON: Duration = Duration::from_secs(60);
/// For what must not come: a sign of life behind it is waited for first.
const NOW: Duration = Duration::ZERO;

fn address(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// A frame between cards of these last bytes; 0 means all.
fn frame(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    let to = if to == 0 { [0xff; 6] } else { address(to) };
    [&to[..], &address(from), &[0x88, 0xb5], payload].concat()
}

fn wire() -> Wire {
    Wire::start(3).unwrap()
}

/// A wire with so many cards that know each other: the first has address 1.
fn cards<const N: usize>() -> (Wire, [Endpoint; N]) {
    let wire = wire();
    let cards = std::array::from_fn(|number| wire.endpoint(&format!("card {number}")).unwrap());
    for (number, card) in cards.iter().enumerate() {
        let hello = frame(0, number as u8 + 1, b"hello");
        assert!(card.send(&hello));
        for other in cards.iter().filter(|other| other.port() != card.port()) {
            assert_eq!(other.receive(SOON).unwrap(), hello);
        }
    }
    (wire, cards)
}

#[test]
fn frames_go_to_their_address_alone_and_broadcasts_to_all() {
    let (_wire, [one, two, three]) = cards();
    one.send(&frame(2, 1, b"to two"));
    assert_eq!(two.receive(SOON).unwrap(), frame(2, 1, b"to two"));
    // Behind a broadcast nothing earlier is under way.
    one.send(&frame(0, 1, b"to all"));
    assert_eq!(two.receive(SOON).unwrap(), frame(0, 1, b"to all"));
    assert_eq!(three.receive(SOON).unwrap(), frame(0, 1, b"to all"));
    assert_eq!(one.receive(NOW), None);
}

#[test]
fn an_address_that_moves_is_found_at_its_new_port() {
    let (_wire, [one, two, three]) = cards();
    three.send(&frame(0, 2, b"two is here now"));
    assert!(one.receive(SOON).is_some() && two.receive(SOON).is_some());
    one.send(&frame(2, 1, b"to two"));
    assert_eq!(three.receive(SOON).unwrap(), frame(2, 1, b"to two"));
    assert_eq!(two.receive(NOW), None);
}

#[test]
fn a_cut_one_way_leaves_the_other() {
    let (wire, [one, two]) = cards();
    wire.set_faults(two.port(), Direction::Received, Faults::cut());
    one.send(&frame(2, 1, b"lost"));
    two.send(&frame(1, 2, b"comes"));
    assert_eq!(one.receive(SOON).unwrap(), frame(1, 2, b"comes"));
    while wire.counts(two.port()).received.cut == 0 {
        std::thread::yield_now();
    }
    wire.set_faults(two.port(), Direction::Received, Faults::default());
    one.send(&frame(2, 1, b"again"));
    assert_eq!(two.receive(SOON).unwrap(), frame(2, 1, b"again"));
}

#[test]
fn a_partition_separates_and_heals() {
    let (wire, [one, two, three, four]) = cards();
    wire.partition(&[&[one.port(), two.port()]]);
    one.send(&frame(3, 1, b"lost"));
    one.send(&frame(0, 1, b"to all"));
    three.send(&frame(4, 3, b"the others"));
    assert_eq!(two.receive(SOON).unwrap(), frame(0, 1, b"to all"));
    assert_eq!(four.receive(SOON).unwrap(), frame(4, 3, b"the others"));
    assert_eq!(three.receive(NOW), None);
    wire.partition(&[]);
    one.send(&frame(3, 1, b"whole again"));
    assert_eq!(three.receive(SOON).unwrap(), frame(3, 1, b"whole again"));
}

#[test]
fn delayed_frames_arrive_without_another_to_push_them() {
    let (wire, [one, two]) = cards();
    let faults = Faults {
        delay: Duration::from_millis(5),
        ..Faults::default()
    };
    wire.set_faults_both_ways(one.port(), faults);
    one.send(&frame(2, 1, b"late"));
    assert_eq!(two.receive(SOON).unwrap(), frame(2, 1, b"late"));
}

/// What of 200 frames arrives with these faults, in a wire of this seed.
fn arrived(seed: u64, faults: Faults) -> Vec<Vec<u8>> {
    let wire = Wire::start(seed).unwrap();
    let (one, two) = (wire.endpoint("a").unwrap(), wire.endpoint("b").unwrap());
    wire.set_faults(one.port(), Direction::Sent, faults);
    let mut frames = Vec::new();
    for number in 0..200 {
        while !one.send(&frame(2, 1, &[number; 64])) {
            std::thread::yield_now();
        }
    }
    while wire.counts(one.port()).sent.frames < 200 {
        std::thread::yield_now();
    }
    // Nothing is delayed, so that the end overtakes nothing.
    wire.set_faults(one.port(), Direction::Sent, Faults::default());
    while !one.send(&frame(2, 1, b"the end")) {
        std::thread::yield_now();
    }
    loop {
        let received = two.receive(SOON).unwrap();
        if received == frame(2, 1, b"the end") {
            return frames;
        }
        frames.push(received);
    }
}

#[test]
fn the_seed_decides() {
    let faults = Faults {
        drop: 0.3,
        duplicate: 0.2,
        corrupt: 0.1,
        ..Faults::default()
    };
    let first = arrived(1, faults);
    assert_ne!(first, arrived(1, Faults::default()));
    assert_eq!(first, arrived(1, faults));
    assert_ne!(first, arrived(2, faults));
}

#[test]
fn who_takes_nothing_loses_frames_and_stalls_nobody() {
    let (wire, [one, idle, three]) = cards();
    let before = wire.counts(idle.port());
    let mut sent = 0;
    while wire.counts(idle.port()).overflowed == 0 {
        sent += u64::from(one.send(&frame(2, 1, &[0; 1000])));
    }
    // The others still hear each other.
    while !one.send(&frame(3, 1, b"to three")) {
        std::thread::yield_now();
    }
    assert_eq!(three.receive(SOON).unwrap(), frame(3, 1, b"to three"));
    // What has not overflowed is still there when it is taken.
    let mut taken = 0;
    loop {
        let counts = wire.counts(idle.port());
        if taken + counts.overflowed == sent {
            assert_eq!(counts.received.frames - before.received.frames, sent);
            assert!(taken >= MAX_WAITING as u64);
            return;
        }
        assert!(idle.receive(SOON).is_some(), "{counts:?}, {taken} taken");
        taken += 1;
    }
}

#[test]
fn what_is_no_frame_is_counted() {
    let (wire, [one, two]) = cards();
    one.send(&[1; 13]);
    one.send(&[1; MAX_FRAME + 1]);
    one.send(&frame(2, 1, b"good"));
    assert_eq!(two.receive(SOON).unwrap(), frame(2, 1, b"good"));
    assert_eq!(wire.counts(one.port()).malformed, 2);
}

/// QEMU's side of a port: bound to its own path, connected with nobody.
struct FakeQemu(UnixDatagram, PathBuf);

impl FakeQemu {
    fn start(plug: &Plug) -> Self {
        let At::Paths { machine, wire } = &plug.at else {
            panic!("{plug:?}");
        };
        std::fs::remove_file(machine).ok();
        let socket = UnixDatagram::bind(machine).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self(socket, wire.clone())
    }

    fn send(&self, frame: &[u8]) {
        self.0.send_to(frame, &self.1).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; MAX_FRAME];
        let length = self.0.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }
}

#[test]
fn qemu_may_come_late_stop_and_come_again() {
    let wire = wire();
    let card = wire.endpoint("card").unwrap();
    let plug = wire.plug(Platform::Qemu, "machine").unwrap();
    card.send(&frame(0, 1, b"nobody hears this"));
    while wire.counts(plug.port).absent == 0 {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        let qemu = FakeQemu::start(&plug);
        qemu.send(&frame(1, 2, b"from qemu"));
        assert_eq!(card.receive(SOON).unwrap(), frame(1, 2, b"from qemu"));
        card.send(&frame(2, 1, b"to qemu"));
        assert_eq!(qemu.receive(), frame(2, 1, b"to qemu"));
    }
    // It takes nothing for a while: what the system and the wire have room for waits.
    let qemu = FakeQemu::start(&plug);
    while wire.counts(plug.port).overflowed == 0 {
        card.send(&frame(2, 1, b"more"));
    }
    let before = wire.counts(plug.port).delivered;
    while wire.counts(plug.port).delivered < before + MAX_WAITING as u64 {
        assert_eq!(qemu.receive(), frame(2, 1, b"more"));
    }
}

#[test]
fn bochs_has_a_pair_of_ports() {
    let wire = wire();
    let card = wire.endpoint("card").unwrap();
    let plugs = [(); 2].map(|()| wire.plug(Platform::Bochs, "machine").unwrap());
    let [At::Udp(port), At::Udp(other)] = [&plugs[0].at, &plugs[1].at] else {
        panic!("{plugs:?}");
    };
    assert!(port.abs_diff(*other) >= 2);
    // Nobody is there yet, which must not disturb the port.
    card.send(&frame(0, 1, b"nobody hears this"));
    let bochs = std::net::UdpSocket::bind(("127.0.0.1", *port)).unwrap();
    bochs.set_read_timeout(Some(SOON)).unwrap();
    let wired = ("127.0.0.1", port + 1);
    bochs.send_to(&frame(1, 2, b"from bochs"), wired).unwrap();
    assert_eq!(card.receive(SOON).unwrap(), frame(1, 2, b"from bochs"));
    card.send(&frame(2, 1, b"to bochs"));
    let mut buffer = [0; 100];
    let mut length = bochs.recv(&mut buffer).unwrap();
    if buffer[..length] == frame(0, 1, b"nobody hears this") {
        length = bochs.recv(&mut buffer).unwrap();
    }
    assert_eq!(buffer[..length], frame(2, 1, b"to bochs"));
}

/// The blocks of a pcapng file: kind and body.
fn blocks(bytes: &[u8]) -> Vec<(u32, &[u8])> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = word(at + 4) as usize;
        assert_eq!(length % 4, 0);
        assert_eq!(word(at + length - 4) as usize, length);
        blocks.push((word(at), &bytes[at + 8..at + length - 4]));
        at += length;
    }
    blocks
}

#[test]
fn a_capture_has_each_frame_where_it_comes_from_and_where_it_goes() {
    let (wire, [one, two]) = cards();
    let file = tempfile::NamedTempFile::new().unwrap();
    wire.capture(file.path()).unwrap();
    wire.set_faults(two.port(), Direction::Sent, Faults::cut());
    one.send(&frame(2, 1, b"odd"));
    assert!(two.receive(SOON).is_some());
    two.send(&frame(1, 2, b"lost"));
    while wire.counts(two.port()).sent.cut == 0 {
        std::thread::yield_now();
    }
    wire.end().unwrap();

    let bytes = std::fs::read(file.path()).unwrap();
    let blocks = blocks(&bytes);
    let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 1, 6, 6, 6]);
    assert_eq!(blocks[0].1[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
    assert_eq!(blocks[1].1[..2], [1, 0], "Ethernet");
    assert_eq!(&blocks[2].1[12..18], b"card 1");
    let packets: Vec<_> = blocks[3..].iter().map(|(_, body)| packet(body)).collect();
    let (odd, lost) = (frame(2, 1, b"odd"), frame(1, 2, b"lost"));
    assert_eq!(packets, [(0, 2, odd.clone()), (1, 1, odd), (1, 2, lost)]);
}

/// Port, direction and bytes of a packet block.
fn packet(body: &[u8]) -> (u32, u32, Vec<u8>) {
    let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
    let length = word(12) as usize;
    assert_eq!(word(16) as usize, length);
    let time = Duration::from_nanos(u64::from(word(4)) << 32 | u64::from(word(8)));
    let age = moment().since_epoch.checked_sub(time).unwrap();
    assert!(age < Duration::from_secs(3600), "{age:?}");
    let options = 20 + length.next_multiple_of(4);
    assert_eq!(word(options), 4 << 16 | 2, "flags");
    (word(0), word(options + 4), body[20..20 + length].to_vec())
}

#[test]
fn a_capture_that_cannot_be_written_is_an_error() {
    let wire = wire();
    assert!(wire.capture(Path::new("/no/such/directory/x")).is_err());
    let (one, _two) = (wire.endpoint("a").unwrap(), wire.endpoint("b").unwrap());
    wire.capture(Path::new("/dev/full")).unwrap();
    one.send(&frame(0, 1, b"x"));
    assert!(wire.finish_capture().is_err());
}
