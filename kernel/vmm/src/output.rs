//! What a guest has put out and may not leave yet.
//!
//! An output may depend on everything that entered the guest before it, and whoever goes on from the log must not let anything
//! enter before it has put out the same. So the log notes outputs at a point behind them. An output leaves when the log is known to
//! be held elsewhere up to the end of that entry, and not before the one in front of it.
//!
//! The queue has fixed limits. What finds no room is dropped and counted, as a full network drops: no guest sees it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;

/// Bytes that wait at most, unless another limit is asked for.
pub const BYTES: usize = 1 << 20;
/// Outputs that wait at most.
pub const OUTPUTS: usize = 4096;

/// Where an output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The host's serial port, byte by byte.
    Serial,
    /// A line of the host's console.
    Line,
    /// A frame for the network that the guest's card of this number is on.
    Network(u8),
}

/// An output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output<'a> {
    /// Where it goes.
    pub destination: Destination,
    /// What goes there.
    pub bytes: &'a [u8],
}

/// What became of outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Left.
    pub released: u64,
    /// Frames that found no room.
    pub dropped_frames: u64,
    /// Bytes for consoles that found none.
    pub dropped_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Where the log notes it; `None`: not yet.
    position: Option<u64>,
    destination: Destination,
    first: usize,
    length: usize,
}

/// Outputs that wait for the log.
#[derive(Debug)]
pub struct OutputQueue {
    records: VecDeque<Record>,
    outputs: usize,
    /// Each output lies in it in one piece, behind the one before or, where that would not fit, at its beginning.
    bytes: Box<[u8]>,
    counters: Counters,
}

impl Default for OutputQueue {
    fn default() -> Self {
        Self::new(BYTES, OUTPUTS)
    }
}

impl OutputQueue {
    /// Room for `bytes` bytes of `outputs` outputs.
    #[must_use]
    pub fn new(bytes: usize, outputs: usize) -> Self {
        Self {
            records: VecDeque::with_capacity(outputs),
            outputs,
            bytes: vec![0; bytes].into_boxed_slice(),
            counters: Counters::default(),
        }
    }

    /// The guest has put out `output`. False: it is dropped.
    pub fn push(&mut self, output: Output<'_>) -> bool {
        let done = self.extend(output) || self.append(output);
        if !done {
            let (counter, count) = match output.destination {
                Destination::Network(_) => (&mut self.counters.dropped_frames, 1),
                _ => (&mut self.counters.dropped_bytes, output.bytes.len() as u64),
            };
            *counter = counter.wrapping_add(count);
        }
        done
    }

    /// The log notes everything that was put out so far; it has come to `position` with that.
    pub fn note(&mut self, position: u64) {
        let new = self.records.iter_mut().rev();
        for record in new.take_while(|record| record.position.is_none()) {
            record.position = Some(position);
        }
    }

    /// The oldest output, if the log is held up to `held`.
    #[must_use]
    pub fn front(&self, held: u64) -> Option<Output<'_>> {
        let noted = |record: &&Record| record.position.is_some_and(|position| position <= held);
        let record = self.records.front().filter(noted)?;
        Some(Output {
            destination: record.destination,
            bytes: self.bytes.get(record.first..record.first + record.length)?,
        })
    }

    /// Takes the oldest output out.
    pub fn pop(&mut self) {
        if self.records.pop_front().is_some() {
            self.counters.released = self.counters.released.wrapping_add(1);
        }
    }

    /// Gives everything that may leave, now that the log is held up to `held`, to `give`.
    pub fn release(&mut self, held: u64, mut give: impl FnMut(Output<'_>)) {
        while let Some(output) = self.front(held) {
            give(output);
            self.pop();
        }
    }

    /// The position that the oldest output waits for, if it is noted.
    #[must_use]
    pub fn waits_for(&self) -> Option<u64> {
        self.records.front()?.position
    }

    /// Outputs that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What became of outputs.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Drops everything, uncounted: somebody else puts it out.
    pub fn clear(&mut self) {
        self.records.clear();
    }

    /// Adds bytes of the serial port to those before them, if these wait for the same.
    fn extend(&mut self, output: Output<'_>) -> bool {
        let alone = self.records.len() == 1;
        let oldest = self.records.front().map_or(0, |oldest| oldest.first);
        let Some(last) = self.records.back_mut() else {
            return false;
        };
        let end = last.first + last.length;
        // Up to the end of the memory, or the oldest output if that lies behind.
        let limit = if alone || oldest <= last.first {
            self.bytes.len()
        } else {
            oldest
        };
        let same = output.destination == Destination::Serial
            && last.destination == Destination::Serial
            && last.position.is_none();
        if !same || limit - end < output.bytes.len() {
            return false;
        }
        last.length += output.bytes.len();
        self.put(end, output.bytes);
        true
    }

    fn append(&mut self, output: Output<'_>) -> bool {
        let length = output.bytes.len();
        // An empty line takes a byte of room: no two outputs that begin at 0 are in it at once.
        let Some(first) = self.room_for(length.max(1)) else {
            return false;
        };
        if self.records.len() >= self.outputs {
            return false;
        }
        self.records.push_back(Record {
            position: None,
            destination: output.destination,
            first,
            length,
        });
        self.put(first, output.bytes);
        true
    }

    /// Where `length` bytes fit in one piece.
    fn room_for(&self, length: usize) -> Option<usize> {
        let (Some(oldest), Some(last)) = (self.records.front(), self.records.back()) else {
            return (length <= self.bytes.len()).then_some(0);
        };
        let end = last.first + last.length;
        if oldest.first <= last.first {
            if length <= self.bytes.len() - end {
                return Some(end);
            }
            return (length <= oldest.first).then_some(0);
        }
        (length <= oldest.first - end).then_some(end)
    }

    fn put(&mut self, first: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(first).zip(bytes) {
            *place = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const FRAME: Destination = Destination::Network(1);

    fn output(destination: Destination, bytes: &[u8]) -> Output<'_> {
        Output { destination, bytes }
    }

    fn released(queue: &mut OutputQueue, held: u64) -> Vec<(Destination, Vec<u8>)> {
        let mut all = Vec::new();
        queue.release(held, |output| {
            all.push((output.destination, output.bytes.to_vec()))
        });
        all
    }

    #[test]
    fn an_output_leaves_when_the_entry_that_notes_it_is_held() {
        let mut queue = OutputQueue::new(100, 10);
        assert!(queue.push(output(FRAME, b"one")));
        assert!(queue.push(output(Destination::Line, b"two")));
        assert_eq!((queue.len(), queue.waits_for()), (2, None));
        assert_eq!(released(&mut queue, u64::MAX), []);
        queue.note(5);
        assert!(queue.push(output(FRAME, b"three")));
        assert_eq!((queue.len(), queue.waits_for()), (3, Some(5)));
        assert_eq!(released(&mut queue, 4), []);
        let first = [
            (FRAME, b"one".to_vec()),
            (Destination::Line, b"two".to_vec()),
        ];
        assert_eq!(released(&mut queue, u64::MAX), first);
        queue.note(9);
        assert_eq!(released(&mut queue, 8), []);
        assert_eq!(released(&mut queue, 9), [(FRAME, b"three".to_vec())]);
        assert!(queue.is_empty() && queue.waits_for().is_none());
        assert_eq!(queue.counters().released, 3);
    }

    #[test]
    fn bytes_of_the_serial_port_are_gathered_while_they_wait_for_the_same() {
        let mut queue = OutputQueue::new(100, 3);
        for (position, byte) in [(0, b"a"), (1, b"b"), (0, b"c"), (0, b"d")] {
            assert!(queue.push(output(Destination::Serial, byte)));
            if position != 0 {
                queue.note(position);
            }
        }
        assert!(queue.push(output(FRAME, b"x")));
        assert_eq!(queue.len(), 3);
        // A frame between keeps its place; there is no fourth output.
        assert!(!queue.push(output(Destination::Serial, b"e")));
        assert_eq!(queue.counters().dropped_bytes, 1);
        queue.note(2);
        let serial = |bytes: &[u8]| (Destination::Serial, bytes.to_vec());
        assert_eq!(released(&mut queue, 1), [serial(b"ab")]);
        assert_eq!(
            released(&mut queue, 2),
            [serial(b"cd"), (FRAME, b"x".to_vec())]
        );
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let mut queue = OutputQueue::new(10, 10);
        assert!(!queue.push(output(FRAME, &[0; 11])));
        assert!(queue.push(output(FRAME, &[1; 6])));
        assert!(!queue.push(output(FRAME, &[2; 5])));
        assert!(queue.push(output(FRAME, &[3; 4])));
        assert!(!queue.push(output(Destination::Line, &[4; 3])));
        let Counters {
            dropped_frames,
            dropped_bytes,
            ..
        } = *queue.counters();
        assert_eq!((dropped_frames, dropped_bytes), (2, 3));
        // Room at the beginning, in one piece.
        queue.pop();
        assert!(!queue.push(output(FRAME, &[5; 7])));
        assert!(queue.push(output(FRAME, &[6; 6])));
        assert!(!queue.push(output(Destination::Serial, &[7])));
        queue.note(0);
        assert_eq!(
            released(&mut queue, 0),
            [(FRAME, vec![3; 4]), (FRAME, vec![6; 6])]
        );
    }

    #[test]
    fn a_position_that_goes_back_lets_nothing_leave_early() {
        let mut queue = OutputQueue::new(10, 10);
        queue.push(output(FRAME, b"a"));
        queue.note(7);
        queue.push(output(FRAME, b"b"));
        queue.note(3);
        assert_eq!(released(&mut queue, 6), []);
        assert_eq!(released(&mut queue, 7).len(), 2);
        queue.push(output(FRAME, b"c"));
        queue.note(7);
        queue.clear();
        assert_eq!(released(&mut queue, u64::MAX), []);
    }

    proptest! {
        #[test]
        fn outputs_come_out_as_they_went_in(
            steps in prop::collection::vec((0..3u8, 0..40usize, any::<bool>()), 1..200),
        ) {
            let mut queue = OutputQueue::new(100, 8);
            let mut want: VecDeque<(Destination, Vec<u8>)> = VecDeque::new();
            for (number, (kind, length, take)) in steps.into_iter().enumerate() {
                let destination = [Destination::Serial, Destination::Line, FRAME][usize::from(kind)];
                let bytes = vec![number as u8; length];
                if take {
                    queue.note(0);
                    let front = queue.front(u64::MAX).map(|o| (o.destination, o.bytes.to_vec()));
                    prop_assert_eq!(front, want.pop_front());
                    queue.pop();
                    continue;
                }
                let before = queue.len();
                if !queue.push(output(destination, &bytes)) {
                    continue;
                }
                match want.back_mut() {
                    Some((Destination::Serial, last)) if queue.len() == before => last.extend(bytes),
                    _ => want.push_back((destination, bytes)),
                }
            }
        }
    }
}
