//! Exit codes (APM 2 C, table C-1) and what EXITINFO1 and EXITINFO2 say about them.

use crate::regs::Gpr;

/// Why the guest stopped. Kept as the low 32 bits: QEMU does not extend the sign of the code of a failed
/// entry to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u32);

#[allow(missing_docs)]
impl ExitCode {
    /// Reads of CR0 … CR15 are codes 0 … 15.
    pub const READ_CR: Self = Self(0x00);
    pub const WRITE_CR: Self = Self(0x10);
    pub const READ_DR: Self = Self(0x20);
    pub const WRITE_DR: Self = Self(0x30);
    /// Exceptions 0 … 31 are codes 0x40 … 0x5f.
    pub const EXCEPTION: Self = Self(0x40);
    pub const INTR: Self = Self(0x60);
    pub const NMI: Self = Self(0x61);
    pub const SMI: Self = Self(0x62);
    pub const INIT: Self = Self(0x63);
    pub const VINTR: Self = Self(0x64);
    pub const CR0_SELECTIVE_WRITE: Self = Self(0x65);
    pub const RDTSC: Self = Self(0x6e);
    pub const RDPMC: Self = Self(0x6f);
    pub const PUSHF: Self = Self(0x70);
    pub const POPF: Self = Self(0x71);
    pub const CPUID: Self = Self(0x72);
    pub const RSM: Self = Self(0x73);
    pub const IRET: Self = Self(0x74);
    pub const INT_N: Self = Self(0x75);
    pub const INVD: Self = Self(0x76);
    pub const HLT: Self = Self(0x78);
    pub const INVLPG: Self = Self(0x79);
    pub const INVLPGA: Self = Self(0x7a);
    pub const IOIO: Self = Self(0x7b);
    pub const MSR: Self = Self(0x7c);
    pub const TASK_SWITCH: Self = Self(0x7d);
    pub const SHUTDOWN: Self = Self(0x7f);
    pub const VMRUN: Self = Self(0x80);
    pub const VMMCALL: Self = Self(0x81);
    pub const VMLOAD: Self = Self(0x82);
    pub const VMSAVE: Self = Self(0x83);
    pub const STGI: Self = Self(0x84);
    pub const CLGI: Self = Self(0x85);
    pub const SKINIT: Self = Self(0x86);
    pub const RDTSCP: Self = Self(0x87);
    pub const WBINVD: Self = Self(0x89);
    pub const MONITOR: Self = Self(0x8a);
    pub const MWAIT: Self = Self(0x8b);
    pub const MWAIT_ARMED: Self = Self(0x8c);
    pub const XSETBV: Self = Self(0x8d);
    pub const RDPRU: Self = Self(0x8e);
    pub const INVLPGB: Self = Self(0xa0);
    pub const ILLEGAL_INVLPGB: Self = Self(0xa1);
    pub const INVPCID: Self = Self(0xa2);
    pub const MCOMMIT: Self = Self(0xa3);
    pub const TLBSYNC: Self = Self(0xa4);
    pub const NESTED_PAGE_FAULT: Self = Self(0x400);
    /// VMRUN refused the guest's state.
    pub const INVALID: Self = Self(u32::MAX);
    /// The control block is in use by another processor.
    pub const BUSY: Self = Self(u32::MAX - 1);
}

impl ExitCode {
    /// From the 64-bit field.
    #[must_use]
    pub const fn from_field(field: u64) -> Self {
        Self(field as u32)
    }
}

/// An intercepted port instruction (APM 2 15.10.2, figure 15-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoInfo {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
}

impl IoInfo {
    /// Reads EXITINFO1. A size that no instruction has counts as 4.
    #[must_use]
    pub const fn decode(info_1: u64) -> Self {
        let size = if info_1 & 1 << 4 != 0 {
            1
        } else if info_1 & 1 << 5 != 0 {
            2
        } else {
            4
        };
        Self {
            port: (info_1 >> 16) as u16,
            size,
            input: info_1 & 1 != 0,
            string: info_1 & 1 << 2 != 0,
        }
    }
}

/// A nested page fault (APM 2 15.25.6). The address is in EXITINFO2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptFault {
    /// An entry was present: rights were missing, or a reserved bit was set.
    pub present: bool,
    /// It was a write.
    pub write: bool,
    /// A reserved bit was set in an entry: the tables are broken.
    pub reserved: bool,
    /// It was an instruction fetch.
    pub execute: bool,
    /// It was the walk through the guest's tables, not the access itself.
    pub in_page_walk: bool,
}

impl NptFault {
    /// Reads EXITINFO1.
    #[must_use]
    pub const fn decode(info_1: u64) -> Self {
        Self {
            present: info_1 & 1 << 0 != 0,
            write: info_1 & 1 << 1 != 0,
            reserved: info_1 & 1 << 3 != 0,
            execute: info_1 & 1 << 4 != 0,
            in_page_walk: info_1 & 1 << 33 != 0,
        }
    }
}

/// The general register of an intercepted MOV to or from a control register, if EXITINFO1 tells it: it does
/// not without decode assists, and not for CLTS, LMSW and SMSW (APM 2 15.33.1).
#[must_use]
pub const fn mov_cr_register(info_1: u64) -> Option<Gpr> {
    if info_1 & 1 << 63 != 0 {
        Some(Gpr::from_encoding(info_1 as u8 & 15))
    } else {
        None
    }
}

/// The general register of an intercepted MOV to or from a debug register. Valid only with decode assists
/// (APM 2 15.33.1).
#[must_use]
pub const fn mov_dr_register(info_1: u64) -> Gpr {
    Gpr::from_encoding(info_1 as u8 & 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_info_as_measured() {
        // OUT 80h, AL; IN AX, DX with DX = 3fh; REP OUTSW.
        let out = IoInfo::decode(0x0080_0010);
        assert_eq!(
            (out.port, out.size, out.input, out.string),
            (0x80, 1, false, false)
        );
        let input = IoInfo::decode(0x003f_0021);
        assert_eq!(
            (input.port, input.size, input.input, input.string),
            (0x3f, 2, true, false)
        );
        let outs = IoInfo::decode(0x003f_002c);
        assert_eq!((outs.size, outs.input, outs.string), (2, false, true));
        assert_eq!(IoInfo::decode(0x003f_0040).size, 4);
    }

    #[test]
    fn nested_faults_as_measured() {
        let write = NptFault::decode(0x1_0000_0006);
        assert!(write.write && !write.present && !write.execute && !write.in_page_walk);
        let walk = NptFault::decode(0x2_0000_0006);
        assert!(walk.in_page_walk);
        let fetch = NptFault::decode(0x1_0000_0015);
        assert!(fetch.execute && fetch.present && !fetch.reserved);
        assert!(NptFault::decode(1 << 3).reserved);
    }

    #[test]
    fn a_failed_entry_is_recognised_with_and_without_sign() {
        assert_eq!(ExitCode::from_field(u64::MAX), ExitCode::INVALID);
        assert_eq!(ExitCode::from_field(0xffff_ffff), ExitCode::INVALID);
        assert_ne!(ExitCode::from_field(0x7f), ExitCode::INVALID);
    }

    #[test]
    fn mov_cr_names_its_register_only_with_bit_63() {
        assert_eq!(mov_cr_register(0), None);
        assert_eq!(mov_cr_register(1 << 63 | 0xb), Some(Gpr::R11));
        assert_eq!(mov_dr_register(3), Gpr::Rbx);
    }
}
