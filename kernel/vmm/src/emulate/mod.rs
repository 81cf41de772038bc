//! Executes one instruction on behalf of the guest: the ones whose operand is a device, and string I/O.
//!
//! Operands in RAM and operands in devices mix freely. An instruction either happens whole or, for the
//! repeated ones, up to an element boundary; a fault on the way leaves the registers as the processor
//! would.

mod arithmetic;
mod registers;
mod shift;
mod string;

pub use registers::write_sized;

use arch::addr::{Gpa, Gva, PAGE_SIZE};
use arch::event::{Event, vector};
use arch::regs::{Paging, Rflags, SegmentName};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use crate::code::{CodeContext, CodeError, MAX_INSTRUCTION, fetch};
use crate::cpu::Vcpu;
use crate::decoded::DecodeCache;
use crate::memory::GuestMemory;
use crate::walk::{Access, WalkError, translate};
use arithmetic::{Operation, compute};
use registers::{mask, sign_extend};

/// What is not RAM: devices by address and by port. Sizes are 1, 2, 4 or 8 bytes.
pub trait Bus {
    /// Reads a device register.
    fn read(&mut self, gpa: Gpa, size: u8) -> u64;
    /// Writes a device register.
    fn write(&mut self, gpa: Gpa, size: u8, value: u64);
    /// IN.
    fn read_port(&mut self, port: u16, size: u8) -> u32;
    /// OUT.
    fn write_port(&mut self, port: u16, size: u8, value: u32);
}

/// What came of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; it has this many bytes.
    Done(u8),
    /// A repeated instruction is not done yet: RIP stays, the registers say how far it got.
    Unfinished,
    /// It raised an exception; for a page fault with CR2.
    Fault(Event, Option<u64>),
    /// It is not one that can be emulated.
    Unsupported {
        /// Its first bytes.
        bytes: [u8; MAX_INSTRUCTION],
    },
    /// The guest's own tables that lead to it lie outside of RAM.
    TableNotInRam(Gpa),
}

/// Why an instruction stopped on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Fault(Event, Option<u64>),
    Unsupported,
    TableNotInRam(Gpa),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::PageFault { gva, error_code } => Stop::Fault(
                Event::exception_with_code(vector::PF, error_code),
                Some(gva.0),
            ),
            WalkError::NotCanonical => Stop::Fault(Event::general_protection(), None),
            WalkError::TableNotInRam(gpa) => Stop::TableNotInRam(gpa),
        }
    }
}

/// Executes the instruction at RIP; of a repeated one no more than one element if it `traps` behind each, as it does
/// with RFLAGS.TF.
pub fn execute<V: Vcpu>(
    vcpu: &mut V,
    memory: &mut V::Memory,
    bus: &mut impl Bus,
    cache: &mut DecodeCache,
    traps: bool,
) -> Outcome {
    let paging = vcpu.paging();
    let cpl = vcpu.cpl();
    let mut context = CodeContext {
        paging: &paging,
        cs_base: 0,
        cs_attributes: vcpu.segment_attributes(SegmentName::Cs),
        cpl,
        rip: vcpu.rip(),
    };
    let bitness = context.bitness();
    if bitness != 64 {
        context.cs_base = vcpu.segment_base(SegmentName::Cs);
    }
    let code = match fetch(memory, &context) {
        Ok(code) => code,
        Err(CodeError::Walk(error)) => return end(error.into(), [0; MAX_INSTRUCTION]),
        // What lies outside of RAM reads as ones, and those are no instruction.
        Err(CodeError::NotInRam | CodeError::Invalid) => {
            return Outcome::Fault(Event::undefined_opcode(), None);
        }
    };
    let Ok(instruction) = cache.decode(&code, &context) else {
        return Outcome::Fault(Event::undefined_opcode(), None);
    };
    let flags = vcpu.rflags();
    let mut run = Execution {
        vcpu,
        flags,
        paging: &paging,
        user: cpl == 3,
        wide: bitness == 64,
        max_elements: if traps || flags.contains(Rflags::TF) {
            1
        } else {
            string::MAX_ELEMENTS
        },
        memory,
        bus,
    };
    let result = run.instruction(instruction);
    let new_flags = run.flags;
    if new_flags != flags {
        vcpu.set_rflags(new_flags);
    }
    match result {
        Ok(true) => Outcome::Done(instruction.len() as u8),
        Ok(false) => Outcome::Unfinished,
        Err(stop) => end(stop, code.bytes),
    }
}

fn end(stop: Stop, bytes: [u8; MAX_INSTRUCTION]) -> Outcome {
    match stop {
        Stop::Fault(event, cr2) => Outcome::Fault(event, cr2),
        Stop::Unsupported => Outcome::Unsupported { bytes },
        Stop::TableNotInRam(gpa) => Outcome::TableNotInRam(gpa),
    }
}

/// The segment that a decoder's register is.
fn segment_name(register: Register) -> Option<SegmentName> {
    Some(match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => return None,
    })
}

/// One instruction under way. General registers are changed in place: a faulting repeated instruction keeps the
/// elements it has done.
struct Execution<'a, V: Vcpu, B: Bus> {
    vcpu: &'a mut V,
    flags: Rflags,
    paging: &'a Paging,
    user: bool,
    wide: bool,
    max_elements: u32,
    memory: &'a mut V::Memory,
    bus: &'a mut B,
}

impl<V: Vcpu, B: Bus> Execution<'_, V, B> {
    /// The base of a segment as the mode counts it.
    fn segment_base(&self, name: SegmentName) -> u64 {
        if self.wide && !matches!(name, SegmentName::Fs | SegmentName::Gs) {
            return 0;
        }
        self.vcpu.segment_base(name)
    }

    /// Executes; `false` means a repeated instruction has elements left.
    fn instruction(&mut self, i: &Instruction) -> Result<bool, Stop> {
        if i.is_string_instruction() {
            return self.string(i);
        }
        match i.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movzx => {
                let value = self.read_operand(i, 1)?;
                self.write_operand(i, 0, value)?;
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let value = self.read_operand(i, 1)?;
                self.write_operand(i, 0, sign_extend(value, operand_size(i, 1)?))?;
            }
            Mnemonic::Movbe => {
                let size = operand_size(i, 1)?;
                let value = self.read_operand(i, 1)?.swap_bytes() >> (64 - 8 * u32::from(size));
                self.write_operand(i, 0, value)?;
            }
            Mnemonic::Xchg => {
                let (a, b) = (self.read_operand(i, 0)?, self.read_operand(i, 1)?);
                self.write_operand(i, 0, b)?;
                self.write_operand(i, 1, a)?;
            }
            Mnemonic::Xadd => {
                let (a, b) = (self.read_operand(i, 0)?, self.read_operand(i, 1)?);
                let (sum, flags) = compute(Operation::Add, a, b, operand_size(i, 0)?, self.flags);
                self.write_operand(i, 0, sum)?;
                self.write_operand(i, 1, a)?;
                self.flags = flags;
            }
            Mnemonic::Cmpxchg => self.compare_exchange(i)?,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit_test(i)?,
            Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror => self.shift(i)?,
            _ if i.condition_code() != ConditionCode::None => self.conditional(i)?,
            other => self.arithmetic(i, other)?,
        }
        Ok(true)
    }

    fn shift(&mut self, i: &Instruction) -> Result<(), Stop> {
        let (a, count) = (self.read_operand(i, 0)?, self.read_operand(i, 1)?);
        let (result, flags) = shift::shift(i.mnemonic(), a, count, operand_size(i, 0)?, self.flags)
            .ok_or(Stop::Unsupported)?;
        self.write_operand(i, 0, result)?;
        self.flags = flags;
        Ok(())
    }

    /// SETcc and CMOVcc; the latter reads its source and writes its destination in either case (SDM 2A).
    fn conditional(&mut self, i: &Instruction) -> Result<(), Stop> {
        let holds = shift::holds(i.condition_code(), self.flags).ok_or(Stop::Unsupported)?;
        let value = match (i.op_count(), i.op0_kind()) {
            (1, OpKind::Memory) => u64::from(holds),
            (2, OpKind::Register) => {
                let (old, new) = (self.read_operand(i, 0)?, self.read_operand(i, 1)?);
                if holds { new } else { old }
            }
            _ => return Err(Stop::Unsupported),
        };
        self.write_operand(i, 0, value)
    }

    fn arithmetic(&mut self, i: &Instruction, mnemonic: Mnemonic) -> Result<(), Stop> {
        let operation = match mnemonic {
            Mnemonic::Add => Operation::Add,
            Mnemonic::Adc => Operation::Adc,
            Mnemonic::Sub => Operation::Sub,
            Mnemonic::Sbb => Operation::Sbb,
            Mnemonic::Cmp => Operation::Cmp,
            Mnemonic::And => Operation::And,
            Mnemonic::Or => Operation::Or,
            Mnemonic::Xor => Operation::Xor,
            Mnemonic::Test => Operation::Test,
            Mnemonic::Inc => Operation::Inc,
            Mnemonic::Dec => Operation::Dec,
            Mnemonic::Neg => Operation::Neg,
            Mnemonic::Not => Operation::Not,
            _ => return Err(Stop::Unsupported),
        };
        let a = self.read_operand(i, 0)?;
        let b = if i.op_count() > 1 {
            self.read_operand(i, 1)?
        } else {
            0
        };
        let (result, flags) = compute(operation, a, b, operand_size(i, 0)?, self.flags);
        if !matches!(operation, Operation::Cmp | Operation::Test) {
            self.write_operand(i, 0, result)?;
        }
        self.flags = flags;
        Ok(())
    }

    /// CMPXCHG: the destination is written in either case (SDM 2A).
    fn compare_exchange(&mut self, i: &Instruction) -> Result<(), Stop> {
        let size = operand_size(i, 0)?;
        let old = self.read_operand(i, 0)?;
        let accumulator = self.vcpu.gprs().0[0] & mask(size);
        let (_, flags) = compute(Operation::Cmp, accumulator, old, size, self.flags);
        if flags.contains(Rflags::ZF) {
            let new = self.read_operand(i, 1)?;
            self.write_operand(i, 0, new)?;
        } else {
            self.write_operand(i, 0, old)?;
            write_sized(self.vcpu.gprs_mut(), arch::regs::Gpr::Rax, size, old);
        }
        self.flags = flags;
        Ok(())
    }

    /// BT and kin: a register offset reaches beyond the operand (SDM 2A, "Bit(BitBase, BitOffset)").
    fn bit_test(&mut self, i: &Instruction) -> Result<(), Stop> {
        let size = operand_size(i, 0)?;
        let bits = 8 * u64::from(size);
        let offset = self.read_operand(i, 1)?;
        let address = if i.op0_kind() == OpKind::Memory {
            let mut address = self.address(i, 0)?;
            if i.op1_kind() == OpKind::Register {
                let whole = (sign_extend(offset, size) as i64).div_euclid(bits as i64);
                address = address.offset((whole as u64).wrapping_mul(u64::from(size)));
            }
            Some(address)
        } else {
            None
        };
        let old = match address {
            Some(at) => self.read_memory(at, size)?,
            None => self.read_operand(i, 0)?,
        };
        let bit = 1 << (offset & (bits - 1));
        let new = match i.mnemonic() {
            Mnemonic::Bts => old | bit,
            Mnemonic::Btr => old & !bit,
            Mnemonic::Btc => old ^ bit,
            _ => old,
        };
        if i.mnemonic() != Mnemonic::Bt {
            match address {
                Some(at) => self.write_memory(at, size, new)?,
                None => self.write_operand(i, 0, new)?,
            }
        }
        self.flags.set(Rflags::CF, old & bit != 0);
        Ok(())
    }

    fn read_operand(&mut self, i: &Instruction, n: u32) -> Result<u64, Stop> {
        match i.op_kind(n) {
            OpKind::Register => {
                let register = i.op_register(n);
                if let Some(value) = registers::read(self.vcpu.gprs(), register) {
                    return Ok(value);
                }
                Err(Stop::Unsupported)
            }
            OpKind::Memory => {
                let address = self.address(i, n)?;
                self.read_memory(address, operand_size(i, n)?)
            }
            _ => i.try_immediate(n).map_err(|_| Stop::Unsupported),
        }
    }

    fn write_operand(&mut self, i: &Instruction, n: u32, value: u64) -> Result<(), Stop> {
        match i.op_kind(n) {
            OpKind::Register => registers::write(self.vcpu.gprs_mut(), i.op_register(n), value)
                .ok_or(Stop::Unsupported),
            OpKind::Memory => {
                let address = self.address(i, n)?;
                self.write_memory(address, operand_size(i, n)?, value)
            }
            _ => Err(Stop::Unsupported),
        }
    }

    /// Linear address of a memory operand.
    fn address(&self, i: &Instruction, n: u32) -> Result<Gva, Stop> {
        let value = |register: Register, _, _| {
            segment_name(register)
                .map(|name| self.segment_base(name))
                .or_else(|| registers::read(self.vcpu.gprs(), register))
        };
        let linear = i.virtual_address(n, 0, value).ok_or(Stop::Unsupported)?;
        Ok(self.linear(linear))
    }

    fn linear(&self, address: u64) -> Gva {
        Gva(if self.wide {
            address
        } else {
            address & 0xffff_ffff
        })
    }

    fn translate(&self, at: Gva, write: bool) -> Result<Gpa, Stop> {
        let access = Access {
            write,
            execute: false,
            user: self.user,
        };
        Ok(translate(self.memory, self.paging, at, access)?)
    }

    /// The two pieces of an access that crosses a page, or the whole and nothing.
    fn split(&self, at: Gva, size: u8) -> (u8, u8) {
        let in_page = PAGE_SIZE - at.page_offset();
        if in_page >= u64::from(size) {
            (size, 0)
        } else {
            (in_page as u8, size - in_page as u8)
        }
    }

    fn read_memory(&mut self, at: Gva, size: u8) -> Result<u64, Stop> {
        let (first, second) = self.split(at, size);
        let gpa = self.translate(at, false)?;
        if second == 0 {
            return Ok(self.read_physical(gpa, first));
        }
        let next = self.translate(self.linear(at.0.wrapping_add(u64::from(first))), false)?;
        let low = self.read_bytes(gpa, first);
        let high = self.read_bytes(next, second);
        Ok(low | high << (8 * u32::from(first)))
    }

    fn write_memory(&mut self, at: Gva, size: u8, value: u64) -> Result<(), Stop> {
        let (first, second) = self.split(at, size);
        let gpa = self.translate(at, true)?;
        if second == 0 {
            self.write_physical(gpa, first, value);
            return Ok(());
        }
        let next = self.translate(self.linear(at.0.wrapping_add(u64::from(first))), true)?;
        self.write_bytes(gpa, first, value);
        self.write_bytes(next, second, value >> (8 * u32::from(first)));
        Ok(())
    }

    fn read_physical(&mut self, gpa: Gpa, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let in_ram = bytes
            .get_mut(..usize::from(size))
            .is_some_and(|part| self.memory.read(gpa, part).is_ok());
        if in_ram {
            u64::from_le_bytes(bytes)
        } else {
            self.bus.read(gpa, size) & mask(size)
        }
    }

    fn write_physical(&mut self, gpa: Gpa, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let in_ram = bytes
            .get(..usize::from(size))
            .is_some_and(|part| self.memory.write(gpa, part).is_ok());
        if !in_ram {
            self.bus.write(gpa, size, value & mask(size));
        }
    }

    /// Pieces of odd sizes go byte by byte.
    fn read_bytes(&mut self, gpa: Gpa, count: u8) -> u64 {
        (0..count).fold(0, |value, n| {
            value | self.read_physical(gpa.offset(u64::from(n)), 1) << (8 * u32::from(n))
        })
    }

    fn write_bytes(&mut self, gpa: Gpa, count: u8, value: u64) {
        for n in 0..count {
            self.write_physical(gpa.offset(u64::from(n)), 1, value >> (8 * u32::from(n)));
        }
    }
}

/// Bytes of an operand.
fn operand_size(i: &Instruction, n: u32) -> Result<u8, Stop> {
    let size = match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        _ => i.memory_size().size(),
    };
    match size {
        1 | 2 | 4 | 8 => Ok(size as u8),
        _ => Err(Stop::Unsupported),
    }
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;
