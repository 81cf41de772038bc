//! The table of each level, hosts that lack something, and what is hidden.

use super::*;
use alloc::string::ToString;

/// A processor of AMD's kind that has everything there will ever be.
fn everything(leaf: u32, _: u32) -> Leaf {
    match leaf {
        0 | 0x8000_0000 => Leaf {
            eax: leaf | 0x20,
            ebx: 1,
            ecx: 2,
            edx: 3,
        },
        _ => Leaf {
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        },
    }
}

/// The same without one bit.
fn without(register: Register, bit: u32) -> impl Fn(u32, u32) -> Leaf {
    let leaf_of = match register {
        OneEcx | OneEdx => 1,
        SevenEbx => 7,
        ExtendedEcx | ExtendedEdx => 0x8000_0001,
    };
    move |leaf, subleaf| {
        let mut answer = everything(leaf, subleaf);
        if leaf == leaf_of {
            let word = match register {
                SevenEbx => &mut answer.ebx,
                OneEcx | ExtendedEcx => &mut answer.ecx,
                OneEdx | ExtendedEdx => &mut answer.edx,
            };
            *word &= !(1 << bit);
        }
        answer
    }
}

fn best() -> Profile {
    Profile::new(V3, &everything).unwrap()
}

const AT_RESET: Dynamic = Dynamic {
    cr4: Cr4::empty(),
    xcr0: Xcr0::X87,
    apic: true,
};

fn ask(profile: &Profile, leaf: u32, subleaf: u32) -> Leaf {
    profile.cpuid(leaf, subleaf, AT_RESET)
}

#[test]
fn a_level_shows_exactly_its_features() {
    let shown = |level| {
        let p = Profile::new(level, &everything).unwrap();
        let (one, seven, extended) = (ask(&p, 1, 0), ask(&p, 7, 0), ask(&p, 0x8000_0001, 0));
        [one.ecx, one.edx, seven.ebx, extended.ecx, extended.edx]
    };
    // From the two manuals, by hand: not from the table above.
    assert_eq!(
        shown(V2),
        [
            0x8098_2201,
            0x078b_a97d,
            0x0000_2042,
            0x0000_0001,
            0x2993_a97d
        ]
    );
    assert_eq!(
        shown(V3),
        [
            0xb6d8_3203,
            0x078b_a97d,
            0x0018_21eb,
            0x0000_0021,
            0x2d93_a97d
        ]
    );
}

#[test]
fn a_host_is_refused_by_the_name_of_what_it_lacks() {
    for feature in FEATURES.iter().filter(|f| !f.is_optional()) {
        let host = without(feature.1, feature.2);
        let error = Profile::new(V3, &host).unwrap_err();
        assert_eq!((error.level, error.feature), (V3, feature.3));
        match feature.0 {
            V2 => {
                let missing = Missing {
                    level: V2,
                    feature: feature.3,
                };
                assert_eq!(Level::best(&host), Err(missing));
                assert_eq!(Profile::new(V2, &host).unwrap_err(), missing);
            }
            V3 => assert_eq!(Level::best(&host), Ok(V2)),
        }
    }
    assert_eq!(Level::best(&everything), Ok(V3));
    let error = Profile::new(V2, &without(OneEcx, 20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this host's processor is not x86-64-v2: it lacks SSE4.2"
    );
}

#[test]
fn what_is_optional_is_shown_where_the_host_has_it() {
    let shown = |profile: &Profile| ask(profile, 1, 0).ecx >> 13 & 1;
    assert_eq!(shown(&best()), 1);
    let profile = Profile::new(V3, &without(OneEcx, 13)).unwrap();
    assert_eq!(shown(&profile), 0);
    assert_eq!(FEATURES.iter().filter(|f| f.is_optional()).count(), 1);
}

#[test]
fn without_avx_state_there_is_no_v3() {
    let host = |leaf: u32, subleaf: u32| {
        let mut answer = everything(leaf, subleaf);
        if leaf == 0xd {
            answer.eax = 3;
        }
        answer
    };
    assert_eq!(Profile::new(V3, &host).unwrap_err().feature, "AVX state");
    assert_eq!(Level::best(&host), Ok(V2));
    // Nor on a host whose leaf 7 does not exist, whatever it answers there.
    let old = |leaf: u32, subleaf: u32| {
        let mut answer = everything(leaf, subleaf);
        if leaf == 0 {
            answer.eax = 6;
        }
        answer
    };
    assert_eq!(Profile::new(V3, &old).unwrap_err().feature, "FSGSBASE");
}

#[test]
fn more_than_the_level_changes_nothing() {
    // A host that has the level and not one bit more.
    for level in [V2, V3] {
        let plain = |leaf: u32, subleaf: u32| {
            let mut answer = everything(leaf, subleaf);
            if matches!(leaf, 1 | 7 | 0x8000_0001) {
                let mut words = Words::default();
                level
                    .features()
                    .for_each(|f| *words.get_mut(f.1) |= 1 << f.2);
                let Words {
                    one,
                    seven,
                    extended,
                } = words;
                let word = match leaf {
                    1 => one,
                    7 => seven,
                    _ => Leaf {
                        // AMD's kind repeats this one.
                        edx: extended.edx | 1,
                        ..extended
                    },
                };
                answer = Leaf { eax: !0, ..word };
            }
            answer
        };
        assert_eq!(
            Profile::new(level, &plain).unwrap(),
            Profile::new(level, &everything).unwrap()
        );
    }
}

#[test]
fn what_could_break_lockstep_is_hidden() {
    let p = best();
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
    assert_eq!((seven.ecx, seven.edx), (0, 0));
    assert_eq!(ask(&p, 0xd, 1), Leaf::default());
    assert_eq!(ask(&p, 0xa, 0), Leaf::default());
    assert_eq!(ask(&p, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
    assert_eq!(p.xcr0(), Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);
}

#[test]
fn the_hypervisor_shows_itself() {
    let p = best();
    assert_eq!(ask(&p, 1, 0).ecx >> 31, 1);
    let leaf = ask(&p, 0x4000_0000, 0);
    assert_eq!(leaf.ebx.to_le_bytes(), *b"Duet");
    assert_eq!(leaf.eax, 0x4000_0000);
}

#[test]
fn dynamic_bits_follow_the_guests_registers() {
    let p = best().with_local_apic();
    assert_eq!(ask(&p, 1, 0).ecx & LEAF_1_ECX_OSXSAVE, 0);
    let on = Dynamic {
        cr4: Cr4::OSXSAVE,
        xcr0: p.xcr0(),
        apic: true,
    };
    assert_ne!(p.cpuid(1, 0, on).ecx & LEAF_1_ECX_OSXSAVE, 0);
    assert_eq!(p.cpuid(0xd, 0, on).ebx, 832);
    assert_eq!(ask(&p, 0xd, 0).ebx, 576);
    let off = Dynamic {
        apic: false,
        ..AT_RESET
    };
    for leaf in [1, 0x8000_0001] {
        assert_ne!(ask(&p, leaf, 0).edx & LEAF_1_EDX_APIC, 0, "{leaf:#x}");
        assert_eq!(p.cpuid(leaf, 0, off).edx & LEAF_1_EDX_APIC, 0, "{leaf:#x}");
        assert!(depends(leaf));
    }
    // Without one there is nothing to switch on.
    assert_eq!(ask(&best(), 1, 0).edx & LEAF_1_EDX_APIC, 0);
}

#[test]
fn leaves_that_do_not_exist() {
    let p = best();
    assert_eq!(ask(&p, 0x17, 0), ask(&p, 0x16, 0));
    assert_eq!(ask(&p, 0x8000_0009, 0), ask(&p, 0x16, 0));
    assert_eq!(ask(&p, 3, 0), Leaf::default());
    assert_eq!(ask(&p, 0x4000_0010, 0), Leaf::default());
    let p = Profile::new(V2, &everything).unwrap();
    assert_eq!(ask(&p, 0xd, 0), Leaf::default());
    assert_eq!(p.xcr0(), Xcr0::X87);
}

#[test]
fn cr4_has_the_bits_whose_features_are_shown() {
    let v2 = Cr4::TSD
        | Cr4::PCE
        | Cr4::DE
        | Cr4::PSE
        | Cr4::PAE
        | Cr4::PGE
        | Cr4::OSFXSR
        | Cr4::OSXMMEXCPT;
    assert_eq!(Profile::new(V2, &everything).unwrap().cr4(), v2);
    let v3 = v2 | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::SMEP | Cr4::SMAP;
    assert_eq!(best().cr4(), v3);
}
