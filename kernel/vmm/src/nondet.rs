//! The one door: every value that is not a function of the guest's own execution enters here.
//!
//! This release only runs live: values are taken from the host. A handler is written once for live,
//! recorded and replayed guests, because all it knows is [`Door::take`] and [`Door::now`].

use devices::time::GuestTime;

use crate::host::Host;

/// Frequency of the guest's time-stamp counter in Hz. One tick is one nanosecond of guest time, so that
/// no rounding can differ between hosts.
pub const GUEST_TSC_HZ: u64 = 1_000_000_000;

/// A value that an instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The guest's time-stamp counter: RDTSC, RDTSCP, MSR 0x10.
    TimeStamp,
    /// RDRAND or RDSEED.
    Random,
    /// What the clock shows at power-on: seconds since 1970.
    WallClock,
}

/// The door of one guest.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// Host time at which guest time was zero, in nanoseconds.
    base: u64,
    /// The guest time that entered last.
    last: GuestTime,
    /// What WRMSR to the time-stamp counter added: a function of the guest's execution.
    time_stamp_offset: u64,
}

impl Door {
    /// The door of a guest that is switched on now.
    pub fn new(host: &mut impl Host) -> Self {
        Self {
            base: host.now_ns(),
            ..Self::default()
        }
    }

    /// The answer to a question at this point of execution.
    pub fn take(&mut self, host: &mut impl Host, question: Question) -> u64 {
        match question {
            Question::TimeStamp => self.now(host).0.wrapping_add(self.time_stamp_offset),
            Question::Random => host.random(),
            Question::WallClock => host.unix_seconds(),
        }
    }

    /// Lets the next byte in that was typed for the guest.
    pub fn console(&mut self, host: &mut impl Host) -> Option<u8> {
        host.console_input()
    }

    /// Guest time, asked for at this point of execution.
    #[inline]
    pub fn now(&mut self, host: &mut impl Host) -> GuestTime {
        let now = GuestTime(host.now_ns().wrapping_sub(self.base));
        self.last = self.last.max(now);
        self.last
    }

    /// The guest time that entered last: what devices go by at accesses that do not show time.
    #[must_use]
    pub const fn last(&self) -> GuestTime {
        self.last
    }

    /// Lets time enter if `deadline` has come; else says how many nanoseconds are left.
    #[inline]
    pub fn time(&mut self, host: &mut impl Host, deadline: GuestTime) -> Result<GuestTime, u64> {
        let now = GuestTime(host.now_ns().wrapping_sub(self.base)).max(self.last);
        if now < deadline {
            return Err(deadline.since(now));
        }
        self.last = now;
        Ok(now)
    }

    /// The host time, in nanoseconds, at which it will be `time` for the guest.
    #[must_use]
    pub const fn host_time(&self, time: GuestTime) -> u64 {
        self.base.saturating_add(time.0)
    }

    /// The guest wrote `value` to its time-stamp counter. Returns how far the counter is ahead of guest time now.
    pub fn set_time_stamp(&mut self, host: &mut impl Host, value: u64) -> u64 {
        self.time_stamp_offset = value.wrapping_sub(self.now(host).0);
        self.time_stamp_offset
    }

    /// How far the time-stamp counter is ahead of guest time, modulo 2⁶⁴: IA32_TSC_ADJUST (SDM 3 18.17.3).
    #[must_use]
    pub const fn time_stamp_offset(&self) -> u64 {
        self.time_stamp_offset
    }

    /// The guest wrote IA32_TSC_ADJUST.
    pub fn set_time_stamp_offset(&mut self, offset: u64) {
        self.time_stamp_offset = offset;
    }

    /// The guest's processor is reset: its counter shows guest time again.
    pub fn reset(&mut self) {
        self.time_stamp_offset = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestHost;

    #[test]
    fn guest_time_never_goes_back() {
        let mut host = TestHost {
            now_ns: 100,
            ..TestHost::default()
        };
        let mut door = Door::default();
        assert_eq!(door.take(&mut host, Question::TimeStamp), 100);
        host.now_ns = 40;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 100);
        host.now_ns = 150;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 150);
    }

    #[test]
    fn a_written_counter_goes_on_from_there() {
        let mut host = TestHost {
            now_ns: 100,
            ..TestHost::default()
        };
        let mut door = Door::default();
        assert_eq!(door.set_time_stamp(&mut host, 5), 5u64.wrapping_sub(100));
        host.now_ns = 110;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 15);
        door.set_time_stamp(&mut host, u64::MAX);
        host.now_ns = 112;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 1);
        door.reset();
        assert_eq!(door.take(&mut host, Question::TimeStamp), 112);
    }

    #[test]
    fn the_wall_clock_and_what_is_typed_are_the_hosts() {
        let mut host = TestHost {
            now_ns: 7_000_000_000,
            typed: [b'x'].into(),
            ..TestHost::default()
        };
        let mut door = Door::new(&mut host);
        assert_eq!(door.take(&mut host, Question::WallClock), 7);
        assert_eq!(door.console(&mut host), Some(b'x'));
        assert_eq!(door.console(&mut host), None);
    }

    #[test]
    fn time_enters_when_the_deadline_has_come_and_not_before() {
        let mut host = TestHost {
            now_ns: 1000,
            ..TestHost::default()
        };
        let mut door = Door::new(&mut host);
        host.now_ns = 1040;
        assert_eq!(door.time(&mut host, GuestTime(50)), Err(10));
        assert_eq!(door.last(), GuestTime(0));
        assert_eq!(door.host_time(GuestTime(50)), 1050);
        host.now_ns = 1051;
        assert_eq!(door.time(&mut host, GuestTime(50)), Ok(GuestTime(51)));
        assert_eq!(door.last(), GuestTime(51));
    }
}
