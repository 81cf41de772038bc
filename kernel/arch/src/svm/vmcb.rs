//! The virtual machine control block (APM 2 B, tables B-1 and B-2) and the encoding of its segments.

use core::mem::{offset_of, size_of};

use super::control::{
    CleanBits, Intercepts1, Intercepts2, Intercepts3, InterruptControl, InterruptState, TlbControl,
};
use crate::regs::{DescriptorTable, Segment, SegmentAttributes};

/// A segment register as the control block holds it: the attributes are those of a descriptor without
/// the gap where the limit lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VmcbSegment {
    /// The visible selector.
    pub selector: u16,
    /// Type, S, DPL, P in bits 7:0; AVL, L, D/B, G in bits 11:8.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Linear address of the first byte.
    pub base: u64,
}

impl From<Segment> for VmcbSegment {
    /// "Unusable" is not present here (APM 2 15.5.1 knows no other mark of a null segment). The rest of the
    /// attributes is kept, so that what was read is what is written back.
    fn from(segment: Segment) -> Self {
        let mut attributes = segment.attributes;
        if attributes.contains(SegmentAttributes::UNUSABLE) {
            attributes.remove(SegmentAttributes::PRESENT);
        }
        let bits = attributes.bits();
        let packed = (bits & 0xff | bits >> 4 & 0xf00) as u16;
        Self {
            selector: segment.selector,
            attributes: packed,
            limit: segment.limit,
            base: segment.base,
        }
    }
}

impl From<VmcbSegment> for Segment {
    fn from(segment: VmcbSegment) -> Self {
        let packed = u32::from(segment.attributes);
        let mut attributes =
            SegmentAttributes::from_bits_retain(packed & 0xff | (packed & 0xf00) << 4);
        if !attributes.contains(SegmentAttributes::PRESENT) {
            attributes |= SegmentAttributes::UNUSABLE;
        }
        Self {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            attributes,
        }
    }
}

impl From<DescriptorTable> for VmcbSegment {
    fn from(table: DescriptorTable) -> Self {
        Self {
            selector: 0,
            attributes: 0,
            limit: u32::from(table.limit),
            base: table.base,
        }
    }
}

impl From<VmcbSegment> for DescriptorTable {
    fn from(segment: VmcbSegment) -> Self {
        Self {
            base: segment.base,
            limit: segment.limit as u16,
        }
    }
}

/// The control area.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct ControlArea {
    pub intercept_cr_reads: u16,
    pub intercept_cr_writes: u16,
    pub intercept_dr_reads: u16,
    pub intercept_dr_writes: u16,
    pub intercept_exceptions: u32,
    pub intercepts_1: Intercepts1,
    pub intercepts_2: Intercepts2,
    pub intercepts_3: Intercepts3,
    pub reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    /// Physical address of the I/O permission map.
    pub io_permission_map: u64,
    /// Physical address of the MSR permission map.
    pub msr_permission_map: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: TlbControl,
    pub reserved_05d: [u8; 3],
    pub interrupt_control: InterruptControl,
    pub interrupt_state: InterruptState,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    /// Event whose delivery the exit cut off.
    pub exit_interrupt_info: u64,
    pub nested_paging: u64,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    /// Event to deliver at entry.
    pub event_injection: u64,
    /// Root of the nested page tables.
    pub nested_cr3: u64,
    pub last_branch_control: u64,
    pub clean_bits: CleanBits,
    pub reserved_0c4: u32,
    /// Offset of the next instruction; 0 without the feature.
    pub next_rip: u64,
    /// Bytes of the instruction that faulted; 0 without the feature.
    pub fetched_length: u8,
    pub fetched_bytes: [u8; 15],
    pub reserved_0e0: [u8; 0x320],
}

/// The state-save area.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct SaveArea {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    pub reserved_0a0: [u8; 0x2b],
    pub cpl: u8,
    pub reserved_0cc: u32,
    pub efer: u64,
    pub reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    pub reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub interrupt_ssp_table: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    pub reserved_248: [u8; 0x20],
    pub pat: u64,
    pub debugctl: u64,
    pub last_branch_from: u64,
    pub last_branch_to: u64,
    pub last_exception_from: u64,
    pub last_exception_to: u64,
}

/// The whole control block: one page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// What is intercepted, injected and reported.
    pub control: ControlArea,
    /// The guest's registers.
    pub save: SaveArea,
    /// Not used by any version that Duet knows.
    pub reserved_698: [u8; 0x968],
}

impl Vmcb {
    /// A control block of zeros, as fresh memory holds it.
    #[must_use]
    pub const fn zeroed() -> Self {
        const SEGMENT: VmcbSegment = VmcbSegment {
            selector: 0,
            attributes: 0,
            limit: 0,
            base: 0,
        };
        Self {
            control: ControlArea {
                intercept_cr_reads: 0,
                intercept_cr_writes: 0,
                intercept_dr_reads: 0,
                intercept_dr_writes: 0,
                intercept_exceptions: 0,
                intercepts_1: Intercepts1::empty(),
                intercepts_2: Intercepts2::empty(),
                intercepts_3: Intercepts3::empty(),
                reserved_018: [0; 0x24],
                pause_filter_threshold: 0,
                pause_filter_count: 0,
                io_permission_map: 0,
                msr_permission_map: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: TlbControl::NOTHING,
                reserved_05d: [0; 3],
                interrupt_control: InterruptControl::empty(),
                interrupt_state: InterruptState::empty(),
                exit_code: 0,
                exit_info_1: 0,
                exit_info_2: 0,
                exit_interrupt_info: 0,
                nested_paging: 0,
                avic_apic_bar: 0,
                ghcb: 0,
                event_injection: 0,
                nested_cr3: 0,
                last_branch_control: 0,
                clean_bits: CleanBits::empty(),
                reserved_0c4: 0,
                next_rip: 0,
                fetched_length: 0,
                fetched_bytes: [0; 15],
                reserved_0e0: [0; 0x320],
            },
            save: SaveArea {
                es: SEGMENT,
                cs: SEGMENT,
                ss: SEGMENT,
                ds: SEGMENT,
                fs: SEGMENT,
                gs: SEGMENT,
                gdtr: SEGMENT,
                ldtr: SEGMENT,
                idtr: SEGMENT,
                tr: SEGMENT,
                reserved_0a0: [0; 0x2b],
                cpl: 0,
                reserved_0cc: 0,
                efer: 0,
                reserved_0d8: [0; 0x70],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                reserved_180: [0; 0x58],
                rsp: 0,
                s_cet: 0,
                ssp: 0,
                interrupt_ssp_table: 0,
                rax: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                cr2: 0,
                reserved_248: [0; 0x20],
                pat: 0,
                debugctl: 0,
                last_branch_from: 0,
                last_branch_to: 0,
                last_exception_from: 0,
                last_exception_to: 0,
            },
            reserved_698: [0; 0x968],
        }
    }
}

const _: () = assert!(size_of::<VmcbSegment>() == 16);
const _: () = assert!(size_of::<ControlArea>() == 0x400);
const _: () = assert!(size_of::<SaveArea>() == 0x298);
const _: () = assert!(size_of::<Vmcb>() == 0x1000);
const _: () = assert!(offset_of!(ControlArea, pause_filter_threshold) == 0x3c);
const _: () = assert!(offset_of!(ControlArea, io_permission_map) == 0x40);
const _: () = assert!(offset_of!(ControlArea, asid) == 0x58);
const _: () = assert!(offset_of!(ControlArea, interrupt_control) == 0x60);
const _: () = assert!(offset_of!(ControlArea, exit_code) == 0x70);
const _: () = assert!(offset_of!(ControlArea, exit_interrupt_info) == 0x88);
const _: () = assert!(offset_of!(ControlArea, event_injection) == 0xa8);
const _: () = assert!(offset_of!(ControlArea, nested_cr3) == 0xb0);
const _: () = assert!(offset_of!(ControlArea, clean_bits) == 0xc0);
const _: () = assert!(offset_of!(ControlArea, next_rip) == 0xc8);
const _: () = assert!(offset_of!(ControlArea, fetched_bytes) == 0xd1);
const _: () = assert!(offset_of!(SaveArea, tr) == 0x90);
const _: () = assert!(offset_of!(SaveArea, cpl) == 0xcb);
const _: () = assert!(offset_of!(SaveArea, efer) == 0xd0);
const _: () = assert!(offset_of!(SaveArea, cr4) == 0x148);
const _: () = assert!(offset_of!(SaveArea, rip) == 0x178);
const _: () = assert!(offset_of!(SaveArea, rsp) == 0x1d8);
const _: () = assert!(offset_of!(SaveArea, rax) == 0x1f8);
const _: () = assert!(offset_of!(SaveArea, cr2) == 0x240);
const _: () = assert!(offset_of!(SaveArea, pat) == 0x268);
const _: () = assert!(offset_of!(SaveArea, debugctl) == 0x270);

/// Offset of RSP in the control block, for the entry code.
pub const OFFSET_RSP: usize = offset_of!(Vmcb, save) + offset_of!(SaveArea, rsp);
/// Offset of RAX in the control block, for the entry code.
pub const OFFSET_RAX: usize = offset_of!(Vmcb, save) + offset_of!(SaveArea, rax);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lose_and_regain_the_gap() {
        let code = Segment::flat(8, 0xa09b);
        let packed = VmcbSegment::from(code);
        assert_eq!(packed.attributes, 0xa9b);
        assert_eq!(Segment::from(packed), code);
    }

    #[test]
    fn an_unusable_segment_is_not_present() {
        let null = Segment::flat(0, SegmentAttributes::UNUSABLE.bits() | 0xc093);
        let packed = VmcbSegment::from(null);
        assert_eq!(packed.attributes, 0xc13);
        let read = Segment::from(packed);
        assert!(read.attributes.contains(SegmentAttributes::UNUSABLE));
        assert_eq!(VmcbSegment::from(read), packed);
    }

    #[test]
    fn offsets_for_the_entry_code() {
        assert_eq!((OFFSET_RSP, OFFSET_RAX), (0x5d8, 0x5f8));
    }
}
