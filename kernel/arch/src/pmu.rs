//! Performance counters of both vendors, as far as counting retired instructions needs them: register numbers, bits,
//! and how late each microarchitecture stops (SDM 3 chapter 21, 4 chapter 2; APM 2 13.2; the PPR of each family).

#![allow(missing_docs)] // the names are the manuals'

use bitflags::bitflags;

bitflags! {
    /// An event-select register: PERFEVTSELn (SDM 3 21.2.1.1), PERF_CTLn (APM 2 13.2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EventSelect: u64 {
        /// Instructions retired on both vendors: INST_RETIRED.ANY_P with unit mask 0, PMCx0C0.
        const INSTRUCTIONS_RETIRED = 0xc0;
        const USER = 1 << 16;
        const SYSTEM = 1 << 17;
        const INTERRUPT = 1 << 20;
        const ENABLE = 1 << 22;
        /// AMD: counts in guests only.
        const GUEST_ONLY = 1 << 40;
        /// AMD: counts in the host only.
        const HOST_ONLY = 1 << 41;
        const _ = !0;
    }
}

/// Family and model, as CPUID.1:EAX tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    pub family: u32,
    pub model: u32,
}

impl Signature {
    /// Reads CPUID.1:EAX (SDM 2 CPUID, figure 3-6; APM 3 E.3.2).
    #[must_use]
    pub const fn decode(eax: u32) -> Self {
        let base = eax >> 8 & 0xf;
        let family = if base == 0xf {
            base + (eax >> 20 & 0xff)
        } else {
            base
        };
        let model = eax >> 4 & 0xf;
        let extended = if base == 6 || base == 0xf {
            (eax >> 16 & 0xf) << 4
        } else {
            0
        };
        Self {
            family,
            model: extended | model,
        }
    }
}

/// The breakpoints in DR7 (SDM 3 19.2.4, APM 2 13.1.1.4).
pub mod debug {
    /// DR0 to DR3.
    pub const BREAKPOINTS: u8 = 4;
    /// B0 to B3 of DR6.
    pub const ALL_BREAKPOINTS: u64 = 0xf;

    #[must_use]
    pub const fn local_enable(n: u8) -> u64 {
        1 << (2 * n)
    }

    /// Ln and Gn.
    #[must_use]
    pub const fn enables(n: u8) -> u64 {
        0b11 << (2 * n)
    }

    /// R/Wn and LENn; 0 is the execution of an instruction.
    #[must_use]
    pub const fn condition(n: u8) -> u64 {
        0xf << (16 + 4 * n)
    }
}

/// Intel's registers and bits.
pub mod intel {
    use super::Signature;

    pub const PERF_CAPABILITIES: u32 = 0x345;
    pub const PMC0: u32 = 0xc1;
    /// PMC0 with its full width (SDM 3 21.2.8).
    pub const A_PMC0: u32 = 0x4c1;
    pub const PERFEVTSEL0: u32 = 0x186;
    pub const PERF_GLOBAL_STATUS: u32 = 0x38e;
    pub const PERF_GLOBAL_CTRL: u32 = 0x38f;
    /// IA32_PERF_GLOBAL_OVF_CTRL, from version 4 on IA32_PERF_GLOBAL_STATUS_RESET.
    pub const PERF_GLOBAL_OVF_CTRL: u32 = 0x390;
    pub const FIXED_CTR_CTRL: u32 = 0x38d;

    /// Of PERF_GLOBAL_CTRL, PERF_GLOBAL_STATUS and PERF_GLOBAL_OVF_CTRL: the first general counter.
    pub const GLOBAL_PMC0: u64 = 1 << 0;
    /// PERF_CAPABILITIES: DEBUGCTL has FREEZE_WHILE_SMM.
    pub const CAPABILITY_FREEZE_WHILE_SMM: u64 = 1 << 12;
    /// PERF_CAPABILITIES: A_PMCn exist.
    pub const CAPABILITY_FULL_WIDTH: u64 = 1 << 13;
    /// DEBUGCTL: the counters stand still in system-management mode (SDM 3 19.4.1).
    pub const DEBUGCTL_FREEZE_WHILE_SMM: u64 = 1 << 14;
    /// CPUID.1:ECX: PERF_CAPABILITIES exists.
    pub const CPUID_PDCM: u32 = 1 << 15;

    /// CPUID leaf 0AH (SDM 3 21.2.1, 21.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Leaf {
        pub version: u8,
        pub counters: u8,
        pub width: u8,
        /// Instructions retired can be counted.
        pub counts_instructions: bool,
    }

    impl Leaf {
        #[must_use]
        pub const fn decode(eax: u32, ebx: u32) -> Self {
            const INSTRUCTIONS: u32 = 1;
            let listed = eax >> 24 > INSTRUCTIONS;
            Self {
                version: eax as u8,
                counters: (eax >> 8) as u8,
                width: (eax >> 16) as u8,
                counts_instructions: listed && ebx >> INSTRUCTIONS & 1 == 0,
            }
        }
    }

    /// Family 6 models and how late they stop, in conditional branches: what rr (`src/PerfCounters.cc`) has found to be
    /// enough for years.
    const BRANCHES: &[(&[u32], u64)] = &[
        // Nehalem to Broadwell.
        (&[0x1a, 0x1e, 0x2e, 0x25, 0x2c, 0x2f], 100),
        (&[0x2a, 0x2d, 0x3a, 0x3e], 100),
        (&[0x3c, 0x3f, 0x45, 0x46, 0x3d, 0x47, 0x4f, 0x56], 100),
        // Skylake, Kaby Lake, Comet Lake.
        (&[0x4e, 0x5e, 0x55, 0x8e, 0x9e, 0xa5, 0xa6], 100),
        // Ice Lake, Tiger Lake, Rocket Lake.
        (&[0x7d, 0x7e, 0x6a, 0x6c, 0x8c, 0x8d, 0xa7], 100),
        // Alder Lake to Arrow Lake, Sapphire Rapids, Emerald Rapids.
        (&[0x97, 0x9a, 0xb7, 0xba, 0xbf, 0xaa, 0xbd, 0xc6], 125),
        (&[0x8f, 0xcf], 125),
        // Silvermont, Goldmont, Tremont.
        (&[0x37, 0x4c, 0x5c, 0x5f, 0x7a, 0x96, 0x9c], 100),
    ];
    /// Of a processor that is not listed.
    const BRANCHES_UNKNOWN: u64 = 250;
    /// Instructions taken for one conditional branch. The skid is a time; how many instructions retire in it is not
    /// published, so this is generous, and too little would be noticed by every landing.
    const INSTRUCTIONS_PER_BRANCH: u64 = 4;

    /// How many instructions before its target a counter has to overflow.
    #[must_use]
    pub fn margin(signature: Signature) -> u64 {
        let listed = BRANCHES
            .iter()
            .find(|(models, _)| signature.family == 6 && models.contains(&signature.model));
        listed.map_or(BRANCHES_UNKNOWN, |(_, branches)| *branches) * INSTRUCTIONS_PER_BRANCH
    }
}

/// AMD's registers and bits.
pub mod amd {
    use super::Signature;

    /// With the extended counters (PerfCtrExtCore).
    pub const PERF_CTL0: u32 = 0xc001_0200;
    pub const PERF_CTR0: u32 = 0xc001_0201;
    /// The first of the four counters that every processor has.
    pub const LEGACY_PERF_CTL0: u32 = 0xc001_0000;
    pub const LEGACY_PERF_CTR0: u32 = 0xc001_0004;
    /// With version 2 of performance monitoring (APM 2 13.2.4).
    pub const GLOBAL_CTL: u32 = 0xc000_0301;
    pub const GLOBAL_STATUS_CLEAR: u32 = 0xc000_0302;
    /// Of GLOBAL_CTL and GLOBAL_STATUS_CLEAR: the first counter.
    pub const GLOBAL_CTR0: u64 = 1 << 0;
    /// LS_CFG of the families 17h and later.
    pub const LS_CFG: u32 = 0xc001_1020;
    /// Of LS_CFG: no speculative mapping of locked instructions, which the counter would count twice
    /// (rr, issue 2034, its page on Zen and `scripts/zen_workaround.py`).
    pub const SPEC_LOCK_MAP_OFF: u64 = 1 << 54;
    /// CPUID 8000_0001h:ECX: the extended counters exist.
    pub const CPUID_PERF_CTR_EXT_CORE: u32 = 1 << 23;
    /// The CPUID leaf of version 2.
    pub const CPUID_PERF_MON: u32 = 0x8000_0022;
    /// Its EAX: version 2.
    pub const CPUID_PERF_MON_V2: u32 = 1 << 0;
    /// CPUID 1:ECX: this processor is a guest's.
    pub const CPUID_HYPERVISOR: u32 = 1 << 31;
    /// Bits of a counter (APM 2 13.2.2).
    pub const WIDTH: u8 = 48;

    /// The first family whose counters tell guests from hosts.
    const FIRST: u32 = 0x10;
    const ZEN: u32 = 0x17;

    /// Whether the counters can be told to count in guests only (the BKDG of family 10h, MSRC001_0000).
    #[must_use]
    pub const fn counts_guests(signature: Signature) -> bool {
        signature.family >= FIRST
    }

    /// Whether the processor is a Zen: its skid has no bound, and it maps locks speculatively.
    #[must_use]
    pub const fn is_zen(signature: Signature) -> bool {
        signature.family >= ZEN
    }

    /// How many instructions before its target a counter has to overflow. On Zen rr (`src/PerfCounters.cc`) calls the skid
    /// unbounded and takes 10 000 branches as what is rarely exceeded; before Zen 250.
    #[must_use]
    pub const fn margin(signature: Signature) -> u64 {
        if is_zen(signature) { 10_000 } else { 1000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_models_of_known_processors() {
        let is = |eax, family, model| {
            assert_eq!(
                Signature::decode(eax),
                Signature { family, model },
                "{eax:#x}"
            );
        };
        is(0x0005_0654, 6, 0x55);
        is(0x000c_06f2, 6, 0xcf);
        is(0x00a2_0f12, 0x19, 0x21);
        is(0x0083_0f10, 0x17, 0x31);
        is(0x00b4_0f40, 0x1a, 0x44);
    }

    #[test]
    fn leaf_0a_of_a_skylake_server_and_of_a_machine_without_counters() {
        let leaf = intel::Leaf::decode(0x0730_0404, 0);
        assert_eq!((leaf.version, leaf.counters, leaf.width), (4, 4, 48));
        assert!(leaf.counts_instructions);
        assert!(!intel::Leaf::decode(0x0730_0404, 0b10).counts_instructions);
        assert!(!intel::Leaf::decode(0, 0).counts_instructions);
    }

    #[test]
    fn margins_follow_the_table_and_are_widest_where_nothing_is_known() {
        let of = |family, model| intel::margin(Signature { family, model });
        assert_eq!(of(6, 0x55), 400);
        assert_eq!(of(6, 0x8f), 500);
        assert_eq!(of(6, 0xff), 1000);
        assert_eq!(of(0x13, 0x01), 1000);
        let zen = Signature {
            family: 0x19,
            model: 0x21,
        };
        assert!(amd::is_zen(zen));
        assert_eq!(amd::margin(zen), 10_000);
        let bulldozer = Signature {
            family: 0x15,
            model: 2,
        };
        assert!(amd::counts_guests(bulldozer));
        let k8 = Signature {
            family: 0xf,
            model: 0x41,
        };
        assert!(!amd::counts_guests(k8));
        assert!(!amd::is_zen(bulldozer));
        assert_eq!(amd::margin(bulldozer), 1000);
    }
}
