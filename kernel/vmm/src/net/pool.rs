//! Buffers for frames that are between two ports.

use alloc::vec::Vec;

use arch::nic::BUFFER_BYTES;

/// A frame in a [`Pool`], by the one who holds it. It is given back, not dropped.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to its pool"]
pub struct Frame(u16);

/// Buffers, as many as there are places where frames wait.
#[derive(Default)]
pub struct Pool {
    buffers: Vec<[u8; BUFFER_BYTES]>,
    lengths: Vec<u16>,
    holders: Vec<u16>,
    free: Vec<u16>,
}

impl Pool {
    /// A pool without buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds buffers until there are so many, at most 65 535.
    pub fn grow_to(&mut self, frames: usize) {
        let before = self.buffers.len();
        let after = frames.min(usize::from(u16::MAX)).max(before);
        self.buffers.resize(after, [0; BUFFER_BYTES]);
        self.lengths.resize(after, 0);
        self.holders.resize(after, 0);
        self.free
            .extend((before..after).map(|number| number as u16));
        // Nothing is allocated when they come back.
        self.free.reserve(after - self.free.len());
    }

    /// Buffers that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A frame to be filled by `fill`, which gives its length or nothing. `None` also if there is no buffer.
    pub fn fill(
        &mut self,
        fill: impl FnOnce(&mut [u8; BUFFER_BYTES]) -> Option<usize>,
    ) -> Option<Frame> {
        let number = *self.free.last()?;
        let at = usize::from(number);
        let length = fill(&mut self.buffers[at])?;
        self.lengths[at] = length.min(BUFFER_BYTES) as u16;
        self.holders[at] = 1;
        self.free.pop();
        Some(Frame(number))
    }

    /// A copy of `bytes`; `None` if it is longer than a buffer, or there is no buffer.
    pub fn copy(&mut self, bytes: &[u8]) -> Option<Frame> {
        self.fill(|buffer| {
            buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(bytes.len())
        })
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        let at = usize::from(frame.0);
        &self.buffers[at][..usize::from(self.lengths[at])]
    }

    /// The same frame for one more holder.
    pub fn share(&mut self, frame: &Frame) -> Frame {
        self.holders[usize::from(frame.0)] += 1;
        Frame(frame.0)
    }

    /// Ends one holder's hold.
    pub fn give_back(&mut self, frame: Frame) {
        let holders = &mut self.holders[usize::from(frame.0)];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(frame.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_free_when_its_last_holder_gives_it_back() {
        let mut pool = Pool::new();
        assert!(pool.copy(&[1]).is_none());
        pool.grow_to(1);
        pool.grow_to(2);
        pool.grow_to(1);
        let frame = pool.copy(&[1, 2, 3]).expect("a buffer");
        let other = pool.share(&frame);
        assert_eq!(pool.free(), 1);
        pool.give_back(frame);
        assert_eq!((pool.free(), pool.bytes(&other)), (1, &[1, 2, 3][..]));
        let second = pool.copy(&[4]).expect("a buffer");
        assert!(pool.copy(&[5]).is_none(), "all are held");
        assert_eq!(pool.bytes(&other), [1, 2, 3]);
        pool.give_back(other);
        pool.give_back(second);
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn what_does_not_fit_or_is_not_filled_holds_nothing() {
        let mut pool = Pool::new();
        pool.grow_to(1);
        assert!(pool.copy(&[0; BUFFER_BYTES + 1]).is_none());
        assert!(pool.fill(|_| None).is_none());
        assert_eq!(pool.free(), 1);
        let whole = pool.copy(&[7; BUFFER_BYTES]).expect("fits");
        assert_eq!(pool.bytes(&whole).len(), BUFFER_BYTES);
        pool.give_back(whole);
    }
}
