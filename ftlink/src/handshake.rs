//! The compatibility check: two hosts replay one guest alike only if they agree on what the guest
//! can see. Each sends its [`Identity`] inside the handshake; a pair that differs is refused, naming
//! the item.

use core::fmt;

/// Bytes of an encoded identity; it travels as the handshake's greeting.
pub const IDENTITY_BYTES: usize = 96;
/// The version of this record and of the replication protocol behind it.
pub const PROTOCOL_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"DUID";

/// How a host counts guest instructions, and so how exactly it can place an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKind(pub u8);

impl CounterKind {
    /// No proven counter: events are placed at deterministic exits only.
    pub const EXITS_ONLY: CounterKind = CounterKind(1);
    /// Retired instructions of Intel's general counter, guest only.
    pub const INTEL_RETIRED: CounterKind = CounterKind(2);
    /// Retired instructions of AMD's counter, guest only.
    pub const AMD_RETIRED: CounterKind = CounterKind(3);
    /// The emulated TSC of Bochs, one tick per instruction.
    pub const BOCHS_TSC: CounterKind = CounterKind(4);
    /// The emulated TSC of QEMU with `-icount`, one tick per instruction.
    pub const QEMU_ICOUNT: CounterKind = CounterKind(5);
}

impl fmt::Display for CounterKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match *self {
            CounterKind::EXITS_ONLY => "exits only",
            CounterKind::INTEL_RETIRED => "Intel retired instructions",
            CounterKind::AMD_RETIRED => "AMD retired instructions",
            CounterKind::BOCHS_TSC => "Bochs TSC",
            CounterKind::QEMU_ICOUNT => "QEMU icount",
            CounterKind(other) => return write!(formatter, "counter kind {other}"),
        })
    }
}

/// Everything two hosts of a pair must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Version of the replication protocol.
    pub protocol: u16,
    /// Duet's version: major, minor, patch.
    pub version: [u16; 3],
    /// CPU vendor string of CPUID leaf 0.
    pub vendor: [u8; 12],
    /// CPU signature of CPUID leaf 1, EAX: family, model, stepping.
    pub signature: u32,
    /// Microcode revision.
    pub microcode: u64,
    /// How guest instructions are counted.
    pub counter: CounterKind,
    /// Hash of the virtual machine's configuration and of its guest files.
    pub machine: [u8; 32],
    /// Hash of the CPUID table the guest sees.
    pub profile: u64,
}

/// The item two hosts differ in, with this host's value first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// What the peer sent is not an identity.
    Unreadable,
    /// The protocol version.
    Protocol(u16, u16),
    /// Duet's version.
    Version([u16; 3], [u16; 3]),
    /// The CPU vendor.
    Vendor([u8; 12], [u8; 12]),
    /// Family, model or stepping of the CPU.
    Signature(u32, u32),
    /// The microcode revision.
    Microcode(u64, u64),
    /// The way instructions are counted.
    Counter(CounterKind, CounterKind),
    /// The virtual machine's configuration or its guest files.
    Machine,
    /// The CPUID table the guest sees.
    Profile(u64, u64),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Unreadable => formatter.write_str("the peer's identity is not readable"),
            Mismatch::Protocol(own, peer) => {
                write!(
                    formatter,
                    "protocol version: {own} here, {peer} on the peer"
                )
            }
            Mismatch::Version([a, b, c], [x, y, z]) => {
                write!(
                    formatter,
                    "Duet version: {a}.{b}.{c} here, {x}.{y}.{z} on the peer"
                )
            }
            Mismatch::Vendor(own, peer) => {
                let text = |bytes| core::str::from_utf8(bytes).unwrap_or("?");
                write!(
                    formatter,
                    "CPU vendor: {} here, {} on the peer",
                    text(own),
                    text(peer)
                )
            }
            Mismatch::Signature(own, peer) => write!(
                formatter,
                "CPU family, model, stepping: {own:#x} here, {peer:#x} on the peer"
            ),
            Mismatch::Microcode(own, peer) => {
                write!(formatter, "microcode: {own:#x} here, {peer:#x} on the peer")
            }
            Mismatch::Counter(own, peer) => write!(
                formatter,
                "instruction counter: {own} here, {peer} on the peer"
            ),
            Mismatch::Machine => {
                formatter.write_str("configuration or guest files of the virtual machine")
            }
            Mismatch::Profile(own, peer) => {
                write!(
                    formatter,
                    "guest CPUID table: {own:#x} here, {peer:#x} on the peer"
                )
            }
        }
    }
}

impl core::error::Error for Mismatch {}

impl Identity {
    /// The identity as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; IDENTITY_BYTES] {
        let Identity {
            protocol,
            version: [major, minor, patch],
            vendor,
            signature,
            microcode,
            counter,
            machine,
            profile,
        } = self;
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&protocol.to_le_bytes());
        bytes[6..8].copy_from_slice(&major.to_le_bytes());
        bytes[8..10].copy_from_slice(&minor.to_le_bytes());
        bytes[10..12].copy_from_slice(&patch.to_le_bytes());
        bytes[12..24].copy_from_slice(vendor);
        bytes[24..28].copy_from_slice(&signature.to_le_bytes());
        bytes[28] = counter.0;
        bytes[32..40].copy_from_slice(&microcode.to_le_bytes());
        bytes[40..48].copy_from_slice(&profile.to_le_bytes());
        bytes[48..80].copy_from_slice(machine);
        bytes
    }

    /// Reads an identity. The protocol version comes first and is checked by
    /// [`check`](Self::check): a later version may mean other things by the rest.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; IDENTITY_BYTES] = bytes.first_chunk()?;
        if bytes[..4] != MAGIC {
            return None;
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            protocol: half(4),
            version: [half(6), half(8), half(10)],
            vendor: *bytes[12..].first_chunk()?,
            signature: u32::from_le_bytes(*bytes[24..].first_chunk()?),
            counter: CounterKind(bytes[28]),
            microcode: u64::from_le_bytes(*bytes[32..].first_chunk()?),
            profile: u64::from_le_bytes(*bytes[40..].first_chunk()?),
            machine: *bytes[48..].first_chunk()?,
        })
    }

    /// Whether a peer that sent `greeting` can replay this host's guest.
    ///
    /// # Errors
    ///
    /// The first item that differs.
    pub fn check(&self, greeting: &[u8]) -> Result<(), Mismatch> {
        let peer = Self::decode(greeting).ok_or(Mismatch::Unreadable)?;
        let Identity {
            protocol,
            version,
            vendor,
            signature,
            microcode,
            counter,
            machine,
            profile,
        } = *self;
        let first = |equal: bool, item: Mismatch| if equal { Ok(()) } else { Err(item) };
        first(
            protocol == peer.protocol,
            Mismatch::Protocol(protocol, peer.protocol),
        )?;
        first(
            version == peer.version,
            Mismatch::Version(version, peer.version),
        )?;
        first(vendor == peer.vendor, Mismatch::Vendor(vendor, peer.vendor))?;
        first(
            signature == peer.signature,
            Mismatch::Signature(signature, peer.signature),
        )?;
        first(
            microcode == peer.microcode,
            Mismatch::Microcode(microcode, peer.microcode),
        )?;
        first(
            counter == peer.counter,
            Mismatch::Counter(counter, peer.counter),
        )?;
        first(machine == peer.machine, Mismatch::Machine)?;
        first(
            profile == peer.profile,
            Mismatch::Profile(profile, peer.profile),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn identity() -> Identity {
        Identity {
            protocol: PROTOCOL_VERSION,
            version: [0, 1, 0],
            vendor: *b"GenuineIntel",
            signature: 0x0005_06e3,
            microcode: 0xf0,
            counter: CounterKind::INTEL_RETIRED,
            machine: [7; 32],
            profile: 42,
        }
    }

    #[test]
    fn an_identity_survives_the_round_trip_and_equals_itself() {
        let own = identity();
        assert_eq!(Identity::decode(&own.encode()), Some(own));
        assert_eq!(own.check(&own.encode()), Ok(()));
    }

    #[test]
    fn each_differing_item_is_named() {
        type Change = fn(&mut Identity);
        let own = identity();
        let cases: [(Change, &str); 8] = [
            (|peer| peer.protocol = 2, "protocol version"),
            (|peer| peer.version[2] = 1, "Duet version"),
            (|peer| peer.vendor = *b"AuthenticAMD", "CPU vendor"),
            (|peer| peer.signature += 1, "stepping"),
            (|peer| peer.microcode += 1, "microcode"),
            (
                |peer| peer.counter = CounterKind::EXITS_ONLY,
                "instruction counter",
            ),
            (|peer| peer.machine[31] = 0, "virtual machine"),
            (|peer| peer.profile = 0, "CPUID"),
        ];
        for (change, item) in cases {
            let mut peer = own;
            change(&mut peer);
            let refused = own.check(&peer.encode()).expect_err(item);
            assert!(refused.to_string().contains(item), "{refused} names {item}");
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let own = identity();
        assert_eq!(own.check(&[]), Err(Mismatch::Unreadable));
        assert_eq!(own.check(&[0; IDENTITY_BYTES]), Err(Mismatch::Unreadable));
        assert_eq!(
            own.check(&own.encode()[..IDENTITY_BYTES - 1]),
            Err(Mismatch::Unreadable)
        );
    }
}
