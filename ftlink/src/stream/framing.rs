//! How entries lie in the stream: a length as little-endian base 128 (at most three bytes, shortest
//! form only), then the entry.

/// Largest entry, in bytes.
pub const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// Most bytes a length takes.
pub const MAX_LENGTH_BYTES: usize = 3;

/// A length no writer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength;

/// Writes `length` into `target`; returns the bytes used.
#[must_use]
pub fn write_length(length: usize, target: &mut [u8; MAX_LENGTH_BYTES]) -> usize {
    let mut rest = length;
    for (index, byte) in target.iter_mut().enumerate() {
        let low = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            *byte = low;
            return index + 1;
        }
        *byte = low | 0x80;
    }
    MAX_LENGTH_BYTES
}

/// Reads a length from at most `available` bytes that `byte_at` gives.
///
/// `Ok(None)`: more bytes are needed. Otherwise the length and the bytes it took.
///
/// # Errors
///
/// [`BadLength`]: above [`MAX_ENTRY_BYTES`], or not the shortest form.
pub fn read_length(
    available: u64,
    byte_at: impl Fn(u64) -> u8,
) -> Result<Option<(usize, usize)>, BadLength> {
    let mut length = 0;
    for index in 0..MAX_LENGTH_BYTES {
        if index as u64 >= available {
            return Ok(None);
        }
        let byte = byte_at(index as u64);
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let shortest = byte != 0 || index == 0;
            if !shortest || length > MAX_ENTRY_BYTES {
                return Err(BadLength);
            }
            return Ok(Some((length, index + 1)));
        }
    }
    Err(BadLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back_and_needs_all_its_bytes() {
        for length in (0..=MAX_ENTRY_BYTES)
            .step_by(61)
            .chain([127, 128, 16_383, 16_384])
        {
            let mut bytes = [0; MAX_LENGTH_BYTES];
            let used = write_length(length, &mut bytes);
            let read = |available| read_length(available, |index| bytes[index as usize]);
            assert_eq!(read(used as u64), Ok(Some((length, used))));
            assert_eq!(read(used as u64 - 1), Ok(None));
        }
    }

    #[test]
    fn lengths_no_writer_writes_are_bad() {
        let read = |bytes: &[u8]| read_length(bytes.len() as u64, |index| bytes[index as usize]);
        assert_eq!(read(&[0x80, 0]), Err(BadLength));
        assert_eq!(read(&[0x80, 0x80, 0]), Err(BadLength));
        assert_eq!(read(&[0x80, 0x80, 0x80]), Err(BadLength));
        assert_eq!(read(&[0x81, 0x80, 0x04]), Err(BadLength));
        assert_eq!(read(&[0x80, 0x80, 0x04]), Ok(Some((65_536, 3))));
    }
}
