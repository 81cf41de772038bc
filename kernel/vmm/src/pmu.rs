//! Counting a guest's instructions with the processor's performance counters, and stopping it at one.
//!
//! A counter that overflows stops the guest some instructions late: that is the skid, of which each microarchitecture
//! has a bound. So it is made to overflow early by that bound, and the rest is stepped ([`landing`], [`step`],
//! [`breakpoint`]). Which
//! registers hold what is data ([`intel`], [`amd`]); `kernel/metal` only writes it down. The emulators have no such
//! counters: there a test switch ([`Skid`]) stops early at random, so that the stepping is executed.

pub mod amd;
pub mod breakpoint;
pub mod intel;
pub mod landing;
pub mod step;

#[cfg(test)]
mod fake;

use crate::random::Random;

/// One write of a model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrWrite {
    /// Its number.
    pub msr: u32,
    /// Its new value.
    pub value: u64,
}

/// The test switch that lets an exact back end stop early, by another number of instructions each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skid {
    most: u64,
    random: Random,
}

impl Skid {
    /// Up to `most` instructions early; `None` if that is 0. The same seed gives the same numbers.
    #[must_use]
    pub fn new(most: u64, seed: u64) -> Option<Self> {
        (most != 0).then(|| Self {
            most,
            random: Random::new(seed),
        })
    }

    /// How early to stop this time, 0 to the most.
    pub fn margin(&mut self) -> u64 {
        self.random.below(self.most.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skid_reaches_both_ends_of_its_range() {
        assert_eq!(Skid::new(0, 7), None);
        let mut skid = Skid::new(8, 7).expect("is not 0");
        let drawn: alloc::vec::Vec<_> = (0..1000).map(|_| skid.margin()).collect();
        assert!((0..=8).all(|margin| drawn.contains(&margin)));
        assert!(drawn.iter().all(|margin| *margin <= 8));
        assert!(Skid::new(u64::MAX, 7).is_some_and(|mut s| s.margin() < u64::MAX));
    }
}
