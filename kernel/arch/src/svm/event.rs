//! Event injection and cut-off events (APM 2 15.7.2 and 15.20, figure 15-4).

use crate::event::{Event, EventKind, vector};

const VALID: u64 = 1 << 31;
const ERROR_CODE_VALID: u64 = 1 << 11;
const TYPE_SHIFT: u32 = 8;

/// The value of EVENTINJ that delivers `event`.
///
/// A software interrupt is pushed with the RIP in the control block, so that has to be behind the
/// instruction. INT1, INT3 and INTO have no type of their own: they are exceptions here.
#[must_use]
pub const fn encode(event: Event) -> u64 {
    let kind = match event.kind {
        EventKind::Interrupt => 0,
        EventKind::Nmi => 2,
        EventKind::Exception
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => 3,
        EventKind::SoftwareInterrupt => 4,
    };
    let code = match event.error_code {
        Some(code) => (code as u64) << 32 | ERROR_CODE_VALID,
        None => 0,
    };
    code | VALID | kind << TYPE_SHIFT | event.vector as u64
}

/// What EXITINTINFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// No delivery was cut off.
    Nothing,
    /// The delivery of this event was; it has to be delivered again.
    Event(Event),
    /// The delivery of a software interrupt, INT3 or INTO was: RIP still points at the instruction, which
    /// runs again.
    Instruction,
}

/// Reads EXITINTINFO. Only bit 31 says that there is anything: QEMU leaves the rest of an event behind
/// that was delivered.
#[must_use]
pub const fn decode(info: u64) -> CutOff {
    if info & VALID == 0 {
        return CutOff::Nothing;
    }
    let number = info as u8;
    let kind = match info >> TYPE_SHIFT & 7 {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        3 if number == vector::BP || number == vector::OF => return CutOff::Instruction,
        3 => EventKind::Exception,
        // Type 4, and the reserved ones, which no processor reports: the instruction runs again.
        _ => return CutOff::Instruction,
    };
    let error_code = if info & ERROR_CODE_VALID != 0 {
        Some((info >> 32) as u32)
    } else {
        None
    };
    CutOff::Event(Event {
        vector: number,
        kind,
        error_code,
        instruction_length: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_of_every_kind() {
        assert_eq!(encode(Event::interrupt(0x50)), 0x8000_0050);
        assert_eq!(encode(Event::nmi()), 0x8000_0202);
        assert_eq!(encode(Event::undefined_opcode()), 0x8000_0306);
        assert_eq!(
            encode(Event::exception_with_code(vector::GP, 0xabcd)),
            0x0000_abcd_8000_0b0d
        );
        let int = Event {
            vector: 0x80,
            kind: EventKind::SoftwareInterrupt,
            error_code: None,
            instruction_length: 2,
        };
        assert_eq!(encode(int), 0x8000_0480);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for event in [
            Event::interrupt(0xff),
            Event::nmi(),
            Event::exception(vector::UD),
            Event::exception_with_code(vector::PF, u32::MAX),
        ] {
            assert_eq!(decode(encode(event)), CutOff::Event(event));
        }
    }

    #[test]
    fn bit_31_alone_says_that_there_is_an_event() {
        assert_eq!(decode(0x0000_abcd_0000_0b0d), CutOff::Nothing);
        assert_eq!(decode(0x81), CutOff::Nothing);
        assert_eq!(decode(0x8000_0000), CutOff::Event(Event::interrupt(0)));
    }

    #[test]
    fn software_events_run_their_instruction_again() {
        assert_eq!(decode(0x8000_0480), CutOff::Instruction);
        assert_eq!(decode(0x8000_0303), CutOff::Instruction);
        assert_eq!(decode(0x8000_0304), CutOff::Instruction);
        // #DB from INT1 is an exception like the others.
        assert_eq!(
            decode(0x8000_0301),
            CutOff::Event(Event::exception(vector::DB))
        );
    }
}
