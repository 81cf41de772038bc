//! Channel, streams and paths put together, without any policy: what role a host has, and what that
//! allows, comes from outside as a [`Stance`].

use zerocopy::IntoBytes;

use super::acks::Acks;
use super::paths::Paths;
use super::{EgressBuffer, LinkConfig};
use crate::channel::{Channel, Hello, Opened};
use crate::counters::{LinkCounters, StreamCounters};
use crate::ids::{BootId, Duration, Generation, Instant, LogPos};
use crate::stream::flight::{Flight, Record, StreamName};
use crate::stream::{Arrival, Receiver, ReportOutcome, Sender};
use crate::wire::messages::{
    DATA_BYTES, Data, HEARTBEAT_BYTES, HeartbeatRepr, OfferRepr, REPORT_BYTES, ReportRepr,
    StreamReport,
};
use crate::wire::{FLAG_ACK_NOW, HEADER_BYTES, HeaderRepr, Kind, SEAL_BYTES};

/// A session under which nothing was heard for this long is tried to be replaced: the peer may have
/// rebooted and lost its keys.
pub const SESSION_SILENCE: Duration = Duration::from_millis(150);
/// Timeouts in a row, while heartbeats arrive, after which large datagrams are taken to vanish.
const VANISHING_TIMEOUTS: u32 = 2;

/// What the role machine allows and wants said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stance {
    /// Every datagram carries it.
    pub generation: Generation,
    /// The log is offered and sent.
    pub sends_log: bool,
    /// The peer's log is accepted and acknowledged.
    pub accepts_log: bool,
    /// This host has asked the arbiter: what it refuses is counted as such.
    pub asking: bool,
    /// For the heartbeat.
    pub role: u8,
    /// For the heartbeat.
    pub notice: u8,
    /// For the heartbeat.
    pub notice_position: LogPos,
}

/// What a datagram brought that is not the transport's own business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// A session with this boot of the peer began.
    pub session: Option<BootId>,
    /// The peer spoke, in this host's generation.
    pub heard: bool,
    /// The peer speaks in this newer generation.
    pub newer: Option<Generation>,
    /// The newest heartbeat so far, in this host's generation or a newer one.
    pub beat: Option<(Generation, HeartbeatRepr)>,
    /// The primary no longer has what this host needs next.
    pub out_of_ring: bool,
    /// The peer attached to this host's log, or resumed it.
    pub attached: bool,
}

/// Channel, streams and paths.
pub struct Transport {
    pub(super) channel: Channel,
    pub(super) paths: Paths,
    pub(super) log_sender: Sender,
    pub(super) log_receiver: Receiver,
    pub(super) bulk_sender: Sender,
    pub(super) bulk_receiver: Receiver,
    pub(super) stance: Stance,
    pub(super) counters: LinkCounters,
    pub(super) log_counters: StreamCounters,
    pub(super) bulk_counters: StreamCounters,
    pub(super) verified: LogPos,
    /// The peer cannot replay this host's guest: its datagrams are counted and not looked at.
    pub(super) refusing: bool,
    flight: Flight,
    acks: Acks,
    heartbeat: Duration,
    newest_beat: u64,
    /// The rings were full when the peer was last told.
    told_full: bool,
}

impl Transport {
    /// A transport that begins to look for its peer.
    #[must_use]
    pub fn new(config: &LinkConfig, hello: Hello) -> Self {
        let mut bulk_sender = Sender::new(config.bulk_ring_bytes);
        bulk_sender.begin(LogPos(0));
        bulk_sender.set_retain(crate::stream::Retain::Unacknowledged);
        let heartbeat = config.detector.heartbeat;
        let dead_after =
            Duration(heartbeat.0.saturating_mul(7) / 2).max(Duration(config.detector.detect.0 / 3));
        Self {
            channel: Channel::new(config.channel.clone(), hello),
            paths: Paths::new(config.channel.paths, config.mtu(), dead_after),
            log_sender: Sender::new(config.log_ring_bytes),
            log_receiver: Receiver::new(config.log_ring_bytes),
            bulk_sender,
            bulk_receiver: Receiver::new(config.bulk_ring_bytes),
            stance: Stance::default(),
            counters: LinkCounters::default(),
            log_counters: StreamCounters::default(),
            bulk_counters: StreamCounters::default(),
            verified: LogPos(0),
            refusing: false,
            flight: Flight::default(),
            acks: Acks::default(),
            heartbeat,
            newest_beat: 0,
            told_full: false,
        }
    }

    /// Bytes of memory it holds on the heap.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.log_sender.memory_bytes()
            + self.log_receiver.memory_bytes()
            + self.bulk_sender.memory_bytes()
            + self.bulk_receiver.memory_bytes()
            + self.flight.memory_bytes()
    }

    /// The round-trip estimate of the data, once there is one.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.flight.trip().smoothed()
    }

    /// Takes a datagram that arrived on `path`; it is opened in place.
    pub fn ingress(&mut self, now: Instant, path: u8, datagram: &mut [u8]) -> Incoming {
        self.counters.received += 1;
        self.counters.bytes_received += datagram.len() as u64;
        let mut incoming = Incoming::default();
        let bytes = datagram.len();
        let opened = self.channel.open(now, self.stance.generation, datagram);
        let (header, body, new_boot) = match opened {
            Ok(Opened::Body {
                header,
                body,
                new_boot,
            }) => (header, body, new_boot),
            Ok(Opened::Established { new_boot }) => {
                incoming.session = self.channel.peer_boot();
                self.on_session(now, new_boot);
                return incoming;
            }
            Ok(Opened::Answering) | Err(_) => return incoming,
        };
        if new_boot {
            // What the new boot is to this host is for the caller to say first: the peer repeats
            // whatever this datagram says.
            incoming.session = self.channel.peer_boot();
            self.on_session(now, true);
            return incoming;
        }
        self.on_body(now, path, bytes, header, body, &mut incoming);
        incoming
    }

    /// A session was confirmed; with `new_boot`, nothing known of the peer holds any more.
    fn on_session(&mut self, now: Instant, new_boot: bool) {
        // The peer waits for the first datagram under the new keys.
        for path in 0..self.paths.as_slice().len() as u8 {
            if let Some(path) = self.paths.get_mut(path) {
                path.next_heartbeat = now;
            }
        }
        if !new_boot {
            return;
        }
        self.counters.peer_boots += 1;
        self.paths.reset();
        self.log_sender.forget_peer();
        self.log_receiver.detach();
        self.bulk_sender.begin(LogPos(0));
        self.bulk_receiver.expect(LogPos(0));
        self.flight.reset();
        self.acks = Acks::default();
        self.newest_beat = 0;
    }

    fn on_body(
        &mut self,
        now: Instant,
        path: u8,
        bytes: usize,
        header: HeaderRepr,
        body: &[u8],
        incoming: &mut Incoming,
    ) {
        if header.generation < self.stance.generation {
            self.counters.old_generation += 1;
            return;
        }
        self.channel.settle();
        if let Some(state) = self.paths.get_mut(path) {
            state.on_received(now, bytes);
        }
        if self.refusing {
            self.counters.refused_incompatible += 1;
            return;
        }
        let ours = header.generation == self.stance.generation;
        if ours {
            incoming.heard = true;
        } else {
            self.counters.newer_generation += 1;
            incoming.newer = Some(header.generation);
        }
        match header.kind {
            Kind::LOG_DATA if ours => self.on_log_data(now, &header, body),
            Kind::BULK_DATA if ours => self.on_bulk_data(now, &header, body),
            Kind::ACK if ours => match ReportRepr::parse(body) {
                Ok(report) => self.on_report(now, &report, incoming),
                Err(_) => self.counters.malformed_body += 1,
            },
            Kind::HEARTBEAT => match HeartbeatRepr::parse(body) {
                Ok(beat) => self.on_heartbeat(now, path, &header, ours, &beat, incoming),
                Err(_) => self.counters.malformed_body += 1,
            },
            _ => {}
        }
    }

    fn on_log_data(&mut self, now: Instant, header: &HeaderRepr, body: &[u8]) {
        if !self.stance.accepts_log {
            if self.stance.asking {
                self.counters.refused_while_asking += 1;
            } else {
                self.counters.refused_by_role += 1;
            }
            return;
        }
        let Ok((offset, bytes)) = Data::parse(body) else {
            self.counters.malformed_body += 1;
            return;
        };
        let arrival = self
            .log_receiver
            .accept(offset, bytes, &mut self.log_counters);
        self.acknowledge(now, header, arrival);
    }

    fn on_bulk_data(&mut self, now: Instant, header: &HeaderRepr, body: &[u8]) {
        let Ok((offset, bytes)) = Data::parse(body) else {
            self.counters.malformed_body += 1;
            return;
        };
        let arrival = self
            .bulk_receiver
            .accept(offset, bytes, &mut self.bulk_counters);
        self.acknowledge(now, header, arrival);
    }

    fn acknowledge(&mut self, now: Instant, header: &HeaderRepr, arrival: Arrival) {
        let at_once = match arrival {
            Arrival::InOrder => header.flags & FLAG_ACK_NOW != 0,
            // A hole, or a repetition: the sender should know at once.
            Arrival::OutOfOrder | Arrival::Duplicate => true,
            Arrival::Refused => return,
        };
        self.acks.on_data(now, header.sequence, at_once);
    }

    fn on_report(&mut self, now: Instant, report: &ReportRepr, incoming: &mut Incoming) {
        if report.newest >= self.channel.next_sequence() {
            self.counters.impossible_reports += 1;
            return;
        }
        let log = self
            .log_sender
            .on_report(now, report.log, report.held, report.verified);
        let bulk = self
            .bulk_sender
            .on_report(now, report.bulk, LogPos(0), LogPos(0));
        for (name, outcome) in [(StreamName::Log, log), (StreamName::Bulk, bulk)] {
            match outcome {
                ReportOutcome::Taken | ReportOutcome::NotOurs => {}
                ReportOutcome::Impossible => {
                    self.counters.impossible_reports += 1;
                    return;
                }
                ReportOutcome::Attached => {
                    self.counters.resumptions += 1;
                    self.flight.forget(name);
                    incoming.attached |= name == StreamName::Log;
                }
                ReportOutcome::OutOfRing => self.counters.resumptions_impossible += 1,
            }
        }
        let (log_sender, bulk_sender) = (&mut self.log_sender, &mut self.bulk_sender);
        let lost = &mut self.counters.lost;
        let covered = |record: &Record| match record.stream {
            StreamName::Log => {
                log == ReportOutcome::Taken && record.range.end <= report.log.received
            }
            StreamName::Bulk => {
                bulk == ReportOutcome::Taken && record.range.end <= report.bulk.received
            }
        };
        self.flight.on_report(now, report, covered, |record| {
            *lost += 1;
            give_back(log_sender, bulk_sender, record);
        });
    }

    fn on_heartbeat(
        &mut self,
        now: Instant,
        path: u8,
        header: &HeaderRepr,
        ours: bool,
        beat: &HeartbeatRepr,
        incoming: &mut Incoming,
    ) {
        if ours {
            self.on_report(now, &beat.report, incoming);
        }
        // What was overtaken describes the past: another path was faster.
        if header.sequence < self.newest_beat {
            return;
        }
        self.newest_beat = header.sequence;
        self.paths.on_heartbeat(now, path, beat);
        incoming.beat = Some((header.generation, *beat));
        if ours {
            self.follow_log(beat, incoming);
            self.follow_bulk(beat);
        }
        self.choose_path(now);
    }

    fn follow_log(&mut self, beat: &HeartbeatRepr, incoming: &mut Incoming) {
        let offer = beat.log_offer;
        if !self.stance.accepts_log || offer.epoch == 0 {
            return;
        }
        if self.log_receiver.epoch() != offer.epoch {
            let elsewhere = self.log_receiver.held() != offer.position;
            if elsewhere || offer.offset < beat.log_tail {
                incoming.out_of_ring = true;
            } else {
                self.log_receiver
                    .attach(offer.epoch, offer.position, offer.offset);
            }
        } else if self.log_receiver.report().received < beat.log_tail
            || self.log_receiver.is_broken()
        {
            self.log_receiver.detach();
            incoming.out_of_ring = true;
        }
    }

    fn follow_bulk(&mut self, beat: &HeartbeatRepr) {
        let offer = beat.bulk_offer;
        if offer.epoch != 0 && offer.epoch != self.bulk_receiver.epoch() {
            self.bulk_receiver.expect(LogPos(0));
            self.bulk_receiver
                .attach(offer.epoch, offer.position, offer.offset);
        }
    }

    fn choose_path(&mut self, now: Instant) {
        if self.paths.choose(now) {
            self.counters.path_changes += 1;
            let (log_sender, bulk_sender) = (&mut self.log_sender, &mut self.bulk_sender);
            self.flight
                .lose_all(|record| give_back(log_sender, bulk_sender, record));
        }
    }

    /// Time passes: retransmission timers, path choice, silence.
    pub fn poll(&mut self, now: Instant) {
        self.choose_path(now);
        let (log_sender, bulk_sender) = (&mut self.log_sender, &mut self.bulk_sender);
        let lost = &mut self.counters.lost;
        self.flight.find_lost(now, |record| {
            *lost += 1;
            give_back(log_sender, bulk_sender, record);
        });
        let fired = self
            .flight
            .on_timeout(now, |record| give_back(log_sender, bulk_sender, record));
        if fired {
            self.counters.timeouts += 1;
            let vanishing =
                self.flight.trip().backoffs() >= VANISHING_TIMEOUTS && self.paths.active_works(now);
            if vanishing && self.paths.reduce_active(now) {
                self.counters.mtu_reductions += 1;
            }
        }
        if self.silent_at() <= now {
            self.channel.revive(now);
        }
    }

    fn silent_at(&self) -> Instant {
        if !self.channel.is_established() {
            return Instant::NEVER;
        }
        let since = self.channel.since().unwrap_or(Instant(0));
        self.paths
            .last_heard()
            .unwrap_or(Instant(0))
            .max(since)
            .after(SESSION_SILENCE)
    }

    /// When [`poll`](Self::poll) or [`egress`](Self::egress) next has something to do.
    #[must_use]
    pub fn poll_at(&self, now: Instant) -> Instant {
        let mut at = self.channel.poll_at();
        if !self.channel.is_established() {
            return at;
        }
        if !self.channel.is_trying() {
            at = at.min(self.silent_at());
        }
        for path in self.paths.as_slice() {
            at = at.min(path.next_heartbeat);
        }
        if self.ring_reopened() {
            return Instant(0);
        }
        at = at.min(self.acks.due()).min(self.flight.poll_at());
        if !self.flight.is_full() {
            let payload = self.data_payload();
            if self.stance.sends_log {
                at = at.min(self.log_sender.ready_at(payload));
            }
            at = at.min(self.bulk_sender.ready_at(payload));
        }
        at.min(self.paths.poll_at(now))
    }

    fn data_payload(&self) -> usize {
        self.paths.active_mtu() - SEAL_BYTES - DATA_BYTES
    }

    /// Writes the next datagram for `path` into `buffer`; returns its length, or `None` if there is
    /// nothing to send on that path now.
    pub fn egress(&mut self, now: Instant, path: u8, buffer: &mut EgressBuffer) -> Option<usize> {
        if usize::from(path) >= self.paths.as_slice().len() {
            return None;
        }
        let generation = self.stance.generation;
        let length = self
            .channel
            .egress(now, path, generation, buffer.as_mut_slice())
            .or_else(|| self.egress_sealed(now, path, buffer))?;
        self.counters.sent += 1;
        self.counters.bytes_sent += length as u64;
        Some(length)
    }

    fn egress_sealed(
        &mut self,
        now: Instant,
        path: u8,
        buffer: &mut EgressBuffer,
    ) -> Option<usize> {
        if !self.channel.is_established() {
            return None;
        }
        let beat_due = self
            .paths
            .get_mut(path)
            .is_some_and(|path| path.next_heartbeat <= now);
        if beat_due {
            return self.egress_heartbeat(now, path, buffer);
        }
        // The active path is the one the peer is known to hear.
        if path != self.paths.active() {
            return None;
        }
        if self.acks.due() <= now || self.ring_reopened() {
            return self.egress_ack(now, path, buffer);
        }
        if self.flight.is_full() {
            return None;
        }
        let sends_log = self.stance.sends_log;
        sends_log
            .then(|| self.egress_data(now, path, StreamName::Log, buffer))
            .flatten()
            .or_else(|| self.egress_data(now, path, StreamName::Bulk, buffer))
    }

    fn ring_is_full(&self) -> bool {
        self.log_receiver.is_full() || self.bulk_receiver.is_full()
    }

    fn ring_reopened(&self) -> bool {
        self.told_full && !self.ring_is_full()
    }

    /// What this host has received, as far as its role lets it say so.
    fn report(&mut self, now: Instant) -> ReportRepr {
        let (newest, delay_us, bits) = self.acks.take(now);
        self.told_full = self.ring_is_full();
        let (log, held) = if self.stance.accepts_log {
            (self.log_receiver.report(), self.log_receiver.held())
        } else {
            (StreamReport::default(), LogPos(0))
        };
        ReportRepr {
            log,
            bulk: self.bulk_receiver.report(),
            held,
            verified: self.verified.min(held),
            newest,
            delay_us,
            bits,
        }
    }

    fn egress_ack(&mut self, now: Instant, path: u8, buffer: &mut EgressBuffer) -> Option<usize> {
        let report = self.report(now).report();
        buffer[HEADER_BYTES..HEADER_BYTES + REPORT_BYTES].copy_from_slice(report.as_bytes());
        self.counters.acks_sent += 1;
        self.seal(Kind::ACK, path, 0, buffer, REPORT_BYTES)
            .map(|(length, _)| length)
    }

    fn egress_heartbeat(
        &mut self,
        now: Instant,
        path: u8,
        buffer: &mut EgressBuffer,
    ) -> Option<usize> {
        let report = self.report(now);
        let heard = self.paths.heard_bits(now);
        let heartbeat = self.heartbeat;
        let mut largest = [0; crate::wire::PATHS];
        for (index, target) in largest.iter_mut().enumerate() {
            if let Some(path) = self.paths.get_mut(index as u8) {
                *target = path.largest(now);
            }
        }
        let state = self.paths.get_mut(path)?;
        state.next_heartbeat = now.after(heartbeat);
        let (echo, echo_held) = state
            .echo
            .map_or((0, 0), |(echo, came)| (echo, now.since(came).0));
        let padded = state.probe(now).map_or(0, |mtu| mtu - SEAL_BYTES);
        let sends_log = self.stance.sends_log;
        let beat = HeartbeatRepr {
            report,
            log_offer: if sends_log {
                self.log_sender.offer()
            } else {
                OfferRepr::default()
            },
            bulk_offer: self.bulk_sender.offer(),
            log_tail: self.log_sender.tail(),
            head: self.log_sender.position(),
            sent_at: now.0,
            echo,
            echo_held,
            notice_position: self.stance.notice_position,
            role: self.stance.role,
            notice: self.stance.notice,
            heard,
            largest,
        };
        let body = HEADER_BYTES..HEADER_BYTES + HEARTBEAT_BYTES.max(padded);
        buffer[body.clone()].fill(0);
        buffer[HEADER_BYTES..HEADER_BYTES + HEARTBEAT_BYTES]
            .copy_from_slice(beat.heartbeat().as_bytes());
        self.counters.heartbeats_sent += 1;
        self.seal(Kind::HEARTBEAT, path, 0, buffer, body.len())
            .map(|(length, _)| length)
    }

    fn egress_data(
        &mut self,
        now: Instant,
        path: u8,
        stream: StreamName,
        buffer: &mut EgressBuffer,
    ) -> Option<usize> {
        let payload = self.data_payload();
        let (kind, sender, counters) = match stream {
            StreamName::Log => (Kind::LOG_DATA, &mut self.log_sender, &mut self.log_counters),
            StreamName::Bulk => (
                Kind::BULK_DATA,
                &mut self.bulk_sender,
                &mut self.bulk_counters,
            ),
        };
        let start = HEADER_BYTES + DATA_BYTES;
        let segment = sender.emit(now, &mut buffer[start..start + payload], counters)?;
        let data = Data::new(segment.range.start);
        buffer[HEADER_BYTES..start].copy_from_slice(data.as_bytes());
        let flags = if segment.ack_now { FLAG_ACK_NOW } else { 0 };
        let body = DATA_BYTES + segment.range.bytes() as usize;
        let (length, sequence) = self.seal(kind, path, flags, buffer, body)?;
        self.flight.on_sent(Record::new(
            sequence,
            now,
            stream,
            segment.range,
            path,
            length as u16,
        ));
        Some(length)
    }

    fn seal(
        &mut self,
        kind: Kind,
        path: u8,
        flags: u8,
        buffer: &mut EgressBuffer,
        body: usize,
    ) -> Option<(usize, u64)> {
        self.channel.seal(
            kind,
            path,
            flags,
            self.stance.generation,
            buffer.as_mut_slice(),
            body,
        )
    }
}

/// What was lost goes back to the stream it belongs to.
fn give_back(log: &mut Sender, bulk: &mut Sender, record: &Record) {
    match record.stream {
        StreamName::Log => log.on_lost(record.range),
        StreamName::Bulk => bulk.on_lost(record.range),
    }
}
