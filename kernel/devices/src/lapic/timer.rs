//! The timer of the local APIC.

use crate::time::GuestTime;

/// How the timer counts: LVT timer bits 18:17 (SDM 3, figure 12-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
    /// The encoding without a meaning: the timer stands.
    Stopped,
}

impl TimerMode {
    pub(super) const fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::Deadline,
            _ => Self::Stopped,
        }
    }
}

/// Whether the initial count means something in this mode.
const fn counts(mode: TimerMode) -> bool {
    matches!(mode, TimerMode::OneShot | TimerMode::Periodic)
}

/// The shortest period of the periodic mode. A guest that asks for an interrupt per nanosecond would do nothing but
/// take them, and its host nothing but deliver them. Operating systems ask for a thousand per second.
const MIN_PERIOD_NS: u64 = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    mode: TimerMode,
    initial: u32,
    /// The divide configuration register.
    divide: u32,
    expiry: Option<GuestTime>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
    /// What the guest's time-stamp counter is ahead of guest time.
    tsc_offset: u64,
}

impl Timer {
    pub(super) const fn new(tsc_offset: u64) -> Self {
        Self {
            mode: TimerMode::OneShot,
            initial: 0,
            divide: 0,
            expiry: None,
            deadline: 0,
            tsc_offset,
        }
    }

    pub(super) const fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// When it expires.
    pub(super) const fn expiry(&self) -> Option<GuestTime> {
        self.expiry
    }

    /// IA32_TSC_DEADLINE as the guest reads it.
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.deadline
    }

    /// Nanoseconds of one count: the bus clock is 1 GHz. Bits 3, 1 and 0 of the register (SDM 3, figure 12-10).
    const fn count_ns(&self) -> u64 {
        let power = (self.divide & 3 | self.divide >> 1 & 4) + 1;
        1 << (power & 7)
    }

    /// The current count register.
    pub(super) fn current(&self, now: GuestTime) -> u32 {
        if !counts(self.mode) {
            return 0;
        }
        let left = self.expiry.map_or(0, |expiry| expiry.since(now));
        let counts = left.div_ceil(self.count_ns());
        // A period that was too short is longer than the initial count says.
        counts.min(u64::from(self.initial)) as u32
    }

    /// Nanoseconds from one expiry to the next in periodic mode; 0: it is stopped.
    fn period_ns(&self) -> u64 {
        match u64::from(self.initial) * self.count_ns() {
            0 => 0,
            period => period.max(MIN_PERIOD_NS),
        }
    }

    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        // Any change that involves the deadline mode disarms the timer (SDM 3 12.5.4.1).
        if mode != self.mode && !(counts(mode) && counts(self.mode)) {
            self.initial = 0;
            self.expiry = None;
            self.deadline = 0;
        }
        self.mode = mode;
    }

    pub(super) fn set_initial(&mut self, now: GuestTime, count: u32) {
        if counts(self.mode) {
            self.initial = count;
            self.start(now, count);
        }
    }

    pub(super) fn set_divide(&mut self, now: GuestTime, divide: u32) {
        let left = self.current(now);
        self.divide = divide;
        if left != 0 {
            self.start(now, left);
        }
    }

    fn start(&mut self, now: GuestTime, count: u32) {
        self.expiry = if count == 0 {
            None
        } else {
            now.after(u64::from(count) * self.count_ns())
        };
    }

    pub(super) fn set_tsc_deadline(&mut self, now: GuestTime, deadline: u64) {
        // In the other modes the write is ignored.
        if self.mode == TimerMode::Deadline {
            self.deadline = deadline;
            self.place_deadline(now);
        }
    }

    pub(super) fn set_tsc_offset(&mut self, now: GuestTime, offset: u64) {
        self.tsc_offset = offset;
        if self.mode == TimerMode::Deadline {
            self.place_deadline(now);
        }
    }

    fn place_deadline(&mut self, now: GuestTime) {
        let counter = now.0.wrapping_add(self.tsc_offset);
        self.expiry = if self.deadline == 0 {
            None
        } else {
            now.after(self.deadline.saturating_sub(counter))
        };
    }

    /// Time has come to `now`. Returns whether the timer has expired, no matter how often.
    pub(super) fn advance(&mut self, now: GuestTime) -> bool {
        let Some(expiry) = self.expiry.filter(|expiry| *expiry <= now) else {
            return false;
        };
        let period = self.period_ns();
        self.expiry = match self.mode {
            // The phase stays that of the first start.
            TimerMode::Periodic if period != 0 => {
                let into = now.since(expiry) % period;
                now.after(period - into)
            }
            _ => None,
        };
        self.deadline = 0;
        true
    }
}
