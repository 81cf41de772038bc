//! RDMSR and WRMSR. An unknown MSR is #GP(0), as on a processor that does not have it.

use arch::event::Event;
use arch::msr;
use arch::regs::{Cr0, Efer, Gpr, SegmentName};

use super::{Next, edx_eax, is_canonical, set_edx_eax};
use crate::cpu::Vcpu;
use crate::host::Host;
use crate::machine::Machine;
use crate::nondet::Question;

const GP: Next = Next::Inject(Event::general_protection());

/// IA32_MISC_ENABLE: fast strings; no branch trace store, no PEBS (SDM 4, table 2-2).
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;

/// Unknown MSRs that are noted in the log; all are counted.
const NOTED_UNKNOWN: u64 = 8;

pub(crate) fn read<V: Vcpu>(machine: &mut Machine<V>, host: &mut impl Host) -> Next {
    let number = machine.vcpu.gprs()[Gpr::Rcx] as u32;
    let value = match number {
        msr::TSC => machine.door.take(host, Question::TimeStamp),
        msr::TSC_ADJUST => machine.door.time_stamp_offset(),
        msr::TSC_AUX => u64::from(machine.tsc_aux),
        msr::EFER => machine.vcpu.control().efer.bits(),
        // No microcode is loaded that a guest could ask about.
        msr::BIOS_SIGN_ID => 0,
        msr::FS_BASE => machine.vcpu.segment_base(SegmentName::Fs),
        msr::GS_BASE => machine.vcpu.segment_base(SegmentName::Gs),
        msr::DEBUGCTL => 0,
        // Kernels read these without asking CPUID first, Linux before it can handle a fault.
        msr::MISC_ENABLE if !machine.profile.is_amd() => MISC_ENABLE,
        msr::AMD_INTERRUPT_PENDING if machine.profile.is_amd() => 0,
        _ if machine.board.has_msr(number) => {
            match machine.board.read_msr(host, &mut machine.door, number) {
                Ok(value) => value,
                Err(_) => return GP,
            }
        }
        _ => match system(&mut machine.vcpu.msrs(), number) {
            Some(value) => *value,
            None => return unknown(machine, "read", number),
        },
    };
    set_edx_eax(machine.vcpu.gprs_mut(), value);
    Next::Retire
}

pub(crate) fn write<V: Vcpu>(machine: &mut Machine<V>, host: &mut impl Host) -> Next {
    let number = machine.vcpu.gprs()[Gpr::Rcx] as u32;
    let value = edx_eax(machine.vcpu.gprs());
    let accepted = match number {
        msr::TSC => {
            let offset = machine.door.set_time_stamp(host, value);
            machine.board.set_tsc_offset(machine.door.last(), offset);
            true
        }
        msr::TSC_ADJUST => {
            machine.door.set_time_stamp_offset(value);
            machine.board.set_tsc_offset(machine.door.last(), value);
            true
        }
        msr::TSC_AUX => u32::try_from(value)
            .map(|aux| machine.tsc_aux = aux)
            .is_ok(),
        msr::EFER => return write_efer(machine, value),
        // Writing zero precedes asking for the revision; updates are not for guests.
        msr::BIOS_SIGN_ID => true,
        msr::FS_BASE if is_canonical(value) => {
            machine.vcpu.set_segment_base(SegmentName::Fs, value);
            true
        }
        msr::GS_BASE if is_canonical(value) => {
            machine.vcpu.set_segment_base(SegmentName::Gs, value);
            true
        }
        // Branch tracing is not offered; switching it off is allowed.
        msr::DEBUGCTL => value == 0,
        // Nothing in it can be switched.
        msr::MISC_ENABLE if !machine.profile.is_amd() => true,
        _ if machine.board.has_msr(number) => machine
            .board
            .write_msr(host, &mut machine.door, number, value)
            .is_ok(),
        _ => {
            let mut msrs = machine.vcpu.msrs();
            let Some(place) = system(&mut msrs, number) else {
                return unknown(machine, "write", number);
            };
            *place = value;
            let valid = valid_system(number, value);
            if valid {
                machine.vcpu.set_msrs(&msrs);
            }
            valid
        }
    };
    if accepted { Next::Retire } else { GP }
}

fn unknown<V: Vcpu>(machine: &mut Machine<V>, what: &str, number: u32) -> Next {
    machine.unknown_msrs = machine.unknown_msrs.saturating_add(1);
    if machine.unknown_msrs <= NOTED_UNKNOWN {
        log::debug!("vm {}: {what} of unknown MSR {number:#x}", machine.name);
    }
    GP
}

/// The MSRs that the processor itself keeps for the guest.
fn system(msrs: &mut arch::regs::SystemMsrs, number: u32) -> Option<&mut u64> {
    match number {
        msr::STAR => Some(&mut msrs.star),
        msr::LSTAR => Some(&mut msrs.lstar),
        msr::CSTAR => Some(&mut msrs.cstar),
        msr::SFMASK => Some(&mut msrs.sfmask),
        msr::KERNEL_GS_BASE => Some(&mut msrs.kernel_gs_base),
        msr::SYSENTER_CS => Some(&mut msrs.sysenter_cs),
        msr::SYSENTER_ESP => Some(&mut msrs.sysenter_esp),
        msr::SYSENTER_EIP => Some(&mut msrs.sysenter_eip),
        msr::PAT => Some(&mut msrs.pat),
        _ => None,
    }
}

fn valid_system(number: u32, value: u64) -> bool {
    match number {
        msr::LSTAR | msr::CSTAR | msr::KERNEL_GS_BASE | msr::SYSENTER_ESP | msr::SYSENTER_EIP => {
            is_canonical(value)
        }
        // UC, WC, WT, WP, WB, UC- (SDM 3 13.12.2).
        msr::PAT => value
            .to_le_bytes()
            .iter()
            .all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7)),
        msr::SFMASK => u32::try_from(value).is_ok(),
        _ => true,
    }
}

/// EFER (SDM 3 5.1.2, APM 2 3.1.7): LMA is the processor's, LME is fixed while paging is on.
fn write_efer<V: Vcpu>(machine: &mut Machine<V>, value: u64) -> Next {
    let new = Efer::from_bits_retain(value);
    let mut control = machine.vcpu.control();
    let reserved = !(new - machine.profile.efer()).is_empty();
    let flips_lme = (new ^ control.efer).contains(Efer::LME);
    if reserved || (flips_lme && control.cr0.contains(Cr0::PG)) {
        return GP;
    }
    control.efer = (new - Efer::LMA) | (control.efer & Efer::LMA);
    machine.vcpu.set_control(&control);
    Next::Retire
}
