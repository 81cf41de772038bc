//! Fencing: from what the peer, the arbiter, the operator and the machine say to a role, and to the
//! requests the arbiter must answer. Sans-IO; every decision about who may act is taken here, by the
//! table in [`crate::role`].
//!
//! The rules that safety rests on, each checked by `tests/model`:
//! 1. only a verdict, or the operator's word, makes a host act;
//! 2. from its first claim a host accepts and acknowledges nothing until the verdict;
//! 3. an owner asks to admit a peer only after it gates outputs by the peer's acknowledgements and
//!    the peer holds all it may have released before;
//! 4. a denied primary is fenced until it reboots.

mod asking;
mod peer;

use core::fmt;

use crate::arbiter::{Ask, Member, Refusal, Request, Summary, raised};
use crate::detector::Suspicion;
use crate::ids::{Duration, Generation, Instant, LogPos, NodeId, RequestId};
use crate::role::{Asker, Cell, Gate, Input, Mode, Role};

/// Events kept until they are taken; the oldest is dropped and counted.
const EVENTS: usize = 8;

/// What to do when a replay differs while draining at a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnDivergence {
    /// Stop: nobody acts.
    Stop,
    /// Act from the backup's own state.
    Continue,
}

/// How a host behaves in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// By how much a backup lets a primary ask first.
    pub handicap: Duration,
    /// Between two sendings of one request.
    pub retry: Duration,
    /// Between two queries that only show whether the arbiter answers.
    pub probe: Duration,
    /// The arbiter counts as lost when it was silent this long.
    pub arbiter_lost: Duration,
    /// A cold host that sees no peer waits this long before it asks to start alone.
    pub cold_wait: Duration,
    /// A primary that has handed over waits this long for the peer to claim before it claims back.
    pub hand_over_wait: Duration,
    /// Entries a joining peer may be behind when its admission begins.
    pub admit_lag: u64,
    /// Hand over by itself when this host lost its service NIC or the arbiter and the peer did not.
    pub auto_hand_over: bool,
    /// What a divergence found while draining leads to.
    pub on_divergence: OnDivergence,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handicap: Duration::from_millis(50),
            retry: Duration::from_millis(20),
            probe: Duration::from_millis(500),
            arbiter_lost: Duration::from_millis(2_000),
            cold_wait: Duration::from_secs(30),
            hand_over_wait: Duration::from_secs(2),
            admit_lag: 256,
            auto_hand_over: true,
            on_divergence: OnDivergence::Stop,
        }
    }
}

/// Where this host's log stands, as the link knows it when it calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// End of the log: appended on a primary, held on a backup.
    pub head: LogPos,
    /// Position up to which the peer, in its present boot, has acknowledged this host's log.
    pub acked: LogPos,
}

/// What one fence tells the other, beside its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// Nothing.
    None,
    /// You are a member in this generation.
    Admitted,
    /// I have handed over: claim, once you hold everything below this position.
    Claim(LogPos),
}

/// What a host can do for the guest, for the choice of who should run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Health {
    /// The service NIC has no carrier.
    pub carrier_lost: bool,
    /// The arbiter does not answer.
    pub arbiter_lost: bool,
    /// Nothing is heard of the peer, which may well hear this host.
    pub peer_lost: bool,
}

/// A heartbeat, as far as fencing needs it. The session it came in names the sender's boot; its
/// frame, the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Beat {
    /// Who sent it.
    pub from: Member,
    /// In which generation.
    pub generation: Generation,
    /// As what.
    pub role: Role,
    /// What it tells this host.
    pub notice: Notice,
    /// What it can do.
    pub health: Health,
}

const NOTICE_MASK: u8 = 0x0f;
const HEALTH_PEER: u8 = 0x20;
const HEALTH_CARRIER: u8 = 0x40;
const HEALTH_ARBITER: u8 = 0x80;

/// The byte and the position that carry a notice and the health in a heartbeat.
#[must_use]
pub const fn encode_notice(notice: Notice, health: Health) -> (u8, LogPos) {
    let (code, position) = match notice {
        Notice::None => (0, LogPos(0)),
        Notice::Admitted => (1, LogPos(0)),
        Notice::Claim(position) => (2, position),
    };
    let carrier = if health.carrier_lost {
        HEALTH_CARRIER
    } else {
        0
    };
    let arbiter = if health.arbiter_lost {
        HEALTH_ARBITER
    } else {
        0
    };
    let peer = if health.peer_lost { HEALTH_PEER } else { 0 };
    (code | carrier | arbiter | peer, position)
}

/// Reads what [`encode_notice`] wrote; `None` for an unknown notice.
#[must_use]
pub const fn decode_notice(byte: u8, position: LogPos) -> Option<(Notice, Health)> {
    let notice = match byte & NOTICE_MASK {
        0 => Notice::None,
        1 => Notice::Admitted,
        2 => Notice::Claim(position),
        _ => return None,
    };
    let health = Health {
        carrier_lost: byte & HEALTH_CARRIER != 0,
        arbiter_lost: byte & HEALTH_ARBITER != 0,
        peer_lost: byte & HEALTH_PEER != 0,
    };
    Some((notice, health))
}

/// What the fence wants known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The role changed.
    Changed {
        /// From this role.
        from: Role,
        /// To this one.
        to: Role,
        /// Because of this.
        input: Input,
        /// In this generation from now on.
        generation: Generation,
    },
    /// The log held so far belongs to a guest that is gone: forget it, begin at position 0.
    Discard,
}

/// Why a command was not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// Not in this role.
    Role(Role),
    /// The peer is not a backup in this generation.
    NoBackup,
    /// This host may lack entries whose outputs the world has seen.
    NotWhole,
}

impl fmt::Display for CommandError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Role(role) => write!(formatter, "not possible while {role}"),
            CommandError::NoBackup => formatter.write_str("the peer is not a backup"),
            CommandError::NotWhole => {
                formatter.write_str("this host may lack entries of the running guest")
            }
        }
    }
}

impl core::error::Error for CommandError {}

/// What the fence has dropped and done, since it was last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Inputs that meant nothing in the role they met.
    pub dropped_inputs: u64,
    /// Heartbeats of an older generation.
    pub old_generation: u64,
    /// Frames of a newer generation.
    pub newer_generation: u64,
    /// Heartbeats of a node that is not the peer.
    pub foreign: u64,
    /// Replies to requests that are no longer asked.
    pub late_replies: u64,
    /// Refusals, which are no verdict.
    pub refusals: u64,
    /// Requests handed out, retries included.
    pub requests: u64,
    /// Events lost because nobody took them.
    pub lost_events: u64,
}

/// A request and when it is next sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outstanding {
    request: Request,
    due: Instant,
}

/// What is known of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Peer {
    member: Member,
    role: Option<Role>,
    health: Health,
    cold_since: Option<Instant>,
}

/// The fence of one host in one boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    me: Member,
    peer_node: NodeId,
    role: Role,
    generation: Generation,
    peer: Option<Peer>,
    /// Whose log is held: only its continuation may be accepted.
    follows: Option<Member>,
    asking: Option<Outstanding>,
    probe: Option<Outstanding>,
    next_id: RequestId,
    record: Option<Summary>,
    arbiter_heard: Option<Instant>,
    refusal: Option<Refusal>,
    /// The claim of this generation was denied; it is not made twice.
    denied_at: Option<Generation>,
    /// Everything the world has seen is held: this host is, or has handed over as, a member.
    whole: bool,
    /// The generation is the operator's word and not recorded yet.
    raise_pending: bool,
    stop_pending: bool,
    power_off: bool,
    divergence: bool,
    /// Outputs below this may have been released before the gate closed.
    gate_from: LogPos,
    admit_asked: bool,
    handed_over: Option<LogPos>,
    claim_back_at: Instant,
    suspected_since: Option<Instant>,
    cold_since: Instant,
    carrier_lost: bool,
    /// The detector hears nothing of the peer.
    deaf: bool,
    events: [Option<Event>; EVENTS],
    counters: Counters,
}

impl Fence {
    /// A host that has just started in boot `me`; its peer's boots are not known yet.
    #[must_use]
    pub fn new(me: Member, peer_node: NodeId, now: Instant) -> Self {
        Self {
            me,
            peer_node,
            role: Role::Cold,
            generation: Generation(0),
            peer: None,
            follows: None,
            asking: None,
            probe: None,
            next_id: RequestId(1),
            record: None,
            arbiter_heard: None,
            refusal: None,
            denied_at: None,
            whole: false,
            raise_pending: false,
            stop_pending: false,
            power_off: false,
            divergence: false,
            gate_from: LogPos(0),
            admit_asked: false,
            handed_over: None,
            claim_back_at: Instant::NEVER,
            suspected_since: None,
            cold_since: now,
            carrier_lost: false,
            deaf: false,
            events: [None; EVENTS],
            counters: Counters::default(),
        }
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The generation this host is in; every frame it sends carries it.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// This host in this boot.
    #[must_use]
    pub const fn me(&self) -> Member {
        self.me
    }

    /// The peer in its present boot, once met.
    #[must_use]
    pub fn peer(&self) -> Option<Member> {
        self.peer.map(|peer| peer.member)
    }

    /// When outputs may leave: the output rule, with the link's `acked`.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.role.gate()
    }

    /// Whether log entries of `sender` in `generation` are accepted and acknowledged.
    #[must_use]
    pub fn accepts_entries(&self, sender: Member, generation: Generation) -> bool {
        self.role.accepts_entries()
            && generation == self.generation
            && self.follows == Some(sender)
            && self.handed_over.is_none()
    }

    /// Whose log this host holds or takes.
    #[must_use]
    pub const fn follows(&self) -> Option<Member> {
        self.follows
    }

    /// The arbiter's record as last heard.
    #[must_use]
    pub const fn record(&self) -> Option<Summary> {
        self.record
    }

    /// Why the arbiter last gave no verdict.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Whether the arbiter has answered lately.
    #[must_use]
    pub fn arbiter_reachable(&self, config: &Config, now: Instant) -> bool {
        self.arbiter_heard
            .is_some_and(|heard| now.since(heard) < config.arbiter_lost)
    }

    /// What this host tells the peer in each heartbeat.
    #[must_use]
    pub fn notice(&self) -> Notice {
        match (self.role, self.handed_over) {
            (Role::Primary(Mode::Protected | Mode::HandingOver), _) => Notice::Admitted,
            (Role::Joining | Role::Asking(Asker::Backup), Some(head)) => Notice::Claim(head),
            _ => Notice::None,
        }
    }

    /// This host's health, for its heartbeats.
    #[must_use]
    pub fn health(&self, config: &Config, now: Instant) -> Health {
        Health {
            carrier_lost: self.carrier_lost,
            arbiter_lost: self.arbiter_heard.is_some() && !self.arbiter_reachable(config, now),
            peer_lost: self.deaf,
        }
    }

    /// The oldest event not taken yet.
    pub fn event(&mut self) -> Option<Event> {
        let first = self.events[0].take();
        self.events.rotate_left(1);
        first
    }

    /// The counters since the last call.
    pub fn take_counters(&mut self) -> Counters {
        core::mem::take(&mut self.counters)
    }

    /// The service NIC lost or regained carrier.
    pub fn on_carrier(&mut self, lost: bool) {
        self.carrier_lost = lost;
    }

    /// Everything held is replayed up to the last output. Positions are as of now.
    pub fn drained(&mut self, now: Instant) {
        let input = if self.raise_pending {
            Input::DrainedOnWord
        } else {
            Input::Drained
        };
        self.apply(now, input);
    }

    /// The replay differed from the log. A host that has asked deals with it after the verdict.
    pub fn diverged(&mut self, now: Instant, config: &Config) {
        if self.role == Role::Draining && config.on_divergence == OnDivergence::Continue {
            return;
        }
        if matches!(self.role, Role::Asking(Asker::Backup)) {
            self.divergence = true;
        }
        self.apply(now, Input::Divergence);
    }

    /// The guest powered off. A primary that has asked deals with it after the verdict.
    pub fn powered_off(&mut self, now: Instant) {
        if self.role == Role::Asking(Asker::Primary) {
            self.power_off = true;
        }
        self.apply(now, Input::PowerOff);
    }

    /// The primary no longer has the entry this host needs next.
    pub fn out_of_ring(&mut self, now: Instant) {
        self.apply(now, Input::OutOfRing);
    }

    /// State transfer from the followed primary is complete.
    pub fn transferred(&mut self, now: Instant) {
        self.apply(now, Input::Transferred);
    }

    /// The operator wants the peer to run the guest.
    ///
    /// # Errors
    ///
    /// This host is not a protected primary, or its peer is not a backup.
    pub fn hand_over(&mut self, now: Instant) -> Result<(), CommandError> {
        let backup = self.peer.and_then(|peer| peer.role) == Some(Role::Backup);
        if self.role == Role::Primary(Mode::Protected) && !backup {
            return Err(CommandError::NoBackup);
        }
        self.command(now, Input::HandOver)
    }

    /// The operator asserts that the peer is off, stays off and did not go on alone before: this host
    /// goes on without the arbiter. `at`: the newest generation known to the operator, where this host knows less.
    ///
    /// # Errors
    ///
    /// This host is not waiting for a verdict or cold, or may not hold the whole log.
    pub fn confirm(&mut self, now: Instant, at: Option<Generation>) -> Result<(), CommandError> {
        if !matches!(self.role, Role::Cold | Role::Asking(_)) {
            return Err(CommandError::Role(self.role));
        }
        if self.role == Role::Asking(Asker::Backup) && !self.whole {
            return Err(CommandError::NotWhole);
        }
        let known = self.generation.max(at.unwrap_or(Generation(0)));
        self.generation = raised(known);
        self.raise_pending = true;
        self.asking = None;
        self.command(now, Input::Confirmed)?;
        self.ask(now, Ask::Raise);
        self.after_verdict(now);
        Ok(())
    }

    fn command(&mut self, now: Instant, input: Input) -> Result<(), CommandError> {
        match self.apply(now, input) {
            Cell::Refuse => Err(CommandError::Role(self.role)),
            Cell::Go(_) | Cell::Keep | Cell::Drop => Ok(()),
        }
    }

    /// Looks up the table and does what it says.
    fn apply(&mut self, now: Instant, input: Input) -> Cell {
        let cell = self.role.on(input);
        match cell {
            Cell::Go(role) => self.enter(now, role, input),
            Cell::Drop => self.counters.dropped_inputs += 1,
            Cell::Keep | Cell::Refuse => {}
        }
        cell
    }

    fn enter(&mut self, now: Instant, role: Role, input: Input) {
        let from = self.role;
        self.role = role;
        self.suspected_since = None;
        self.push(Event::Changed {
            from,
            to: role,
            input,
            generation: self.generation,
        });
        match role {
            Role::Cold => {
                self.cold_since = now;
                self.forget_log();
            }
            Role::Asking(asker) => self.ask_for_verdict(now, asker),
            Role::Waiting | Role::Diverged | Role::Fenced => self.whole = false,
            Role::Stopped => {
                // Whoever learns of the stop as a member records it: the owner may be dead by then.
                self.stop_pending = from.offers_log() || from == Role::Draining || self.whole;
                self.whole = false;
                self.ask_next(now);
            }
            Role::Primary(Mode::Solo | Mode::Unprotected) => {
                self.follows = None;
                self.handed_over = None;
            }
            Role::Joining
            | Role::Backup
            | Role::Draining
            | Role::Primary(Mode::Protected | Mode::Admitting | Mode::HandingOver) => {}
        }
    }

    fn forget_log(&mut self) {
        self.follows = None;
        self.whole = false;
        self.handed_over = None;
        self.push(Event::Discard);
    }

    fn push(&mut self, event: Event) {
        match self.events.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(event),
            None => {
                self.events.rotate_left(1);
                self.events[EVENTS - 1] = Some(event);
                self.counters.lost_events += 1;
            }
        }
    }

    /// The peer, when it cannot have a guest either.
    fn cold_peer(&self) -> Option<Peer> {
        self.peer
            .filter(|peer| peer.role.is_some_and(peer::has_no_guest))
    }

    /// Whether this host would ask to take over if it suspected its primary for long enough. A joining
    /// host asks once in a generation, and only if it has followed somebody.
    fn would_ask(&self) -> bool {
        match self.role {
            Role::Backup => true,
            Role::Joining => self.denied_at != Some(self.generation) && self.follows.is_some(),
            _ => false,
        }
    }

    fn suspected(&mut self, now: Instant) {
        let input = match self.role {
            Role::Primary(Mode::Admitting) if !self.admit_asked => Input::JoinerLost,
            Role::Joining if !self.would_ask() => return,
            _ => Input::Suspected,
        };
        self.apply(now, input);
    }

    /// What the detector says at `now`. A primary asks at once, a backup after the handicap.
    pub fn on_suspicion(&mut self, now: Instant, config: &Config, suspicion: Option<Suspicion>) {
        self.deaf = suspicion == Some(Suspicion::Silence);
        if suspicion.is_none() {
            self.suspected_since = None;
            return;
        }
        if self.deaf
            && let Some(peer) = &mut self.peer
        {
            // What a silent peer last said it was is no longer known.
            peer.role = None;
            peer.cold_since = None;
        }
        let since = *self.suspected_since.get_or_insert(now);
        let patient = matches!(self.role, Role::Backup | Role::Joining);
        if !patient || now.since(since) >= config.handicap {
            self.suspected(now);
        }
    }
}
