//! Numbers for tests that run in the host itself; nothing that a guest or a peer must not guess.

/// Xorshift (Marsaglia 2003).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(if seed == 0 { 1 } else { seed })
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.draw() >> 16) % bound.max(1)
    }

    /// A number from 1 to 2^`bits`, each order of magnitude as likely as the others.
    pub fn magnitude(&mut self, bits: u32) -> u64 {
        let limit = 1 << self.below(u64::from(bits) + 1);
        1 + self.below(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut random = Random::new(0);
        let drawn: alloc::vec::Vec<_> = (0..10_000).map(|_| random.magnitude(10)).collect();
        assert!(drawn.iter().all(|n| (1..=1024).contains(n)));
        assert!(drawn.contains(&1) && drawn.iter().any(|n| *n > 900));
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(0), 0);
    }
}
