//! The wires: between the hosts two paths, and from each host to the arbiter and back. What is sent
//! gets lost, late, doubled, overtaken, cut short or changed, as the plan and the seed say.

use std::collections::BTreeMap;

use ftlink::arbiter::{Reply, Request};
use ftlink::ids::{Duration, Instant};

use crate::plan::{Climate, Fault, Planned};
use crate::random::Random;

/// What is under way.
#[derive(Clone, Debug)]
pub enum Parcel {
    /// Between the hosts.
    Datagram {
        /// The receiver.
        to: usize,
        /// The path.
        path: u8,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// To the arbiter.
    Request(Request),
    /// From the arbiter to a host.
    Reply {
        /// The receiver.
        to: usize,
        /// The answer.
        reply: Reply,
    },
}

/// The wires.
pub struct Network {
    climate: Climate,
    random: Random,
    under_way: BTreeMap<(Instant, u64), Parcel>,
    number: u64,
    /// Faults that are on.
    pub faults: Vec<Planned>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    /// Parcels sent so far.
    pub sent: u64,
}

impl Network {
    /// Quiet wires in this weather.
    #[must_use]
    pub fn new(climate: Climate, random: Random) -> Self {
        Self {
            climate,
            random,
            under_way: BTreeMap::new(),
            number: 0,
            faults: Vec::new(),
            spare: Vec::new(),
            sent: 0,
        }
    }

    /// When the next parcel arrives.
    #[must_use]
    pub fn next_at(&self) -> Instant {
        self.under_way
            .first_key_value()
            .map_or(Instant::NEVER, |((at, _), _)| *at)
    }

    /// The parcel that arrives by `now`, if any.
    pub fn arrive(&mut self, now: Instant) -> Option<Parcel> {
        let first = self.under_way.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Gives a datagram's buffer back.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        self.spare.push(bytes);
    }

    fn has(&self, wanted: impl Fn(&Fault) -> bool) -> bool {
        self.faults.iter().any(|planned| wanted(&planned.fault))
    }

    /// A host sends a datagram to its peer.
    pub fn datagram(&mut self, now: Instant, from: usize, path: u8, datagram: &[u8]) {
        self.sent += 1;
        let cut = self.has(|fault| match *fault {
            Fault::Partition => true,
            Fault::Cut {
                from: cut,
                path: on,
            } => cut == from && on.is_none_or(|on| on == usize::from(path)),
            Fault::BlackHole { bytes } => datagram.len() > bytes,
            _ => false,
        });
        if cut || self.is_lost() {
            return;
        }
        for _ in 0..1 + u64::from(self.random.chance(self.climate.twice)) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(datagram);
            if self.has(|fault| *fault == Fault::BitFlips) && self.random.chance(2_000) {
                let bit = self.random.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let parcel = Parcel::Datagram {
                to: 1 - from,
                path,
                bytes,
            };
            self.post(now, parcel);
        }
    }

    /// A host asks the arbiter.
    pub fn request(&mut self, now: Instant, from: usize, request: Request) {
        self.through_arbiter_wire(now, from, &Parcel::Request(request));
    }

    /// The arbiter answers a host.
    pub fn reply(&mut self, now: Instant, to: usize, reply: Reply) {
        self.through_arbiter_wire(now, to, &Parcel::Reply { to, reply });
    }

    fn through_arbiter_wire(&mut self, now: Instant, host: usize, parcel: &Parcel) {
        self.sent += 1;
        let cut = self.has(|fault| match *fault {
            Fault::ArbiterCut { host: cut } => cut == host,
            Fault::ArbiterDown => true,
            _ => false,
        });
        if cut || self.random.chance(self.climate.loss) {
            return;
        }
        for _ in 0..1 + u64::from(self.random.chance(self.climate.twice)) {
            self.post(now, parcel.clone());
        }
    }

    fn is_lost(&mut self) -> bool {
        let heavy = self.faults.iter().find_map(|planned| match planned.fault {
            Fault::Loss { parts } => Some(parts),
            _ => None,
        });
        self.random.chance(heavy.unwrap_or(self.climate.loss))
    }

    fn post(&mut self, now: Instant, parcel: Parcel) {
        let clog = self.faults.iter().find_map(|planned| match planned.fault {
            Fault::Clog { delay } => Some(delay),
            _ => None,
        });
        let jitter = Duration(self.random.below(self.climate.jitter.0));
        let at = now
            .after(self.climate.delay)
            .after(jitter)
            .after(clog.unwrap_or(Duration::ZERO));
        self.number += 1;
        self.under_way.insert((at, self.number), parcel);
    }
}
