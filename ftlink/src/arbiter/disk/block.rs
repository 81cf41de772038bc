//! What one host has written on the shared disk, as one sector: the ballot it promised, the newest
//! record it accepted, and whether that is decided. Decoding never panics; a torn sector fails its
//! checksum.

use core::fmt;

use xxhash_rust::xxh3::xxh3_64;

use crate::arbiter::codec::{RECORD_BYTES, Reader, RecordError, Writer};
use crate::arbiter::{Member, Record};
use crate::ids::{BootId, NodeId};

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// A sector's contents.
pub type Sector = [u8; SECTOR_BYTES];

const MAGIC: [u8; 8] = *b"DUETBAL1";
const SUM_AT: usize = SECTOR_BYTES - 8;
const DECIDED: u8 = 1;

// Magic, writing node, two ballots, flags, record.
const _: () = assert!(8 + 8 + 2 * 32 + 8 + RECORD_BYTES <= SUM_AT);

/// An attempt to change the record. Ballots are ordered; no two attempts have the same one, because
/// an attempt's number is new to the boot that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Above every number its maker had seen.
    pub number: u64,
    /// Who makes it.
    pub by: Member,
}

impl Ballot {
    /// The ballot of a freshly initialised disk, below every attempt.
    pub const INITIAL: Ballot = Ballot {
        number: 0,
        by: Member {
            node: NodeId(0),
            boot: BootId(0),
        },
    };
}

/// A host's word. Each one a boot writes is above the one before it in this order: promised, accepted,
/// decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Lower ballots must give up.
    pub promised: Ballot,
    /// The ballot `record` was accepted in.
    pub accepted: Ballot,
    /// `record` is known to be the pair's record, not only an attempt at it.
    pub decided: bool,
    /// The accepted record.
    pub record: Record,
}

/// Why a sector holds no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// Never initialised, or of another version.
    Magic,
    /// Torn or damaged.
    Checksum,
    /// Another node's, or another pair's.
    Foreign,
    /// The record in it makes no sense.
    Record(RecordError),
}

impl fmt::Display for BlockError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockError::Magic => formatter.write_str("not a block of this version"),
            BlockError::Checksum => formatter.write_str("torn or damaged"),
            BlockError::Foreign => formatter.write_str("of another node or another pair"),
            BlockError::Record(error) => write!(formatter, "record: {error}"),
        }
    }
}

impl core::error::Error for BlockError {}

/// The checksum a sector carries.
pub(super) fn sum(sector: &Sector) -> u64 {
    sector
        .last_chunk()
        .map_or(0, |sum| u64::from_le_bytes(*sum))
}

impl Block {
    /// A host's first word on a disk that is initialised with `record`.
    #[must_use]
    pub const fn initial(record: Record) -> Self {
        Self {
            promised: Ballot::INITIAL,
            accepted: Ballot::INITIAL,
            decided: true,
            record,
        }
    }

    /// By which blocks of one host are ordered in time.
    #[must_use]
    pub const fn rank(&self) -> (Ballot, Ballot, bool) {
        (self.promised, self.accepted, self.decided)
    }

    /// The block as `node` writes it.
    #[must_use]
    pub fn encode(&self, node: NodeId) -> Sector {
        let Block {
            promised,
            accepted,
            decided,
            record,
        } = self;
        let mut sector = [0; SECTOR_BYTES];
        let mut writer = Writer::new(&mut sector);
        writer.put(&MAGIC);
        writer.u64(node.0);
        for ballot in [promised, accepted] {
            writer.u64(ballot.number);
            writer.member(Some(ballot.by));
        }
        writer.u8(if *decided { DECIDED } else { 0 });
        writer.skip(7);
        writer.put(&record.encode());
        let sum = xxh3_64(&sector[..SUM_AT]);
        sector[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    /// Reads a sector that `node` has written for the pair and nodes of `like`.
    ///
    /// # Errors
    ///
    /// Not initialised, torn, another's, or with a value that is never written.
    pub fn decode(sector: &Sector, node: NodeId, like: &Record) -> Result<Self, BlockError> {
        let mut reader = Reader::new(sector);
        if reader.array() != MAGIC {
            return Err(BlockError::Magic);
        }
        let (checked, sum) = sector.split_at(SUM_AT);
        if sum != xxh3_64(checked).to_le_bytes() {
            return Err(BlockError::Checksum);
        }
        let writer = NodeId(reader.u64());
        let mut ballot = || Ballot {
            number: reader.u64(),
            by: reader.member(),
        };
        let (promised, accepted) = (ballot(), ballot());
        let decided = reader.u8() & DECIDED != 0;
        reader.array::<7>();
        let record = reader.array::<RECORD_BYTES>();
        let record = Record::decode(&record).map_err(BlockError::Record)?;
        let nodes = |record: &Record| record.seats.map(|seat| seat.node);
        if writer != node || record.pair != like.pair || nodes(&record) != nodes(like) {
            return Err(BlockError::Foreign);
        }
        Ok(Self {
            promised,
            accepted,
            decided,
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::RecordState;
    use crate::ids::{Generation, PairId};

    const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

    fn block(number: u64) -> Block {
        let by = Member {
            node: NODES[0],
            boot: BootId(9),
        };
        let mut record = Record::empty(PairId(5), NODES);
        record.state = RecordState::Running;
        record.owner = Some(by);
        record.generation = Generation(number);
        Block {
            promised: Ballot { number, by },
            accepted: Ballot {
                number: number - 1,
                by,
            },
            decided: false,
            record,
        }
    }

    #[test]
    fn a_sector_torn_at_any_byte_is_the_old_block_the_new_one_or_none() {
        let (old, new) = (block(3), block(4));
        let [before, after] = [old, new].map(|block| block.encode(NODES[0]));
        let mut torn = 0;
        for cut in 0..=SECTOR_BYTES {
            for (head, tail) in [(&after, &before), (&before, &after)] {
                let mut sector = *tail;
                sector[..cut].copy_from_slice(&head[..cut]);
                match Block::decode(&sector, NODES[0], &old.record) {
                    Ok(block) => assert!(block == old || block == new),
                    Err(error) => {
                        assert_eq!(error, BlockError::Checksum);
                        torn += 1;
                    }
                }
            }
        }
        assert!(torn > SECTOR_BYTES / 2);
    }

    #[test]
    fn what_is_not_this_hosts_word_in_this_pair_is_refused() {
        let block = block(3);
        let sector = block.encode(NODES[0]);
        let like = Record::empty(PairId(5), NODES);
        assert_eq!(Block::decode(&sector, NODES[0], &like), Ok(block));
        let foreign = Err(BlockError::Foreign);
        assert_eq!(Block::decode(&sector, NODES[1], &like), foreign);
        let pair = Record::empty(PairId(6), NODES);
        assert_eq!(Block::decode(&sector, NODES[0], &pair), foreign);
        let nodes = Record::empty(PairId(5), [NODES[0], NodeId(3)]);
        assert_eq!(Block::decode(&sector, NODES[0], &nodes), foreign);
        let empty = [0; SECTOR_BYTES];
        assert_eq!(
            Block::decode(&empty, NODES[0], &like),
            Err(BlockError::Magic)
        );
        for bit in 64..SECTOR_BYTES * 8 {
            let mut bad = sector;
            bad[bit / 8] ^= 1 << (bit % 8);
            let decoded = Block::decode(&bad, NODES[0], &like);
            assert_eq!(decoded, Err(BlockError::Checksum), "bit {bit}");
        }
    }
}
