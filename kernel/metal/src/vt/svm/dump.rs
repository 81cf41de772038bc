//! The control block as text.

use core::fmt::{Result, Write};

use arch::svm::vmcb::{ControlArea, SaveArea};

use super::vcpu::Vcpu;

impl Vcpu {
    /// Writes what matters when a guest was stopped.
    pub(super) fn dump_block(&self, out: &mut dyn Write) -> Result {
        let ControlArea {
            intercept_cr_reads,
            intercept_cr_writes,
            intercept_exceptions,
            intercepts_1,
            intercepts_2,
            intercepts_3,
            asid,
            tlb_control,
            interrupt_control,
            interrupt_state,
            exit_code,
            exit_info_1,
            exit_info_2,
            exit_interrupt_info,
            event_injection,
            nested_cr3,
            clean_bits,
            next_rip,
            ..
        } = &self.vmcb.control;
        writeln!(
            out,
            "exit {exit_code:#x} info {exit_info_1:#x} {exit_info_2:#x} cut off {exit_interrupt_info:#x} next rip {next_rip:#x}"
        )?;
        writeln!(
            out,
            "intercepts cr r {intercept_cr_reads:#x} w {intercept_cr_writes:#x} exceptions {intercept_exceptions:#x} instructions {:#x} {:#x} {:#x}",
            intercepts_1.bits(),
            intercepts_2.bits(),
            intercepts_3.bits()
        )?;
        writeln!(
            out,
            "inject {event_injection:#x} virtual interrupt {:#x} shadow {:#x} asid {asid} flush {} clean {:#x} ncr3 {nested_cr3:#x}",
            interrupt_control.bits(),
            interrupt_state.bits(),
            tlb_control.0,
            clean_bits.bits()
        )?;
        writeln!(out, "events {:?}", self.events)?;
        dump_save(&self.vmcb.save, out)
    }
}

fn dump_save(save: &SaveArea, out: &mut dyn Write) -> Result {
    let segments = [
        ("es", &save.es),
        ("cs", &save.cs),
        ("ss", &save.ss),
        ("ds", &save.ds),
        ("fs", &save.fs),
        ("gs", &save.gs),
        ("ldtr", &save.ldtr),
        ("tr", &save.tr),
        ("gdtr", &save.gdtr),
        ("idtr", &save.idtr),
    ];
    for (name, segment) in segments {
        writeln!(
            out,
            "{name:4} {:04x} base {:016x} limit {:08x} attributes {:03x}",
            segment.selector, segment.base, segment.limit, segment.attributes
        )?;
    }
    writeln!(
        out,
        "rip {:#x} rsp {:#x} rax {:#x} rflags {:#x} cpl {}",
        save.rip, save.rsp, save.rax, save.rflags, save.cpl
    )?;
    writeln!(
        out,
        "cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} dr6 {:#x} dr7 {:#x} pat {:#x}",
        save.cr0, save.cr2, save.cr3, save.cr4, save.efer, save.dr6, save.dr7, save.pat
    )
}
