//! Stream bytes in memory: a ring indexed by stream offset.

use alloc::boxed::Box;
use alloc::vec;

/// A ring of a power of two of bytes.
pub struct ByteRing {
    bytes: Box<[u8]>,
}

impl ByteRing {
    /// A ring of `bytes`, rounded up to a power of two.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes.next_power_of_two()].into_boxed_slice(),
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    fn place(&self, offset: u64) -> usize {
        // A power of two divides 2^64, so the low bits are the place; usize has them all.
        (offset as usize) & (self.bytes.len() - 1)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    ///
    /// More bytes than the ring has.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let place = self.place(offset);
        let first = bytes.len().min(self.bytes.len() - place);
        self.bytes[place..place + first].copy_from_slice(&bytes[..first]);
        self.bytes[..bytes.len() - first].copy_from_slice(&bytes[first..]);
    }

    /// Copies from `offset` into `target`.
    ///
    /// # Panics
    ///
    /// More bytes than the ring has.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        let (first, second) = self.slices(offset, target.len());
        let (head, tail) = target.split_at_mut(first.len());
        head.copy_from_slice(first);
        tail.copy_from_slice(second);
    }

    /// The bytes at `offset`, in two parts where they wrap.
    ///
    /// # Panics
    ///
    /// More bytes than the ring has.
    #[must_use]
    pub fn slices(&self, offset: u64, length: usize) -> (&[u8], &[u8]) {
        let place = self.place(offset);
        let first = length.min(self.bytes.len() - place);
        (
            &self.bytes[place..place + first],
            &self.bytes[..length - first],
        )
    }

    /// One byte.
    #[must_use]
    pub fn byte(&self, offset: u64) -> u8 {
        self.bytes[self.place(offset)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_across_the_wrap() {
        let mut ring = ByteRing::new(15);
        assert_eq!(ring.capacity(), 16);
        for offset in [0, 5, 13, 16 * 7 + 9, u64::MAX - 20] {
            ring.write(offset, b"0123456789");
            let mut back = [0; 10];
            ring.read(offset, &mut back);
            assert_eq!(&back, b"0123456789");
            assert_eq!(ring.byte(offset + 3), b'3');
            let (first, second) = ring.slices(offset, 10);
            assert_eq!(first.len() + second.len(), 10);
        }
    }
}
