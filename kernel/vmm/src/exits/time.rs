//! The time-stamp counter.

use arch::regs::Gpr;

use super::{Next, set_edx_eax};
use crate::cpu::Vcpu;
use crate::host::Host;
use crate::machine::Machine;
use crate::nondet::Question;

pub(crate) fn rdtsc<V: Vcpu>(machine: &mut Machine<V>, host: &mut impl Host) -> Next {
    let value = machine.door.take(host, Question::TimeStamp);
    set_edx_eax(machine.vcpu.gprs_mut(), value);
    Next::Retire
}

pub(crate) fn rdtscp<V: Vcpu>(machine: &mut Machine<V>, host: &mut impl Host) -> Next {
    let aux = machine.tsc_aux;
    machine.vcpu.gprs_mut()[Gpr::Rcx] = u64::from(aux);
    rdtsc(machine, host)
}
