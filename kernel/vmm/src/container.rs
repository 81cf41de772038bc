//! The container of guest files: one sector of header, then a tar archive.
//!
//! It lies in a raw partition behind the boot partition (BIOS) or is the boot loader's ramdisk (UEFI).
//! The image builder encodes the header, the hypervisor decodes it; nothing else knows the layout.
//!
//! ```text
//!   0  magic "DUETDATA"      8     32  seed                32
//!   8  version, 1            4     64  flags, bit 0: seed   4
//!  12  header bytes, 512     4     68  zero
//!  16  tar bytes             8    504  xxh3-64 of bytes 0 … 503
//!  24  xxh3-64 of the tar    8    512  the tar, padded to a sector
//! ```
//! All numbers are little endian.

use core::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 512;
/// Bytes that an archive may have: the largest image is 128 MB.
pub const MAX_TAR_BYTES: u64 = 128 << 20;
/// Bytes of a per-start seed.
pub const SEED_BYTES: usize = 32;
/// MBR partition type of the container ("non-filesystem data").
pub const PARTITION_TYPE: u8 = 0xda;

const MAGIC: [u8; 8] = *b"DUETDATA";
const VERSION: u32 = 1;
const FLAG_SEED: u32 = 1;
const HASHED: usize = HEADER_BYTES - 8;

/// A per-start secret from whoever started the host. It has no `Debug`: secrets are never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; SEED_BYTES]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the tar archive behind the header, without padding.
    pub tar_bytes: u64,
    /// [`hash`] of the archive.
    pub tar_hash: u64,
    /// Fresh randomness for this start; images for real servers have none.
    pub seed: Option<Seed>,
}

/// Why a container was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerError {
    /// Fewer bytes than a header.
    Truncated {
        /// Bytes there are.
        bytes: usize,
    },
    /// The first eight bytes are not the magic.
    NotAContainer,
    /// Another version of the layout.
    Version(u32),
    /// The header's own hash does not match.
    HeaderCorrupt,
    /// More than [`MAX_TAR_BYTES`].
    TooLarge {
        /// What the header claims.
        tar_bytes: u64,
    },
    /// The archive ends early.
    ArchiveTruncated {
        /// What the header claims.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The archive's hash does not match.
    ArchiveCorrupt,
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { bytes } => {
                write!(
                    f,
                    "container header is truncated: {bytes} of {HEADER_BYTES} bytes"
                )
            }
            Self::NotAContainer => f.write_str("no container: the magic \"DUETDATA\" is missing"),
            Self::Version(v) => write!(f, "container version {v}, this release reads {VERSION}"),
            Self::HeaderCorrupt => f.write_str("container header is corrupt (hash differs)"),
            Self::TooLarge { tar_bytes } => {
                write!(
                    f,
                    "container archive of {tar_bytes} bytes, at most {MAX_TAR_BYTES}"
                )
            }
            Self::ArchiveTruncated { expected, found } => {
                write!(
                    f,
                    "container archive is truncated: {found} of {expected} bytes"
                )
            }
            Self::ArchiveCorrupt => f.write_str("container archive is corrupt (hash differs)"),
        }
    }
}

impl core::error::Error for ContainerError {}

/// The hash of an archive.
#[must_use]
pub fn hash(tar: &[u8]) -> u64 {
    xxh3_64(tar)
}

impl Header {
    /// A header for this archive.
    #[must_use]
    pub fn for_archive(tar: &[u8], seed: Option<Seed>) -> Self {
        Self {
            tar_bytes: tar.len() as u64,
            tar_hash: hash(tar),
            seed,
        }
    }

    /// The header as it stands on the disk.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.tar_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.tar_hash.to_le_bytes());
        if let Some(seed) = &self.seed {
            out[32..64].copy_from_slice(&seed.0);
            out[64..68].copy_from_slice(&FLAG_SEED.to_le_bytes());
        }
        let own = xxh3_64(&out[..HASHED]);
        out[HASHED..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads a header from the first bytes of a container.
    ///
    /// # Errors
    ///
    /// What is wrong with it; a header that is returned has a matching hash and a size within bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, ContainerError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ContainerError::Truncated { bytes: bytes.len() });
        };
        let mut fields = Fields(header);
        if fields.take::<8>() != MAGIC {
            return Err(ContainerError::NotAContainer);
        }
        let version = u32::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(ContainerError::Version(version));
        }
        let header_bytes = u32::from_le_bytes(fields.take());
        let tar_bytes = u64::from_le_bytes(fields.take());
        let tar_hash = u64::from_le_bytes(fields.take());
        let seed = Seed(fields.take());
        let flags = u32::from_le_bytes(fields.take());
        let own = xxh3_64(&header[..HASHED]).to_le_bytes();
        if own != header[HASHED..] || header_bytes as usize != HEADER_BYTES {
            return Err(ContainerError::HeaderCorrupt);
        }
        if tar_bytes > MAX_TAR_BYTES {
            return Err(ContainerError::TooLarge { tar_bytes });
        }
        Ok(Self {
            tar_bytes,
            tar_hash,
            seed: (flags & FLAG_SEED != 0).then_some(seed),
        })
    }

    /// Checks that `tar`, cut to the header's length, is the archive this header was made for.
    ///
    /// # Errors
    ///
    /// It is shorter, or its hash differs.
    pub fn check_archive<'a>(&self, tar: &'a [u8]) -> Result<&'a [u8], ContainerError> {
        let found = tar.len() as u64;
        let archive = usize::try_from(self.tar_bytes)
            .ok()
            .and_then(|bytes| tar.get(..bytes))
            .ok_or(ContainerError::ArchiveTruncated {
                expected: self.tar_bytes,
                found,
            })?;
        if hash(archive) == self.tar_hash {
            Ok(archive)
        } else {
            Err(ContainerError::ArchiveCorrupt)
        }
    }
}

/// Takes fixed-size fields off the front of a header, whose length covers them all.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header::for_archive(b"the archive", Some(Seed([7; SEED_BYTES])))
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        let bare = Header {
            seed: None,
            ..header()
        };
        assert_eq!(Header::decode(&bare.encode()), Ok(bare));
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_noticed() {
        let good = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_short_or_changed_archive_is_refused() {
        let tar = b"the archive";
        assert_eq!(header().check_archive(tar), Ok(&tar[..]));
        assert_eq!(
            header().check_archive(b"the archive and padding"),
            Ok(&tar[..])
        );
        assert_eq!(
            header().check_archive(b"the arch"),
            Err(ContainerError::ArchiveTruncated {
                expected: 11,
                found: 8
            })
        );
        assert_eq!(
            header().check_archive(b"the archivE"),
            Err(ContainerError::ArchiveCorrupt)
        );
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused() {
        let huge = Header {
            tar_bytes: MAX_TAR_BYTES + 1,
            ..header()
        };
        assert!(matches!(
            Header::decode(&huge.encode()),
            Err(ContainerError::TooLarge { .. })
        ));
        assert_eq!(
            Header::decode(&[0; 100]),
            Err(ContainerError::Truncated { bytes: 100 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            prop_assert!(Header::decode(&bytes).is_err());
        }
    }
}
