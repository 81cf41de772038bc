//! A new VMCS's controls and host state: what does not change while the guest lives (SDM 3 26.5 – 26.8).

use arch::addr::Hpa;
use arch::event::vector;
use arch::msr;
use arch::regs::{Cr0, Cr4};
use arch::vmx::capability::Capabilities;
use arch::vmx::field;
use x86_64::instructions::tables::sidt;

use super::control::Vmcs;
use super::entry;
use crate::{gdt, x86};

/// Bits of CR0 that a guest changes without an exit: the others decide modes, or must keep their value for
/// VMX operation.
pub(super) const CR0_GUEST_OWNED: u64 = Cr0::MP
    .union(Cr0::EM)
    .union(Cr0::TS)
    .union(Cr0::WP)
    .union(Cr0::AM)
    .bits();

/// Bits of CR4 that a guest changes without an exit.
pub(super) const CR4_GUEST_OWNED: u64 = Cr4::TSD.union(Cr4::DE).union(Cr4::PGE).bits();

/// #DB and #AC are intercepted because a guest can make them recur for ever during their own delivery
/// (CVE-2015-5307, CVE-2015-8104); #MC because it concerns the host.
pub(super) const INTERCEPTED_EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;

/// The frames and tags of one virtual processor.
pub(super) struct Resources {
    /// EPT pointer.
    pub(super) ept_pointer: u64,
    /// MSR bitmap.
    pub(super) msr_bitmap: Hpa,
    /// Virtual-processor identifier, where there is one.
    pub(super) vpid: Option<u16>,
}

/// Writes every control and host-state field that is in use.
pub(super) fn write(vmcs: &Vmcs, capabilities: &Capabilities, resources: &Resources) {
    controls(vmcs, capabilities, resources);
    host_registers(vmcs);
    host_segments(vmcs);
}

fn controls(vmcs: &Vmcs, capabilities: &Capabilities, resources: &Resources) {
    // SAFETY: the controls are those chosen for this processor; tables and bitmap belong to this guest; no
    // MSR areas are used.
    unsafe {
        vmcs.write(field::PIN_BASED_CONTROLS, capabilities.pin.bits());
        vmcs.write(field::PRIMARY_CONTROLS, capabilities.primary.bits());
        vmcs.write(field::SECONDARY_CONTROLS, capabilities.secondary.bits());
        vmcs.write(field::EXIT_CONTROLS, capabilities.exit.bits());
        vmcs.write(field::ENTRY_CONTROLS, capabilities.entry.bits());
        vmcs.write(field::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS);
        vmcs.write(field::PAGE_FAULT_ERROR_CODE_MASK, 0);
        vmcs.write(field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
        vmcs.write(field::CR3_TARGET_COUNT, 0);
        vmcs.write(field::EXIT_MSR_STORE_COUNT, 0);
        vmcs.write(field::EXIT_MSR_LOAD_COUNT, 0);
        vmcs.write(field::ENTRY_MSR_LOAD_COUNT, 0);
        vmcs.write(field::ENTRY_INTERRUPTION_INFO, 0);
        vmcs.write(field::MSR_BITMAP, resources.msr_bitmap.0);
        vmcs.write(field::EPT_POINTER, resources.ept_pointer);
        if let Some(vpid) = resources.vpid {
            vmcs.write(field::VPID, vpid);
        }
        vmcs.write(field::CR0_MASK, !CR0_GUEST_OWNED);
        vmcs.write(field::CR4_MASK, !CR4_GUEST_OWNED);
    }
    vmcs.set(field::VMCS_LINK_POINTER, u64::MAX);
}

fn host_registers(vmcs: &Vmcs) {
    // SAFETY: the values are the ones in use now, and none of them changes later; RIP is the other half of
    // `entry::enter`, which sets RSP itself. The MSRs exist on every processor with VMX.
    unsafe {
        vmcs.write(field::HOST_CR0, x86::cr0());
        vmcs.write(field::HOST_CR3, x86::cr3());
        vmcs.write(field::HOST_CR4, x86::cr4());
        vmcs.write(field::HOST_EFER, x86::rdmsr(msr::EFER));
        vmcs.write(field::HOST_PAT, x86::rdmsr(msr::PAT));
        vmcs.write(field::HOST_SYSENTER_CS, 0);
        vmcs.write(field::HOST_SYSENTER_ESP, 0);
        vmcs.write(field::HOST_SYSENTER_EIP, 0);
        vmcs.write(field::HOST_RIP, entry::landing as *const () as u64);
    }
}

fn host_segments(vmcs: &Vmcs) {
    let (gdt_base, task_base) = gdt::bases();
    let selectors = gdt::selectors().expect("the GDT is loaded before any guest is made");
    // SAFETY: the tables and selectors are the ones loaded at start, which stay for good.
    unsafe {
        vmcs.write(field::HOST_CS_SELECTOR, selectors.code.0);
        vmcs.write(field::HOST_SS_SELECTOR, selectors.data.0);
        vmcs.write(field::HOST_DS_SELECTOR, selectors.data.0);
        vmcs.write(field::HOST_ES_SELECTOR, selectors.data.0);
        vmcs.write(field::HOST_FS_SELECTOR, 0);
        vmcs.write(field::HOST_GS_SELECTOR, 0);
        vmcs.write(field::HOST_TR_SELECTOR, selectors.task.0);
        vmcs.write(field::HOST_FS_BASE, x86::rdmsr(msr::FS_BASE));
        vmcs.write(field::HOST_GS_BASE, x86::rdmsr(msr::GS_BASE));
        vmcs.write(field::HOST_TR_BASE, task_base);
        vmcs.write(field::HOST_GDTR_BASE, gdt_base);
        vmcs.write(field::HOST_IDTR_BASE, sidt().base.as_u64());
    }
}
