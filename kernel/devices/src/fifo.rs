//! A queue of bytes with a fixed limit.

/// A first-in first-out queue of at most `N` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fifo<const N: usize> {
    bytes: [u8; N],
    first: usize,
    length: usize,
}

impl<const N: usize> Default for Fifo<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            first: 0,
            length: 0,
        }
    }
}

impl<const N: usize> Fifo<N> {
    /// Bytes in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds a byte. Returns whether there was room.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.length >= N {
            return false;
        }
        if let Some(place) = self.bytes.get_mut((self.first + self.length) % N) {
            *place = byte;
            self.length += 1;
        }
        true
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        if self.length == 0 {
            return None;
        }
        let byte = self.bytes.get(self.first).copied();
        self.first = (self.first + 1) % N;
        self.length -= 1;
        byte
    }

    /// Drops all bytes.
    pub fn clear(&mut self) {
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_around_the_end() {
        let mut fifo = Fifo::<3>::default();
        for round in 0..10u8 {
            assert!(fifo.push(round) && fifo.push(round + 1) && fifo.push(round + 2));
            assert!(!fifo.push(99));
            assert_eq!(fifo.len(), 3);
            let out = [fifo.pop(), fifo.pop(), fifo.pop(), fifo.pop()];
            let want = [Some(round), Some(round + 1), Some(round + 2), None];
            assert_eq!(out, want);
            fifo.push(1);
            fifo.clear();
            assert!(fifo.is_empty());
        }
    }
}
