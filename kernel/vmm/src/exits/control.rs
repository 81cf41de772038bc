//! Control registers, XCR0, INVLPG.

use arch::addr::{Gpa, Gva};
use arch::event::Event;
use arch::regs::{ControlRegisters, Cr0, Cr4, Efer, Gpr, SegmentAttributes, SegmentName, Xcr0};

use super::{Next, current_privilege, edx_eax};
use crate::cpu::Vcpu;
use crate::emulate::write_sized;
use crate::machine::Machine;
use crate::memory::GuestMemory;

const GP: Next = Next::Inject(Event::general_protection());

pub(crate) fn read_cr<V: Vcpu>(machine: &mut Machine<V>, cr: u8, register: Gpr) -> Next {
    let control = machine.vcpu.control();
    let value = match cr {
        0 => control.cr0.bits(),
        3 => control.cr3,
        4 => control.cr4.bits(),
        8 => u64::from(machine.board.task_priority()),
        _ => return Next::Inject(Event::undefined_opcode()),
    };
    let size = if in_64_bit_mode(machine) { 8 } else { 4 };
    write_sized(machine.vcpu.gprs_mut(), register, size, value);
    Next::Retire
}

pub(crate) fn write_cr<V: Vcpu>(machine: &mut Machine<V>, cr: u8, value: u64) -> Next {
    match cr {
        0 => write_cr0(machine, value),
        3 => write_cr3(machine, value),
        4 => write_cr4(machine, value),
        8 => match u8::try_from(value) {
            Ok(priority) if priority <= 15 => {
                machine.board.set_task_priority(priority);
                Next::Retire
            }
            _ => GP,
        },
        _ => Next::Inject(Event::undefined_opcode()),
    }
}

fn in_64_bit_mode<V: Vcpu>(machine: &Machine<V>) -> bool {
    let vcpu = &machine.vcpu;
    vcpu.paging().efer.contains(Efer::LMA)
        && vcpu
            .segment_attributes(SegmentName::Cs)
            .contains(SegmentAttributes::LONG)
}

/// MOV to CR0 (SDM 2B, "MOV—Move to/from Control Registers"; SDM 3 5.1.2).
fn write_cr0<V: Vcpu>(machine: &mut Machine<V>, value: u64) -> Next {
    let new = Cr0::from_bits_retain(value);
    let old = machine.vcpu.control();
    if value >> 32 != 0
        || new.contains(Cr0::PG) && !new.contains(Cr0::PE)
        || new.contains(Cr0::NW) && !new.contains(Cr0::CD)
    {
        return GP;
    }
    let mut control = old;
    // Reserved bits of the low half are ignored, ET is hardwired.
    control.cr0 = (new & machine.profile.cr0()) | Cr0::ET;
    let switches_on = control.cr0.contains(Cr0::PG) && !old.cr0.contains(Cr0::PG);
    let switches_off = !control.cr0.contains(Cr0::PG) && old.cr0.contains(Cr0::PG);
    if switches_on && control.efer.contains(Efer::LME) {
        let cs = machine.vcpu.segment(SegmentName::Cs);
        if !control.cr4.contains(Cr4::PAE) || cs.attributes.contains(SegmentAttributes::LONG) {
            return GP;
        }
        control.efer |= Efer::LMA;
    }
    if switches_off {
        if in_64_bit_mode(machine) {
            return GP;
        }
        control.efer -= Efer::LMA;
    }
    let reloads = (control.cr0 ^ old.cr0).intersects(Cr0::PG | Cr0::CD | Cr0::NW);
    set_control(machine, control, reloads)
}

/// Bit 63 of the source, "keep translations", only exists with PCIDs, which are not offered.
fn write_cr3<V: Vcpu>(machine: &mut Machine<V>, value: u64) -> Next {
    let mut control = machine.vcpu.control();
    if control.efer.contains(Efer::LMA) && value >> 52 != 0 {
        return GP;
    }
    control.cr3 = if control.efer.contains(Efer::LMA) {
        value
    } else {
        value & 0xffff_ffff
    };
    set_control(machine, control, true)
}

fn write_cr4<V: Vcpu>(machine: &mut Machine<V>, value: u64) -> Next {
    let new = Cr4::from_bits_retain(value);
    let mut control = machine.vcpu.control();
    let reserved = !(new - machine.profile.cr4()).is_empty();
    if reserved || control.efer.contains(Efer::LMA) && !new.contains(Cr4::PAE) {
        return GP;
    }
    let reloads = (new ^ control.cr4).intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP);
    control.cr4 = new;
    set_control(machine, control, reloads)
}

/// Sets control registers, reading the four PAE entries where the processor would (SDM 3 5.4.1).
fn set_control<V: Vcpu>(
    machine: &mut Machine<V>,
    mut control: ControlRegisters,
    reloads: bool,
) -> Next {
    let pae = control.cr0.contains(Cr0::PG)
        && control.cr4.contains(Cr4::PAE)
        && !control.efer.contains(Efer::LMA);
    if pae && reloads {
        match pdptes(&machine.memory, control.cr3) {
            Some(entries) => control.pdptes = entries,
            None => return GP,
        }
    }
    machine.vcpu.set_control(&control);
    Next::Retire
}

fn pdptes<M: GuestMemory>(memory: &M, cr3: u64) -> Option<[u64; 4]> {
    // Bits 2:1, 8:5 and everything above the address are reserved in a present entry.
    const RESERVED: u64 = 0xfff0_0000_0000_01e6;
    let mut entries = [0; 4];
    for (at, entry) in (cr3 & 0xffff_ffe0..).step_by(8).zip(&mut entries) {
        *entry = memory.read_u64(Gpa(at)).ok()?;
        if *entry & 1 != 0 && *entry & RESERVED != 0 {
            return None;
        }
    }
    Some(entries)
}

/// XSETBV (SDM 2D). The exit comes before the processor's own check of the privilege level; without
/// CR4.OSXSAVE it does not come.
pub(crate) fn xsetbv<V: Vcpu>(machine: &mut Machine<V>) -> Next {
    if current_privilege(machine) != 0 {
        return GP;
    }
    let index = machine.vcpu.gprs()[Gpr::Rcx] as u32;
    let new = Xcr0::from_bits_retain(edx_eax(machine.vcpu.gprs()));
    let unknown = !(new - machine.profile.xcr0()).is_empty();
    let avx_without_sse = new.contains(Xcr0::AVX) && !new.contains(Xcr0::SSE);
    if index != 0 || unknown || !new.contains(Xcr0::X87) || avx_without_sse {
        return GP;
    }
    let mut control = machine.vcpu.control();
    control.xcr0 = new;
    machine.vcpu.set_control(&control);
    Next::Retire
}

pub(crate) fn invlpg<V: Vcpu>(machine: &mut Machine<V>, gva: Gva) -> Next {
    machine.vcpu.invalidate_page(gva);
    Next::Retire
}
