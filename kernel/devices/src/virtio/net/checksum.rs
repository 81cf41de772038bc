//! The checksum of TCP and UDP (RFC 1071), completed in software.

/// Sums `frame` from `start` on and puts the complement `offset` bytes behind `start`, where the driver has left the sum
/// of the pseudo header (VIRTIO 5.1.6.2). False: that is not inside of the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(segment) = frame.get_mut(start..) else {
        return false;
    };
    let sum = !fold(segment);
    // Zero would mean that there is none (RFC 768).
    let sum = if sum == 0 { 0xffff } else { sum };
    match segment.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        Some(place) => {
            *place = sum.to_le_bytes();
            true
        }
        None => false,
    }
}

/// Sum of the words, with carries added again. The order of bytes in a word does not matter as long as it is the same
/// when the sum is stored.
fn fold(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    let words = words.iter().chain([&last]);
    // No frame has 2⁶⁴ words.
    let wide: u128 = words
        .map(|word| u128::from(u64::from_le_bytes(*word)))
        .sum();
    let mut sum = (wide >> 64) as u64 + (wide as u64 & 0xffff_ffff) + (wide as u64 >> 32);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// As RFC 1071 4.1 writes it down.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(&bytes).swap_bytes(), 0xddf2);
    }

    #[test]
    fn every_length_gives_the_plain_sum() {
        let bytes: Vec<u8> = (0..200u32).map(|i| (i * 197 + 255) as u8).collect();
        for end in 1..bytes.len() {
            assert_eq!(
                fold(&bytes[..end]).swap_bytes(),
                plain(&bytes[..end]),
                "{end}"
            );
        }
        assert_eq!(fold(&[0xff; 9001]), 0xff);
        assert_eq!(fold(&[]), 0);
    }

    #[test]
    fn a_completed_checksum_verifies() {
        let mut frame: Vec<u8> = (0..77u8).collect();
        assert!(complete(&mut frame, 34, 16));
        // What lay at its place is part of the sum, as the pseudo header's is.
        let stored = u16::from_be_bytes([frame[50], frame[51]]);
        let mut whole = frame.clone();
        (whole[50], whole[51]) = (50, 51);
        assert_eq!(stored, !plain(&whole[34..]));
        assert_eq!(frame[..34], whole[..34]);
    }

    #[test]
    fn a_sum_of_zero_is_written_as_ones() {
        let mut frame = [0xff; 4];
        assert!(complete(&mut frame, 0, 2));
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn outside_of_the_frame_nothing_is_written() {
        let mut frame = [7; 20];
        for (start, offset) in [(21, 0), (20, 0), (19, 0), (0, 19), (10, 9), (65535, 65535)] {
            assert!(!complete(&mut frame, start, offset), "{start} {offset}");
        }
        assert_eq!(frame, [7; 20]);
        assert!(complete(&mut frame, 0, 18));
    }
}
