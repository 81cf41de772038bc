//! The instruction at RIP, for what the processor does not report: its length without next-RIP saving, its
//! operands without decode assists.

use arch::addr::{Gpa, Gva};
use arch::regs::{Efer, Gpr, Paging, Rflags, Segment, SegmentName};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use vmm::code::{CodeContext, fetch};
use vmm::memory::GuestMemory;
use vmm::walk::{Access, translate};

use super::vcpu::Vcpu;
use crate::guest_ram::GuestRam;
use crate::mem::physmap;

/// The page of the last instruction looked at, so that the page walk is not repeated for each exit.
///
/// Paging mode and privilege changes come through the back end, which drops this; CR3 is compared. A guest that maps
/// another page at the same address without changing CR3 can make it stale, which is harmless: it is only used where
/// the bytes found are the very instruction that the exit names.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodePage {
    linear: u64,
    cr3: u64,
    host: *const u8,
}

impl CodePage {
    /// No page: no linear page address is odd.
    pub(super) const NONE: Self = Self {
        linear: 1,
        cr3: 0,
        host: core::ptr::null(),
    };
}

impl Vcpu {
    /// Whether offsets are 64 bits wide.
    #[inline]
    pub(super) fn is_64_bit(&self) -> bool {
        const LONG: u16 = 1 << 9;
        self.vmcb.save.efer & Efer::LMA.bits() != 0 && self.vmcb.save.cs.attributes & LONG != 0
    }

    #[inline]
    fn linear_rip(&self) -> u64 {
        let rip = self.vmcb.save.rip;
        if self.is_64_bit() {
            rip
        } else {
            self.vmcb.save.cs.base.wrapping_add(rip) & 0xffff_ffff
        }
    }

    /// The four bytes at RIP if they lie in the page looked at last.
    #[inline]
    fn cached_bytes(&self) -> Option<u32> {
        let linear = self.linear_rip();
        let offset = linear & 0xfff;
        let page = self.code_page;
        if linear & !0xfff != page.linear || self.vmcb.save.cr3 != page.cr3 || offset > 4092 {
            return None;
        }
        // SAFETY: `host` is the mapped host address of a whole page of guest RAM, whose frames stay allocated while
        // the guest exists; the four bytes lie inside of it. The guest does not run now.
        Some(unsafe {
            page.host
                .add(offset as usize)
                .cast::<u32>()
                .read_unaligned()
        })
    }

    /// Looks up the page of RIP.
    #[cold]
    pub(super) fn fill_code_page(&mut self, memory: &GuestRam) {
        let linear = self.linear_rip();
        let access = Access {
            write: false,
            execute: true,
            user: self.vmcb.save.cpl == 3,
        };
        let page = Gva(linear).page();
        self.code_page = match translate(memory, &self.paging_registers(), page, access) {
            Ok(gpa) => memory.host_frame(gpa).map(|frame| CodePage {
                linear: page.0,
                cr3: self.vmcb.save.cr3,
                host: physmap::ptr(frame.offset(gpa.0.wrapping_sub(gpa.large_page().0))),
            }),
            Err(_) => None,
        }
        .unwrap_or(CodePage::NONE);
    }

    /// Whether the bytes at RIP, seen through `mask`, are this instruction. Looks only at the page looked at last.
    #[inline]
    pub(super) fn is_in_code_page(&self, opcode: u32, mask: u32) -> bool {
        self.cached_bytes()
            .is_some_and(|bytes| bytes & mask == opcode)
    }

    /// Decodes the instruction at RIP. `None`: it cannot be read or is none.
    #[cold]
    #[inline(never)]
    pub(super) fn instruction(&self, memory: &GuestRam) -> Option<Instruction> {
        self.instruction_at(memory, self.vmcb.save.rip)
    }

    fn code_context<'a>(&self, paging: &'a Paging, rip: u64) -> CodeContext<'a> {
        let cs = Segment::from(self.vmcb.save.cs);
        CodeContext {
            paging,
            cs_base: cs.base,
            cs_attributes: cs.attributes,
            cpl: self.vmcb.save.cpl,
            rip,
        }
    }

    /// Decodes the instruction at this offset.
    pub(super) fn instruction_at(&self, memory: &GuestRam, rip: u64) -> Option<Instruction> {
        let paging = self.paging_registers();
        let context = self.code_context(&paging, rip);
        let code = fetch(memory, &context).ok()?;
        let bytes = code.bytes.get(..usize::from(code.length))?;
        // With what only AMD processors decode: LOCK MOV CR0 is MOV CR8 (APM 3, MOV CRn).
        let instruction =
            Decoder::with_ip(context.bitness(), bytes, context.rip, DecoderOptions::AMD).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// The linear address behind the instruction at RIP. `None`: there is none, the offset does not reach that far.
    pub(super) fn behind(&self, memory: &GuestRam) -> Option<u64> {
        let length = self.instruction(memory)?.len() as u64;
        let rip = self.vmcb.save.rip.checked_add(length)?;
        let paging = self.paging_registers();
        let context = self.code_context(&paging, rip);
        let bits = context.bitness();
        (bits == u64::BITS || rip >> bits == 0).then(|| context.linear().0)
    }

    /// The value of a word operand, in a register or in memory.
    pub(super) fn word_operand(&self, memory: &GuestRam, instruction: &Instruction) -> Option<u16> {
        if let Some(register) = general_register(instruction.op_register(0)) {
            return Some(self.block.gprs[register] as u16);
        }
        let linear =
            instruction.virtual_address(0, 0, |register, _, _| self.address_part(register))?;
        let linear = if self.is_64_bit() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        let access = Access {
            write: false,
            execute: false,
            user: self.vmcb.save.cpl == 3,
        };
        let paging = self.paging_registers();
        let mut bytes = [0; 2];
        for (at, byte) in (0..).zip(&mut bytes) {
            let gpa: Gpa = translate(memory, &paging, Gva(linear.wrapping_add(at)), access).ok()?;
            memory.read(gpa, core::slice::from_mut(byte)).ok()?;
        }
        Some(u16::from_le_bytes(bytes))
    }

    /// Whether it is a repeated string instruction whose count is used up.
    pub(super) fn is_repeated_to_the_end(&self, instruction: &Instruction) -> bool {
        if !instruction.is_string_instruction()
            || !(instruction.has_rep_prefix() || instruction.has_repne_prefix())
        {
            return false;
        }
        // The address size, which is that of the count, shows in the operands.
        let count = self.block.gprs[Gpr::Rcx];
        let mask = (0..instruction.op_count())
            .find_map(|n| match instruction.op_kind(n) {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(0xffff),
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                    Some(0xffff_ffff)
                }
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(u64::MAX),
                _ => None,
            })
            .unwrap_or(u64::MAX);
        count & mask == 0
    }

    /// What a register contributes to an address: its value, or a segment's base.
    fn address_part(&self, register: Register) -> Option<u64> {
        let segment = match register {
            Register::ES => SegmentName::Es,
            Register::CS => SegmentName::Cs,
            Register::SS => SegmentName::Ss,
            Register::DS => SegmentName::Ds,
            Register::FS => SegmentName::Fs,
            Register::GS => SegmentName::Gs,
            _ => {
                let value = self.block.gprs[general_register(register)?];
                return Some(match register.size() {
                    2 => value & 0xffff,
                    4 => value & 0xffff_ffff,
                    _ => value,
                });
            }
        };
        let flat = self.is_64_bit() && !matches!(segment, SegmentName::Fs | SegmentName::Gs);
        Some(if flat {
            0
        } else {
            self.segment_of(segment).base
        })
    }

    /// RFLAGS.RF and the interrupt shadow end, RIP moves.
    #[inline]
    pub(super) fn move_rip(&mut self, length: u8) {
        let wide = self.is_64_bit();
        let save = &mut self.vmcb.save;
        let next = save.rip.wrapping_add(u64::from(length));
        save.rip = if wide { next } else { next & 0xffff_ffff };
        save.rflags &= !Rflags::RF.bits();
    }
}

/// The general register that an operand names, whatever its size.
pub(super) fn general_register(register: Register) -> Option<Gpr> {
    (register.is_gpr16() || register.is_gpr32() || register.is_gpr64())
        .then(|| Gpr::from_encoding(register.number() as u8))
}
