//! What the machine does at each exit, one small handler per cause.

pub(crate) mod control;
pub(crate) mod cpu;
pub(crate) mod debug;
pub(crate) mod io;
pub(crate) mod msr;
pub(crate) mod time;

use arch::event::Event;
use arch::regs::{Gpr, Gprs};

use crate::cpu::Vcpu;
use crate::machine::{Machine, Stop};

/// What the loop does after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Step over the instruction and count it.
    Retire,
    /// The same for an instruction whose length the handler found.
    RetireBytes(u8),
    /// An iteration of a repeated instruction is done, the instruction is not.
    Repeat,
    /// Enter again where the guest is.
    Stay,
    /// Raise an event instead of the instruction.
    Inject(Event),
    /// The guest ends.
    Stop(Stop),
}

/// Privilege level of the guest's code, for the exits that come before the processor has checked it.
fn current_privilege<V: Vcpu>(machine: &Machine<V>) -> u8 {
    machine.vcpu.cpl()
}

/// EDX:EAX, as RDMSR and XSETBV take and give 64 bits.
fn edx_eax(gprs: &Gprs) -> u64 {
    gprs[Gpr::Rdx] << 32 | gprs[Gpr::Rax] & 0xffff_ffff
}

fn set_edx_eax(gprs: &mut Gprs, value: u64) {
    gprs[Gpr::Rax] = value & 0xffff_ffff;
    gprs[Gpr::Rdx] = value >> 32;
}

/// Whether a 48-bit linear address is canonical.
const fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
