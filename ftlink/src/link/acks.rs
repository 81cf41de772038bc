//! When to acknowledge, and which data datagrams to name.

use crate::ids::{Duration, Instant};
use crate::wire::messages::REPORT_BITS;

/// An acknowledgement waits at most this long for more to acknowledge.
pub const ACK_DELAY: Duration = Duration::from_micros(500);
/// Data datagrams acknowledged at once.
pub const ACK_EVERY: u32 = 8;

/// The data datagrams received lately, and whether the peer should hear of them.
#[derive(Clone, Copy, Debug)]
pub struct Acks {
    newest: u64,
    newest_at: Instant,
    words: [u64; 4],
    waiting: u32,
    due: Instant,
}

const _: () = assert!(REPORT_BITS == 4 * 64);

impl Default for Acks {
    fn default() -> Self {
        Self {
            newest: 0,
            newest_at: Instant(0),
            words: [0; 4],
            waiting: 0,
            due: Instant::NEVER,
        }
    }
}

impl Acks {
    /// Data datagram `sequence` was taken, or was a duplicate of what is held.
    pub fn on_data(&mut self, now: Instant, sequence: u64, at_once: bool) {
        self.note(now, sequence);
        self.waiting += 1;
        let due = if at_once || self.waiting >= ACK_EVERY {
            now
        } else {
            now.after(ACK_DELAY)
        };
        self.due = self.due.min(due);
    }

    fn note(&mut self, now: Instant, sequence: u64) {
        if sequence > self.newest {
            self.shift(sequence - self.newest);
            self.newest = sequence;
            self.newest_at = now;
        }
        let age = self.newest - sequence;
        if age < REPORT_BITS {
            self.words[(age / 64) as usize] |= 1 << (age % 64);
        }
    }

    fn shift(&mut self, by: u64) {
        let words = usize::try_from(by / 64).unwrap_or(usize::MAX);
        let bits = by % 64;
        let old = self.words;
        for (index, word) in self.words.iter_mut().enumerate() {
            let from = |back: usize| {
                index
                    .checked_sub(back)
                    .and_then(|at| old.get(at).copied())
                    .unwrap_or(0)
            };
            let low = from(words.saturating_add(1));
            *word = from(words) << bits;
            if bits > 0 {
                *word |= low >> (64 - bits);
            }
        }
    }

    /// When an acknowledgement is due; `NEVER` if none is owed.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A report goes out: the newest sequence, its age in microseconds, the bits.
    pub fn take(&mut self, now: Instant) -> (u64, u32, [u8; 32]) {
        self.waiting = 0;
        self.due = Instant::NEVER;
        let mut bits = [0; 32];
        for (target, word) in bits.chunks_exact_mut(8).zip(self.words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        let delay = now.since(self.newest_at).0 / 1_000;
        (self.newest, u32::try_from(delay).unwrap_or(u32::MAX), bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    #[test]
    fn waits_for_more_but_not_for_long_and_not_when_hurried() {
        let mut acks = Acks::default();
        assert_eq!(acks.due(), Instant::NEVER);
        acks.on_data(Instant(10), 1, false);
        assert_eq!(acks.due(), Instant(10).after(ACK_DELAY));
        acks.on_data(Instant(20), 2, true);
        assert_eq!(acks.due(), Instant(20));
        acks.take(Instant(21));
        assert_eq!(acks.due(), Instant::NEVER);
        for sequence in 0..u64::from(ACK_EVERY) {
            acks.on_data(Instant(30), 3 + sequence, false);
        }
        assert_eq!(acks.due(), Instant(30));
        assert_eq!(acks.take(Instant(2_030)).1, 2);
    }

    proptest! {
        #[test]
        fn names_what_came_within_the_window(sequences in prop::collection::vec(1u64..1_500, 1..100)) {
            let mut acks = Acks::default();
            let mut seen = BTreeSet::new();
            for sequence in sequences {
                // What is older than the window when it comes can never be named.
                let newest = seen.last().copied().unwrap_or(0);
                acks.on_data(Instant(1), sequence, false);
                if sequence + REPORT_BITS > newest {
                    seen.insert(sequence);
                }
            }
            let (newest, _, bits) = acks.take(Instant(1));
            prop_assert_eq!(Some(&newest), seen.last());
            for age in 0..REPORT_BITS {
                let named = bits[(age / 8) as usize] & (1 << (age % 8)) != 0;
                let came = newest.checked_sub(age).is_some_and(|sequence| seen.contains(&sequence));
                prop_assert_eq!(named, came, "age {}", age);
            }
        }
    }
}
