//! The bytes of a log that nobody has taken yet: a ring of a fixed size, since a byte is put into it at every answer.

use alloc::boxed::Box;
use alloc::vec;

use super::codec::Sink;

/// Bytes of log that are kept until somebody takes them.
pub const RING_BYTES: usize = 1 << 20;
const MASK: usize = RING_BYTES - 1;

/// The ring.
pub struct Ring {
    bytes: Box<[u8]>,
    /// Bytes taken, and bytes put, since the start and modulo the word: their difference is what is in it.
    taken: usize,
    put: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            bytes: vec![0; RING_BYTES].into_boxed_slice(),
            taken: 0,
            put: 0,
        }
    }
}

impl Sink for Ring {
    #[inline]
    fn put(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.put & MASK) {
            *slot = byte;
        }
        self.put = self.put.wrapping_add(1);
    }
}

impl Ring {
    /// Bytes in it.
    ///
    /// # Panics
    ///
    /// More was put than it holds, and is lost: whoever puts asks before whether there is room.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        let len = self.put.wrapping_sub(self.taken);
        assert!(len <= RING_BYTES, "the log has run over");
        len
    }

    /// Bytes put since the start.
    #[inline]
    #[must_use]
    pub const fn total(&self) -> usize {
        self.put
    }

    /// Moves the oldest bytes to `to`. Returns how many.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        let count = self.len().min(to.len());
        let first = self.taken & MASK;
        let in_one_piece = count.min(RING_BYTES - first);
        let (before, behind) = to.split_at_mut(in_one_piece);
        before.copy_from_slice(&self.bytes[first..first + in_one_piece]);
        let rest = count - in_one_piece;
        behind[..rest].copy_from_slice(&self.bytes[..rest]);
        self.taken = self.taken.wrapping_add(count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn bytes_come_out_in_order_also_where_the_ring_begins_again() {
        let mut ring = Ring::default();
        let (mut expected, mut next) = (0u8, 0u8);
        let mut moved = 0;
        let mut to = vec![0; 300_001];
        while moved < 3 * RING_BYTES {
            for _ in 0..250_007 {
                ring.put(next);
                next = next.wrapping_add(1);
            }
            let len = ring.len();
            let count = ring.take(&mut to);
            assert_eq!((count, ring.len()), (len.min(to.len()), len - count));
            let wanted: Vec<u8> = (0..count).map(|i| expected.wrapping_add(i as u8)).collect();
            assert_eq!(to[..count], wanted);
            expected = expected.wrapping_add(count as u8);
            moved += count;
        }
    }

    #[test]
    #[should_panic(expected = "run over")]
    fn running_over_is_noticed() {
        let mut ring = Ring::default();
        (0..=RING_BYTES).for_each(|_| ring.put(0));
        assert_ne!(ring.len(), 0);
    }
}
