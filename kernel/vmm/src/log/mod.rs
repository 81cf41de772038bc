//! The log: everything nondeterministic that a guest saw, as a sequence of entries.
//!
//! An *answer* is a value that an instruction asked for. It belongs to the exit at which it was asked, so it carries no
//! point: answers come in the order of the questions. Every other entry is *placed*: it carries the [`Point`] at which it
//! took effect, relative to that of the placed entry before it.
//!
//! ```text
//! entry     first varint …
//! first     one byte: kind (bits 2:0), value[3:0] (bits 6:3), more (bit 7); then LEB128 of value[63:4]
//! answers   Clock: value = nanoseconds since the guest time before │ Answer: value = question, varint
//! placed    value = what (Input, Output, Check, End), or for Time, which is the commonest, exits since
//!           the placed entry before; `place` as varints: exits (not for Time), instructions since the exit; then the fields
//! ```
//!
//! Numbers wider than a byte that are no varints are little endian. There is one encoding for an entry: what is encoded
//! otherwise is refused.

mod codec;
pub mod header;
pub(crate) mod ring;
pub mod store;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use arch::addr::LARGE_PAGE_SIZE;
use arch::regs::Gprs;

use crate::digest::Parts;
use crate::machine::Operation;
pub use codec::{DecodeError, Decoder, Encoder, Sink};

/// Version of the encoding, in every [`header::Header`].
pub const VERSION: u16 = 1;
/// Most bytes that one entry carries: a jumbo frame.
pub const MAX_DATA: usize = 9216;
/// Longest encoded entry in bytes.
pub const MAX_ENTRY: usize = MAX_DATA + 64;

/// An execution point: so many instructions after so many deterministic exits, both since power-on.
///
/// Of the states that a guest is in with the same count of instructions (a fault that is delivered executes none) it
/// means the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// Deterministic exits that have been handled.
    pub exits: u64,
    /// Instructions retired since.
    pub after: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.exits, self.after)
    }
}

/// A text is no point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPoint;

impl FromStr for Point {
    type Err = NoPoint;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, NoPoint> {
        let (exits, after) = text.split_once('+').ok_or(NoPoint)?;
        Ok(Self {
            exits: exits.parse().map_err(|_| NoPoint)?,
            after: after.parse().map_err(|_| NoPoint)?,
        })
    }
}

/// The value of an instruction or of power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Guest time moved on by so many nanoseconds.
    Clock(u64),
    /// RDRAND or RDSEED.
    Random(u64),
    /// Seconds since 1970 at power-on.
    WallClock(u64),
}

/// What enters at a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The devices' next deadline has come; guest time is so many nanoseconds past it.
    Time {
        /// Nanoseconds past the deadline, or past the guest time already reached if that is later.
        late: u64,
    },
    /// Bytes typed on the guest's console; at most [`MAX_DATA`].
    Console(Vec<u8>),
    /// A frame for the guest's network interface `device`; at most [`MAX_DATA`] bytes.
    Rx {
        /// Which interface.
        device: u8,
        /// The frame.
        frame: Vec<u8>,
    },
    /// The link of network interface `device` went up or down.
    LinkState {
        /// Which interface.
        device: u8,
        /// It is up.
        up: bool,
    },
    /// The operator's hand on the machine.
    Control(Operation),
}

/// Where an output went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// The guest's console.
    Console,
    /// The network, and perhaps the console too.
    Network,
}

/// A register file, for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Instructions retired.
    pub icount: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// General registers.
    pub gprs: Gprs,
}

/// The whole processor at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its parts.
    pub parts: Parts,
    /// The registers in plain.
    pub registers: Registers,
}

/// What a part of guest memory held at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// The first of its large pages, by number.
    pub first: u64,
    /// How many of them.
    pub pages: u64,
    /// [`crate::digest::part_of_memory`].
    pub digest: u64,
}

impl MemoryPart {
    /// Its addresses in a memory of `size` bytes; the last large page may be cut off.
    #[must_use]
    pub fn range(&self, size: u64) -> Range<u64> {
        let start = self.first.saturating_mul(LARGE_PAGE_SIZE);
        let bytes = self.pages.saturating_mul(LARGE_PAGE_SIZE);
        start.min(size)..start.saturating_add(bytes).min(size)
    }
}

/// How a recorded run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Digest of the stop's text: power-off, exit status, ….
    pub stop: u64,
    /// [`crate::digest::cpu_state`].
    pub state: u64,
    /// [`crate::digest::memory`].
    pub memory: u64,
}

/// What is at a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something enters.
    Input {
        /// Low bits of the running digest before it does.
        check: u16,
        /// What.
        input: Input,
    },
    /// The guest has produced output since the entry before of this sort. What it was may leave when this entry is held
    /// elsewhere.
    Output {
        /// Where it goes.
        kind: OutputKind,
        /// Bytes.
        length: u32,
        /// XXH3 of the bytes.
        digest: u64,
        /// The running digest.
        check: u64,
    },
    /// Nothing happened: here the two executions can be compared.
    Check {
        /// The running digest.
        digest: u64,
        /// The whole processor, now and then.
        snapshot: Option<Box<Snapshot>>,
        /// A part of memory, now and then.
        memory: Option<MemoryPart>,
    },
    /// The guest has stopped; nothing follows.
    End {
        /// The running digest.
        digest: u64,
        /// What was left.
        end: End,
    },
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The answer to a question of the exit under way.
    Answer(Answer),
    /// Something at a point.
    Placed(Point, What),
}
