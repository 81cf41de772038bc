//! The replay window: which sequence numbers a session has already accepted (the sliding bitmap of
//! RFC 6479, whole words recycled instead of shifted).

/// Words of the bitmap.
const WORDS: usize = 33;
/// Sequence numbers behind the newest one that are still told apart: two paths of different length
/// may reorder by this much.
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// The sequence numbers accepted so far.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One above the newest accepted; 0 before the first.
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            words: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    const fn place(sequence: u64) -> (usize, u64) {
        (
            (sequence / 64 % WORDS as u64) as usize,
            1 << (sequence % 64),
        )
    }

    /// Whether `sequence` is new; changes nothing.
    #[must_use]
    pub fn is_fresh(&self, sequence: u64) -> bool {
        if sequence >= self.next {
            // The last number of all is given up: `next` could not stand above it.
            return sequence < u64::MAX;
        }
        if self.next - sequence > WINDOW {
            return false;
        }
        let (word, bit) = Self::place(sequence);
        self.words[word] & bit == 0
    }

    /// Marks `sequence` as accepted. Call it for fresh, authenticated numbers only.
    pub fn accept(&mut self, sequence: u64) {
        let next = sequence.saturating_add(1);
        if next > self.next {
            let newest_word = self.next.checked_sub(1).map(|newest| newest / 64);
            let first_to_clear = newest_word.map_or(0, |word| word + 1);
            let last_to_clear = sequence / 64;
            if last_to_clear >= first_to_clear {
                let count = (last_to_clear - first_to_clear + 1).min(WORDS as u64);
                for step in 0..count {
                    self.words[((last_to_clear - step) % WORDS as u64) as usize] = 0;
                }
            }
            self.next = next;
        }
        let (word, bit) = Self::place(sequence);
        self.words[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    #[test]
    fn accepts_once_and_forgets_behind_the_window() {
        let mut window = ReplayWindow::default();
        assert!(window.is_fresh(5));
        window.accept(5);
        assert!(!window.is_fresh(5));
        assert!(window.is_fresh(4));
        window.accept(5 + WINDOW);
        assert!(!window.is_fresh(5));
        assert!(window.is_fresh(6));
        assert!(!window.is_fresh(4));
        assert!(!window.is_fresh(u64::MAX));
    }

    proptest! {
        // Against a set that forgets nothing: fresh means never accepted and not too old.
        #[test]
        fn agrees_with_a_set(jumps in prop::collection::vec((0u64..3_000, 0u64..2_500), 1..200)) {
            let mut window = ReplayWindow::default();
            let mut accepted = BTreeSet::new();
            let mut newest = 0u64;
            for (forward, back) in jumps {
                let sequence = (newest + forward).saturating_sub(back);
                let too_old = accepted.last().is_some_and(|last: &u64| last + 1 > sequence + WINDOW);
                let fresh = !accepted.contains(&sequence) && !too_old;
                prop_assert_eq!(window.is_fresh(sequence), fresh);
                if fresh {
                    window.accept(sequence);
                    accepted.insert(sequence);
                    newest = newest.max(sequence);
                }
            }
        }
    }
}
