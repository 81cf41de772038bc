//! What goes wrong, and when: drawn from the seed before the run begins.

use ftlink::ids::{Duration, Instant};

use crate::random::Random;

/// Faults begin no earlier: by then two healthy hosts have become a protected pair.
pub const CALM: Instant = Instant(400_000_000);
/// Everything is healed by then.
pub const HEALED: Instant = Instant(1_500_000_000);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A host dies and starts again with a new boot.
    Crash {
        /// Which host.
        host: usize,
    },
    /// A host stands still and goes on; what was sent to it waits.
    Stall {
        /// Which host.
        host: usize,
    },
    /// Datagrams from a host to its peer vanish; on one path or both.
    Cut {
        /// The sender.
        from: usize,
        /// The path; `None` = both.
        path: Option<usize>,
    },
    /// The hosts do not reach each other.
    Partition,
    /// A host and the arbiter do not reach each other.
    ArbiterCut {
        /// Which host.
        host: usize,
    },
    /// The arbiter is down; it comes back with its record.
    ArbiterDown,
    /// Heavy loss between the hosts, in parts of 10 000.
    Loss {
        /// Parts lost.
        parts: u64,
    },
    /// What is sent arrives late.
    Clog {
        /// By how much.
        delay: Duration,
    },
    /// Large datagrams vanish.
    BlackHole {
        /// Largest that arrives, in bytes.
        bytes: usize,
    },
    /// Bits flip.
    BitFlips,
    /// The operator moves the guest.
    HandOver,
    /// A host's service NIC loses its carrier.
    Carrier {
        /// Which host.
        host: usize,
    },
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// From when.
    pub begin: Instant,
    /// Until when.
    pub end: Instant,
}

/// The weather everything happens in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Climate {
    /// Least time on the wire.
    pub delay: Duration,
    /// Random time on top.
    pub jitter: Duration,
    /// Parts of 10 000 lost.
    pub loss: u64,
    /// Parts of 10 000 that arrive twice.
    pub twice: u64,
}

/// A run's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The weather.
    pub climate: Climate,
    /// The faults, in the order they begin.
    pub faults: Vec<Planned>,
    /// Each host's clock: its start, and its drift in parts per million.
    pub clocks: [(u64, i64); 2],
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(random: &mut Random) -> Self {
        let climate = Climate {
            delay: Duration(random.between(20_000, 400_000)),
            jitter: Duration(match random.below(3) {
                0 => 0,
                1 => random.below(200_000),
                _ => random.below(3_000_000),
            }),
            loss: match random.below(3) {
                0 => 0,
                1 => random.below(100),
                _ => random.below(800),
            },
            twice: random.below(2) * random.below(500),
        };
        // A third of the runs have one fault: after one fault, the guest must have gone on.
        let count = match random.below(6) {
            0 | 1 => 1,
            2 => 0,
            _ => random.between(2, 6),
        };
        let mut faults: Vec<Planned> = (0..count).map(|_| planned(random)).collect();
        faults.sort_by_key(|fault| fault.begin);
        let mut clock = || (random.below(1 << 40), random.between(0, 1_001) as i64 - 500);
        let clocks = [clock(), clock()];
        Self {
            climate,
            faults,
            clocks,
        }
    }
}

fn planned(random: &mut Random) -> Planned {
    let host = random.below(2) as usize;
    let fault = match random.below(14) {
        0 | 1 => Fault::Crash { host },
        2 | 3 => Fault::Stall { host },
        4 => Fault::Cut {
            from: host,
            path: Some(random.below(2) as usize),
        },
        5 => Fault::Cut {
            from: host,
            path: None,
        },
        6 => Fault::Partition,
        7 => Fault::ArbiterCut { host },
        8 => Fault::ArbiterDown,
        9 => Fault::Loss {
            parts: random.between(1_000, 9_000),
        },
        10 => Fault::Clog {
            delay: Duration(random.between(1_000_000, 150_000_000)),
        },
        11 => Fault::BlackHole {
            bytes: random.between(560, 1_472) as usize,
        },
        12 => Fault::BitFlips,
        _ if random.below(2) == 0 => Fault::HandOver,
        _ => Fault::Carrier { host },
    };
    let begin = random.between(CALM.0, HEALED.0 - 50_000_000);
    let length = match random.below(3) {
        0 => random.between(1_000_000, 30_000_000),
        1 => random.between(30_000_000, 200_000_000),
        _ => random.between(200_000_000, 900_000_000),
    };
    Planned {
        fault,
        begin: Instant(begin),
        end: Instant((begin + length).min(HEALED.0)),
    }
}
