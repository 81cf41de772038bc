//! The world of the model check: two hosts with the real fence, the real arbiter, and a network that
//! loses, repeats and reorders. Only what surrounds them is modelled: logs as lists of the
//! generations that wrote the entries, heartbeats that carry the whole log, time that stands still.
//!
//! Messages are never consumed: delivering one again is duplication, never delivering it is loss,
//! delivering an old one is reordering. A direction of the link keeps as many packets as the bounds
//! say; sending overwrites one of them.

use std::collections::BTreeSet;

use ftlink::arbiter::{Ask, Member, Outcome, Record, RecordState, Reply, Request, Verdict, decide};
use ftlink::detector::Suspicion;
use ftlink::fence::{Beat, Config, Event, Fence, OnDivergence, Positions};
use ftlink::ids::{BootId, Duration, Generation, Instant, LogPos, NodeId, PairId};
use ftlink::role::{Asker, Gate, Mode, Role};

/// Time stands still: every limit is zero or never.
pub const NOW: Instant = Instant(1);

/// A mistake built into the model, to show that an invariant notices it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// A backup acts on suspicion alone.
    TakeoverWithoutVerdict,
    /// A backup acknowledges one entry more than it holds.
    AcknowledgeBeforeHolding,
    /// The arbiter grants whoever asks.
    GrantNonMember,
    /// A backup takes and acknowledges entries while it asks.
    AcceptWhileAsking,
    /// An owner admits a peer that does not hold what was released.
    AdmitBeforeHeld,
    /// The arbiter answers before its record is durable, and loses it when it restarts.
    AnswerBeforeStored,
    /// A host comes back from a reboot with the boot id it had.
    SameBootAfterReboot,
    /// The operator confirms without looking whether the peer went on alone.
    ConfirmWithoutLooking,
    /// A restored record lets a lone cold host start, like an empty one.
    RestoredAsEmpty,
}

/// What the invariants forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Two hosts released outputs in one generation.
    TwoReleasers,
    /// A host acts, or is about to, without entries whose outputs the world has seen.
    NotHeld,
    /// A fenced host became something else in the same boot.
    FencedActs,
    /// A generation was granted to two members.
    GrantedTwice,
    /// A host outside the members was granted a claim.
    NonMember,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Suspicions, right or wrong.
    pub suspicions: u8,
    /// Crashes of a host.
    pub crashes: u8,
    /// Reboots of a crashed or fenced host.
    pub reboots: u8,
    /// Restarts of the arbiter.
    pub arbiter_restarts: u8,
    /// Planned hand-overs.
    pub hand_overs: u8,
    /// Clean power-offs of the guest.
    pub power_offs: u8,
    /// Confirmations by the operator.
    pub confirms: u8,
    /// Losses of the arbiter's record, answered by `init --at`.
    pub restores: u8,
    /// Entries appended.
    pub appends: u8,
}

/// Nothing but messages.
pub const QUIET: Budget = Budget {
    suspicions: 0,
    crashes: 0,
    reboots: 0,
    arbiter_restarts: 0,
    hand_overs: 0,
    power_offs: 0,
    confirms: 0,
    restores: 0,
    appends: 0,
};

/// A heartbeat with what the link carries beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// The heartbeat.
    pub beat: Beat,
    /// Whose log the sender holds.
    pub follows: Option<Member>,
    /// Which guest's: the generation it was powered on in.
    pub guest: Option<Generation>,
    /// How much of it.
    pub held: usize,
    /// The log, from a host that offers one.
    pub log: Option<Vec<u64>>,
}

/// A host that is switched on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// The real fence.
    pub fence: Fence,
    /// Who wrote each entry.
    pub log: Vec<u64>,
    /// The guest this log belongs to: the generation it was powered on in.
    pub guest: Option<Generation>,
    /// What the peer acknowledged.
    pub acked: usize,
    /// End of the log as told to the replica when the host asked: it may run there meanwhile.
    pub end: Option<usize>,
}

/// One state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Hosts; `None` while switched off.
    pub hosts: [Option<Host>; 2],
    /// Boots so far.
    pub boots: [u8; 2],
    /// The arbiter's record, as stored.
    pub record: Record,
    /// The record before its last change, for a broken store.
    pub before: Record,
    /// Packets to each host.
    pub link: [Vec<Packet>; 2],
    /// Requests sent.
    pub requests: BTreeSet<Request>,
    /// Answers given.
    pub replies: Vec<Reply>,
    /// What may still happen.
    pub budget: Budget,
    /// The guest whose outputs the world has seen, and the longest log they were released from.
    pub seen: (Option<Generation>, Vec<u64>),
    /// Who released in which generation.
    pub releasers: Vec<(Generation, Member)>,
    /// What was granted to whom.
    pub granted: Vec<(Generation, Member)>,
    /// Boots that were fenced.
    pub fenced: Vec<Member>,
    /// The first violation.
    pub violation: Option<Violation>,
    /// A mistake to be noticed.
    pub bug: Option<Bug>,
}

/// What the model's hosts are configured to: no waiting, no probing.
pub fn config() -> Config {
    Config {
        handicap: Duration::ZERO,
        retry: Duration::ZERO,
        probe: Duration(u64::MAX),
        arbiter_lost: Duration(u64::MAX),
        cold_wait: Duration::ZERO,
        hand_over_wait: Duration(u64::MAX),
        admit_lag: 1,
        auto_hand_over: false,
        on_divergence: OnDivergence::Stop,
    }
}

/// The host with index `host` in its boot number `boot`.
pub fn member(host: usize, boot: u8) -> Member {
    Member {
        node: NodeId(host as u64 + 1),
        boot: BootId(u128::from(boot)),
    }
}

/// Index of a node.
pub fn index(node: NodeId) -> usize {
    usize::from(node != NodeId(1))
}

impl Host {
    fn new(host: usize, boot: u8) -> Self {
        Self {
            fence: Fence::new(member(host, boot), NodeId(2 - host as u64), NOW),
            log: Vec::new(),
            guest: None,
            acked: 0,
            end: None,
        }
    }

    fn positions(&self, bug: Option<Bug>) -> Positions {
        let blind = bug == Some(Bug::AdmitBeforeHeld)
            && self.fence.role() == Role::Primary(Mode::Admitting);
        Positions {
            head: LogPos(self.log.len() as u64),
            acked: LogPos(if blind { u64::MAX } else { self.acked as u64 }),
        }
    }

    /// How much of the log the output rule lets out now.
    pub fn releasable(&self) -> usize {
        match self.fence.gate() {
            Gate::Shut => 0,
            Gate::Acked => self.acked.min(self.log.len()),
            Gate::Open => self.log.len(),
        }
    }
}

impl World {
    /// Two cold hosts and a record that was just initialised.
    pub fn cold(budget: Budget, bug: Option<Bug>) -> Self {
        let record = Record::empty(PairId(1), [NodeId(1), NodeId(2)]);
        let mut world = Self {
            hosts: [Some(Host::new(0, 1)), Some(Host::new(1, 1))],
            boots: [1, 1],
            record,
            before: record,
            link: [Vec::new(), Vec::new()],
            requests: BTreeSet::new(),
            replies: Vec::new(),
            budget,
            seen: (None, Vec::new()),
            releasers: Vec::new(),
            granted: Vec::new(),
            fenced: Vec::new(),
            violation: None,
            bug,
        };
        world.after(0);
        world.after(1);
        world
    }

    /// A pair that came up by the protocol and is protected, with one entry held by both; the first
    /// host is the primary. History of the start is forgotten to keep the state small.
    pub fn protected(budget: Budget, bug: Option<Bug>) -> Self {
        let mut world = Self::cold(QUIET, None);
        for _ in 0..12 {
            crate::settle::round(&mut world, crate::settle::Fault::None);
        }
        let role = |world: &Self, host: usize| world.hosts[host].as_ref().map(|h| h.fence.role());
        assert_eq!(role(&world, 0), Some(Role::Primary(Mode::Protected)));
        assert_eq!(role(&world, 1), Some(Role::Backup));
        world.append(0);
        for _ in 0..2 {
            crate::settle::round(&mut world, crate::settle::Fault::None);
        }
        assert_eq!(world.hosts[1].as_ref().map(|host| host.log.len()), Some(1));
        world.link = [Vec::new(), Vec::new()];
        world.requests.clear();
        world.replies.clear();
        world.budget = budget;
        world.bug = bug;
        world
    }

    /// What follows every step of a host: its polls, and what its events mean for its log.
    pub fn after(&mut self, index: usize) {
        let bug = self.bug;
        let Some(host) = &mut self.hosts[index] else {
            return;
        };
        let own = host.positions(bug);
        host.fence.poll(NOW, &config(), own);
        while let Some(event) = host.fence.event() {
            match event {
                Event::Discard => {
                    host.log.clear();
                    host.guest = None;
                }
                Event::Changed { from, to, .. } => match to {
                    Role::Asking(Asker::Backup) => host.end = Some(host.log.len()),
                    Role::Draining => host.log.truncate(host.end.unwrap_or(usize::MAX)),
                    Role::Primary(Mode::Solo | Mode::Unprotected) => {
                        host.acked = 0;
                        if matches!(from, Role::Cold | Role::Asking(Asker::Cold)) {
                            host.guest = Some(host.fence.generation());
                        }
                    }
                    _ => {}
                },
            }
        }
        if host.fence.role() != Role::Asking(Asker::Backup) {
            host.end = None;
        }
        // A request is as good as sent when it is made: it may arrive at any time, or never.
        if let Some(request) = host.fence.request(NOW, &config()) {
            self.requests.insert(request);
        }
        host.fence.take_counters();
        self.watch(index);
        // Outputs leave as soon as the rule allows: what a slower host lets out later is the same.
        self.release(index);
    }

    /// Forgets messages that can have no effect any more: answers nobody waits for, and requests of
    /// an older generation that nobody waits for an answer to.
    pub fn prune(&mut self) {
        let waits = |request: &Request| {
            self.hosts[index(request.from.node)]
                .as_ref()
                .is_some_and(|host| host.fence.awaits(request.from, request.id))
        };
        let generation = self.record.generation;
        self.requests.retain(|request| {
            waits(request) || (request.generation >= generation && request.ask != Ask::Query)
        });
        let hosts = &self.hosts;
        self.replies.retain(|reply| {
            hosts[index(reply.to.node)]
                .as_ref()
                .is_some_and(|host| host.fence.awaits(reply.to, reply.id))
        });
    }

    /// The invariants that look at a host after its step.
    fn watch(&mut self, index: usize) {
        let Some(host) = &self.hosts[index] else {
            return;
        };
        let me = host.fence.me();
        let role = host.fence.role();
        if self.fenced.contains(&me) && role != Role::Fenced {
            self.violation.get_or_insert(Violation::FencedActs);
        }
        if role == Role::Fenced && !self.fenced.contains(&me) {
            self.fenced.push(me);
            self.fenced.sort();
        }
        let acts = host.fence.gate() != Gate::Shut || role == Role::Draining;
        let newest = host.fence.generation() >= self.record.generation;
        let (guest, log) = &self.seen;
        let holds = host.guest > *guest || (host.guest == *guest && host.log.starts_with(log));
        if acts && newest && !holds {
            self.violation.get_or_insert(Violation::NotHeld);
        }
    }

    /// The packet a host sends now.
    pub fn packet(&self, index: usize) -> Option<Packet> {
        let host = self.hosts[index].as_ref()?;
        let fence = &host.fence;
        let ahead = self.bug == Some(Bug::AcknowledgeBeforeHolding) && fence.role() == Role::Backup;
        Some(Packet {
            beat: Beat {
                from: fence.me(),
                generation: fence.generation(),
                role: fence.role(),
                notice: fence.notice(),
                health: fence.health(&config(), NOW),
            },
            follows: fence.follows(),
            guest: host.guest,
            held: host.log.len() + usize::from(ahead),
            log: fence.role().offers_log().then(|| host.log.clone()),
        })
    }

    /// A host gets a packet: what `link` does with a heartbeat and with entries.
    pub fn deliver(&mut self, index: usize, packet: &Packet) {
        let bug = self.bug;
        let Some(host) = &mut self.hosts[index] else {
            return;
        };
        let from = packet.beat.from;
        match host.fence.peer() {
            // The session with the newer boot ended that of the older one.
            Some(known) if known.boot > from.boot => return,
            Some(known) if known.boot < from.boot => host.acked = 0,
            _ => {}
        }
        let generation = packet.beat.generation;
        let current = generation == host.fence.generation();
        if current && host.fence.role().offers_log() && packet.follows == Some(host.fence.me()) {
            host.acked = host.acked.max(packet.held);
            // Acknowledgements also come without a heartbeat: what they let out is out.
            self.release(index);
        }
        let Some(host) = &mut self.hosts[index] else {
            return;
        };
        let own = host.positions(bug);
        host.fence.on_beat(NOW, &config(), &packet.beat, own);
        self.after(index);
        let Some(host) = &mut self.hosts[index] else {
            return;
        };
        let careless = bug == Some(Bug::AcceptWhileAsking)
            && host.fence.role() == Role::Asking(Asker::Backup)
            && generation == host.fence.generation();
        if (host.fence.accepts_entries(from, generation) || careless)
            && let Some(log) = &packet.log
            && log.len() > host.log.len()
        {
            let same = host.guest.is_none() || host.guest == packet.guest;
            if !same || !log.starts_with(&host.log) {
                self.violation.get_or_insert(Violation::NotHeld);
            }
            host.guest = packet.guest;
            host.log.clone_from(log);
        }
        self.after(index);
    }

    /// The guest of a host takes an input.
    pub fn append(&mut self, index: usize) {
        if let Some(host) = &mut self.hosts[index]
            && host.fence.role().runs_guest()
        {
            host.log.push(host.fence.generation().0);
            self.after(index);
        }
    }

    /// A host lets out what the output rule allows.
    fn release(&mut self, index: usize) {
        let Some(host) = &self.hosts[index] else {
            return;
        };
        let out = &host.log[..host.releasable()];
        if out.is_empty() {
            return;
        }
        let me = host.fence.me();
        let generation = host.fence.generation();
        match self.releasers.iter().find(|(of, _)| *of == generation) {
            Some((_, who)) if *who != me => {
                self.violation.get_or_insert(Violation::TwoReleasers);
            }
            Some(_) => {}
            None => {
                self.releasers.push((generation, me));
                self.releasers.sort();
            }
        }
        let (guest, log) = &self.seen;
        let known = host.guest == *guest && log.starts_with(out);
        let goes_on = host.guest > *guest || (host.guest == *guest && out.starts_with(log));
        if goes_on {
            self.seen = (host.guest, out.to_vec());
        } else if !known {
            self.violation.get_or_insert(Violation::NotHeld);
        }
    }

    /// The arbiter gets a request.
    pub fn arbitrate(&mut self, request: &Request) {
        let mut record = self.record;
        if self.bug == Some(Bug::GrantNonMember)
            && request.ask == Ask::Claim
            && !record.is_member(request.from)
        {
            record.backup = Some(request.from);
        }
        if self.bug == Some(Bug::RestoredAsEmpty) && record.state == RecordState::Restored {
            record.state = RecordState::Empty;
        }
        let decision = decide(&record, request);
        let granted = match decision.reply.outcome {
            Outcome::Verdict(Verdict::Granted(generation)) => Some(generation),
            _ => None,
        };
        if let Some(next) = decision.store {
            if request.ask == Ask::Claim
                && granted.is_some()
                && !self.record.is_member(request.from)
            {
                self.violation.get_or_insert(Violation::NonMember);
            }
            self.before = self.record;
            self.record = next;
        }
        if self.bug != Some(Bug::AnswerBeforeStored) {
            self.before = self.record;
        }
        if let Some(generation) = granted
            && matches!(request.ask, Ask::Claim | Ask::Start { .. } | Ask::Raise)
        {
            match self.granted.iter().find(|(of, _)| *of == generation) {
                Some((_, who)) if *who != request.from => {
                    self.violation.get_or_insert(Violation::GrantedTwice);
                }
                Some(_) => {}
                None => {
                    self.granted.push((generation, request.from));
                    self.granted.sort();
                }
            }
        }
        // The newest answer to a request is enough: a verdict never changes.
        self.replies
            .retain(|reply| reply.to != request.from || reply.id != request.id);
        self.replies.push(decision.reply);
        self.replies.sort_by_key(|reply| (reply.to, reply.id));
    }

    /// A host gets a reply.
    pub fn reply(&mut self, reply: &Reply) {
        let at = index(reply.to.node);
        if let Some(host) = &mut self.hosts[at]
            && host.fence.me() == reply.to
        {
            host.fence.on_reply(NOW, &config(), reply);
            self.after(at);
        }
    }

    /// A host suspects its peer for a moment.
    pub fn suspect(&mut self, index: usize) {
        self.silence(index);
        if let Some(host) = &mut self.hosts[index] {
            host.fence.on_suspicion(NOW, &config(), None);
        }
    }

    /// A host hears nothing of its peer.
    pub fn silence(&mut self, index: usize) {
        let Some(host) = &mut self.hosts[index] else {
            return;
        };
        host.fence
            .on_suspicion(NOW, &config(), Some(Suspicion::Silence));
        if self.bug == Some(Bug::TakeoverWithoutVerdict)
            && host.fence.role() == Role::Asking(Asker::Backup)
            && let Some(request) = host.fence.asking()
        {
            let forged = Reply {
                id: request.id,
                to: request.from,
                outcome: Outcome::Verdict(Verdict::Granted(request.generation.next())),
                record: None,
            };
            host.fence.on_reply(NOW, &config(), &forged);
        }
        self.after(index);
    }

    /// Whether the operator gives the word for this host: the peer is off, and the arbiter's record
    /// does not say that it went on alone.
    pub fn may_confirm(&self, index: usize) -> bool {
        let Some(host) = &self.hosts[index] else {
            return false;
        };
        let newer = self.record.generation > host.fence.generation();
        let went_on =
            newer && self.record.owner.map(|owner| owner.node) != Some(host.fence.me().node);
        let looks = self.bug != Some(Bug::ConfirmWithoutLooking);
        self.hosts[1 - index].is_none() && !(went_on && looks)
    }

    /// A host loses power.
    pub fn crash(&mut self, index: usize) {
        self.hosts[index] = None;
    }

    /// A host is switched on, or a fenced one rebooted.
    pub fn boot(&mut self, index: usize) {
        if self.bug != Some(Bug::SameBootAfterReboot) {
            self.boots[index] += 1;
        }
        self.hosts[index] = Some(Host::new(index, self.boots[index]));
        self.after(index);
    }

    /// The arbiter lost its record; the operator initialises it at the newest generation any host
    /// that is up is in.
    pub fn restore(&mut self) {
        let newest = self
            .hosts
            .iter()
            .flatten()
            .map(|host| host.fence.generation());
        let Some(newest) = newest.max() else { return };
        let nodes = self.record.seats.map(|seat| seat.node);
        self.record = Record::restored(self.record.pair, nodes, newest, false);
        self.before = self.record;
    }
}
