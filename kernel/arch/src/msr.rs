//! Numbers of model-specific registers (SDM 4, APM 2 appendix A).

#![allow(missing_docs)] // the names are the manuals'

pub const TSC: u32 = 0x10;
pub const APIC_BASE: u32 = 0x1b;
pub const TSC_ADJUST: u32 = 0x3b;
pub const FEATURE_CONTROL: u32 = 0x3a;
pub const BIOS_SIGN_ID: u32 = 0x8b;
pub const MTRRCAP: u32 = 0xfe;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const DEBUGCTL: u32 = 0x1d9;
pub const PAT: u32 = 0x277;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_BASE: u32 = 0x800;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
/// Interrupt Pending and CMP-Halt (AMD, BKDG for family 10h, MSRC001_0055).
pub const AMD_INTERRUPT_PENDING: u32 = 0xc001_0055;
pub const VM_CR: u32 = 0xc001_0114;
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
