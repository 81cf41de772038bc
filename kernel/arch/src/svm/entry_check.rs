//! The checks that VMRUN makes on a guest's state (APM 2 15.5.1), so that a refused state can be named, and
//! a few more for combinations that VMRUN lets pass but that are no state of the architecture.

use super::vmcb::Vmcb;
use crate::event::{Event, EventKind, vector};
use crate::regs::{Cr0, Cr4, Efer, Rflags};

/// What the checks need to know of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Bits of CR4 that it has.
    pub cr4: u64,
    /// Bits of EFER that it has.
    pub efer: u64,
    /// Width of a physical address in bits.
    pub physical_bits: u8,
    /// Number of address-space identifiers.
    pub asids: u32,
}

const CODE_LONG: u16 = 1 << 9;
const CODE_BIG: u16 = 1 << 10;

/// Names the first check that `vmcb` violates, or finds nothing.
#[must_use]
pub fn check(vmcb: &Vmcb, processor: &Processor) -> Option<&'static str> {
    control_area(vmcb, processor)
        .or_else(|| registers(vmcb, processor))
        .or_else(|| modes(vmcb))
        .or_else(|| memory_types(vmcb.save.pat))
}

fn control_area(vmcb: &Vmcb, processor: &Processor) -> Option<&'static str> {
    let control = &vmcb.control;
    let limit = 1u64 << processor.physical_bits.min(63);
    let outside = |base: u64, bytes: u64| base.saturating_add(bytes) > limit;
    if control.intercepts_2.bits() & 1 == 0 {
        Some("APM 2 15.5.1: VMRUN is not intercepted")
    } else if control.asid == 0 {
        Some("APM 2 15.5.1: the ASID is zero")
    } else if control.asid >= processor.asids {
        Some("APM 2 15.5.1: the ASID is beyond what the processor has")
    } else if outside(control.io_permission_map, 3 * 4096) {
        Some("APM 2 15.5.1: the I/O permission map lies beyond the physical address space")
    } else if outside(control.msr_permission_map, 2 * 4096) {
        Some("APM 2 15.5.1: the MSR permission map lies beyond the physical address space")
    } else {
        None
    }
}

fn registers(vmcb: &Vmcb, processor: &Processor) -> Option<&'static str> {
    let save = &vmcb.save;
    let cr0 = Cr0::from_bits_retain(save.cr0);
    let efer = Efer::from_bits_retain(save.efer);
    let physical = (1u64 << processor.physical_bits.min(63)) - 1;
    if !efer.contains(Efer::SVME) {
        Some("APM 2 15.5.1: EFER.SVME is zero")
    } else if !cr0.contains(Cr0::CD) && cr0.contains(Cr0::NW) {
        Some("APM 2 15.5.1: CR0.CD is zero and CR0.NW is set")
    } else if save.cr0 >> 32 != 0 {
        Some("APM 2 15.5.1: CR0[63:32] are not zero")
    } else if efer.contains(Efer::LMA) && save.cr3 & !physical != 0 {
        Some("APM 2 15.5.1: a must-be-zero bit of CR3 is set")
    } else if save.cr4 & !processor.cr4 != 0 {
        Some("APM 2 15.5.1: a must-be-zero bit of CR4 is set")
    } else if save.dr6 >> 32 != 0 {
        Some("APM 2 15.5.1: DR6[63:32] are not zero")
    } else if save.dr7 >> 32 != 0 {
        Some("APM 2 15.5.1: DR7[63:32] are not zero")
    } else if save.efer & !processor.efer & !Efer::SVME.bits() != 0 {
        Some("APM 2 15.5.1: a must-be-zero bit of EFER is set")
    } else {
        None
    }
}

fn modes(vmcb: &Vmcb) -> Option<&'static str> {
    let save = &vmcb.save;
    let cr0 = Cr0::from_bits_retain(save.cr0);
    let cr4 = Cr4::from_bits_retain(save.cr4);
    let efer = Efer::from_bits_retain(save.efer);
    let flags = Rflags::from_bits_retain(save.rflags);
    let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
    if long && !cr4.contains(Cr4::PAE) {
        Some("APM 2 15.5.1: EFER.LME and CR0.PG are set and CR4.PAE is zero")
    } else if long && !cr0.contains(Cr0::PE) {
        Some("APM 2 15.5.1: EFER.LME and CR0.PG are set and CR0.PE is zero")
    } else if long && save.cs.attributes & (CODE_LONG | CODE_BIG) == CODE_LONG | CODE_BIG {
        Some("APM 2 15.5.1: EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are all set")
    } else if cr4.contains(Cr4::CET) && !cr0.contains(Cr0::WP) {
        Some("APM 2 15.5.1: CR4.CET is set and CR0.WP is zero")
    } else if cr0.contains(Cr0::PG) && !cr0.contains(Cr0::PE) {
        Some("APM 2 3.1.1: CR0.PG is set and CR0.PE is zero")
    } else if efer.contains(Efer::LMA) != long {
        Some("APM 2 14.6.2: EFER.LMA is not EFER.LME and CR0.PG")
    } else if !flags.contains(Rflags::FIXED) {
        Some("APM 2 3.1.6: RFLAGS bit 1 is zero")
    } else if flags.contains(Rflags::VM) && (long || !cr0.contains(Cr0::PE)) {
        Some("APM 2 3.1.6: RFLAGS.VM is set outside of legacy protected mode")
    } else {
        None
    }
}

/// With nested paging VMRUN refuses a PAT with a type that does not exist (APM 2 15.25.4).
fn memory_types(pat: u64) -> Option<&'static str> {
    let valid = pat
        .to_le_bytes()
        .iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7));
    (!valid).then_some("APM 2 15.25.4: a field of the guest's PAT holds no memory type")
}

/// Names what makes VMRUN refuse to inject `event` (APM 2 15.20).
#[must_use]
pub const fn check_event(event: Event) -> Option<&'static str> {
    match event.kind {
        EventKind::Exception if event.vector == vector::NMI || event.vector >= 31 => {
            Some("APM 2 15.20: the injected exception has a vector that is no exception")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::CpuState;
    use crate::svm::vmcb::VmcbSegment;

    const PROCESSOR: Processor = Processor {
        cr4: 0x00f0_0fff,
        efer: 0x0d01,
        physical_bits: 40,
        asids: 16,
    };

    fn valid() -> Vmcb {
        let mut vmcb = Vmcb::zeroed();
        let state = CpuState::real_mode(0x7c00);
        vmcb.control.intercepts_2 = crate::svm::control::Intercepts2::VMRUN;
        vmcb.control.asid = 1;
        vmcb.save.cs = VmcbSegment::from(state.segments.0[1]);
        vmcb.save.cr0 = state.control.cr0.bits();
        vmcb.save.efer = Efer::SVME.bits();
        vmcb.save.dr6 = state.debug.dr6;
        vmcb.save.dr7 = state.debug.dr7;
        vmcb.save.rflags = state.rflags.bits();
        vmcb.save.pat = state.msrs.pat;
        vmcb
    }

    fn reason(change: impl FnOnce(&mut Vmcb)) -> &'static str {
        let mut vmcb = valid();
        change(&mut vmcb);
        check(&vmcb, &PROCESSOR).unwrap_or("nothing")
    }

    fn make_long(vmcb: &mut Vmcb) {
        vmcb.save.cr0 = 0x8000_0011;
        vmcb.save.cr4 = Cr4::PAE.bits();
        vmcb.save.efer = 0x1d00;
        vmcb.save.cs.attributes = 0xa9b;
    }

    #[test]
    fn valid_states_pass() {
        assert_eq!(reason(|_| ()), "nothing");
        assert_eq!(reason(make_long), "nothing");
    }

    #[test]
    fn control_area_checks_are_named() {
        assert!(reason(|v| v.control.asid = 0).ends_with("ASID is zero"));
        assert!(reason(|v| v.control.asid = 16).contains("beyond what the processor has"));
        assert!(
            reason(|v| v.control.intercepts_2 = crate::svm::control::Intercepts2::empty())
                .contains("VMRUN")
        );
        assert!(reason(|v| v.control.io_permission_map = (1 << 40) - 0x2000).contains("I/O"));
        assert!(reason(|v| v.control.msr_permission_map = u64::MAX).contains("MSR"));
    }

    #[test]
    fn register_checks_are_named() {
        assert!(reason(|v| v.save.efer = 0).contains("SVME"));
        assert!(reason(|v| v.save.cr0 |= Cr0::NW.bits()).contains("CR0.NW"));
        assert!(reason(|v| v.save.cr0 |= 1 << 32).contains("CR0[63:32]"));
        assert!(reason(|v| v.save.cr4 = 1 << 13).contains("CR4"));
        assert!(reason(|v| v.save.dr6 |= 1 << 40).contains("DR6"));
        assert!(reason(|v| v.save.dr7 |= 1 << 40).contains("DR7"));
        assert!(reason(|v| v.save.efer |= 1 << 2).contains("EFER"));
        assert!(
            reason(|v| {
                make_long(v);
                v.save.cr3 = 1 << 40;
            })
            .contains("CR3")
        );
    }

    #[test]
    fn mode_checks_are_named() {
        let long = |change: fn(&mut Vmcb)| {
            reason(|v| {
                make_long(v);
                change(v);
            })
        };
        assert!(long(|v| v.save.cr4 = 0).contains("CR4.PAE"));
        assert!(long(|v| v.save.cr0 = 0x8000_0010).contains("CR0.PE"));
        assert!(long(|v| v.save.cs.attributes |= CODE_BIG).contains("CS.D"));
        assert!(long(|v| v.save.efer = 0x1900).contains("EFER.LMA"));
        assert!(long(|v| v.save.rflags = 0).contains("bit 1"));
        assert!(long(|v| v.save.rflags |= Rflags::VM.bits()).contains("RFLAGS.VM"));
        assert!(reason(|v| v.save.cr0 = 0x8000_0010).contains("CR0.PG"));
    }

    #[test]
    fn memory_types_and_injection_are_checked() {
        assert!(reason(|v| v.save.pat = 2).contains("PAT"));
        assert_eq!(reason(|v| v.save.pat = 0x0007_0605_0401_0007), "nothing");
        let refused = |number| check_event(Event::exception(number)).is_some();
        assert!(refused(vector::NMI) && refused(31) && refused(0xff));
        assert!(!refused(vector::DE) && !refused(30));
        assert_eq!(check_event(Event::interrupt(0xff)), None);
        assert_eq!(check_event(Event::nmi()), None);
    }
}
