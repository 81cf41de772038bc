//! The state of a processor as a guest would describe it, in neither vendor's layout.

use crate::event::Event;
pub use crate::flags::{Cr0, Cr4, Efer, Rflags, SegmentAttributes, Shadow, Xcr0};

/// General registers in the order of their encoding (SDM 2, table 2-1): RAX, RCX, RDX, RBX, RSP,
/// RBP, RSI, RDI, R8 … R15. Index with a [`Gpr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Gprs(pub [u64; 16]);

/// The number of a general register as instructions encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the documentation
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

impl Gpr {
    /// All of them, in encoding order.
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];

    /// The register with this encoding; only the low four bits of `n` count.
    #[must_use]
    pub const fn from_encoding(n: u8) -> Self {
        Self::ALL[(n & 15) as usize]
    }
}

impl core::ops::Index<Gpr> for Gprs {
    type Output = u64;
    #[inline]
    fn index(&self, r: Gpr) -> &u64 {
        &self.0[r as usize & 15]
    }
}

impl core::ops::IndexMut<Gpr> for Gprs {
    #[inline]
    fn index_mut(&mut self, r: Gpr) -> &mut u64 {
        &mut self.0[r as usize & 15]
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Type and flags.
    pub attributes: SegmentAttributes,
}

impl Segment {
    /// A real-mode segment: base = selector × 16, 64 KiB, writable data, accessed.
    #[must_use]
    pub const fn real(selector: u16, attributes: u32) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: SegmentAttributes::from_bits_retain(attributes),
        }
    }

    /// A flat 4 GiB segment.
    #[must_use]
    pub const fn flat(selector: u16, attributes: u32) -> Self {
        Self {
            selector,
            base: 0,
            limit: 0xffff_ffff,
            attributes: SegmentAttributes::from_bits_retain(attributes),
        }
    }

    /// Descriptor privilege level, 0 … 3. Of SS this is the processor's current privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        ((self.attributes.bits() >> 5) & 3) as u8
    }
}

/// Which segment register, in the order of their encoding (SDM 2, table 2-1), then LDTR and TR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentName {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

impl SegmentName {
    /// All of them, in the order of [`Segments`].
    pub const ALL: [SegmentName; 8] = [
        SegmentName::Es,
        SegmentName::Cs,
        SegmentName::Ss,
        SegmentName::Ds,
        SegmentName::Fs,
        SegmentName::Gs,
        SegmentName::Ldtr,
        SegmentName::Tr,
    ];
}

/// All segment registers; index with a [`SegmentName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments(pub [Segment; 8]);

impl core::ops::Index<SegmentName> for Segments {
    type Output = Segment;
    fn index(&self, n: SegmentName) -> &Segment {
        &self.0[n as usize & 7]
    }
}

impl core::ops::IndexMut<SegmentName> for Segments {
    fn index_mut(&mut self, n: SegmentName) -> &mut Segment {
        &mut self.0[n as usize & 7]
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Its last valid byte offset.
    pub limit: u16,
}

/// Control registers and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRegisters {
    /// As the guest reads it.
    pub cr0: Cr0,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base, with PCID and flags.
    pub cr3: u64,
    /// As the guest reads it.
    pub cr4: Cr4,
    /// As the guest reads it (SVME, which SVM needs set, is not shown).
    pub efer: Efer,
    /// Extended states enabled.
    pub xcr0: Xcr0,
    /// The four page-directory-pointer entries that a processor loads at a MOV to CR when it enters
    /// PAE paging (SDM 3 5.4.1). Processors that read them on demand (APM 2 15.25.10) ignore them.
    pub pdptes: [u64; 4],
}

impl ControlRegisters {
    /// Those of them that decide about translation and mode.
    #[must_use]
    pub const fn paging(&self) -> Paging {
        Paging {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
        }
    }
}

/// The registers that decide how linear addresses translate and in which mode code executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// See [`ControlRegisters::cr0`].
    pub cr0: Cr0,
    /// See [`ControlRegisters::cr3`].
    pub cr3: u64,
    /// See [`ControlRegisters::cr4`].
    pub cr4: Cr4,
    /// See [`ControlRegisters::efer`].
    pub efer: Efer,
}

/// Debug registers. DR4 and DR5 are aliases and have no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugRegisters {
    /// DR0 … DR3: breakpoint linear addresses.
    pub dr: [u64; 4],
    /// Status.
    pub dr6: u64,
    /// Control.
    pub dr7: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
}

/// MSRs that a guest reads and writes without an exit, or whose only effect is on the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SystemMsrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
}

/// Bytes of an XSAVE area in standard format with x87, SSE and AVX (SDM 1 13.4).
pub const XSAVE_SIZE: usize = 832;

/// x87, SSE and AVX state in the standard XSAVE format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; XSAVE_SIZE]);

impl XsaveArea {
    /// The state after reset: FCW = 0x037f, MXCSR = 0x1f80, all registers zero, XSTATE_BV = 7 so
    /// that a restore writes every component.
    #[must_use]
    pub const fn initial() -> Self {
        let mut area = [0; XSAVE_SIZE];
        area[0] = 0x7f;
        area[1] = 0x03;
        area[24] = 0x80;
        area[25] = 0x1f;
        area[512] = 7;
        Self(area)
    }
}

/// The whole state of one virtual processor between two instructions, the event included whose
/// delivery the last exit cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// General registers.
    pub gprs: Gprs,
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: Rflags,
    /// Segment registers, LDTR and TR.
    pub segments: Segments,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Control registers.
    pub control: ControlRegisters,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// System MSRs.
    pub msrs: SystemMsrs,
    /// Interrupt shadows and NMI blocking.
    pub shadow: Shadow,
    /// An event to be delivered before the next instruction.
    pub pending: Option<Event>,
    /// Extended state.
    pub xsave: XsaveArea,
    /// Instructions retired since power-on.
    pub icount: u64,
}

impl CpuState {
    /// The state after power-on (SDM 3 10.1.1), but with CS:IP = 0:`ip` instead of the reset
    /// vector: there is no firmware to run.
    #[must_use]
    pub const fn real_mode(ip: u16) -> Self {
        const DATA: Segment = Segment::real(0, 0x93);
        Self {
            gprs: Gprs([0; 16]),
            rip: ip as u64,
            rflags: Rflags::FIXED,
            segments: Segments([
                DATA,
                Segment::real(0, 0x9b),
                DATA,
                DATA,
                DATA,
                DATA,
                Segment::real(0, 0x82),
                Segment::real(0, 0x8b),
            ]),
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0x3ff,
            },
            control: ControlRegisters {
                cr0: Cr0::ET,
                cr2: 0,
                cr3: 0,
                cr4: Cr4::empty(),
                efer: Efer::empty(),
                xcr0: Xcr0::X87,
                pdptes: [0; 4],
            },
            debug: DebugRegisters {
                dr: [0; 4],
                dr6: 0xffff_0ff0,
                dr7: 0x400,
                debugctl: 0,
            },
            msrs: SystemMsrs {
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                pat: 0x0007_0406_0007_0406,
            },
            shadow: Shadow::empty(),
            pending: None,
            xsave: XsaveArea::initial(),
            icount: 0,
        }
    }

    /// 32-bit protected mode without paging, flat segments, interrupts off, at `eip`: the machine
    /// state that the Multiboot specification (0.6.96, section 3.2) promises a kernel.
    #[must_use]
    pub const fn protected_mode(eip: u32) -> Self {
        const DATA: Segment = Segment::flat(0x10, 0xc093);
        let mut state = Self::real_mode(0);
        state.rip = eip as u64;
        state.control.cr0 = Cr0::PE.union(Cr0::ET);
        state.segments = Segments([
            DATA,
            Segment::flat(0x08, 0xc09b),
            DATA,
            DATA,
            DATA,
            DATA,
            Segment::real(0, 0x82),
            Segment::real(0, 0x8b),
        ]);
        state
    }

    /// Current privilege level, 0 … 3.
    #[must_use]
    pub const fn cpl(&self) -> u8 {
        self.segments.0[SegmentName::Ss as usize].dpl()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_xsave_area_has_the_reset_values() {
        let area = XsaveArea::initial().0;
        assert_eq!(u16::from_le_bytes([area[0], area[1]]), 0x37f);
        assert_eq!(
            u32::from_le_bytes([area[24], area[25], area[26], area[27]]),
            0x1f80
        );
        assert_eq!(area[512], 7);
    }

    #[test]
    fn segment_order_is_the_encoding_order() {
        for (i, name) in SegmentName::ALL.iter().enumerate() {
            assert_eq!(*name as usize, i);
        }
        for (i, r) in Gpr::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert_eq!(Gpr::from_encoding(i as u8), *r);
        }
    }

    #[test]
    fn dpl_of_user_code() {
        assert_eq!(Segment::flat(0x1b, 0xc0fb).dpl(), 3);
        assert_eq!(CpuState::protected_mode(0).cpl(), 0);
    }
}
