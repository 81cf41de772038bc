//! The record as 200 bytes, little endian: what the witness stores in its file, what goes to etcd,
//! and what a disk sector carries. Decoding never panics and checks everything it returns.

use core::fmt;

use xxhash_rust::xxh3::xxh3_64;

use super::{Answered, Ask, Denial, Member, Outcome, Record, RecordState, Refusal, Seat, Verdict};
use crate::ids::{BootId, Generation, NodeId, PairId, RequestId};

/// Bytes of a stored record.
pub const RECORD_BYTES: usize = 200;
const MAGIC: [u8; 8] = *b"DUETREC1";
const CHECKED_BYTES: usize = RECORD_BYTES - 8;

/// Why stored bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Not 200 bytes.
    Length(usize),
    /// It does not begin like a record of this version.
    Magic,
    /// The checksum differs: the bytes were damaged or written in part.
    Checksum,
    /// A field has a value that is never written.
    Field(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Length(bytes) => {
                write!(formatter, "{bytes} bytes instead of {RECORD_BYTES}")
            }
            RecordError::Magic => formatter.write_str("not a record of this version"),
            RecordError::Checksum => formatter.write_str("checksum differs"),
            RecordError::Field(field) => write!(formatter, "impossible value in {field}"),
        }
    }
}

impl core::error::Error for RecordError {}

/// Fills a buffer from its start. Writing past the end is a programmer's error.
pub(super) struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        bytes.fill(0);
        Self { bytes, at: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// 24 bytes; all zero for none, which the caller's flags tell apart.
    pub(super) fn member(&mut self, member: Option<Member>) {
        let member = member.unwrap_or(Member {
            node: NodeId(0),
            boot: BootId(0),
        });
        self.u64(member.node.0);
        self.u128(member.boot.0);
    }
}

/// Reads a buffer from its start; past the end there are zeros, which the callers' fixed lengths
/// keep from happening.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.bytes.split_first_chunk::<N>() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => [0; N],
        }
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(super) fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }

    pub(super) fn member(&mut self) -> Member {
        Member {
            node: NodeId(self.u64()),
            boot: BootId(self.u128()),
        }
    }
}

pub(super) const fn state_code(state: RecordState) -> u8 {
    match state {
        RecordState::Empty => 1,
        RecordState::Running => 2,
        RecordState::Stopped => 3,
        RecordState::Restored => 4,
    }
}

pub(super) const fn state_from(code: u8) -> Option<RecordState> {
    Some(match code {
        1 => RecordState::Empty,
        2 => RecordState::Running,
        3 => RecordState::Stopped,
        4 => RecordState::Restored,
        _ => return None,
    })
}

const fn denial_code(denial: Denial) -> u8 {
    match denial {
        Denial::Superseded => 1,
        Denial::NotMember => 2,
        Denial::NotOwner => 3,
        Denial::NotRunning => 4,
        Denial::StillRunning => 5,
        Denial::SeatTaken => 6,
    }
}

const fn denial_from(code: u8) -> Option<Denial> {
    Some(match code {
        1 => Denial::Superseded,
        2 => Denial::NotMember,
        3 => Denial::NotOwner,
        4 => Denial::NotRunning,
        5 => Denial::StillRunning,
        6 => Denial::SeatTaken,
        _ => return None,
    })
}

const fn refusal_code(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::NoRecord => 1,
        Refusal::Behind => 2,
        Refusal::NoMembers => 3,
        Refusal::Stale => 4,
        Refusal::UnknownNode => 5,
        Refusal::Storage => 6,
    }
}

const fn refusal_from(code: u8) -> Option<Refusal> {
    Some(match code {
        1 => Refusal::NoRecord,
        2 => Refusal::Behind,
        3 => Refusal::NoMembers,
        4 => Refusal::Stale,
        5 => Refusal::UnknownNode,
        6 => Refusal::Storage,
        _ => return None,
    })
}

/// Kind, reason and generation of an outcome.
pub(super) const fn outcome_code(outcome: Outcome) -> (u8, u8, u64) {
    match outcome {
        Outcome::Verdict(Verdict::Granted(generation)) => (1, 0, generation.0),
        Outcome::Verdict(Verdict::Denied(denial)) => (2, denial_code(denial), 0),
        Outcome::Refused(refusal) => (3, refusal_code(refusal), 0),
        Outcome::Known => (4, 0, 0),
    }
}

pub(super) fn outcome_from(kind: u8, reason: u8, generation: u64) -> Option<Outcome> {
    Some(match kind {
        1 => Outcome::Verdict(Verdict::Granted(Generation(generation))),
        2 => Outcome::Verdict(Verdict::Denied(denial_from(reason)?)),
        3 => Outcome::Refused(refusal_from(reason)?),
        4 => Outcome::Known,
        _ => return None,
    })
}

/// Number and the member argument of an ask.
pub(super) const fn ask_code(ask: Ask) -> (u8, Option<Member>) {
    match ask {
        Ask::Query => (1, None),
        Ask::Claim => (2, None),
        Ask::Admit(peer) => (3, Some(peer)),
        Ask::Stop => (4, None),
        Ask::Start { peer } => (5, peer),
        Ask::Adopt { backup } => (6, backup),
        Ask::Raise => (7, None),
    }
}

pub(super) fn ask_from(code: u8, member: Option<Member>) -> Option<Ask> {
    Some(match code {
        1 => Ask::Query,
        2 => Ask::Claim,
        3 => Ask::Admit(member?),
        4 => Ask::Stop,
        5 => Ask::Start { peer: member },
        6 => Ask::Adopt { backup: member },
        7 => Ask::Raise,
        _ => return None,
    })
}

const HAS_OWNER: u8 = 1;
const HAS_BACKUP: u8 = 2;

impl Record {
    /// The record as stored.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let Record {
            pair,
            sequence,
            generation,
            state,
            owner,
            backup,
            seats,
        } = self;
        let mut bytes = [0; RECORD_BYTES];
        let mut writer = Writer::new(&mut bytes);
        writer.put(&MAGIC);
        writer.u128(pair.0);
        writer.u64(*sequence);
        writer.u64(generation.0);
        writer.u8(state_code(*state));
        let owned = if owner.is_some() { HAS_OWNER } else { 0 };
        let backed = if backup.is_some() { HAS_BACKUP } else { 0 };
        writer.u8(owned | backed);
        writer.skip(6);
        writer.member(*owner);
        writer.member(*backup);
        for Seat { node, answered } in seats {
            writer.u64(node.0);
            writer.u128(answered.map_or(0, |answered| answered.boot.0));
            writer.u64(answered.map_or(0, |answered| answered.request.0));
            let (kind, reason, granted) = answered.map_or((0, 0, 0), |answered| {
                outcome_code(Outcome::Verdict(answered.verdict))
            });
            writer.u8(kind);
            writer.u8(reason);
            writer.skip(6);
            writer.u64(granted);
        }
        let sum = xxh3_64(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a stored record.
    ///
    /// # Errors
    ///
    /// Wrong length, magic or checksum, or a value that [`encode`](Self::encode) never writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() != RECORD_BYTES {
            return Err(RecordError::Length(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        if reader.array() != MAGIC {
            return Err(RecordError::Magic);
        }
        let (checked, sum) = bytes.split_at(CHECKED_BYTES);
        if sum != xxh3_64(checked).to_le_bytes() {
            return Err(RecordError::Checksum);
        }
        let pair = PairId(reader.u128());
        let sequence = reader.u64();
        let generation = Generation(reader.u64());
        let state = state_from(reader.u8()).ok_or(RecordError::Field("state"))?;
        let flags = reader.u8();
        if flags & !(HAS_OWNER | HAS_BACKUP) != 0 || flags == HAS_BACKUP {
            return Err(RecordError::Field("members"));
        }
        reader.array::<6>();
        let owner = reader.member();
        let backup = reader.member();
        let first = seat_from(&mut reader)?;
        let second = seat_from(&mut reader)?;
        if first.node == second.node {
            return Err(RecordError::Field("nodes"));
        }
        let owner = (flags & HAS_OWNER != 0).then_some(owner);
        let owned = match state {
            RecordState::Running => owner.is_some(),
            RecordState::Empty | RecordState::Restored => owner.is_none(),
            RecordState::Stopped => true,
        };
        if !owned {
            return Err(RecordError::Field("owner"));
        }
        Ok(Self {
            pair,
            sequence,
            generation,
            state,
            owner,
            backup: (flags & HAS_BACKUP != 0).then_some(backup),
            seats: [first, second],
        })
    }
}

fn seat_from(reader: &mut Reader<'_>) -> Result<Seat, RecordError> {
    let node = NodeId(reader.u64());
    let boot = BootId(reader.u128());
    let request = RequestId(reader.u64());
    let kind = reader.u8();
    let reason = reader.u8();
    reader.array::<6>();
    let generation = reader.u64();
    if kind == 0 {
        return Ok(Seat {
            node,
            answered: None,
        });
    }
    let Some(Outcome::Verdict(verdict)) = outcome_from(kind, reason, generation) else {
        return Err(RecordError::Field("answer"));
    };
    Ok(Seat {
        node,
        answered: Some(Answered {
            boot,
            request,
            verdict,
        }),
    })
}
