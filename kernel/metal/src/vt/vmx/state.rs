//! Register access, saving and restoring: between the seam's structures, the VMCS and the live registers.

use core::fmt;

use arch::pmu::intel::DEBUGCTL_FREEZE_WHILE_SMM;
use arch::regs::{
    ControlRegisters, CpuState, Cr0, Cr4, DebugRegisters, DescriptorTable, Efer, Gpr, Paging,
    Rflags, Segment, SegmentAttributes, SegmentName, Segments, Shadow, SystemMsrs,
};
use arch::vmx::control::{ACTIVITY_ACTIVE, EntryControls, Interruptibility, PendingDebug};
use arch::vmx::entry_check::Snapshot;
use arch::vmx::event::{Injection, encode};
use arch::vmx::field::{self, Field16, Field32, Field64, FieldNatural, SegmentFields};

use super::capabilities;
use super::control::{self, Flush};
use super::live::{self, Registers};
use super::setup::{CR0_GUEST_OWNED, CR4_GUEST_OWNED};
use super::vcpu::Vcpu;
use crate::{fpu, x86};

/// Cache control in CR0: no guest switches the host's caches off.
const CACHE_CONTROL: u64 = Cr0::CD.union(Cr0::NW).bits();

/// VM-entry fields that deliver nothing.
const NO_INJECTION: Injection = Injection {
    info: 0,
    error_code: 0,
    instruction_length: 0,
};

const PDPTES: [Field64; 4] = [
    field::GUEST_PDPTE0,
    field::GUEST_PDPTE1,
    field::GUEST_PDPTE2,
    field::GUEST_PDPTE3,
];

impl Vcpu {
    #[inline]
    pub(super) fn store_rip(&mut self, rip: u64) {
        self.rip = rip;
        self.vmcs.set(field::GUEST_RIP, rip);
    }

    pub(super) fn store_rflags(&mut self, rflags: Rflags) {
        self.rflags = rflags;
        self.vmcs.set(field::GUEST_RFLAGS, rflags.bits());
    }

    /// CR0 as the guest reads it.
    pub(super) fn read_cr0(&self) -> Cr0 {
        self.read_paging().cr0
    }

    #[inline]
    fn read_efer(&self) -> Efer {
        Efer::from_bits_retain(self.vmcs.read(field::GUEST_EFER))
    }

    pub(super) fn in_64_bit_mode(&self) -> bool {
        self.read_attributes(SegmentName::Cs)
            .contains(SegmentAttributes::LONG)
            && self.read_efer().contains(Efer::LMA)
    }

    #[inline]
    pub(super) fn read_attributes(&self, name: SegmentName) -> SegmentAttributes {
        let attributes = self.vmcs.read(SegmentFields::of(name).attributes);
        SegmentAttributes::from_bits_retain(attributes)
    }

    pub(super) fn read_segment(&self, name: SegmentName) -> Segment {
        let fields = SegmentFields::of(name);
        Segment {
            selector: self.vmcs.read(fields.selector),
            base: self.vmcs.read(fields.base),
            limit: self.vmcs.read(fields.limit),
            attributes: self.read_attributes(name),
        }
    }

    fn write_segment(&self, name: SegmentName, segment: &Segment) {
        let fields = SegmentFields::of(name);
        self.vmcs.set(fields.selector, segment.selector);
        self.vmcs.set(fields.base, segment.base);
        self.vmcs.set(fields.limit, segment.limit);
        self.vmcs.set(fields.attributes, segment.attributes.bits());
    }

    fn read_segments(&self) -> Segments {
        Segments(SegmentName::ALL.map(|name| self.read_segment(name)))
    }

    /// See [`vmm::cpu::Vcpu::paging`]. All of it is in the VMCS.
    #[inline]
    pub(super) fn read_paging(&self) -> Paging {
        let vmcs = self.vmcs.current();
        let (cr0, cr0_shadow) = (vmcs.read(field::GUEST_CR0), vmcs.read(field::CR0_SHADOW));
        let (cr4, cr4_shadow) = (vmcs.read(field::GUEST_CR4), vmcs.read(field::CR4_SHADOW));
        let cr0 = cr0 & CR0_GUEST_OWNED | cr0_shadow & !CR0_GUEST_OWNED;
        let cr4 = cr4 & CR4_GUEST_OWNED | cr4_shadow & !CR4_GUEST_OWNED;
        Paging {
            cr0: Cr0::from_bits_retain(cr0),
            cr3: vmcs.read(field::GUEST_CR3),
            cr4: Cr4::from_bits_retain(cr4),
            efer: Efer::from_bits_retain(vmcs.read(field::GUEST_EFER)),
        }
    }

    /// See [`vmm::cpu::Vcpu::control`].
    pub(super) fn read_control(&self) -> ControlRegisters {
        self.own();
        let Paging {
            cr0,
            cr3,
            cr4,
            efer,
        } = self.read_paging();
        // Elsewhere they mean nothing (SDM 3 5.4.1).
        let pae = cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA);
        ControlRegisters {
            cr0,
            cr2: x86::cr2(),
            cr3,
            cr4,
            efer,
            xcr0: fpu::xcr0(),
            pdptes: if pae {
                PDPTES.map(|entry| self.vmcs.read(entry))
            } else {
                [0; 4]
            },
        }
    }

    /// See [`vmm::cpu::Vcpu::set_control`].
    pub(super) fn write_control(&mut self, control: &ControlRegisters) {
        self.own();
        // SAFETY: CR2 means nothing to the host but in a page fault, which ends it.
        unsafe { x86::set_cr2(control.cr2) };
        if control.xcr0 != fpu::xcr0() {
            fpu::set_xcr0(control.xcr0);
        }
        self.write_control_fields(control);
        self.flush_translations();
    }

    fn write_control_fields(&mut self, control: &ControlRegisters) {
        let cr0 = control.cr0.bits();
        let real_cr0 = (cr0 | self.capabilities.cr0_ones) & !CACHE_CONTROL;
        self.vmcs.set(field::GUEST_CR0, real_cr0);
        let cr4 = control.cr4.bits();
        self.vmcs
            .set(field::GUEST_CR4, cr4 | self.capabilities.cr4_ones);
        self.vmcs.set(field::GUEST_CR3, control.cr3);
        self.vmcs.set(field::GUEST_EFER, control.efer.bits());
        let mut entry = self.capabilities.entry;
        entry.set(EntryControls::IA32E_GUEST, control.efer.contains(Efer::LMA));
        // SAFETY: the shadows are only what the guest reads; the one entry control that changes is the
        // guest's mode, which the entry checks against EFER and CR0.
        unsafe {
            self.vmcs.write(field::CR0_SHADOW, cr0);
            self.vmcs.write(field::CR4_SHADOW, cr4);
            self.vmcs.write(field::ENTRY_CONTROLS, entry.bits());
        }
        for (entry, value) in PDPTES.into_iter().zip(control.pdptes) {
            self.vmcs.set(entry, value);
        }
    }

    /// Drops all translations of the guest's own tables. Without VPIDs every entry does.
    pub(super) fn flush_translations(&self) {
        if let Some(vpid) = self.vpid {
            if self.capabilities.ept_vpid.invvpid_single() {
                control::invvpid(Flush::Vpid(vpid));
            } else {
                control::invvpid(Flush::AllVpids);
            }
        }
    }

    /// Drops the translations of one page of the guest's own tables.
    pub(super) fn flush_page(&self, linear: u64) {
        let canonical = matches!(linear as i64 >> 47, 0 | -1);
        match self.vpid {
            Some(vpid) if canonical && self.capabilities.ept_vpid.invvpid_address() => {
                control::invvpid(Flush::Address { vpid, linear });
            }
            _ => self.flush_translations(),
        }
    }

    /// Bits of DEBUGCTL that are set under the guest and not shown to it.
    fn host_debugctl(&self) -> u64 {
        match self.lists {
            Some(_) => DEBUGCTL_FREEZE_WHILE_SMM,
            None => 0,
        }
    }

    /// See [`vmm::cpu::Vcpu::debug`].
    pub(super) fn read_debug(&self) -> DebugRegisters {
        self.own();
        DebugRegisters {
            dr: [x86::dr0(), x86::dr1(), x86::dr2(), x86::dr3()],
            dr6: x86::dr6(),
            dr7: self.vmcs.read(field::GUEST_DR7),
            debugctl: self.vmcs.read(field::GUEST_DEBUGCTL) & !self.host_debugctl(),
        }
    }

    /// See [`vmm::cpu::Vcpu::set_debug`].
    pub(super) fn write_debug(&mut self, debug: &DebugRegisters) {
        self.own();
        live::load_debug(&debug.dr, debug.dr6 & 0xffff_ffff);
        self.vmcs.set(field::GUEST_DR7, debug.dr7);
        self.vmcs
            .set(field::GUEST_DEBUGCTL, debug.debugctl | self.host_debugctl());
        self.align_single_step();
    }

    /// See [`vmm::cpu::Vcpu::msrs`].
    pub(super) fn read_msrs(&self) -> SystemMsrs {
        self.own();
        let mut msrs = SystemMsrs {
            sysenter_cs: u64::from(self.vmcs.read(field::GUEST_SYSENTER_CS)),
            sysenter_esp: self.vmcs.read(field::GUEST_SYSENTER_ESP),
            sysenter_eip: self.vmcs.read(field::GUEST_SYSENTER_EIP),
            pat: self.vmcs.read(field::GUEST_PAT),
            ..SystemMsrs::default()
        };
        live::capture_msrs(&mut msrs);
        msrs
    }

    /// See [`vmm::cpu::Vcpu::set_msrs`].
    pub(super) fn write_msrs(&mut self, msrs: &SystemMsrs) {
        self.own();
        live::load_msrs(msrs);
        self.write_msr_fields(msrs);
    }

    fn write_msr_fields(&self, msrs: &SystemMsrs) {
        self.vmcs
            .set(field::GUEST_SYSENTER_CS, msrs.sysenter_cs as u32);
        self.vmcs.set(field::GUEST_SYSENTER_ESP, msrs.sysenter_esp);
        self.vmcs.set(field::GUEST_SYSENTER_EIP, msrs.sysenter_eip);
        self.vmcs.set(field::GUEST_PAT, msrs.pat);
    }

    /// See [`vmm::cpu::Vcpu::save`].
    pub(super) fn copy_out(&mut self) -> CpuState {
        let blocked = self.interruptibility();
        let mut shadow = Shadow::empty();
        shadow.set(Shadow::STI, blocked.contains(Interruptibility::STI));
        shadow.set(Shadow::MOV_SS, blocked.contains(Interruptibility::MOV_SS));
        shadow.set(Shadow::NMI, blocked.contains(Interruptibility::NMI));
        let control = self.read_control();
        let mut xsave = arch::regs::XsaveArea::initial();
        fpu::save(&mut xsave);
        CpuState {
            gprs: self.frame.gprs,
            rip: self.rip,
            rflags: self.rflags,
            segments: self.read_segments(),
            gdtr: DescriptorTable {
                base: self.vmcs.read(field::GUEST_GDTR_BASE),
                limit: self.vmcs.read(field::GUEST_GDTR_LIMIT) as u16,
            },
            idtr: DescriptorTable {
                base: self.vmcs.read(field::GUEST_IDTR_BASE),
                limit: self.vmcs.read(field::GUEST_IDTR_LIMIT) as u16,
            },
            control,
            debug: self.read_debug(),
            msrs: self.read_msrs(),
            shadow,
            pending: self.pending,
            xsave,
            icount: self.icount,
        }
    }

    /// See [`vmm::cpu::Vcpu::restore`].
    pub(super) fn copy_in(&mut self, state: &CpuState) {
        let CpuState {
            gprs,
            rip,
            rflags,
            segments,
            gdtr,
            idtr,
            control,
            debug,
            msrs,
            shadow,
            pending,
            xsave: _, // with `live` below
            icount,
        } = state;
        let registers = Registers::of(state);
        self.refused = registers.refused();
        if self.refused.is_none() {
            self.own();
            registers.load();
        }
        self.frame.gprs = *gprs;
        self.loaded_rsp = gprs[Gpr::Rsp];
        self.vmcs.set(field::GUEST_RSP, gprs[Gpr::Rsp]);
        self.store_rip(*rip);
        self.pending = *pending;
        self.icount = *icount;
        self.store_rflags(*rflags);
        for name in SegmentName::ALL {
            self.write_segment(name, &segments[name]);
        }
        self.vmcs.set(field::GUEST_GDTR_BASE, gdtr.base);
        self.vmcs
            .set(field::GUEST_GDTR_LIMIT, u32::from(gdtr.limit));
        self.vmcs.set(field::GUEST_IDTR_BASE, idtr.base);
        self.vmcs
            .set(field::GUEST_IDTR_LIMIT, u32::from(idtr.limit));
        self.write_control_fields(control);
        self.write_msr_fields(msrs);
        self.vmcs.set(field::GUEST_DR7, debug.dr7);
        self.vmcs
            .set(field::GUEST_DEBUGCTL, debug.debugctl | self.host_debugctl());
        self.vmcs.set(field::GUEST_ACTIVITY, ACTIVITY_ACTIVE);
        self.vmcs.set(field::GUEST_PENDING_DEBUG, 0);
        let mut blocked = Interruptibility::empty();
        blocked.set(Interruptibility::STI, shadow.contains(Shadow::STI));
        blocked.set(Interruptibility::MOV_SS, shadow.contains(Shadow::MOV_SS));
        blocked.set(Interruptibility::NMI, shadow.contains(Shadow::NMI));
        self.set_interruptibility(blocked);
        self.align_single_step();
        self.flush_translations();
    }

    /// The fields that the processor checks at an entry.
    pub(super) fn entry_snapshot(&self) -> Snapshot {
        let vmcs = &self.vmcs;
        let capabilities = &self.capabilities;
        let injected = match self.pending {
            Some(event) => encode(event, self.read_cr0().contains(Cr0::PE)),
            None => NO_INJECTION,
        };
        Snapshot {
            entry_controls: EntryControls::from_bits_retain(vmcs.read(field::ENTRY_CONTROLS)),
            entry_info: injected.info,
            entry_error_code: injected.error_code,
            entry_instruction_length: injected.instruction_length,
            cr0: Cr0::from_bits_retain(vmcs.read(field::GUEST_CR0)),
            cr3: vmcs.read(field::GUEST_CR3),
            cr4: Cr4::from_bits_retain(vmcs.read(field::GUEST_CR4)),
            efer: self.read_efer(),
            pat: vmcs.read(field::GUEST_PAT),
            dr7: vmcs.read(field::GUEST_DR7),
            debugctl: vmcs.read(field::GUEST_DEBUGCTL),
            sysenter_esp: vmcs.read(field::GUEST_SYSENTER_ESP),
            sysenter_eip: vmcs.read(field::GUEST_SYSENTER_EIP),
            rip: self.rip,
            rflags: self.rflags,
            segments: self.read_segments(),
            gdtr_base: vmcs.read(field::GUEST_GDTR_BASE),
            gdtr_limit: vmcs.read(field::GUEST_GDTR_LIMIT),
            idtr_base: vmcs.read(field::GUEST_IDTR_BASE),
            idtr_limit: vmcs.read(field::GUEST_IDTR_LIMIT),
            interruptibility: self.interruptibility(),
            activity: vmcs.read(field::GUEST_ACTIVITY),
            pending_debug: PendingDebug::from_bits_retain(vmcs.read(field::GUEST_PENDING_DEBUG)),
            link_pointer: vmcs.read(field::VMCS_LINK_POINTER),
            pdptes: PDPTES.map(|entry| vmcs.read(entry)),
            cr0_fixed: (capabilities.cr0_ones, capabilities.cr0_allowed),
            cr4_fixed: (capabilities.cr4_ones, capabilities.cr4_allowed),
            physical_bits: capabilities::physical_bits(),
        }
    }

    /// See [`vmm::cpu::Vcpu::dump`].
    pub(super) fn write_dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(
            out,
            "VMCS: icount {} pending {:?} windows {:?}",
            self.icount, self.pending, self.windows
        )?;
        for (name, item) in Field16::ALL {
            writeln!(out, "  {name:<28} {:#06x}", self.vmcs.read(*item))?;
        }
        for (name, item) in Field32::ALL {
            writeln!(out, "  {name:<28} {:#010x}", self.vmcs.read(*item))?;
        }
        for (name, item) in Field64::ALL {
            writeln!(out, "  {name:<28} {:#018x}", self.vmcs.read(*item))?;
        }
        for (name, item) in FieldNatural::ALL {
            writeln!(out, "  {name:<28} {:#018x}", self.vmcs.read(*item))?;
        }
        Ok(())
    }
}
