//! A bounded set of byte ranges: the holes' opposite on the receiving side, what to send again on the
//! sending side. Room is taken once; nothing here allocates afterwards.

use alloc::vec::Vec;

/// A half-open range of stream offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First offset.
    pub start: u64,
    /// One past the last offset.
    pub end: u64,
}

impl Range {
    /// Bytes in it.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The set would need more ranges than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooScattered;

/// Disjoint, non-touching ranges in ascending order, at most as many as given at the start.
#[derive(Clone, Debug)]
pub struct RangeSet {
    ranges: Vec<Range>,
    limit: usize,
}

impl RangeSet {
    /// An empty set of at most `limit` ranges.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            ranges: Vec::with_capacity(limit),
            limit,
        }
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[Range] {
        &self.ranges
    }

    /// No range at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The lowest range.
    #[must_use]
    pub fn first(&self) -> Option<Range> {
        self.ranges.first().copied()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Whether all of `range` is in the set.
    #[must_use]
    pub fn covers(&self, range: Range) -> bool {
        let at = self.ranges.partition_point(|have| have.end < range.end);
        self.ranges
            .get(at)
            .is_some_and(|have| have.start <= range.start)
    }

    /// Adds `range`, joining what it touches.
    ///
    /// # Errors
    ///
    /// [`TooScattered`] when it touches nothing and the set is full; the set is as it was.
    pub fn insert(&mut self, range: Range) -> Result<(), TooScattered> {
        if range.start >= range.end {
            return Ok(());
        }
        let first = self.ranges.partition_point(|have| have.end < range.start);
        let behind = self.ranges.partition_point(|have| have.start <= range.end);
        if first == behind {
            if self.ranges.len() >= self.limit {
                return Err(TooScattered);
            }
            self.ranges.insert(first, range);
            return Ok(());
        }
        let joined = Range {
            start: self.ranges[first].start.min(range.start),
            end: self.ranges[behind - 1].end.max(range.end),
        };
        self.ranges[first] = joined;
        self.ranges.drain(first + 1..behind);
        Ok(())
    }

    /// Adds `range`; when the set is full, its nearest neighbour grows over the gap between them
    /// instead. For sets that may safely hold too much.
    pub fn insert_or_widen(&mut self, range: Range) {
        if self.insert(range).is_ok() {
            return;
        }
        let at = self.ranges.partition_point(|have| have.end < range.start);
        let neighbour = at.min(self.ranges.len() - 1);
        let have = &mut self.ranges[neighbour];
        have.start = have.start.min(range.start);
        have.end = have.end.max(range.end);
    }

    /// Takes everything below `offset` out of the set.
    pub fn remove_below(&mut self, offset: u64) {
        let gone = self.ranges.partition_point(|have| have.end <= offset);
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut() {
            first.start = first.start.max(offset);
        }
    }

    /// Takes at most `bytes` from the lowest range.
    pub fn take_first(&mut self, bytes: u64) -> Option<Range> {
        let first = self.ranges.first_mut()?;
        if first.bytes() <= bytes {
            return Some(self.ranges.remove(0));
        }
        let taken = Range {
            start: first.start,
            end: first.start + bytes,
        };
        first.start = taken.end;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    #[test]
    fn a_full_set_refuses_a_new_range_but_joins_a_touching_one() {
        let mut set = RangeSet::new(2);
        let range = |start, end| Range { start, end };
        set.insert(range(0, 1)).unwrap();
        set.insert(range(10, 11)).unwrap();
        assert_eq!(set.insert(range(5, 6)), Err(TooScattered));
        set.insert(range(1, 3)).unwrap();
        assert_eq!(set.as_slice(), [range(0, 3), range(10, 11)]);
        set.insert_or_widen(range(6, 7));
        assert_eq!(set.as_slice(), [range(0, 3), range(6, 11)]);
        set.insert_or_widen(range(20, 21));
        assert_eq!(set.as_slice(), [range(0, 3), range(6, 21)]);
        assert!(set.covers(range(7, 21)));
        assert!(!set.covers(range(2, 7)));
    }

    proptest! {
        // Against a set of single offsets.
        #[test]
        fn agrees_with_a_set_of_offsets(steps in prop::collection::vec((0u64..200, 0u64..20, 0u8..4), 1..60)) {
            let mut set = RangeSet::new(64);
            let mut model = BTreeSet::new();
            for (start, bytes, kind) in steps {
                match kind {
                    0 | 1 => {
                        set.insert(Range { start, end: start + bytes }).unwrap();
                        model.extend(start..start + bytes);
                    }
                    2 => {
                        set.remove_below(start);
                        model.retain(|&offset| offset >= start);
                    }
                    _ => {
                        if let Some(taken) = set.take_first(bytes.max(1)) {
                            for offset in taken.start..taken.end {
                                prop_assert!(model.remove(&offset));
                            }
                        }
                    }
                }
                let flat: Vec<u64> = set.as_slice().iter().flat_map(|r| r.start..r.end).collect();
                let expected: Vec<u64> = model.iter().copied().collect();
                prop_assert_eq!(flat, expected);
                for pair in set.as_slice().windows(2) {
                    prop_assert!(pair[0].end < pair[1].start);
                }
            }
        }
    }
}
