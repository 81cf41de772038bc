//! AMD: the first counter counts retired instructions, in the guest only.
//!
//! There are no lists: the host writes the counter before VMRUN and stops and reads it behind the exit. What it counts
//! of VMRUN and the exit themselves is a constant, measured with a guest whose first instruction exits, and
//! subtracted. Its overflow is an NMI, which exits. On Zen an overflow stops the guest however late it likes, so a
//! deterministic exit is waited for first (APM 2 13.2, 15.39; the PPR of family 17h and 19h).

use arch::pmu::amd as registers;
use arch::pmu::{EventSelect, Signature};

use super::MsrWrite;

/// How long a deterministic exit is waited for before the guest is stopped by the counter, in nanoseconds.
pub const PREFER_EXIT_NS: u64 = 1_000_000;

/// What CPUID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Family and model.
    pub signature: Signature,
    /// CPUID 8000_0001h:ECX.
    pub features: u32,
    /// CPUID 8000_0022h:EAX, or 0 where there is no such leaf.
    pub monitoring: u32,
    /// CPUID 1:ECX.
    pub basic: u32,
}

/// Why there is no such counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The counters of this family do not tell guests from the host.
    CountsHost,
    /// Another hypervisor runs this one: what a Zen does with locks is that one's to say.
    LocksMapped,
}

impl Unusable {
    /// For the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::CountsHost => "the counters do not tell guests from the host",
            Self::LocksMapped => {
                "under another hypervisor the speculative mapping of locks cannot be switched off"
            }
        }
    }
}

/// The counter, and how it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    margin: u64,
    zen: bool,
    extended: bool,
    global: bool,
    host_share: u64,
}

/// The writes around an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Before it, in this order: the counter stands still while its value is written.
    pub before: [MsrWrite; 2],
    /// Behind it, before the counter is read.
    pub behind: MsrWrite,
}

const MASK: u64 = (1 << registers::WIDTH) - 1;
const EVENT: EventSelect = EventSelect::INSTRUCTIONS_RETIRED
    .union(EventSelect::USER)
    .union(EventSelect::SYSTEM)
    .union(EventSelect::INTERRUPT)
    .union(EventSelect::ENABLE)
    .union(EventSelect::GUEST_ONLY);

const fn write(msr: u32, value: u64) -> MsrWrite {
    MsrWrite { msr, value }
}

impl Counter {
    /// Looks whether this processor can count.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    pub const fn of(processor: &Processor) -> Result<Self, Unusable> {
        let zen = registers::is_zen(processor.signature);
        if !registers::counts_guests(processor.signature) {
            return Err(Unusable::CountsHost);
        }
        if zen && processor.basic & registers::CPUID_HYPERVISOR != 0 {
            return Err(Unusable::LocksMapped);
        }
        Ok(Self {
            margin: registers::margin(processor.signature),
            zen,
            extended: processor.features & registers::CPUID_PERF_CTR_EXT_CORE != 0,
            global: processor.monitoring & registers::CPUID_PERF_MON_V2 != 0,
            host_share: 0,
        })
    }

    /// The same with what is counted around a guest that executes nothing.
    #[must_use]
    pub const fn with_host_share(self, host_share: u64) -> Self {
        Self { host_share, ..self }
    }

    /// How early it has to overflow.
    #[must_use]
    pub const fn margin(&self) -> u64 {
        self.margin
    }

    /// The register to read behind an entry.
    #[must_use]
    pub const fn register(&self) -> u32 {
        if self.extended {
            registers::PERF_CTR0
        } else {
            registers::LEGACY_PERF_CTR0
        }
    }

    const fn control(&self) -> u32 {
        if self.extended {
            registers::PERF_CTL0
        } else {
            registers::LEGACY_PERF_CTL0
        }
    }

    /// What to write once: the counter off, and where all counters have a switch in common, that on; `control` is
    /// what [`Counter::common_switch`] holds.
    #[must_use]
    pub const fn set_up(&self, control: u64) -> (MsrWrite, Option<MsrWrite>) {
        let common = match self.common_switch() {
            Some(msr) => Some(write(msr, control | registers::GLOBAL_CTR0)),
            None => None,
        };
        (write(self.control(), 0), common)
    }

    /// The register that switches all counters, where there is one.
    #[must_use]
    pub const fn common_switch(&self) -> Option<u32> {
        if self.global {
            Some(registers::GLOBAL_CTL)
        } else {
            None
        }
    }

    /// The register to change by [`Counter::without_mapped_locks`] before anything is counted, on a Zen.
    #[must_use]
    pub const fn locks_register(&self) -> Option<u32> {
        if self.zen {
            Some(registers::LS_CFG)
        } else {
            None
        }
    }

    /// LS_CFG with the speculative mapping of locks off, which counts locked instructions that are executed again.
    #[must_use]
    pub const fn without_mapped_locks(ls_cfg: u64) -> u64 {
        ls_cfg | registers::SPEC_LOCK_MAP_OFF
    }

    /// The writes around an entry in which the counter overflows after so many of the guest's instructions.
    #[must_use]
    pub const fn entry(&self, after: u64) -> Entry {
        const LONGEST: u64 = 1 << (registers::WIDTH - 1);
        let after = after.saturating_add(self.host_share);
        let after = if after < LONGEST { after } else { LONGEST };
        Entry {
            before: [
                write(self.register(), after.wrapping_neg() & MASK),
                write(self.control(), EVENT.bits()),
            ],
            behind: write(self.control(), 0),
        }
    }

    /// The guest's instructions in that entry, whose counter then read `stored`. `None`: fewer than the host's share, so
    /// that the processor has not entered.
    #[must_use]
    pub const fn retired(&self, entry: &Entry, stored: u64) -> Option<u64> {
        let [MsrWrite { value: start, .. }, _] = entry.before;
        (stored.wrapping_sub(start) & MASK).checked_sub(self.host_share)
    }

    /// Whether an entry that started like this has overflowed: the counter has passed zero.
    #[must_use]
    pub const fn has_overflowed(stored: u64) -> bool {
        stored & 1 << (registers::WIDTH - 1) == 0
    }

    /// What to write behind an overflow.
    #[must_use]
    pub const fn acknowledge(&self) -> Option<MsrWrite> {
        if self.global {
            Some(write(
                registers::GLOBAL_STATUS_CLEAR,
                registers::GLOBAL_CTR0,
            ))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILAN: Processor = Processor {
        signature: Signature {
            family: 0x19,
            model: 1,
        },
        features: 1 << 23,
        monitoring: 0,
        basic: 0,
    };

    fn of(processor: Processor) -> Counter {
        Counter::of(&processor).expect("can count")
    }

    fn family(family: u32) -> Processor {
        let mut processor = MILAN;
        processor.signature.family = family;
        processor
    }

    fn pair(write: MsrWrite) -> (u32, u64) {
        (write.msr, write.value)
    }

    #[test]
    fn on_a_zen_the_speculative_mapping_of_locks_is_switched_off() {
        assert_eq!(of(MILAN).locks_register(), Some(0xc001_1020));
        assert_eq!(Counter::without_mapped_locks(0x20), 0x0040_0000_0000_0020);
        assert_eq!(of(family(0x15)).locks_register(), None);
        // Not there to be switched off.
        let guest = Processor {
            basic: 1 << 31,
            ..MILAN
        };
        assert_eq!(Counter::of(&guest), Err(Unusable::LocksMapped));
        let old_guest = Processor {
            basic: 1 << 31,
            ..family(0x15)
        };
        assert!(Counter::of(&old_guest).is_ok());
        assert_eq!(Counter::of(&family(0xf)), Err(Unusable::CountsHost));
    }

    #[test]
    fn the_first_counter_stands_still_until_an_entry_and_is_not_switched_off_with_all() {
        let (off, common) = of(MILAN).set_up(0);
        assert_eq!((pair(off), common), ((0xc001_0200, 0), None));
        assert_eq!(of(MILAN).acknowledge(), None);
        let genoa = of(Processor {
            monitoring: 1,
            ..MILAN
        });
        assert_eq!(genoa.common_switch(), Some(0xc000_0301));
        let (off, common) = genoa.set_up(0x3e);
        assert_eq!(pair(off), (0xc001_0200, 0));
        assert_eq!(common.map(pair), Some((0xc000_0301, 0x3f)));
        assert_eq!(genoa.acknowledge().map(pair), Some((0xc000_0302, 1)));
    }

    #[test]
    fn without_extended_counters_the_old_ones_count() {
        let counter = of(Processor {
            features: 0,
            ..family(0x10)
        });
        let entry = counter.entry(1000);
        assert_eq!(pair(entry.before[0]), (0xc001_0004, 0xffff_ffff_fc18));
        assert_eq!(pair(entry.before[1]), (0xc001_0000, 0x0000_0100_0053_00c0));
        assert_eq!(pair(entry.behind), (0xc001_0000, 0));
        assert_eq!(counter.register(), 0xc001_0004);
        assert_eq!(pair(counter.set_up(0).0), (0xc001_0000, 0));
    }

    #[test]
    fn an_entry_counts_the_guest_only_and_allows_for_the_hosts_share() {
        let counter = of(MILAN).with_host_share(2);
        let entry = counter.entry(1000);
        assert_eq!(pair(entry.before[0]), (0xc001_0201, 0xffff_ffff_fc16));
        assert_eq!(pair(entry.before[1]), (0xc001_0200, 0x0000_0100_0053_00c0));
        assert_eq!(pair(entry.behind), (0xc001_0200, 0));
        assert_eq!(counter.register(), 0xc001_0201);
        assert_eq!(counter.retired(&entry, 0), Some(1000));
        assert_eq!(counter.retired(&entry, 7), Some(1007));
        assert_eq!(counter.retired(&entry, 0xffff_ffff_fc17), None);
        assert!(Counter::has_overflowed(7));
        assert!(!Counter::has_overflowed(0xffff_ffff_fc17));
    }

    proptest! {
        #[test]
        fn what_was_retired_is_counted(
            after in 1_u64..1 << 40,
            retired in 0_u64..1 << 40,
            share in 0_u64..100,
        ) {
            let counter = of(MILAN).with_host_share(share);
            let entry = counter.entry(after);
            let stored = entry.before[0].value.wrapping_add(retired + share) & MASK;
            prop_assert_eq!(counter.retired(&entry, stored), Some(retired));
            prop_assert_eq!(Counter::has_overflowed(stored), retired >= after);
        }
    }
}
