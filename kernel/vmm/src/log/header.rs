//! What a log is the log of, in front of its entries: a log only fits the machine it was made with.
//!
//! ```text
//! "DUETLOG\0" │ version u16 │ counter u8 │ devices u8 │ memory u64 │ profile u64 │ image u64 │
//! release: length u8, text │ guest: length u8, text │ XXH3-64 of all that
//! ```

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::regs::CpuState;
use xxhash_rust::xxh3::xxh3_64;

use super::VERSION;
use crate::config::{Console, Guest};
use crate::cpu::CounterKind;
use crate::digest;
use crate::memory::{GuestMemory, NotRam};
use crate::profile::Profile;

const MAGIC: [u8; 8] = *b"DUETLOG\0";
/// Longest header in bytes.
pub const MAX_HEADER: usize = 8 + 2 + 1 + 1 + 4 * 8 + 2 * (1 + MAX_TEXT) + 8;
/// Longest text in it, in bytes.
const MAX_TEXT: usize = 255;

/// The machine that a log was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the encoding of entries.
    pub version: u16,
    /// Duet's release.
    pub release: String,
    /// The guest's name.
    pub guest: String,
    /// How instructions were counted.
    pub counter: CounterKind,
    /// Which devices it has.
    pub devices: Devices,
    /// Bytes of RAM.
    pub memory: u64,
    /// Digest of its network cards: addresses and sizes.
    pub nics: u64,
    /// Digest of the processor profile: every CPUID leaf and what control registers may hold.
    pub profile: u64,
    /// Digest of memory and processor at power-on: files, command line, tables.
    pub image: u64,
}

/// Devices, as far as a log depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Devices {
    /// Those of test guests.
    Test = 0,
    /// A PC's.
    Pc = 1,
    /// A PC's, with the host's serial port for console.
    PcSerial = 2,
}

impl Devices {
    /// Those of a guest as it is configured.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        match (guest.test_devices, guest.console) {
            (true, _) => Self::Test,
            (false, Console::Log) => Self::Pc,
            (false, Console::Serial) => Self::PcSerial,
        }
    }
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// They do not begin as a log does.
    NoLog,
    /// They end inside of it.
    Truncated,
    /// Its digest or one of its fields is wrong.
    Damaged,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLog => "it is no log of Duet's",
            Self::Truncated => "it ends inside of its header",
            Self::Damaged => "its header is damaged",
        })
    }
}

impl core::error::Error for HeaderError {}

/// The first item in which a log does not fit a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The item.
    pub item: &'static str,
    /// What the log has.
    pub log: String,
    /// What the machine has.
    pub machine: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item, log, machine } = self;
        write!(f, "{item}: {log} in the log, {machine} here")
    }
}

impl core::error::Error for Misfit {}

impl Header {
    /// The header of the log of `guest`, whose machine is as it was loaded.
    ///
    /// # Errors
    ///
    /// The memory cannot be read.
    pub fn of<M: GuestMemory>(
        guest: &Guest,
        profile: &Profile,
        counter: CounterKind,
        memory: &M,
        state: &CpuState,
    ) -> Result<Self, NotRam> {
        let content = digest::memory(memory, memory.size())?;
        Ok(Self {
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            guest: guest.name.clone(),
            counter,
            devices: Devices::of(guest),
            memory: memory.size(),
            nics: nics(guest),
            profile: xxh3_64(alloc::format!("{profile:?}").as_bytes()),
            image: digest::cpu_state(state) ^ content.rotate_left(1),
        })
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_HEADER);
        bytes.extend(MAGIC);
        bytes.extend(self.version.to_le_bytes());
        bytes.push(match self.counter {
            CounterKind::ExitOrdinal => 0,
            CounterKind::Tsc => 1,
            CounterKind::Pmu => 2,
        });
        bytes.push(self.devices as u8);
        for word in [self.memory, self.nics, self.profile, self.image] {
            bytes.extend(word.to_le_bytes());
        }
        for text in [&self.release, &self.guest] {
            let text = text.as_bytes();
            let text = text.get(..text.len().min(MAX_TEXT)).unwrap_or_default();
            bytes.push(text.len() as u8);
            bytes.extend(text);
        }
        let digest = xxh3_64(&bytes);
        bytes.extend(digest.to_le_bytes());
        bytes
    }

    /// The header that `bytes` begin with, and its length.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), HeaderError> {
        let mut fields = Fields { bytes, at: 0 };
        if fields.take().is_none_or(|magic| magic != MAGIC) {
            return Err(HeaderError::NoLog);
        }
        let header = fields.header().ok_or(HeaderError::Truncated)?;
        let digest = xxh3_64(bytes.get(..fields.at).unwrap_or_default());
        let stored = fields.u64().ok_or(HeaderError::Truncated)?;
        if digest != stored {
            return Err(HeaderError::Damaged);
        }
        header
            .map(|header| (header, fields.at))
            .ok_or(HeaderError::Damaged)
    }

    /// Whether the log fits a machine that would write `machine`. The guest's name is not compared.
    ///
    /// # Errors
    ///
    /// The first item that differs.
    pub fn fits(&self, machine: &Header) -> Result<(), Misfit> {
        let differs = |item, log: &dyn fmt::Debug, machine: &dyn fmt::Debug| Misfit {
            item,
            log: alloc::format!("{log:x?}"),
            machine: alloc::format!("{machine:x?}"),
        };
        macro_rules! same {
            ($($field:ident: $item:literal),*) => {
                $(if self.$field != machine.$field {
                    return Err(differs($item, &self.$field, &machine.$field));
                })*
            };
        }
        same!(
            version: "version of the log",
            release: "release of Duet",
            counter: "instruction counter",
            devices: "devices",
            memory: "bytes of memory (hexadecimal)",
            nics: "network cards",
            profile: "processor profile",
            image: "guest image"
        );
        Ok(())
    }
}

fn nics(guest: &Guest) -> u64 {
    let mut bytes = Vec::new();
    for nic in &guest.nics {
        bytes.extend(nic.mac.0);
        bytes.extend(nic.mtu.to_le_bytes());
    }
    xxh3_64(&bytes)
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk().copied()?;
        self.at += N;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<Option<String>> {
        let length = usize::from(self.byte()?);
        let text = self.bytes.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(core::str::from_utf8(text).ok().map(ToOwned::to_owned))
    }

    /// `None`: truncated. `Some(None)`: a field has a value that does not exist.
    fn header(&mut self) -> Option<Option<Header>> {
        let version = u16::from_le_bytes(self.take()?);
        let counter = match self.byte()? {
            0 => Some(CounterKind::ExitOrdinal),
            1 => Some(CounterKind::Tsc),
            2 => Some(CounterKind::Pmu),
            _ => None,
        };
        let devices = match self.byte()? {
            0 => Some(Devices::Test),
            1 => Some(Devices::Pc),
            2 => Some(Devices::PcSerial),
            _ => None,
        };
        let [memory, nics, profile, image] = [self.u64()?, self.u64()?, self.u64()?, self.u64()?];
        let (release, guest) = (self.text()?, self.text()?);
        let header = || {
            Some(Header {
                version,
                release: release?,
                guest: guest?,
                counter: counter?,
                devices: devices?,
                memory,
                nics,
                profile,
                image,
            })
        };
        Some(header())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            release: "1.2.3".to_owned(),
            guest: "linux".to_owned(),
            counter: CounterKind::Tsc,
            devices: Devices::PcSerial,
            memory: 64 << 20,
            nics: 0x9abc,
            profile: 0x1234,
            image: 0x5678,
        }
    }

    #[test]
    fn what_is_written_is_read_and_its_end_is_found() {
        let mut bytes = header().encode();
        let length = bytes.len();
        bytes.extend(*b"entries");
        assert_eq!(Header::decode(&bytes), Ok((header(), length)));
        assert!(length <= MAX_HEADER);
    }

    #[test]
    fn a_damaged_or_truncated_header_is_refused() {
        let bytes = header().encode();
        for end in 0..bytes.len() {
            assert!(Header::decode(&bytes[..end]).is_err(), "{end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Header::decode(&damaged).is_err(), "{at}");
        }
        assert_eq!(Header::decode(b"PNG"), Err(HeaderError::NoLog));
    }

    #[test]
    fn every_item_is_compared_and_named() {
        type Change = fn(&mut Header);
        let changes: [(&str, Change); 8] = [
            ("version", |h| h.version += 1),
            ("release", |h| h.release.push('x')),
            ("counter", |h| h.counter = CounterKind::ExitOrdinal),
            ("devices", |h| h.devices = Devices::Test),
            ("memory", |h| h.memory += 1),
            ("network cards", |h| h.nics += 1),
            ("profile", |h| h.profile += 1),
            ("image", |h| h.image += 1),
        ];
        for (item, change) in changes {
            let mut other = header();
            change(&mut other);
            let misfit = header().fits(&other).unwrap_err();
            assert!(misfit.item.contains(item), "{misfit}");
        }
        let mut renamed = header();
        renamed.guest.clear();
        assert_eq!(header().fits(&renamed), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..100), magic: bool) {
            if magic {
                bytes.splice(..0, MAGIC);
            }
            if let Ok((header, length)) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), &bytes[..length]);
            }
        }
    }
}
