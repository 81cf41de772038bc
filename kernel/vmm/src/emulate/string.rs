//! String instructions: MOVS, STOS, LODS, INS, OUTS, with and without REP.

use arch::regs::{Gpr, Rflags, SegmentName};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::registers::{mask, write_sized};
use super::{Bus, Execution, Stop, segment_name};
use crate::cpu::Vcpu;

/// Elements that one exit may do of a repeated instruction: bounded work, then the guest may be
/// interrupted.
pub(super) const MAX_ELEMENTS: u32 = 4096;

#[derive(Clone, Copy)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Ins,
    Outs,
}

impl<V: Vcpu, B: Bus> Execution<'_, V, B> {
    /// Executes; `false` means there are elements left.
    pub(super) fn string(&mut self, i: &Instruction) -> Result<bool, Stop> {
        let kind = match i.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Kind::Movs,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Kind::Stos,
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Kind::Lods,
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Kind::Ins,
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Kind::Outs,
            _ => return Err(Stop::Unsupported),
        };
        let size = u8::try_from(i.memory_size().size()).map_err(|_| Stop::Unsupported)?;
        let address_size = address_size(i)?;
        if !(i.has_rep_prefix() || i.has_repne_prefix()) {
            self.element(i, kind, size, address_size)?;
            return Ok(true);
        }
        for _ in 0..self.max_elements {
            let left = self.vcpu.gprs()[Gpr::Rcx] & mask(address_size);
            if left == 0 {
                return Ok(true);
            }
            self.element(i, kind, size, address_size)?;
            write_sized(self.vcpu.gprs_mut(), Gpr::Rcx, address_size, left - 1);
        }
        Ok(self.vcpu.gprs()[Gpr::Rcx] & mask(address_size) == 0)
    }

    fn element(
        &mut self,
        i: &Instruction,
        kind: Kind,
        size: u8,
        address_size: u8,
    ) -> Result<(), Stop> {
        let segment = segment_name(i.memory_segment()).map_or(0, |name| self.segment_base(name));
        let es = self.segment_base(SegmentName::Es);
        let source = self.index(Gpr::Rsi, segment, address_size);
        let destination = self.index(Gpr::Rdi, es, address_size);
        let port = self.vcpu.gprs()[Gpr::Rdx] as u16;
        match kind {
            Kind::Movs => {
                let value = self.read_memory(source, size)?;
                self.write_memory(destination, size, value)?;
            }
            Kind::Stos => {
                let value = self.vcpu.gprs()[Gpr::Rax] & mask(size);
                self.write_memory(destination, size, value)?;
            }
            Kind::Lods => {
                let value = self.read_memory(source, size)?;
                write_sized(self.vcpu.gprs_mut(), Gpr::Rax, size, value);
            }
            Kind::Ins => {
                // The destination is checked first: a port must not be read in vain.
                let crossing = self.split(destination, size).1 != 0;
                self.translate(destination, true)?;
                if crossing {
                    self.translate(
                        self.linear(destination.0.wrapping_add(u64::from(size) - 1)),
                        true,
                    )?;
                }
                let value = u64::from(self.bus.read_port(port, size));
                self.write_memory(destination, size, value)?;
            }
            Kind::Outs => {
                let value = self.read_memory(source, size)?;
                self.bus.write_port(port, size, value as u32);
            }
        }
        if matches!(kind, Kind::Movs | Kind::Lods | Kind::Outs) {
            self.step(Gpr::Rsi, size, address_size);
        }
        if matches!(kind, Kind::Movs | Kind::Stos | Kind::Ins) {
            self.step(Gpr::Rdi, size, address_size);
        }
        Ok(())
    }

    fn index(&self, register: Gpr, base: u64, address_size: u8) -> arch::addr::Gva {
        self.linear(base.wrapping_add(self.vcpu.gprs()[register] & mask(address_size)))
    }

    fn step(&mut self, register: Gpr, size: u8, address_size: u8) {
        let old = self.vcpu.gprs()[register];
        let new = if self.flags.contains(Rflags::DF) {
            old.wrapping_sub(u64::from(size))
        } else {
            old.wrapping_add(u64::from(size))
        };
        write_sized(
            self.vcpu.gprs_mut(),
            register,
            address_size,
            new & mask(address_size),
        );
    }
}

/// 2, 4 or 8: which of CX, ECX, RCX counts and how wide the index registers are.
fn address_size(i: &Instruction) -> Result<u8, Stop> {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => return Ok(2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => return Ok(4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => return Ok(8),
            _ => {}
        }
    }
    Err(Stop::Unsupported)
}
