//! Bits of the VM-execution, VM-exit and VM-entry controls, and of the guest-state fields that are sets
//! of bits (SDM 3 26.4.2, 26.6 – 26.8). The constants carry the manual's names and need no other words.

#![allow(missing_docs)]

use bitflags::bitflags;

bitflags! {
    /// Pin-based VM-execution controls (SDM 3 26.6.1, table 26-5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinControls: u32 {
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        const NMI_EXITING = 1 << 3;
        const VIRTUAL_NMIS = 1 << 5;
        const PREEMPTION_TIMER = 1 << 6;
        const POSTED_INTERRUPTS = 1 << 7;
        const _ = !0;
    }

    /// Primary processor-based VM-execution controls (SDM 3 26.6.2, table 26-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PrimaryControls: u32 {
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        const TSC_OFFSETTING = 1 << 3;
        const HLT_EXITING = 1 << 7;
        const INVLPG_EXITING = 1 << 9;
        const MWAIT_EXITING = 1 << 10;
        const RDPMC_EXITING = 1 << 11;
        const RDTSC_EXITING = 1 << 12;
        const CR3_LOAD_EXITING = 1 << 15;
        const CR3_STORE_EXITING = 1 << 16;
        const TERTIARY = 1 << 17;
        const CR8_LOAD_EXITING = 1 << 19;
        const CR8_STORE_EXITING = 1 << 20;
        const TPR_SHADOW = 1 << 21;
        const NMI_WINDOW_EXITING = 1 << 22;
        const MOV_DR_EXITING = 1 << 23;
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        const IO_BITMAPS = 1 << 25;
        const MONITOR_TRAP = 1 << 27;
        const MSR_BITMAPS = 1 << 28;
        const MONITOR_EXITING = 1 << 29;
        const PAUSE_EXITING = 1 << 30;
        const SECONDARY = 1 << 31;
        const _ = !0;
    }

    /// Secondary processor-based VM-execution controls (SDM 3 26.6.2, table 26-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SecondaryControls: u32 {
        const VIRTUALIZE_APIC_ACCESSES = 1 << 0;
        const EPT = 1 << 1;
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        const RDTSCP = 1 << 3;
        const VIRTUALIZE_X2APIC = 1 << 4;
        const VPID = 1 << 5;
        const WBINVD_EXITING = 1 << 6;
        const UNRESTRICTED_GUEST = 1 << 7;
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        const PAUSE_LOOP_EXITING = 1 << 10;
        const RDRAND_EXITING = 1 << 11;
        const INVPCID = 1 << 12;
        const VMFUNC = 1 << 13;
        const RDSEED_EXITING = 1 << 16;
        const XSAVES = 1 << 20;
        const _ = !0;
    }

    /// Primary VM-exit controls (SDM 3 26.7.1, table 26-14).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        const SAVE_DEBUG = 1 << 2;
        const HOST_64_BIT = 1 << 9;
        const LOAD_PERF_GLOBAL = 1 << 12;
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        const SAVE_PAT = 1 << 18;
        const LOAD_PAT = 1 << 19;
        const SAVE_EFER = 1 << 20;
        const LOAD_EFER = 1 << 21;
        const SAVE_PREEMPTION_TIMER = 1 << 22;
        const _ = !0;
    }

    /// VM-entry controls (SDM 3 26.8.1, table 26-16).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        const LOAD_DEBUG = 1 << 2;
        const IA32E_GUEST = 1 << 9;
        const ENTRY_TO_SMM = 1 << 10;
        const DEACTIVATE_DUAL_MONITOR = 1 << 11;
        const LOAD_PERF_GLOBAL = 1 << 13;
        const LOAD_PAT = 1 << 14;
        const LOAD_EFER = 1 << 15;
        const _ = !0;
    }

    /// Guest interruptibility state (SDM 3 26.4.2, table 26-3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interruptibility: u32 {
        const STI = 1 << 0;
        const MOV_SS = 1 << 1;
        const SMI = 1 << 2;
        const NMI = 1 << 3;
        const ENCLAVE = 1 << 4;
        const _ = !0;
    }

    /// Guest pending debug exceptions (SDM 3 26.4.2, table 26-4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PendingDebug: u64 {
        const B0_TO_B3 = 0xf;
        const ENABLED_BREAKPOINT = 1 << 12;
        const SINGLE_STEP = 1 << 14;
        const RTM = 1 << 16;
        const _ = !0;
    }
}

/// Guest activity state "active" (SDM 3 26.4.2). The others are never entered: HLT always exits.
pub const ACTIVITY_ACTIVE: u32 = 0;

/// VM-instruction error numbers that a failing VM entry can leave (SDM 3 31.4, table 31-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionError(pub u32);

impl InstructionError {
    /// What the number means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self.0 {
            1 => "VMCALL in root operation",
            2 => "VMCLEAR with an invalid address",
            3 => "VMCLEAR with the VMXON pointer",
            4 => "VMLAUNCH with a VMCS that is not clear",
            5 => "VMRESUME with a VMCS that is not launched",
            6 => "VMRESUME after VMXOFF",
            7 => "VM entry with invalid control fields",
            8 => "VM entry with invalid host-state fields",
            9 => "VMPTRLD with an invalid address",
            10 => "VMPTRLD with the VMXON pointer",
            11 => "VMPTRLD with a wrong VMCS revision",
            12 => "VMREAD or VMWRITE of an unsupported field",
            13 => "VMWRITE to a read-only field",
            15 => "VMXON in root operation",
            26 => "VM entry with events blocked by MOV SS",
            28 => "INVEPT or INVVPID with an invalid operand",
            _ => "unknown VM-instruction error",
        }
    }
}
