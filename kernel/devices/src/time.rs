//! Guest time: the only clock a device knows.
//!
//! Counts are always derived from the instant, never accumulated, so no error adds up and a guest
//! that slept for a day costs as much as one that slept for a microsecond.

/// An instant of guest time, in nanoseconds since power-on. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestTime(pub u64);

/// Nanoseconds of a second.
pub const NS_PER_SECOND: u64 = 1_000_000_000;

impl GuestTime {
    /// The instant `ns` nanoseconds later; `None` behind the end of time, which is never.
    #[must_use]
    pub const fn after(self, ns: u64) -> Option<Self> {
        match self.0.checked_add(ns) {
            Some(instant) => Some(Self(instant)),
            None => None,
        }
    }

    /// Nanoseconds from `earlier` to this instant; 0 if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The earlier of two deadlines; `None` is never.
#[must_use]
pub fn earliest(a: Option<GuestTime>, b: Option<GuestTime>) -> Option<GuestTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

/// A clock input of a chip: `ticks` in every `nanoseconds`, the first one a whole period behind power-on.
/// It is slower than 1 GHz.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ticks: u64,
    nanoseconds: u64,
}

impl Clock {
    /// A clock of `ticks / nanoseconds` GHz.
    ///
    /// # Panics
    ///
    /// When it is not slower than 1 GHz or its parts have more than 32 bits. Clocks are constants.
    #[must_use]
    pub const fn new(ticks: u64, nanoseconds: u64) -> Self {
        assert!(0 < ticks && ticks < nanoseconds && nanoseconds < 1 << 32);
        Self { ticks, nanoseconds }
    }

    /// Whole ticks from power-on until `now`.
    #[must_use]
    pub const fn ticks_at(self, now: GuestTime) -> u64 {
        let whole = now.0 / self.nanoseconds;
        let rest = now.0 % self.nanoseconds;
        // Neither product overflows: the clock is slower than 1 GHz, its parts are below 2³².
        whole * self.ticks + rest * self.ticks / self.nanoseconds
    }

    /// The first instant at which `ticks_at` is `tick` or more; `None` if that is never.
    #[must_use]
    pub const fn instant_of(self, tick: u64) -> Option<GuestTime> {
        let whole = tick / self.ticks;
        let rest = tick % self.ticks;
        match whole.checked_mul(self.nanoseconds) {
            Some(ns) => GuestTime(ns).after((rest * self.nanoseconds).div_ceil(self.ticks)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 105/88 MHz, the clock of the 8254.
    const PIT: Clock = Clock::new(105, 88_000);

    #[test]
    fn a_clock_neither_gains_nor_loses() {
        assert_eq!(PIT.ticks_at(GuestTime(838)), 0);
        assert_eq!(PIT.ticks_at(GuestTime(839)), 1);
        // 88 s hold exactly 105 million ticks, and so do 10 000 times as many.
        assert_eq!(PIT.ticks_at(GuestTime(88 * NS_PER_SECOND)), 105_000_000);
        let long = GuestTime(880_000 * NS_PER_SECOND);
        assert_eq!(PIT.ticks_at(long), 1_050_000_000_000);
        assert_eq!(PIT.ticks_at(GuestTime(long.0 - 1)), 1_049_999_999_999);
    }

    #[test]
    fn the_end_of_time_is_never_reached() {
        assert_eq!(GuestTime(u64::MAX).after(1), None);
        assert_eq!(PIT.instant_of(u64::MAX), None);
        assert_eq!(earliest(None, Some(GuestTime(3))), Some(GuestTime(3)));
        let later = Some(GuestTime(4));
        assert_eq!(earliest(later, Some(GuestTime(3))), Some(GuestTime(3)));
        assert_eq!(earliest(None, None), None);
    }

    proptest! {
        #[test]
        fn a_tick_comes_exactly_at_its_instant(now in any::<u64>(), ahead in 1..1_000_000u64) {
            for clock in [PIT, Clock::new(315, 88_000), Clock::new(512, 15_625_000)] {
                let tick = clock.ticks_at(GuestTime(now)) + ahead;
                if let Some(instant) = clock.instant_of(tick) {
                    prop_assert!(instant > GuestTime(now));
                    prop_assert!(clock.ticks_at(instant) == tick);
                    prop_assert!(clock.ticks_at(GuestTime(instant.0 - 1)) == tick - 1);
                }
            }
        }
    }
}
