//! Bulk transfer beside the log, for state transfer: a transfer is a beginning, chunks in order and an
//! end that proves completeness. It has a stream of its own with its own ring, so that the receiver
//! bounds it, and the log always goes first.

use alloc::boxed::Box;
use alloc::vec;

use crate::counters::StreamCounters;
use crate::ids::Instant;
use crate::stream::{AppendError, Receiver, Sender};

/// Largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: usize = 32 * 1024;

const TAG_BEGIN: u8 = 1;
const TAG_CHUNK: u8 = 2;
const TAG_END: u8 = 3;
const TAG_ABORT: u8 = 4;
const BEGIN_BYTES: usize = 1 + 8 + 8;
const END_BYTES: usize = 1 + 8 + 8;

/// Why a transfer could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkError {
    /// The ring is full: try again when the peer has taken some.
    Full,
    /// More than [`MAX_CHUNK_BYTES`].
    TooLarge,
    /// No transfer has begun, or the peer's boot has changed under it.
    NotBegun,
    /// A transfer is under way.
    AlreadyBegun,
}

impl From<AppendError> for BulkError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::Full,
            AppendError::TooLarge => Self::TooLarge,
        }
    }
}

/// The sending side of transfers.
pub struct BulkWriter {
    scratch: Box<[u8]>,
    /// The stream's beginning the transfer under way belongs to, and what was sent of it.
    transfer: Option<(u32, Totals)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    chunks: u64,
    bytes: u64,
}

impl Totals {
    fn add(&mut self, chunk: usize) {
        self.chunks += 1;
        self.bytes += chunk as u64;
    }
}

impl Default for BulkWriter {
    fn default() -> Self {
        Self {
            scratch: vec![0; MAX_CHUNK_BYTES + 1].into_boxed_slice(),
            transfer: None,
        }
    }
}

impl BulkWriter {
    /// Begins transfer `id`; `what` is the caller's.
    ///
    /// # Errors
    ///
    /// [`BulkError::AlreadyBegun`], [`BulkError::Full`].
    pub fn begin(
        &mut self,
        now: Instant,
        stream: &mut Sender,
        counters: &mut StreamCounters,
        id: u64,
        what: u64,
    ) -> Result<(), BulkError> {
        if self.is_under_way(stream) {
            return Err(BulkError::AlreadyBegun);
        }
        let mut entry = [TAG_BEGIN; BEGIN_BYTES];
        entry[1..9].copy_from_slice(&id.to_le_bytes());
        entry[9..].copy_from_slice(&what.to_le_bytes());
        stream.append(now, &entry, counters)?;
        self.transfer = Some((stream.offer().epoch, Totals::default()));
        Ok(())
    }

    /// A transfer is under way and the peer is still the one it began with.
    #[must_use]
    pub fn is_under_way(&self, stream: &Sender) -> bool {
        self.transfer
            .is_some_and(|(epoch, _)| epoch == stream.offer().epoch)
    }

    fn totals(&mut self, stream: &Sender) -> Result<&mut Totals, BulkError> {
        match &mut self.transfer {
            Some((epoch, totals)) if *epoch == stream.offer().epoch => Ok(totals),
            _ => Err(BulkError::NotBegun),
        }
    }

    /// Sends one chunk.
    ///
    /// # Errors
    ///
    /// Any but [`BulkError::AlreadyBegun`]; the chunk has not been taken.
    pub fn chunk(
        &mut self,
        now: Instant,
        stream: &mut Sender,
        counters: &mut StreamCounters,
        chunk: &[u8],
    ) -> Result<(), BulkError> {
        self.totals(stream)?;
        let entry = self
            .scratch
            .get_mut(..=chunk.len())
            .ok_or(BulkError::TooLarge)?;
        entry[0] = TAG_CHUNK;
        entry[1..].copy_from_slice(chunk);
        stream.append(now, entry, counters)?;
        self.totals(stream)?.add(chunk.len());
        Ok(())
    }

    /// Ends the transfer; the peer learns that it has everything.
    ///
    /// # Errors
    ///
    /// [`BulkError::NotBegun`], [`BulkError::Full`].
    pub fn finish(
        &mut self,
        now: Instant,
        stream: &mut Sender,
        counters: &mut StreamCounters,
    ) -> Result<(), BulkError> {
        let totals = *self.totals(stream)?;
        let mut entry = [TAG_END; END_BYTES];
        entry[1..9].copy_from_slice(&totals.chunks.to_le_bytes());
        entry[9..].copy_from_slice(&totals.bytes.to_le_bytes());
        stream.append(now, &entry, counters)?;
        stream.flush(now);
        self.transfer = None;
        Ok(())
    }

    /// Gives the transfer up; the peer is told to forget what came.
    ///
    /// # Errors
    ///
    /// [`BulkError::NotBegun`], [`BulkError::Full`].
    pub fn abort(
        &mut self,
        now: Instant,
        stream: &mut Sender,
        counters: &mut StreamCounters,
    ) -> Result<(), BulkError> {
        self.totals(stream)?;
        stream.append(now, &[TAG_ABORT], counters)?;
        stream.flush(now);
        self.transfer = None;
        Ok(())
    }
}

/// What the receiving side of transfers sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkEvent<'a> {
    /// A transfer begins; one before it that has not ended is void.
    Begin {
        /// The sender's id.
        id: u64,
        /// The sender's word for its content.
        what: u64,
    },
    /// The next bytes.
    Chunk(&'a [u8]),
    /// Everything has come.
    End,
    /// The transfer is void: given up by the sender, or the peer's boot changed.
    Aborted,
    /// The transfer is void: what came is not what was sent.
    Incomplete,
}

/// The receiving side of transfers.
#[derive(Debug, Default)]
pub struct BulkReader {
    transfer: Option<(u32, Totals)>,
}

impl BulkReader {
    /// The next event, if one has arrived.
    pub fn next<'a>(
        &mut self,
        stream: &'a mut Receiver,
        counters: &mut StreamCounters,
    ) -> Option<BulkEvent<'a>> {
        let epoch = stream.epoch();
        if self.transfer.take_if(|(of, _)| *of != epoch).is_some() {
            return Some(BulkEvent::Aborted);
        }
        let (_, entry) = stream.next_entry(counters)?;
        let (&tag, rest) = entry.split_first()?;
        Some(self.on_entry(epoch, tag, rest))
    }

    fn on_entry<'a>(&mut self, epoch: u32, tag: u8, rest: &'a [u8]) -> BulkEvent<'a> {
        match (tag, &mut self.transfer) {
            (TAG_BEGIN, transfer) => match numbers(rest) {
                Some((id, what)) => {
                    *transfer = Some((epoch, Totals::default()));
                    BulkEvent::Begin { id, what }
                }
                None => BulkEvent::Incomplete,
            },
            (TAG_CHUNK, Some((_, totals))) => {
                totals.add(rest.len());
                BulkEvent::Chunk(rest)
            }
            (TAG_END, Some((_, totals))) => {
                let whole = numbers(rest) == Some((totals.chunks, totals.bytes));
                self.transfer = None;
                if whole {
                    BulkEvent::End
                } else {
                    BulkEvent::Incomplete
                }
            }
            (TAG_ABORT, Some(_)) => {
                self.transfer = None;
                BulkEvent::Aborted
            }
            _ => {
                self.transfer = None;
                BulkEvent::Incomplete
            }
        }
    }
}

fn numbers(bytes: &[u8]) -> Option<(u64, u64)> {
    let (first, rest) = bytes.split_first_chunk()?;
    let second = rest.try_into().ok()?;
    Some((u64::from_le_bytes(*first), u64::from_le_bytes(second)))
}
