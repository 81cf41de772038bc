//! Instructions that were decoded before, by address.
//!
//! An entry is used only if the bytes fetched now are those it was decoded from, so that nothing has to be
//! invalidated: neither when the guest changes its code nor when it maps another page there.

use alloc::boxed::Box;

use iced_x86::Instruction;

use crate::code::{Code, CodeContext, CodeError, decode};

/// Places. A power of two; drivers touch their devices from few instructions.
const PLACES: usize = 64;

struct Entry {
    rip: u64,
    bitness: u32,
    code: Code,
    instruction: Instruction,
}

/// A direct-mapped cache of decoded instructions.
pub struct DecodeCache(Box<[Option<Entry>; PLACES]>);

impl Default for DecodeCache {
    /// An empty cache. The decoder's own tables, built at first use, exist afterwards: building them takes
    /// millions of instructions, which no guest's exit should pay for.
    fn default() -> Self {
        crate::code::warm();
        Self(Box::new([const { None }; PLACES]))
    }
}

impl DecodeCache {
    /// The instruction that `code`, fetched in `context`, is.
    ///
    /// # Errors
    ///
    /// [`CodeError::Invalid`].
    pub fn decode(
        &mut self,
        code: &Code,
        context: &CodeContext<'_>,
    ) -> Result<&Instruction, CodeError> {
        let (rip, bitness) = (context.rip, context.bitness());
        let place = &mut self.0[place_of(rip)];
        let known = place
            .as_ref()
            .is_some_and(|e| e.rip == rip && e.bitness == bitness && e.code == *code);
        if !known {
            *place = None;
            let instruction = decode(code, context)?;
            *place = Some(Entry {
                rip,
                bitness,
                code: *code,
                instruction,
            });
        }
        place
            .as_ref()
            .map(|e| &e.instruction)
            .ok_or(CodeError::Invalid)
    }
}

/// Where the instruction at `rip` is kept.
fn place_of(rip: u64) -> usize {
    (rip ^ rip >> 6 ^ rip >> 12) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::control_long;
    use arch::regs::Segment;
    use iced_x86::Mnemonic;

    const CODE_64: Segment = Segment::flat(8, 0xa09b);
    const CODE_16: Segment = Segment::flat(8, 0x009b);

    fn code(head: &[u8]) -> Code {
        let mut code = Code {
            bytes: [0; 15],
            length: 15,
        };
        code.bytes[..head.len()].copy_from_slice(head);
        code
    }

    fn mnemonic(cache: &mut DecodeCache, head: &[u8], cs: &Segment, rip: u64) -> Mnemonic {
        let paging = control_long(0).paging();
        let context = CodeContext {
            paging: &paging,
            cs_base: cs.base,
            cs_attributes: cs.attributes,
            cpl: 0,
            rip,
        };
        let decoded = cache.decode(&code(head), &context);
        decoded.map_or(Mnemonic::INVALID, Instruction::mnemonic)
    }

    #[test]
    fn changed_bytes_modes_and_addresses_are_decoded_anew() {
        let mut cache = DecodeCache::default();
        let cpuid = [0x0f, 0xa2];
        for _ in 0..2 {
            assert_eq!(
                mnemonic(&mut cache, &cpuid, &CODE_64, 0x1000),
                Mnemonic::Cpuid
            );
        }
        assert_eq!(
            mnemonic(&mut cache, &[0xf4], &CODE_64, 0x1000),
            Mnemonic::Hlt
        );
        let rex = [0x48, 0x89, 0xc8];
        assert_eq!(mnemonic(&mut cache, &rex, &CODE_64, 0x2000), Mnemonic::Mov);
        assert_eq!(mnemonic(&mut cache, &rex, &CODE_16, 0x2000), Mnemonic::Dec);
        // RIP-relative operands depend on the address: same place, same bytes, another instruction.
        let relative = [0x8b, 0x05, 0, 0, 0, 0];
        let paging = control_long(0).paging();
        let targets = [0x40_0000, 0x40_0000 + (1 << 40)].map(|rip| {
            assert_eq!(place_of(rip), place_of(0x40_0000));
            let context = CodeContext {
                paging: &paging,
                cs_base: CODE_64.base,
                cs_attributes: CODE_64.attributes,
                cpl: 0,
                rip,
            };
            cache
                .decode(&code(&relative), &context)
                .map(Instruction::ip_rel_memory_address)
        });
        assert_eq!(targets, [Ok(0x40_0006), Ok(0x40_0006 + (1 << 40))]);
    }

    #[test]
    fn what_is_no_instruction_is_not_kept() {
        let mut cache = DecodeCache::default();
        assert_eq!(
            mnemonic(&mut cache, &[0x06], &CODE_64, 0),
            Mnemonic::INVALID
        );
        assert_eq!(mnemonic(&mut cache, &[0x90], &CODE_64, 0), Mnemonic::Nop);
        assert_eq!(
            mnemonic(&mut cache, &[0x06], &CODE_64, 0),
            Mnemonic::INVALID
        );
    }
}
