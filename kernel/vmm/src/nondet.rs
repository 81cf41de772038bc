//! The one door: every value that is not a function of the guest's own execution enters here.
//!
//! This release only runs live: values are taken from the host. A handler is written once for live,
//! recorded and replayed guests, because all it knows is [`Door::take`].

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
}

/// The door of one guest.
#[derive(Clone, Debug, Default)]
pub struct Door {
    last_time_stamp: u64,
    /// What WRMSR to the time-stamp counter added: a function of the guest's execution.
    time_stamp_offset: u64,
}

impl Door {
    /// The answer to a question at this point of execution.
    pub fn take(&mut self, host: &mut impl Host, question: Question) -> u64 {
        match question {
            Question::TimeStamp => {
                let now = host.now_ns().max(self.last_time_stamp);
                self.last_time_stamp = now;
                now.wrapping_add(self.time_stamp_offset)
            }
            Question::Random => host.random(),
        }
    }

    /// The guest wrote `value` to its time-stamp counter.
    pub fn set_time_stamp(&mut self, host: &mut impl Host, value: u64) {
        let now = self.take(host, Question::TimeStamp);
        self.time_stamp_offset = self.time_stamp_offset.wrapping_add(value.wrapping_sub(now));
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
        door.set_time_stamp(&mut host, 5);
        host.now_ns = 110;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 15);
        door.set_time_stamp(&mut host, u64::MAX);
        host.now_ns = 112;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 1);
    }
}
