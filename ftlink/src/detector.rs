//! The failure detector: four kinds of suspicion from what the link has seen, as a pure function of
//! time. It decides nothing; [`crate::fence`] does what a suspicion leads to.

use core::fmt;

use crate::ids::{Duration, Instant, LogPos};

/// Paths between two hosts: one or two dedicated NICs.
pub const PATHS: usize = 2;

/// When a peer is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two heartbeats on a path.
    pub heartbeat: Duration,
    /// Silence on every path.
    pub detect: Duration,
    /// The oldest flushed entry waits for its acknowledgement.
    pub ack_stall: Duration,
    /// `verified` stands still with entries pending.
    pub replay_stall: Duration,
    /// The log ring stays full.
    pub ring_stall: Duration,
}

impl Config {
    /// Suspicion after `detect` of silence; the stalls after five times that.
    #[must_use]
    pub const fn new(heartbeat: Duration, detect: Duration) -> Self {
        let stall = detect.times(5);
        Self {
            heartbeat,
            detect,
            ack_stall: stall,
            replay_stall: stall,
            ring_stall: stall,
        }
    }

    /// For hosts on hardware: 10 ms and 100 ms.
    #[must_use]
    pub const fn hardware() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(100))
    }

    /// For hosts in emulators, which stand still for long: 10 ms and 500 ms.
    #[must_use]
    pub const fn emulator() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(500))
    }
}

/// Why the peer is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspicion {
    /// Nothing was heard on any path for `detect`.
    Silence,
    /// The oldest flushed entry was not acknowledged for `ack_stall`.
    AckStall,
    /// The peer's `verified` did not move for `replay_stall` with entries pending.
    ReplayStall,
    /// The log ring was full for `ring_stall`.
    RingStall,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Suspicion::Silence => "nothing heard",
            Suspicion::AckStall => "entries not acknowledged",
            Suspicion::ReplayStall => "replay stands still",
            Suspicion::RingStall => "log ring full",
        })
    }
}

/// What the sending half of the link looks like at one moment. A host that sends no log passes
/// [`Progress::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the oldest flushed entry that is not acknowledged was flushed.
    pub oldest_unacked: Option<Instant>,
    /// Position up to which the peer holds the log.
    pub held: LogPos,
    /// Position up to which the peer has verified it.
    pub verified: LogPos,
    /// Since when the log ring has had no room.
    pub ring_full_since: Option<Instant>,
}

/// The detector of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Detector {
    heard: [Instant; PATHS],
    polled: Instant,
    verified: LogPos,
    verified_at: Instant,
    pending: bool,
}

impl Detector {
    /// A detector that begins to listen at `now`.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            heard: [now; PATHS],
            polled: now,
            verified: LogPos(0),
            verified_at: now,
            pending: false,
        }
    }

    /// Begins anew with a peer that has just been met: nothing before `now` counts against it.
    pub fn restart(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// An authentic datagram came in on `path`; paths beyond the last are ignored.
    pub fn on_heard(&mut self, now: Instant, path: usize) {
        if let Some(heard) = self.heard.get_mut(path) {
            *heard = (*heard).max(now);
        }
    }

    /// When the peer was last heard on `path`.
    #[must_use]
    pub fn heard(&self, path: usize) -> Option<Instant> {
        self.heard.get(path).copied()
    }

    /// Whether `path` has carried something within `detect`.
    #[must_use]
    pub fn path_alive(&self, config: &Config, now: Instant, path: usize) -> bool {
        self.heard(path)
            .is_some_and(|heard| now.since(heard) < config.detect)
    }

    /// The suspicion at `now`, if any. Called after what has arrived was processed: a host that was
    /// itself stalled first reads its queue.
    pub fn poll(
        &mut self,
        config: &Config,
        now: Instant,
        progress: &Progress,
    ) -> Option<Suspicion> {
        self.forgive_own_stall(config, now);
        self.polled = self.polled.max(now);
        self.watch_replay(now, progress);
        let due = |since: Instant, limit: Duration| now.since(since) >= limit;
        if self.heard.iter().all(|heard| due(*heard, config.detect)) {
            return Some(Suspicion::Silence);
        }
        if progress
            .oldest_unacked
            .is_some_and(|flushed| due(flushed, config.ack_stall))
        {
            return Some(Suspicion::AckStall);
        }
        if self.pending && due(self.verified_at, config.replay_stall) {
            return Some(Suspicion::ReplayStall);
        }
        if progress
            .ring_full_since
            .is_some_and(|since| due(since, config.ring_stall))
        {
            return Some(Suspicion::RingStall);
        }
        None
    }

    /// When the next suspicion would be due if nothing more happened.
    #[must_use]
    pub fn poll_at(&self, config: &Config, progress: &Progress) -> Instant {
        let newest = self.heard.iter().copied().max().unwrap_or(Instant::NEVER);
        let stall = |since: Option<Instant>, limit: Duration| {
            since.map_or(Instant::NEVER, |since| since.after(limit))
        };
        newest
            .after(config.detect)
            .min(stall(progress.oldest_unacked, config.ack_stall))
            .min(stall(
                self.pending.then_some(self.verified_at),
                config.replay_stall,
            ))
            .min(stall(progress.ring_full_since, config.ring_stall))
    }

    /// Time in which this host did not look is not the peer's silence: of a gap between two polls
    /// only half of `detect` counts. A host that is always slow still notices, in a few polls.
    fn forgive_own_stall(&mut self, config: &Config, now: Instant) {
        let counted = Duration(config.detect.0 / 2);
        let gap = now.since(self.polled);
        if gap > counted {
            let forgiven = Duration(gap.0 - counted.0);
            for heard in &mut self.heard {
                *heard = heard.after(forgiven).min(now);
            }
            self.verified_at = self.verified_at.after(forgiven).min(now);
        }
    }

    fn watch_replay(&mut self, now: Instant, progress: &Progress) {
        let pending = progress.verified < progress.held;
        let moved = progress.verified != self.verified;
        if moved || !pending || !self.pending {
            self.verified_at = now;
        }
        self.verified = progress.verified;
        self.pending = pending;
    }
}
