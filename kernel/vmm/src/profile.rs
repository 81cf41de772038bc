//! What processor the guest believes it has: CPUID as a fixed table, and the bits of control registers
//! that follow from it.
//!
//! The table is an allow-list, made once at power-on. What it hides is in `docs/determinism.md`: whatever
//! could show a guest something that is not a function of the log.

use alloc::vec::Vec;

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

const LEAF_1_ECX: u32 = 1 << 0 // SSE3
    | 1 << 1 // PCLMULQDQ
    | 1 << 9 // SSSE3
    | 1 << 12 // FMA
    | 1 << 13 // CMPXCHG16B
    | 1 << 19 // SSE4.1
    | 1 << 20 // SSE4.2
    | 1 << 22 // MOVBE
    | 1 << 23 // POPCNT
    | 1 << 25 // AES
    | 1 << 26 // XSAVE
    | 1 << 28 // AVX
    | 1 << 29; // F16C
const LEAF_1_ECX_XSAVE: u32 = 1 << 26;
const LEAF_1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF_1_ECX_AVX: u32 = 1 << 28;
const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_EDX_APIC: u32 = 1 << 9;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
/// VEX-encoded extensions that make no sense without AVX: FMA and F16C.
const LEAF_1_ECX_NEEDS_AVX: u32 = LEAF_1_ECX_AVX | 1 << 12 | 1 << 29;
const LEAF_1_EDX: u32 = 1 << 0 // FPU
    | 1 << 1 // VME
    | 1 << 2 // DE
    | 1 << 3 // PSE
    | 1 << 4 // TSC
    | 1 << 5 // MSR
    | 1 << 6 // PAE
    | 1 << 8 // CMPXCHG8B
    | 1 << 11 // SYSENTER
    | 1 << 13 // PGE
    | 1 << 15 // CMOV
    | 1 << 16 // PAT
    | 1 << 17 // PSE-36
    | 1 << 19 // CLFLUSH
    | 1 << 23 // MMX
    | 1 << 24 // FXSR
    | 1 << 25 // SSE
    | 1 << 26; // SSE2
const LEAF_7_EBX: u32 = 1 << 0 // FSGSBASE
    | 1 << 3 // BMI1
    | 1 << 5 // AVX2
    | 1 << 6 // FDP_EXCPTN_ONLY: a deficiency, shown so that it is known
    | 1 << 7 // SMEP
    | 1 << 8 // BMI2
    | 1 << 9 // ERMS
    | 1 << 13 // FPU CS/DS deprecated: likewise
    | 1 << 19 // ADX
    | 1 << 20 // SMAP
    | 1 << 23 // CLFLUSHOPT
    | 1 << 29; // SHA
/// IA32_TSC_ADJUST, which costs nothing to have: with it Linux trusts the time-stamp counter without a watchdog.
const LEAF_7_EBX_TSC_ADJUST: u32 = 1 << 1;
const LEAF_7_EBX_AVX2: u32 = 1 << 5;
const LEAF_7_EDX: u32 = 1 << 4; // FSRM
const EXT_1_ECX: u32 = 1 << 0 // LAHF in 64-bit mode
    | 1 << 5 // LZCNT
    | 1 << 6 // SSE4A
    | 1 << 7 // misaligned SSE
    | 1 << 8; // PREFETCHW
const EXT_1_EDX: u32 = LEAF_1_EDX & 0x0183_f3ff // AMD repeats these
    | 1 << 11 // SYSCALL
    | 1 << 20 // NX
    | 1 << 22 // MMX extensions
    | 1 << 26 // 1 GiB pages
    | 1 << 27 // RDTSCP
    | 1 << 29; // long mode
const EXT_1_EDX_NX: u32 = 1 << 20;
const EXT_7_EDX_INVARIANT_TSC: u32 = 1 << 8;
/// More physical address bits than any guest's memory and devices need.
const MAX_PHYSICAL_BITS: u32 = 40;

/// "DuetDuetDuet" in EBX, ECX, EDX.
const SIGNATURE: u32 = u32::from_le_bytes(*b"Duet");
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const BRAND: &[u8; 48] =
    b"Duet virtual processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The profile of one guest's processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Sorted by leaf, then subleaf.
    leaves: Vec<(u32, u32, Leaf)>,
    max_basic: Leaf,
    xcr0: Xcr0,
    cr4: Cr4,
    efer: Efer,
}

impl Profile {
    /// Makes the table from what the host's CPUID answers to `(leaf, subleaf)`.
    #[must_use]
    pub fn new(host: &dyn Fn(u32, u32) -> Leaf) -> Self {
        let one = host(1, 0);
        let has_xsave = one.ecx & LEAF_1_ECX_XSAVE != 0;
        let xcr0 = if has_xsave {
            Xcr0::from_bits_retain(u64::from(host(0xd, 0).eax))
                & (Xcr0::X87 | Xcr0::SSE | Xcr0::AVX)
        } else {
            Xcr0::X87
        };
        let avx = xcr0.contains(Xcr0::AVX);
        let mut leaves = Vec::new();
        basic_leaves(&mut leaves, host, avx, xcr0);
        extended_leaves(&mut leaves, host);
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
            leaves,
            max_basic: Leaf::default(),
            xcr0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
        };
        profile.max_basic = profile.find(0x16, 0).unwrap_or_default();
        profile.cr4 = profile.allowed_cr4(has_xsave);
        profile.efer = Efer::SCE | Efer::LME | Efer::LMA;
        if profile
            .find(0x8000_0001, 0)
            .is_some_and(|l| l.edx & EXT_1_EDX_NX != 0)
        {
            profile.efer |= Efer::NXE;
        }
        profile
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
                0x8000_0001 if answer.edx & EXT_1_EDX & LEAF_1_EDX != 0 => {
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

    fn allowed_cr4(&self, has_xsave: bool) -> Cr4 {
        let mut cr4 = Cr4::TSD | Cr4::PCE;
        let one = self.find(1, 0).unwrap_or_default().edx;
        // CPUID.1:EDX says which of the older features exist (SDM 3 2.5).
        for (bit, flags) in [
            (1, Cr4::VME | Cr4::PVI),
            (2, Cr4::DE),
            (3, Cr4::PSE),
            (6, Cr4::PAE),
            (13, Cr4::PGE),
            (24, Cr4::OSFXSR),
            (25, Cr4::OSXMMEXCPT),
        ] {
            if one >> bit & 1 != 0 {
                cr4 |= flags;
            }
        }
        let seven = self.find(7, 0).unwrap_or_default();
        cr4.set(Cr4::OSXSAVE, has_xsave);
        cr4.set(Cr4::FSGSBASE, seven.ebx & 1 != 0);
        cr4.set(Cr4::SMEP, seven.ebx & (1 << 7) != 0);
        cr4.set(Cr4::SMAP, seven.ebx & (1 << 20) != 0);
        cr4
    }

    #[inline]
    fn find(&self, leaf: u32, subleaf: u32) -> Option<Leaf> {
        self.leaves
            .iter()
            .find(|(l, s, _)| *l == leaf && *s == subleaf)
            .map(|(_, _, r)| *r)
    }

    /// What CPUID answers, given the guest's CR4 and XCR0, on which two answers depend.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, cr4: Cr4, xcr0: Xcr0) -> Leaf {
        let indexed = matches!(leaf, 7 | 0xd);
        let Some(mut answer) = self.find(leaf, if indexed { subleaf } else { 0 }) else {
            // Above the last basic leaf, and in ranges that do not exist, a processor answers the
            // last basic leaf (SDM 2A, CPUID).
            let in_range = leaf <= 0x16
                || (HYPERVISOR_LEAF..HYPERVISOR_LEAF + 0x100).contains(&leaf)
                || (0x8000_0000..=0x8000_0008).contains(&leaf);
            return if in_range {
                Leaf::default()
            } else {
                self.max_basic
            };
        };
        if leaf == 1 && cr4.contains(Cr4::OSXSAVE) {
            answer.ecx |= LEAF_1_ECX_OSXSAVE;
        }
        if leaf == 0xd && subleaf == 0 {
            answer.ebx = if xcr0.contains(Xcr0::AVX) { 832 } else { 576 };
        }
        answer
    }

    /// XCR0 bits that exist.
    #[must_use]
    pub const fn xcr0(&self) -> Xcr0 {
        self.xcr0
    }

    /// CR4 bits that exist.
    #[must_use]
    pub const fn cr4(&self) -> Cr4 {
        self.cr4
    }

    /// EFER bits that exist.
    #[must_use]
    pub const fn efer(&self) -> Efer {
        self.efer
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

fn basic_leaves(
    leaves: &mut Vec<(u32, u32, Leaf)>,
    host: &dyn Fn(u32, u32) -> Leaf,
    avx: bool,
    xcr0: Xcr0,
) {
    leaves.push((
        0,
        0,
        Leaf {
            eax: 0x16,
            ..host(0, 0)
        },
    ));
    let one = host(1, 0);
    let mut ecx = one.ecx & LEAF_1_ECX;
    if !avx {
        ecx &= !LEAF_1_ECX_NEEDS_AVX;
    }
    leaves.push((
        1,
        0,
        Leaf {
            eax: one.eax,
            // One logical processor with APIC id 0; CLFLUSH line size as the host's.
            ebx: (one.ebx & 0xff00) | 1 << 16,
            ecx: ecx | LEAF_1_ECX_HYPERVISOR,
            edx: one.edx & LEAF_1_EDX,
        },
    ));
    let seven = if host(0, 0).eax >= 7 {
        host(7, 0)
    } else {
        Leaf::default()
    };
    let mut ebx = seven.ebx & LEAF_7_EBX;
    if !avx {
        ebx &= !LEAF_7_EBX_AVX2;
    }
    leaves.push((
        7,
        0,
        Leaf {
            eax: 0,
            ebx: ebx | LEAF_7_EBX_TSC_ADJUST,
            ecx: 0,
            edx: seven.edx & LEAF_7_EDX,
        },
    ));
    if one.ecx & LEAF_1_ECX_XSAVE != 0 {
        let size = if avx { 832 } else { 576 };
        leaves.push((
            0xd,
            0,
            Leaf {
                eax: xcr0.bits() as u32,
                ebx: 576,
                ecx: size,
                edx: 0,
            },
        ));
        leaves.push((0xd, 1, Leaf::default()));
        if avx {
            leaves.push((
                0xd,
                2,
                Leaf {
                    eax: 256,
                    ebx: 576,
                    ecx: 0,
                    edx: 0,
                },
            ));
        }
    }
    let mhz = (GUEST_TSC_HZ / 1_000_000) as u32;
    leaves.push((
        0x15,
        0,
        Leaf {
            eax: 1,
            ebx: 1,
            // The crystal clocks the local APIC's timer too (SDM 3 11.5.4).
            ecx: GUEST_TSC_HZ as u32,
            edx: 0,
        },
    ));
    leaves.push((
        0x16,
        0,
        Leaf {
            eax: mhz,
            ebx: mhz,
            ecx: 100,
            edx: 0,
        },
    ));
}

fn extended_leaves(leaves: &mut Vec<(u32, u32, Leaf)>, host: &dyn Fn(u32, u32) -> Leaf) {
    let zero = host(0x8000_0000, 0);
    leaves.push((
        0x8000_0000,
        0,
        Leaf {
            eax: 0x8000_0008,
            ..zero
        },
    ));
    let one = host(0x8000_0001, 0);
    leaves.push((
        0x8000_0001,
        0,
        Leaf {
            eax: one.eax,
            ebx: 0,
            ecx: one.ecx & EXT_1_ECX,
            edx: one.edx & EXT_1_EDX,
        },
    ));
    let (words, _) = BRAND.as_chunks::<4>();
    for (leaf, text) in (0x8000_0002..).zip(words.chunks_exact(4)) {
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
    leaves.push((
        0x8000_0007,
        0,
        Leaf {
            edx: EXT_7_EDX_INVARIANT_TSC,
            ..Leaf::default()
        },
    ));
    let sizes = if zero.eax >= 0x8000_0008 {
        host(0x8000_0008, 0).eax
    } else {
        0x3024
    };
    let physical = (sizes & 0xff).min(MAX_PHYSICAL_BITS);
    leaves.push((
        0x8000_0008,
        0,
        Leaf {
            eax: 48 << 8 | physical,
            ..Leaf::default()
        },
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(leaf: u32, _: u32) -> Leaf {
        match leaf {
            0 => Leaf {
                eax: 0x20,
                ebx: 1,
                ecx: 2,
                edx: 3,
            },
            0x8000_0000 => Leaf {
                eax: 0x8000_0020,
                ebx: 1,
                ecx: 2,
                edx: 3,
            },
            0x8000_0008 => Leaf {
                eax: 0x3934,
                ..Leaf::default()
            },
            _ => Leaf {
                eax: !0,
                ebx: !0,
                ecx: !0,
                edx: !0,
            },
        }
    }

    fn ask(profile: &Profile, leaf: u32, subleaf: u32) -> Leaf {
        profile.cpuid(leaf, subleaf, Cr4::empty(), Xcr0::X87)
    }

    #[test]
    fn what_could_break_lockstep_is_hidden() {
        let p = Profile::new(&everything);
        let one = ask(&p, 1, 0);
        for bit in [3, 5, 6, 15, 17, 21, 24, 30] {
            // MONITOR, VMX, SMX, PDCM, PCID, x2APIC, TSC-deadline, RDRAND
            assert_eq!(one.ecx >> bit & 1, 0, "leaf 1 ECX bit {bit}");
        }
        let seven = ask(&p, 7, 0);
        for bit in [2, 4, 10, 11, 14, 16, 18] {
            // SGX, HLE, INVPCID, RTM, MPX, AVX-512F, RDSEED
            assert_eq!(seven.ebx >> bit & 1, 0, "leaf 7 EBX bit {bit}");
        }
        assert_eq!(seven.ecx, 0);
        assert_eq!(ask(&p, 0xd, 1), Leaf::default());
        assert_eq!(ask(&p, 0xa, 0), Leaf::default());
        assert_eq!(ask(&p, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
        assert_eq!(p.xcr0(), Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);
    }

    #[test]
    fn the_hypervisor_shows_itself() {
        let p = Profile::new(&everything);
        assert_eq!(ask(&p, 1, 0).ecx >> 31, 1);
        let leaf = ask(&p, 0x4000_0000, 0);
        assert_eq!(leaf.ebx.to_le_bytes(), *b"Duet");
        assert_eq!(leaf.eax, 0x4000_0000);
    }

    #[test]
    fn dynamic_bits_follow_the_guests_registers() {
        let p = Profile::new(&everything);
        assert_eq!(ask(&p, 1, 0).ecx & LEAF_1_ECX_OSXSAVE, 0);
        let on = p.cpuid(1, 0, Cr4::OSXSAVE, Xcr0::X87);
        assert_ne!(on.ecx & LEAF_1_ECX_OSXSAVE, 0);
        assert_eq!(p.cpuid(0xd, 0, Cr4::OSXSAVE, p.xcr0()).ebx, 832);
        assert_eq!(ask(&p, 0xd, 0).ebx, 576);
    }

    #[test]
    fn leaves_that_do_not_exist() {
        let p = Profile::new(&everything);
        assert_eq!(ask(&p, 0x17, 0), ask(&p, 0x16, 0));
        assert_eq!(ask(&p, 0x8000_0009, 0), ask(&p, 0x16, 0));
        assert_eq!(ask(&p, 3, 0), Leaf::default());
        assert_eq!(ask(&p, 0x4000_0010, 0), Leaf::default());
    }

    #[test]
    fn cr4_has_the_bits_whose_features_are_shown() {
        assert!(
            Profile::new(&everything)
                .cr4()
                .contains(Cr4::VME | Cr4::PVI | Cr4::SMEP)
        );
        let without_vme = |leaf: u32, sub: u32| {
            let mut l = everything(leaf, sub);
            if leaf == 1 {
                l.edx &= !(1 << 1);
            }
            l
        };
        let cr4 = Profile::new(&without_vme).cr4();
        assert!(!cr4.intersects(Cr4::VME | Cr4::PVI | Cr4::VMXE));
        assert!(cr4.contains(Cr4::PAE | Cr4::DE));
    }

    #[test]
    fn without_avx_nothing_that_needs_it_is_shown() {
        let host = |leaf: u32, sub: u32| {
            let mut l = everything(leaf, sub);
            if leaf == 0xd {
                l.eax = 3;
            }
            l
        };
        let p = Profile::new(&host);
        assert_eq!(ask(&p, 1, 0).ecx & LEAF_1_ECX_NEEDS_AVX, 0);
        assert_eq!(ask(&p, 7, 0).ebx & LEAF_7_EBX_AVX2, 0);
        assert_eq!(ask(&p, 0xd, 2), Leaf::default());
    }
}
