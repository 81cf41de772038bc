//! CPUID, HLT, random numbers, hypercalls.

use arch::regs::{Gpr, Rflags};

use super::Next;
use crate::cpu::Vcpu;
use crate::emulate::write_sized;
use crate::host::Host;
use crate::machine::{Machine, Stop};
use crate::nondet::Question;
use crate::profile::{self, Dynamic};

pub(crate) fn cpuid<V: Vcpu>(machine: &mut Machine<V>) -> Next {
    let gprs = machine.vcpu.gprs();
    let (leaf, subleaf) = (gprs[Gpr::Rax] as u32, gprs[Gpr::Rcx] as u32);
    // Few leaves depend on registers; the others must not pay for reading them.
    let answer = if profile::depends(leaf) {
        let control = machine.vcpu.control();
        let dynamic = Dynamic {
            cr4: control.cr4,
            xcr0: control.xcr0,
            apic: machine.board.has_apic(),
        };
        machine.profile.cpuid(leaf, subleaf, dynamic)
    } else {
        machine.profile.fixed(leaf, subleaf)
    };
    let gprs = machine.vcpu.gprs_mut();
    gprs[Gpr::Rax] = u64::from(answer.eax);
    gprs[Gpr::Rbx] = u64::from(answer.ebx);
    gprs[Gpr::Rcx] = u64::from(answer.ecx);
    gprs[Gpr::Rdx] = u64::from(answer.edx);
    Next::Retire
}

/// The guest waits. Devices whose clock is the guest's own execution would wait forever, so what they
/// hold delayed becomes due.
pub(crate) fn hlt<V: Vcpu>(machine: &mut Machine<V>) -> Next {
    if !machine.board.wait(machine.vcpu.icount().after(1)) {
        return Next::Stop(Stop::Halted);
    }
    machine.halted = true;
    Next::Retire
}

/// RDRAND and RDSEED, which CPUID hides, where the processor executes them all the same.
pub(crate) fn random<V: Vcpu>(
    machine: &mut Machine<V>,
    host: &mut impl Host,
    register: Gpr,
    size: u8,
) -> Next {
    let value = machine.door.take(host, Question::Random);
    write_sized(machine.vcpu.gprs_mut(), register, size, value);
    // CF says whether there was a value, the other arithmetic flags are cleared (SDM 2B, RDRAND). Zero is
    // what a host without entropy gives.
    let arithmetic = Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::OF;
    let mut flags = machine.vcpu.rflags() - arithmetic;
    flags.set(Rflags::CF, value != 0);
    machine.vcpu.set_rflags(flags);
    Next::Retire
}

/// There are no hypercalls: the answer is all ones.
pub(crate) fn hypercall<V: Vcpu>(machine: &mut Machine<V>) -> Next {
    machine.vcpu.gprs_mut()[Gpr::Rax] = u64::MAX;
    Next::Retire
}
