//! Events a processor delivers through its IDT, and how two of them combine.

/// Exception vectors (SDM 3 7.3.1, table 7-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// How an event came about. The values are the encoding of both vendors (SDM 3 26.8.3, table
/// 26-17; APM 2 15.20), except that SVM has no privileged software exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// From an interrupt controller.
    Interrupt = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// A fault or trap the processor found.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}

/// One event to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// IDT index.
    pub vector: u8,
    /// How it came about.
    pub kind: EventKind,
    /// The error code to push, for the exceptions that have one.
    pub error_code: Option<u32>,
    /// Bytes of the instruction that caused it, for the software kinds: the return address lies
    /// behind it. Otherwise 0.
    pub instruction_length: u8,
}

impl Event {
    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::Interrupt,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// A non-maskable interrupt.
    #[must_use]
    pub const fn nmi() -> Self {
        Self {
            vector: vector::NMI,
            kind: EventKind::Nmi,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// An exception without an error code.
    #[must_use]
    pub const fn exception(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::Exception,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn exception_with_code(vector: u8, code: u32) -> Self {
        Self {
            vector,
            kind: EventKind::Exception,
            error_code: Some(code),
            instruction_length: 0,
        }
    }

    /// #GP(0), the answer to most forbidden instructions.
    #[must_use]
    pub const fn general_protection() -> Self {
        Self::exception_with_code(vector::GP, 0)
    }

    /// #UD, the answer to instructions that do not exist here.
    #[must_use]
    pub const fn undefined_opcode() -> Self {
        Self::exception(vector::UD)
    }

    fn class(self) -> Class {
        match (self.kind, self.vector) {
            (EventKind::Exception, vector::DF) => Class::DoubleFault,
            (EventKind::Exception, vector::PF) => Class::PageFault,
            (
                EventKind::Exception,
                vector::DE | vector::TS | vector::NP | vector::SS | vector::GP,
            ) => Class::Contributory,
            _ => Class::Benign,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// What a second exception during the delivery of a first event leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Deliver this one; the first is dropped (its instruction runs again) unless it is an
    /// external event, which stays pending at its source.
    Deliver(Event),
    /// The processor shuts down.
    TripleFault,
}

/// Combines `second`, an exception raised while `first` was being delivered, with it
/// (SDM 3 7.15, tables 7-4 and 7-5).
#[must_use]
pub fn merge(first: Event, second: Event) -> Merged {
    use Class::{Benign, Contributory, DoubleFault, PageFault};
    match (first.class(), second.class()) {
        (DoubleFault, Contributory | PageFault | DoubleFault) => Merged::TripleFault,
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
            Merged::Deliver(Event::exception_with_code(vector::DF, 0))
        }
        (Benign | DoubleFault, Benign)
        | (Benign, Contributory | PageFault | DoubleFault)
        | (Contributory, Benign | PageFault | DoubleFault)
        | (PageFault, Benign | DoubleFault) => Merged::Deliver(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exc(v: u8) -> Event {
        Event::exception(v)
    }

    #[test]
    fn contributory_pairs_make_a_double_fault() {
        let df = Merged::Deliver(Event::exception_with_code(vector::DF, 0));
        assert_eq!(merge(exc(vector::GP), exc(vector::NP)), df);
        assert_eq!(merge(exc(vector::PF), exc(vector::GP)), df);
        assert_eq!(merge(exc(vector::PF), exc(vector::PF)), df);
        // A page fault behind a contributory exception is handled in sequence.
        assert_eq!(
            merge(exc(vector::GP), exc(vector::PF)),
            Merged::Deliver(exc(vector::PF))
        );
    }

    #[test]
    fn a_fault_in_the_double_fault_handlers_delivery_shuts_down() {
        let df = Event::exception_with_code(vector::DF, 0);
        assert_eq!(merge(df, exc(vector::PF)), Merged::TripleFault);
        assert_eq!(merge(df, exc(vector::GP)), Merged::TripleFault);
        assert_eq!(merge(df, exc(vector::DB)), Merged::Deliver(exc(vector::DB)));
    }

    #[test]
    fn benign_and_external_events_never_combine() {
        assert_eq!(
            merge(Event::interrupt(0xd), exc(vector::GP)),
            Merged::Deliver(exc(vector::GP))
        );
        assert_eq!(
            merge(exc(vector::GP), exc(vector::AC)),
            Merged::Deliver(exc(vector::AC))
        );
    }
}
