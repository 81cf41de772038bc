//! Intel: one general counter counts INST_RETIRED, in the guest only.
//!
//! PERF_GLOBAL_CTRL is exchanged by the VM entry and the VM exit themselves, so no instruction of the host is counted.
//! The counter's value is loaded from the entry's MSR list and stored to the exit's. Its overflow is an NMI, which
//! exits. The counter stands still in system-management mode (SDM 3 chapter 21, 26.7, 26.8).

use arch::msr;
use arch::pmu::intel as registers;
use arch::pmu::{EventSelect, Signature};

use super::MsrWrite;

/// How long a deterministic exit is waited for before the guest is stopped by the counter, in nanoseconds: less than the
/// steps to a landing take.
pub const PREFER_EXIT_NS: u64 = 100_000;

/// What CPUID and the capability MSR say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Family and model.
    pub signature: Signature,
    /// CPUID leaf 0AH.
    pub leaf: registers::Leaf,
    /// IA32_PERF_CAPABILITIES, or 0 where it does not exist.
    pub capabilities: u64,
    /// Both controls that load PERF_GLOBAL_CTRL, and the monitor trap, exist.
    pub controls: bool,
}

/// Why there is no such counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// No performance monitoring of version 2, or no general counter of 32 bits or more.
    NoCounter,
    /// Retired instructions are not among the events.
    NoEvent,
    /// System-management mode would be counted.
    CountsSmm,
    /// PERF_GLOBAL_CTRL cannot be exchanged at entries and exits, or nothing stops behind one instruction.
    NoControls,
}

impl Unusable {
    /// For the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCounter => "the processor shows none (CPUID leaf 0AH)",
            Self::NoEvent => "retired instructions are not among the events (CPUID leaf 0AH)",
            Self::CountsSmm => {
                "system-management mode would be counted (PERF_CAPABILITIES bit 12 is 0)"
            }
            Self::NoControls => {
                "entries and exits do not switch it, or there is no monitor trap flag"
            }
        }
    }
}

/// The counter, and how it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    margin: u64,
    mask: u64,
    /// The register that takes values of the full width, or PMC0.
    register: u32,
    /// The most that can be counted before an overflow.
    longest: u64,
}

impl Counter {
    /// Looks whether this processor can count.
    ///
    /// # Errors
    ///
    /// What it lacks.
    pub fn of(processor: &Processor) -> Result<Self, Unusable> {
        let leaf = processor.leaf;
        if leaf.version < 2 || leaf.counters == 0 || !(32..=63).contains(&leaf.width) {
            return Err(Unusable::NoCounter);
        }
        if !leaf.counts_instructions {
            return Err(Unusable::NoEvent);
        }
        if processor.capabilities & registers::CAPABILITY_FREEZE_WHILE_SMM == 0 {
            return Err(Unusable::CountsSmm);
        }
        if !processor.controls {
            return Err(Unusable::NoControls);
        }
        let full = processor.capabilities & registers::CAPABILITY_FULL_WIDTH != 0;
        Ok(Self {
            margin: registers::margin(processor.signature),
            mask: (1 << leaf.width) - 1,
            register: if full {
                registers::A_PMC0
            } else {
                registers::PMC0
            },
            // What is written to PMC0 is extended by its bit 31 (SDM 3 21.2.8).
            longest: if full { 1 << (leaf.width - 1) } else { 1 << 31 },
        })
    }

    /// How early it has to overflow.
    #[must_use]
    pub const fn margin(&self) -> u64 {
        self.margin
    }

    /// What to write once; `debugctl` is DEBUGCTL as it is. All counters stand still in the host.
    #[must_use]
    pub const fn set_up(&self, debugctl: u64) -> [MsrWrite; 5] {
        const EVENT: EventSelect = EventSelect::INSTRUCTIONS_RETIRED
            .union(EventSelect::USER)
            .union(EventSelect::SYSTEM)
            .union(EventSelect::INTERRUPT)
            .union(EventSelect::ENABLE);
        const fn to(msr: u32, value: u64) -> MsrWrite {
            MsrWrite { msr, value }
        }
        [
            to(registers::PERF_GLOBAL_CTRL, Self::HOST_GLOBAL_CTRL),
            to(registers::FIXED_CTR_CTRL, 0),
            to(registers::PERFEVTSEL0, EVENT.bits()),
            to(registers::PERF_GLOBAL_OVF_CTRL, registers::GLOBAL_PMC0),
            to(
                msr::DEBUGCTL,
                debugctl | registers::DEBUGCTL_FREEZE_WHILE_SMM,
            ),
        ]
    }

    /// PERF_GLOBAL_CTRL that the entry loads.
    pub const GUEST_GLOBAL_CTRL: u64 = registers::GLOBAL_PMC0;
    /// PERF_GLOBAL_CTRL that the exit loads.
    pub const HOST_GLOBAL_CTRL: u64 = 0;

    /// The one element of the MSR list that the entry loads: the counter overflows after so many instructions. Where
    /// that is more than it can count it overflows early, which only ends the entry.
    #[must_use]
    pub const fn entry_list(&self, after: u64) -> MsrWrite {
        let after = if after < self.longest {
            after
        } else {
            self.longest
        };
        MsrWrite {
            msr: self.register,
            value: after.wrapping_neg() & self.written_mask(),
        }
    }

    /// PMC0 takes 32 bits.
    const fn written_mask(&self) -> u64 {
        if self.register == registers::A_PMC0 {
            self.mask
        } else {
            0xffff_ffff
        }
    }

    /// The one element of the MSR list that the exit stores.
    #[must_use]
    pub const fn exit_list(&self) -> u32 {
        self.register
    }

    /// Instructions from an entry with this list to the exit that has stored `stored`.
    #[must_use]
    pub const fn retired(&self, list: MsrWrite, stored: u64) -> u64 {
        let start = if list.msr == registers::A_PMC0 {
            list.value
        } else {
            list.value as u32 as i32 as i64 as u64
        };
        stored.wrapping_sub(start) & self.mask
    }

    /// Whether PERF_GLOBAL_STATUS says that it has overflowed.
    #[must_use]
    pub const fn has_overflowed(status: u64) -> bool {
        status & registers::GLOBAL_PMC0 != 0
    }

    /// What to write behind an overflow.
    #[must_use]
    pub const fn acknowledge() -> MsrWrite {
        MsrWrite {
            msr: registers::PERF_GLOBAL_OVF_CTRL,
            value: registers::GLOBAL_PMC0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SKYLAKE: Processor = Processor {
        signature: Signature {
            family: 6,
            model: 0x55,
        },
        leaf: registers::Leaf {
            version: 4,
            counters: 8,
            width: 48,
            counts_instructions: true,
        },
        capabilities: 0x3000,
        controls: true,
    };

    fn old() -> Processor {
        Processor {
            capabilities: 0x1000,
            ..SKYLAKE
        }
    }

    #[test]
    fn the_set_up_counts_retired_instructions_and_freezes_in_smm() {
        let counter = Counter::of(&SKYLAKE).expect("can count");
        let written: alloc::vec::Vec<_> = counter
            .set_up(0x1)
            .iter()
            .map(|write| (write.msr, write.value))
            .collect();
        let expected = [
            (0x38f, 0),
            (0x38d, 0),
            (0x186, 0x53_00c0),
            (0x390, 1),
            (0x1d9, 0x4001),
        ];
        assert_eq!(written, expected);
        assert_eq!(Counter::GUEST_GLOBAL_CTRL, 1);
        let acknowledge = Counter::acknowledge();
        assert_eq!((acknowledge.msr, acknowledge.value), (0x390, 1));
        assert!(Counter::has_overflowed(0x8000_0000_0000_0001));
        assert!(!Counter::has_overflowed(0x8000_0000_0000_0002));
    }

    #[test]
    fn the_lists_hold_what_is_left_to_the_overflow() {
        let counter = Counter::of(&SKYLAKE).expect("can count");
        let list = counter.entry_list(1000);
        assert_eq!((list.msr, list.value), (0x4c1, 0xffff_ffff_fc18));
        assert_eq!(counter.exit_list(), 0x4c1);
        assert_eq!(counter.retired(list, 5), 1005);
        assert_eq!(counter.retired(list, 0xffff_ffff_fc18), 0);
        assert_eq!(counter.entry_list(u64::MAX).value, 1 << 47);
        // Without full-width writes bit 31 is extended.
        let counter = Counter::of(&old()).expect("can count");
        let list = counter.entry_list(1000);
        assert_eq!((list.msr, list.value), (0xc1, 0xffff_fc18));
        assert_eq!(counter.retired(list, 5), 1005);
        assert_eq!(counter.entry_list(u64::MAX).value, 0x8000_0000);
    }

    #[test]
    fn what_is_missing_is_named() {
        let of = |processor| Counter::of(&processor).map(|_| ());
        let mut processor = SKYLAKE;
        processor.leaf.version = 1;
        assert_eq!(of(processor), Err(Unusable::NoCounter));
        let mut processor = SKYLAKE;
        processor.leaf.counts_instructions = false;
        assert_eq!(of(processor), Err(Unusable::NoEvent));
        let mut processor = SKYLAKE;
        processor.capabilities = 0;
        assert_eq!(of(processor), Err(Unusable::CountsSmm));
        let mut processor = SKYLAKE;
        processor.controls = false;
        assert_eq!(of(processor), Err(Unusable::NoControls));
    }

    proptest! {
        /// Whatever is retired comes back, through both registers.
        #[test]
        fn what_was_retired_is_counted(after in 1_u64..1 << 31, retired in 0_u64..1 << 31) {
            for processor in [SKYLAKE, old()] {
                let counter = Counter::of(&processor).expect("can count");
                let list = counter.entry_list(after);
                let start = if list.msr == 0xc1 { list.value as u32 as i32 as u64 } else { list.value };
                let stored = start.wrapping_add(retired) & ((1 << 48) - 1);
                prop_assert_eq!(counter.retired(list, stored), retired);
                // It passes zero exactly when the overflow is due.
                let overflowed = start & ((1 << 48) - 1) != 0 && retired >= after;
                prop_assert_eq!(stored < 1 << 47, overflowed);
            }
        }
    }
}
