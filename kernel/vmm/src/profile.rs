//! What processor the guest believes it has: CPUID as a fixed table, and the bits of control registers
//! that follow from it.
//!
//! The table is made of a level and of who made the host's processor: which family, model and stepping it is, because
//! operating systems know errata by them. Two such hosts give equal tables; one that lacks a feature of the level is
//! refused. What the table hides is in `docs/determinism.md`: whatever could show a guest something that is not a
//! function of the log.

use alloc::vec::Vec;
use core::fmt;

use arch::regs::{Cr0, Cr4, Efer, Xcr0};

use crate::nondet::GUEST_TSC_HZ;

/// The four registers of one CPUID answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What a guest's processor can do, by the names of the x86-64 psABI (version 1.0, table 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// x86-64-v2, and what all such processors have.
    V2,
    /// x86-64-v3, and what servers since Intel's Broadwell and AMD's Zen have.
    V3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
        })
    }
}

/// A host's processor lacks a feature of the level its guest is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The level.
    pub level: Level,
    /// The feature.
    pub feature: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this host's processor is not {}: it lacks {}",
            self.level, self.feature
        )
    }
}

impl core::error::Error for Missing {}

/// The registers in which CPUID tells features.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    OneEcx,
    OneEdx,
    SevenEbx,
    ExtendedEcx,
    ExtendedEdx,
}

/// A feature: the lowest level that has it, where it is told, its name.
struct Feature(Level, Register, u32, &'static str);

impl Feature {
    /// A host may lack it and its guests then do too. QEMU's CMPXCHG16B does not do the same thing twice (docs/hardware.md), so
    /// that it is switched off there; and whoever uses it asks first, since the first processors with long mode lacked it.
    const fn is_optional(&self) -> bool {
        matches!(self, Self(_, OneEcx, 13, _))
    }

    fn is_in(&self, words: &Words) -> bool {
        words.get(self.1) >> self.2 & 1 != 0
    }
}

use Level::{V2, V3};
use Register::{ExtendedEcx, ExtendedEdx, OneEcx, OneEdx, SevenEbx};

/// All that a guest is shown of what the host can do. Marked with a star: not of the psABI's level.
const FEATURES: [Feature; 44] = [
    Feature(V2, OneEdx, 0, "FPU"),
    Feature(V2, OneEdx, 2, "DE"),  // *
    Feature(V2, OneEdx, 3, "PSE"), // *
    Feature(V2, OneEdx, 4, "TSC"), // *
    Feature(V2, OneEdx, 5, "MSR"), // *
    Feature(V2, OneEdx, 6, "PAE"), // *
    Feature(V2, OneEdx, 8, "CMPXCHG8B"),
    Feature(V2, OneEdx, 11, "SYSENTER"), // *
    Feature(V2, OneEdx, 13, "PGE"),      // *
    Feature(V2, OneEdx, 15, "CMOV"),
    Feature(V2, OneEdx, 16, "PAT"),     // *
    Feature(V2, OneEdx, 17, "PSE-36"),  // *
    Feature(V2, OneEdx, 19, "CLFLUSH"), // *
    Feature(V2, OneEdx, 23, "MMX"),
    Feature(V2, OneEdx, 24, "FXSR"),
    Feature(V2, OneEdx, 25, "SSE"),
    Feature(V2, OneEdx, 26, "SSE2"),
    Feature(V2, OneEcx, 0, "SSE3"),
    Feature(V2, OneEcx, 9, "SSSE3"),
    Feature(V2, OneEcx, 13, "CMPXCHG16B"),
    Feature(V2, OneEcx, 19, "SSE4.1"),
    Feature(V2, OneEcx, 20, "SSE4.2"),
    Feature(V2, OneEcx, 23, "POPCNT"),
    Feature(V2, ExtendedEcx, 0, "LAHF"),
    Feature(V2, ExtendedEdx, 11, "SYSCALL"),
    Feature(V2, ExtendedEdx, 20, "NX"),     // *
    Feature(V2, ExtendedEdx, 27, "RDTSCP"), // *
    Feature(V2, ExtendedEdx, 29, "long mode"),
    Feature(V3, OneEcx, 1, "PCLMULQDQ"), // *
    Feature(V3, OneEcx, 12, "FMA"),
    Feature(V3, OneEcx, 22, "MOVBE"),
    Feature(V3, OneEcx, 25, "AES"), // *
    Feature(V3, OneEcx, 26, "XSAVE"),
    Feature(V3, OneEcx, 28, "AVX"),
    Feature(V3, OneEcx, 29, "F16C"),
    Feature(V3, SevenEbx, 0, "FSGSBASE"), // *
    Feature(V3, SevenEbx, 3, "BMI1"),
    Feature(V3, SevenEbx, 5, "AVX2"),
    Feature(V3, SevenEbx, 7, "SMEP"), // *
    Feature(V3, SevenEbx, 8, "BMI2"),
    Feature(V3, SevenEbx, 19, "ADX"),  // *
    Feature(V3, SevenEbx, 20, "SMAP"), // *
    Feature(V3, ExtendedEcx, 5, "LZCNT"),
    Feature(V3, ExtendedEdx, 26, "1 GiB pages"), // *
];

const LEAF_1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF_1_EDX_APIC: u32 = 1 << 9;
/// One logical processor with APIC id 0; CLFLUSH works on 64 bytes, as on all x86-64 processors.
const LEAF_1_EBX: u32 = 1 << 16 | 8 << 8;
const LEAF_7_EBX: u32 = 1 << 1 // TSC_ADJUST, which costs nothing: with it Linux trusts the counter without a watchdog
    | 1 << 6 // FDP_EXCPTN_ONLY and
    | 1 << 13; // FPU CS/DS deprecated: less to rely on, whatever the host does
/// Bits of leaf 1 EDX that AMD's processors repeat in leaf 0x8000_0001.
const EXTENDED_EDX_REPEATED: u32 = 0x0183_f3ff;
const EXT_7_EDX_INVARIANT_TSC: u32 = 1 << 8;
/// As few physical address bits as an x86-64 processor has; more than any guest's memory and devices need.
const PHYSICAL_BITS: u32 = 36;
/// The XSAVE area with AVX state, in the standard format.
const XSAVE_BYTES: u32 = 832;
/// The same without.
const XSAVE_LEGACY_BYTES: u32 = 576;
/// The states that a guest may have, of those whose layout never changes.
const XCR0_V3: Xcr0 = Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX);

/// "DuetDuetDuet" in EBX, ECX, EDX.
const SIGNATURE: u32 = u32::from_le_bytes(*b"Duet");
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const BRAND: &[u8; 48] =
    b"Duet virtual processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What two answers of CPUID depend on besides the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dynamic {
    /// The guest's CR4.
    pub cr4: Cr4,
    /// The guest's XCR0.
    pub xcr0: Xcr0,
    /// The local APIC, if there is one, is not switched off in IA32_APIC_BASE.
    pub apic: bool,
}

/// The profile of one guest's processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    level: Level,
    /// Sorted by leaf, then subleaf.
    leaves: Vec<(u32, u32, Leaf)>,
    max_basic: Leaf,
    cr4: Cr4,
}

impl Level {
    /// The highest level that a host has, by what its CPUID answers to `(leaf, subleaf)`.
    ///
    /// # Errors
    ///
    /// What it lacks of the lowest.
    pub fn best(host: &dyn Fn(u32, u32) -> Leaf) -> Result<Self, Missing> {
        Self::V3.check(host).or_else(|_| Self::V2.check(host))
    }

    fn check(self, host: &dyn Fn(u32, u32) -> Leaf) -> Result<Self, Missing> {
        let missing = |feature| Missing {
            level: self,
            feature,
        };
        let words = Words::of(host);
        for feature in self.features() {
            if !feature.is_in(&words) && !feature.is_optional() {
                return Err(missing(feature.3));
            }
        }
        // A host under another hypervisor may have the instructions and not the state.
        let states = Xcr0::from_bits_retain(u64::from(host(0xd, 0).eax));
        if self >= V3 && !states.contains(XCR0_V3) {
            return Err(missing("AVX state"));
        }
        Ok(self)
    }

    fn features(self) -> impl Iterator<Item = &'static Feature> {
        FEATURES.iter().filter(move |feature| feature.0 <= self)
    }
}

/// CPUID's feature words.
#[derive(Clone, Copy, Debug, Default)]
struct Words {
    one: Leaf,
    seven: Leaf,
    extended: Leaf,
}

impl Words {
    fn of(host: &dyn Fn(u32, u32) -> Leaf) -> Self {
        let seven = host(0, 0).eax >= 7;
        Self {
            one: host(1, 0),
            seven: if seven { host(7, 0) } else { Leaf::default() },
            extended: host(0x8000_0001, 0),
        }
    }

    const fn get(&self, register: Register) -> u32 {
        match register {
            OneEcx => self.one.ecx,
            OneEdx => self.one.edx,
            SevenEbx => self.seven.ebx,
            ExtendedEcx => self.extended.ecx,
            ExtendedEdx => self.extended.edx,
        }
    }

    const fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            OneEcx => &mut self.one.ecx,
            OneEdx => &mut self.one.edx,
            SevenEbx => &mut self.seven.ebx,
            ExtendedEcx => &mut self.extended.ecx,
            ExtendedEdx => &mut self.extended.edx,
        }
    }
}

impl Profile {
    /// Makes the table of a level for a host whose CPUID answers so to `(leaf, subleaf)`.
    ///
    /// # Errors
    ///
    /// The first feature of the level that the host lacks.
    pub fn new(level: Level, host: &dyn Fn(u32, u32) -> Leaf) -> Result<Self, Missing> {
        level.check(host)?;
        let present = Words::of(host);
        let mut words = Words::default();
        for feature in level.features().filter(|f| f.is_in(&present)) {
            *words.get_mut(feature.1) |= 1 << feature.2;
        }
        words.one.eax = host(1, 0).eax;
        words.one.ebx = LEAF_1_EBX;
        words.one.ecx |= LEAF_1_ECX_HYPERVISOR;
        words.seven.ebx |= LEAF_7_EBX;
        words.extended.eax = host(0x8000_0001, 0).eax;
        if host(0x8000_0001, 0).edx & 1 != 0 {
            words.extended.edx |= words.one.edx & EXTENDED_EDX_REPEATED;
        }
        let mut leaves = basic_leaves(level, host(0, 0), &words);
        leaves.extend(extended_leaves(host(0x8000_0000, 0), &words));
        leaves.push((
            HYPERVISOR_LEAF,
            0,
            Leaf {
                eax: HYPERVISOR_LEAF,
                ebx: SIGNATURE,
                ecx: SIGNATURE,
                edx: SIGNATURE,
            },
        ));
        leaves.sort_by_key(|(leaf, subleaf, _)| (*leaf, *subleaf));
        let mut profile = Self {
            level,
            leaves,
            max_basic: Leaf::default(),
            cr4: allowed_cr4(&words),
        };
        profile.max_basic = profile.find(0x16, 0).unwrap_or_default();
        Ok(profile)
    }

    /// Its level.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The same processor with a local APIC that can be an x2APIC and whose timer takes TSC deadlines.
    #[must_use]
    pub fn with_local_apic(mut self) -> Self {
        for (leaf, _, answer) in &mut self.leaves {
            match leaf {
                1 => {
                    answer.ecx |= LEAF_1_ECX_X2APIC | LEAF_1_ECX_TSC_DEADLINE;
                    answer.edx |= LEAF_1_EDX_APIC;
                }
                0x8000_0001 if answer.edx & EXTENDED_EDX_REPEATED != 0 => {
                    answer.edx |= LEAF_1_EDX_APIC;
                }
                _ => {}
            }
        }
        self
    }

    /// Whether it says it is of AMD's kind, or of a firm that follows AMD: CPUID leaf 0 does not read "GenuineIntel".
    #[must_use]
    pub fn is_amd(&self) -> bool {
        const GENU: u32 = u32::from_le_bytes(*b"Genu");
        self.find(0, 0).unwrap_or_default().ebx != GENU
    }

    /// Physical address bits.
    #[must_use]
    pub fn physical_bits(&self) -> u8 {
        let sizes = self.find(0x8000_0008, 0).unwrap_or_default();
        sizes.eax as u8
    }

    #[inline]
    fn find(&self, leaf: u32, subleaf: u32) -> Option<Leaf> {
        self.leaves
            .iter()
            .find(|(l, s, _)| *l == leaf && *s == subleaf)
            .map(|(_, _, r)| *r)
    }

    /// What CPUID answers. Whether it depends on what can change, [`depends`] says; if not, [`Profile::fixed`] is the answer.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, dynamic: Dynamic) -> Leaf {
        let mut answer = self.fixed(leaf, subleaf);
        if leaf == 1 && dynamic.cr4.contains(Cr4::OSXSAVE) {
            answer.ecx |= LEAF_1_ECX_OSXSAVE;
        }
        if matches!(leaf, 1 | 0x8000_0001) && !dynamic.apic {
            answer.edx &= !LEAF_1_EDX_APIC;
        }
        if leaf == 0xd && subleaf == 0 && dynamic.xcr0.contains(Xcr0::AVX) {
            answer.ebx = XSAVE_BYTES;
        }
        answer
    }

    /// What CPUID answers as long as nothing is switched on or off.
    #[must_use]
    pub fn fixed(&self, leaf: u32, subleaf: u32) -> Leaf {
        let indexed = matches!(leaf, 7 | 0xd);
        if let Some(answer) = self.find(leaf, if indexed { subleaf } else { 0 }) {
            return answer;
        }
        // Above the last basic leaf, and in ranges that do not exist, a processor answers the
        // last basic leaf (SDM 2A, CPUID).
        let in_range = leaf <= 0x16
            || (HYPERVISOR_LEAF..HYPERVISOR_LEAF + 0x100).contains(&leaf)
            || (0x8000_0000..=0x8000_0008).contains(&leaf);
        if in_range {
            Leaf::default()
        } else {
            self.max_basic
        }
    }

    /// XCR0 bits that exist.
    #[must_use]
    pub const fn xcr0(&self) -> Xcr0 {
        match self.level {
            V2 => Xcr0::X87,
            V3 => XCR0_V3,
        }
    }

    /// CR4 bits that exist.
    #[must_use]
    pub const fn cr4(&self) -> Cr4 {
        self.cr4
    }

    /// EFER bits that exist.
    #[must_use]
    pub const fn efer(&self) -> Efer {
        Efer::SCE.union(Efer::LME).union(Efer::LMA).union(Efer::NXE)
    }

    /// CR0 bits that exist.
    #[must_use]
    pub const fn cr0(&self) -> Cr0 {
        Cr0::PE
            .union(Cr0::MP)
            .union(Cr0::EM)
            .union(Cr0::TS)
            .union(Cr0::ET)
            .union(Cr0::NE)
            .union(Cr0::WP)
            .union(Cr0::AM)
            .union(Cr0::NW)
            .union(Cr0::CD)
            .union(Cr0::PG)
    }
}

/// Whether the answer of a leaf depends on [`Dynamic`] state.
#[must_use]
pub const fn depends(leaf: u32) -> bool {
    matches!(leaf, 1 | 0xd | 0x8000_0001)
}

/// Which CR4 bits exist when these features do (SDM 3 2.5).
fn allowed_cr4(words: &Words) -> Cr4 {
    let mut cr4 = Cr4::TSD | Cr4::PCE;
    for (register, bit, flags) in [
        (OneEdx, 2, Cr4::DE),
        (OneEdx, 3, Cr4::PSE),
        (OneEdx, 6, Cr4::PAE),
        (OneEdx, 13, Cr4::PGE),
        (OneEdx, 24, Cr4::OSFXSR),
        (OneEdx, 25, Cr4::OSXMMEXCPT),
        (OneEcx, 26, Cr4::OSXSAVE),
        (SevenEbx, 0, Cr4::FSGSBASE),
        (SevenEbx, 7, Cr4::SMEP),
        (SevenEbx, 20, Cr4::SMAP),
    ] {
        if words.get(register) >> bit & 1 != 0 {
            cr4 |= flags;
        }
    }
    cr4
}

type Row = (u32, u32, Leaf);

fn basic_leaves(level: Level, vendor: Leaf, words: &Words) -> Vec<Row> {
    let registers = |eax, ebx, ecx| Leaf {
        eax,
        ebx,
        ecx,
        edx: 0,
    };
    let mhz = (GUEST_TSC_HZ / 1_000_000) as u32;
    let mut leaves = alloc::vec![
        (
            0,
            0,
            Leaf {
                eax: 0x16,
                ..vendor
            }
        ),
        (1, 0, words.one),
        (7, 0, words.seven),
        // The crystal clocks the local APIC's timer too (SDM 3 11.5.4).
        (0x15, 0, registers(1, 1, GUEST_TSC_HZ as u32)),
        (0x16, 0, registers(mhz, mhz, 100)),
    ];
    if level >= V3 {
        let states = XCR0_V3.bits() as u32;
        leaves.extend([
            (0xd, 0, registers(states, XSAVE_LEGACY_BYTES, XSAVE_BYTES)),
            (0xd, 1, Leaf::default()),
            // AVX state: its size and where it is.
            (
                0xd,
                2,
                registers(XSAVE_BYTES - XSAVE_LEGACY_BYTES, XSAVE_LEGACY_BYTES, 0),
            ),
        ]);
    }
    leaves
}

fn extended_leaves(vendor: Leaf, words: &Words) -> Vec<Row> {
    let mut leaves = alloc::vec![
        (
            0x8000_0000,
            0,
            Leaf {
                eax: 0x8000_0008,
                ..vendor
            }
        ),
        (0x8000_0001, 0, words.extended),
        (
            0x8000_0007,
            0,
            Leaf {
                edx: EXT_7_EDX_INVARIANT_TSC,
                ..Leaf::default()
            }
        ),
        (
            0x8000_0008,
            0,
            Leaf {
                eax: 48 << 8 | PHYSICAL_BITS,
                ..Leaf::default()
            }
        ),
    ];
    let (brand, _) = BRAND.as_chunks::<4>();
    for (leaf, text) in (0x8000_0002..).zip(brand.chunks_exact(4)) {
        let word = |i: usize| text.get(i).map_or(0, |w| u32::from_le_bytes(*w));
        leaves.push((
            leaf,
            0,
            Leaf {
                eax: word(0),
                ebx: word(1),
                ecx: word(2),
                edx: word(3),
            },
        ));
    }
    leaves
}

#[cfg(test)]
mod tests;
