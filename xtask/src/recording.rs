//! A recording as a file: the log of a guest, and in front of it how the guest was started.
//!
//! ```text
//! duet recording 1
//! arguments = ["--guest", "linux", …]     options of `cargo xtask run`, as TOML
//! ---
//! the log as the host wrote it
//! ```

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vmm::log::header::Header;

const FIRST_LINE: &str = "duet recording 1\n";
const SEPARATOR: &[u8] = b"\n---\n";

/// A recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Options of `cargo xtask run` that start the same guest.
    pub arguments: Vec<String>,
    /// The log.
    pub log: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    arguments: Vec<String>,
}

impl Recording {
    /// Writes it to `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let start = toml::to_string(&Start {
            arguments: self.arguments.clone(),
        })?;
        let mut bytes = FIRST_LINE.as_bytes().to_vec();
        bytes.extend(start.trim_end().bytes());
        bytes.extend(SEPARATOR);
        bytes.extend(&self.log);
        std::fs::write(path, bytes).with_context(|| path.display().to_string())
    }

    /// Reads `path`. The log's header is checked; its entries are whoever's who follows it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no recording, or holds no log.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(rest) = bytes.strip_prefix(FIRST_LINE.as_bytes()) else {
            bail!("not a recording of `cargo xtask replay record`");
        };
        let end = rest
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR)
            .context("the recording ends before its log")?;
        let (start, log) = rest.split_at(end);
        let start = std::str::from_utf8(start).context("how the guest was started")?;
        let start: Start = toml::from_str(start).context("how the guest was started")?;
        let log = log.get(SEPARATOR.len()..).unwrap_or_default().to_vec();
        Header::decode(&log).context("the log")?;
        Ok(Self {
            arguments: start.arguments,
            log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::cpu::CounterKind;
    use vmm::log::header::Devices;

    fn recording() -> Recording {
        let header = Header {
            version: vmm::log::VERSION,
            release: "0.1.0".to_owned(),
            guest: "linux".to_owned(),
            counter: CounterKind::Tsc,
            devices: Devices::PcSerial,
            nics: 0,
            memory: 1 << 20,
            profile: 1,
            image: 2,
        };
        let mut log = header.encode();
        log.extend(b"entries\n---\n");
        Recording {
            arguments: vec!["--cmdline".to_owned(), "a \"b\"\n".to_owned()],
            log,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        recording().write(file.path()).unwrap();
        assert_eq!(Recording::read(file.path()).unwrap(), recording());
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        recording().write(file.path()).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let error = |bytes: &[u8]| format!("{:#}", Recording::parse(bytes).unwrap_err());
        assert!(error(b"DUETLOG").contains("not a recording"));
        assert!(error(&bytes[..30]).contains("before its log"));
        let log = bytes.len() - recording().log.len();
        assert!(error(&bytes[..log + 20]).contains("the log"));
        let mut damaged = bytes;
        damaged[log + 12] ^= 1;
        assert!(error(&damaged).contains("damaged"));
    }
}
