//! Pieces of the host's ACPI tables, read from their bytes: the processors and I/O APICs of the MADT, and,
//! without interpreting byte code, how to switch the machine off.

/// The sleep types of state S5, for SLP_TYP of the two PM1 control registers (ACPI 6.4, 7.4.2 and 4.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOff {
    /// For PM1a_CNT.
    pub a: u8,
    /// For PM1b_CNT.
    pub b: u8,
}

const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const BYTE_PREFIX: u8 = 0x0a;

/// Finds `Name (_S5, Package () {a, b, …})` in a definition block's byte code.
///
/// The object's name and its package are constant in practice, so a search for their encoding (ACPI 6.4,
/// 20.2.2, 20.2.5.4) serves; anything else gives none.
#[must_use]
pub fn soft_off(code: &[u8]) -> Option<SoftOff> {
    const NAME: &[u8; 4] = b"_S5_";
    let at = code.windows(NAME.len()).position(|window| window == NAME)?;
    let before = code.get(..at)?;
    let named = before.ends_with(&[NAME_OP]) || before.ends_with(&[NAME_OP, b'\\']);
    let mut rest = code.get(at + NAME.len()..)?;
    if !named || take(&mut rest)? != PACKAGE_OP {
        return None;
    }
    // PkgLength: the two high bits of its first byte say how many bytes follow.
    let follow = usize::from(*rest.first()? >> 6);
    rest = rest.get(1 + follow..)?;
    let elements = take(&mut rest)?;
    if elements < 2 {
        return None;
    }
    let a = integer(&mut rest)?;
    let b = integer(&mut rest)?;
    Some(SoftOff { a, b }).filter(|found| found.a < 8 && found.b < 8)
}

fn take(code: &mut &[u8]) -> Option<u8> {
    let (first, rest) = code.split_first()?;
    *code = rest;
    Some(*first)
}

fn integer(code: &mut &[u8]) -> Option<u8> {
    match take(code)? {
        BYTE_PREFIX => take(code),
        small @ 0..=1 => Some(small),
        _ => None,
    }
}

/// An entry of the MADT that matters to a host (ACPI 6.4, 5.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadtEntry {
    /// A processor that is present.
    Processor {
        /// Its APIC identifier.
        apic_id: u32,
    },
    /// An I/O APIC.
    IoApic {
        /// Physical address of its registers.
        address: u32,
    },
}

/// Bytes before the MADT's first entry.
const MADT_HEADER: usize = 44;

/// The entries of a whole MADT. A malformed entry ends the list.
pub fn madt_entries(table: &[u8]) -> impl Iterator<Item = MadtEntry> + '_ {
    let mut rest = table.get(MADT_HEADER..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        loop {
            let length = usize::from(*rest.get(1)?);
            let entry = rest.get(..length).filter(|_| length >= 2)?;
            rest = rest.get(length..)?;
            if let Some(found) = madt_entry(entry) {
                return Some(found);
            }
        }
    })
}

fn madt_entry(entry: &[u8]) -> Option<MadtEntry> {
    let u32_at = |at: usize| {
        let bytes = entry.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    const ENABLED: u32 = 1;
    match entry.first()? {
        0 if u32_at(4)? & ENABLED != 0 => Some(MadtEntry::Processor {
            apic_id: u32::from(*entry.get(3)?),
        }),
        9 if u32_at(8)? & ENABLED != 0 => Some(MadtEntry::Processor {
            apic_id: u32_at(4)?,
        }),
        1 => Some(MadtEntry::IoApic {
            address: u32_at(4)?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn both_encodings_of_the_elements_are_read() {
        let bytes = b"..\x08_S5_\x12\x06\x04\x0a\x05\x0a\x07\x00\x00";
        assert_eq!(soft_off(bytes), Some(SoftOff { a: 5, b: 7 }));
        let constants = b"\x08\\_S5_\x12\x06\x04\x00\x01\x00\x00";
        assert_eq!(soft_off(constants), Some(SoftOff { a: 0, b: 1 }));
        let long_package = b"\x08_S5_\x12\x47\x00\x04\x0a\x05\x00\x00\x00";
        assert_eq!(soft_off(long_package), Some(SoftOff { a: 5, b: 0 }));
    }

    #[test]
    fn everything_else_is_none() {
        let cases: [&[u8]; 7] = [
            b"",
            b"_S5_",
            b"\x08_S5_\x12",
            b"\x08_S5_\x12\x06\x01\x0a\x05\x0a\x05",
            b"\x08_S5_\x12\x06\x04\x0a\x09\x00",
            b"\x08_S5_\x12\x06\x04\x0b\x05\x00\x00",
            b"x_S5_\x12\x06\x04\x0a\x05\x0a\x05",
        ];
        for case in cases {
            assert_eq!(soft_off(case), None, "{case:x?}");
        }
        let whole = b"\x08_S5_\x12\x06\x04\x0a\x05\x0a\x07";
        for cut in 0..whole.len() {
            assert_eq!(soft_off(&whole[..cut]), None, "cut at {cut}");
        }
    }

    fn madt(entries: &[&[u8]]) -> std::vec::Vec<u8> {
        let mut table = std::vec![0; MADT_HEADER];
        for entry in entries {
            table.extend_from_slice(entry);
        }
        table
    }

    #[test]
    fn only_enabled_processors_and_io_apics_count() {
        let table = madt(&[
            &[0, 8, 0, 3, 1, 0, 0, 0],
            &[0, 8, 1, 4, 0, 0, 0, 0],
            &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
        ]);
        let found: std::vec::Vec<_> = madt_entries(&table).collect();
        let expected = [
            MadtEntry::Processor { apic_id: 3 },
            MadtEntry::IoApic {
                address: 0xfec0_0000,
            },
            MadtEntry::Processor { apic_id: 0x1234 },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_malformed_entry_ends_the_table() {
        let zero_length = madt(&[&[0, 0], &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]]);
        assert_eq!(madt_entries(&zero_length).count(), 0);
        let too_long = madt(&[&[0, 9, 0, 3, 1, 0, 0, 0]]);
        assert_eq!(madt_entries(&too_long).count(), 0);
        assert_eq!(madt_entries(&[]).count(), 0);
        // Too short for what its type says, but well-formed: skipped.
        let short = madt(&[&[1, 3, 0], &[0, 8, 0, 3, 1, 0, 0, 0]]);
        assert_eq!(madt_entries(&short).count(), 1);
    }
}
