//! Flag registers bit by bit. The constants carry the manuals' names and need no other words.

#![allow(missing_docs)]

use bitflags::bitflags;

bitflags! {
    /// RFLAGS (SDM 1 3.4.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        const CF = 1 << 0;
        const FIXED = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
        const _ = !0;
    }

    /// CR0 (SDM 3 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
        const _ = !0;
    }

    /// CR4 (SDM 3 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const VMXE = 1 << 13;
        const SMXE = 1 << 14;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
        const CET = 1 << 23;
        const PKS = 1 << 24;
        const _ = !0;
    }

    /// IA32_EFER (SDM 3 2.2.1, APM 2 3.1.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        const SVME = 1 << 12;
        const LMSLE = 1 << 13;
        const FFXSR = 1 << 14;
        const _ = !0;
    }

    /// XCR0 (SDM 1 13.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Xcr0: u64 {
        const X87 = 1 << 0;
        const SSE = 1 << 1;
        const AVX = 1 << 2;
        const _ = !0;
    }

    /// Segment attributes in the layout of a descriptor's second double word, shifted right by 8
    /// (SDM 3 26.4.1, table 26-2): type, S, DPL, P, AVL, L, D/B, G, and bit 16 "unusable".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SegmentAttributes: u32 {
        const TYPE = 0xf;
        const CODE_OR_DATA = 1 << 4;
        const DPL = 3 << 5;
        const PRESENT = 1 << 7;
        const AVAILABLE = 1 << 12;
        const LONG = 1 << 13;
        const BIG = 1 << 14;
        const GRANULAR = 1 << 15;
        const UNUSABLE = 1 << 16;
        const _ = !0;
    }
}

bitflags! {
    /// What keeps the processor from taking an event at its next instruction boundary.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Shadow: u8 {
        /// The instruction after STI.
        const STI = 1 << 0;
        /// The instruction after MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// An NMI was delivered and its handler has not executed IRET.
        const NMI = 1 << 2;
    }
}
