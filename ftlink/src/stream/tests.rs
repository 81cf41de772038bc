//! Tests of the stream's two ends: the flush rules, the ring, resuming, bad framing.

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::counters::StreamCounters;
use crate::ids::{Duration, Instant, LogPos};
use crate::wire::messages::StreamReport;
use sender::FLUSH_DELAY;

const PAYLOAD: usize = 1_000;
const RING: usize = 256 * 1024;

struct Pair {
    now: Instant,
    sender: Sender,
    receiver: Receiver,
    counters: StreamCounters,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            now: Instant(1_000_000_000),
            sender: Sender::new(RING),
            receiver: Receiver::new(RING),
            counters: StreamCounters::default(),
        };
        pair.sender.begin(LogPos(0));
        pair.sender.set_retain(Retain::Unacknowledged);
        let offer = pair.sender.offer();
        assert!(
            pair.receiver
                .attach(offer.epoch, offer.position, offer.offset)
        );
        assert_eq!(pair.report(), ReportOutcome::Attached);
        pair
    }

    fn report(&mut self) -> ReportOutcome {
        let held = self.receiver.held();
        self.sender
            .on_report(self.now, self.receiver.report(), held, LogPos(0))
    }

    fn append(&mut self, bytes: usize) {
        let entry = vec![7; bytes];
        let appended = self
            .sender
            .append(self.now, &entry, &mut self.counters)
            .is_ok();
        assert!(appended);
    }

    /// What goes out now.
    fn emit(&mut self) -> Option<(Segment, Vec<u8>)> {
        let mut target = [0; PAYLOAD];
        let ready = self.sender.ready_at(PAYLOAD) <= self.now;
        let segment = self.sender.emit(self.now, &mut target, &mut self.counters);
        assert_eq!(ready, segment.is_some());
        let segment = segment?;
        Some((segment, target[..segment.range.bytes() as usize].to_vec()))
    }

    fn deliver(&mut self, (segment, bytes): &(Segment, Vec<u8>)) -> Arrival {
        self.receiver
            .accept(segment.range.start, bytes, &mut self.counters)
    }

    fn wait(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
    }
}

#[test]
fn a_flush_goes_out_at_once_when_none_is_in_flight() {
    let mut pair = Pair::new();
    pair.append(10);
    assert!(pair.emit().is_none());
    pair.sender.flush(pair.now);
    let (segment, _) = pair.emit().unwrap();
    assert!(segment.ack_now);
    assert_eq!(segment.range.bytes(), 11);
}

#[test]
fn a_flush_waits_for_the_acknowledgement_of_the_one_before() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.sender.flush(pair.now);
    let first = pair.emit().unwrap();
    pair.append(20);
    pair.sender.flush(pair.now);
    assert!(pair.emit().is_none());
    pair.deliver(&first);
    pair.report();
    let (second, _) = pair.emit().unwrap();
    assert_eq!(second.range.bytes(), 21);
}

#[test]
fn a_flush_waits_at_most_a_millisecond() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.sender.flush(pair.now);
    pair.emit().unwrap();
    pair.append(20);
    pair.sender.flush(pair.now);
    pair.wait(Duration(FLUSH_DELAY.0 - 1));
    assert!(pair.emit().is_none());
    pair.wait(Duration(1));
    assert!(pair.emit().unwrap().0.ack_now);
}

#[test]
fn a_full_datagram_waits_for_nothing_and_a_flush_of_several_goes_out_whole() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.sender.flush(pair.now);
    pair.emit().unwrap();
    pair.append(PAYLOAD);
    assert_eq!(pair.emit().unwrap().0.range.bytes(), PAYLOAD as u64);
    assert!(pair.emit().is_none());
    let mut pair = Pair::new();
    pair.append(2 * PAYLOAD + 50);
    pair.sender.flush(pair.now);
    let sizes: Vec<u64> = core::iter::from_fn(|| pair.emit())
        .map(|(segment, _)| segment.range.bytes())
        .collect();
    assert_eq!(sizes, [1_000, 1_000, 52]);
}

#[test]
fn what_nobody_flushes_goes_out_after_a_millisecond() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.wait(Duration(FLUSH_DELAY.0 / 2));
    pair.append(10);
    assert!(pair.emit().is_none());
    pair.wait(Duration(FLUSH_DELAY.0 / 2));
    assert_eq!(pair.emit().unwrap().0.range.bytes(), 22);
}

#[test]
fn the_oldest_flush_is_known_until_it_is_acknowledged() {
    let mut pair = Pair::new();
    assert_eq!(pair.sender.oldest_flush(), Instant::NEVER);
    let first = pair.now;
    pair.append(10);
    pair.sender.flush(pair.now);
    let one = pair.emit().unwrap();
    pair.wait(FLUSH_DELAY);
    let second = pair.now;
    pair.append(10);
    pair.sender.flush(pair.now);
    assert_eq!(pair.sender.oldest_flush(), first);
    pair.deliver(&one);
    pair.report();
    assert_eq!(pair.sender.oldest_flush(), second);
    let two = pair.emit().unwrap();
    pair.deliver(&two);
    pair.report();
    assert_eq!(pair.sender.oldest_flush(), Instant::NEVER);
}

#[test]
fn lost_pieces_go_first_and_only_as_far_as_they_are_missing() {
    let mut pair = Pair::new();
    pair.append(3 * PAYLOAD);
    pair.sender.flush(pair.now);
    let pieces: Vec<_> = core::iter::from_fn(|| pair.emit()).collect();
    assert_eq!(pair.deliver(&pieces[1]), Arrival::OutOfOrder);
    assert_eq!(pair.deliver(&pieces[1]), Arrival::Duplicate);
    pair.sender.on_lost(pieces[0].0.range);
    pair.append(10);
    let again = pair.emit().unwrap();
    assert!(again.0.again);
    assert_eq!(again.0.range, pieces[0].0.range);
    assert_eq!(pair.receiver.held(), LogPos(0));
    pair.deliver(&again);
    // Acknowledged meanwhile: nothing of it goes out again.
    pair.report();
    pair.sender.on_lost(pieces[1].0.range);
    assert_eq!(pair.emit(), None);
    for piece in &pieces[2..] {
        pair.deliver(piece);
    }
    assert_eq!(pair.receiver.held(), LogPos(1));
}

#[test]
fn a_full_ring_refuses_or_forgets_as_told() {
    let mut pair = Pair::new();
    let entry = vec![0; 60_000];
    for _ in 0..4 {
        pair.append(60_000);
    }
    let full = pair.sender.append(pair.now, &entry, &mut pair.counters);
    assert_eq!(full, Err(AppendError::Full));
    assert_eq!(pair.sender.full_since(), Some(pair.now));
    assert_eq!(pair.sender.position(), LogPos(4));
    pair.sender.set_retain(Retain::Latest);
    pair.append(60_000);
    assert_eq!(pair.sender.full_since(), None);
    // The peer has fallen out of the ring.
    assert!(!pair.sender.is_attached());
    assert_eq!(pair.report(), ReportOutcome::OutOfRing);
    let large = vec![0; MAX_ENTRY_BYTES + 1];
    let too_large = pair.sender.append(pair.now, &large, &mut pair.counters);
    assert_eq!(too_large, Err(AppendError::TooLarge));
}

#[test]
fn a_peer_that_comes_back_goes_on_where_it_stopped() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.sender.flush(pair.now);
    let one = pair.emit().unwrap();
    pair.deliver(&one);
    pair.sender.detach();
    pair.append(20);
    pair.append(30);
    assert!(pair.emit().is_none());
    assert_eq!(pair.report(), ReportOutcome::Attached);
    let (segment, _) = pair.emit().unwrap();
    assert_eq!((segment.range.start, segment.range.end), (11, 63));
    pair.sender.forget_peer();
    assert_eq!(pair.sender.held(), LogPos(0));
}

#[test]
fn reports_on_what_was_never_sent_are_impossible() {
    let mut pair = Pair::new();
    pair.append(10);
    let report = |received| StreamReport {
        epoch: 1,
        received,
        limit: 1_000,
    };
    let now = pair.now;
    let mut tell = |report, held| pair.sender.on_report(now, report, held, LogPos(0));
    assert_eq!(tell(report(5), LogPos(0)), ReportOutcome::Impossible);
    assert_eq!(tell(report(0), LogPos(2)), ReportOutcome::Impossible);
    let other = StreamReport {
        epoch: 2,
        ..report(0)
    };
    assert_eq!(tell(other, LogPos(0)), ReportOutcome::NotOurs);
}

#[test]
fn the_receiver_refuses_what_it_has_no_room_or_no_stream_for() {
    let mut counters = StreamCounters::default();
    let mut receiver = Receiver::new(RING);
    assert_eq!(receiver.accept(0, b"x", &mut counters), Arrival::Refused);
    assert_eq!(counters.data_unattached, 1);
    assert!(!receiver.attach(1, LogPos(5), 0));
    assert!(receiver.attach(1, LogPos(0), 0));
    let limit = receiver.limit();
    assert_eq!(
        receiver.accept(limit, b"x", &mut counters),
        Arrival::Refused
    );
    assert_eq!(counters.data_beyond_limit, 1);
    for piece in 0..receiver::MAX_PIECES as u64 {
        let offset = 10 + 2 * piece;
        assert_eq!(
            receiver.accept(offset, b"x", &mut counters),
            Arrival::OutOfOrder
        );
    }
    assert_eq!(
        receiver.accept(9_000, b"x", &mut counters),
        Arrival::Refused
    );
    assert_eq!(counters.data_too_scattered, 1);
}

#[test]
fn bad_framing_stops_the_stream_and_loses_nothing_before_it() {
    let mut counters = StreamCounters::default();
    let mut receiver = Receiver::new(RING);
    assert!(receiver.attach(1, LogPos(0), 0));
    receiver.accept(0, &[2, 8, 9, 0xff, 0xff, 0xff], &mut counters);
    assert!(receiver.is_broken());
    assert_eq!(counters.framing_broken, 1);
    assert_eq!(receiver.held(), LogPos(1));
    assert_eq!(
        receiver.next_entry(&mut counters),
        Some((LogPos(0), &[8, 9][..]))
    );
    assert_eq!(receiver.accept(6, &[0], &mut counters), Arrival::Refused);
}

#[test]
fn entries_of_every_size_cross_the_ring_end() {
    let mut pair = Pair::new();
    for round in 0..40usize {
        let bytes = round * 1_637 % (MAX_ENTRY_BYTES + 1);
        pair.append(bytes);
        pair.sender.flush(pair.now);
        while let Some(piece) = pair.emit() {
            pair.deliver(&piece);
        }
        let (position, entry) = pair.receiver.next_entry(&mut pair.counters).unwrap();
        assert_eq!(position, LogPos(round as u64));
        assert_eq!((entry.len(), entry.iter().all(|&b| b == 7)), (bytes, true));
        pair.report();
    }
}
