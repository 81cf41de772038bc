//! The link's paths: which one is alive in each direction, which datagram size it carries, and when
//! its next heartbeat is due.

use crate::ids::{Duration, Instant};
use crate::wire::messages::HeartbeatRepr;
use crate::wire::{MIN_MTU_BYTES, PATHS};

/// Datagram size tried after large datagrams vanished, in bytes: IPv6's least link less IP and UDP
/// headers (RFC 8200 5). The next step down is [`MIN_MTU_BYTES`].
pub const REDUCED_MTU_BYTES: usize = 1_232;
/// Between two probes of a path whose datagram size was reduced.
pub const MTU_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a size that arrived is reported to the peer, twice at most.
const LARGEST_PERIOD: Duration = Duration::from_secs(1);
/// A reduced size is raised no earlier: until then the peer may still report datagrams from before.
const MTU_REST: Duration = Duration::from_secs(3);

/// One path.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// When the peer was last heard on it.
    pub heard: Option<Instant>,
    /// When the peer last said that it hears us on it.
    pub confirmed: Option<Instant>,
    /// Datagram size in use, in bytes.
    pub mtu: usize,
    /// When the next heartbeat goes out.
    pub next_heartbeat: Instant,
    /// The newest clock value the peer sent on it, and when it came.
    pub echo: Option<(u64, Instant)>,
    /// The newest round trip measured by heartbeats, in nanoseconds.
    pub round_trip: Option<Duration>,
    configured_mtu: usize,
    reduced: Option<Instant>,
    next_probe: Instant,
    largest: [u16; 2],
    largest_since: Instant,
}

impl Path {
    /// A path that carries datagrams of `mtu` bytes.
    #[must_use]
    pub fn new(mtu: usize) -> Self {
        Self {
            heard: None,
            confirmed: None,
            mtu,
            next_heartbeat: Instant(0),
            echo: None,
            round_trip: None,
            configured_mtu: mtu,
            reduced: None,
            next_probe: Instant::NEVER,
            largest: [0; 2],
            largest_since: Instant(0),
        }
    }

    /// A datagram of `bytes` arrived on it.
    pub fn on_received(&mut self, now: Instant, bytes: usize) {
        self.heard = Some(now);
        self.age_largest(now);
        self.largest[0] = self.largest[0].max(u16::try_from(bytes).unwrap_or(u16::MAX));
    }

    fn age_largest(&mut self, now: Instant) {
        let passed = now.since(self.largest_since);
        if passed >= LARGEST_PERIOD {
            let previous = if passed < LARGEST_PERIOD.times(2) {
                self.largest[0]
            } else {
                0
            };
            self.largest = [0, previous];
            self.largest_since = now;
        }
    }

    /// Largest datagram that arrived lately, in bytes.
    pub fn largest(&mut self, now: Instant) -> u16 {
        self.age_largest(now);
        self.largest[0].max(self.largest[1])
    }

    /// Whether the peer was heard on it within `limit`.
    #[must_use]
    pub fn is_heard(&self, now: Instant, limit: Duration) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < limit)
    }

    /// Whether the peer confirmed within `limit` that it hears us on it.
    #[must_use]
    pub fn is_confirmed(&self, now: Instant, limit: Duration) -> bool {
        self.confirmed
            .is_some_and(|confirmed| now.since(confirmed) < limit)
    }

    /// Large datagrams do not arrive though small ones do: goes a step down. Says whether there was
    /// one.
    pub fn reduce(&mut self, now: Instant) -> bool {
        let reduced = if self.mtu > REDUCED_MTU_BYTES {
            REDUCED_MTU_BYTES
        } else {
            MIN_MTU_BYTES
        };
        if reduced >= self.mtu {
            return false;
        }
        self.mtu = reduced;
        self.reduced = Some(now);
        self.next_probe = now.after(MTU_PROBE_INTERVAL);
        true
    }

    /// The size the heartbeat that goes out now is padded to, if it is to be a probe.
    pub fn probe(&mut self, now: Instant) -> Option<usize> {
        if self.next_probe > now {
            return None;
        }
        self.next_probe = now.after(MTU_PROBE_INTERVAL);
        Some(self.configured_mtu)
    }

    /// The peer reports the largest datagram it got on this path.
    fn on_largest(&mut self, now: Instant, bytes: usize) {
        let rested = self
            .reduced
            .is_some_and(|reduced| now.since(reduced) >= MTU_REST);
        if rested && bytes >= self.configured_mtu {
            self.mtu = self.configured_mtu;
            self.reduced = None;
            self.next_probe = Instant::NEVER;
        }
    }
}

/// All paths.
#[derive(Clone, Debug)]
pub struct Paths {
    paths: [Path; PATHS],
    count: usize,
    active: usize,
    dead_after: Duration,
}

impl Paths {
    /// `count` paths (1 to [`PATHS`]) that carry datagrams of `mtu` bytes and count as dead in a
    /// direction that was silent for `dead_after`.
    #[must_use]
    pub fn new(count: u8, mtu: usize, dead_after: Duration) -> Self {
        Self {
            paths: [Path::new(mtu); PATHS],
            count: usize::from(count).clamp(1, PATHS),
            active: 0,
            dead_after,
        }
    }

    /// Those in use.
    #[must_use]
    pub fn as_slice(&self) -> &[Path] {
        &self.paths[..self.count]
    }

    /// One of those in use.
    pub fn get_mut(&mut self, path: u8) -> Option<&mut Path> {
        self.paths[..self.count].get_mut(usize::from(path))
    }

    /// The path data takes.
    #[must_use]
    pub fn active(&self) -> u8 {
        self.active as u8
    }

    /// Datagram size on the path data takes, in bytes.
    #[must_use]
    pub fn active_mtu(&self) -> usize {
        self.paths[self.active].mtu
    }

    /// Whether data on the active path is known to arrive.
    #[must_use]
    pub fn active_works(&self, now: Instant) -> bool {
        self.paths[self.active].is_confirmed(now, self.dead_after)
    }

    /// A step down in datagram size on the active path.
    pub fn reduce_active(&mut self, now: Instant) -> bool {
        self.paths[self.active].reduce(now)
    }

    /// Data moves to the other path when the active one has stopped working and the other works.
    pub fn choose(&mut self, now: Instant) -> bool {
        if self.active_works(now) {
            return false;
        }
        let works = |path: &Path| path.is_confirmed(now, self.dead_after);
        let Some(other) = self.as_slice().iter().position(works) else {
            return false;
        };
        self.active = other;
        true
    }

    /// When [`choose`](Self::choose) may change its mind for want of confirmation.
    #[must_use]
    pub fn poll_at(&self, now: Instant) -> Instant {
        if self.count < 2 || !self.active_works(now) {
            return Instant::NEVER;
        }
        self.paths[self.active]
            .confirmed
            .map_or(Instant::NEVER, |at| at.after(self.dead_after))
    }

    /// Bit `n`: the peer was heard on path `n` lately.
    #[must_use]
    pub fn heard_bits(&self, now: Instant) -> u8 {
        let heard = |path: &Path| path.is_heard(now, self.dead_after);
        self.as_slice()
            .iter()
            .enumerate()
            .fold(0, |bits, (index, path)| {
                bits | (u8::from(heard(path)) << index)
            })
    }

    /// When the peer was last heard on any.
    #[must_use]
    pub fn last_heard(&self) -> Option<Instant> {
        self.as_slice().iter().filter_map(|path| path.heard).max()
    }

    /// What the newest heartbeat says of the paths. It was sent when the peer's `heard` bits were
    /// true; a heartbeat overtaken by a later one must not be given.
    pub fn on_heartbeat(&mut self, now: Instant, path: u8, beat: &HeartbeatRepr) {
        for (index, state) in self.paths[..self.count].iter_mut().enumerate() {
            if beat.heard & (1 << index) != 0 {
                state.confirmed = Some(now);
            }
            state.on_largest(now, usize::from(beat.largest[index]));
        }
        if let Some(state) = self.get_mut(path) {
            state.echo = Some((beat.sent_at, now));
            if beat.echo != 0 {
                let passed = now.0.saturating_sub(beat.echo);
                state.round_trip = Some(Duration(passed.saturating_sub(beat.echo_held)));
            }
        }
    }

    /// Another peer: nothing is known of it.
    pub fn reset(&mut self) {
        for path in &mut self.paths {
            *path = Path {
                next_heartbeat: Instant(0),
                ..Path::new(path.configured_mtu)
            };
        }
        self.active = 0;
    }
}
