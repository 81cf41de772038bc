//! Shifts and rotations with their flags, and the conditions that flags are (SDM 1 appendices A and B).

use arch::regs::Rflags;
use iced_x86::{ConditionCode, Mnemonic};

use super::registers::{mask, sign_extend};

/// Result and flags of a shift or rotation of the low `size` bytes (1, 2, 4, 8) of `a`; `None` if `mnemonic` is none.
///
/// What is undefined (AF, and OF for counts other than 1) comes out as if the last of `count` single steps had set it,
/// or stays.
#[must_use]
pub fn shift(
    mnemonic: Mnemonic,
    a: u64,
    count: u64,
    size: u8,
    flags: Rflags,
) -> Option<(u64, Rflags)> {
    let bits = 8 * u32::from(size);
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let rotates = matches!(mnemonic, Mnemonic::Rol | Mnemonic::Ror);
    let top = |value: u64| value >> (bits - 1) & 1 != 0;
    // 128 bits hold every bit that a shift moves out.
    let (a, wide) = (a & mask(size), u128::from(a & mask(size)));
    let (result, carry, overflow) = match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => {
            let moved = wide << count;
            let (result, carry) = (moved as u64 & mask(size), moved >> bits & 1 != 0);
            (result, carry, top(result) != carry)
        }
        Mnemonic::Shr => {
            let moved = wide << 64 >> count;
            ((moved >> 64) as u64, moved >> 63 & 1 != 0, top(a))
        }
        Mnemonic::Sar => {
            let moved = i128::from(sign_extend(a, size) as i64) << 64 >> count;
            let result = (moved >> 64) as u64 & mask(size);
            (result, moved >> 63 & 1 != 0, false)
        }
        Mnemonic::Rol => {
            let result = rotate_left(a, count % bits, bits) & mask(size);
            let carry = result & 1 != 0;
            (result, carry, top(result) != carry)
        }
        Mnemonic::Ror => {
            let result = rotate_left(a, (bits - count % bits) % bits, bits) & mask(size);
            (result, top(result), top(result) != top(result << 1))
        }
        _ => return None,
    };
    if count == 0 {
        return Some((a, flags));
    }
    let mut new = flags;
    if !rotates {
        new.set(Rflags::ZF, result == 0);
        new.set(Rflags::SF, top(result));
        new.set(Rflags::PF, (result as u8).count_ones().is_multiple_of(2));
        new -= Rflags::AF;
    }
    new.set(Rflags::CF, carry);
    new.set(Rflags::OF, overflow);
    Some((result, new))
}

/// `count` is less than `bits`.
const fn rotate_left(a: u64, count: u32, bits: u32) -> u64 {
    let wide = (a as u128) << count;
    wide as u64 | (wide >> bits) as u64
}

/// Whether flags are a condition; `None` if it is none.
#[must_use]
pub fn holds(condition: ConditionCode, flags: Rflags) -> Option<bool> {
    let is = |flag| flags.contains(flag);
    let less = is(Rflags::SF) != is(Rflags::OF);
    Some(match condition {
        ConditionCode::None => return None,
        ConditionCode::o => is(Rflags::OF),
        ConditionCode::no => !is(Rflags::OF),
        ConditionCode::b => is(Rflags::CF),
        ConditionCode::ae => !is(Rflags::CF),
        ConditionCode::e => is(Rflags::ZF),
        ConditionCode::ne => !is(Rflags::ZF),
        ConditionCode::be => flags.intersects(Rflags::CF | Rflags::ZF),
        ConditionCode::a => !flags.intersects(Rflags::CF | Rflags::ZF),
        ConditionCode::s => is(Rflags::SF),
        ConditionCode::ns => !is(Rflags::SF),
        ConditionCode::p => is(Rflags::PF),
        ConditionCode::np => !is(Rflags::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || is(Rflags::ZF),
        ConditionCode::g => !less && !is(Rflags::ZF),
    })
}
