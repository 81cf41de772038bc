//! Interruption information: how VT-x reports an event and takes one for injection
//! (SDM 3 26.8.3, 26.9.2, 26.9.3).

use crate::event::{Event, EventKind, vector};

const VECTOR: u32 = 0xff;
const TYPE_SHIFT: u32 = 8;
const ERROR_CODE_VALID: u32 = 1 << 11;
/// In exit information: the event hit an IRET that had already ended NMI blocking (SDM 3 29.2.3).
pub const NMI_UNBLOCKED_BY_IRET: u32 = 1 << 12;
/// The whole field is valid.
pub const VALID: u32 = 1 << 31;

/// The interruption type, bits 10:8. Valid only if the field is.
#[must_use]
pub const fn kind_bits(info: u32) -> u32 {
    info >> TYPE_SHIFT & 7
}

/// The vector, bits 7:0.
#[must_use]
pub const fn vector_of(info: u32) -> u8 {
    (info & VECTOR) as u8
}

/// The event in an exit-interruption or IDT-vectoring field, or `None` if there is none. `error_code` and
/// `instruction_length` are asked only for events that have them.
#[must_use]
pub fn decode(
    info: u32,
    error_code: impl FnOnce() -> u32,
    instruction_length: impl FnOnce() -> u32,
) -> Option<Event> {
    if info & VALID == 0 {
        return None;
    }
    let kind = match kind_bits(info) {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        3 => EventKind::Exception,
        4 => EventKind::SoftwareInterrupt,
        5 => EventKind::PrivilegedSoftwareException,
        6 => EventKind::SoftwareException,
        _ => return None,
    };
    let instruction_length = if is_software(kind) {
        instruction_length() as u8
    } else {
        0
    };
    Some(Event {
        vector: vector_of(info),
        kind,
        error_code: (info & ERROR_CODE_VALID != 0).then(error_code),
        instruction_length,
    })
}

/// Whether the event comes from an instruction that is stepped over when it is delivered.
#[must_use]
pub const fn is_software(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException
    )
}

/// The three VM-entry fields for one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// VM-entry interruption information.
    pub info: u32,
    /// VM-entry exception error code.
    pub error_code: u32,
    /// VM-entry instruction length.
    pub instruction_length: u32,
}

/// The fields that deliver `event`. Without `protected_mode` (CR0.PE) no error code is pushed and asking
/// for one would make the entry fail (SDM 3 28.2.1.3).
#[must_use]
pub fn encode(event: Event, protected_mode: bool) -> Injection {
    let mut info = VALID | u32::from(event.vector) | (event.kind as u32) << TYPE_SHIFT;
    let mut error_code = 0;
    if let Some(code) = event.error_code
        && protected_mode
    {
        info |= ERROR_CODE_VALID;
        error_code = code;
    }
    Injection {
        info,
        error_code,
        instruction_length: u32::from(event.instruction_length),
    }
}

/// Whether the processor pushes an error code for this exception (SDM 3 7.13).
#[must_use]
pub const fn has_error_code(exception: u8) -> bool {
    matches!(
        exception,
        vector::DF
            | vector::TS
            | vector::NP
            | vector::SS
            | vector::GP
            | vector::PF
            | vector::AC
            | 21
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(event: Event) -> Option<Event> {
        let fields = encode(event, true);
        decode(
            fields.info,
            || fields.error_code,
            || fields.instruction_length,
        )
    }

    #[test]
    fn every_kind_survives_the_round_trip() {
        for event in [
            Event::interrupt(0x31),
            Event::nmi(),
            Event::exception(vector::UD),
            Event::exception_with_code(vector::PF, 0x8000_0007),
            Event {
                vector: 0x80,
                kind: EventKind::SoftwareInterrupt,
                error_code: None,
                instruction_length: 2,
            },
            Event {
                vector: vector::BP,
                kind: EventKind::SoftwareException,
                error_code: None,
                instruction_length: 1,
            },
            Event {
                vector: vector::DB,
                kind: EventKind::PrivilegedSoftwareException,
                error_code: None,
                instruction_length: 1,
            },
        ] {
            assert_eq!(round_trip(event), Some(event));
        }
    }

    #[test]
    fn known_encodings() {
        // #GP(0) and INT 0x40, as in the manual's tables.
        assert_eq!(encode(Event::general_protection(), true).info, 0x8000_0b0d);
        assert_eq!(encode(Event::interrupt(0x40), true).info, 0x8000_0040);
        assert_eq!(encode(Event::nmi(), true).info, 0x8000_0202);
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        let fields = encode(Event::exception_with_code(vector::GP, 0x18), false);
        assert_eq!(fields.info, 0x8000_030d);
        assert_eq!(fields.error_code, 0);
    }

    #[test]
    fn invalid_and_reserved_fields_are_no_event() {
        assert_eq!(decode(0x0000_0b0d, || 0, || 0), None);
        assert_eq!(decode(VALID | 1 << 8, || 0, || 0), None);
        assert_eq!(decode(VALID | 7 << 8, || 0, || 0), None);
    }

    #[test]
    fn lengths_are_asked_only_for_software_events() {
        let event = decode(0x8000_0306, || panic!("no code"), || panic!("no length"));
        assert_eq!(event, Some(Event::undefined_opcode()));
    }
}
