//! Fetching and decoding the instruction at RIP.

use arch::addr::Gva;
use arch::regs::{Cr0, Efer, Paging, SegmentAttributes};
use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::memory::GuestMemory;
use crate::walk::{Access, WalkError, translate};

/// Bytes of the longest instruction.
pub const MAX_INSTRUCTION: usize = 15;

/// What decides where the instruction lies and how it decodes.
#[derive(Clone, Copy, Debug)]
pub struct CodeContext<'a> {
    /// Paging and mode.
    pub paging: &'a Paging,
    /// Base of the code segment; 64-bit code has none.
    pub cs_base: u64,
    /// Attributes of the code segment.
    pub cs_attributes: SegmentAttributes,
    /// Current privilege level.
    pub cpl: u8,
    /// Offset of the instruction.
    pub rip: u64,
}

impl CodeContext<'_> {
    /// 16, 32 or 64.
    #[must_use]
    #[inline]
    pub fn bitness(&self) -> u32 {
        if !self.paging.cr0.contains(Cr0::PE) {
            // CS.D is kept from protected mode ("big real mode"), as the processor does.
            return if self.cs_attributes.contains(SegmentAttributes::BIG) {
                32
            } else {
                16
            };
        }
        if self.paging.efer.contains(Efer::LMA)
            && self.cs_attributes.contains(SegmentAttributes::LONG)
        {
            64
        } else if self.cs_attributes.contains(SegmentAttributes::BIG) {
            32
        } else {
            16
        }
    }

    /// Linear address of the instruction.
    #[must_use]
    #[inline]
    pub fn linear(&self) -> Gva {
        if self.bitness() == 64 {
            Gva(self.rip)
        } else {
            Gva(self.cs_base.wrapping_add(self.rip) & 0xffff_ffff)
        }
    }
}

/// Bytes at RIP.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Code {
    /// The bytes; behind `length` they are zero.
    pub bytes: [u8; MAX_INSTRUCTION],
    /// How many could be fetched: fewer than 15 where the next page cannot be read.
    pub length: u8,
}

impl PartialEq for Code {
    /// Two words that overlap in a byte, which is much less than a loop over fifteen.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let words = |code: &Self| {
            let first = code.bytes.first_chunk().copied().map(u64::from_le_bytes);
            let last = code.bytes.last_chunk().copied().map(u64::from_le_bytes);
            (first, last, code.length)
        };
        words(self) == words(other)
    }
}

/// Why there is no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeError {
    /// Its first byte does not translate.
    Walk(WalkError),
    /// Its first byte is not in RAM.
    NotInRam,
    /// The bytes are no instruction, or it goes on in a page that cannot be read.
    Invalid,
}

/// Fetches up to 15 bytes at RIP.
///
/// # Errors
///
/// Not even the first byte can be read.
#[inline]
pub fn fetch<M: GuestMemory>(memory: &M, context: &CodeContext<'_>) -> Result<Code, CodeError> {
    let access = Access {
        write: false,
        execute: true,
        user: context.cpl == 3,
    };
    let start = context.linear();
    let gpa = translate(memory, context.paging, start, access).map_err(CodeError::Walk)?;
    let mut code = Code {
        bytes: [0; MAX_INSTRUCTION],
        length: MAX_INSTRUCTION as u8,
    };
    let in_page = (4096 - start.page_offset()) as usize;
    if in_page > MAX_INSTRUCTION {
        let bytes = memory
            .read_u128(gpa)
            .map_err(|_| CodeError::NotInRam)?
            .to_le_bytes();
        code.bytes = *bytes.first_chunk().ok_or(CodeError::Invalid)?;
        return Ok(code);
    }
    let in_page = in_page.min(MAX_INSTRUCTION);
    let (head, tail) = code.bytes.split_at_mut(in_page);
    memory.read(gpa, head).map_err(|_| CodeError::NotInRam)?;
    if tail.is_empty() {
        return Ok(code);
    }
    let next = translate(memory, context.paging, start.offset(in_page as u64), access);
    let whole = next.is_ok_and(|gpa| memory.read(gpa, tail).is_ok());
    if !whole {
        tail.fill(0);
        code.length = in_page as u8;
    }
    Ok(code)
}

/// Decodes fetched bytes.
///
/// # Errors
///
/// [`CodeError::Invalid`].
pub fn decode(code: &Code, context: &CodeContext<'_>) -> Result<Instruction, CodeError> {
    let bytes = code
        .bytes
        .get(..usize::from(code.length))
        .ok_or(CodeError::Invalid)?;
    let instruction =
        Decoder::with_ip(context.bitness(), bytes, context.rip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        Err(CodeError::Invalid)
    } else {
        Ok(instruction)
    }
}

/// Makes the decoder build its tables, which it does at first use.
pub fn warm() {
    Decoder::new(64, &[0x90], DecoderOptions::NONE).decode_out(&mut Instruction::default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ram, control_long, control_protected};
    use arch::regs::Segment;
    use iced_x86::Mnemonic;

    const CODE_64: Segment = Segment::flat(8, 0xa09b);
    const CODE_32: Segment = Segment::flat(8, 0xc09b);
    const CODE_16: Segment = Segment::real(0x100, 0x9b);

    fn context<'a>(paging: &'a Paging, cs: &Segment, rip: u64) -> CodeContext<'a> {
        CodeContext {
            paging,
            cs_base: cs.base,
            cs_attributes: cs.attributes,
            cpl: 0,
            rip,
        }
    }

    #[test]
    fn the_mode_decides_what_the_bytes_mean() {
        let code = Code {
            bytes: [0x48, 0x89, 0xc8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            length: 15,
        };
        let long = control_long(0).paging();
        let here = context(&long, &CODE_64, 0);
        assert_eq!(decode(&code, &here).map(|i| i.len()), Ok(3));
        let protected = control_protected().paging();
        let here = context(&protected, &CODE_32, 0);
        assert_eq!(
            decode(&code, &here).map(|i| i.mnemonic()),
            Ok(Mnemonic::Dec)
        );
    }

    #[test]
    fn real_mode_addresses_add_the_base() {
        let mut ram = Ram::new(0x1_0000);
        ram.put(0x1234, &[0x0f, 0xa2]);
        let mut paging = control_protected().paging();
        paging.cr0 -= Cr0::PE;
        let here = context(&paging, &CODE_16, 0x234);
        assert_eq!(here.bitness(), 16);
        let code = fetch(&ram, &here).expect("in RAM");
        assert_eq!(
            decode(&code, &here).map(|i| i.mnemonic()),
            Ok(Mnemonic::Cpuid)
        );
    }

    #[test]
    fn every_byte_and_the_length_count_in_a_comparison() {
        let code = Code {
            bytes: core::array::from_fn(|i| i as u8),
            length: 15,
        };
        for at in 0..MAX_INSTRUCTION {
            let mut other = code;
            other.bytes[at] ^= 0x80;
            assert_ne!(code, other, "byte {at}");
        }
        assert_ne!(code, Code { length: 14, ..code });
        let copy = code;
        assert_eq!(code, copy);
    }

    #[test]
    fn the_last_fifteen_bytes_of_a_page_need_no_other_page() {
        let mut ram = Ram::new(0x2000);
        ram.put(0x1ff1, &[0x90; 15]);
        let paging = control_protected().paging();
        for rip in [0x1ff0, 0x1ff1] {
            let here = context(&paging, &CODE_32, rip);
            let code = fetch(&ram, &here).expect("in RAM");
            assert_eq!((code.length, code.bytes[14]), (15, 0x90));
        }
    }

    #[test]
    fn an_instruction_may_end_where_the_next_page_is_missing() {
        let mut ram = Ram::new(0x2000);
        ram.put(0x1ffe, &[0x0f, 0xa2]);
        let paging = control_protected().paging();
        let here = context(&paging, &CODE_32, 0x1ffe);
        let code = fetch(&ram, &here).expect("first byte is there");
        assert_eq!(code.length, 2);
        assert_eq!(decode(&code, &here).map(|i| i.len()), Ok(2));
        let cut = CodeContext {
            rip: 0x1fff,
            ..here
        };
        let code = fetch(&ram, &cut).expect("first byte is there");
        assert_eq!(decode(&code, &cut), Err(CodeError::Invalid));
        let outside = CodeContext {
            rip: 0x2000,
            ..here
        };
        assert_eq!(fetch(&ram, &outside), Err(CodeError::NotInRam));
    }
}
