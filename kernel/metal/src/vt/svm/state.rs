//! The guest's registers: in the control block, in the entry block, or live in the processor.

use arch::regs::{
    ControlRegisters, CpuState, Cr0, Cr4, DebugRegisters, Efer, Gpr, Paging, Rflags, Segment,
    SegmentAttributes, SegmentName, Segments, Shadow, SystemMsrs, Xcr0,
};
use arch::svm::control::{CleanBits, InterruptState};
use arch::svm::vmcb::VmcbSegment;

use super::event::Nmi;
use super::exit::DR6_NEUTRAL;
use super::vcpu::Vcpu;

/// A TSS that is in use; the processor does not always show it in the block.
const TSS_BUSY: u32 = 2;

impl Vcpu {
    #[inline]
    pub(super) fn vmcb_segment(&self, name: SegmentName) -> &VmcbSegment {
        let save = &self.vmcb.save;
        match name {
            SegmentName::Es => &save.es,
            SegmentName::Cs => &save.cs,
            SegmentName::Ss => &save.ss,
            SegmentName::Ds => &save.ds,
            SegmentName::Fs => &save.fs,
            SegmentName::Gs => &save.gs,
            SegmentName::Ldtr => &save.ldtr,
            SegmentName::Tr => &save.tr,
        }
    }

    fn vmcb_segment_mut(&mut self, name: SegmentName) -> &mut VmcbSegment {
        self.vmcb.changed(CleanBits::SEGMENTS);
        let save = &mut self.vmcb.save;
        match name {
            SegmentName::Es => &mut save.es,
            SegmentName::Cs => &mut save.cs,
            SegmentName::Ss => &mut save.ss,
            SegmentName::Ds => &mut save.ds,
            SegmentName::Fs => &mut save.fs,
            SegmentName::Gs => &mut save.gs,
            SegmentName::Ldtr => &mut save.ldtr,
            SegmentName::Tr => &mut save.tr,
        }
    }

    pub(super) fn segment_of(&self, name: SegmentName) -> Segment {
        Segment {
            attributes: self.attributes_of(name),
            ..Segment::from(*self.vmcb_segment(name))
        }
    }

    #[inline]
    pub(super) fn attributes_of(&self, name: SegmentName) -> SegmentAttributes {
        let bits = Segment::from(*self.vmcb_segment(name)).attributes.bits();
        SegmentAttributes::from_bits_retain(match name {
            // SYSRET leaves SS.DPL alone (APM 2 4.7.1): the privilege level has its own field.
            SegmentName::Ss => {
                bits & !SegmentAttributes::DPL.bits() | u32::from(self.vmcb.save.cpl & 3) << 5
            }
            SegmentName::Tr => bits | TSS_BUSY,
            _ => bits,
        })
    }

    pub(super) fn set_base_of(&mut self, name: SegmentName, base: u64) {
        self.vmcb_segment_mut(name).base = base;
    }

    #[inline]
    pub(super) fn paging_registers(&self) -> Paging {
        let save = &self.vmcb.save;
        let mut efer = Efer::from_bits_retain(save.efer) - Efer::SVME;
        efer.set(Efer::LME, efer.contains(Efer::LME) || self.hidden_lme);
        Paging {
            cr0: Cr0::from_bits_retain(save.cr0),
            cr3: save.cr3,
            cr4: Cr4::from_bits_retain(save.cr4),
            efer,
        }
    }

    pub(super) fn control_registers(&self) -> ControlRegisters {
        let Paging {
            cr0,
            cr3,
            cr4,
            efer,
        } = self.paging_registers();
        ControlRegisters {
            cr0,
            cr2: self.vmcb.save.cr2,
            cr3,
            cr4,
            efer,
            xcr0: self.live.xcr0(),
            pdptes: [0; 4],
        }
    }

    pub(super) fn set_control_registers(&mut self, control: &ControlRegisters) {
        let ControlRegisters {
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            xcr0,
            // The processor reads them on demand (APM 2 15.25.10).
            pdptes: _,
        } = *control;
        // QEMU sets the host's CR0 before its CR4 at an exit, and takes the guest's LME and PAE for the host's
        // meanwhile: with LME and without PAE it leaves the host without paging. Until both are there and
        // paging is on, LME changes nothing, and writes of CR0.PG, CR4 and EFER all come by here.
        self.hidden_lme =
            efer.contains(Efer::LME) && !cr4.contains(Cr4::PAE) && !cr0.contains(Cr0::PG);
        let mut efer = efer | Efer::SVME;
        efer.set(Efer::LME, efer.contains(Efer::LME) && !self.hidden_lme);
        let save = &mut self.vmcb.save;
        save.cr2 = cr2;
        let translation_changes =
            (save.cr0, save.cr3, save.cr4, save.efer) != (cr0.bits(), cr3, cr4.bits(), efer.bits());
        if translation_changes {
            save.cr0 = cr0.bits();
            save.cr3 = cr3;
            save.cr4 = cr4.bits();
            save.efer = efer.bits();
            self.flush_translations();
            self.must_check();
        }
        self.vmcb
            .changed(CleanBits::CONTROL_REGISTERS | CleanBits::CR2);
        if self.live.xcr0() != xcr0 {
            self.live.set_xcr0(xcr0);
        }
    }

    pub(super) fn debug_registers(&self) -> DebugRegisters {
        DebugRegisters {
            dr: self.live.breakpoints(),
            dr6: self.dr6,
            dr7: self.vmcb.save.dr7,
            debugctl: self.vmcb.save.debugctl,
        }
    }

    pub(super) fn set_debug_registers(&mut self, debug: &DebugRegisters) {
        let DebugRegisters {
            dr,
            dr6,
            dr7,
            debugctl,
        } = *debug;
        self.live.set_breakpoints(dr);
        self.dr6 = dr6;
        self.vmcb.save.dr7 = dr7;
        // Without last-branch virtualization it has no effect; it is what the guest reads back.
        self.vmcb.save.debugctl = debugctl;
        self.vmcb
            .changed(CleanBits::DEBUG_REGISTERS | CleanBits::LAST_BRANCH);
        self.must_check();
    }

    pub(super) fn system_msrs(&self) -> SystemMsrs {
        let save = &self.vmcb.save;
        SystemMsrs {
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter_cs: save.sysenter_cs,
            sysenter_esp: save.sysenter_esp,
            sysenter_eip: save.sysenter_eip,
            pat: save.pat,
        }
    }

    pub(super) fn set_system_msrs(&mut self, msrs: &SystemMsrs) {
        let SystemMsrs {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            pat,
        } = *msrs;
        let save = &mut self.vmcb.save;
        save.star = star;
        save.lstar = lstar;
        save.cstar = cstar;
        save.sfmask = sfmask;
        save.kernel_gs_base = kernel_gs_base;
        save.sysenter_cs = sysenter_cs;
        save.sysenter_esp = sysenter_esp;
        save.sysenter_eip = sysenter_eip;
        if save.pat != pat {
            save.pat = pat;
            self.vmcb.changed(CleanBits::NESTED_PAGING);
            self.must_check();
        }
    }

    fn shadow(&self) -> Shadow {
        let mut shadow = Shadow::empty();
        // SVM does not tell STI's from that of MOV SS, nor need it: they end at the same place.
        shadow.set(Shadow::STI, self.in_shadow());
        shadow.set(Shadow::NMI, self.events.nmi != Nmi::Open);
        shadow
    }

    pub(super) fn save_state(&mut self) -> CpuState {
        let (xsave, xcr0, dr) = self.live.save();
        let save = &self.vmcb.save;
        CpuState {
            gprs: self.block.gprs,
            rip: save.rip,
            rflags: Rflags::from_bits_retain(save.rflags),
            segments: Segments(SegmentName::ALL.map(|name| self.segment_of(name))),
            gdtr: save.gdtr.into(),
            idtr: save.idtr.into(),
            control: ControlRegisters {
                xcr0,
                ..self.control_registers()
            },
            debug: DebugRegisters {
                dr,
                ..self.debug_registers()
            },
            msrs: self.system_msrs(),
            shadow: self.shadow(),
            pending: self.events.pending,
            xsave,
            icount: self.icount,
        }
    }

    pub(super) fn restore_state(&mut self, state: &CpuState) {
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
            xsave,
            icount,
        } = state;
        self.block.gprs = *gprs;
        for name in SegmentName::ALL {
            *self.vmcb_segment_mut(name) = segments[name].into();
        }
        let save = &mut self.vmcb.save;
        save.rip = *rip;
        save.rflags = rflags.bits();
        save.rax = gprs[Gpr::Rax];
        save.rsp = gprs[Gpr::Rsp];
        save.gdtr = (*gdtr).into();
        save.idtr = (*idtr).into();
        save.dr6 = DR6_NEUTRAL;
        save.cpl = if !control.cr0.contains(Cr0::PE) {
            0
        } else if rflags.contains(Rflags::VM) {
            3
        } else {
            segments[SegmentName::Ss].dpl()
        };
        self.live.restore(xsave, control.xcr0, debug.dr);
        self.set_control_registers(control);
        self.set_debug_registers(debug);
        self.set_system_msrs(msrs);
        self.vmcb.control.interrupt_state = InterruptState::empty();
        self.vmcb.control.interrupt_state.set(
            InterruptState::SHADOW,
            shadow.intersects(Shadow::STI | Shadow::MOV_SS),
        );
        self.events.pending = *pending;
        self.set_nmi(if shadow.contains(Shadow::NMI) {
            Nmi::Blocked
        } else {
            Nmi::Open
        });
        self.icount = *icount;
        self.length = 0;
        self.block.tsc_exit = 0;
        self.vmcb.control.clean_bits = CleanBits::empty();
        self.flush_translations();
        self.must_check();
    }

    /// XCR0 as the checks before an entry judge it.
    pub(super) fn refused_xcr0(&self) -> Option<&'static str> {
        let xcr0 = self.live.xcr0();
        let offered = crate::fpu::supported() | Xcr0::X87;
        let valid = offered.contains(xcr0)
            && xcr0.contains(Xcr0::X87)
            && (xcr0.contains(Xcr0::SSE) || !xcr0.contains(Xcr0::AVX));
        (!valid && !self.live.is_loaded()).then_some("APM 2 11.5.2: XCR0 is no valid combination")
    }
}
