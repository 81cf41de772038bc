//! What is measured all the time: how far the peer is behind, how long outputs wait for it, and how
//! much is sent.

use super::Lag;
use crate::histogram::{Figure, Histogram};
use crate::ids::{Duration, Instant};

/// Between two samples of the lag.
pub const SAMPLE: Duration = Duration::from_millis(10);
/// Over which bandwidth is taken.
pub const WINDOW: Duration = Duration::from_millis(100);

/// The distributions, to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Entries the peer did not hold.
    pub lag_entries: Figure,
    /// Age of the oldest flush the peer had not acknowledged, in microseconds.
    pub lag_us: Figure,
    /// From a flush to its acknowledgement, in microseconds: what an output waits.
    pub output_delay_us: Figure,
    /// Bytes of UDP payload sent a second.
    pub bytes_per_second: Figure,
}

/// Takes the samples.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    lag_entries: Histogram,
    lag_us: Histogram,
    bytes_per_second: Histogram,
    due: Instant,
    /// When the present window began, and how much had been sent by then.
    window: (Instant, u64),
}

impl Sampler {
    /// Whether a sample is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// Takes a sample. `lag`: of a host whose outputs wait for the peer; `sent`: bytes so far.
    pub fn sample(&mut self, now: Instant, lag: Option<&Lag>, sent: u64) {
        self.due = now.after(SAMPLE);
        if let Some(lag) = lag {
            self.lag_entries.record(lag.entries);
            self.lag_us.record(lag.age.0 / 1_000);
        }
        let (begun, before) = self.window;
        let passed = now.since(begun);
        if begun == Instant(0) {
            self.window = (now, sent);
        } else if passed >= WINDOW {
            let bytes = u128::from(sent.saturating_sub(before)) * 1_000_000_000;
            let rate = bytes / u128::from(passed.0);
            self.bytes_per_second
                .record(u64::try_from(rate).unwrap_or(u64::MAX));
            self.window = (now, sent);
        }
    }

    /// Forgets what was measured.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// The distributions, with that of the outputs' `waits`.
    #[must_use]
    pub fn measures(&self, waits: &Histogram) -> Measures {
        Measures {
            lag_entries: self.lag_entries.figure(),
            lag_us: self.lag_us.figure(),
            output_delay_us: waits.figure(),
            bytes_per_second: self.bytes_per_second.figure(),
        }
    }
}
