//! The bodies behind the header: what a data datagram, an acknowledgement, a heartbeat and a
//! handshake payload hold. All integers are little endian; every struct is `repr(C)` without padding.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{PATHS, WireError};
use crate::ids::{BootId, Generation, LogPos, NodeId};

/// Datagrams below the newest one that a report can acknowledge one by one.
pub const REPORT_BITS: u64 = 256;
/// Largest opaque greeting inside a handshake payload, in bytes.
pub const MAX_HELLO_BYTES: usize = 256;
/// Bytes in front of the stream bytes of a data datagram.
pub const DATA_BYTES: usize = 8;

/// Fixed part of a data datagram; stream bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Data {
    offset: U64,
}

const _: () = assert!(size_of::<Data>() == DATA_BYTES);

impl Data {
    /// A data header for stream bytes that begin at `offset`.
    #[must_use]
    pub fn new(offset: u64) -> Self {
        Self {
            offset: U64::new(offset),
        }
    }

    /// Splits a body into its stream offset and its bytes.
    ///
    /// # Errors
    ///
    /// Too short, without stream bytes, or reaching past the end of the offset space.
    pub fn parse(body: &[u8]) -> Result<(u64, &[u8]), WireError> {
        let (data, bytes) = Self::ref_from_prefix(body).map_err(|_| WireError::Truncated)?;
        if bytes.is_empty() {
            return Err(WireError::Field("data length"));
        }
        let offset = data.offset.get();
        if offset.checked_add(bytes.len() as u64).is_none() {
            return Err(WireError::Field("data offset"));
        }
        Ok((offset, bytes))
    }
}

/// What a receiver says of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// The receiver's attachment this report is about; 0 = not attached, the rest means nothing.
    pub epoch: u32,
    /// Everything below this stream offset has arrived.
    pub received: u64,
    /// Stream bytes at and beyond this offset have no room yet.
    pub limit: u64,
}

/// What a receiver says of everything it got: the body of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportRepr {
    /// The log stream.
    pub log: StreamReport,
    /// The bulk stream.
    pub bulk: StreamReport,
    /// First log position not held whole. The only field outputs may depend on.
    pub held: LogPos,
    /// First log position not executed with equal digests.
    pub verified: LogPos,
    /// Newest data datagram received, as its header's sequence.
    pub newest: u64,
    /// Time the newest datagram waited for this report, in microseconds.
    pub delay_us: u32,
    /// Bit `n` of the field (bit `n % 8` of byte `n / 8`): datagram `newest - n` was received.
    pub bits: [u8; 32],
}

/// The report as sent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Report {
    log_epoch: U32,
    bulk_epoch: U32,
    log_received: U64,
    log_limit: U64,
    bulk_received: U64,
    bulk_limit: U64,
    held: U64,
    verified: U64,
    newest: U64,
    bits: [u8; 32],
    delay_us: U32,
    reserved: U32,
}

/// Bytes of an acknowledgement's body.
pub const REPORT_BYTES: usize = 104;
const _: () = assert!(size_of::<Report>() == REPORT_BYTES);
const _: () = assert!(REPORT_BITS == 32 * 8);

impl ReportRepr {
    /// The report as sent.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            log_epoch: U32::new(self.log.epoch),
            bulk_epoch: U32::new(self.bulk.epoch),
            log_received: U64::new(self.log.received),
            log_limit: U64::new(self.log.limit),
            bulk_received: U64::new(self.bulk.received),
            bulk_limit: U64::new(self.bulk.limit),
            held: U64::new(self.held.0),
            verified: U64::new(self.verified.0),
            newest: U64::new(self.newest),
            bits: self.bits,
            delay_us: U32::new(self.delay_us),
            reserved: U32::ZERO,
        }
    }

    /// Reads an acknowledgement's body.
    ///
    /// # Errors
    ///
    /// A wrong length or fields that contradict each other.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let report = Report::ref_from_bytes(body).map_err(|_| WireError::Truncated)?;
        Self::from_report(report)
    }

    fn from_report(report: &Report) -> Result<Self, WireError> {
        let stream = |epoch: U32, received: U64, limit: U64| StreamReport {
            epoch: epoch.get(),
            received: received.get(),
            limit: limit.get(),
        };
        let repr = Self {
            log: stream(report.log_epoch, report.log_received, report.log_limit),
            bulk: stream(report.bulk_epoch, report.bulk_received, report.bulk_limit),
            held: LogPos(report.held.get()),
            verified: LogPos(report.verified.get()),
            newest: report.newest.get(),
            delay_us: report.delay_us.get(),
            bits: report.bits,
        };
        if repr.log.limit < repr.log.received {
            return Err(WireError::Field("log limit"));
        }
        if repr.bulk.limit < repr.bulk.received {
            return Err(WireError::Field("bulk limit"));
        }
        if repr.verified > repr.held {
            return Err(WireError::Field("verified"));
        }
        Ok(repr)
    }

    /// Whether the report names datagram `sequence` as received.
    #[must_use]
    pub fn names(&self, sequence: u64) -> bool {
        let Some(age) = self.newest.checked_sub(sequence) else {
            return false;
        };
        match usize::try_from(age) {
            Ok(age) if (age as u64) < REPORT_BITS => self.bits[age / 8] & (1 << (age % 8)) != 0,
            _ => false,
        }
    }
}

/// Where a sender's stream begins for its peer; an epoch of 0 offers nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfferRepr {
    /// Names this beginning; larger than that of every earlier one in the sender's boot.
    pub epoch: u32,
    /// The first entry's position (0 on the bulk stream).
    pub position: LogPos,
    /// The first entry's stream offset.
    pub offset: u64,
}

/// What every host says on every path every few milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatRepr {
    /// What the sender has received.
    pub report: ReportRepr,
    /// The log stream it offers.
    pub log_offer: OfferRepr,
    /// The bulk stream it offers.
    pub bulk_offer: OfferRepr,
    /// The oldest offset of its log stream that it can still send.
    pub log_tail: u64,
    /// Its next log position to be appended: how far ahead the primary is.
    pub head: LogPos,
    /// Its clock, in nanoseconds.
    pub sent_at: u64,
    /// The newest `sent_at` it received on this path, 0 for none.
    pub echo: u64,
    /// Time between receiving that one and sending this, in nanoseconds.
    pub echo_held: u64,
    /// Its position for [`notice`](Self::notice).
    pub notice_position: LogPos,
    /// Its role, as the role machine encodes it.
    pub role: u8,
    /// What its role machine tells the peer's, as that machine encodes it.
    pub notice: u8,
    /// Bit `n`: it has heard this host on path `n` lately.
    pub heard: u8,
    /// Largest datagram it received lately on each path, in bytes.
    pub largest: [u16; PATHS],
}

/// The heartbeat as sent; padding may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Heartbeat {
    report: Report,
    log_offer_position: U64,
    log_offer_offset: U64,
    bulk_offer_offset: U64,
    log_offer_epoch: U32,
    bulk_offer_epoch: U32,
    log_tail: U64,
    head: U64,
    sent_at: U64,
    echo: U64,
    echo_held: U64,
    notice_position: U64,
    role: u8,
    notice: u8,
    heard: u8,
    reserved: u8,
    largest: [U16; PATHS],
}

/// Bytes of a heartbeat's body without padding.
pub const HEARTBEAT_BYTES: usize = 192;
const _: () = assert!(size_of::<Heartbeat>() == HEARTBEAT_BYTES);

impl HeartbeatRepr {
    /// The heartbeat as sent.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            report: self.report.report(),
            log_offer_position: U64::new(self.log_offer.position.0),
            log_offer_offset: U64::new(self.log_offer.offset),
            bulk_offer_offset: U64::new(self.bulk_offer.offset),
            log_offer_epoch: U32::new(self.log_offer.epoch),
            bulk_offer_epoch: U32::new(self.bulk_offer.epoch),
            log_tail: U64::new(self.log_tail),
            head: U64::new(self.head.0),
            sent_at: U64::new(self.sent_at),
            echo: U64::new(self.echo),
            echo_held: U64::new(self.echo_held),
            notice_position: U64::new(self.notice_position.0),
            role: self.role,
            notice: self.notice,
            heard: self.heard,
            reserved: 0,
            largest: self.largest.map(U16::new),
        }
    }

    /// Reads a heartbeat's body; bytes behind the fixed part are padding.
    ///
    /// # Errors
    ///
    /// Too short, or fields that contradict each other.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let (beat, _padding) =
            Heartbeat::ref_from_prefix(body).map_err(|_| WireError::Truncated)?;
        Ok(Self {
            report: ReportRepr::from_report(&beat.report)?,
            log_offer: OfferRepr {
                epoch: beat.log_offer_epoch.get(),
                position: LogPos(beat.log_offer_position.get()),
                offset: beat.log_offer_offset.get(),
            },
            bulk_offer: OfferRepr {
                epoch: beat.bulk_offer_epoch.get(),
                position: LogPos(0),
                offset: beat.bulk_offer_offset.get(),
            },
            log_tail: beat.log_tail.get(),
            head: LogPos(beat.head.get()),
            sent_at: beat.sent_at.get(),
            echo: beat.echo.get(),
            echo_held: beat.echo_held.get(),
            notice_position: LogPos(beat.notice_position.get()),
            role: beat.role,
            notice: beat.notice,
            heard: beat.heard,
            largest: beat.largest.map(U16::get),
        })
    }
}

/// What each side tells the other inside the handshake, sealed by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GreetingRepr<'a> {
    /// The sender.
    pub node: NodeId,
    /// The sender's start.
    pub boot: BootId,
    /// The sender's generation.
    pub generation: Generation,
    /// Counts this boot's handshakes upward, so that an old first message cannot be used again.
    pub number: u64,
    /// The session id of the datagram's header, which is in the clear.
    pub session: u32,
    /// The path of the datagram's header.
    pub path: u8,
    /// The compatibility record, opaque here; at most [`MAX_HELLO_BYTES`].
    pub hello: &'a [u8],
}

/// Fixed part of the greeting; `hello` fills the rest, padded with zeros.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Greeting {
    boot: U128,
    node: U64,
    generation: U64,
    number: U64,
    session: U32,
    hello_bytes: U16,
    path: u8,
    reserved: u8,
    hello: [u8; MAX_HELLO_BYTES],
}

/// Bytes of a handshake payload: always the whole, so that both messages have one length each.
pub const GREETING_BYTES: usize = 48 + MAX_HELLO_BYTES;
const _: () = assert!(size_of::<Greeting>() == GREETING_BYTES);

impl<'a> GreetingRepr<'a> {
    /// The greeting as sent.
    ///
    /// # Errors
    ///
    /// `hello` is longer than [`MAX_HELLO_BYTES`].
    pub fn greeting(&self) -> Result<Greeting, WireError> {
        let mut hello = [0; MAX_HELLO_BYTES];
        hello
            .get_mut(..self.hello.len())
            .ok_or(WireError::Field("hello length"))?
            .copy_from_slice(self.hello);
        Ok(Greeting {
            boot: U128::new(self.boot.0),
            node: U64::new(self.node.0),
            generation: U64::new(self.generation.0),
            number: U64::new(self.number),
            session: U32::new(self.session),
            hello_bytes: U16::new(self.hello.len() as u16),
            path: self.path,
            reserved: 0,
            hello,
        })
    }

    /// Reads a handshake payload.
    ///
    /// # Errors
    ///
    /// A wrong length, or a `hello` longer than its field.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let greeting = Greeting::ref_from_bytes(payload).map_err(|_| WireError::Truncated)?;
        let hello = greeting
            .hello
            .get(..usize::from(greeting.hello_bytes.get()))
            .ok_or(WireError::Field("hello length"))?;
        Ok(Self {
            node: NodeId(greeting.node.get()),
            boot: BootId(greeting.boot.get()),
            generation: Generation(greeting.generation.get()),
            number: greeting.number.get(),
            session: greeting.session.get(),
            path: greeting.path,
            hello,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ReportRepr {
        let mut bits = [0; 32];
        bits[0] = 0b101;
        bits[31] = 0x80;
        ReportRepr {
            log: StreamReport {
                epoch: 3,
                received: 100,
                limit: 1_000,
            },
            bulk: StreamReport {
                epoch: 4,
                received: 5,
                limit: 5,
            },
            held: LogPos(9),
            verified: LogPos(7),
            newest: 1_000,
            delay_us: 12,
            bits,
        }
    }

    #[test]
    fn report_survives_the_round_trip() {
        assert_eq!(
            ReportRepr::parse(report().report().as_bytes()),
            Ok(report())
        );
    }

    #[test]
    fn report_names_exactly_the_datagrams_of_its_bits() {
        let report = report();
        let named: alloc::vec::Vec<u64> = (0..2_000).filter(|&n| report.names(n)).collect();
        assert_eq!(named, [745, 998, 1_000]);
    }

    #[test]
    fn contradictory_reports_are_refused_by_name() {
        let mut bad = report();
        bad.log.limit = 99;
        assert_eq!(
            ReportRepr::parse(bad.report().as_bytes()),
            Err(WireError::Field("log limit"))
        );
        let mut bad = report();
        bad.bulk.received = 6;
        assert_eq!(
            ReportRepr::parse(bad.report().as_bytes()),
            Err(WireError::Field("bulk limit"))
        );
        let mut bad = report();
        bad.verified = LogPos(10);
        assert_eq!(
            ReportRepr::parse(bad.report().as_bytes()),
            Err(WireError::Field("verified"))
        );
        assert_eq!(ReportRepr::parse(&[0; 103]), Err(WireError::Truncated));
    }

    #[test]
    fn heartbeat_survives_the_round_trip_with_padding() {
        let beat = HeartbeatRepr {
            report: report(),
            log_offer: OfferRepr {
                epoch: 1,
                position: LogPos(2),
                offset: 3,
            },
            bulk_offer: OfferRepr {
                epoch: 4,
                position: LogPos(0),
                offset: 5,
            },
            log_tail: 2,
            head: LogPos(6),
            sent_at: 7,
            echo: 8,
            echo_held: 9,
            notice_position: LogPos(10),
            role: 11,
            notice: 12,
            heard: 3,
            largest: [14, 15],
        };
        let mut bytes = alloc::vec::Vec::from(beat.heartbeat().as_bytes());
        bytes.extend_from_slice(&[0xaa; 50]);
        assert_eq!(HeartbeatRepr::parse(&bytes), Ok(beat));
    }

    #[test]
    fn greeting_survives_the_round_trip_and_bounds_its_hello() {
        let greeting = GreetingRepr {
            node: NodeId(1),
            boot: BootId(2),
            generation: Generation(3),
            number: 4,
            session: 5,
            path: 1,
            hello: b"same machine",
        };
        let bytes = greeting.greeting().unwrap();
        assert_eq!(GreetingRepr::parse(bytes.as_bytes()), Ok(greeting.clone()));
        let long = [0; MAX_HELLO_BYTES + 1];
        let refused = GreetingRepr {
            hello: &long,
            ..greeting
        };
        assert!(refused.greeting().is_err());
        let mut lying = bytes;
        lying.hello_bytes = U16::new(MAX_HELLO_BYTES as u16 + 1);
        assert_eq!(
            GreetingRepr::parse(lying.as_bytes()),
            Err(WireError::Field("hello length"))
        );
    }

    #[test]
    fn data_needs_bytes_and_a_representable_end() {
        let mut body = alloc::vec::Vec::from(Data::new(u64::MAX - 1).as_bytes());
        assert_eq!(Data::parse(&body), Err(WireError::Field("data length")));
        body.push(1);
        assert_eq!(Data::parse(&body), Ok((u64::MAX - 1, &[1][..])));
        body.push(1);
        assert_eq!(Data::parse(&body), Err(WireError::Field("data offset")));
    }
}
