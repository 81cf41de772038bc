//! Entries as bytes, and back. Any bytes can be given to the decoder.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use arch::regs::Gprs;

use super::{
    Answer, End, Entry, Input, MAX_DATA, MemoryPart, OutputKind, Point, Registers, Snapshot, What,
};
use crate::digest::Parts;
use crate::machine::Operation;

mod kind {
    pub(super) const CLOCK: u8 = 0;
    pub(super) const ANSWER: u8 = 1;
    pub(super) const TIME: u8 = 2;
    pub(super) const INPUT: u8 = 3;
    pub(super) const OUTPUT: u8 = 4;
    pub(super) const CHECK: u8 = 5;
    pub(super) const END: u8 = 6;
}

mod answer {
    pub(super) const RANDOM: u64 = 0;
    pub(super) const WALL_CLOCK: u64 = 1;
}

mod input {
    pub(super) const CONSOLE: u64 = 0;
    pub(super) const RX: u64 = 1;
    pub(super) const LINK_STATE: u64 = 2;
    pub(super) const CONTROL: u64 = 3;
}

const OUTPUT_CONSOLE: u64 = 0;
const OUTPUT_NETWORK: u64 = 1;

/// What a check carries.
const CHECK_SNAPSHOT: u64 = 1 << 0;
const CHECK_MEMORY: u64 = 1 << 1;

/// Operations by their number in the log.
const OPERATIONS: [Operation; 4] = [
    Operation::PowerButton,
    Operation::Nmi,
    Operation::Reset,
    Operation::Stop,
];

/// Bits of a value in an entry's first byte.
const FIRST_BITS: u32 = 4;
const MORE: u8 = 1 << 7;

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside of it. More may come.
    Incomplete,
    /// A kind or a variant that does not exist.
    Unknown(u64),
    /// A number is not encoded as it must be.
    Number,
    /// More bytes than [`MAX_DATA`].
    TooLong(u64),
    /// More answers than any guest asks for between two points.
    NoPoint,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("it ends inside of an entry"),
            Self::Unknown(what) => write!(f, "there is no entry of kind {what:#x}"),
            Self::Number => f.write_str("a number is malformed"),
            Self::NoPoint => f.write_str("answers without end"),
            Self::TooLong(bytes) => write!(f, "an entry of {bytes} bytes (most: {MAX_DATA})"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Where encoded bytes go.
pub trait Sink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);
}

impl Sink for Vec<u8> {
    #[inline]
    fn put(&mut self, byte: u8) {
        self.push(byte);
    }
}

#[inline]
fn put_first(to: &mut impl Sink, kind: u8, value: u64) {
    let low = (value as u8 & 0xf) << 3;
    let rest = value >> FIRST_BITS;
    to.put(kind | low | if rest == 0 { 0 } else { MORE });
    if rest != 0 {
        put_varint(to, rest);
    }
}

#[inline]
fn put_varint(to: &mut impl Sink, mut value: u64) {
    while value > 0x7f {
        to.put(value as u8 | MORE);
        value >>= 7;
    }
    to.put(value as u8);
}

fn put_u64(to: &mut impl Sink, value: u64) {
    value.to_le_bytes().into_iter().for_each(|b| to.put(b));
}

fn put_data(to: &mut impl Sink, data: &[u8]) {
    put_varint(to, data.len() as u64);
    data.iter().for_each(|b| to.put(*b));
}

/// Writes entries. Points have to come in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoder {
    exits: u64,
}

impl Encoder {
    /// Writes an answer.
    #[inline]
    pub fn answer(&self, to: &mut impl Sink, answer: Answer) {
        match answer {
            Answer::Clock(delta) => put_first(to, kind::CLOCK, delta),
            Answer::Random(value) => {
                put_first(to, kind::ANSWER, answer::RANDOM);
                put_varint(to, value);
            }
            Answer::WallClock(seconds) => {
                put_first(to, kind::ANSWER, answer::WALL_CLOCK);
                put_varint(to, seconds);
            }
        }
    }

    /// Writes what is at a point, which is not before that of the call before.
    pub fn placed(&mut self, to: &mut impl Sink, point: Point, what: &What) {
        match what {
            What::Input { check, input } => self.input(to, point, *check, input),
            What::Output {
                kind,
                length,
                digest,
                check,
            } => {
                let kind = match kind {
                    OutputKind::Console => OUTPUT_CONSOLE,
                    OutputKind::Network => OUTPUT_NETWORK,
                };
                put_first(to, kind::OUTPUT, kind);
                self.point(to, point);
                put_varint(to, u64::from(*length));
                put_u64(to, *digest);
                put_u64(to, *check);
            }
            What::Check {
                digest,
                snapshot,
                memory,
            } => {
                let snapshot_bit = if snapshot.is_some() {
                    CHECK_SNAPSHOT
                } else {
                    0
                };
                let memory_bit = if memory.is_some() { CHECK_MEMORY } else { 0 };
                put_first(to, kind::CHECK, snapshot_bit | memory_bit);
                self.point(to, point);
                put_u64(to, *digest);
                if let Some(Snapshot { parts, registers }) = snapshot.as_deref() {
                    parts.0.iter().for_each(|part| put_u64(to, *part));
                    put_u64(to, registers.icount);
                    put_u64(to, registers.rip);
                    put_u64(to, registers.rflags);
                    registers.gprs.0.iter().for_each(|gpr| put_u64(to, *gpr));
                }
                if let Some(part) = memory {
                    put_varint(to, part.first);
                    put_varint(to, part.pages);
                    put_u64(to, part.digest);
                }
            }
            What::End {
                digest,
                end:
                    End {
                        stop,
                        state,
                        memory,
                    },
            } => {
                put_first(to, kind::END, 0);
                self.point(to, point);
                for word in [digest, stop, state, memory] {
                    put_u64(to, *word);
                }
            }
        }
    }

    fn input(&mut self, to: &mut impl Sink, point: Point, check: u16, input: &Input) {
        if let Input::Time { late } = input {
            put_first(to, kind::TIME, self.exits(point));
            put_varint(to, point.after);
            check.to_le_bytes().into_iter().for_each(|b| to.put(b));
            return put_varint(to, *late);
        }
        let which = match input {
            Input::Time { .. } | Input::Console(_) => input::CONSOLE,
            Input::Rx { .. } => input::RX,
            Input::LinkState { .. } => input::LINK_STATE,
            Input::Control(_) => input::CONTROL,
        };
        put_first(to, kind::INPUT, which);
        self.point(to, point);
        check.to_le_bytes().into_iter().for_each(|b| to.put(b));
        match input {
            Input::Time { .. } => {}
            Input::Console(bytes) => put_data(to, bytes),
            Input::Rx { device, frame } => {
                to.put(*device);
                put_data(to, frame);
            }
            Input::LinkState { device, up } => {
                to.put(*device);
                to.put(u8::from(*up));
            }
            Input::Control(operation) => {
                let number = OPERATIONS.iter().position(|o| o == operation);
                to.put(number.map_or(u8::MAX, |n| n as u8));
            }
        }
    }

    fn exits(&mut self, point: Point) -> u64 {
        let delta = point.exits.wrapping_sub(self.exits);
        self.exits = point.exits;
        delta
    }

    fn point(&mut self, to: &mut impl Sink, point: Point) {
        let exits = self.exits(point);
        put_varint(to, exits);
        put_varint(to, point.after);
    }
}

/// Reads entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    exits: u64,
}

impl Decoder {
    /// The entry that `bytes` begin with, and its length.
    ///
    /// # Errors
    ///
    /// The bytes are no entry, or not a whole one; then the decoder is as it was.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(Entry, usize), DecodeError> {
        let mut reader = Reader(bytes);
        let mut exits = self.exits;
        let entry = reader.entry(&mut exits)?;
        self.exits = exits;
        Ok((entry, bytes.len() - reader.0.len()))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Incomplete)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?
            .try_into()
            .map_err(|_| DecodeError::Incomplete)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn check(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// A number of at most `bits`.
    fn number(&mut self, bits: u32) -> Result<u64, DecodeError> {
        let mut value = 0;
        let mut shift = 0;
        loop {
            let byte = self.byte()?;
            let part = u64::from(byte & !MORE);
            if shift >= bits || part != 0 && 64 - part.leading_zeros() + shift > bits {
                return Err(DecodeError::Number);
            }
            value |= part << shift;
            if byte & MORE == 0 {
                // A last byte of zero would be a second way to write the number.
                return if part == 0 && shift != 0 {
                    Err(DecodeError::Number)
                } else {
                    Ok(value)
                };
            }
            shift += 7;
        }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        self.number(u64::BITS)
    }

    fn first(&mut self) -> Result<(u8, u64), DecodeError> {
        let byte = self.byte()?;
        let low = u64::from(byte >> 3 & 0xf);
        let rest = if byte & MORE == 0 {
            0
        } else {
            match self.number(u64::BITS - FIRST_BITS)? {
                0 => return Err(DecodeError::Number),
                rest => rest,
            }
        };
        Ok((byte & 7, low | rest << FIRST_BITS))
    }

    fn data(&mut self) -> Result<Vec<u8>, DecodeError> {
        let length = self.varint()?;
        if length > MAX_DATA as u64 {
            return Err(DecodeError::TooLong(length));
        }
        Ok(self.take(length as usize)?.to_vec())
    }

    fn point(&mut self, exits: &mut u64) -> Result<Point, DecodeError> {
        let delta = self.varint()?;
        self.point_after(exits, delta)
    }

    fn point_after(&mut self, exits: &mut u64, delta: u64) -> Result<Point, DecodeError> {
        *exits = exits.checked_add(delta).ok_or(DecodeError::Number)?;
        Ok(Point {
            exits: *exits,
            after: self.varint()?,
        })
    }

    fn entry(&mut self, exits: &mut u64) -> Result<Entry, DecodeError> {
        let (kind, value) = self.first()?;
        let unknown = || DecodeError::Unknown(value << 3 | u64::from(kind));
        Ok(match kind {
            kind::CLOCK => Entry::Answer(Answer::Clock(value)),
            kind::ANSWER => Entry::Answer(match value {
                answer::RANDOM => Answer::Random(self.varint()?),
                answer::WALL_CLOCK => Answer::WallClock(self.varint()?),
                _ => return Err(unknown()),
            }),
            kind::TIME => {
                let point = self.point_after(exits, value)?;
                let check = self.check()?;
                let input = Input::Time {
                    late: self.varint()?,
                };
                Entry::Placed(point, What::Input { check, input })
            }
            kind::INPUT => {
                if value > input::CONTROL {
                    return Err(unknown());
                }
                let point = self.point(exits)?;
                let check = self.check()?;
                let input = self.input(value)?;
                Entry::Placed(point, What::Input { check, input })
            }
            kind::OUTPUT if value <= OUTPUT_NETWORK => {
                let point = self.point(exits)?;
                let what = What::Output {
                    kind: if value == OUTPUT_NETWORK {
                        OutputKind::Network
                    } else {
                        OutputKind::Console
                    },
                    length: u32::try_from(self.varint()?).map_err(|_| DecodeError::Number)?,
                    digest: self.u64()?,
                    check: self.u64()?,
                };
                Entry::Placed(point, what)
            }
            kind::CHECK if value <= CHECK_SNAPSHOT | CHECK_MEMORY => {
                let point = self.point(exits)?;
                let digest = self.u64()?;
                let snapshot = if value & CHECK_SNAPSHOT == 0 {
                    None
                } else {
                    Some(Box::new(self.snapshot()?))
                };
                let memory = if value & CHECK_MEMORY == 0 {
                    None
                } else {
                    Some(MemoryPart {
                        first: self.varint()?,
                        pages: self.varint()?,
                        digest: self.u64()?,
                    })
                };
                let what = What::Check {
                    digest,
                    snapshot,
                    memory,
                };
                Entry::Placed(point, what)
            }
            kind::END if value == 0 => {
                let point = self.point(exits)?;
                let what = What::End {
                    digest: self.u64()?,
                    end: End {
                        stop: self.u64()?,
                        state: self.u64()?,
                        memory: self.u64()?,
                    },
                };
                Entry::Placed(point, what)
            }
            _ => return Err(unknown()),
        })
    }

    fn input(&mut self, which: u64) -> Result<Input, DecodeError> {
        Ok(match which {
            input::CONSOLE => Input::Console(self.data()?),
            input::RX => Input::Rx {
                device: self.byte()?,
                frame: self.data()?,
            },
            input::LINK_STATE => Input::LinkState {
                device: self.byte()?,
                up: match self.byte()? {
                    0 => false,
                    1 => true,
                    other => return Err(DecodeError::Unknown(other.into())),
                },
            },
            _ => {
                let number = self.byte()?;
                let operation = OPERATIONS.get(usize::from(number));
                Input::Control(*operation.ok_or(DecodeError::Unknown(number.into()))?)
            }
        })
    }

    fn snapshot(&mut self) -> Result<Snapshot, DecodeError> {
        let mut parts = Parts([0; Parts::NAMES.len()]);
        for part in &mut parts.0 {
            *part = self.u64()?;
        }
        let (icount, rip, rflags) = (self.u64()?, self.u64()?, self.u64()?);
        let mut gprs = Gprs::default();
        for gpr in &mut gprs.0 {
            *gpr = self.u64()?;
        }
        let registers = Registers {
            icount,
            rip,
            rflags,
            gprs,
        };
        Ok(Snapshot { parts, registers })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
