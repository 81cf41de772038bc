//! Everything joined: cards, their switches, guests' ports, and the host's stacks.

use alloc::string::String;
use alloc::vec::Vec;

use arch::nic::{Counters, Event, FRAME_PADDED, HUNG_NS, Mac, Nic, NotSent, Received};

use super::QUEUE_FRAMES;
use super::pool::Pool;
use super::stack::{AddressChange, Stack};
use super::switch::{PortCounters, PortId, Side, Switch};
use crate::config::net as config;

/// How often a card is looked after, in nanoseconds.
const CHECK_NS: u64 = 5_000_000;
const _: () = assert!(CHECK_NS < HUNG_NS / 100);

/// Shortest and longest time between polls while no guest runs, and while one does, in nanoseconds.
const WHEN_IDLE_NS: (u64, u64) = (50_000, 1_000_000);
const WHEN_BUSY_NS: (u64, u64) = (250_000, 2_000_000);
/// Buffers besides those of the frames that wait at a port: none of them can be used up.
const BUFFERS_ON_THE_WAY: usize = 2;

/// A guest's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPort {
    segment: usize,
    port: PortId,
}

/// Something that the operator is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Of a card.
    Card(Event),
    /// Of the host's address on it.
    Address(AddressChange),
}

/// A card, and what is behind it.
struct Segment<N> {
    name: String,
    nic: N,
    switch: Switch,
    outside: PortId,
    host: Option<Host>,
    /// Host time of the next look after the card.
    check_at: u64,
}

/// The host behind a card.
struct Host {
    port: PortId,
    stack: Stack,
    /// Host time at which the stack wants to be asked.
    poll_at: u64,
}

/// The host's network.
pub struct Network<N> {
    pool: Pool,
    segments: Vec<Segment<N>>,
    /// Host time of the last frame from or to a card.
    moved_at: u64,
}

/// What [`Network::poll`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Frames moved from and to cards.
    pub frames: usize,
    /// Frames may be left that the budget did not allow.
    pub more: bool,
}

impl<N: Nic> Network<N> {
    /// A network of these cards, each with what the configuration says of it. `random` is asked once for each, `now`
    /// in nanoseconds.
    pub fn new(
        cards: impl IntoIterator<Item = (config::Nic, N)>,
        mut random: impl FnMut() -> u64,
        now: u64,
    ) -> Self {
        let mut segments = Vec::new();
        for (config, nic) in cards {
            let mut switch = Switch::new();
            let Some(outside) = switch.add(Side::Outside) else {
                continue;
            };
            let host = config.addressing.as_ref().and_then(|addressing| {
                let port = switch.add(Side::Inside(nic.mac()))?;
                let stack = Stack::new(nic.mac(), addressing, config.mtu, random(), now);
                Some(Host {
                    port,
                    stack,
                    poll_at: now,
                })
            });
            segments.push(Segment {
                name: config.name,
                nic,
                switch,
                outside,
                host,
                check_at: now,
            });
        }
        let mut network = Self {
            pool: Pool::new(),
            segments,
            moved_at: now,
        };
        network.provide();
        network
    }

    /// Connects a guest to the card named `nic`, at its old port if it was switched off there. `None` if there is no such
    /// card, or it has too many ports or this address.
    pub fn connect(&mut self, nic: &str, mac: Mac) -> Option<GuestPort> {
        let segment = self.segment(nic)?;
        let at = &mut self.segments[segment];
        let port = at.switch.add(Side::Inside(mac))?;
        // Frames to the guest's address are not the card's.
        at.nic.set_promiscuous(true);
        self.provide();
        Some(GuestPort { segment, port })
    }

    /// Makes as many buffers as there are places where frames wait.
    fn provide(&mut self) {
        let ports: usize = self.segments.iter().map(|s| s.switch.ports()).sum();
        self.pool.grow_to(ports * QUEUE_FRAMES + BUFFERS_ON_THE_WAY);
    }

    fn segment(&self, nic: &str) -> Option<usize> {
        self.segments.iter().position(|s| s.name == nic)
    }

    /// The host's stack on the card named `nic`.
    pub fn stack(&mut self, nic: &str) -> Option<&mut Stack> {
        let segment = self.segment(nic)?;
        let host = self.segments[segment].host.as_mut()?;
        // Whoever asks may give it something to send.
        host.poll_at = 0;
        Some(&mut host.stack)
    }

    /// The cards by name.
    pub fn cards(&self) -> impl Iterator<Item = (&str, &N)> {
        self.segments.iter().map(|s| (s.name.as_str(), &s.nic))
    }

    /// Whether there is no card.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// What went through the card named `nic`, and through its side of the switch.
    #[must_use]
    pub fn counters(&self, nic: &str) -> Option<(Counters, PortCounters)> {
        let segment = &self.segments[self.segment(nic)?];
        let port = segment.switch.counters(segment.outside);
        Some((*segment.nic.counters(), *port))
    }

    /// Whether the guest's card has a link: whether its host's has.
    #[must_use]
    pub fn guest_link(&self, guest: GuestPort) -> bool {
        self.segments[guest.segment].nic.link().is_up()
    }

    /// What went through a guest's port.
    #[must_use]
    pub fn guest_counters(&self, guest: GuestPort) -> &PortCounters {
        self.segments[guest.segment].switch.counters(guest.port)
    }

    /// Switches a guest's port on or off: a guest that only follows its twin has none.
    pub fn set_guest_active(&mut self, guest: GuestPort, active: bool) {
        let switch = &mut self.segments[guest.segment].switch;
        switch.set_active(guest.port, active, &mut self.pool);
    }

    /// The frame that a guest gets next.
    #[must_use]
    pub fn guest_front(&self, guest: GuestPort) -> Option<&[u8]> {
        let frame = self.segments[guest.segment].switch.front(guest.port)?;
        Some(self.pool.bytes(frame))
    }

    /// Takes that frame out.
    pub fn guest_pop(&mut self, guest: GuestPort) {
        if let Some(frame) = self.segments[guest.segment].switch.pop(guest.port) {
            self.pool.give_back(frame);
        }
    }

    /// Takes a frame that a guest sends; false if there is no buffer for it. If it is for the wire, it leaves at once: the
    /// next [`poll`](Self::poll) may be a while away.
    pub fn guest_transmit(&mut self, guest: GuestPort, frame: &[u8], now: u64) -> bool {
        let Some(frame) = self.pool.copy(frame) else {
            return false;
        };
        let segment = &mut self.segments[guest.segment];
        segment
            .switch
            .forward(guest.port, frame, &mut self.pool, now);
        if segment.transmit(&mut self.pool, QUEUE_FRAMES) > 0 {
            segment.nic.flush();
        }
        self.moved_at = now;
        true
    }

    /// Tells the wire that a guest's address is here now, so that switches between do not go on sending to where it was:
    /// a question for its own IP address (RFC 903), which nobody has to answer.
    pub fn announce(&mut self, guest: GuestPort, now: u64) {
        let switch = &self.segments[guest.segment].switch;
        if let Side::Inside(mac) = switch.side(guest.port) {
            self.guest_transmit(guest, &announcement(mac), now);
        }
    }

    /// Moves frames between cards, switches and stacks at host time `now`, in nanoseconds: at most `budget` frames
    /// each way for each card. `news` is told with the card's name.
    pub fn poll(&mut self, now: u64, budget: usize, mut news: impl FnMut(&str, News)) -> Polled {
        let mut polled = Polled::default();
        for segment in &mut self.segments {
            let (received, more) = segment.receive(&mut self.pool, now, budget);
            let change = segment.serve_host(&mut self.pool, now);
            let sent = segment.transmit(&mut self.pool, budget);
            segment.nic.flush();
            polled.frames += received + sent;
            polled.more |= more;
            if let Some(change) = change {
                news(&segment.name, News::Address(change));
            }
            if now >= segment.check_at {
                segment.check_at = now.saturating_add(CHECK_NS);
                if let Some(event) = segment.nic.check(now) {
                    news(&segment.name, News::Card(event));
                }
            }
        }
        if polled.frames > 0 {
            self.moved_at = now;
        }
        polled
    }

    /// Longest time until the next [`poll`](Self::poll), in nanoseconds: after a frame another follows soon, after a
    /// long silence rather not. `idle`: no guest runs, so that a look costs only power. `None` if there is no card.
    #[must_use]
    pub fn poll_within(&self, now: u64, idle: bool) -> Option<u64> {
        let (shortest, longest) = if idle { WHEN_IDLE_NS } else { WHEN_BUSY_NS };
        let silence = now.saturating_sub(self.moved_at);
        (!self.segments.is_empty()).then(|| (silence / 4).clamp(shortest, longest))
    }

    /// Lets no frame leave any card ever again.
    pub fn mute(&mut self) {
        for segment in &mut self.segments {
            segment.nic.mute();
        }
    }
}

/// A reverse request of Ethernet address `mac` for its own IPv4 address.
fn announcement(mac: Mac) -> [u8; FRAME_PADDED] {
    const RARP: [u8; 2] = [0x80, 0x35];
    /// Ethernet and IPv4, with the lengths of their addresses, and "request reverse".
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    let mut frame = [0; FRAME_PADDED];
    for (at, part) in [
        (0, &Mac::BROADCAST.0[..]),
        (6, &mac.0),
        (12, &RARP),
        (14, &REQUEST),
        // Sender and target; their IP addresses are not known.
        (22, &mac.0),
        (32, &mac.0),
    ] {
        frame[at..at + part.len()].copy_from_slice(part);
    }
    frame
}

impl<N: Nic> Segment<N> {
    /// Frames looked at, and whether there may be more.
    fn receive(&mut self, pool: &mut Pool, now: u64, budget: usize) -> (usize, bool) {
        for done in 0..budget {
            let mut received = Received::Nothing;
            let frame = pool.fill(|buffer| {
                received = self.nic.receive(buffer);
                match received {
                    Received::Frame(length) => Some(length),
                    Received::Nothing | Received::Dropped => None,
                }
            });
            match (frame, received) {
                (Some(frame), _) => self.switch.forward(self.outside, frame, pool, now),
                (None, Received::Dropped) => {}
                (None, _) => return (done, false),
            }
        }
        (budget, true)
    }

    /// Gives the host what is for it, and takes what it sends.
    fn serve_host(&mut self, pool: &mut Pool, now: u64) -> Option<AddressChange> {
        let host = self.host.as_mut()?;
        let mut offered = false;
        while let Some(frame) = self.switch.pop(host.port) {
            host.stack.offer(pool.bytes(&frame));
            pool.give_back(frame);
            offered = true;
        }
        if !offered && now < host.poll_at {
            return None;
        }
        let change = host.stack.poll(now);
        while let Some(frame) = host.stack.to_send().and_then(|bytes| pool.copy(bytes)) {
            host.stack.sent();
            self.switch.forward(host.port, frame, pool, now);
        }
        host.poll_at = host.stack.poll_at(now).unwrap_or(u64::MAX);
        change
    }

    fn transmit(&mut self, pool: &mut Pool, budget: usize) -> usize {
        for done in 0..budget {
            let Some(frame) = self.switch.front(self.outside) else {
                return done;
            };
            // Everything else is counted by the card, and gone.
            if self.nic.transmit(pool.bytes(frame)) == Err(NotSent::Full) {
                return done;
            }
            if let Some(frame) = self.switch.pop(self.outside) {
                pool.give_back(frame);
            }
        }
        budget
    }
}

#[cfg(test)]
mod tests;
