//! The switch itself, without sockets and clocks: frames and times in, queues of frames out.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use arch::nic::Mac;

use super::capture::{Capture, Way};
use super::lane::{Faults, Frame, Lane, Passed};

/// The most frames that wait for the card at a port to take them; more are dropped and counted.
pub const MAX_WAITING: usize = 512;
/// The longest frame in bytes: a jumbo frame with a VLAN tag.
pub const MAX_FRAME: usize = 9018;
/// The shortest frame in bytes: addresses and type.
const MIN_FRAME: usize = 14;
/// The most addresses that are learned; frames to others are flooded.
const MAX_LEARNED: usize = 1024;

/// Which direction of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the card at the port to the wire.
    Sent,
    /// From the wire to the card at the port.
    Received,
}

/// What came of the frames at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that its card sent.
    pub sent: Passed,
    /// Those on the way to its card.
    pub received: Passed,
    /// Too short or too long for Ethernet.
    pub malformed: u64,
    /// Lost because the card at the port did not take them.
    pub overflowed: u64,
    /// Lost because nobody was at the port.
    pub absent: u64,
    /// Taken by the card at the port.
    pub delivered: u64,
}

struct Port {
    name: String,
    sent: Lane,
    received: Lane,
    /// Which part of a partitioned wire the port is in.
    part: usize,
    /// What the card has not taken yet.
    waiting: VecDeque<Frame>,
    malformed: u64,
    overflowed: u64,
    absent: u64,
    delivered: u64,
}

/// One moment by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// For delays.
    pub(super) at: Instant,
    /// Since 1970, for the capture.
    pub(super) since_epoch: Duration,
}

/// A learning switch.
pub(super) struct Switch {
    seed: u64,
    ports: Vec<Port>,
    learned: BTreeMap<Mac, usize>,
    capture: Option<Capture>,
}

impl Switch {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ports: Vec::new(),
            learned: BTreeMap::new(),
            capture: None,
        }
    }

    /// Adds a port and returns its number.
    pub(super) fn add(&mut self, name: &str) -> usize {
        if let Some(capture) = &mut self.capture {
            capture.port(name);
        }
        let number = self.ports.len();
        // Directions differ from each other, and from those of a wire with the next seed.
        let mut seeds = fastrand::Rng::with_seed(self.seed ^ ((number as u64) << 32));
        self.ports.push(Port {
            name: name.to_owned(),
            sent: Lane::new(seeds.u64(..)),
            received: Lane::new(seeds.u64(..)),
            part: 0,
            waiting: VecDeque::new(),
            malformed: 0,
            overflowed: 0,
            absent: 0,
            delivered: 0,
        });
        number
    }

    pub(super) fn set_faults(&mut self, port: usize, direction: Direction, faults: Faults) {
        let port = &mut self.ports[port];
        match direction {
            Direction::Sent => port.sent.set(faults),
            Direction::Received => port.received.set(faults),
        }
    }

    /// Lets frames pass only inside each of `parts`; the other ports are a part together.
    pub(super) fn partition(&mut self, parts: &[&[usize]]) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            let part = parts.iter().position(|part| part.contains(&number));
            port.part = part.map_or(0, |part| part + 1);
        }
    }

    pub(super) fn counts(&self, port: usize) -> Counts {
        let port = &self.ports[port];
        Counts {
            sent: port.sent.passed,
            received: port.received.passed,
            malformed: port.malformed,
            overflowed: port.overflowed,
            absent: port.absent,
            delivered: port.delivered,
        }
    }

    /// Captures from now on.
    pub(super) fn capture(&mut self, path: &Path) -> io::Result<()> {
        let mut capture = Capture::create(path)?;
        for port in &self.ports {
            capture.port(&port.name);
        }
        self.capture = Some(capture);
        Ok(())
    }

    /// Puts what was captured into the file.
    pub(super) fn flush_capture(&mut self) {
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
    }

    /// Ends the capture, if there is one.
    pub(super) fn finish_capture(&mut self) -> io::Result<()> {
        self.capture.take().map_or(Ok(()), Capture::finish)
    }

    /// The card at `port` has sent `frame`.
    pub(super) fn arrive(&mut self, now: Moment, port: usize, frame: &[u8]) {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            self.ports[port].malformed += 1;
            return;
        }
        self.write(now, port, Way::Sent, frame);
        let mut out = Vec::new();
        self.ports[port].sent.enter(now.at, &frame.into(), &mut out);
        for frame in out {
            self.forward(now, port, &frame);
        }
    }

    /// Passes on what was delayed until now.
    pub(super) fn tick(&mut self, now: Moment) {
        let mut out = Vec::new();
        for port in 0..self.ports.len() {
            self.ports[port].sent.due(now.at, &mut out);
            for frame in out.drain(..) {
                self.forward(now, port, &frame);
            }
            self.ports[port].received.due(now.at, &mut out);
            for frame in out.drain(..) {
                self.wait(now, port, frame);
            }
        }
    }

    /// When [`Switch::tick`] has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        let lanes = self.ports.iter().flat_map(|p| [&p.sent, &p.received]);
        lanes.filter_map(Lane::next).min()
    }

    /// The frame that waits first at `port`.
    pub(super) fn first(&self, port: usize) -> Option<&Frame> {
        self.ports[port].waiting.front()
    }

    /// The frame that waited first was taken, or nobody is there.
    pub(super) fn taken(&mut self, port: usize, present: bool) {
        let port = &mut self.ports[port];
        if port.waiting.pop_front().is_some() {
            if present {
                port.delivered += 1;
            } else {
                port.absent += 1;
            }
        }
    }

    /// Sends a frame that has left the lane of port `from` to where it belongs.
    fn forward(&mut self, now: Moment, from: usize, frame: &Frame) {
        let (Some(to), Some(sender)) = (Mac::first_of(frame), Mac::first_of(&frame[6..])) else {
            return;
        };
        self.learn(sender, from);
        match self.learned.get(&to) {
            Some(&port) => self.pass(now, from, port, frame),
            None => (0..self.ports.len()).for_each(|port| self.pass(now, from, port, frame)),
        }
    }

    fn learn(&mut self, sender: Mac, port: usize) {
        let known = self.learned.contains_key(&sender);
        if sender.is_single() && (known || self.learned.len() < MAX_LEARNED) {
            self.learned.insert(sender, port);
        }
    }

    /// Puts a frame on the way from one port to another, unless that is the same or in another part.
    fn pass(&mut self, now: Moment, from: usize, to: usize, frame: &Frame) {
        if from == to || self.ports[from].part != self.ports[to].part {
            return;
        }
        let mut out = Vec::new();
        self.ports[to].received.enter(now.at, frame, &mut out);
        for frame in out {
            self.wait(now, to, frame);
        }
    }

    /// Lets a frame wait for the card at `port` to take it.
    fn wait(&mut self, now: Moment, port: usize, frame: Frame) {
        if self.ports[port].waiting.len() >= MAX_WAITING {
            self.ports[port].overflowed += 1;
            return;
        }
        self.write(now, port, Way::Received, &frame);
        self.ports[port].waiting.push_back(frame);
    }

    fn write(&mut self, now: Moment, port: usize, way: Way, frame: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.frame(port, way, now.since_epoch, frame);
        }
    }
}
