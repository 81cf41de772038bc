//! Debug registers, and the exceptions that are intercepted only because their delivery could loop
//! without end inside the processor: #DB and #AC.

use arch::event::{Event, vector};
use arch::regs::{Cr4, Efer, Gpr, SegmentAttributes, SegmentName};

use super::{Next, current_privilege};
use crate::cpu::Vcpu;
use crate::emulate::write_sized;
use crate::machine::Machine;

/// DR6 bits that read as ones (SDM 3 18.2.3), without RTM and bus locks.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6 bits that can be written: B0 … B3, BD, BS, BT.
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bit 10 reads as one.
const DR7_ONES: u64 = 0x400;
/// DR7 bits that can be written.
const DR7_WRITABLE: u64 = 0xffff_2bff;
const DR7_GENERAL_DETECT: u64 = 1 << 13;
const DR6_ACCESS_DETECTED: u64 = 1 << 13;

/// DR4 and DR5 are DR6 and DR7, or with CR4.DE nothing; while DR7.GD is set, touching any is a #DB
/// (SDM 3 18.2).
fn resolve<V: Vcpu>(machine: &mut Machine<V>, dr: u8) -> Result<u8, Next> {
    if matches!(dr, 4 | 5) && machine.vcpu.control().cr4.contains(Cr4::DE) {
        return Err(Next::Inject(Event::undefined_opcode()));
    }
    let mut debug = machine.vcpu.debug();
    if debug.dr7 & DR7_GENERAL_DETECT != 0 {
        debug.dr7 &= !DR7_GENERAL_DETECT;
        debug.dr6 |= DR6_ACCESS_DETECTED;
        machine.vcpu.set_debug(&debug);
        return Err(Next::Inject(Event::exception(vector::DB)));
    }
    // This exit comes before the processor's own check (SDM 3 27.1.1).
    if current_privilege(machine) != 0 {
        return Err(Next::Inject(Event::general_protection()));
    }
    Ok(match dr {
        4 | 5 => dr + 2,
        _ => dr,
    })
}

fn operand_size<V: Vcpu>(machine: &Machine<V>) -> u8 {
    let long = machine.vcpu.control().efer.contains(Efer::LMA)
        && machine
            .vcpu
            .segment(SegmentName::Cs)
            .attributes
            .contains(SegmentAttributes::LONG);
    if long { 8 } else { 4 }
}

pub(crate) fn read<V: Vcpu>(machine: &mut Machine<V>, dr: u8, register: Gpr) -> Next {
    let dr = match resolve(machine, dr) {
        Ok(dr) => dr,
        Err(next) => return next,
    };
    let debug = machine.vcpu.debug();
    let value = match dr {
        6 => debug.dr6,
        7 => debug.dr7,
        _ => debug.dr.get(usize::from(dr)).copied().unwrap_or_default(),
    };
    let size = operand_size(machine);
    write_sized(machine.vcpu.gprs_mut(), register, size, value);
    Next::Retire
}

pub(crate) fn write<V: Vcpu>(machine: &mut Machine<V>, dr: u8, register: Gpr) -> Next {
    let dr = match resolve(machine, dr) {
        Ok(dr) => dr,
        Err(next) => return next,
    };
    let mut value = machine.vcpu.gprs()[register];
    if operand_size(machine) == 4 {
        value &= 0xffff_ffff;
    }
    let mut debug = machine.vcpu.debug();
    match dr {
        6 | 7 if value >> 32 != 0 => return Next::Inject(Event::general_protection()),
        6 => debug.dr6 = value & DR6_WRITABLE | DR6_ONES,
        7 => debug.dr7 = value & DR7_WRITABLE | DR7_ONES,
        _ => {
            if let Some(place) = debug.dr.get_mut(usize::from(dr)) {
                *place = value;
            }
        }
    }
    machine.port_breakpoints = has_port_breakpoint(debug.dr7);
    machine.vcpu.set_debug(&debug);
    Next::Retire
}

/// Whether breakpoint `n` is enabled and of the I/O kind (SDM 3 18.2.4).
const fn is_port_breakpoint(dr7: u64, n: u32) -> bool {
    dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 2
}

/// Whether any breakpoint is enabled and of the I/O kind.
pub(crate) fn has_port_breakpoint(dr7: u64) -> bool {
    (0..4).any(|n| is_port_breakpoint(dr7, n))
}

/// DR6 bits of the I/O breakpoints that an access to `size` bytes from `port` on hits.
pub(crate) fn port_hits<V: Vcpu>(machine: &Machine<V>, port: u16, size: u8) -> u64 {
    if !machine.port_breakpoints || !machine.vcpu.control().cr4.contains(Cr4::DE) {
        return 0;
    }
    let debug = machine.vcpu.debug();
    let (first, last) = (u64::from(port), u64::from(port) + u64::from(size) - 1);
    (0..4).zip(debug.dr).fold(0, |hits, (n, address)| {
        // LEN: 1, 2, 8 or 4 bytes; the address is aligned to them (SDM 3 18.2.5).
        let length = [1, 2, 8, 4][(debug.dr7 >> (18 + 4 * n) & 3) as usize];
        let start = address & !(length - 1);
        let hit = is_port_breakpoint(debug.dr7, n) && first < start + length && start <= last;
        hits | u64::from(hit) << n
    })
}

/// Reflects an intercepted exception, with the side effects its delivery would have had.
pub(crate) fn exception<V: Vcpu>(machine: &mut Machine<V>, event: Event, dr6: u64) -> Next {
    if event.vector == vector::DB {
        let mut debug = machine.vcpu.debug();
        // B0 … B3 are replaced, BS, BD and BT accumulate (SDM 3 18.2.3).
        debug.dr6 = debug.dr6 & !0xf | dr6 & DR6_WRITABLE | DR6_ONES;
        debug.dr7 &= !DR7_GENERAL_DETECT;
        machine.vcpu.set_debug(&debug);
    }
    Next::Inject(event)
}
