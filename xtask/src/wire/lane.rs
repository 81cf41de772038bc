//! One direction of a port: what is done to the frames that pass, decided by a seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A frame, shared by the ports that it is flooded to.
pub(super) type Frame = Arc<[u8]>;

/// The most frames that are under way in one direction; more are dropped.
const MAX_UNDER_WAY: usize = 4096;
/// How long a frame that was to be overtaken waits for another one.
const OVERTAKING: Duration = Duration::from_millis(50);

/// What happens to frames in one direction of a port. Probabilities are from 0 to 1; the default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// The frame is lost.
    pub drop: f64,
    /// It arrives twice.
    pub duplicate: f64,
    /// The next frame overtakes it, if one comes within 50 ms.
    pub reorder: f64,
    /// One of its bytes is changed.
    pub corrupt: f64,
    /// Every frame is so much later.
    pub delay: Duration,
    /// At most so much is added to the delay, differently for each frame: they overtake each other.
    pub jitter: Duration,
    /// Nothing passes; what was under way is lost too.
    pub cut: bool,
    /// Frames of more bytes vanish, like in a tunnel that is too narrow.
    pub longest: Option<usize>,
}

impl Faults {
    /// Nothing passes.
    #[must_use]
    pub fn cut() -> Self {
        Self {
            cut: true,
            ..Self::default()
        }
    }
}

/// What was done in one direction of a port, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Came to this direction.
    pub frames: u64,
    /// Lost by probability.
    pub dropped: u64,
    /// Lost by a cut.
    pub cut: u64,
    /// Lost because they were too long.
    pub too_long: u64,
    /// Lost because too many were under way.
    pub overflowed: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Held back for the next to overtake them.
    pub reordered: u64,
    /// Changed.
    pub corrupted: u64,
}

/// One direction of a port.
pub(super) struct Lane {
    faults: Faults,
    random: fastrand::Rng,
    /// By the time when they are due, and in their order if that is the same.
    under_way: BTreeMap<(Instant, u64), Frame>,
    /// To be overtaken, at the latest given up at this time.
    held: Option<(Instant, Frame)>,
    pub(super) passed: Passed,
}

/// What is to happen to one frame.
struct Fate {
    drop: bool,
    duplicate: bool,
    reorder: bool,
    corrupt: bool,
    later: Duration,
    place: u64,
}

impl Lane {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::default(),
            random: fastrand::Rng::with_seed(seed),
            under_way: BTreeMap::new(),
            held: None,
            passed: Passed::default(),
        }
    }

    pub(super) fn set(&mut self, faults: Faults) {
        self.faults = faults;
        if faults.cut {
            let lost = self.under_way.len() + usize::from(self.held.is_some());
            self.passed.cut += lost as u64;
            self.under_way.clear();
            self.held = None;
        }
    }

    /// A frame enters at `now`; what leaves at once is added to `out`.
    pub(super) fn enter(&mut self, now: Instant, frame: &Frame, out: &mut Vec<Frame>) {
        self.passed.frames += 1;
        let fate = self.draw();
        if self.faults.cut {
            self.passed.cut += 1;
            return;
        }
        if self.faults.longest.is_some_and(|most| frame.len() > most) {
            self.passed.too_long += 1;
            return;
        }
        if fate.drop {
            self.passed.dropped += 1;
            return;
        }
        let mut frame = Arc::clone(frame);
        if fate.corrupt {
            self.passed.corrupted += 1;
            frame = corrupted(&frame, fate.place);
        }
        if fate.reorder && self.held.is_none() {
            self.passed.reordered += 1;
            self.held = Some((now + OVERTAKING, frame));
            return;
        }
        if fate.duplicate {
            self.passed.duplicated += 1;
            self.leave(now, fate.later, Arc::clone(&frame), out);
        }
        self.leave(now, fate.later, frame, out);
        if let Some((_, overtaken)) = self.held.take() {
            self.leave(now, fate.later, overtaken, out);
        }
    }

    /// The same numbers are drawn whatever the faults are: changing one of them changes nothing about the others.
    fn draw(&mut self) -> Fate {
        let mut chance = |probability: f64| self.random.f64() < probability;
        Fate {
            drop: chance(self.faults.drop),
            duplicate: chance(self.faults.duplicate),
            reorder: chance(self.faults.reorder),
            corrupt: chance(self.faults.corrupt),
            later: self.faults.delay + self.faults.jitter.mul_f64(self.random.f64()),
            place: self.random.u64(..),
        }
    }

    fn leave(&mut self, now: Instant, later: Duration, frame: Frame, out: &mut Vec<Frame>) {
        if later.is_zero() {
            out.push(frame);
        } else if self.under_way.len() == MAX_UNDER_WAY {
            self.passed.overflowed += 1;
        } else {
            let due = now + later;
            let behind = self.under_way.range(..=(due, u64::MAX)).next_back();
            let number = match behind {
                Some(((time, number), _)) if *time == due => number + 1,
                _ => 0,
            };
            self.under_way.insert((due, number), frame);
        }
    }

    /// Adds to `out` what is due at `now`.
    pub(super) fn due(&mut self, now: Instant, out: &mut Vec<Frame>) {
        if let Some((_, frame)) = self.held.take_if(|(until, _)| *until <= now) {
            self.leave(now, Duration::ZERO, frame, out);
        }
        while let Some(first) = self.under_way.first_entry() {
            if first.key().0 > now {
                break;
            }
            out.push(first.remove());
        }
    }

    /// When [`Lane::due`] has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.under_way.first_key_value().map(|((due, _), _)| *due);
        let held = self.held.as_ref().map(|(until, _)| *until);
        first.into_iter().chain(held).min()
    }
}

/// The frame with one byte changed, chosen by `place`.
fn corrupted(frame: &[u8], place: u64) -> Frame {
    let mut bytes = frame.to_vec();
    let length = bytes.len() as u64;
    if let Some(byte) = bytes.get_mut((place % length.max(1)) as usize) {
        *byte ^= 1 << (place >> 61);
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    fn now() -> Instant {
        crate::wire::now()
    }

    fn frame(number: usize) -> Frame {
        (number as u64).to_be_bytes().repeat(8).into()
    }

    /// What leaves of `count` frames that enter at one moment, long after which nothing is under way.
    fn pass(lane: &mut Lane, count: usize) -> Vec<Frame> {
        let (start, mut out) = (now(), Vec::new());
        for number in 0..count {
            lane.enter(start, &frame(number), &mut out);
        }
        lane.due(start + Duration::from_secs(3600), &mut out);
        assert_eq!(lane.next(), None);
        out
    }

    fn with(faults: Faults) -> Lane {
        let mut lane = Lane::new(SEED);
        lane.set(faults);
        lane
    }

    #[test]
    fn without_faults_everything_passes_in_order() {
        let sent: Vec<_> = (0..100).map(frame).collect();
        assert_eq!(pass(&mut Lane::new(SEED), 100), sent);
    }

    #[test]
    fn a_rate_of_frames_is_dropped_and_the_seed_says_which() {
        let faults = Faults {
            drop: 0.25,
            ..Faults::default()
        };
        let mut lane = with(faults);
        let passed = pass(&mut lane, 4000);
        assert_eq!(passed.len() as u64 + lane.passed.dropped, 4000);
        assert!(
            (800..1200).contains(&lane.passed.dropped),
            "{:?}",
            lane.passed
        );
        assert_eq!(passed, pass(&mut with(faults), 4000));
        let mut other = Lane::new(SEED + 1);
        other.set(faults);
        assert_ne!(passed, pass(&mut other, 4000));
    }

    #[test]
    fn a_fault_more_changes_nothing_about_the_others() {
        let drop = Faults {
            drop: 0.5,
            ..Faults::default()
        };
        let both = Faults {
            duplicate: 1.0,
            ..drop
        };
        let mut twice = pass(&mut with(both), 100);
        twice.dedup();
        assert_eq!(twice, pass(&mut with(drop), 100));
    }

    #[test]
    fn duplicates_come_twice() {
        let mut lane = with(Faults {
            duplicate: 0.5,
            ..Faults::default()
        });
        let mut passed = pass(&mut lane, 1000);
        assert_eq!(passed.len() as u64, 1000 + lane.passed.duplicated);
        assert!(
            (400..600).contains(&lane.passed.duplicated),
            "{:?}",
            lane.passed
        );
        passed.dedup();
        assert_eq!(passed.len(), 1000);
    }

    #[test]
    fn frames_overtake_each_other_and_none_is_lost() {
        let mut lane = with(Faults {
            reorder: 0.3,
            ..Faults::default()
        });
        let mut passed = pass(&mut lane, 1000);
        let sent: Vec<_> = (0..1000).map(frame).collect();
        assert!(lane.passed.reordered > 100, "{:?}", lane.passed);
        assert_ne!(passed, sent);
        passed.sort();
        assert_eq!(passed, sent);
    }

    #[test]
    fn a_frame_that_nothing_overtakes_comes_too() {
        let mut lane = with(Faults {
            reorder: 1.0,
            ..Faults::default()
        });
        let (start, mut out) = (now(), Vec::new());
        lane.enter(start, &frame(1), &mut out);
        assert!(out.is_empty());
        let due = lane.next().unwrap();
        lane.due(due, &mut out);
        assert_eq!(out, [frame(1)]);
    }

    #[test]
    fn corruption_changes_one_byte() {
        let mut lane = with(Faults {
            corrupt: 1.0,
            ..Faults::default()
        });
        let passed = pass(&mut lane, 100);
        let mut places = std::collections::BTreeSet::new();
        for (number, changed) in passed.iter().enumerate() {
            let original = frame(number);
            let differing = (0..original.len()).filter(|&at| changed[at] != original[at]);
            let differing: Vec<_> = differing.collect();
            assert_eq!(differing.len(), 1, "frame {number}");
            places.extend(differing);
        }
        assert!(places.len() > 10, "{places:?}");
    }

    #[test]
    fn delayed_frames_keep_their_order_and_come_when_due() {
        let delay = Duration::from_millis(20);
        let mut lane = with(Faults {
            delay,
            ..Faults::default()
        });
        let (start, mut out) = (now(), Vec::new());
        for number in 0..3 {
            lane.enter(start, &frame(number), &mut out);
        }
        assert_eq!(lane.next(), Some(start + delay));
        lane.due(start + delay - Duration::from_nanos(1), &mut out);
        assert!(out.is_empty());
        lane.due(start + delay, &mut out);
        assert_eq!(out, [frame(0), frame(1), frame(2)]);
    }

    #[test]
    fn an_undelayed_frame_does_not_stay_behind_delayed_ones() {
        let mut lane = with(Faults {
            delay: Duration::from_secs(1),
            ..Faults::default()
        });
        let (start, mut out) = (now(), Vec::new());
        lane.enter(start, &frame(1), &mut out);
        lane.set(Faults::default());
        lane.enter(start, &frame(2), &mut out);
        lane.due(start, &mut out);
        assert_eq!(out, [frame(2)]);
    }

    #[test]
    fn jitter_lets_frames_overtake() {
        let mut lane = with(Faults {
            jitter: Duration::from_millis(5),
            ..Faults::default()
        });
        let passed = pass(&mut lane, 100);
        assert_eq!(passed.len(), 100);
        assert!(!passed.is_sorted());
    }

    #[test]
    fn a_cut_takes_what_was_under_way() {
        let mut lane = with(Faults {
            delay: Duration::from_secs(1),
            ..Faults::default()
        });
        let (start, mut out) = (now(), Vec::new());
        lane.enter(start, &frame(1), &mut out);
        lane.set(Faults::cut());
        lane.enter(start, &frame(2), &mut out);
        lane.set(Faults::default());
        lane.due(start + Duration::from_secs(9), &mut out);
        assert!(out.is_empty());
        assert_eq!(lane.passed.cut, 2);
    }

    #[test]
    fn long_frames_vanish_in_a_narrow_tunnel() {
        let mut lane = with(Faults {
            longest: Some(64),
            ..Faults::default()
        });
        let (start, mut out) = (now(), Vec::new());
        lane.enter(start, &vec![1; 64].into(), &mut out);
        lane.enter(start, &vec![1; 65].into(), &mut out);
        assert_eq!((out.len(), lane.passed.too_long), (1, 1));
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let mut lane = with(Faults {
            delay: Duration::from_secs(1),
            ..Faults::default()
        });
        let passed = pass(&mut lane, MAX_UNDER_WAY + 3);
        assert_eq!((passed.len(), lane.passed.overflowed), (MAX_UNDER_WAY, 3));
    }
}
