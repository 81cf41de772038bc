//! The arbiter's record and its one transition function. The witness, the shared disk, the model
//! check and the simulator all decide with [`decide`]; none of them has rules of its own.
//!
//! Every request names the generation it was made in, so a delayed one can only fail; the newest
//! answer given to each node is part of the record, so a repeated one gets the same answer.

pub mod codec;
pub mod datagram;
pub mod disk;

use core::fmt;

use crate::ids::{BootId, Generation, NodeId, PairId, RequestId};

/// How far the operator's word raises a generation: no sequence of takeovers gets there.
pub const OPERATOR_RAISE: u64 = 1 << 32;

/// The generation the operator's word leads to from `generation`.
#[must_use]
pub const fn raised(generation: Generation) -> Generation {
    Generation(generation.0.saturating_add(OPERATOR_RAISE))
}

/// A host in one of its boots: what the record means by a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The host.
    pub node: NodeId,
    /// Its start.
    pub boot: BootId,
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "node {} boot {}", self.node, self.boot)
    }
}

/// What the record says of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordState {
    /// Initialised; no guest was ever started.
    Empty,
    /// The owner may act.
    Running,
    /// The guest powered off cleanly.
    Stopped,
    /// The members were lost with the old record; only the running owner, or two cold hosts
    /// together, can fill it in again.
    Restored,
}

/// Who may act, and what was last answered to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The pair this record is for.
    pub pair: PairId,
    /// Changes so far.
    pub sequence: u64,
    /// The newest generation.
    pub generation: Generation,
    /// What became of the guest.
    pub state: RecordState,
    /// Who may act in this generation.
    pub owner: Option<Member>,
    /// The owner's backup in this generation: with the owner, the members.
    pub backup: Option<Member>,
    /// The pair's two nodes with the newest answer each got.
    pub seats: [Seat; 2],
}

/// A node of the pair and the newest answer it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    /// The node.
    pub node: NodeId,
    /// Its newest answered request, if any.
    pub answered: Option<Answered>,
}

/// An answer that must be given again to the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answered {
    /// The boot that asked.
    pub boot: BootId,
    /// Its request.
    pub request: RequestId,
    /// What it was told.
    pub verdict: Verdict,
}

/// A binding answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Granted; the generation the asker is in from now on.
    Granted(Generation),
    /// Denied for good.
    Denied(Denial),
}

/// Why a request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// The record has a newer generation.
    Superseded,
    /// The asker is not a member.
    NotMember,
    /// The asker is not the owner.
    NotOwner,
    /// The guest is not running.
    NotRunning,
    /// The guest may be running on a member that is not known to be dead.
    StillRunning,
    /// The generation has another backup.
    SeatTaken,
}

/// Why there is no verdict. The asker goes on asking the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The arbiter has no record for the pair: it was never initialised, or lost its state.
    NoRecord,
    /// The asker knows a newer generation than the record: the record is an old copy.
    Behind,
    /// The record was restored and has no members yet.
    NoMembers,
    /// A newer request of the same boot was answered already.
    Stale,
    /// The node is not one of the pair's two.
    UnknownNode,
    /// The record could not be read or written.
    Storage,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    /// The record; changes nothing.
    Query,
    /// To act alone in the next generation, as a member of this one.
    Claim,
    /// To have this host as backup, as the owner.
    Admit(Member),
    /// To record a clean power-off, as a member.
    Stop,
    /// To start the guest from power-on. With `peer`, the asker vouches that the peer node is cold
    /// in that boot, so that its earlier boots are dead.
    Start {
        /// The cold peer, if one is seen.
        peer: Option<Member>,
    },
    /// To fill in a restored record, as the running owner.
    Adopt {
        /// The owner's backup, if it has one.
        backup: Option<Member>,
    },
    /// To take over the operator's word: the request's generation is the raised one.
    Raise,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Grows within a boot; a retry keeps it.
    pub id: RequestId,
    /// Who asks.
    pub from: Member,
    /// The generation the asker is in.
    pub generation: Generation,
    /// What is asked.
    pub ask: Ask,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A verdict.
    Verdict(Verdict),
    /// No verdict; ask again.
    Refused(Refusal),
    /// The answer to a query: the record's summary.
    Known,
}

/// The part of the record a host may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Summary {
    /// The newest generation.
    pub generation: Generation,
    /// What became of the guest.
    pub state: RecordState,
    /// Who may act.
    pub owner: Option<Member>,
    /// Its backup.
    pub backup: Option<Member>,
}

impl Summary {
    /// Whether `from` may start the guest from power-on: nothing runs, or it vouches, by its own
    /// boot and the cold `peer`'s, that every member is dead.
    #[must_use]
    pub fn may_start(&self, from: Member, peer: Option<Member>) -> bool {
        let together = peer.is_some_and(|peer| {
            let rebooted = |member: Member, alive: Member| {
                member.node == alive.node && member.boot != alive.boot
            };
            let dead = |member| rebooted(member, from) || rebooted(member, peer);
            // A restored record has no members; both nodes' earlier boots are dead all the same.
            peer.node != from.node && [self.owner, self.backup].into_iter().flatten().all(dead)
        });
        match self.state {
            RecordState::Empty | RecordState::Stopped => true,
            RecordState::Running | RecordState::Restored => together,
        }
    }
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// The request answered.
    pub id: RequestId,
    /// Who asked.
    pub to: Member,
    /// What became of it.
    pub outcome: Outcome,
    /// The record after it; `None` where there is no record.
    pub record: Option<Summary>,
}

/// A reply and the record to store before sending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The record to make durable first; `None`: unchanged.
    pub store: Option<Record>,
    /// The answer.
    pub reply: Reply,
}

impl Record {
    /// A record for a pair that never ran.
    #[must_use]
    pub const fn empty(pair: PairId, nodes: [NodeId; 2]) -> Self {
        Self {
            pair,
            sequence: 0,
            generation: Generation(0),
            state: RecordState::Empty,
            owner: None,
            backup: None,
            seats: [
                Seat {
                    node: nodes[0],
                    answered: None,
                },
                Seat {
                    node: nodes[1],
                    answered: None,
                },
            ],
        }
    }

    /// A record to replace a lost one. `generation` must be the newest any host of the pair is in.
    /// `stopped`: the operator vouches that neither host runs the guest.
    #[must_use]
    pub const fn restored(
        pair: PairId,
        nodes: [NodeId; 2],
        generation: Generation,
        stopped: bool,
    ) -> Self {
        let mut record = Self::empty(pair, nodes);
        record.generation = generation;
        record.state = if stopped {
            RecordState::Stopped
        } else {
            RecordState::Restored
        };
        record
    }

    /// The part a host may act on.
    #[must_use]
    pub const fn summary(&self) -> Summary {
        Summary {
            generation: self.generation,
            state: self.state,
            owner: self.owner,
            backup: self.backup,
        }
    }

    /// Whether `member` is one in the current generation.
    #[must_use]
    pub fn is_member(&self, member: Member) -> bool {
        self.owner == Some(member) || self.backup == Some(member)
    }

    fn enter(&mut self, generation: Generation, owner: Member) {
        self.generation = generation;
        self.state = RecordState::Running;
        self.owner = Some(owner);
        self.backup = None;
    }
}

/// A reply to a request that met no record.
#[must_use]
pub const fn refuse(request: &Request, refusal: Refusal, record: Option<Summary>) -> Reply {
    Reply {
        id: request.id,
        to: request.from,
        outcome: Outcome::Refused(refusal),
        record,
    }
}

/// Decides one request. The caller makes [`Decision::store`] durable before it sends the reply.
#[must_use]
pub fn decide(record: &Record, request: &Request) -> Decision {
    let unchanged = |outcome| Decision {
        store: None,
        reply: Reply {
            id: request.id,
            to: request.from,
            outcome,
            record: Some(record.summary()),
        },
    };
    let refused = |refusal| unchanged(Outcome::Refused(refusal));
    let Some(seat) = record
        .seats
        .iter()
        .position(|seat| seat.node == request.from.node)
    else {
        return refused(Refusal::UnknownNode);
    };
    if request.ask == Ask::Query {
        return unchanged(Outcome::Known);
    }
    if let Some(answered) = record.seats[seat].answered
        && answered.boot == request.from.boot
    {
        if answered.request == request.id {
            return unchanged(Outcome::Verdict(answered.verdict));
        }
        if answered.request > request.id {
            return refused(Refusal::Stale);
        }
    }
    let mut next = *record;
    let verdict = match judge(&mut next, request) {
        Ok(verdict) => verdict,
        Err(refusal) => return refused(refusal),
    };
    next.sequence = record.sequence.saturating_add(1);
    next.seats[seat].answered = Some(Answered {
        boot: request.from.boot,
        request: request.id,
        verdict,
    });
    Decision {
        store: Some(next),
        reply: Reply {
            id: request.id,
            to: request.from,
            outcome: Outcome::Verdict(verdict),
            record: Some(next.summary()),
        },
    }
}

/// Applies a request that was not answered before to `record`.
fn judge(record: &mut Record, request: &Request) -> Result<Verdict, Refusal> {
    let from = request.from;
    let denied = |denial| Ok(Verdict::Denied(denial));
    if request.ask != Ask::Raise {
        if request.generation > record.generation {
            return Err(Refusal::Behind);
        }
        if request.generation < record.generation {
            return denied(Denial::Superseded);
        }
    }
    let restored = record.state == RecordState::Restored;
    match request.ask {
        // Answered by `decide`: it changes nothing.
        Ask::Query => {}
        Ask::Claim | Ask::Admit(_) | Ask::Stop if restored => return Err(Refusal::NoMembers),
        Ask::Claim | Ask::Admit(_) if record.state != RecordState::Running => {
            return denied(Denial::NotRunning);
        }
        Ask::Claim | Ask::Stop if !record.is_member(from) => return denied(Denial::NotMember),
        Ask::Claim => record.enter(record.generation.next(), from),
        Ask::Stop => record.state = RecordState::Stopped,
        Ask::Admit(peer) => {
            if record.owner != Some(from) || peer.node == from.node {
                return denied(Denial::NotOwner);
            }
            if record.backup.is_some_and(|backup| backup != peer) {
                return denied(Denial::SeatTaken);
            }
            record.backup = Some(peer);
        }
        Ask::Start { peer } => {
            if !record.summary().may_start(from, peer) {
                return denied(Denial::StillRunning);
            }
            record.enter(record.generation.next(), from);
        }
        Ask::Adopt { backup } => {
            if !restored {
                return denied(Denial::StillRunning);
            }
            record.enter(record.generation, from);
            record.backup = backup.filter(|backup| backup.node != from.node);
        }
        Ask::Raise => {
            // Only the operator's word jumps this far; it outranks whatever the record says.
            let epoch = |generation: Generation| generation.0 / OPERATOR_RAISE;
            if epoch(request.generation) <= epoch(record.generation) {
                return denied(Denial::Superseded);
            }
            record.enter(request.generation, from);
        }
    }
    Ok(Verdict::Granted(record.generation))
}
