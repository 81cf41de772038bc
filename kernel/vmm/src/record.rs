//! Recording: what passed the door becomes the log.

use alloc::boxed::Box;
use core::ops::Range;

use devices::time::GuestTime;
use xxhash_rust::xxh3::Xxh3Default;

use crate::digest::Running;
use crate::log::ring::{RING_BYTES, Ring};
use crate::log::{
    Answer, Encoder, End, Input, MemoryPart, OutputKind, Point, Sink, Snapshot, What,
};
use crate::output::{Destination, Output};

/// Bytes that must be free before the guest runs on: an exit's answers (an INS of 4096 elements from a clock), an
/// input of the greatest size and its company.
const RESERVE: usize = 128 << 10;
/// Entries between two checks.
const CHECK_EVERY: u32 = 64;
/// Checks between two with the whole processor.
const SNAPSHOT_EVERY: u32 = 16;
/// Bytes of output after which they are noted in the log.
const OUTPUT_BYTES: u32 = 256;
/// Guest time, in nanoseconds, after which they are.
const OUTPUT_NS: u64 = 20_000_000;
/// Guest time, in nanoseconds, without an entry after which a running guest gets a check: a replay runs no further than the
/// log goes.
const SILENCE_NS: u64 = 10_000_000;
/// Guest time, in nanoseconds, between two checks of a part of memory.
const MEMORY_NS: u64 = 500_000_000;

/// What the guest has put out since it was noted last.
#[derive(Clone)]
pub struct Produced {
    bytes: u32,
    /// Some of them are frames.
    frames: bool,
    hash: Xxh3Default,
    /// Guest time of the first of them.
    since: GuestTime,
}

impl Default for Produced {
    fn default() -> Self {
        Self {
            bytes: 0,
            frames: false,
            hash: Xxh3Default::new(),
            since: GuestTime(0),
        }
    }
}

impl Produced {
    /// The guest has put out `bytes` at `now`.
    pub fn add(&mut self, now: GuestTime, output: Output<'_>) {
        let Output { destination, bytes } = output;
        if self.is_empty() {
            self.since = now;
        }
        if let Destination::Network(nic) = destination {
            self.frames = true;
            self.hash.update(&[nic]);
            self.hash.update(&(bytes.len() as u32).to_le_bytes());
        }
        self.bytes = self.bytes.saturating_add(bytes.len() as u32);
        self.hash.update(bytes);
    }

    /// Whether they are to be noted at `now`: frames do not wait.
    #[inline]
    pub fn is_due(&self, now: GuestTime) -> bool {
        self.frames
            || self.bytes >= OUTPUT_BYTES
            || self.bytes != 0 && now.since(self.since) >= OUTPUT_NS
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.frames
    }

    /// Where they go.
    #[must_use]
    pub fn kind(&self) -> OutputKind {
        if self.frames {
            OutputKind::Network
        } else {
            OutputKind::Console
        }
    }

    /// Number of bytes and their digest; none are left.
    pub fn take(&mut self) -> (u32, u64) {
        let Self { bytes, hash, .. } = core::mem::take(self);
        (bytes, hash.digest())
    }
}

/// How much of what went into the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the log consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volumes {
    /// Answers.
    pub answers: Volume,
    /// Inputs.
    pub inputs: Volume,
    /// Outputs.
    pub outputs: Volume,
    /// Checks and the end.
    pub checks: Volume,
    /// Inputs that were placed at a deterministic exit.
    pub at_exits: u64,
}

/// Writes a log.
pub struct Recorder {
    encoder: Encoder,
    ring: Ring,
    /// The running digest.
    pub digest: Running,
    /// Output not noted yet.
    pub produced: Produced,
    /// A check at every point.
    every_exit: bool,
    unchecked: u32,
    checks: u32,
    checked_at: Option<Point>,
    /// Guest time of now, of the last placed entry, and of the last check of memory.
    now: GuestTime,
    placed_at: GuestTime,
    memory_at: GuestTime,
    /// The large page that the next check of memory begins with.
    next_page: u64,
    volumes: Volumes,
}

impl Recorder {
    /// A log that begins with `header`. With `every_exit` each deterministic exit can be compared by itself.
    #[must_use]
    pub fn new(header: &[u8], every_exit: bool) -> Self {
        let mut ring = Ring::default();
        header.iter().for_each(|byte| ring.put(*byte));
        Self {
            encoder: Encoder::default(),
            ring,
            digest: Running::default(),
            produced: Produced::default(),
            every_exit,
            unchecked: 0,
            checks: 0,
            checked_at: None,
            now: GuestTime(0),
            placed_at: GuestTime(0),
            memory_at: GuestTime(0),
            next_page: 0,
            volumes: Volumes::default(),
        }
    }

    /// Whether the guest may run on.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ring.len() <= RING_BYTES - RESERVE
    }

    /// Moves the oldest bytes of the log to `to`. Returns how many.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        self.ring.take(to)
    }

    /// Bytes of the log that nobody has taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ring.len()
    }

    /// Bytes of the log so far.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.ring.total() as u64
    }

    /// What went into it.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// An instruction was answered.
    #[inline]
    pub fn answer(&mut self, answer: Answer) {
        let before = self.ring.total();
        self.encoder.answer(&mut self.ring, answer);
        self.unchecked = self.unchecked.wrapping_add(1);
        let volume = &mut self.volumes.answers;
        volume.entries = volume.entries.wrapping_add(1);
        let bytes = self.ring.total().wrapping_sub(before);
        volume.bytes = volume.bytes.wrapping_add(bytes as u64);
    }

    /// Something enters at `point`. `input` is as before then, without having been copied.
    pub fn input(&mut self, point: Point, input: &mut Input) {
        let check = self.digest.low();
        self.volumes.at_exits += u64::from(point.after == 0);
        self.unchecked += 1;
        let what = What::Input {
            check,
            input: core::mem::replace(input, Input::Time { late: 0 }),
        };
        self.placed(point, &what, |v| &mut v.inputs);
        if let What::Input { input: logged, .. } = what {
            *input = logged;
        }
    }

    /// It is `now`.
    #[inline]
    pub fn advance(&mut self, now: GuestTime) {
        self.now = now;
    }

    /// Whether something is to be noted soon, also if the guest does not exit: output, or that it runs.
    #[inline]
    #[must_use]
    pub fn point_is_due(&self) -> bool {
        self.output_is_due() || self.now >= self.silent_until()
    }

    /// Whether output is to be noted at the next point.
    #[inline]
    #[must_use]
    pub fn output_is_due(&self) -> bool {
        self.produced.is_due(self.now)
    }

    /// The guest time at which a running guest is to come to a point.
    #[inline]
    #[must_use]
    pub fn silent_until(&self) -> GuestTime {
        GuestTime(self.placed_at.0.saturating_add(SILENCE_NS))
    }

    /// Notes the output of before `point`.
    pub fn output(&mut self, point: Point) {
        let kind = self.produced.kind();
        let (length, digest) = self.produced.take();
        let what = What::Output {
            kind,
            length,
            digest,
            check: self.digest.value(),
        };
        self.placed(point, &what, |v| &mut v.outputs);
    }

    /// Whether a check is to be made at `point`.
    #[inline]
    #[must_use]
    pub fn check_is_due(&self, point: Point) -> bool {
        self.unchecked >= CHECK_EVERY
            || self.now >= self.silent_until()
            || self.memory_is_due()
            || self.every_exit && self.checked_at != Some(point)
    }

    /// Whether the next check carries a part of memory.
    #[inline]
    #[must_use]
    pub fn memory_is_due(&self) -> bool {
        self.now.since(self.memory_at) >= MEMORY_NS
    }

    /// The part of a memory of `large_pages` to be checked next: a large page, and those before it that nobody has
    /// touched.
    pub fn next_part(
        &mut self,
        large_pages: u64,
        is_untouched: impl Fn(u64) -> bool,
    ) -> Range<u64> {
        self.memory_at = self.now;
        let first = if self.next_page < large_pages {
            self.next_page
        } else {
            0
        };
        let touched = (first..large_pages).find(|page| !is_untouched(*page));
        let end = touched.map_or(large_pages, |page| page + 1);
        self.next_page = end;
        first..end
    }

    /// Whether the next check carries the whole processor.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.every_exit || self.checks.is_multiple_of(SNAPSHOT_EVERY)
    }

    /// Makes a check.
    pub fn check(&mut self, point: Point, snapshot: Option<Snapshot>, memory: Option<MemoryPart>) {
        self.unchecked = 0;
        self.checked_at = Some(point);
        self.checks = self.checks.wrapping_add(1);
        let what = What::Check {
            digest: self.digest.value(),
            snapshot: snapshot.map(Box::new),
            memory,
        };
        self.placed(point, &what, |v| &mut v.checks);
    }

    /// The guest has stopped.
    pub fn end(&mut self, point: Point, end: End) {
        let digest = self.digest.value();
        self.placed(point, &What::End { digest, end }, |v| &mut v.checks);
    }

    fn placed(&mut self, point: Point, what: &What, volume: fn(&mut Volumes) -> &mut Volume) {
        let before = self.ring.total();
        self.encoder.placed(&mut self.ring, point, what);
        self.placed_at = self.now;
        let volume = volume(&mut self.volumes);
        volume.entries += 1;
        volume.bytes += self.ring.total().wrapping_sub(before) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn memory_is_gone_through_again_and_again_and_untouched_pages_are_passed_over() {
        let mut recorder = Recorder::new(&[], false);
        recorder.advance(GuestTime(MEMORY_NS - 1));
        assert!(!recorder.memory_is_due());
        recorder.advance(GuestTime(MEMORY_NS));
        assert!(recorder.memory_is_due());
        let untouched = |page| page == 1 || page == 2 || page == 5;
        let parts: [_; 5] = core::array::from_fn(|_| recorder.next_part(6, untouched));
        assert_eq!(parts, [0..1, 1..4, 4..5, 5..6, 0..1]);
        assert!(!recorder.memory_is_due());
    }

    #[test]
    fn frames_are_told_apart_by_their_card_and_their_ends() {
        let digest = |outputs: &[(Destination, &[u8])]| {
            let mut produced = Produced::default();
            for (destination, bytes) in outputs {
                let (destination, bytes) = (*destination, *bytes);
                produced.add(GuestTime(0), Output { destination, bytes });
            }
            (produced.kind(), produced.take())
        };
        let frame = |nic| Destination::Network(nic);
        let base = digest(&[(frame(0), b"abcd")]);
        assert_eq!(base.0, OutputKind::Network);
        assert_ne!(digest(&[(frame(1), b"abcd")]), base);
        assert_ne!(digest(&[(frame(0), b"ab"), (frame(0), b"cd")]), base);
        // Where one ends, when the next begins with the card's number.
        let (early, late) = (
            [(frame(0), &b"a"[..]), (frame(0), b"\0b")],
            [(frame(0), &b"a\0"[..]), (frame(0), b"b")],
        );
        assert_ne!(digest(&early), digest(&late));
        assert_ne!(digest(&[(Destination::Serial, b"abcd")]), base);
        let serial = |texts: &[&[u8]]| {
            let outputs: Vec<_> = texts.iter().map(|t| (Destination::Serial, *t)).collect();
            digest(&outputs)
        };
        assert_eq!(serial(&[b"ab", b"cd"]), serial(&[b"abcd"]));
    }
}
