//! Fuzz targets of everything that parses what a stranger sent, and their corpora.
//!
//! Each target is a function of bytes that panics when something is wrong. The ordinary tests run all
//! of them over the corpora (`corpus/<target>/`) and over random bytes; `libfuzzer/` runs them under
//! cargo-fuzz, by hand and with the nightly toolchain:
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz/libfuzzer <target> tests/fuzz/corpus/<target>`.

#![forbid(unsafe_code)]

mod log;
mod network;
mod virtio;

use ftlink::arbiter::datagram::{
    Key, NONCE_BYTES, open_reply, open_request, request_pair, seal_request,
};
use ftlink::arbiter::{Ask, Member, Record, Request, decide};
use ftlink::channel::{Channel, ChannelConfig, Hello};
use ftlink::counters::StreamCounters;
use ftlink::ids::{BootId, Duration, Generation, Instant, LogPos, NodeId, PairId, RequestId};
use ftlink::stream::{Arrival, Receiver};
use ftlink::wire::messages::{Data, GreetingRepr, HeartbeatRepr, ReportRepr};
use ftlink::wire::{HEADER_BYTES, HeaderRepr, MAX_DATAGRAM_BYTES};
pub use log::log;
pub use network::{network, nic};
pub use virtio::virtio;
use zerocopy::IntoBytes;

/// A target, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("wire", wire),
    ("handshake", handshake),
    ("reassembly", reassembly),
    ("witness", witness),
    ("virtio", virtio),
    ("log", log),
    ("nic", nic),
    ("network", network),
];

const PAIR: PairId = PairId(0x1234);
const NOW: Instant = Instant(1_000_000_000);

/// The link's header and bodies: parsing never panics, and what is parsed can be written again.
pub fn wire(bytes: &[u8]) {
    if let Ok((header, body)) = HeaderRepr::parse(bytes) {
        let written = header.header();
        assert_eq!(written.as_bytes(), &bytes[..HEADER_BYTES]);
        assert_eq!(body.len(), bytes.len() - HEADER_BYTES);
    }
    if let Ok((offset, data)) = Data::parse(bytes) {
        assert!(!data.is_empty());
        assert!(offset.checked_add(data.len() as u64).is_some());
    }
    if let Ok(report) = ReportRepr::parse(bytes) {
        assert_eq!(ReportRepr::parse(report.report().as_bytes()), Ok(report));
        assert!(!report.names(report.newest.wrapping_add(1)) || report.newest == u64::MAX);
    }
    if let Ok(beat) = HeartbeatRepr::parse(bytes) {
        assert_eq!(HeartbeatRepr::parse(beat.heartbeat().as_bytes()), Ok(beat));
    }
    if let Ok(greeting) = GreetingRepr::parse(bytes) {
        let written = greeting.greeting();
        let again = written.map(|written| GreetingRepr::parse(written.as_bytes()).is_ok());
        assert_eq!(again, Ok(true));
    }
}

fn channel(node: u64) -> Channel {
    let config = ChannelConfig {
        pair: PAIR,
        node: NodeId(node),
        peer: NodeId(3 - node),
        boot: BootId(u128::from(node)),
        secret: [3; 32],
        seed: [node as u8; 32],
        rekey_after: Duration::from_secs(600),
        paths: 1,
    };
    let Some(hello) = Hello::new(b"hello") else {
        panic!("five bytes fit");
    };
    Channel::new(config, hello)
}

fn message(channel: &mut Channel) -> Vec<u8> {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    let length = channel.egress(NOW, 0, Generation(1), &mut buffer);
    buffer.truncate(length.unwrap_or(0));
    buffer
}

/// Changes `message` as `bytes` say: pairs of a place and what to flip there.
fn change(message: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let before = message.clone();
    for step in bytes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([step[0], step[1]]));
        if place < message.len() {
            message[place] ^= step[2];
        } else {
            message.truncate(place % (message.len() + 1));
        }
    }
    *message != before
}

/// Handshake messages: whatever is done to one, it is refused and the handshake goes on.
///
/// The first byte chooses: arbitrary bytes, a changed first message, a changed reply.
pub fn handshake(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let (mut first, mut second) = (channel(1), channel(2));
    let mut init = message(&mut first);
    if choice % 3 == 0 {
        let mut raw = rest.to_vec();
        assert!(second.open(NOW, Generation(1), &mut raw).is_err());
    }
    if choice % 3 == 1 {
        let mut changed = init.clone();
        if change(&mut changed, rest) {
            assert!(second.open(NOW, Generation(1), &mut changed).is_err());
        }
    }
    assert!(second.open(NOW, Generation(1), &mut init).is_ok());
    let mut reply = message(&mut second);
    if choice % 3 == 2 {
        let mut changed = reply.clone();
        if change(&mut changed, rest) {
            assert!(first.open(NOW, Generation(1), &mut changed).is_err());
        }
    }
    assert!(first.open(NOW, Generation(1), &mut reply).is_ok());
    assert!(first.is_established());
}

/// A stream put together from pieces. An even first byte: pieces of a real stream in any order, cut
/// and repeated at will, give exactly its entries. An odd one: arbitrary stream bytes do no harm.
pub fn reassembly(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let mut counters = StreamCounters::default();
    let mut receiver = Receiver::new(0);
    assert!(receiver.attach(1, LogPos(0), u64::MAX / 2));
    if choice % 2 == 1 {
        let mut offset = u64::MAX / 2;
        for piece in rest.chunks(1 + usize::from(choice)) {
            if receiver.accept(offset, piece, &mut counters) == Arrival::Refused {
                return;
            }
            offset += piece.len() as u64;
            while receiver.next_entry(&mut counters).is_some() {}
        }
        return;
    }
    // Entries of growing length, each filled with its number.
    let mut stream = Vec::new();
    for number in 0..64u8 {
        stream.push(number);
        stream.extend(std::iter::repeat_n(number, usize::from(number)));
    }
    let mut came = vec![false; stream.len()];
    let mut next = 0u8;
    for step in rest.chunks_exact(3) {
        let begin = usize::from(u16::from_le_bytes([step[0], step[1]])) % stream.len();
        let end = (begin + 1 + usize::from(step[2])).min(stream.len());
        let offset = u64::MAX / 2 + begin as u64;
        let arrival = receiver.accept(offset, &stream[begin..end], &mut counters);
        if arrival != Arrival::Refused {
            came[begin..end].fill(true);
        }
        while let Some((position, entry)) = receiver.next_entry(&mut counters) {
            assert_eq!(position, LogPos(u64::from(next)));
            assert_eq!(entry, vec![next; usize::from(next)]);
            next += 1;
        }
        let prefix = came.iter().take_while(|&&came| came).count() as u64;
        assert_eq!(receiver.report().received, u64::MAX / 2 + prefix);
    }
    assert_eq!(receiver.held(), LogPos(u64::from(next)));
}

/// What strangers send to the witness: arbitrary bytes, a changed request, a record from a damaged
/// disk; and every request that can be written gets an answer that keeps the record's rules.
pub fn witness(bytes: &[u8]) {
    let key = Key::new(&[8; 32]);
    assert!(open_request(&key, bytes).is_err());
    assert!(open_reply(&key, bytes).is_err());
    let known = request_pair(bytes).is_ok();
    assert!(!known || !bytes.is_empty());
    if let Ok(record) = Record::decode(bytes) {
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
    let request = request(bytes);
    let nonce = [bytes.len() as u8; NONCE_BYTES];
    let mut sealed = seal_request(&key, nonce, PAIR, &request).to_vec();
    assert_eq!(open_request(&key, &sealed), Ok((PAIR, request)));
    if change(&mut sealed, bytes) {
        assert!(open_request(&key, &sealed).is_err());
    }
    let record = Record::empty(PAIR, [NodeId(1), NodeId(2)]);
    let decision = decide(&record, &request);
    let after = decision.store.unwrap_or(record);
    assert!(after.generation >= record.generation);
    assert_eq!(decide(&after, &request).reply.id, request.id);
}

/// A request as `bytes` say.
fn request(bytes: &[u8]) -> Request {
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let member = |index: usize| Member {
        node: NodeId(u64::from(at(index) % 4)),
        boot: BootId(u128::from(at(index + 1))),
    };
    let peer = at(4).is_multiple_of(2).then(|| member(5));
    Request {
        id: RequestId(u64::from(at(0))),
        from: member(1),
        generation: Generation(u64::from(at(3) % 3)),
        ask: match at(7) % 7 {
            0 => Ask::Query,
            1 => Ask::Claim,
            2 => Ask::Admit(member(5)),
            3 => Ask::Stop,
            4 => Ask::Start { peer },
            5 => Ask::Adopt { backup: peer },
            _ => Ask::Raise,
        },
    }
}
