//! Each rule of the entry-check table is shown to hold for good states and to notice one spoilt field.

use super::*;
use crate::regs::{CpuState, SegmentAttributes};

fn snapshot(state: &CpuState, entry_controls: EntryControls) -> Snapshot {
    let mut cr4 = state.control.cr4;
    cr4 |= Cr4::VMXE;
    Snapshot {
        entry_controls,
        entry_info: 0,
        entry_error_code: 0,
        entry_instruction_length: 0,
        cr0: state.control.cr0 | Cr0::NE,
        cr3: state.control.cr3,
        cr4,
        efer: state.control.efer,
        pat: state.msrs.pat,
        dr7: state.debug.dr7,
        debugctl: state.debug.debugctl,
        sysenter_esp: 0,
        sysenter_eip: 0,
        rip: state.rip,
        rflags: state.rflags,
        segments: state.segments,
        gdtr_base: 0,
        gdtr_limit: 0xffff,
        idtr_base: 0,
        idtr_limit: 0xffff,
        interruptibility: Interruptibility::empty(),
        activity: 0,
        pending_debug: PendingDebug::empty(),
        link_pointer: u64::MAX,
        pdptes: [0; 4],
        cr0_fixed: (0x20, 0xffff_ffff),
        cr4_fixed: (0x2000, 0x0077_27ff),
        physical_bits: 40,
    }
}

fn real() -> Snapshot {
    let mut state = CpuState::real_mode(0x7c00);
    state.segments[SegmentName::Ldtr].attributes = SegmentAttributes::UNUSABLE;
    snapshot(&state, EntryControls::empty())
}

fn protected() -> Snapshot {
    snapshot(&CpuState::protected_mode(0x10_0000), EntryControls::empty())
}

fn long() -> Snapshot {
    let mut s = protected();
    s.entry_controls = EntryControls::IA32E_GUEST;
    s.cr0 |= Cr0::PG;
    s.cr4 |= Cr4::PAE;
    s.efer = Efer::LME | Efer::LMA;
    s.segments[SegmentName::Cs].attributes = SegmentAttributes::from_bits_retain(0xa09b);
    s.rip = 0xffff_8000_0000_1000;
    s
}

fn virtual_8086() -> Snapshot {
    let mut s = protected();
    s.rflags |= Rflags::VM;
    for name in CODE_AND_DATA {
        s.segments[name] = Segment::real(0x1234, 0xf3);
    }
    s
}

#[test]
fn good_states_pass() {
    for s in [real(), protected(), long(), virtual_8086()] {
        assert_eq!(first_failure(&s), None);
    }
}

/// A good state, what spoils it, and a part of the expected failure.
type Case = (Snapshot, fn(&mut Snapshot), &'static str);

/// The failure after one field was spoilt.
fn spoilt(mut s: Snapshot, spoil: impl FnOnce(&mut Snapshot)) -> &'static str {
    spoil(&mut s);
    first_failure(&s).expect("the spoilt field is noticed")
}

fn set(s: &mut Snapshot, name: SegmentName, attributes: u32) {
    s.segments[name].attributes = SegmentAttributes::from_bits_retain(attributes);
}

#[test]
fn control_registers_and_msrs() {
    let cases: [Case; 14] = [
        (protected(), |s| s.cr0 -= Cr0::NE, "CR0 sets or clears"),
        (real(), |s| s.cr0 |= Cr0::PG, "CR0.PG without CR0.PE"),
        (protected(), |s| s.cr4 |= Cr4::PKS, "CR4 sets or clears"),
        (protected(), |s| s.debugctl = 1 << 16, "IA32_DEBUGCTL"),
        (long(), |s| s.cr0 -= Cr0::PG, "IA-32e mode without CR0.PG"),
        (long(), |s| s.cr4 -= Cr4::PAE, "without CR4.PAE"),
        (protected(), |s| s.cr4 |= Cr4::PCIDE, "PCIDE"),
        (long(), |s| s.cr3 = 1 << 40, "CR3 beyond"),
        (long(), |s| s.dr7 = 1 << 32, "DR7"),
        (long(), |s| s.sysenter_esp = 1 << 47, "SYSENTER_ESP"),
        (long(), |s| s.sysenter_eip = 1 << 63, "SYSENTER_EIP"),
        (long(), |s| s.pat = 0x02, "IA32_PAT"),
        (
            long(),
            |s| s.efer |= Efer::SVME,
            "reserved bit in IA32_EFER",
        ),
        (
            long(),
            |s| s.efer -= Efer::LMA,
            "LMA differs from the IA-32e",
        ),
    ];
    for (good, spoil, expected) in cases {
        let failure = spoilt(good, spoil);
        assert!(failure.contains(expected), "{failure} for {expected}");
        assert!(failure.starts_with("SDM 3 28.3.1.1"), "{failure}");
    }
    let failure = spoilt(protected(), |s| {
        s.cr0 |= Cr0::PG;
        s.efer |= Efer::LME;
    });
    assert!(failure.contains("LMA differs from LME"), "{failure}");
}

#[test]
fn segments() {
    use SegmentName::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    let cases: [Case; 20] = [
        (long(), |s| s.segments[Tr].selector = 4, "TI flag"),
        (
            virtual_8086(),
            |s| s.segments[Gs].base = 1,
            "base in virtual-8086",
        ),
        (
            virtual_8086(),
            |s| s.segments[Es].limit = 0xfffe,
            "limit or access rights in virtual-8086",
        ),
        (long(), |s| s.segments[Fs].base = 1 << 47, "not canonical"),
        (long(), |s| s.segments[Cs].base = 1 << 32, "high half"),
        (long(), |s| s.segments[Ds].base = 1 << 32, "high half"),
        (protected(), |s| set(s, Cs, 0xc091), "type of CS"),
        (protected(), |s| set(s, Ss, 0xc099), "type of SS"),
        (protected(), |s| set(s, Ds, 0xc092), "type of DS"),
        (protected(), |s| set(s, Es, 0xc099), "type of DS, ES"),
        (protected(), |s| set(s, Cs, 0xc08b), "S flag"),
        (protected(), |s| set(s, Cs, 0xc0fb), "DPL of CS"),
        (
            real(),
            |s| {
                set(s, Ss, 0xf3);
                set(s, Cs, 0xfb)
            },
            "DPL of SS",
        ),
        (protected(), |s| set(s, Fs, 0xc013), "P flag"),
        (protected(), |s| set(s, Gs, 0xc193), "reserved access"),
        (long(), |s| set(s, Cs, 0xe09b), "D flag of CS"),
        (protected(), |s| set(s, Ds, 0x4093), "granularity"),
        (
            protected(),
            |s| s.segments[Ds].limit = 0xffff_f000,
            "granularity",
        ),
        (long(), |s| set(s, Tr, 0x83), "TR"),
        (protected(), |s| set(s, Ldtr, 0x92), "LDTR"),
    ];
    for (good, spoil, expected) in cases {
        let failure = spoilt(good, spoil);
        assert!(failure.contains(expected), "{failure} for {expected}");
        assert!(failure.starts_with("SDM 3 28.3.1.2"), "{failure}");
    }
}

#[test]
fn the_rule_that_only_bochs_has_comes_last() {
    let failure = spoilt(protected(), |s| {
        s.segments[SegmentName::Cs].selector = 0x0b;
    });
    assert_eq!(failure, BOCHS_CODE_RPL);
}

#[test]
fn unusable_segments_may_hold_anything() {
    let mut s = protected();
    for name in [
        SegmentName::Ds,
        SegmentName::Es,
        SegmentName::Fs,
        SegmentName::Gs,
        SegmentName::Ldtr,
    ] {
        set(&mut s, name, 1 << 16);
    }
    assert_eq!(first_failure(&s), None);
}

#[test]
fn tables_flags_and_non_register_state() {
    let cases: [Case; 17] = [
        (
            long(),
            |s| s.gdtr_base = 1 << 47,
            "3.1.3: GDTR or IDTR base",
        ),
        (
            long(),
            |s| s.idtr_limit = 0x1_0000,
            "3.1.3: GDTR or IDTR limit",
        ),
        (long(), |s| s.rip = 1 << 48, "3.1.4: RIP"),
        (protected(), |s| s.rip = 1 << 32, "3.1.4: RIP"),
        (
            protected(),
            |s| s.rflags -= Rflags::FIXED,
            "3.1.4: reserved",
        ),
        (long(), |s| s.rflags |= Rflags::VM, "virtual-8086 mode"),
        (
            protected(),
            |s| s.entry_info = 0x8000_0020,
            "RFLAGS.IF with",
        ),
        (protected(), |s| s.activity = 4, "3.1.5: activity state"),
        (
            protected(),
            |s| s.interruptibility = STI.union(MOV_SS),
            "by STI and by MOV SS",
        ),
        (
            protected(),
            |s| s.interruptibility = STI,
            "by STI with RFLAGS.IF",
        ),
        (
            protected(),
            |s| {
                s.entry_info = 0x8000_0202;
                s.interruptibility = MOV_SS;
            },
            "an NMI injected into a shadow",
        ),
        (
            protected(),
            |s| {
                s.entry_info = 0x8000_0202;
                s.interruptibility = Interruptibility::NMI;
            },
            "into blocking by NMI",
        ),
        (
            protected(),
            |s| s.interruptibility = Interruptibility::SMI,
            "blocking by SMI",
        ),
        (
            protected(),
            |s| s.pending_debug = PendingDebug::from_bits_retain(1 << 4),
            "reserved pending debug",
        ),
        (
            protected(),
            |s| {
                s.rflags |= Rflags::TF;
                s.interruptibility = MOV_SS;
            },
            "pending single step",
        ),
        (protected(), |s| s.link_pointer = 0, "link pointer"),
        (
            protected(),
            |s| {
                s.cr0 |= Cr0::PG;
                s.cr4 |= Cr4::PAE;
                s.pdptes[2] = 3;
            },
            "3.1.6: reserved bits in a PDPTE",
        ),
    ];
    for (good, spoil, expected) in cases {
        let failure = spoilt(good, spoil);
        assert!(failure.contains(expected), "{failure} for {expected}");
    }
}

#[test]
fn injected_events() {
    let cases: [Case; 6] = [
        (
            protected(),
            |s| s.entry_info = 0x8000_0120,
            "type or vector",
        ),
        (
            protected(),
            |s| s.entry_info = 0x8000_0203,
            "type or vector",
        ),
        (
            protected(),
            |s| s.entry_info = 0x8000_0320,
            "type or vector",
        ),
        (protected(), |s| s.entry_info = 0x8000_030d, "error code"),
        (real(), |s| s.entry_info = 0x8000_0b0d, "error code"),
        (
            protected(),
            |s| s.entry_info = 0x8000_0480,
            "instruction length",
        ),
    ];
    for (good, spoil, expected) in cases {
        let failure = spoilt(good, spoil);
        assert!(failure.contains(expected), "{failure} for {expected}");
        assert!(failure.starts_with("SDM 3 28.2.1.3"), "{failure}");
    }
}
