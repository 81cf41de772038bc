//! What is in flight: one record per data datagram, of both streams, in the order sent. Reports
//! acknowledge records; records overtaken by later ones are lost (RFC 9002 6.1: three datagrams, or
//! nine eighths of a round trip); silence loses them by timeout.

use alloc::collections::VecDeque;

use super::ranges::Range;
use super::rtt::RoundTrip;
use crate::ids::{Duration, Instant};
use crate::wire::messages::ReportRepr;

/// Data datagrams that may be unacknowledged at once; the sender waits when there are as many.
pub const MAX_IN_FLIGHT: usize = 4_096;
/// Later datagrams that must have arrived before one is taken for lost.
pub const REORDERING: u64 = 3;
/// Datagrams sent again at a timeout; their acknowledgement shows what else is missing.
pub const PROBES: usize = 2;

/// Which of the link's streams a datagram belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// The log.
    Log,
    /// State transfer.
    Bulk,
}

/// One data datagram that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Its header's sequence.
    pub sequence: u64,
    /// When it was sent.
    pub sent: Instant,
    /// Its stream.
    pub stream: StreamName,
    /// Its piece of the stream.
    pub range: Range,
    /// The path it took.
    pub path: u8,
    /// Bytes of the whole datagram.
    pub bytes: u16,
    acknowledged: bool,
}

impl Record {
    /// A record of a datagram just sent.
    #[must_use]
    pub fn new(
        sequence: u64,
        sent: Instant,
        stream: StreamName,
        range: Range,
        path: u8,
        bytes: u16,
    ) -> Self {
        Self {
            sequence,
            sent,
            stream,
            range,
            path,
            bytes,
            acknowledged: false,
        }
    }
}

/// The records, and the timers that depend on them.
pub struct Flight {
    records: VecDeque<Record>,
    /// Datagrams removed from the front so far: gives records a number that counts data datagrams
    /// only, whatever else took sequences.
    removed: u64,
    /// Number of the newest record acknowledged.
    newest: Option<(u64, Instant)>,
    /// When the timeout was last restarted (RFC 6298 5.3: at each acknowledgement of new data).
    restarted: Instant,
    trip: RoundTrip,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            records: VecDeque::with_capacity(MAX_IN_FLIGHT),
            removed: 0,
            newest: None,
            restarted: Instant(0),
            trip: RoundTrip::default(),
        }
    }
}

impl Flight {
    /// Bytes of memory it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
    }

    /// No more may be sent until something is acknowledged or lost.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= MAX_IN_FLIGHT
    }

    /// Nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The round-trip estimate.
    #[must_use]
    pub fn trip(&self) -> &RoundTrip {
        &self.trip
    }

    /// Forgets everything in flight of `stream`.
    pub fn forget(&mut self, stream: StreamName) {
        for record in &mut self.records {
            if record.stream == stream {
                record.acknowledged = true;
            }
        }
        self.trim();
    }

    /// Gives up everything in flight: the path it took is gone.
    pub fn lose_all(&mut self, mut lost: impl FnMut(&Record)) {
        for record in self.records.iter().filter(|record| !record.acknowledged) {
            lost(record);
        }
        self.removed += self.records.len() as u64;
        self.records.clear();
    }

    /// Forgets everything, the estimate too: another peer.
    pub fn reset(&mut self) {
        self.removed += self.records.len() as u64;
        self.records.clear();
        self.newest = None;
        self.trip = RoundTrip::default();
    }

    /// A data datagram was sent.
    pub fn on_sent(&mut self, record: Record) {
        if self.records.is_empty() {
            self.restarted = record.sent;
        }
        self.records.push_back(record);
    }

    fn trim(&mut self) {
        while self
            .records
            .front()
            .is_some_and(|record| record.acknowledged)
        {
            self.records.pop_front();
            self.removed += 1;
        }
    }

    /// A report arrived: marks what it names or covers, gives `lost` what it shows to be lost.
    pub fn on_report(
        &mut self,
        now: Instant,
        report: &ReportRepr,
        mut covered: impl FnMut(&Record) -> bool,
        lost: impl FnMut(&Record),
    ) {
        let mut progress = false;
        let mut sample = None;
        for (index, record) in self.records.iter_mut().enumerate() {
            if record.sequence > report.newest {
                break;
            }
            if record.acknowledged || !(report.names(record.sequence) || covered(record)) {
                continue;
            }
            record.acknowledged = true;
            progress = true;
            let number = self.removed + index as u64;
            if self.newest.is_none_or(|(newest, _)| newest < number) {
                self.newest = Some((number, record.sent));
            }
            if record.sequence == report.newest {
                sample = Some(record.sent);
            }
        }
        if let Some(sent) = sample {
            let delay = Duration::from_micros(u64::from(report.delay_us));
            self.trip.sample(now.since(sent), delay);
        }
        if progress {
            self.restarted = now;
        }
        self.trim();
        self.find_lost(now, lost);
    }

    /// Gives `lost` every record that later ones have overtaken; returns how many.
    pub fn find_lost(&mut self, now: Instant, mut lost: impl FnMut(&Record)) -> usize {
        let Some((newest, _)) = self.newest else {
            return 0;
        };
        let delay = self.trip.loss_delay();
        let mut count = 0;
        for (index, record) in self.records.iter_mut().enumerate() {
            let number = self.removed + index as u64;
            if number >= newest {
                break;
            }
            let overtaken = number + REORDERING <= newest || record.sent.after(delay) <= now;
            if !record.acknowledged && overtaken {
                record.acknowledged = true;
                lost(record);
                count += 1;
            }
        }
        self.trim();
        count
    }

    /// When [`find_lost`](Self::find_lost) would find something by time, or the timeout fires.
    #[must_use]
    pub fn poll_at(&self) -> Instant {
        let Some(front) = self.records.front() else {
            return Instant::NEVER;
        };
        let timeout = self.trip.deadline(front.sent.max(self.restarted));
        let overtaken = self.newest.is_some_and(|(newest, _)| self.removed < newest);
        if overtaken {
            timeout.min(front.sent.after(self.trip.loss_delay()))
        } else {
            timeout
        }
    }

    /// If the timeout has fired: backs off and gives `lost` the oldest few records.
    pub fn on_timeout(&mut self, now: Instant, mut lost: impl FnMut(&Record)) -> bool {
        let Some(front) = self.records.front() else {
            return false;
        };
        if self.trip.deadline(front.sent.max(self.restarted)) > now {
            return false;
        }
        self.trip.back_off();
        self.restarted = now;
        let unacknowledged = self
            .records
            .iter_mut()
            .filter(|record| !record.acknowledged);
        for record in unacknowledged.take(PROBES) {
            record.acknowledged = true;
            lost(record);
        }
        self.trim();
        true
    }
}
