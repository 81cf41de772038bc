//! Tests of the link: two ends, an arbiter and a wire carried by hand, all in one thread.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::arbiter::{Record, decide};
use crate::handshake::{CounterKind, PROTOCOL_VERSION};
use crate::ids::{NodeId, PairId};
use crate::wire::ETHERNET_MTU_BYTES;

const PAIR: PairId = PairId(0x77);
const IDENTITY: Identity = Identity {
    protocol: PROTOCOL_VERSION,
    version: [0, 1, 0],
    vendor: *b"GenuineIntel",
    signature: 1,
    microcode: 2,
    counter: CounterKind::BOCHS_TSC,
    machine: [3; 32],
    profile: 4,
};
const STEP: Duration = Duration::from_micros(100);

fn config(node: u64, boot: u128) -> LinkConfig {
    let mut seed = [node as u8; 32];
    seed[8..24].copy_from_slice(&boot.to_le_bytes());
    LinkConfig {
        channel: ChannelConfig {
            pair: PAIR,
            node: NodeId(node),
            peer: NodeId(3 - node),
            boot: BootId(boot),
            secret: [9; 32],
            seed,
            rekey_after: Duration::from_secs(600),
            paths: 2,
        },
        mtu_bytes: ETHERNET_MTU_BYTES,
        log_ring_bytes: 256 * 1024,
        bulk_ring_bytes: 256 * 1024,
        detector: detector::Config::hardware(),
        fence: fence::Config::default(),
    }
}

/// What a direction of a path does to datagrams.
#[derive(Clone, Copy)]
struct Weather {
    cut: bool,
    /// Parts of 256 lost.
    loss: u8,
    /// Parts of 256 sent twice.
    twice: u8,
    /// Latest extra delay.
    jitter: Duration,
    max_bytes: usize,
}

const CLEAR: Weather = Weather {
    cut: false,
    loss: 0,
    twice: 0,
    jitter: Duration(0),
    max_bytes: usize::MAX,
};

struct World {
    now: Instant,
    links: [Link; 2],
    /// By sender and path.
    weather: [[Weather; 2]; 2],
    wire: BTreeMap<(Instant, u64), (usize, u8, Vec<u8>)>,
    sent: u64,
    random: u64,
    record: Record,
    arbiter_up: bool,
    events: [Vec<LinkEvent>; 2],
    delivered: Vec<Vec<u8>>,
    /// The reader takes entries as they come.
    reading: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::with(seed, |_| {})
    }

    fn with(seed: u64, change: impl Fn(&mut LinkConfig)) -> Self {
        let link = |node, boot| {
            let mut config = config(node, boot);
            change(&mut config);
            Link::new(config, IDENTITY, Instant(0))
        };
        Self {
            now: Instant(0),
            links: [link(1, 100), link(2, 200)],
            weather: [[CLEAR; 2]; 2],
            wire: BTreeMap::new(),
            sent: 0,
            random: seed | 1,
            record: Record::empty(PAIR, [NodeId(1), NodeId(2)]),
            arbiter_up: true,
            events: [vec![], vec![]],
            delivered: vec![],
            reading: true,
        }
    }

    fn draw(&mut self) -> u64 {
        // Steele et al., "Fast splittable pseudorandom number generators", 2014.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn send(&mut self, from: usize, path: u8, bytes: Vec<u8>) {
        let weather = self.weather[from][usize::from(path)];
        let (loss, twice) = (self.draw() as u8, self.draw() as u8);
        if weather.cut || loss < weather.loss || bytes.len() > weather.max_bytes {
            return;
        }
        for _ in 0..1 + usize::from(twice < weather.twice) {
            let jitter = match weather.jitter.0 {
                0 => 0,
                most => self.draw() % most,
            };
            let at = Instant(self.now.0 + 50_000 + jitter);
            self.sent += 1;
            self.wire
                .insert((at, self.sent), (1 - from, path, bytes.clone()));
        }
    }

    fn step(&mut self) {
        self.now = self.now.after(STEP);
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (to, path, mut bytes) = entry.remove();
            self.links[to].ingress(self.now, path, &mut bytes);
        }
        for index in 0..2 {
            self.links[index].poll(self.now);
            let mut buffer = [0; MAX_DATAGRAM_BYTES];
            for path in 0..2 {
                while let Some(length) = self.links[index].egress(self.now, path, &mut buffer) {
                    self.send(index, path, Vec::from(&buffer[..length]));
                }
            }
            while let Some(request) = self.links[index].request(self.now) {
                if self.arbiter_up {
                    let decision = decide(&self.record, &request);
                    self.record = decision.store.unwrap_or(self.record);
                    self.links[index].verdict(self.now, &decision.reply);
                }
            }
            while let Some(event) = self.links[index].event() {
                self.events[index].push(event);
            }
            while self.reading
                && let Some((position, entry)) = self.links[index].next_entry()
            {
                assert_eq!(position, LogPos(self.delivered.len() as u64));
                self.delivered.push(Vec::from(entry));
                self.links[index].set_verified(position.next());
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.step();
        }
    }

    fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    fn roles(&self) -> [Role; 2] {
        [0, 1].map(|index| self.links[index].fence().role())
    }

    /// Runs until the first host is the protected primary.
    fn protect(&mut self) {
        for _ in 0..20_000 {
            self.step();
            if self.roles() == [Role::Primary(Mode::Protected), Role::Backup] {
                return;
            }
        }
        panic!("not protected: {:?} {:?}", self.roles(), self.events);
    }

    fn append(&mut self, entry: &[u8]) -> LogPos {
        let now = self.now;
        let position = self.links[0].append(now, entry).unwrap();
        self.links[0].flush(now);
        position
    }

    fn entry(&mut self) -> Vec<u8> {
        let length = match self.draw() % 8 {
            0 => self.draw() % 20_000,
            1 => self.draw() % 1_500,
            _ => self.draw() % 60,
        };
        (0..length).map(|_| self.draw() as u8).collect()
    }

    fn all_weather(&mut self, change: impl Fn(&mut Weather)) {
        self.weather.as_flattened_mut().iter_mut().for_each(change);
    }
}

#[test]
fn two_cold_hosts_become_a_protected_pair_and_outputs_wait_for_the_backup() {
    let mut world = World::new(1);
    world.protect();
    let position = world.append(b"first output");
    let now = world.now;
    assert!(!world.links[0].may_release(now, position));
    world.run_ms(2);
    let now = world.now;
    assert!(world.links[0].may_release(now, position));
    assert!(!world.links[1].may_release(now, position));
    assert_eq!(world.delivered, [b"first output"]);
    assert_eq!(world.links[0].acked(), LogPos(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    // Whatever the wire does short of silence, each entry comes once, whole and in order.
    #[test]
    fn every_entry_arrives_once_and_in_order(
        seed in any::<u64>(),
        loss in 0u8..80,
        twice in 0u8..80,
        jitter_us in 0u64..3_000,
    ) {
        let mut world = World::new(seed);
        world.protect();
        world.all_weather(|weather| {
            weather.loss = loss;
            weather.twice = twice;
            weather.jitter = Duration::from_micros(jitter_us);
        });
        let mut sent = vec![];
        for _ in 0..120 {
            let entry = world.entry();
            let now = world.now;
            if world.links[0].append(now, &entry).is_ok() {
                sent.push(entry);
            }
            if world.draw().is_multiple_of(2) {
                world.links[0].flush(now);
            }
            world.step();
        }
        world.all_weather(|weather| *weather = CLEAR);
        world.run_ms(60);
        prop_assert_eq!(world.links[0].acked(), LogPos(sent.len() as u64));
        prop_assert!(world.delivered == sent);
    }
}

#[test]
fn the_second_path_takes_over_without_losing_the_stream() {
    let mut world = World::new(3);
    world.protect();
    assert_eq!(world.links[0].paths().active(), 0);
    for direction in [0, 1] {
        // First only one direction is cut, then both.
        world.weather[direction][0].cut = true;
        for number in 0..400u32 {
            world.append(&number.to_le_bytes());
            world.run(Duration::from_micros(300));
        }
        assert_eq!(world.roles()[0], Role::Primary(Mode::Protected));
    }
    world.run_ms(20);
    assert_eq!(world.links[0].paths().active(), 1);
    assert_eq!(world.delivered.len(), 800);
    assert_eq!(world.links[0].counters().path_changes, 1);
    assert!(
        !world.events[0]
            .iter()
            .any(|event| matches!(event, LinkEvent::Suspected(_)))
    );
}

#[test]
fn large_datagrams_that_vanish_make_smaller_ones_and_grow_back() {
    let mut world = World::new(4);
    world.protect();
    world.all_weather(|weather| weather.max_bytes = 1_000);
    let entry = vec![7; 5_000];
    let position = world.append(&entry);
    world.run_ms(90);
    assert_eq!(world.links[0].acked(), position.next());
    assert!(world.links[0].counters().mtu_reductions >= 1);
    assert_eq!(world.roles()[0], Role::Primary(Mode::Protected));
    world.all_weather(|weather| *weather = CLEAR);
    world.run_ms(5_000);
    assert_eq!(world.links[0].paths().active_mtu(), ETHERNET_MTU_BYTES);
}

#[test]
fn an_interruption_within_the_ring_is_resumed() {
    let mut world = World::with(5, |config| {
        config.detector = detector::Config::new(Duration::from_millis(10), Duration::from_secs(5));
    });
    world.protect();
    world.all_weather(|weather| weather.cut = true);
    for number in 0..500u32 {
        world.append(&number.to_le_bytes());
        world.step();
    }
    world.run_ms(800);
    assert!(world.delivered.is_empty());
    world.all_weather(|weather| *weather = CLEAR);
    world.run_ms(600);
    assert_eq!(world.delivered.len(), 500);
    assert_eq!(world.links[0].acked(), LogPos(500));
}

#[test]
fn a_full_ring_makes_the_writer_wait_and_goes_on_when_the_reader_reads() {
    let mut world = World::new(6);
    world.protect();
    world.reading = false;
    let entry = vec![1; 10_000];
    let mut appended = 0u64;
    for _ in 0..2_000 {
        let now = world.now;
        match world.links[0].append(now, &entry) {
            Ok(_) => appended += 1,
            Err(AppendError::Full) => {}
            Err(other) => panic!("{other:?}"),
        }
        world.links[0].flush(now);
        world.step();
    }
    // Two rings of 256 KiB hold 52 entries.
    assert_eq!(appended, 52);
    assert!(world.links[0].log_counters().append_full > 0);
    world.reading = true;
    world.run_ms(5);
    assert_eq!(world.delivered.len(), 52);
    assert!(world.links[0].append(world.now, &entry).is_ok());
}

#[test]
fn lag_output_delay_and_bandwidth_are_measured() {
    let mut world = World::new(17);
    world.protect();
    world.links[0].reset_measures();
    assert_eq!(world.links[0].measures(), Measures::default());
    for _ in 0..300 {
        world.append(&[7; 1_000]);
        world.run_ms(1);
    }
    let good = world.links[0].measures();
    // A flush waits for the way there and back, 50 us each, in steps of 100 us.
    assert!((100..=500).contains(&good.output_delay_us.p50), "{good:?}");
    assert_eq!(good.output_delay_us.count, 300);
    assert!(
        good.lag_entries.p99 <= 1 && good.lag_entries.count >= 29,
        "{good:?}"
    );
    assert!(
        (900_000..1_500_000).contains(&good.bytes_per_second.p50),
        "{good:?}"
    );
    world.all_weather(|weather| weather.cut = true);
    for _ in 0..40 {
        world.append(&[7; 1_000]);
        world.run_ms(1);
    }
    let behind = world.links[0].measures();
    assert!(behind.lag_entries.max >= 30, "{behind:?}");
    assert!((30_000..45_000).contains(&behind.lag_us.max), "{behind:?}");
    assert!(behind.lag_us.p50 < 1_000, "{behind:?}");
    assert_eq!(world.links[1].measures().lag_entries.count, 0);
}

#[test]
fn a_silent_primary_is_replaced_and_the_backup_has_all_that_was_acknowledged() {
    let mut world = World::new(7);
    world.protect();
    for number in 0..50u32 {
        world.append(&number.to_le_bytes());
        world.step();
    }
    let acked = world.links[0].acked();
    // The primary hangs: nothing of it arrives any more, nor at the arbiter.
    world.weather[0] = [Weather { cut: true, ..CLEAR }; 2];
    world.weather[1] = [Weather { cut: true, ..CLEAR }; 2];
    let hung = core::mem::replace(
        &mut world.links[0],
        Link::new(config(1, 999), IDENTITY, world.now),
    );
    world.run_ms(400);
    assert_eq!(world.roles()[1], Role::Draining);
    assert!(world.links[1].held() >= acked);
    let now = world.now;
    world.links[1].drained(now);
    assert_eq!(world.roles()[1], Role::Primary(Mode::Solo));
    assert_eq!(world.links[1].head(), world.links[1].held());
    assert!(world.links[1].may_release(now, world.links[1].head()));
    // It comes back and looks before it acts.
    world.links[0] = hung;
    let unheard = world.append(b"nobody holds this");
    assert!(!world.links[0].may_release(now, unheard));
    world.run_ms(150);
    let now = world.now;
    assert!(!world.links[0].may_release(now, unheard));
    assert_eq!(world.roles()[0], Role::Fenced);
}

#[test]
fn an_asking_backup_acknowledges_nothing() {
    let mut world = World::new(8);
    world.protect();
    world.arbiter_up = false;
    world.weather[0] = [Weather { cut: true, ..CLEAR }; 2];
    world.run_ms(200);
    assert_eq!(world.roles()[1], Role::Asking(Asker::Backup));
    let held = world.links[1].held();
    world.weather[0] = [CLEAR; 2];
    let position = world.append(b"too late");
    world.run_ms(50);
    assert_eq!(world.links[1].held(), held);
    assert!(world.links[0].acked() <= position);
    assert!(world.links[1].counters().refused_while_asking > 0);
}

#[test]
fn a_newer_generation_mutes_at_once() {
    let mut world = World::new(9);
    world.protect();
    let position = world.append(b"output");
    world.run_ms(2);
    world.arbiter_up = false;
    let now = world.now;
    assert!(world.links[0].may_release(now, position));
    let newer = world.links[1].fence().generation().next();
    world.links[1].transport.stance.generation = newer;
    let mut buffer = [0; MAX_DATAGRAM_BYTES];
    let at = world.now.after(Duration::from_millis(11));
    let length = world.links[1].egress(at, 0, &mut buffer).unwrap();
    world.links[0].ingress(at, 0, &mut buffer[..length]);
    assert_eq!(world.links[0].counters().newer_generation, 1);
    assert!(!world.links[0].may_release(at, position));
}

#[test]
fn frames_of_an_older_generation_are_dropped_and_counted() {
    let mut world = World::new(10);
    world.protect();
    world.links[0].transport.stance.generation = Generation(0);
    let mut buffer = [0; MAX_DATAGRAM_BYTES];
    let at = world.now.after(Duration::from_millis(11));
    let before = world.links[1].held();
    let length = world.links[0].egress(at, 0, &mut buffer).unwrap();
    world.links[1].ingress(at, 0, &mut buffer[..length]);
    assert_eq!(world.links[1].counters().old_generation, 1);
    assert_eq!(world.links[1].held(), before);
}

#[test]
fn flipped_bits_change_counters_alone() {
    let mut world = World::new(11);
    world.protect();
    world.append(b"entry");
    let mut buffer = [0; MAX_DATAGRAM_BYTES];
    let now = world.now;
    let length = world.links[0].egress(now, 0, &mut buffer).unwrap();
    let view = |link: &Link| {
        (
            link.held(),
            link.fence().clone(),
            link.poll_at(now),
            *link.log_counters(),
        )
    };
    let before = view(&world.links[1]);
    for bit in 0..length * 8 {
        let mut bad = buffer;
        bad[bit / 8] ^= 1 << (bit % 8);
        world.links[1].ingress(now, 0, &mut bad[..length]);
        assert!(view(&world.links[1]) == before, "bit {bit}");
    }
    let counters = world.links[1].channel_counters();
    let refused = counters.malformed
        + counters.unknown_session
        + counters.forged
        + counters.replayed
        + counters.handshakes_refused;
    assert_eq!(refused, length as u64 * 8);
    world.links[1].ingress(now, 0, &mut buffer[..length]);
    assert_ne!(world.links[1].held(), before.0);
}

#[test]
fn keys_change_under_the_stream_without_a_pause() {
    let mut world = World::with(12, |config| {
        config.channel.rekey_after = Duration::from_millis(100);
    });
    world.protect();
    let mut slowest = Duration::ZERO;
    for number in 0..300u32 {
        let position = world.append(&number.to_le_bytes());
        let from = world.now;
        while world.links[0].acked() <= position {
            world.step();
        }
        slowest = slowest.max(world.now.since(from));
        world.run_ms(2);
    }
    assert!(world.links[0].channel_counters().sessions >= 5);
    assert_eq!(world.links[0].counters().timeouts, 0);
    assert!(slowest <= Duration::from_micros(600), "{slowest}");
}

#[test]
fn a_bulk_transfer_arrives_whole_beside_the_log() {
    let mut world = World::new(13);
    world.protect();
    world.all_weather(|weather| weather.loss = 10);
    let now = world.now;
    world.links[0].bulk_begin(now, 5, 6).unwrap();
    let chunks: Vec<Vec<u8>> = (0..60u8).map(|n| vec![n; 300 * usize::from(n)]).collect();
    let mut to_send = chunks.iter();
    let mut next = to_send.next();
    let mut received = vec![];
    let mut ended = false;
    let mut slowest = Duration::ZERO;
    for number in 0..3_000u32 {
        let now = world.now;
        while let Some(chunk) = next
            && world.links[0].bulk_chunk(now, chunk).is_ok()
        {
            next = to_send.next();
            if next.is_none() {
                world.links[0].bulk_finish(now).unwrap();
            }
        }
        if number % 10 == 0 {
            world.append(b"log");
        }
        world.step();
        slowest = slowest.max(world.links[0].lag(world.now).age);
        while let Some(event) = world.links[1].bulk_next() {
            match event {
                BulkEvent::Begin { id, what } => assert_eq!((id, what), (5, 6)),
                BulkEvent::Chunk(chunk) => received.push(Vec::from(chunk)),
                BulkEvent::End => ended = true,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(ended);
    assert!(received == chunks);
    assert_eq!(world.delivered.len(), 300);
    assert!(slowest < Duration::from_millis(30), "{slowest}");
}

#[test]
fn a_transfer_ends_with_the_boot_it_was_for() {
    let mut world = World::new(14);
    world.protect();
    let now = world.now;
    world.links[0].bulk_begin(now, 1, 1).unwrap();
    world.links[0].bulk_chunk(now, b"half").unwrap();
    assert_eq!(
        world.links[0].bulk_begin(now, 2, 2),
        Err(BulkError::AlreadyBegun)
    );
    world.links[1] = Link::new(config(2, 201), IDENTITY, now);
    world.run_ms(500);
    let now = world.now;
    assert_eq!(
        world.links[0].bulk_chunk(now, b"more"),
        Err(BulkError::NotBegun)
    );
    assert_eq!(world.links[1].bulk_next(), None);
    assert!(world.links[0].bulk_begin(now, 3, 3).is_ok());
}

#[test]
fn a_rebooted_backup_within_the_ring_is_admitted_again_and_beyond_it_waits() {
    let mut world = World::new(15);
    world.protect();
    world.append(b"one");
    world.run_ms(5);
    let now = world.now;
    world.links[1] = Link::new(config(2, 201), IDENTITY, now);
    world.delivered.clear();
    world.run_ms(1_000);
    // A new boot needs the log from its beginning, which the ring still has.
    assert_eq!(
        world.roles(),
        [Role::Primary(Mode::Protected), Role::Backup]
    );
    assert_eq!(world.delivered, [b"one"]);
    // Now the beginning falls out while the peer is down.
    let entry = vec![0; 30_000];
    world.links[1] = Link::new(config(2, 202), IDENTITY, now);
    world.all_weather(|weather| weather.cut = true);
    world.run_ms(300);
    for _ in 0..20 {
        world.append(&entry);
        world.step();
    }
    let now = world.now;
    world.delivered.clear();
    world.links[1] = Link::new(config(2, 203), IDENTITY, now);
    world.all_weather(|weather| *weather = CLEAR);
    world.run_ms(1_000);
    assert_eq!(world.roles(), [Role::Primary(Mode::Solo), Role::Waiting]);
    assert!(world.events[1].contains(&LinkEvent::OutOfRing));
}

#[test]
fn a_peer_that_cannot_replay_the_guest_is_refused_by_name() {
    let mut world = World::new(16);
    let other = Identity {
        microcode: 9,
        ..IDENTITY
    };
    world.links[1] = Link::new(config(2, 200), other, world.now);
    world.run_ms(500);
    assert_eq!(world.roles(), [Role::Cold, Role::Cold]);
    for (index, mismatch) in [Mismatch::Microcode(2, 9), Mismatch::Microcode(9, 2)]
        .into_iter()
        .enumerate()
    {
        let said = LinkEvent::Incompatible(mismatch);
        let times = world.events[index].iter().filter(|&&event| event == said);
        assert_eq!(times.count(), 1);
        assert_eq!(world.links[index].incompatible(), Some(mismatch));
        assert!(world.links[index].counters().refused_incompatible > 0);
    }
    // It is updated and comes back.
    world.links[1] = Link::new(config(2, 201), IDENTITY, world.now);
    world.protect();
}
