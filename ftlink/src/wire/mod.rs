//! The datagram format: the fixed header of every datagram and, in [`messages`], the bodies behind
//! it. Checked views over received bytes and plain structs to write from; nothing here keeps state,
//! and no input makes it panic. `docs/protocol.md` shows the same layout as tables.

pub mod messages;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::Generation;

/// Version of the whole protocol; a datagram of another version is refused, and the handshake's
/// prologue names it too.
pub const VERSION: u8 = 1;
/// Bytes of [`Header`].
pub const HEADER_BYTES: usize = 24;
/// Bytes of the authentication tag behind a sealed body.
pub const TAG_BYTES: usize = 16;
/// Header and tag: what sealing adds to a body.
pub const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Largest datagram (UDP payload) sent or accepted, in bytes: a 9 000-byte Ethernet frame less IPv4
/// and UDP headers.
pub const MAX_DATAGRAM_BYTES: usize = 8_972;
/// Smallest datagram size a path may be configured to or fall back to, in bytes: IPv4's 576 less IP
/// and UDP headers (RFC 1122 3.3.2), which every path carries.
pub const MIN_MTU_BYTES: usize = 548;
/// Datagram size on a 1 500-byte Ethernet under IPv4, in bytes.
pub const ETHERNET_MTU_BYTES: usize = 1_472;
/// Paths a link may have.
pub const PATHS: usize = 2;

/// What a datagram's body is. An open value space: unknown kinds are refused by the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub u8);

impl Kind {
    /// First handshake message; body [`messages`] do not apply, it is Noise.
    pub const HANDSHAKE_INIT: Kind = Kind(1);
    /// Second handshake message.
    pub const HANDSHAKE_REPLY: Kind = Kind(2);
    /// Bytes of the log stream.
    pub const LOG_DATA: Kind = Kind(3);
    /// Bytes of the bulk stream.
    pub const BULK_DATA: Kind = Kind(4);
    /// A [`messages::Report`].
    pub const ACK: Kind = Kind(5);
    /// A [`messages::Heartbeat`], padded at will.
    pub const HEARTBEAT: Kind = Kind(6);

    /// It belongs to the handshake and is not sealed with a session's keys.
    #[must_use]
    pub const fn is_handshake(self) -> bool {
        self.0 == Self::HANDSHAKE_INIT.0 || self.0 == Self::HANDSHAKE_REPLY.0
    }

    const fn is_known(self) -> bool {
        self.0 >= Self::HANDSHAKE_INIT.0 && self.0 <= Self::HEARTBEAT.0
    }
}

/// Set in [`Header::flags`] of a data datagram: acknowledge at once.
pub const FLAG_ACK_NOW: u8 = 1;

/// The cleartext header. It is the associated data of the seal, so no bit of it can be changed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    version: u8,
    kind: u8,
    path: u8,
    flags: u8,
    session: U32,
    generation: U64,
    sequence: U64,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(core::mem::offset_of!(Header, session) == 4);
const _: () = assert!(core::mem::offset_of!(Header, generation) == 8);
const _: () = assert!(core::mem::offset_of!(Header, sequence) == 16);

/// Why bytes are not a datagram or a body; each names what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Fewer bytes than the fixed part.
    Truncated,
    /// More than [`MAX_DATAGRAM_BYTES`].
    Oversized,
    /// Another protocol version.
    Version(u8),
    /// A kind this version does not define.
    Kind(u8),
    /// A path index out of range.
    Path(u8),
    /// Flags this version does not define.
    Flags(u8),
    /// A field of the body contradicts the rest; names the field.
    Field(&'static str),
}

/// The header as a plain struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRepr {
    /// What the body is.
    pub kind: Kind,
    /// The path it was sent on, below [`PATHS`].
    pub path: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Which keys seal the body.
    pub session: u32,
    /// The sender's generation.
    pub generation: Generation,
    /// Unique among all datagrams of this sender's boot: the nonce of the seal, and what
    /// acknowledgements name.
    pub sequence: u64,
}

impl HeaderRepr {
    /// Reads and checks the header; returns it with the bytes behind it.
    ///
    /// # Errors
    ///
    /// A length, version, kind, path or flag outside this version.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), WireError> {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            return Err(WireError::Oversized);
        }
        let (header, body) = Header::ref_from_prefix(datagram).map_err(|_| WireError::Truncated)?;
        if header.version != VERSION {
            return Err(WireError::Version(header.version));
        }
        let kind = Kind(header.kind);
        if !kind.is_known() {
            return Err(WireError::Kind(header.kind));
        }
        if usize::from(header.path) >= PATHS {
            return Err(WireError::Path(header.path));
        }
        if header.flags & !FLAG_ACK_NOW != 0 {
            return Err(WireError::Flags(header.flags));
        }
        let repr = Self {
            kind,
            path: header.path,
            flags: header.flags,
            session: header.session.get(),
            generation: Generation(header.generation.get()),
            sequence: header.sequence.get(),
        };
        Ok((repr, body))
    }

    /// The header as sent.
    #[must_use]
    pub fn header(&self) -> Header {
        Header {
            version: VERSION,
            kind: self.kind.0,
            path: self.path,
            flags: self.flags,
            session: U32::new(self.session),
            generation: U64::new(self.generation.0),
            sequence: U64::new(self.sequence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HeaderRepr {
        HeaderRepr {
            kind: Kind::LOG_DATA,
            path: 1,
            flags: FLAG_ACK_NOW,
            session: 0x8123_4567,
            generation: Generation(0x0102_0304_0506_0708),
            sequence: 0x1112_1314_1516_1718,
        }
    }

    #[test]
    fn header_survives_the_round_trip_and_has_the_documented_bytes() {
        let header = sample().header();
        let expected = [
            1, 3, 1, 1, 0x67, 0x45, 0x23, 0x81, 8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15,
            0x14, 0x13, 0x12, 0x11,
        ];
        assert_eq!(header.as_bytes(), expected);
        let (parsed, rest) = HeaderRepr::parse(&expected).unwrap();
        assert_eq!(parsed, sample());
        assert!(rest.is_empty());
    }

    #[test]
    fn each_bad_field_is_named() {
        let good = sample().header();
        let with = |index: usize, value: u8| {
            let mut bytes = [0; HEADER_BYTES];
            bytes.copy_from_slice(good.as_bytes());
            bytes[index] = value;
            HeaderRepr::parse(&bytes).map(|_| ())
        };
        assert_eq!(with(0, 2), Err(WireError::Version(2)));
        assert_eq!(with(1, 0), Err(WireError::Kind(0)));
        assert_eq!(with(1, 7), Err(WireError::Kind(7)));
        assert_eq!(with(2, 2), Err(WireError::Path(2)));
        assert_eq!(with(3, 2), Err(WireError::Flags(2)));
        assert_eq!(
            HeaderRepr::parse(&good.as_bytes()[..23]),
            Err(WireError::Truncated)
        );
        assert_eq!(
            HeaderRepr::parse(&[1; MAX_DATAGRAM_BYTES + 1]),
            Err(WireError::Oversized)
        );
    }
}
