//! One host's end of the link, joined with its fence: datagrams, log entries, verdicts and time go in;
//! datagrams, log entries, requests and events come out.
//!
//! The driver's loop: [`Link::ingress`] for everything that arrived, [`Link::poll`],
//! [`Link::egress`] for each path until it gives nothing, [`Link::request`] for the arbiter; again no
//! later than [`Link::poll_at`].

pub mod acks;
pub mod measures;
pub mod paths;
pub mod transport;

#[cfg(test)]
mod tests;

use crate::arbiter::{Member, Reply, Request};
use crate::bulk::{BulkError, BulkEvent, BulkReader, BulkWriter};
use crate::channel::{ChannelConfig, Hello};
use crate::counters::{ChannelCounters, LinkCounters, StreamCounters};
use crate::detector::{self, Detector, Progress, Suspicion};
use crate::fence::{self, Beat, CommandError, Fence, Positions, decode_notice, encode_notice};
use crate::handshake::{Identity, Mismatch};
use crate::ids::{BootId, Duration, Generation, Instant, LogPos};
use crate::role::{Asker, Gate, Mode, Role};
use crate::stream::{AppendError, Retain};
use crate::wire::{MAX_DATAGRAM_BYTES, MIN_MTU_BYTES};

use measures::{Measures, Sampler};
use transport::{Incoming, Stance, Transport};

/// Where [`Link::egress`] writes a datagram.
pub type EgressBuffer = [u8; MAX_DATAGRAM_BYTES];
/// Events kept until they are taken; the oldest is dropped and counted.
pub const MAX_EVENTS: usize = 32;
/// Log ring on each side, in bytes, unless configured: 30 ms of a saturated gigabit.
pub const DEFAULT_LOG_RING_BYTES: usize = 4 * 1024 * 1024;
/// Bulk ring on each side, in bytes, unless configured.
pub const DEFAULT_BULK_RING_BYTES: usize = 1024 * 1024;

/// What a link is told at start.
#[derive(Clone)]
pub struct LinkConfig {
    /// Who this host is, who its peer is, and the secret.
    pub channel: ChannelConfig,
    /// Datagram size, in bytes of UDP payload; taken into [`MIN_MTU_BYTES`] to
    /// [`MAX_DATAGRAM_BYTES`].
    pub mtu_bytes: usize,
    /// Log ring in bytes, rounded up to a power of two of at least 256 KiB.
    pub log_ring_bytes: usize,
    /// Bulk ring in bytes, likewise.
    pub bulk_ring_bytes: usize,
    /// When the peer is suspected.
    pub detector: detector::Config,
    /// How the host behaves in its pair.
    pub fence: fence::Config,
}

impl LinkConfig {
    /// The datagram size within its limits.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.mtu_bytes.clamp(MIN_MTU_BYTES, MAX_DATAGRAM_BYTES)
    }
}

/// What the driver and the operator are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Of the role machine.
    Fence(fence::Event),
    /// A session with this boot of the peer began.
    Session(BootId),
    /// The peer cannot replay this host's guest: nothing it says is taken, until it reboots as another.
    Incompatible(Mismatch),
    /// The peer follows this host's log, from its beginning or from where it had stopped.
    Following,
    /// The primary no longer has what this host needs next: state transfer is needed.
    OutOfRing,
    /// The peer became suspect.
    Suspected(Suspicion),
    /// The peer is not suspect any more.
    Cleared,
}

/// How far the peer is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Entries it does not hold.
    pub entries: u64,
    /// Entries it holds but has not verified.
    pub unverified: u64,
    /// Log bytes it does not hold.
    pub bytes: u64,
    /// Age of the oldest flush it has not acknowledged.
    pub age: Duration,
}

/// One host's end of the link.
pub struct Link {
    config: LinkConfig,
    identity: Identity,
    incompatible: Option<Mismatch>,
    transport: Transport,
    detector: Detector,
    fence: Fence,
    bulk_writer: BulkWriter,
    bulk_reader: BulkReader,
    suspicion: Option<Suspicion>,
    /// As of the last poll; the peer is told with each heartbeat.
    health: fence::Health,
    events: [Option<LinkEvent>; MAX_EVENTS],
    lost_events: u64,
    sampler: Sampler,
}

impl Link {
    /// A link that begins to look for its peer, which must be of the same `identity`.
    #[must_use]
    pub fn new(config: LinkConfig, identity: Identity, now: Instant) -> Self {
        let me = Member {
            node: config.channel.node,
            boot: config.channel.boot,
        };
        let mut link = Self {
            transport: Transport::new(&config, Hello::of(&identity.encode())),
            identity,
            incompatible: None,
            detector: Detector::new(now),
            fence: Fence::new(me, config.channel.peer, now),
            bulk_writer: BulkWriter::default(),
            bulk_reader: BulkReader::default(),
            suspicion: None,
            health: fence::Health::default(),
            events: [None; MAX_EVENTS],
            lost_events: 0,
            sampler: Sampler::default(),
            config,
        };
        link.settle();
        link
    }

    /// Takes a datagram that arrived on `path`. It is opened in place: its bytes are of no use
    /// afterwards.
    pub fn ingress(&mut self, now: Instant, path: u8, datagram: &mut [u8]) {
        let incoming = self.transport.ingress(now, path, datagram);
        self.on_incoming(now, path, &incoming);
    }

    fn on_incoming(&mut self, now: Instant, path: u8, incoming: &Incoming) {
        if *incoming == Incoming::default() {
            return;
        }
        if let Some(boot) = incoming.session {
            self.on_session(now, boot);
        }
        if self.incompatible.is_some() {
            return;
        }
        if incoming.heard {
            self.detector.on_heard(now, usize::from(path));
            if incoming.beat.is_none() && !incoming.out_of_ring && !incoming.attached {
                return;
            }
        }
        if incoming.attached {
            self.push(LinkEvent::Following);
        }
        if incoming.out_of_ring {
            self.push(LinkEvent::OutOfRing);
            self.fence.out_of_ring(now);
        }
        match (&incoming.beat, incoming.newer, self.peer()) {
            (Some((generation, beat)), _, Some(from)) => {
                let notice = decode_notice(beat.notice, beat.notice_position);
                let role = Role::from_code(beat.role);
                if let (Some((notice, health)), Some(role)) = (notice, role) {
                    let beat = Beat {
                        from,
                        generation: *generation,
                        role,
                        notice,
                        health,
                    };
                    let own = self.positions();
                    self.fence.on_beat(now, &self.config.fence, &beat, own);
                }
            }
            (None, Some(generation), _) => self.fence.on_newer_generation(now, generation),
            _ => {}
        }
        self.settle();
    }

    fn on_session(&mut self, now: Instant, boot: BootId) {
        let hello = self.transport.channel.peer_hello().unwrap_or(&[]);
        let mismatch = self.identity.check(hello).err();
        self.transport.refusing = mismatch.is_some();
        if let Some(mismatch) = mismatch {
            if self.incompatible != Some(mismatch) {
                self.push(LinkEvent::Incompatible(mismatch));
            }
            self.incompatible = Some(mismatch);
            return;
        }
        self.incompatible = None;
        let member = Member {
            node: self.config.channel.peer,
            boot,
        };
        if self.fence.peer() != Some(member) {
            self.detector.restart(now);
        }
        self.push(LinkEvent::Session(boot));
        self.fence.on_session(now, member);
        self.settle();
    }

    /// Time passes. Call it after what has arrived was given to [`ingress`](Self::ingress).
    pub fn poll(&mut self, now: Instant) {
        self.transport.poll(now);
        self.suspect(now);
        let own = self.positions();
        self.fence.poll(now, &self.config.fence, own);
        self.health = self.fence.health(&self.config.fence, now);
        self.settle();
        if self.sampler.is_due(now) {
            let lag = (self.fence.gate() == Gate::Acked).then(|| self.lag(now));
            let sent = self.transport.counters.bytes_sent;
            self.sampler.sample(now, lag.as_ref(), sent);
        }
    }

    fn suspect(&mut self, now: Instant) {
        let progress = self.progress();
        let suspicion = self.detector.poll(&self.config.detector, now, &progress);
        if suspicion != self.suspicion {
            self.suspicion = suspicion;
            self.push(suspicion.map_or(LinkEvent::Cleared, LinkEvent::Suspected));
        }
        self.fence.on_suspicion(now, &self.config.fence, suspicion);
        self.settle();
    }

    /// What the detector is to see of the log; a host whose outputs wait for nobody shows nothing.
    fn progress(&self) -> Progress {
        if self.fence.gate() != Gate::Acked {
            return Progress::default();
        }
        let sender = &self.transport.log_sender;
        let oldest = sender.oldest_flush();
        Progress {
            oldest_unacked: (oldest != Instant::NEVER).then_some(oldest),
            held: sender.held(),
            verified: sender.verified(),
            ring_full_since: sender.full_since(),
        }
    }

    fn positions(&self) -> Positions {
        let sending = sends_log(self.fence.role());
        Positions {
            head: if sending {
                self.transport.log_sender.position()
            } else {
                self.transport.log_receiver.held()
            },
            acked: if sending {
                self.transport.log_sender.held()
            } else {
                LogPos(0)
            },
        }
    }

    fn peer(&self) -> Option<Member> {
        self.transport.channel.peer_boot().map(|boot| Member {
            node: self.config.channel.peer,
            boot,
        })
    }

    /// Does what the role machine's events mean for the streams, and tells the transport what the
    /// role allows now.
    fn settle(&mut self) {
        while let Some(event) = self.fence.event() {
            match event {
                fence::Event::Changed { from, to, .. } => self.on_role(from, to),
                fence::Event::Discard => {
                    self.transport.log_receiver.expect(LogPos(0));
                    self.transport.verified = LogPos(0);
                }
            }
            self.push(LinkEvent::Fence(event));
        }
        let generation = self.fence.generation();
        let role = self.fence.role();
        let (notice, notice_position) = encode_notice(self.fence.notice(), self.health);
        let accepts_log = self
            .peer()
            .is_some_and(|peer| self.fence.accepts_entries(peer, generation));
        self.transport.stance = Stance {
            generation,
            sends_log: sends_log(role),
            accepts_log,
            asking: matches!(role, Role::Asking(_)),
            role: role.code(),
            notice,
            notice_position,
        };
    }

    fn on_role(&mut self, from: Role, to: Role) {
        let transport = &mut self.transport;
        if sends_log(to) && !sends_log(from) {
            // The log goes on behind everything that was held and replayed.
            let position = transport.log_receiver.held();
            transport.log_sender.begin(position);
        }
        if from == Role::Primary(Mode::HandingOver) && to == Role::Joining {
            // It has produced what the next primary's log goes on from.
            let position = transport.log_sender.position();
            transport.log_receiver.expect(position);
            transport.verified = position;
        }
        let alone = matches!(to, Role::Primary(Mode::Solo | Mode::Unprotected));
        transport.log_sender.set_retain(if alone {
            Retain::Latest
        } else {
            Retain::Unacknowledged
        });
    }

    fn push(&mut self, event: LinkEvent) {
        match self.events.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(event),
            None => {
                self.events.rotate_left(1);
                self.events[MAX_EVENTS - 1] = Some(event);
                self.lost_events += 1;
            }
        }
    }

    /// The oldest event not taken yet.
    pub fn event(&mut self) -> Option<LinkEvent> {
        let first = self.events[0].take();
        self.events.rotate_left(1);
        first
    }

    /// When [`poll`](Self::poll) or [`egress`](Self::egress) next has something to do; never before
    /// `now`.
    #[must_use]
    pub fn poll_at(&self, now: Instant) -> Instant {
        let progress = self.progress();
        let detector = if self.suspicion.is_some() {
            Instant::NEVER
        } else {
            self.detector.poll_at(&self.config.detector, &progress)
        };
        self.transport
            .poll_at(now)
            .min(detector)
            .min(self.fence.poll_at(&self.config.fence))
            .max(now)
    }

    /// Writes the next datagram for `path` into `buffer`; returns its length, or `None` if there is
    /// nothing to send on that path now.
    pub fn egress(&mut self, now: Instant, path: u8, buffer: &mut EgressBuffer) -> Option<usize> {
        self.transport.egress(now, path, buffer)
    }

    /// Appends a log entry; returns its position. It goes out when a datagram is full, after
    /// [`crate::stream::sender::FLUSH_DELAY`], or with the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// The ring is full and the guest has to wait, or the entry is too large.
    pub fn append(&mut self, now: Instant, entry: &[u8]) -> Result<LogPos, AppendError> {
        self.transport
            .log_sender
            .append(now, entry, &mut self.transport.log_counters)
    }

    /// An output waits for everything appended so far.
    pub fn flush(&mut self, now: Instant) {
        self.transport.log_sender.flush(now);
    }

    /// The next entry of the peer's log, in order and without holes.
    pub fn next_entry(&mut self) -> Option<(LogPos, &[u8])> {
        self.transport
            .log_receiver
            .next_entry(&mut self.transport.log_counters)
    }

    /// First log position the peer is not known to hold: every entry below it is held, whole and
    /// hole-free.
    #[must_use]
    pub fn acked(&self) -> LogPos {
        self.transport.log_sender.held()
    }

    /// First log position the peer is not known to have verified.
    #[must_use]
    pub fn peer_verified(&self) -> LogPos {
        self.transport.log_sender.verified()
    }

    /// First log position this host does not hold of its peer's log.
    #[must_use]
    pub fn held(&self) -> LogPos {
        self.transport.log_receiver.held()
    }

    /// Position of the next entry [`append`](Self::append) takes.
    #[must_use]
    pub fn head(&self) -> LogPos {
        self.transport.log_sender.position()
    }

    /// This host has executed every entry below `position` with equal digests.
    pub fn set_verified(&mut self, position: LogPos) {
        self.transport.verified = position;
    }

    /// Whether the output whose entry is at `position` may leave this host now: the gate. Looks at
    /// the detector first, so that a host that was stalled does not act on what it last knew.
    pub fn may_release(&mut self, now: Instant, position: LogPos) -> bool {
        self.suspect(now);
        match self.fence.gate() {
            Gate::Shut => false,
            Gate::Acked => self.acked() > position,
            Gate::Open => true,
        }
    }

    /// The request the arbiter is to get now, if one is due. Call until it gives none.
    pub fn request(&mut self, now: Instant) -> Option<Request> {
        self.fence.request(now, &self.config.fence)
    }

    /// The arbiter's answer.
    pub fn verdict(&mut self, now: Instant, reply: &Reply) {
        self.fence.on_reply(now, &self.config.fence, reply);
        self.settle();
    }

    /// Everything held has been replayed; the host may act.
    pub fn drained(&mut self, now: Instant) {
        self.fence.drained(now);
        self.settle();
    }

    /// The replay differed from the log.
    pub fn diverged(&mut self, now: Instant) {
        self.fence.diverged(now, &self.config.fence);
        self.settle();
    }

    /// The guest powered off.
    pub fn powered_off(&mut self, now: Instant) {
        self.fence.powered_off(now);
        self.settle();
    }

    /// State transfer is complete: this host needs `position` next.
    pub fn transferred(&mut self, now: Instant, position: LogPos) {
        self.transport.log_receiver.expect(position);
        self.transport.verified = position;
        self.fence.transferred(now);
        self.settle();
    }

    /// State transfer begins: the log is offered from here on.
    pub fn offer_from_here(&mut self) {
        self.transport.log_sender.offer_here();
    }

    /// The operator wants the peer to run the guest.
    ///
    /// # Errors
    ///
    /// As [`Fence::hand_over`].
    pub fn hand_over(&mut self, now: Instant) -> Result<(), CommandError> {
        let result = self.fence.hand_over(now);
        self.settle();
        result
    }

    /// The operator asserts that the peer is off and stays off.
    ///
    /// # Errors
    ///
    /// As [`Fence::confirm`].
    pub fn confirm(&mut self, now: Instant, at: Option<Generation>) -> Result<(), CommandError> {
        let result = self.fence.confirm(now, at);
        self.settle();
        result
    }

    /// The service NIC lost or regained carrier.
    pub fn carrier(&mut self, lost: bool) {
        self.fence.on_carrier(lost);
        self.settle();
    }

    /// Begins a bulk transfer; `what` is the caller's.
    ///
    /// # Errors
    ///
    /// As [`BulkWriter::begin`].
    pub fn bulk_begin(&mut self, now: Instant, id: u64, what: u64) -> Result<(), BulkError> {
        let transport = &mut self.transport;
        let counters = &mut transport.bulk_counters;
        self.bulk_writer
            .begin(now, &mut transport.bulk_sender, counters, id, what)
    }

    /// Sends one chunk of the transfer.
    ///
    /// # Errors
    ///
    /// As [`BulkWriter::chunk`].
    pub fn bulk_chunk(&mut self, now: Instant, chunk: &[u8]) -> Result<(), BulkError> {
        let transport = &mut self.transport;
        let counters = &mut transport.bulk_counters;
        self.bulk_writer
            .chunk(now, &mut transport.bulk_sender, counters, chunk)
    }

    /// Ends the transfer.
    ///
    /// # Errors
    ///
    /// As [`BulkWriter::finish`].
    pub fn bulk_finish(&mut self, now: Instant) -> Result<(), BulkError> {
        let transport = &mut self.transport;
        self.bulk_writer.finish(
            now,
            &mut transport.bulk_sender,
            &mut transport.bulk_counters,
        )
    }

    /// Gives the transfer up.
    ///
    /// # Errors
    ///
    /// As [`BulkWriter::abort`].
    pub fn bulk_abort(&mut self, now: Instant) -> Result<(), BulkError> {
        let transport = &mut self.transport;
        self.bulk_writer.abort(
            now,
            &mut transport.bulk_sender,
            &mut transport.bulk_counters,
        )
    }

    /// The next event of the peer's transfer.
    pub fn bulk_next(&mut self) -> Option<BulkEvent<'_>> {
        let transport = &mut self.transport;
        self.bulk_reader
            .next(&mut transport.bulk_receiver, &mut transport.bulk_counters)
    }

    /// The role machine, to look at.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// In what the present peer differs, if it cannot replay this host's guest.
    #[must_use]
    pub fn incompatible(&self) -> Option<Mismatch> {
        self.incompatible
    }

    /// How far the peer is behind.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Lag {
        let sender = &self.transport.log_sender;
        Lag {
            entries: sender.position().since(sender.held()),
            unverified: sender.held().since(sender.verified()),
            bytes: sender.unacknowledged_bytes(),
            age: now.since(sender.oldest_flush()),
        }
    }

    /// What was measured since the start or the last [`reset_measures`](Self::reset_measures).
    #[must_use]
    pub fn measures(&self) -> Measures {
        self.sampler.measures(self.transport.log_sender.waits())
    }

    /// Forgets what was measured.
    pub fn reset_measures(&mut self) {
        self.sampler.reset();
        self.transport.log_sender.reset_waits();
    }

    /// The round-trip estimate of the data, once there is one.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.transport.round_trip()
    }

    /// The paths, to look at.
    #[must_use]
    pub fn paths(&self) -> &paths::Paths {
        &self.transport.paths
    }

    /// Counters of the link.
    #[must_use]
    pub fn counters(&self) -> &LinkCounters {
        &self.transport.counters
    }

    /// Counters of the channel.
    #[must_use]
    pub fn channel_counters(&self) -> &ChannelCounters {
        self.transport.channel.counters()
    }

    /// Counters of the log stream, both directions.
    #[must_use]
    pub fn log_counters(&self) -> &StreamCounters {
        &self.transport.log_counters
    }

    /// Counters of the bulk stream, both directions.
    #[must_use]
    pub fn bulk_counters(&self) -> &StreamCounters {
        &self.transport.bulk_counters
    }

    /// Events lost because nobody took them.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Bytes of memory it holds, itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.transport.memory_bytes() + crate::bulk::MAX_CHUNK_BYTES + 1
    }
}

/// A primary sends its log, also while it waits for a verdict on going on alone.
fn sends_log(role: Role) -> bool {
    matches!(role, Role::Primary(_) | Role::Asking(Asker::Primary))
}
