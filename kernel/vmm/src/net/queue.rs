//! A queue of whole frames with memory of its own: between a switch and the host's stack.

use alloc::boxed::Box;
use alloc::vec;

use arch::nic::FRAME_MAX;

#[derive(Clone, Copy)]
struct Slot {
    bytes: [u8; FRAME_MAX],
    length: usize,
}

/// First in, first out; a fixed number of frames.
pub struct FrameQueue {
    slots: Box<[Slot]>,
    first: usize,
    length: usize,
}

impl FrameQueue {
    /// Room for `frames`, at least one.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        let empty = Slot {
            bytes: [0; FRAME_MAX],
            length: 0,
        };
        Self {
            slots: vec![empty; frames.max(1)].into_boxed_slice(),
            first: 0,
            length: 0,
        }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether nothing more goes in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.length == self.slots.len()
    }

    /// Adds a frame of `bytes` bytes that `fill` writes.
    ///
    /// # Errors
    ///
    /// `fill`, not called: there is no room, or the frame is longer than [`FRAME_MAX`].
    pub fn push<T, F: FnOnce(&mut [u8]) -> T>(&mut self, bytes: usize, fill: F) -> Result<T, F> {
        if self.is_full() || bytes > FRAME_MAX {
            return Err(fill);
        }
        let last = (self.first + self.length) % self.slots.len();
        let slot = &mut self.slots[last];
        slot.length = bytes;
        let result = fill(&mut slot.bytes[..bytes]);
        self.length += 1;
        Ok(result)
    }

    /// The first frame.
    #[must_use]
    pub fn front(&self) -> Option<&[u8]> {
        let slot = &self.slots[self.first];
        (!self.is_empty()).then(|| &slot.bytes[..slot.length])
    }

    /// Takes the first frame out.
    pub fn pop(&mut self) {
        if !self.is_empty() {
            self.first = (self.first + 1) % self.slots.len();
            self.length -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut FrameQueue, bytes: &[u8]) -> bool {
        queue
            .push(bytes.len(), |to| to.copy_from_slice(bytes))
            .is_ok()
    }

    #[test]
    fn frames_come_out_in_order_and_none_is_lost() {
        let mut queue = FrameQueue::new(3);
        assert_eq!(queue.front(), None);
        queue.pop();
        for round in 0..10 {
            assert!(push(&mut queue, &[round, 1]));
            assert!(push(&mut queue, &[round, 2, 3]));
            assert!(push(&mut queue, &[]));
            assert!(queue.is_full() && !push(&mut queue, &[9]));
            assert_eq!(queue.front(), Some(&[round, 1][..]));
            queue.pop();
            assert_eq!(queue.front(), Some(&[round, 2, 3][..]));
            queue.pop();
            assert_eq!(queue.front(), Some(&[][..]));
            queue.pop();
            assert!(queue.is_empty());
        }
        assert!(push(&mut queue, &[0; FRAME_MAX]));
        assert!(!push(&mut queue, &[0; FRAME_MAX + 1]));
    }
}
