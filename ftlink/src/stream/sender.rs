//! The sending end of a stream: keeps entries in a ring until the peer has them, decides when they go
//! out (the flush rules) and sends again what was lost.

use alloc::collections::VecDeque;

use super::framing::{self, MAX_ENTRY_BYTES, MAX_LENGTH_BYTES};
use super::ranges::{Range, RangeSet};
use super::ring::ByteRing;
use crate::counters::StreamCounters;
use crate::histogram::Histogram;
use crate::ids::{Duration, Instant, LogPos};
use crate::wire::messages::{OfferRepr, StreamReport};

/// Bytes wait for a full datagram, or a flush for the one before it, at most this long.
pub const FLUSH_DELAY: Duration = Duration::from_millis(1);
/// Separate ranges kept for sending again; beyond that, neighbours are joined over what lies between.
pub const MAX_LOST_RANGES: usize = 512;

/// Unacknowledged flushes that are told apart; later ones count as part of the last.
pub const MAX_FLUSHES: usize = 64;

/// What happens when the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// The writer waits for the peer.
    Unacknowledged,
    /// The oldest entries are overwritten: nobody depends on them.
    Latest,
}

/// Why an entry was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The ring is full of what the peer has not acknowledged: the guest waits.
    Full,
    /// The entry is larger than [`MAX_ENTRY_BYTES`].
    TooLarge,
}

/// A piece of the stream that is being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its offsets.
    pub range: Range,
    /// The peer is to acknowledge it at once.
    pub ack_now: bool,
    /// It was sent before.
    pub again: bool,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// Nothing, or a little more is acknowledged.
    Taken,
    /// The peer attached, or resumed where it had stopped; what was in flight is void.
    Attached,
    /// The peer needs bytes the ring no longer has.
    OutOfRing,
    /// The report is about another stream.
    NotOurs,
    /// It acknowledges what was never sent.
    Impossible,
}

/// The sending end.
pub struct Sender {
    ring: ByteRing,
    retain: Retain,
    /// Names the beginning offered to the peer; 0 = nothing offered.
    epoch: u32,
    offer_position: LogPos,
    offer_offset: u64,
    attached: bool,
    /// Oldest offset still in the ring.
    tail: u64,
    /// The peer has everything below.
    acknowledged: u64,
    /// Everything below was sent at least once.
    sent: u64,
    /// Where the next entry goes.
    head: u64,
    /// The peer has room below.
    limit: u64,
    lost: RangeSet,
    /// Position of the next entry.
    position: LogPos,
    /// The peer holds every entry below.
    held: LogPos,
    /// The peer has verified every entry below.
    verified: LogPos,
    /// Everything below is to go out without waiting for more.
    flush: u64,
    /// When the oldest flush that has not gone out was asked for.
    flush_since: Instant,
    /// End of the flush that was begun last: everything below goes out at once, and it is in flight
    /// until this is acknowledged.
    flush_begun: u64,
    /// Flushes the peer has not acknowledged: their ends, and when they were asked for.
    flushes: VecDeque<(u64, Instant)>,
    /// How long flushes waited for their acknowledgement, in microseconds.
    waits: Histogram,
    /// When the oldest unsent byte was appended.
    unsent_since: Instant,
    /// Since when appending fails.
    full_since: Option<Instant>,
}

impl Sender {
    /// A sender with a ring of `ring_bytes` that offers nothing.
    #[must_use]
    pub fn new(ring_bytes: usize) -> Self {
        Self {
            ring: ByteRing::new(ring_bytes.max(4 * MAX_ENTRY_BYTES)),
            retain: Retain::Latest,
            epoch: 0,
            offer_position: LogPos(0),
            offer_offset: 0,
            attached: false,
            tail: 0,
            acknowledged: 0,
            sent: 0,
            head: 0,
            limit: 0,
            lost: RangeSet::new(MAX_LOST_RANGES),
            position: LogPos(0),
            held: LogPos(0),
            verified: LogPos(0),
            flush: 0,
            flush_since: Instant::NEVER,
            flush_begun: 0,
            flushes: VecDeque::with_capacity(MAX_FLUSHES),
            waits: Histogram::default(),
            unsent_since: Instant::NEVER,
            full_since: None,
        }
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.ring.capacity() + MAX_LOST_RANGES * size_of::<Range>()
    }

    /// Begins a stream whose next entry is `position`, offered to the peer from there on. Offsets go
    /// on, so that no datagram of an earlier beginning can be mistaken for one of this.
    pub fn begin(&mut self, position: LogPos) {
        self.epoch += 1;
        self.offer_position = position;
        self.offer_offset = self.head;
        self.position = position;
        self.tail = self.head;
        self.forget_peer();
        self.acknowledged = self.head;
        self.sent = self.head;
        self.flush = self.head;
        self.flush_begun = self.head;
        self.flushes.clear();
        self.full_since = None;
    }

    /// Stops sending to the peer, until a report shows where it stands.
    pub fn detach(&mut self) {
        self.attached = false;
        self.lost.clear();
        self.limit = 0;
    }

    /// The next entries are offered to the peer as a new beginning: what came before reaches it by
    /// state transfer. What waits for the old beginning's acknowledgements waits no more for them.
    pub fn offer_here(&mut self) {
        self.begin(self.position);
    }

    /// The peer has a new boot: nothing is known to be held any more.
    pub fn forget_peer(&mut self) {
        self.detach();
        self.held = LogPos(0);
        self.verified = LogPos(0);
    }

    /// The oldest offset that can still be sent.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// What happens when the ring is full.
    pub fn set_retain(&mut self, retain: Retain) {
        self.retain = retain;
    }

    /// The beginning offered to the peer.
    #[must_use]
    pub fn offer(&self) -> OfferRepr {
        OfferRepr {
            epoch: self.epoch,
            position: self.offer_position,
            offset: self.offer_offset,
        }
    }

    /// The peer reports on this stream.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Position of the next entry to be appended.
    #[must_use]
    pub fn position(&self) -> LogPos {
        self.position
    }

    /// The peer holds every entry below, hole-free.
    #[must_use]
    pub fn held(&self) -> LogPos {
        self.held
    }

    /// The peer has executed every entry below with equal digests.
    #[must_use]
    pub fn verified(&self) -> LogPos {
        self.verified
    }

    /// Stream bytes the peer does not have yet.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> u64 {
        self.head - self.acknowledged
    }

    /// How long flushes waited for their acknowledgement, in microseconds.
    #[must_use]
    pub fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// Forgets how long flushes waited.
    pub fn reset_waits(&mut self) {
        self.waits.reset();
    }

    /// Since when the oldest flushed entry waits for its acknowledgement; `NEVER` if none does.
    #[must_use]
    pub fn oldest_flush(&self) -> Instant {
        self.flushes
            .front()
            .map_or(Instant::NEVER, |&(_, asked)| asked)
    }

    /// Since when appending has been refused for want of room.
    #[must_use]
    pub fn full_since(&self) -> Option<Instant> {
        self.full_since
    }

    /// Appends an entry; returns its position.
    ///
    /// # Errors
    ///
    /// No room, or too large; nothing has changed.
    pub fn append(
        &mut self,
        now: Instant,
        entry: &[u8],
        counters: &mut StreamCounters,
    ) -> Result<LogPos, AppendError> {
        if entry.len() > MAX_ENTRY_BYTES {
            return Err(AppendError::TooLarge);
        }
        let mut length = [0; MAX_LENGTH_BYTES];
        let used = framing::write_length(entry.len(), &mut length);
        self.make_room((used + entry.len()) as u64)
            .inspect_err(|_| {
                counters.append_full += 1;
                self.full_since.get_or_insert(now);
            })?;
        self.full_since = None;
        if self.head == self.sent {
            self.unsent_since = now;
        }
        self.ring.write(self.head, &length[..used]);
        self.head += used as u64;
        self.ring.write(self.head, entry);
        self.head += entry.len() as u64;
        let position = self.position;
        self.position = position.next();
        counters.entries_appended += 1;
        Ok(position)
    }

    fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        let capacity = self.ring.capacity() as u64;
        let needed_tail = (self.head + bytes).saturating_sub(capacity);
        if self.tail >= needed_tail {
            return Ok(());
        }
        if self.retain == Retain::Unacknowledged {
            if self.acknowledged < needed_tail {
                return Err(AppendError::Full);
            }
            // What is acknowledged stays as long as there is room, for a peer that resumes.
            self.tail = needed_tail;
            return Ok(());
        }
        self.tail = needed_tail;
        if self.acknowledged < self.tail {
            // Overtaken: a peer that is attached has fallen out of the ring.
            self.detach();
            self.acknowledged = self.tail;
            self.sent = self.sent.max(self.tail);
        }
        Ok(())
    }

    /// Everything appended so far is to go out soon: outputs wait for it.
    pub fn flush(&mut self, now: Instant) {
        if self.head == self.flush {
            return;
        }
        if self.flush <= self.sent {
            self.flush_since = now;
        }
        self.flush = self.head;
        if self.flushes.len() < MAX_FLUSHES {
            self.flushes.push_back((self.flush, now));
        } else if let Some((end, _)) = self.flushes.back_mut() {
            *end = self.flush;
        }
    }

    /// When something new is to be sent, given room for `payload` bytes a datagram.
    #[must_use]
    pub fn ready_at(&self, payload: usize) -> Instant {
        if !self.attached {
            return Instant::NEVER;
        }
        if !self.lost.is_empty() {
            return Instant(0);
        }
        let unsent = self.head - self.sent;
        if unsent == 0 || self.sent >= self.limit {
            return Instant::NEVER;
        }
        if unsent >= payload as u64 {
            return Instant(0);
        }
        let delayed = self.unsent_since.after(FLUSH_DELAY);
        if self.flush <= self.sent {
            return delayed;
        }
        if self.sent < self.flush_begun || self.acknowledged >= self.flush_begun {
            return Instant(0);
        }
        delayed.min(self.flush_since.after(FLUSH_DELAY))
    }

    /// A flush may begin when none is in flight, or when it has waited long enough.
    fn may_begin_flush(&self, now: Instant) -> bool {
        self.acknowledged >= self.flush_begun || self.flush_since.after(FLUSH_DELAY) <= now
    }

    /// Writes the next piece into `target`, at most its length: first what was lost, then what is
    /// ready.
    pub fn emit(
        &mut self,
        now: Instant,
        target: &mut [u8],
        counters: &mut StreamCounters,
    ) -> Option<Segment> {
        if !self.attached {
            return None;
        }
        if let Some(range) = self.lost.take_first(target.len() as u64) {
            self.ring
                .read(range.start, &mut target[..range.bytes() as usize]);
            counters.data_retransmitted += 1;
            counters.bytes_retransmitted += range.bytes();
            return Some(Segment {
                range,
                ack_now: true,
                again: true,
            });
        }
        if self.ready_at(target.len()) > now {
            return None;
        }
        let bytes = (self.head - self.sent)
            .min(self.limit - self.sent)
            .min(target.len() as u64);
        let range = Range {
            start: self.sent,
            end: self.sent + bytes,
        };
        self.ring.read(range.start, &mut target[..bytes as usize]);
        self.sent = range.end;
        self.unsent_since = now;
        let passes_flush = self.flush <= range.end;
        if self.flush > range.start && (passes_flush || self.may_begin_flush(now)) {
            self.flush_begun = self.flush;
        }
        let ends_flush = range.start < self.flush_begun && self.flush_begun <= range.end;
        counters.data_sent += 1;
        counters.bytes_sent += bytes;
        Some(Segment {
            range,
            ack_now: ends_flush || self.sent == self.limit,
            again: false,
        })
    }

    /// A piece was lost: it goes out again, less what has been acknowledged since.
    pub fn on_lost(&mut self, range: Range) {
        let start = range.start.max(self.acknowledged);
        if self.attached && start < range.end {
            self.lost.insert_or_widen(Range {
                start,
                end: range.end,
            });
        }
    }

    /// A report of the peer on this stream.
    pub fn on_report(
        &mut self,
        now: Instant,
        report: StreamReport,
        held: LogPos,
        verified: LogPos,
    ) -> ReportOutcome {
        if self.epoch == 0 || report.epoch != self.epoch {
            return ReportOutcome::NotOurs;
        }
        if report.received > self.head || held > self.position {
            return ReportOutcome::Impossible;
        }
        if !self.attached {
            return self.on_first_report(now, report, held, verified);
        }
        if report.received > self.sent {
            return ReportOutcome::Impossible;
        }
        self.limit = self.limit.max(report.limit);
        self.held = self.held.max(held);
        self.verified = self.verified.max(verified);
        if report.received > self.acknowledged {
            self.acknowledged = report.received;
            self.lost.remove_below(self.acknowledged);
            while let Some((_, flushed)) = self
                .flushes
                .pop_front_if(|&mut (end, _)| end <= report.received)
            {
                self.waits.record(now.since(flushed).0 / 1_000);
            }
        }
        ReportOutcome::Taken
    }

    fn on_first_report(
        &mut self,
        now: Instant,
        report: StreamReport,
        held: LogPos,
        verified: LogPos,
    ) -> ReportOutcome {
        if report.received < self.tail {
            return ReportOutcome::OutOfRing;
        }
        self.attached = true;
        self.acknowledged = report.received;
        self.sent = report.received;
        self.limit = report.limit;
        self.held = self.held.max(held);
        self.verified = self.verified.max(verified);
        self.lost.clear();
        // What is behind goes out at once, as one flush.
        self.flush = self.head;
        self.flush_begun = self.sent;
        self.flush_since = now;
        self.unsent_since = now;
        self.flushes.clear();
        if self.acknowledged < self.flush {
            self.flushes.push_back((self.flush, now));
        }
        ReportOutcome::Attached
    }
}
