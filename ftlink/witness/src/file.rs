//! Records as files: one per pair, written beside itself, synced, renamed, and the directory synced,
//! before anybody is answered. Nothing is cached: a file that is lost or damaged is noticed at the
//! next request.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ftlink::arbiter::Record;
use ftlink::ids::PairId;

use crate::store::{StoreError, Stored, decode};

/// A directory of records.
#[derive(Debug)]
pub struct FileStore {
    directory: PathBuf,
    /// What is in the files may not be durable: after a failed write, and at start, when the last
    /// daemon may have died between its rename and its sync.
    unsynced: AtomicBool,
}

/// Held while a record is read and replaced, against a second daemon or `init`.
struct Lock(#[expect(dead_code, reason = "unlocks when dropped")] File);

impl FileStore {
    /// A store in `directory`, which must exist.
    ///
    /// # Errors
    ///
    /// It does not exist or is not a directory.
    pub fn new(directory: &Path) -> Result<Self, StoreError> {
        let about = fs::metadata(directory).map_err(|error| failed("open", directory, &error))?;
        if !about.is_dir() {
            return Err(StoreError::Failed(format!(
                "{} is not a directory",
                directory.display()
            )));
        }
        Ok(Self {
            directory: directory.to_path_buf(),
            unsynced: AtomicBool::new(true),
        })
    }

    fn path(&self, pair: PairId) -> PathBuf {
        self.directory.join(format!("{pair}.record"))
    }

    fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.directory.join("lock");
        let open = || -> io::Result<File> {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open()
            .map(Lock)
            .map_err(|error| failed("lock", &path, &error))
    }

    fn read(&self, pair: PairId) -> Result<Record, StoreError> {
        let path = self.path(pair);
        match fs::read(&path) {
            Ok(bytes) => decode(&bytes, pair),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Reads a record and makes sure that what was read is durable.
    ///
    /// # Errors
    ///
    /// Missing, corrupt, another pair's, unreadable, or not to be made durable.
    pub fn load(&self, pair: PairId) -> Result<Stored, StoreError> {
        let _lock = self.lock()?;
        let record = self.read(pair)?;
        if self.unsynced.load(Ordering::Relaxed) {
            self.write(&record)?;
        }
        Ok(Stored {
            record,
            version: record.sequence,
        })
    }

    /// Replaces what was loaded.
    ///
    /// # Errors
    ///
    /// It changed meanwhile, or cannot be written.
    pub fn replace(&self, old: &Stored, record: &Record) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        if self.read(record.pair)? != old.record {
            return Err(StoreError::Conflict);
        }
        self.write(record)
    }

    /// Writes a record whatever was there.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn overwrite(&self, record: &Record) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.write(record)
    }

    fn write(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path(record.pair);
        let beside = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(&record.encode())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        let written = write();
        self.unsynced.store(written.is_err(), Ordering::Relaxed);
        written.map_err(|error| failed("write", &path, &error))
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("cannot {what} {}: {error}", path.display()))
}
