//! A breakpoint of the host's own behind an instruction of the guest, in a register that the guest does not use.
//!
//! A repeated string instruction retires once, however many iterations it has; stepping it by its iterations takes long.
//! So the guest runs to a breakpoint behind it. It never sees that: accesses to debug registers exit, and so does the
//! #DB, of which [`Breakpoint::guests_share`] says what is the guest's. Where the guest has switched all four on
//! there is none, and the iterations are stepped (SDM 3 19.2; APM 2 13.1.1).

use arch::pmu::debug;

/// The breakpoint, and the registers that make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    register: u8,
    guests_dr7: u64,
}

impl Breakpoint {
    /// One in the first register that this DR7, the guest's, leaves off. `None`: all are on.
    #[must_use]
    pub fn find(guests_dr7: u64) -> Option<Self> {
        (0..debug::BREAKPOINTS)
            .find(|n| guests_dr7 & debug::enables(*n) == 0)
            .map(|register| Self {
                register,
                guests_dr7,
            })
    }

    /// Which of DR0 to DR3 gets the linear address.
    #[must_use]
    pub const fn register(&self) -> u8 {
        self.register
    }

    /// DR7 while the breakpoint is on: it stops in front of the instruction there.
    #[must_use]
    pub const fn dr7(&self) -> u64 {
        let cleared = self.guests_dr7 & !debug::condition(self.register);
        cleared | debug::local_enable(self.register)
    }

    /// DR7 behind it.
    #[must_use]
    pub const fn guests_dr7(&self) -> u64 {
        self.guests_dr7
    }

    /// The cause that is this breakpoint, as DR6 has it.
    #[must_use]
    pub const fn cause(&self) -> u64 {
        1 << self.register
    }

    /// What of the `causes` of a #DB, as DR6 has them, the guest would have had without this breakpoint. `None`: it would
    /// have had no #DB. Registers that are off may be among the causes, and mean nothing by themselves.
    #[must_use]
    pub fn guests_share(&self, causes: u64) -> Option<u64> {
        let left = causes & !self.cause();
        let others = left & !debug::ALL_BREAKPOINTS;
        let on = (0..debug::BREAKPOINTS)
            .any(|n| left & 1 << n != 0 && self.guests_dr7 & debug::enables(n) != 0);
        (causes & self.cause() == 0 || on || others != 0).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_register(dr7: u64) -> Option<u8> {
        Breakpoint::find(dr7).map(|breakpoint| breakpoint.register())
    }

    #[test]
    fn the_first_register_that_is_off_is_taken() {
        assert_eq!(in_register(0x400), Some(0));
        assert_eq!(in_register(0x401), Some(1));
        assert_eq!(in_register(0x402), Some(1));
        assert_eq!(in_register(0x415), Some(3));
        assert_eq!(in_register(0x42a), Some(3));
        assert_eq!(in_register(0x455), None);
        assert_eq!(in_register(0x496), None);
    }

    #[test]
    fn it_is_on_for_execution_and_leaves_the_others_alone() {
        // The guest watches four bytes by DR0; DR1, off, is still set for data.
        let breakpoint = Breakpoint::find(0x00ff_0401).expect("three are off");
        assert_eq!(breakpoint.dr7(), 0x000f_0405);
        assert_eq!(breakpoint.guests_dr7(), 0x00ff_0401);
        assert_eq!(breakpoint.cause(), 2);
    }

    #[test]
    fn what_the_guest_has_not_asked_for_is_kept_from_it() {
        const STEP: u64 = 1 << 14;
        let breakpoint = Breakpoint::find(0x401).expect("three are off");
        assert_eq!(breakpoint.guests_share(2), None);
        // DR2 has the same address and is off.
        assert_eq!(breakpoint.guests_share(2 | 4), None);
        assert_eq!(breakpoint.guests_share(2 | 1), Some(1));
        assert_eq!(breakpoint.guests_share(1), Some(1));
        assert_eq!(breakpoint.guests_share(STEP), Some(STEP));
        assert_eq!(breakpoint.guests_share(STEP | 2), Some(STEP));
        // Not this one's doing, whatever it is.
        assert_eq!(breakpoint.guests_share(0), Some(0));
    }

    proptest! {
        #[test]
        fn only_one_register_changes(guests in 0_u64..1 << 32) {
            if let Some(breakpoint) = Breakpoint::find(guests) {
                let n = breakpoint.register();
                let own = 0b11 << (2 * n) | 0xf << (16 + 4 * n);
                prop_assert_eq!((breakpoint.dr7() ^ guests) & !own, 0);
                prop_assert_eq!(breakpoint.dr7() & own, 1 << (2 * n));
            } else {
                prop_assert!((0..4).all(|n| guests & 0b11 << (2 * n) != 0));
            }
        }
    }
}
