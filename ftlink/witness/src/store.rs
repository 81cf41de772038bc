//! Where records are kept: a directory of files, or etcd. A change is a compare-and-swap against what
//! was read, and is durable when it returns.

use std::fmt;

use ftlink::arbiter::Record;
use ftlink::arbiter::codec::RecordError;
use ftlink::ids::PairId;

use crate::etcd::EtcdStore;
use crate::file::FileStore;

/// Why a record could not be read or changed.
#[derive(Debug)]
pub enum StoreError {
    /// There is no record: never initialised, or lost.
    Missing,
    /// The stored bytes are not a record.
    Corrupt(RecordError),
    /// The record is for another pair.
    WrongPair(PairId),
    /// Somebody else changed it since it was read.
    Conflict,
    /// Reading or writing failed; what, and why.
    Failed(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Missing => formatter.write_str(
                "there is no record; run `duet-witness init` for a new pair, or \
                 `duet-witness init --at G` when the record was lost",
            ),
            StoreError::Corrupt(error) => write!(
                formatter,
                "the record is corrupt ({error}); run `duet-witness init --at G` with the newest \
                 generation either host reports"
            ),
            StoreError::WrongPair(pair) => write!(formatter, "the record is for pair {pair}"),
            StoreError::Conflict => formatter.write_str("the record was changed meanwhile"),
            StoreError::Failed(what) => formatter.write_str(what),
        }
    }
}

impl std::error::Error for StoreError {}

/// A record with what names the version that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// Changes with every write: the record's sequence in a file, the revision in etcd.
    pub version: u64,
}

/// Where records are kept.
#[derive(Debug)]
pub enum Store {
    /// In a directory.
    File(FileStore),
    /// In etcd.
    Etcd(EtcdStore),
}

impl Store {
    /// Reads the record of a pair.
    ///
    /// # Errors
    ///
    /// Missing, corrupt, another pair's, or unreadable.
    pub async fn load(&self, pair: PairId) -> Result<Stored, StoreError> {
        match self {
            Store::File(store) => store.load(pair),
            Store::Etcd(store) => store.load(pair).await,
        }
    }

    /// Replaces what [`load`](Self::load) returned; durable on return.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] when it has changed meanwhile; a failure after which the record may
    /// be the old or the new one.
    pub async fn replace(&self, old: &Stored, record: &Record) -> Result<(), StoreError> {
        match self {
            Store::File(store) => store.replace(old, record),
            Store::Etcd(store) => store.replace(old, record).await,
        }
    }

    /// Writes a record whatever was there before: `init`.
    ///
    /// # Errors
    ///
    /// The write failed.
    pub async fn overwrite(&self, record: &Record) -> Result<(), StoreError> {
        match self {
            Store::File(store) => store.overwrite(record),
            Store::Etcd(store) => store.overwrite(record).await,
        }
    }
}

/// Decodes stored bytes and checks whose record they are.
///
/// # Errors
///
/// Not a record, or another pair's.
pub fn decode(bytes: &[u8], pair: PairId) -> Result<Record, StoreError> {
    let record = Record::decode(bytes).map_err(StoreError::Corrupt)?;
    if record.pair != pair {
        return Err(StoreError::WrongPair(record.pair));
    }
    Ok(record)
}
