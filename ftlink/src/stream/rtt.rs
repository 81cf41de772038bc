//! Round-trip estimate and retransmission timeout, after RFC 6298. Each transmission has a sequence of
//! its own, so samples are never ambiguous (Karn's problem does not arise). The lower bound is not the
//! RFC's one second: the link is dedicated, and a takeover must not wait for a timer.

use crate::ids::{Duration, Instant};

/// Lower bound of the timeout, in nanoseconds: above the peer's acknowledgement delay and its service
/// loop's jitter.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(5);
/// Upper bound of the timeout, backed off or not.
pub const MAX_TIMEOUT: Duration = Duration::from_millis(500);
/// Timeout before the first sample. The RFC's second would let a takeover begin before the first
/// retransmission.
pub const INITIAL_TIMEOUT: Duration = Duration::from_millis(50);
/// The clock granularity G: how late a service loop may look at its timers.
const GRANULARITY: Duration = Duration::from_millis(1);

/// The estimator.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    backoff: u32,
}

impl RoundTrip {
    /// A sample (RFC 6298 2.2, 2.3): the time since a datagram was sent, less what the peer says it
    /// waited.
    pub fn sample(&mut self, passed: Duration, peer_delay: Duration) {
        let sample = Duration(passed.0.saturating_sub(peer_delay.0));
        self.latest = sample;
        self.backoff = 0;
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = Duration(sample.0 / 2);
            }
            Some(smoothed) => {
                let error = smoothed.0.abs_diff(sample.0);
                self.variation = Duration(self.variation.0 - self.variation.0 / 4 + error / 4);
                self.smoothed = Some(Duration(smoothed.0 - smoothed.0 / 8 + sample.0 / 8));
            }
        }
    }

    /// The smoothed round trip, once there was a sample.
    #[must_use]
    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The retransmission timeout, backed off.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => INITIAL_TIMEOUT,
            Some(smoothed) => {
                let margin = self.variation.times(4).max(GRANULARITY);
                Duration(smoothed.0.saturating_add(margin.0)).max(MIN_TIMEOUT)
            }
        };
        base.times(1 << self.backoff.min(16)).min(MAX_TIMEOUT)
    }

    /// A timeout fired (RFC 6298 5.5).
    pub fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    /// Timeouts since the last sample.
    #[must_use]
    pub fn backoffs(&self) -> u32 {
        self.backoff
    }

    /// A datagram older than this when a later one has arrived is taken for lost (RFC 9002 6.1.2:
    /// nine eighths of the round trip).
    #[must_use]
    pub fn loss_delay(&self) -> Duration {
        let trip = self.smoothed.unwrap_or(INITIAL_TIMEOUT).max(self.latest);
        Duration(trip.0 + trip.0 / 8).max(GRANULARITY)
    }

    /// When a datagram sent at `sent` is to be sent again if nothing is heard.
    #[must_use]
    pub fn deadline(&self, sent: Instant) -> Instant {
        sent.after(self.timeout())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn follows_the_formulas_of_the_rfc() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.timeout(), INITIAL_TIMEOUT);
        trip.sample(Duration(8 * MS), Duration::ZERO);
        // SRTT 8, RTTVAR 4: 8 + 16.
        assert_eq!(trip.timeout(), Duration(24 * MS));
        trip.sample(Duration(20 * MS), Duration(4 * MS));
        // RTTVAR 3/4*4 + 1/4*8 = 5, SRTT 7/8*8 + 1/8*16 = 9: 9 + 20.
        assert_eq!(trip.smoothed(), Some(Duration(9 * MS)));
        assert_eq!(trip.timeout(), Duration(29 * MS));
    }

    #[test]
    fn backs_off_to_the_bound_and_recovers_with_a_sample() {
        let mut trip = RoundTrip::default();
        trip.sample(Duration(MS / 10), Duration::ZERO);
        assert_eq!(trip.timeout(), MIN_TIMEOUT);
        trip.back_off();
        assert_eq!(trip.timeout(), MIN_TIMEOUT.times(2));
        for _ in 0..100 {
            trip.back_off();
        }
        assert_eq!(trip.timeout(), MAX_TIMEOUT);
        trip.sample(Duration(MS / 10), Duration::ZERO);
        assert_eq!(trip.timeout(), MIN_TIMEOUT);
    }
}
