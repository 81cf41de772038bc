//! What the log says of a guest that has stopped: one line of why, its exits, and a dump if it failed.

use core::fmt;

use arch::regs::{Gpr, SegmentName};

use crate::cpu::Vcpu;
use crate::machine::Machine;

/// The exits of a guest, a line each: `exits| vm=… reason=… count=… ticks=…`. Ticks are host TSC ticks
/// from the exit to the next entry, summed.
pub struct Exits<'a, V: Vcpu>(pub &'a Machine<V>);

impl<V: Vcpu> fmt::Display for Exits<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.0;
        let name = &machine.name;
        for (reason, count, ticks) in machine.stats.totals() {
            writeln!(
                f,
                "exits| vm={name} reason={reason} count={count} ticks={ticks}"
            )?;
        }
        let host = machine.vcpu.host_local();
        let (faults, ticks) = (host.ram_faults, host.ram_fault_ticks);
        writeln!(
            f,
            "exits| vm={name} reason=ram-fault count={faults} ticks={ticks}"
        )?;
        writeln!(
            f,
            "guest| vm={name} instructions={} entries={} host_interrupts={} unclaimed={} unknown_msrs={}",
            machine.vcpu.icount().0,
            host.entries,
            host.interrupts,
            machine.board.unclaimed(),
            machine.unknown_msrs,
        )
    }
}

/// Registers, the vendor's control structure, and the last exits.
pub struct Dump<'a, V: Vcpu>(pub &'a Machine<V>);

impl<V: Vcpu> fmt::Display for Dump<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = &self.0.vcpu;
        let gprs = vcpu.gprs();
        for row in Gpr::ALL.chunks(4) {
            for gpr in row {
                write!(f, "{gpr:?} {:016x} ", gprs[*gpr])?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "Rip {:016x} Rflags {:x}",
            vcpu.rip(),
            vcpu.rflags().bits()
        )?;
        let control = vcpu.control();
        writeln!(
            f,
            "Cr0 {:x} Cr2 {:x} Cr3 {:x} Cr4 {:x} Efer {:x} Xcr0 {:x}",
            control.cr0.bits(),
            control.cr2,
            control.cr3,
            control.cr4.bits(),
            control.efer.bits(),
            control.xcr0.bits()
        )?;
        for name in SegmentName::ALL {
            let s = vcpu.segment(name);
            writeln!(
                f,
                "{name:?} {:04x} base {:x} limit {:x} attributes {:x}",
                s.selector,
                s.base,
                s.limit,
                s.attributes.bits()
            )?;
        }
        if let Some(event) = vcpu.pending() {
            writeln!(f, "pending {event:x?}")?;
        }
        vcpu.dump(f)?;
        writeln!(f, "last exits, oldest first:")?;
        for trace in self.0.stats.traces() {
            writeln!(
                f,
                "  {:<20} rip {:x} at {}",
                trace.reason, trace.rip, trace.icount
            )?;
        }
        Ok(())
    }
}
