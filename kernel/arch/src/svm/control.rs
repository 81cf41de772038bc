//! Bits of the control area: intercepts, virtual interrupts, TLB control, clean bits. The constants
//! carry the manual's names and need no other words.

#![allow(missing_docs)]

use bitflags::bitflags;

bitflags! {
    /// Intercepted instructions and events, vector 3 (APM 2 B, offset 00Ch).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts1: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        /// Writes of CR0 that change other bits than TS and MP.
        const CR0_SELECTIVE_WRITE = 1 << 5;
        const RDTSC = 1 << 14;
        const RDPMC = 1 << 15;
        const PUSHF = 1 << 16;
        const POPF = 1 << 17;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INT_N = 1 << 21;
        const INVD = 1 << 22;
        const PAUSE = 1 << 23;
        const HLT = 1 << 24;
        const INVLPG = 1 << 25;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const TASK_SWITCH = 1 << 29;
        const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31;
        const _ = !0;
    }

    /// Intercepted instructions, vector 4 (APM 2 B, offset 010h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts2: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const RDTSCP = 1 << 7;
        const ICEBP = 1 << 8;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const MWAIT_ARMED = 1 << 12;
        const XSETBV = 1 << 13;
        const RDPRU = 1 << 14;
        const _ = !0;
    }

    /// Intercepted instructions, vector 5 (APM 2 B, offset 014h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts3: u32 {
        const INVLPGB = 1 << 0;
        const ILLEGAL_INVLPGB = 1 << 1;
        const INVPCID = 1 << 2;
        const MCOMMIT = 1 << 3;
        const TLBSYNC = 1 << 4;
        const _ = !0;
    }

    /// Virtual interrupt control (APM 2 15.21.4 and B, offset 060h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct InterruptControl: u64 {
        const V_TPR = 0xff;
        /// An interrupt is pending for the guest.
        const V_IRQ = 1 << 8;
        const V_GIF = 1 << 9;
        const V_INTR_PRIORITY = 0xf << 16;
        const V_IGNORE_TPR = 1 << 20;
        /// RFLAGS.IF of the guest masks virtual interrupts only; physical ones are masked by the IF that
        /// the host had at VMRUN.
        const V_INTR_MASKING = 1 << 24;
        const V_GIF_ENABLE = 1 << 25;
        const AVIC_ENABLE = 1 << 31;
        const V_INTR_VECTOR = 0xff << 32;
        const _ = !0;
    }

    /// Interrupt shadow (APM 2 15.21.5 and B, offset 068h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct InterruptState: u64 {
        const SHADOW = 1 << 0;
        const GUEST_INTERRUPT_MASK = 1 << 1;
        const _ = !0;
    }

    /// State that has not changed since the last run, so that the processor may use what it has cached
    /// (APM 2 15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct CleanBits: u32 {
        const INTERCEPTS = 1 << 0;
        const PERMISSION_MAPS = 1 << 1;
        const ASID = 1 << 2;
        const INTERRUPT = 1 << 3;
        const NESTED_PAGING = 1 << 4;
        const CONTROL_REGISTERS = 1 << 5;
        const DEBUG_REGISTERS = 1 << 6;
        const DESCRIPTOR_TABLES = 1 << 7;
        const SEGMENTS = 1 << 8;
        const CR2 = 1 << 9;
        const LAST_BRANCH = 1 << 10;
        const AVIC = 1 << 11;
        const CET = 1 << 12;
    }
}

impl InterruptControl {
    /// A pending virtual interrupt that no task priority holds back.
    #[must_use]
    pub const fn pending(vector: u8) -> Self {
        Self::from_bits_retain(
            Self::V_IRQ.bits()
                | Self::V_INTR_PRIORITY.bits()
                | Self::V_IGNORE_TPR.bits()
                | (vector as u64) << 32,
        )
    }
}

/// What VMRUN flushes (APM 2 15.16.2, table 15-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct TlbControl(pub u8);

impl TlbControl {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// All translations of all address spaces, the host's included.
    pub const ALL: Self = Self(1);
    /// All translations of this guest's address space; needs flush-by-ASID.
    pub const GUEST: Self = Self(3);
}

/// Bits of the nested-paging control (APM 2 B, offset 090h).
pub const NESTED_PAGING_ENABLE: u64 = 1 << 0;

/// Bytes of the I/O permission map: one bit for each port, and three more (APM 2 15.10.1).
pub const IOPM_BYTES: usize = 3 * 4096;
/// Bytes of the MSR permission map (APM 2 15.11).
pub const MSRPM_BYTES: usize = 2 * 4096;

/// The read bit of an MSR in the permission map, as (byte, bit); the write bit is the next one. `None`: the map
/// does not cover it, every access exits (APM 2 15.11, table 15-8).
#[must_use]
pub const fn msr_permission_bit(msr: u32) -> Option<(usize, u8)> {
    let (range, offset) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, msr - 0xc001_0000),
        _ => return None,
    };
    Some((range + offset as usize / 4, (offset % 4 * 2) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_bits_of_the_three_ranges() {
        assert_eq!(msr_permission_bit(0), Some((0, 0)));
        assert_eq!(msr_permission_bit(0x10), Some((4, 0)));
        assert_eq!(msr_permission_bit(0x175), Some((0x5d, 2)));
        assert_eq!(msr_permission_bit(0x1fff), Some((0x7ff, 6)));
        assert_eq!(msr_permission_bit(0x2000), None);
        assert_eq!(msr_permission_bit(0xc000_0081), Some((0x820, 2)));
        assert_eq!(msr_permission_bit(0xc001_0015), Some((0x1005, 2)));
        assert_eq!(msr_permission_bit(0xc001_1fff), Some((0x17ff, 6)));
        assert_eq!(msr_permission_bit(u32::MAX), None);
    }

    #[test]
    fn a_pending_interrupt_ignores_the_task_priority() {
        assert_eq!(InterruptControl::pending(0x50).bits(), 0x0050_001f_0100);
    }
}
