//! Tests of the secure channel: two channels, datagrams carried by hand.

use super::*;
use crate::wire::MAX_DATAGRAM_BYTES;
use alloc::vec;
use alloc::vec::Vec;

const SECRET: PairSecret = [5; 32];
const REKEY: Duration = Duration::from_secs(60);

fn channel(node: u64, boot: u128) -> Channel {
    channel_with(node, boot, SECRET, PairId(7))
}

fn channel_with(node: u64, boot: u128, secret: PairSecret, pair: PairId) -> Channel {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&boot.to_le_bytes());
    let config = ChannelConfig {
        pair,
        node: NodeId(node),
        peer: NodeId(3 - node),
        boot: BootId(boot),
        secret,
        seed,
        rekey_after: REKEY,
        paths: 1,
    };
    Channel::new(config, Hello::new(b"hello").unwrap())
}

fn handshake_of(channel: &mut Channel, now: Instant) -> Vec<u8> {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    let length = channel.egress(now, 0, Generation(1), &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn seal(channel: &mut Channel, body: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADER_BYTES + body.len() + TAG_BYTES];
    datagram[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
    channel
        .seal(Kind::ACK, 0, 0, Generation(1), &mut datagram, body.len())
        .unwrap();
    datagram
}

fn open(channel: &mut Channel, now: Instant, datagram: &[u8]) -> Result<(Vec<u8>, bool), Refused> {
    match channel.open(now, Generation(1), &mut Vec::from(datagram))? {
        Opened::Body { body, new_boot, .. } => Ok((Vec::from(body), new_boot)),
        Opened::Established { new_boot } => Ok((vec![], new_boot)),
        Opened::Answering => Ok((vec![], false)),
    }
}

/// `initiator` opens a session with `responder`, confirmed by one datagram.
fn establish(initiator: &mut Channel, responder: &mut Channel, now: Instant) {
    let init = handshake_of(initiator, now);
    open(responder, now, &init).unwrap();
    let reply = handshake_of(responder, now);
    open(initiator, now, &reply).unwrap();
    let confirm = seal(initiator, b"confirm");
    open(responder, now, &confirm).unwrap();
}

fn pair() -> (Channel, Channel) {
    let (mut a, mut b) = (channel(1, 10), channel(2, 20));
    establish(&mut a, &mut b, Instant(0));
    (a, b)
}

#[test]
fn handshake_gives_a_session_that_knows_the_peer() {
    let (mut a, mut b) = pair();
    assert_eq!(a.peer_boot(), Some(BootId(20)));
    assert_eq!(b.peer_boot(), Some(BootId(10)));
    assert_eq!(a.peer_hello(), Some(&b"hello"[..]));
    assert_eq!(a.peer_generation(), Some(Generation(1)));
    let datagram = seal(&mut b, b"back");
    assert_eq!(
        open(&mut a, Instant(1), &datagram),
        Ok((Vec::from(b"back"), false))
    );
    assert_eq!(open(&mut a, Instant(1), &datagram), Err(Refused::Replayed));
    assert_eq!(a.counters().replayed, 1);
}

#[test]
fn another_secret_pair_or_node_is_refused() {
    for mut stranger in [
        channel_with(1, 10, [6; 32], PairId(7)),
        channel_with(1, 10, SECRET, PairId(8)),
    ] {
        let mut b = channel(2, 20);
        let init = handshake_of(&mut stranger, Instant(0));
        assert_eq!(open(&mut b, Instant(0), &init), Err(Refused::Handshake));
        assert_eq!(b.counters().handshakes_refused, 1);
        assert!(b.pending.is_none());
    }
    // Reflection: its own first message.
    let mut b = channel(2, 20);
    let own = handshake_of(&mut b, Instant(0));
    assert_eq!(open(&mut b, Instant(0), &own), Err(Refused::Handshake));
}

#[test]
fn every_flipped_bit_of_a_handshake_is_refused_and_the_handshake_survives_it() {
    let (mut a, mut b) = (channel(1, 10), channel(2, 20));
    let init = handshake_of(&mut a, Instant(0));
    for bit in (0..init.len() * 8).step_by(7) {
        let mut bad = init.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&mut b, Instant(0), &bad).is_err(), "bit {bit}");
        assert!(b.pending.is_none() && b.reply.is_none());
    }
    open(&mut b, Instant(0), &init).unwrap();
    let reply = handshake_of(&mut b, Instant(0));
    for byte in [0, 1, 2, 3, 4, 8, 16, 30, 60, 300, reply.len() - 1] {
        let mut bad = reply.clone();
        bad[byte] ^= 1;
        assert!(open(&mut a, Instant(0), &bad).is_err(), "byte {byte}");
        assert!(!a.is_established());
    }
    open(&mut a, Instant(0), &reply).unwrap();
    assert!(a.is_established());
}

#[test]
fn a_repeated_first_message_is_answered_once_and_never_replaces_the_session() {
    let (mut a, mut b) = (channel(1, 10), channel(2, 20));
    let init = handshake_of(&mut a, Instant(0));
    open(&mut b, Instant(0), &init).unwrap();
    assert_eq!(open(&mut b, Instant(0), &init), Err(Refused::Handshake));
    let reply = handshake_of(&mut b, Instant(0));
    open(&mut a, Instant(0), &reply).unwrap();
    let confirm = seal(&mut a, b"x");
    open(&mut b, Instant(0), &confirm).unwrap();
    assert_eq!(open(&mut b, Instant(1), &init), Err(Refused::Handshake));
    let data = seal(&mut b, b"y");
    assert!(open(&mut a, Instant(1), &data).is_ok());
}

#[test]
fn unanswered_handshakes_are_repeated_with_growing_waits() {
    let mut a = channel(1, 10);
    let mut sent = vec![];
    let mut now = Instant(0);
    for _ in 0..6 {
        now = now.max(a.poll_at());
        sent.push(now.0 / 1_000_000);
        handshake_of(&mut a, now);
    }
    assert_eq!(sent, [0, 50, 150, 350, 750, 1_150]);
}

#[test]
fn keys_change_without_refusing_what_is_under_way() {
    let (mut a, mut b) = pair();
    let late_from_a = seal(&mut a, b"late");
    let late_from_b = seal(&mut b, b"late");
    let now = Instant(0).after(REKEY);
    assert!(a.poll_at() <= now);
    assert_eq!(b.poll_at(), Instant::NEVER);
    let init = handshake_of(&mut a, now);
    open(&mut b, now, &init).unwrap();
    // Between the messages both still speak under the old keys.
    let between = seal(&mut b, b"between");
    let reply = handshake_of(&mut b, now);
    open(&mut a, now, &reply).unwrap();
    assert!(open(&mut a, now, &between).is_ok());
    let confirm = seal(&mut a, b"new");
    assert_eq!(open(&mut b, now, &confirm), Ok((Vec::from(b"new"), false)));
    assert!(open(&mut b, now, &late_from_a).is_ok());
    assert!(open(&mut a, now, &late_from_b).is_ok());
    let very_late = seal(&mut b, b"later");
    assert!(open(&mut a, now, &very_late).is_ok());
    assert_eq!(a.counters().sessions, 2);
    // After the grace the old keys open nothing.
    let (mut c, mut d) = pair();
    let old = seal(&mut c, b"old");
    establish(&mut c, &mut d, now);
    let after = now.after(PREVIOUS_SESSION_GRACE).after(Duration(1));
    assert_eq!(open(&mut d, after, &old), Err(Refused::UnknownSession));
}

#[test]
fn crossing_handshakes_settle_on_one_session() {
    let (mut a, mut b) = (channel(1, 10), channel(2, 20));
    let from_a = handshake_of(&mut a, Instant(0));
    let from_b = handshake_of(&mut b, Instant(0));
    open(&mut a, Instant(0), &from_b).unwrap();
    open(&mut b, Instant(0), &from_a).unwrap();
    let reply_a = handshake_of(&mut a, Instant(0));
    let reply_b = handshake_of(&mut b, Instant(0));
    open(&mut a, Instant(0), &reply_b).unwrap();
    open(&mut b, Instant(0), &reply_a).unwrap();
    for step in 0..4 {
        let (to_b, to_a) = (seal(&mut a, b"a"), seal(&mut b, b"b"));
        assert!(open(&mut b, Instant(step), &to_b).is_ok());
        assert!(open(&mut a, Instant(step), &to_a).is_ok());
    }
    let id = |channel: &Channel| channel.current.as_ref().unwrap().id;
    assert_eq!(id(&a), id(&b));
    assert_eq!(id(&a) & HIGHER_NODE_SESSION, 0);
}

#[test]
fn a_new_boot_replaces_the_old_one_for_good() {
    let (mut a, mut old) = pair();
    let old_data = seal(&mut old, b"old");
    let mut new = channel(2, 21);
    let init = handshake_of(&mut new, Instant(5));
    open(&mut a, Instant(5), &init).unwrap();
    let reply = handshake_of(&mut a, Instant(5));
    // Not confirmed: the old boot is still the peer.
    assert_eq!(a.peer_boot(), Some(BootId(20)));
    open(&mut new, Instant(5), &reply).unwrap();
    let confirm = seal(&mut new, b"new");
    assert_eq!(
        open(&mut a, Instant(6), &confirm),
        Ok((Vec::from(b"new"), true))
    );
    assert_eq!(a.peer_boot(), Some(BootId(21)));
    assert_eq!(
        open(&mut a, Instant(6), &old_data),
        Err(Refused::UnknownSession)
    );
    old.revive(Instant(7));
    let init = handshake_of(&mut old, Instant(7));
    assert_eq!(open(&mut a, Instant(7), &init), Err(Refused::Handshake));
}

#[test]
fn reviving_stops_when_the_peer_is_heard() {
    let (mut a, mut b) = pair();
    b.revive(Instant(100));
    assert_eq!(b.poll_at(), Instant(100));
    let data = seal(&mut a, b"here");
    open(&mut b, Instant(101), &data).unwrap();
    b.settle();
    assert_eq!(b.poll_at(), Instant::NEVER);
}
