//! Ports and device memory.

use arch::event::Event;
use arch::regs::Gpr;

use super::Next;
use super::debug::port_hits;
use crate::cpu::{NestedFault, PortAccess, Vcpu};
use crate::emulate::{Bus, Outcome, execute, write_sized};
use crate::host::Host;
use crate::machine::{Machine, Stop};

pub(crate) fn port<V: Vcpu>(
    machine: &mut Machine<V>,
    host: &mut impl Host,
    access: PortAccess,
) -> Next {
    machine.traps |= port_hits(machine, access.port, access.size);
    if access.string {
        let traps = machine.traps != 0;
        return emulate(machine, host, traps);
    }
    let now = machine.vcpu.icount().next();
    let mut bus = machine.board.bus(host, &mut machine.door, now);
    if access.write {
        let value = machine.vcpu.gprs()[Gpr::Rax] as u32;
        bus.write_port(access.port, access.size, value);
    } else {
        let value = u64::from(bus.read_port(access.port, access.size));
        write_sized(machine.vcpu.gprs_mut(), Gpr::Rax, access.size, value);
    }
    machine.serve_devices(host);
    Next::Retire
}

/// An access to what is not RAM. Backends resolve first touches of RAM themselves.
pub(crate) fn nested_fault<V: Vcpu>(
    machine: &mut Machine<V>,
    host: &mut impl Host,
    fault: NestedFault,
) -> Next {
    if fault.in_page_walk {
        return Next::Stop(Stop::TableNotInRam(fault.gpa));
    }
    if fault.execute {
        // Nothing answers the fetch: it reads ones, which are no instruction.
        return Next::Inject(Event::undefined_opcode());
    }
    // Breakpoints on ports do not concern it.
    emulate(machine, host, false)
}

fn emulate<V: Vcpu>(machine: &mut Machine<V>, host: &mut impl Host, traps: bool) -> Next {
    let now = machine.vcpu.icount().next();
    let mut bus = machine.board.bus(host, &mut machine.door, now);
    let outcome = execute(
        &mut machine.vcpu,
        &mut machine.memory,
        &mut bus,
        &mut machine.decoded,
        traps,
    );
    machine.serve_devices(host);
    match outcome {
        Outcome::Done(length) => Next::RetireBytes(length),
        Outcome::Unfinished => Next::Repeat,
        Outcome::Fault(event, cr2) => {
            machine.traps = 0;
            if let Some(cr2) = cr2 {
                let mut control = machine.vcpu.control();
                control.cr2 = cr2;
                machine.vcpu.set_control(&control);
            }
            Next::Inject(event)
        }
        Outcome::Unsupported { bytes } => Next::Stop(Stop::NotEmulated(bytes)),
        Outcome::TableNotInRam(gpa) => Next::Stop(Stop::TableNotInRam(gpa)),
    }
}

impl<V: Vcpu> Machine<V> {
    /// Lets the devices that were kicked look at the guest's memory, before it runs on.
    #[inline]
    fn serve_devices(&mut self, host: &mut impl Host) {
        if self.board.is_kicked() {
            self.board.serve(host, &mut self.door, &mut self.memory);
        }
    }
}
