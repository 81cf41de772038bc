//! Reading and writing general registers by the names a decoder gives them.

use arch::regs::{Gpr, Gprs};
use iced_x86::Register;

/// The register file slot, the operand bytes, and whether it is one of AH, CH, DH, BH.
fn locate(register: Register) -> Option<(Gpr, u8, bool)> {
    let high = match register {
        Register::AH => Some(Gpr::Rax),
        Register::CH => Some(Gpr::Rcx),
        Register::DH => Some(Gpr::Rdx),
        Register::BH => Some(Gpr::Rbx),
        _ => None,
    };
    if let Some(gpr) = high {
        return Some((gpr, 1, true));
    }
    if !register.is_gpr() {
        return None;
    }
    let number = u8::try_from(register.full_register().number()).ok()?;
    Some((
        Gpr::from_encoding(number),
        u8::try_from(register.size()).ok()?,
        false,
    ))
}

/// The value of a general register, zero-extended; `None` if it is no general register.
#[must_use]
pub fn read(gprs: &Gprs, register: Register) -> Option<u64> {
    let (gpr, size, high) = locate(register)?;
    let value = gprs[gpr];
    Some(if high {
        value >> 8 & 0xff
    } else {
        value & mask(size)
    })
}

/// Writes a general register as instructions do: 32-bit writes clear the upper half, narrower ones keep
/// the rest. Returns `None` if it is no general register.
#[must_use]
pub fn write(gprs: &mut Gprs, register: Register, value: u64) -> Option<()> {
    let (gpr, size, high) = locate(register)?;
    if high {
        gprs[gpr] = gprs[gpr] & !0xff00 | (value & 0xff) << 8;
    } else {
        write_sized(gprs, gpr, size, value);
    }
    Some(())
}

/// Writes `size` bytes (1, 2, 4, 8) of a register as instructions do.
pub fn write_sized(gprs: &mut Gprs, gpr: Gpr, size: u8, value: u64) {
    gprs[gpr] = match size {
        1 | 2 => gprs[gpr] & !mask(size) | value & mask(size),
        _ => value & mask(size),
    };
}

/// Ones in the low `size` bytes (1, 2, 4, 8).
#[must_use]
pub const fn mask(size: u8) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (8 * size)) - 1
    }
}

/// The low `size` bytes as a signed number, extended to 64 bits.
#[must_use]
pub const fn sign_extend(value: u64, size: u8) -> u64 {
    if size >= 8 {
        return value;
    }
    let shift = 64 - 8 * size as u32;
    ((value << shift) as i64 >> shift) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_writes_keep_what_instructions_keep() {
        let mut gprs = Gprs([0x1111_2222_3333_4444; 16]);
        write(&mut gprs, Register::AH, 0xaa).expect("gpr");
        assert_eq!(gprs[Gpr::Rax], 0x1111_2222_3333_aa44);
        write(&mut gprs, Register::SPL, 0xbb).expect("gpr");
        assert_eq!(gprs[Gpr::Rsp], 0x1111_2222_3333_44bb);
        write(&mut gprs, Register::R9W, 0xcccc).expect("gpr");
        assert_eq!(gprs[Gpr::R9], 0x1111_2222_3333_cccc);
        write(&mut gprs, Register::EDI, 0xdddd_dddd).expect("gpr");
        assert_eq!(gprs[Gpr::Rdi], 0xdddd_dddd);
        assert_eq!(write(&mut gprs, Register::XMM0, 0), None);
    }

    #[test]
    fn reads_are_zero_extended() {
        let gprs = Gprs([0x8877_6655_4433_22ff; 16]);
        assert_eq!(read(&gprs, Register::BH), Some(0x22));
        assert_eq!(read(&gprs, Register::BPL), Some(0xff));
        assert_eq!(read(&gprs, Register::ECX), Some(0x4433_22ff));
        assert_eq!(sign_extend(0xff, 1), u64::MAX);
        assert_eq!(sign_extend(0x7fff, 2), 0x7fff);
    }
}
