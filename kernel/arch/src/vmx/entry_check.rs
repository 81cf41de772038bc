//! The checks a VM entry makes on controls and guest state, so that a refused entry can say which one
//! failed (SDM 3 28.2.1, 28.3.1).
//!
//! The processor only says "invalid guest state". This is a table of the manual's rules over a snapshot of
//! the fields. It leaves out rules about features that this hypervisor never turns on (SMM, CET, posted
//! interrupts, MSR areas …); a refusal it cannot explain is reported as such.

use crate::regs::{Cr0, Cr4, Efer, Rflags, Segment, SegmentName, Segments};

use super::control::{EntryControls, Interruptibility, PendingDebug};
use super::event;

/// The fields the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as the fields
pub struct Snapshot {
    pub entry_controls: EntryControls,
    pub entry_info: u32,
    pub entry_error_code: u32,
    pub entry_instruction_length: u32,
    pub cr0: Cr0,
    pub cr3: u64,
    pub cr4: Cr4,
    pub efer: Efer,
    pub pat: u64,
    pub dr7: u64,
    pub debugctl: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub rip: u64,
    pub rflags: Rflags,
    pub segments: Segments,
    pub gdtr_base: u64,
    pub gdtr_limit: u32,
    pub idtr_base: u64,
    pub idtr_limit: u32,
    pub interruptibility: Interruptibility,
    pub activity: u32,
    pub pending_debug: PendingDebug,
    pub link_pointer: u64,
    pub pdptes: [u64; 4],
    /// CR0 bits that must be 1 and that may be 1.
    pub cr0_fixed: (u64, u64),
    /// CR4 bits that must be 1 and that may be 1.
    pub cr4_fixed: (u64, u64),
    /// Bits of a physical address (CPUID 0x80000008).
    pub physical_bits: u32,
}

/// One rule of the manual.
struct Check {
    /// What is wrong when it does not hold, by section.
    failure: &'static str,
    holds: fn(&Snapshot) -> bool,
}

/// The first rule that does not hold, or `None` if the state keeps all of them.
#[must_use]
pub fn first_failure(state: &Snapshot) -> Option<&'static str> {
    CHECKS
        .iter()
        .find(|check| !(check.holds)(state))
        .map(|check| check.failure)
        .or((!code_rpl_fits(state)).then_some(BOCHS_CODE_RPL))
}

macro_rules! checks {
    ($($section:literal $what:literal: $holds:expr,)*) => {
        &[$(Check { failure: concat!("SDM 3 28.", $section, ": ", $what), holds: $holds },)*]
    };
}

const CHECKS: &[Check] = checks![
    "2.1.3" "interruption type or vector of the injected event": injected_vector_fits,
    "2.1.3" "error code of the injected event": injected_error_code_fits,
    "2.1.3" "instruction length of the injected event": injected_length_fits,
    "3.1.1" "CR0 sets or clears a fixed bit": |s| fixed(s.cr0.bits(), s.cr0_fixed),
    "3.1.1" "CR0.PG without CR0.PE": |s| !s.paging() || s.protected(),
    "3.1.1" "CR4 sets or clears a fixed bit": |s| fixed(s.cr4.bits(), s.cr4_fixed),
    "3.1.1" "CR4.CET without CR0.WP": |s| !s.cr4.contains(Cr4::CET) || s.cr0.contains(Cr0::WP),
    "3.1.1" "reserved bit in IA32_DEBUGCTL": |s| s.debugctl & !DEBUGCTL_DEFINED == 0,
    "3.1.1" "IA-32e mode without CR0.PG": |s| !s.ia32e() || s.paging(),
    "3.1.1" "IA-32e mode without CR4.PAE": |s| !s.ia32e() || s.cr4.contains(Cr4::PAE),
    "3.1.1" "CR4.PCIDE outside of IA-32e mode": |s| s.ia32e() || !s.cr4.contains(Cr4::PCIDE),
    "3.1.1" "CR3 beyond the physical-address width": |s| s.cr3 >> s.physical_bits.min(63) == 0,
    "3.1.1" "high half of DR7": |s| s.dr7 >> 32 == 0,
    "3.1.1" "IA32_SYSENTER_ESP is not canonical": |s| canonical(s.sysenter_esp),
    "3.1.1" "IA32_SYSENTER_EIP is not canonical": |s| canonical(s.sysenter_eip),
    "3.1.1" "memory type in IA32_PAT": |s| pat_is_valid(s.pat),
    "3.1.1" "reserved bit in IA32_EFER": |s| s.efer.bits() & !EFER_DEFINED == 0,
    "3.1.1" "IA32_EFER.LMA differs from the IA-32e-mode control": |s| s.lma() == s.ia32e(),
    "3.1.1" "IA32_EFER.LMA differs from LME with paging on": |s| !s.paging() || s.lma() == s.lme(),
    "3.1.2" "TI flag of TR or LDTR": table_indicators_clear,
    "3.1.2" "segment base in virtual-8086 mode": virtual_8086_bases,
    "3.1.2" "base of FS, GS, TR or LDTR is not canonical": long_bases_canonical,
    "3.1.2" "high half of the base of CS, SS, DS or ES": short_bases_short,
    "3.1.2" "limit or access rights in virtual-8086 mode": virtual_8086_rights,
    "3.1.2" "type of CS": |s| s.v8086() || matches!(kind(&s.cs()), 3 | 9 | 11 | 13 | 15),
    "3.1.2" "type of SS": |s| s.v8086() || !usable(&s.ss()) || matches!(kind(&s.ss()), 3 | 7),
    "3.1.2" "type of DS, ES, FS or GS": data_types,
    "3.1.2" "S flag of a code or data segment": |s| s.each_in_use(|g| bit(g, 4)),
    "3.1.2" "DPL of CS": code_privilege,
    "3.1.2" "DPL of SS": stack_privilege,
    "3.1.2" "P flag of a code or data segment": |s| s.each_in_use(|g| bit(g, 7)),
    "3.1.2" "reserved access rights of a code or data segment": |s| s.each_in_use(no_reserved),
    "3.1.2" "D flag of CS in 64-bit mode": |s| s.v8086() || !s.ia32e() || !bit(&s.cs(), 13) || !bit(&s.cs(), 14),
    "3.1.2" "granularity of a code or data segment": |s| s.each_in_use(granularity_fits),
    "3.1.2" "TR": task_register,
    "3.1.2" "LDTR": local_table,
    "3.1.3" "GDTR or IDTR base is not canonical": |s| canonical(s.gdtr_base) && canonical(s.idtr_base),
    "3.1.3" "GDTR or IDTR limit": |s| s.gdtr_limit >> 16 == 0 && s.idtr_limit >> 16 == 0,
    "3.1.4" "RIP": instruction_pointer,
    "3.1.4" "reserved bits in RFLAGS": |s| s.rflags.bits() & !RFLAGS_DEFINED == 0 && s.rflags.contains(Rflags::FIXED),
    "3.1.4" "RFLAGS.VM (virtual-8086 mode) in IA-32e or real mode": |s| !s.rflags.contains(Rflags::VM) || !s.ia32e() && s.protected(),
    "3.1.4" "RFLAGS.IF with an injected interrupt": |s| !s.injects(0) || s.rflags.contains(Rflags::IF),
    "3.1.5" "activity state": |s| s.activity <= 3,
    "3.1.5" "activity state HLT at another level than 0": |s| s.activity != 1 || s.ss().dpl() == 0,
    "3.1.5" "activity state with an interrupt shadow": |s| s.activity == 0 || !s.shadowed(),
    "3.1.5" "reserved interruptibility": |s| s.interruptibility.bits() & !0x1f == 0,
    "3.1.5" "blocking by STI and by MOV SS": |s| !s.interruptibility.contains(STI.union(MOV_SS)),
    "3.1.5" "blocking by STI with RFLAGS.IF clear": |s| !s.interruptibility.contains(STI) || s.rflags.contains(Rflags::IF),
    "3.1.5" "an interrupt injected into a shadow": |s| !s.injects(0) || !s.shadowed(),
    "3.1.5" "an NMI injected into a shadow": |s| !s.injects(2) || !s.interruptibility.contains(MOV_SS),
    "3.1.5" "blocking by SMI": |s| !s.interruptibility.contains(Interruptibility::SMI),
    "3.1.5" "an NMI injected into blocking by NMI": |s| !s.injects(2) || !s.interruptibility.contains(Interruptibility::NMI),
    "3.1.5" "reserved pending debug exceptions": |s| s.pending_debug.bits() & !PENDING_DEFINED == 0,
    "3.1.5" "pending single step in a shadow": pending_step_fits,
    "3.1.5" "VMCS link pointer": |s| s.link_pointer == u64::MAX,
    "3.1.6" "reserved bits in a PDPTE": page_directory_pointers,
];

/// Bochs 2.7 asks for this as well, although the manual does not.
const BOCHS_CODE_RPL: &str = "RPL of CS differs from its DPL (checked by Bochs only)";

const STI: Interruptibility = Interruptibility::STI;
const MOV_SS: Interruptibility = Interruptibility::MOV_SS;
/// LBR, BTF, BLD and bits 15:6 (SDM 4, IA32_DEBUGCTL).
const DEBUGCTL_DEFINED: u64 = 0xffc7;
/// SCE, LME, LMA, NXE.
const EFER_DEFINED: u64 = 0xd01;
const RFLAGS_DEFINED: u64 = 0x3f_7fd7;
const PENDING_DEFINED: u64 = 0x1_500f;
const TRAP_BRANCHES_ONLY: u64 = 1 << 1;
/// Order of the registers that hold code or data.
const CODE_AND_DATA: [SegmentName; 6] = [
    SegmentName::Es,
    SegmentName::Cs,
    SegmentName::Ss,
    SegmentName::Ds,
    SegmentName::Fs,
    SegmentName::Gs,
];

impl Snapshot {
    fn ia32e(&self) -> bool {
        self.entry_controls.contains(EntryControls::IA32E_GUEST)
    }
    fn lma(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
    fn lme(&self) -> bool {
        self.efer.contains(Efer::LME)
    }
    fn paging(&self) -> bool {
        self.cr0.contains(Cr0::PG)
    }
    fn protected(&self) -> bool {
        self.cr0.contains(Cr0::PE)
    }
    fn v8086(&self) -> bool {
        self.rflags.contains(Rflags::VM)
    }
    fn shadowed(&self) -> bool {
        self.interruptibility.intersects(STI.union(MOV_SS))
    }
    fn injects(&self, kind: u32) -> bool {
        self.entry_info & event::VALID != 0 && event::kind_bits(self.entry_info) == kind
    }
    fn cs(&self) -> Segment {
        self.segments[SegmentName::Cs]
    }
    fn ss(&self) -> Segment {
        self.segments[SegmentName::Ss]
    }
    /// Whether `rule` holds for CS and for every usable data segment, outside of virtual-8086 mode.
    fn each_in_use(&self, rule: fn(&Segment) -> bool) -> bool {
        self.v8086()
            || CODE_AND_DATA.iter().all(|name| {
                let segment = self.segments[*name];
                *name != SegmentName::Cs && !usable(&segment) || rule(&segment)
            })
    }
}

const fn fixed(value: u64, (ones, allowed): (u64, u64)) -> bool {
    value & ones == ones && value & !allowed == 0
}

/// Canonical for 48-bit linear addresses.
const fn canonical(address: u64) -> bool {
    let high = address as i64 >> 47;
    high == 0 || high == -1
}

fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|entry| matches!(entry, 0 | 1 | 4..=7))
}

const fn bit(segment: &Segment, n: u32) -> bool {
    segment.attributes.bits() >> n & 1 != 0
}

const fn usable(segment: &Segment) -> bool {
    !bit(segment, 16)
}

const fn kind(segment: &Segment) -> u32 {
    segment.attributes.bits() & 0xf
}

/// Access-rights bits 11:8 and 31:17.
const fn no_reserved(segment: &Segment) -> bool {
    segment.attributes.bits() & 0xfffe_0f00 == 0
}

const fn granularity_fits(segment: &Segment) -> bool {
    let granular = bit(segment, 15);
    (segment.limit & 0xfff == 0xfff || !granular) && (segment.limit >> 20 == 0 || granular)
}

fn injected_vector_fits(s: &Snapshot) -> bool {
    let info = s.entry_info;
    if info & event::VALID == 0 {
        return true;
    }
    if info & 0x7fff_f000 != 0 {
        return false;
    }
    match event::kind_bits(info) {
        1 => false,
        2 => event::vector_of(info) == 2,
        3 => event::vector_of(info) <= 31,
        7 => event::vector_of(info) == 0,
        _ => true,
    }
}

fn injected_error_code_fits(s: &Snapshot) -> bool {
    let info = s.entry_info;
    if info & event::VALID == 0 {
        return true;
    }
    let wanted = s.protected() && s.injects(3) && event::has_error_code(event::vector_of(info));
    let given = info & 1 << 11 != 0;
    given == wanted && (!given || s.entry_error_code >> 16 == 0)
}

fn injected_length_fits(s: &Snapshot) -> bool {
    let software = s.injects(4) || s.injects(5) || s.injects(6);
    !software || matches!(s.entry_instruction_length, 1..=15)
}

fn table_indicators_clear(s: &Snapshot) -> bool {
    let local = &s.segments[SegmentName::Ldtr];
    s.segments[SegmentName::Tr].selector & 4 == 0 && (!usable(local) || local.selector & 4 == 0)
}

fn virtual_8086_bases(s: &Snapshot) -> bool {
    !s.v8086()
        || CODE_AND_DATA.iter().all(|name| {
            let segment = s.segments[*name];
            segment.base == u64::from(segment.selector) << 4
        })
}

fn virtual_8086_rights(s: &Snapshot) -> bool {
    !s.v8086()
        || CODE_AND_DATA.iter().all(|name| {
            let segment = s.segments[*name];
            segment.limit == 0xffff && segment.attributes.bits() == 0xf3
        })
}

fn long_bases_canonical(s: &Snapshot) -> bool {
    let local = &s.segments[SegmentName::Ldtr];
    [SegmentName::Fs, SegmentName::Gs, SegmentName::Tr]
        .iter()
        .all(|name| canonical(s.segments[*name].base))
        && (!usable(local) || canonical(local.base))
}

fn short_bases_short(s: &Snapshot) -> bool {
    s.cs().base >> 32 == 0
        && [SegmentName::Ss, SegmentName::Ds, SegmentName::Es]
            .iter()
            .all(|name| {
                let segment = s.segments[*name];
                !usable(&segment) || segment.base >> 32 == 0
            })
}

fn data_types(s: &Snapshot) -> bool {
    s.v8086()
        || [
            SegmentName::Ds,
            SegmentName::Es,
            SegmentName::Fs,
            SegmentName::Gs,
        ]
        .iter()
        .all(|name| {
            let segment = &s.segments[*name];
            // Accessed; and readable if it is code.
            !usable(segment) || bit(segment, 0) && (!bit(segment, 3) || bit(segment, 1))
        })
}

fn code_privilege(s: &Snapshot) -> bool {
    if s.v8086() {
        return true;
    }
    let (cs, ss) = (s.cs(), s.ss());
    match kind(&cs) {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == ss.dpl(),
        13 | 15 => cs.dpl() <= ss.dpl(),
        _ => true,
    }
}

fn code_rpl_fits(s: &Snapshot) -> bool {
    let cs = s.cs();
    let rpl = (cs.selector & 3) as u8;
    s.v8086() || !matches!(kind(&cs), 9 | 11) || rpl == cs.dpl()
}

fn stack_privilege(s: &Snapshot) -> bool {
    s.v8086() || s.ss().dpl() == 0 || s.protected() && kind(&s.cs()) != 3
}

fn task_register(s: &Snapshot) -> bool {
    let tr = &s.segments[SegmentName::Tr];
    let busy = kind(tr) == 11 || !s.ia32e() && kind(tr) == 3;
    busy && usable(tr) && !bit(tr, 4) && bit(tr, 7) && no_reserved(tr) && granularity_fits(tr)
}

fn local_table(s: &Snapshot) -> bool {
    let local = &s.segments[SegmentName::Ldtr];
    !usable(local)
        || kind(local) == 2
            && !bit(local, 4)
            && bit(local, 7)
            && no_reserved(local)
            && granularity_fits(local)
}

fn instruction_pointer(s: &Snapshot) -> bool {
    if s.ia32e() && bit(&s.cs(), 13) {
        // Bits beyond the linear-address width must equal one another, not the sign bit below.
        let high = s.rip as i64 >> 48;
        high == 0 || high == -1
    } else {
        s.rip >> 32 == 0
    }
}

fn pending_step_fits(s: &Snapshot) -> bool {
    if !s.shadowed() && s.activity != 1 {
        return true;
    }
    let stepping = s.rflags.contains(Rflags::TF) && s.debugctl & TRAP_BRANCHES_ONLY == 0;
    s.pending_debug.contains(PendingDebug::SINGLE_STEP) == stepping
}

fn page_directory_pointers(s: &Snapshot) -> bool {
    if !s.paging() || !s.cr4.contains(Cr4::PAE) || s.ia32e() {
        return true;
    }
    s.pdptes
        .iter()
        .all(|entry| entry & 1 == 0 || entry & 0x1e6 == 0 && entry >> s.physical_bits.min(63) == 0)
}

#[cfg(test)]
#[path = "entry_check_tests.rs"]
mod tests;
