//! The arithmetic of instructions that work on memory, with their flags (SDM 1 appendix A).

use arch::regs::Rflags;

use super::registers::mask;

/// An operation of two operands, or of one where `b` is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // instruction names
pub enum Operation {
    Add,
    Adc,
    Sub,
    Sbb,
    Cmp,
    And,
    Or,
    Xor,
    Test,
    Inc,
    Dec,
    Neg,
    Not,
}

/// Result and flags of `operation` on the low `size` bytes (1, 2, 4, 8) of its operands.
#[must_use]
pub fn compute(operation: Operation, a: u64, b: u64, size: u8, flags: Rflags) -> (u64, Rflags) {
    let carry = u64::from(flags.contains(Rflags::CF));
    let (a, b) = (a & mask(size), b & mask(size));
    match operation {
        Operation::Add => sum(a, b, 0, size, flags),
        Operation::Adc => sum(a, b, carry, size, flags),
        Operation::Sub | Operation::Cmp => difference(a, b, 0, size, flags),
        Operation::Sbb => difference(a, b, carry, size, flags),
        Operation::And | Operation::Test => logic(a & b, size, flags),
        Operation::Or => logic(a | b, size, flags),
        Operation::Xor => logic(a ^ b, size, flags),
        Operation::Inc => keep_carry(sum(a, 1, 0, size, flags), flags),
        Operation::Dec => keep_carry(difference(a, 1, 0, size, flags), flags),
        Operation::Neg => difference(0, a, 0, size, flags),
        Operation::Not => (!a & mask(size), flags),
    }
}

fn keep_carry((result, mut new): (u64, Rflags), old: Rflags) -> (u64, Rflags) {
    new.set(Rflags::CF, old.contains(Rflags::CF));
    (result, new)
}

fn sum(a: u64, b: u64, carry: u64, size: u8, flags: Rflags) -> (u64, Rflags) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & mask(size);
    let mut new = result_flags(result, size, flags);
    new.set(Rflags::CF, wide > u128::from(mask(size)));
    new.set(Rflags::AF, (a ^ b ^ result) & 0x10 != 0);
    new.set(
        Rflags::OF,
        (a ^ result) & (b ^ result) & sign_bit(size) != 0,
    );
    (result, new)
}

fn difference(a: u64, b: u64, borrow: u64, size: u8, flags: Rflags) -> (u64, Rflags) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let mut new = result_flags(result, size, flags);
    new.set(
        Rflags::CF,
        u128::from(a) < u128::from(b) + u128::from(borrow),
    );
    new.set(Rflags::AF, (a ^ b ^ result) & 0x10 != 0);
    new.set(Rflags::OF, (a ^ b) & (a ^ result) & sign_bit(size) != 0);
    (result, new)
}

/// AF is undefined after these; it is cleared, as processors do.
fn logic(result: u64, size: u8, flags: Rflags) -> (u64, Rflags) {
    let new = result_flags(result, size, flags) - (Rflags::CF | Rflags::OF | Rflags::AF);
    (result, new)
}

const fn sign_bit(size: u8) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

fn result_flags(result: u64, size: u8, mut flags: Rflags) -> Rflags {
    flags.set(Rflags::ZF, result == 0);
    flags.set(Rflags::SF, result & sign_bit(size) != 0);
    flags.set(Rflags::PF, (result as u8).count_ones().is_multiple_of(2));
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: Rflags = Rflags::FIXED;

    fn check(op: Operation, a: u64, b: u64, size: u8, before: Rflags, result: u64, set: Rflags) {
        assert_eq!(
            compute(op, a, b, size, before | Rflags::FIXED),
            (result, set | Rflags::FIXED),
            "{op:?}"
        );
    }

    #[test]
    fn flags_at_the_edges() {
        use Operation::*;
        check(
            Add,
            0xff,
            1,
            1,
            NONE,
            0,
            Rflags::CF | Rflags::ZF | Rflags::PF | Rflags::AF,
        );
        check(
            Add,
            0x7f,
            1,
            1,
            NONE,
            0x80,
            Rflags::OF | Rflags::SF | Rflags::AF,
        );
        check(
            Sub,
            0,
            1,
            2,
            NONE,
            0xffff,
            Rflags::CF | Rflags::SF | Rflags::PF | Rflags::AF,
        );
        check(
            Cmp,
            0x8000_0000,
            1,
            4,
            NONE,
            0x7fff_ffff,
            Rflags::OF | Rflags::PF | Rflags::AF,
        );
        check(
            Adc,
            u64::MAX,
            0,
            8,
            Rflags::CF,
            0,
            Rflags::CF | Rflags::ZF | Rflags::PF | Rflags::AF,
        );
        check(
            Sbb,
            0,
            u64::MAX,
            8,
            Rflags::CF,
            0,
            Rflags::CF | Rflags::ZF | Rflags::PF | Rflags::AF,
        );
        check(
            And,
            0xf0,
            0x0f,
            1,
            Rflags::CF | Rflags::OF,
            0,
            Rflags::ZF | Rflags::PF,
        );
        check(
            Inc,
            0xff,
            0,
            1,
            Rflags::CF,
            0,
            Rflags::CF | Rflags::ZF | Rflags::PF | Rflags::AF,
        );
        check(Dec, 0x80, 0, 1, NONE, 0x7f, Rflags::OF | Rflags::AF);
        check(
            Neg,
            1,
            0,
            1,
            NONE,
            0xff,
            Rflags::CF | Rflags::SF | Rflags::PF | Rflags::AF,
        );
        check(Not, 0x0f, 0, 1, Rflags::ZF, 0xf0, Rflags::ZF);
    }

    proptest! {
        #[test]
        fn sums_and_differences_agree_with_wider_numbers(a: u32, b: u32, carry: bool) {
            let before = if carry { Rflags::CF } else { Rflags::empty() };
            let (a, b, c) = (u64::from(a), u64::from(b), u64::from(carry));
            let (result, flags) = compute(Operation::Adc, a, b, 4, before);
            prop_assert_eq!(result, (a + b + c) & 0xffff_ffff);
            prop_assert_eq!(flags.contains(Rflags::CF), a + b + c > 0xffff_ffff);
            let signed = i64::from(a as i32) + i64::from(b as i32) + c as i64;
            prop_assert_eq!(flags.contains(Rflags::OF), i32::try_from(signed).is_err());
            let (result, flags) = compute(Operation::Sbb, a, b, 4, before);
            prop_assert_eq!(result, a.wrapping_sub(b + c) & 0xffff_ffff);
            prop_assert_eq!(flags.contains(Rflags::CF), a < b + c);
            let signed = i64::from(a as i32) - i64::from(b as i32) - c as i64;
            prop_assert_eq!(flags.contains(Rflags::OF), i32::try_from(signed).is_err());
        }
    }
}
