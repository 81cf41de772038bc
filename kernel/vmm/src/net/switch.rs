//! A small switch: one card to the outside, and what is behind it.
//!
//! It learns where addresses are, but only inside: whatever it does not know is outside, so nothing that comes from
//! there can fill its table. A port's own address is configured, and neither learned elsewhere nor aged; a frame from
//! elsewhere that claims it is dropped. Addresses behind a port besides its own (bridges in a guest) are learned, a
//! bounded number for each port, and forgotten after [`AGE_NS`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use arch::nic::{FRAME_MAX, FRAME_MIN, Mac};

use super::QUEUE_FRAMES;
use super::pool::{Frame, Pool};

/// Ports of one switch.
pub const MAX_PORTS: usize = 66;
/// Addresses that are learned behind one port.
pub const LEARNED_PER_PORT: usize = 32;
/// A learned address is forgotten when nothing came from it for this long, in nanoseconds.
pub const AGE_NS: u64 = 300_000_000_000;

/// A port of a [`Switch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortId(usize);

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Everything that no other port has.
    Outside,
    /// This address, and others that it learns.
    Inside(Mac),
}

/// What went through a port, and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames that came in here.
    pub received: u64,
    /// Frames that went out here.
    pub sent: u64,
    /// Frames for here that found [`QUEUE_FRAMES`] waiting.
    pub full: u64,
    /// Frames from here that are no frames: too short, too long, from a group or from nobody.
    pub malformed: u64,
    /// Frames from here with the address of another port.
    pub foreign_source: u64,
    /// Frames from here for which there is no port, or this one.
    pub nowhere: u64,
}

struct Port {
    side: Side,
    active: bool,
    queue: VecDeque<Frame>,
    counters: PortCounters,
}

#[derive(Clone, Copy)]
struct Learned {
    mac: Mac,
    port: PortId,
    seen: u64,
}

/// A switch.
#[derive(Default)]
pub struct Switch {
    ports: Vec<Port>,
    learned: Vec<Learned>,
}

/// Where a frame goes.
enum Way {
    To(PortId),
    ToAll,
    Nowhere,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a port, active; one with this side that is switched off is used again. `None` if there are [`MAX_PORTS`],
    /// or an active one with this side.
    pub fn add(&mut self, side: Side) -> Option<PortId> {
        if let Some(at) = self.ports.iter().position(|port| port.side == side) {
            let port = &mut self.ports[at];
            let was_off = !port.active;
            port.active = true;
            return was_off.then_some(PortId(at));
        }
        if self.ports.len() >= MAX_PORTS {
            return None;
        }
        self.ports.push(Port {
            side,
            active: true,
            queue: VecDeque::with_capacity(QUEUE_FRAMES),
            counters: PortCounters::default(),
        });
        // Nothing is allocated while frames move.
        self.learned.reserve(self.ports.len() * LEARNED_PER_PORT);
        Some(PortId(self.ports.len() - 1))
    }

    /// Switches a port on or off. One that is off takes and gives nothing, has no address, and forgets what waits.
    pub fn set_active(&mut self, at: PortId, active: bool, pool: &mut Pool) {
        let port = &mut self.ports[at.0];
        port.active = active;
        if !active {
            for frame in port.queue.drain(..) {
                pool.give_back(frame);
            }
            self.learned.retain(|entry| entry.port != at);
        }
    }

    /// Ports, active or not.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// What is behind a port.
    #[must_use]
    pub fn side(&self, at: PortId) -> Side {
        self.ports[at.0].side
    }

    /// What went through a port.
    #[must_use]
    pub fn counters(&self, at: PortId) -> &PortCounters {
        &self.ports[at.0].counters
    }

    /// The frame that leaves next by a port.
    #[must_use]
    pub fn front(&self, at: PortId) -> Option<&Frame> {
        self.ports[at.0].queue.front()
    }

    /// Takes it out.
    pub fn pop(&mut self, at: PortId) -> Option<Frame> {
        self.ports[at.0].queue.pop_front()
    }

    /// Addresses learned and not yet forgotten.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.learned.len()
    }

    /// A frame comes in by a port at host time `now`, in nanoseconds.
    pub fn forward(&mut self, from: PortId, frame: Frame, pool: &mut Pool, now: u64) {
        let port = &mut self.ports[from.0];
        if !port.active {
            port.counters.nowhere += 1;
            pool.give_back(frame);
            return;
        }
        let bytes = pool.bytes(&frame);
        let header = (FRAME_MIN..=FRAME_MAX)
            .contains(&bytes.len())
            .then(|| Some((Mac::first_of(bytes)?, Mac::first_of(bytes.get(6..)?)?)))
            .flatten()
            .filter(|(_, source)| source.is_single());
        let Some((destination, source)) = header else {
            port.counters.malformed += 1;
            pool.give_back(frame);
            return;
        };
        if !self.admit(from, source, now) {
            self.ports[from.0].counters.foreign_source += 1;
            pool.give_back(frame);
            return;
        }
        self.ports[from.0].counters.received += 1;
        match self.way(from, destination, now) {
            Way::To(to) => self.enqueue(to, frame, pool),
            Way::ToAll => {
                for to in (0..self.ports.len()).map(PortId) {
                    if to != from && self.ports[to.0].active {
                        let shared = pool.share(&frame);
                        self.enqueue(to, shared, pool);
                    }
                }
                pool.give_back(frame);
            }
            Way::Nowhere => {
                self.ports[from.0].counters.nowhere += 1;
                pool.give_back(frame);
            }
        }
    }

    fn enqueue(&mut self, to: PortId, frame: Frame, pool: &mut Pool) {
        let port = &mut self.ports[to.0];
        if port.queue.len() < QUEUE_FRAMES {
            port.queue.push_back(frame);
            port.counters.sent += 1;
        } else {
            port.counters.full += 1;
            pool.give_back(frame);
        }
    }

    /// The active port whose own address this is.
    fn owner(&self, mac: Mac) -> Option<PortId> {
        let owns = |port: &Port| port.active && port.side == Side::Inside(mac);
        self.ports.iter().position(owns).map(PortId)
    }

    fn outside(&self) -> Option<PortId> {
        let is = |port: &Port| port.active && port.side == Side::Outside;
        self.ports.iter().position(is).map(PortId)
    }

    /// Whether a frame from `source` may come in here; learns that it is here.
    fn admit(&mut self, from: PortId, source: Mac, now: u64) -> bool {
        if let Some(owner) = self.owner(source) {
            return owner == from;
        }
        self.learned
            .retain(|entry| entry.seen.saturating_add(AGE_NS) > now);
        let known = self.learned.iter().position(|entry| entry.mac == source);
        if self.ports[from.0].side == Side::Outside {
            // It has moved out.
            if let Some(at) = known {
                self.learned.swap_remove(at);
            }
            return true;
        }
        let entry = Learned {
            mac: source,
            port: from,
            seen: now,
        };
        if let Some(at) = known.or_else(|| self.to_replace(from)) {
            self.learned[at] = entry;
        } else {
            self.learned.push(entry);
        }
        true
    }

    /// The entry that goes for a new one of a port which has its share: the one not heard of for longest.
    fn to_replace(&self, port: PortId) -> Option<usize> {
        let of_port = |(_, entry): &(usize, &Learned)| entry.port == port;
        let entries = || self.learned.iter().enumerate().filter(of_port);
        if entries().count() < LEARNED_PER_PORT {
            return None;
        }
        entries()
            .min_by_key(|(_, entry)| entry.seen)
            .map(|(at, _)| at)
    }

    fn way(&self, from: PortId, destination: Mac, now: u64) -> Way {
        if destination.is_group() {
            return Way::ToAll;
        }
        let learned = || {
            let mut entries = self.learned.iter();
            entries
                .find(|e| e.mac == destination && e.seen.saturating_add(AGE_NS) > now)
                .map(|entry| entry.port)
        };
        let to = self
            .owner(destination)
            .or_else(learned)
            .or_else(|| self.outside());
        match to {
            Some(to) if to != from => Way::To(to),
            _ => Way::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests;
