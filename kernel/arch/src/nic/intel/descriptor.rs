//! Descriptors: the two formats, of which `igb` cards take the advanced one (8254x 3.2.3, 3.3.3; 82576 7.1.5, 7.2.2).

use super::super::Family;

/// Why a received frame is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Wrong check sequence.
    Crc,
    /// Anything else.
    Other,
}

/// What a card wrote into a receive descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes, as the card says: unchecked.
    pub length: usize,
    /// The frame ends in this buffer.
    pub last: bool,
    pub fault: Option<Fault>,
}

mod legacy {
    pub(super) const DONE: u64 = 1 << 32;
    pub(super) const LAST: u64 = 1 << 33;
    /// CE; and SE, SEQ, CXE, RXE. TCPE and IPE are the receiver's own business.
    pub(super) const CRC: u64 = 1 << 40;
    pub(super) const OTHER: u64 = (1 << 1 | 1 << 2 | 1 << 4 | 1 << 7) << 40;
    /// EOP, IFCS, RS.
    pub(super) const COMMAND: u64 = (1 << 0 | 1 << 1 | 1 << 3) << 24;
}

mod advanced {
    pub(super) const DONE: u64 = 1 << 0;
    pub(super) const LAST: u64 = 1 << 1;
    /// RXE: everything the MAC can find, the check sequence included.
    pub(super) const OTHER: u64 = 1 << 31;
    /// EOP, IFCS, RS, DEXT, and the type "data".
    pub(super) const COMMAND: u64 = (1 << 0 | 1 << 1 | 1 << 3 | 1 << 5) << 24 | 3 << 20;
    pub(super) const PAYLOAD_SHIFT: u32 = 46;
}

const TRANSMIT_DONE: u64 = 1 << 32;

/// Reads the upper half of a receive descriptor; `None` if the card has not written it yet.
pub(super) fn received(family: Family, high: u64) -> Option<Written> {
    if family == Family::Igb {
        return (high & advanced::DONE != 0).then(|| Written {
            length: (high >> 32 & 0xffff) as usize,
            last: high & advanced::LAST != 0,
            fault: (high & advanced::OTHER != 0).then_some(Fault::Other),
        });
    }
    (high & legacy::DONE != 0).then(|| Written {
        length: (high & 0xffff) as usize,
        last: high & legacy::LAST != 0,
        fault: if high & legacy::CRC != 0 {
            Some(Fault::Crc)
        } else {
            (high & legacy::OTHER != 0).then_some(Fault::Other)
        },
    })
}

/// The upper half of the descriptor that sends a frame of so many bytes.
pub(super) fn to_send(family: Family, bytes: usize) -> u64 {
    let bytes = bytes as u64;
    if family == Family::Igb {
        bytes | advanced::COMMAND | bytes << advanced::PAYLOAD_SHIFT
    } else {
        bytes | legacy::COMMAND
    }
}

/// Whether the card has written that a frame was sent.
pub(super) fn sent(high: u64) -> bool {
    high & TRANSMIT_DONE != 0
}
