//! The receiving end of a stream: puts datagrams' bytes in order and gives entries out whole.

use alloc::boxed::Box;
use alloc::vec;

use super::framing::{self, MAX_ENTRY_BYTES};
use super::ranges::{Range, RangeSet};
use super::ring::ByteRing;
use crate::counters::StreamCounters;
use crate::ids::LogPos;
use crate::wire::messages::StreamReport;

/// Pieces of the stream beyond a hole that are remembered; a datagram that would add one more is
/// dropped and comes again.
pub const MAX_PIECES: usize = 256;

/// What became of a data datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It brought the next bytes.
    InOrder,
    /// It brought bytes beyond a hole.
    OutOfOrder,
    /// It brought nothing new.
    Duplicate,
    /// It is refused and must not be acknowledged.
    Refused,
}

/// The receiving end.
pub struct Receiver {
    ring: ByteRing,
    pieces: RangeSet,
    /// The sender's stream we are attached to; 0 = none.
    epoch: u32,
    /// Everything below has arrived.
    received: u64,
    /// Where the first entry begins that has not arrived whole.
    whole: u64,
    /// Where the next entry to give out begins.
    consumed: u64,
    /// Position of the first entry that has not arrived whole.
    held: LogPos,
    /// Position of the next entry to give out.
    next: LogPos,
    broken: bool,
    /// An entry that wraps around the ring's end is put together here.
    scratch: Box<[u8]>,
}

impl Receiver {
    /// A receiver with a ring of `ring_bytes`, attached to nothing, whose first entry will be
    /// position 0.
    #[must_use]
    pub fn new(ring_bytes: usize) -> Self {
        Self {
            ring: ByteRing::new(ring_bytes.max(4 * MAX_ENTRY_BYTES)),
            pieces: RangeSet::new(MAX_PIECES),
            epoch: 0,
            received: 0,
            whole: 0,
            consumed: 0,
            held: LogPos(0),
            next: LogPos(0),
            broken: false,
            scratch: vec![0; MAX_ENTRY_BYTES].into_boxed_slice(),
        }
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.ring.capacity() + self.scratch.len() + MAX_PIECES * size_of::<Range>()
    }

    /// The sender's stream it is attached to; 0 = none.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// First position not held whole.
    #[must_use]
    pub fn held(&self) -> LogPos {
        self.held
    }

    /// Position of the next entry [`next_entry`](Self::next_entry) gives.
    #[must_use]
    pub fn next_position(&self) -> LogPos {
        self.next
    }

    /// The sender's framing was invalid; the stream stands still until it is attached anew.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Its ring has no room for another byte.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.epoch != 0 && self.received >= self.limit()
    }

    /// Attaches to the stream that begins with entry `position` at `offset`. Possible when everything
    /// held has been given out and the stream begins at the position needed next.
    pub fn attach(&mut self, epoch: u32, position: LogPos, offset: u64) -> bool {
        if epoch == 0 || self.next != self.held || position != self.next {
            return false;
        }
        self.epoch = epoch;
        self.received = offset;
        self.whole = offset;
        self.consumed = offset;
        self.broken = false;
        self.pieces.clear();
        true
    }

    /// Leaves the stream. What is held whole can still be read; pieces are forgotten.
    pub fn detach(&mut self) {
        self.epoch = 0;
        self.pieces.clear();
        self.received = self.whole;
    }

    /// The position needed next becomes `position`, after state transfer. What is held is forgotten.
    pub fn expect(&mut self, position: LogPos) {
        self.detach();
        self.consumed = self.whole;
        self.held = position;
        self.next = position;
    }

    /// One past the last offset there is room for.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.consumed.saturating_add(self.ring.capacity() as u64)
    }

    /// What to tell the sender.
    #[must_use]
    pub fn report(&self) -> StreamReport {
        StreamReport {
            epoch: self.epoch,
            received: self.received,
            limit: self.limit(),
        }
    }

    /// Takes a data datagram's bytes.
    pub fn accept(&mut self, offset: u64, bytes: &[u8], counters: &mut StreamCounters) -> Arrival {
        if self.epoch == 0 || self.broken {
            counters.data_unattached += 1;
            return Arrival::Refused;
        }
        let range = Range {
            start: offset.max(self.received),
            end: offset.saturating_add(bytes.len() as u64),
        };
        if range.start >= range.end || self.pieces.covers(range) {
            counters.data_duplicate += 1;
            return Arrival::Duplicate;
        }
        if range.end > self.limit() {
            counters.data_beyond_limit += 1;
            return Arrival::Refused;
        }
        let in_order = range.start == self.received;
        if !in_order && self.pieces.insert(range).is_err() {
            counters.data_too_scattered += 1;
            return Arrival::Refused;
        }
        self.ring
            .write(range.start, &bytes[(range.start - offset) as usize..]);
        counters.data_accepted += 1;
        if !in_order {
            counters.data_out_of_order += 1;
            return Arrival::OutOfOrder;
        }
        self.received = range.end;
        self.pieces.remove_below(self.received);
        if let Some(first) = self.pieces.first()
            && first.start == self.received
        {
            self.received = first.end;
            self.pieces.remove_below(first.end);
        }
        self.count_whole_entries(counters);
        Arrival::InOrder
    }

    fn count_whole_entries(&mut self, counters: &mut StreamCounters) {
        loop {
            match self.entry_at(self.whole) {
                Ok(Some((_, end))) => {
                    self.whole = end;
                    self.held = self.held.next();
                }
                Ok(None) => return,
                Err(_) => {
                    self.broken = true;
                    counters.framing_broken += 1;
                    return;
                }
            }
        }
    }

    /// Where the entry's bytes begin and end, if it has arrived whole.
    fn entry_at(&self, offset: u64) -> Result<Option<(u64, u64)>, framing::BadLength> {
        let available = self.received - offset;
        let length = framing::read_length(available, |index| self.ring.byte(offset + index))?;
        Ok(length.and_then(|(entry, used)| {
            let start = offset + used as u64;
            let end = start + entry as u64;
            (end <= self.received).then_some((start, end))
        }))
    }

    /// The next whole entry, given out once. Its room is free with the next call.
    pub fn next_entry(&mut self, counters: &mut StreamCounters) -> Option<(LogPos, &[u8])> {
        if self.consumed >= self.whole {
            return None;
        }
        let Ok(Some((start, end))) = self.entry_at(self.consumed) else {
            return None;
        };
        let position = self.next;
        self.next = self.next.next();
        self.consumed = end;
        counters.entries_delivered += 1;
        let length = (end - start) as usize;
        let (first, second) = self.ring.slices(start, length);
        if second.is_empty() {
            return Some((position, first));
        }
        let target = &mut self.scratch[..length];
        target[..first.len()].copy_from_slice(first);
        target[first.len()..].copy_from_slice(second);
        Some((position, target))
    }
}
