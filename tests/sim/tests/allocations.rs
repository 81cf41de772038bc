//! An established link allocates nothing: neither for entries, datagrams, acknowledgements and
//! heartbeats, nor when datagrams are lost and sent again, nor when the peer falls silent.

use allocation_counter::measure;
use ftlink::arbiter::{Record, decide};
use ftlink::ids::{Duration, Instant, NodeId};
use ftlink::link::Link;
use ftlink::role::{Mode, Role};
use ftlink::wire::MAX_DATAGRAM_BYTES;
use sim::plain::{PAIR, link};

const STEP: Duration = Duration::from_micros(100);

struct Pair {
    now: Instant,
    links: [Link; 2],
    record: Record,
    buffer: [u8; MAX_DATAGRAM_BYTES],
    datagrams: u64,
    delivered: u64,
    /// Every so many datagrams are lost; 0: none.
    lose: u64,
}

impl Pair {
    fn protected() -> Self {
        let mut pair = Self {
            now: Instant(0),
            links: [link(1, 2), link(2, 2)],
            record: Record::empty(PAIR, [NodeId(1), NodeId(2)]),
            buffer: [0; MAX_DATAGRAM_BYTES],
            datagrams: 0,
            delivered: 0,
            lose: 0,
        };
        while pair.links[0].fence().role() != Role::Primary(Mode::Protected) {
            pair.step();
            assert!(pair.now < Instant::default().after(Duration::from_secs(5)));
        }
        pair
    }

    fn step(&mut self) {
        self.now = self.now.after(STEP);
        let now = self.now;
        for from in 0..2 {
            self.links[from].poll(now);
            for path in 0..2 {
                while let Some(length) = self.links[from].egress(now, path, &mut self.buffer) {
                    self.datagrams += 1;
                    if self.lose == 0 || !self.datagrams.is_multiple_of(self.lose) {
                        let datagram = &mut self.buffer[..length];
                        self.links[1 - from].ingress(now, path, datagram);
                    }
                }
            }
            while let Some(request) = self.links[from].request(now) {
                let decision = decide(&self.record, &request);
                self.record = decision.store.unwrap_or(self.record);
                self.links[from].verdict(now, &decision.reply);
            }
            while self.links[from].event().is_some() {}
        }
        while let Some((position, _)) = self.links[1].next_entry() {
            self.delivered += 1;
            self.links[1].set_verified(position.next());
        }
    }

    /// Entries of all sizes, an output now and then, and a bulk transfer beside them.
    fn work(&mut self, steps: u64) {
        const BYTES: [u8; 9_000] = [0x42; 9_000];
        let now = self.now;
        assert_eq!(self.links[0].bulk_begin(now, 1, 2), Ok(()));
        let mut chunks = 0;
        for step in 0..steps {
            for bytes in [16, 200, if step.is_multiple_of(20) { 9_000 } else { 60 }] {
                let now = self.now;
                assert!(self.links[0].append(now, &BYTES[..bytes]).is_ok());
            }
            let now = self.now;
            self.links[0].flush(now);
            chunks += u64::from(self.links[0].bulk_chunk(now, &BYTES[..1_000]).is_ok());
            self.step();
            while self.links[1].bulk_next().is_some() {}
        }
        assert!(chunks > steps / 10, "{chunks} chunks");
        while self.links[0].bulk_finish(self.now).is_err() {
            self.step();
            while self.links[1].bulk_next().is_some() {}
        }
    }
}

fn assert_allocates_nothing(what: &str, run: impl FnOnce()) {
    let counted = measure(run);
    assert_eq!(counted.count_total, 0, "{what}: {counted:?}");
}

#[test]
fn an_established_link_allocates_nothing_per_datagram() {
    let counted = measure(|| drop(Pair::protected()));
    assert!(counted.count_total > 0, "the counter counts");

    let mut pair = Pair::protected();
    let before = (pair.datagrams, pair.delivered);
    assert_allocates_nothing("in good weather", || pair.work(2_000));
    assert!(pair.delivered - before.1 >= 5_990, "{}", pair.delivered);
    assert!(pair.datagrams - before.0 > 2_000);

    pair.lose = 17;
    let lost = pair.links[0].log_counters().data_retransmitted;
    assert_allocates_nothing("with losses", || pair.work(2_000));
    assert!(pair.links[0].log_counters().data_retransmitted > lost + 50);

    pair.lose = 0;
    assert_allocates_nothing("idle, with heartbeats and queries", || {
        for _ in 0..20_000 {
            pair.step();
        }
    });
    assert_eq!(pair.links[0].fence().role(), Role::Primary(Mode::Protected));
    assert_eq!(pair.links[0].acked(), pair.links[0].head());
}
