//! Exit reasons and what their qualifications and instruction information mean
//! (SDM 3 29.2.1, 29.2.5, appendix C).

use crate::regs::Gpr;

/// The basic exit reason, bits 15:0 of the exit-reason field (SDM 3 appendix C, table C-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReason(pub u16);

#[allow(missing_docs)] // the names are the manual's
impl ExitReason {
    pub const EXCEPTION_OR_NMI: Self = Self(0);
    pub const EXTERNAL_INTERRUPT: Self = Self(1);
    pub const TRIPLE_FAULT: Self = Self(2);
    pub const INTERRUPT_WINDOW: Self = Self(7);
    pub const NMI_WINDOW: Self = Self(8);
    pub const TASK_SWITCH: Self = Self(9);
    pub const CPUID: Self = Self(10);
    pub const GETSEC: Self = Self(11);
    pub const HLT: Self = Self(12);
    pub const INVD: Self = Self(13);
    pub const INVLPG: Self = Self(14);
    pub const RDPMC: Self = Self(15);
    pub const RDTSC: Self = Self(16);
    pub const VMCALL: Self = Self(18);
    pub const VMCLEAR: Self = Self(19);
    pub const VMXON: Self = Self(27);
    pub const CONTROL_REGISTER: Self = Self(28);
    pub const DEBUG_REGISTER: Self = Self(29);
    pub const PORT: Self = Self(30);
    pub const RDMSR: Self = Self(31);
    pub const WRMSR: Self = Self(32);
    pub const INVALID_GUEST_STATE: Self = Self(33);
    pub const MSR_LOADING: Self = Self(34);
    pub const MWAIT: Self = Self(36);
    pub const MONITOR_TRAP: Self = Self(37);
    pub const MONITOR: Self = Self(39);
    pub const MACHINE_CHECK_AT_ENTRY: Self = Self(41);
    pub const EPT_VIOLATION: Self = Self(48);
    pub const EPT_MISCONFIGURATION: Self = Self(49);
    pub const INVEPT: Self = Self(50);
    pub const RDTSCP: Self = Self(51);
    pub const PREEMPTION_TIMER: Self = Self(52);
    pub const INVVPID: Self = Self(53);
    pub const WBINVD: Self = Self(54);
    pub const XSETBV: Self = Self(55);
    pub const RDRAND: Self = Self(57);
    pub const INVPCID: Self = Self(58);
    pub const VMFUNC: Self = Self(59);
    pub const ENCLS: Self = Self(60);
    pub const RDSEED: Self = Self(61);
    pub const XSAVES: Self = Self(63);
    pub const XRSTORS: Self = Self(64);
}

/// Bit 31 of the exit-reason field: the VM entry failed after the controls had been accepted.
pub const ENTRY_FAILED: u32 = 1 << 31;

/// What a control-register access wants (SDM 3 29.2.1, table 29-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to the control register.
    Write {
        /// Which.
        cr: u8,
        /// Source.
        register: Gpr,
    },
    /// MOV from the control register.
    Read {
        /// Which.
        cr: u8,
        /// Destination.
        register: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw {
        /// Its operand.
        source: u16,
    },
}

impl CrAccess {
    /// Decodes an exit qualification.
    #[must_use]
    pub const fn decode(qualification: u64) -> Self {
        let cr = (qualification & 0xf) as u8;
        let register = Gpr::from_encoding((qualification >> 8) as u8 & 0xf);
        match qualification >> 4 & 3 {
            0 => Self::Write { cr, register },
            1 => Self::Read { cr, register },
            2 => Self::Clts,
            _ => Self::Lmsw {
                source: (qualification >> 16) as u16,
            },
        }
    }
}

/// CR0 after LMSW: the low four bits are replaced, but PE cannot be cleared (SDM 2, LMSW).
#[must_use]
pub const fn cr0_after_lmsw(cr0: u64, source: u16) -> u64 {
    const PE: u64 = 1;
    cr0 & !0xe | source as u64 & 0xf | cr0 & PE
}

/// A MOV DR (SDM 3 29.2.1, table 29-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrAccess {
    /// The number as encoded, 0 … 7.
    pub dr: u8,
    /// From the debug register.
    pub read: bool,
    /// The general register.
    pub register: Gpr,
}

impl DrAccess {
    /// Decodes an exit qualification.
    #[must_use]
    pub const fn decode(qualification: u64) -> Self {
        Self {
            dr: (qualification & 7) as u8,
            read: qualification & 1 << 4 != 0,
            register: Gpr::from_encoding((qualification >> 8) as u8 & 0xf),
        }
    }
}

/// An I/O instruction (SDM 3 29.2.1, table 29-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortQualification {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT or OUTS.
    pub write: bool,
    /// INS or OUTS.
    pub string: bool,
}

impl PortQualification {
    /// Decodes an exit qualification.
    #[must_use]
    pub const fn decode(qualification: u64) -> Self {
        Self {
            port: (qualification >> 16) as u16,
            size: (qualification & 7) as u8 + 1,
            write: qualification & 1 << 3 == 0,
            string: qualification & 1 << 4 != 0,
        }
    }
}

/// An EPT violation (SDM 3 29.2.1, table 29-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// Data write (with accessed and dirty flags on, walks of the guest's tables count as writes).
    pub write: bool,
    /// Instruction fetch.
    pub execute: bool,
    /// The access was to a paging structure of the guest, not to the operand.
    pub in_page_walk: bool,
    /// It hit an IRET that had already ended NMI blocking.
    pub nmi_unblocked_by_iret: bool,
}

impl EptViolation {
    /// Decodes an exit qualification.
    #[must_use]
    pub const fn decode(qualification: u64) -> Self {
        const LINEAR_ADDRESS_VALID: u64 = 1 << 7;
        const FINAL_TRANSLATION: u64 = 1 << 8;
        Self {
            write: qualification & 1 << 1 != 0,
            execute: qualification & 1 << 2 != 0,
            in_page_walk: qualification & LINEAR_ADDRESS_VALID != 0
                && qualification & FINAL_TRANSLATION == 0,
            nmi_unblocked_by_iret: qualification & 1 << 12 != 0,
        }
    }
}

/// The selector a task switch goes to (SDM 3 29.2.1, table 29-2).
#[must_use]
pub const fn task_switch_selector(qualification: u64) -> u16 {
    qualification as u16
}

/// Bits that a debug exception would set in DR6 (SDM 3 29.2.1, table 29-1): B0 … B3, BLD, BD, BS, RTM.
#[must_use]
pub const fn debug_exception_bits(qualification: u64) -> u64 {
    qualification & (0xf | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 16)
}

/// Destination and operand bytes of RDRAND or RDSEED, from the instruction information
/// (SDM 3 29.2.5, table 29-12).
#[must_use]
pub const fn random_destination(information: u32) -> (Gpr, u8) {
    let size = match information >> 11 & 3 {
        0 => 2,
        1 => 4,
        _ => 8,
    };
    (Gpr::from_encoding((information >> 3) as u8 & 0xf), size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_register_accesses() {
        // MOV CR4, R9.
        assert_eq!(
            CrAccess::decode(0x904),
            CrAccess::Write {
                cr: 4,
                register: Gpr::R9
            }
        );
        // MOV RBX, CR8.
        assert_eq!(
            CrAccess::decode(0x318),
            CrAccess::Read {
                cr: 8,
                register: Gpr::Rbx
            }
        );
        assert_eq!(CrAccess::decode(0x20), CrAccess::Clts);
        assert_eq!(
            CrAccess::decode(0xfff1_0030),
            CrAccess::Lmsw { source: 0xfff1 }
        );
    }

    #[test]
    fn lmsw_sets_but_never_clears_protection() {
        assert_eq!(cr0_after_lmsw(0x8000_0011, 0), 0x8000_0011);
        assert_eq!(cr0_after_lmsw(0x1e, 0xfff1), 0x11);
        assert_eq!(cr0_after_lmsw(0x10, 0xe), 0x1e);
    }

    #[test]
    fn debug_register_accesses() {
        let access = DrAccess::decode(0x0c17);
        assert_eq!(
            (access.dr, access.read, access.register),
            (7, true, Gpr::R12)
        );
        assert!(!DrAccess::decode(0x0007).read);
    }

    #[test]
    fn ports() {
        // OUT DX, AX with DX = 0x80; IN AL, 0x71; REP INSD from 0x1f0.
        let out = PortQualification::decode(0x0080_0001);
        assert_eq!(
            (out.port, out.size, out.write, out.string),
            (0x80, 2, true, false)
        );
        let input = PortQualification::decode(0x0071_0048);
        assert_eq!(
            (input.port, input.size, input.write, input.string),
            (0x71, 1, false, false)
        );
        let string = PortQualification::decode(0x01f0_003b);
        assert_eq!((string.size, string.write, string.string), (4, false, true));
    }

    #[test]
    fn violations_tell_walks_from_accesses() {
        let walk = EptViolation::decode(0x083);
        assert!(walk.write && walk.in_page_walk && !walk.execute);
        let access = EptViolation::decode(0x182);
        assert!(access.write && !access.in_page_walk);
        assert!(EptViolation::decode(0x184).execute);
        // Without a linear address (a PDPTE load) it is not called a walk.
        assert!(!EptViolation::decode(0x001).in_page_walk);
        assert!(EptViolation::decode(0x1181).nmi_unblocked_by_iret);
    }

    #[test]
    fn random_number_destinations() {
        assert_eq!(random_destination(0x0000), (Gpr::Rax, 2));
        assert_eq!(random_destination(0x0800 | 3 << 3), (Gpr::Rbx, 4));
        assert_eq!(random_destination(0x1000 | 15 << 3), (Gpr::R15, 8));
    }

    #[test]
    fn debug_bits_drop_what_dr6_does_not_have() {
        assert_eq!(debug_exception_bits(0xffff_ffff), 0x1_680f);
    }
}
