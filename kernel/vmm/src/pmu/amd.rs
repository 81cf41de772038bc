//! AMD: the first extended counter counts retired instructions, in the guest only.
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
}

/// The counter, and how it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    margin: u64,
    zen: bool,
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
    /// The register to read behind an entry.
    pub const REGISTER: u32 = registers::PERF_CTR0;

    /// Looks whether this processor can count. `None`: it has no extended counters.
    #[must_use]
    pub const fn of(processor: &Processor) -> Option<Self> {
        if processor.features & registers::CPUID_PERF_CTR_EXT_CORE == 0 {
            return None;
        }
        Some(Self {
            margin: registers::margin(processor.signature),
            zen: registers::is_zen(processor.signature),
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

    /// Whether LS_CFG is to be read and given to [`Counter::set_up`].
    #[must_use]
    pub const fn wants_ls_cfg(&self) -> bool {
        self.zen
    }

    /// What to write once, after another: the counter off, and on a Zen, whose LS_CFG is `ls_cfg`, the speculative
    /// mapping of locks, which counts locked instructions that are executed again.
    #[must_use]
    pub const fn set_up(&self, ls_cfg: u64) -> (MsrWrite, Option<MsrWrite>) {
        let locks = if self.zen {
            Some(write(
                registers::LS_CFG,
                ls_cfg | registers::SPEC_LOCK_MAP_OFF,
            ))
        } else {
            None
        };
        (write(registers::PERF_CTL0, 0), locks)
    }

    /// The writes around an entry in which the counter overflows after so many of the guest's instructions.
    #[must_use]
    pub const fn entry(&self, after: u64) -> Entry {
        const LONGEST: u64 = 1 << (registers::WIDTH - 1);
        let after = after.saturating_add(self.host_share);
        let after = if after < LONGEST { after } else { LONGEST };
        Entry {
            before: [
                write(registers::PERF_CTR0, after.wrapping_neg() & MASK),
                write(registers::PERF_CTL0, EVENT.bits()),
            ],
            behind: write(registers::PERF_CTL0, 0),
        }
    }

    /// The guest's instructions in that entry, whose counter then read `stored`. `None`: fewer than the host's share, so
    /// that is wrong.
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
    };

    fn pair(write: MsrWrite) -> (u32, u64) {
        (write.msr, write.value)
    }

    #[test]
    fn the_set_up_switches_the_speculative_mapping_of_locks_off() {
        let counter = Counter::of(&MILAN).expect("can count");
        assert!(counter.wants_ls_cfg());
        let (off, locks) = counter.set_up(0x20);
        assert_eq!(pair(off), (0xc001_0200, 0));
        assert_eq!(locks.map(pair), Some((0xc001_1020, 0x0040_0000_0000_0020)));
        let mut old = MILAN;
        old.signature.family = 0x15;
        let counter = Counter::of(&old).expect("can count");
        assert!(!counter.wants_ls_cfg());
        assert_eq!(counter.set_up(0).1, None);
        old.features = 0;
        assert_eq!(Counter::of(&old), None);
    }

    #[test]
    fn an_entry_counts_the_guest_only_and_allows_for_the_hosts_share() {
        let counter = Counter::of(&MILAN).expect("can count").with_host_share(2);
        let entry = counter.entry(1000);
        assert_eq!(pair(entry.before[0]), (0xc001_0201, 0xffff_ffff_fc16));
        assert_eq!(pair(entry.before[1]), (0xc001_0200, 0x0000_0100_0053_00c0));
        assert_eq!(pair(entry.behind), (0xc001_0200, 0));
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
            let counter = Counter::of(&MILAN).expect("can count").with_host_share(share);
            let entry = counter.entry(after);
            let stored = entry.before[0].value.wrapping_add(retired + share) & MASK;
            prop_assert_eq!(counter.retired(&entry, stored), Some(retired));
            prop_assert_eq!(Counter::has_overflowed(stored), retired >= after);
        }
    }
}
