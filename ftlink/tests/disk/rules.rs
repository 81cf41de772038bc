//! One rule of the disk arbiter at a time, on a disk that does what it is told.

use std::collections::BTreeMap;

use ftlink::arbiter::disk::block::{SECTOR_BYTES, Sector};
use ftlink::arbiter::disk::{Config, DiskArbiter, DiskFailed, Operation, REGION_SECTORS, format};
use ftlink::arbiter::{
    Ask, Denial, Member, Outcome, Record, RecordState, Refusal, Reply, Request, Verdict,
};
use ftlink::ids::{BootId, Duration, Generation, Instant, NodeId, PairId, RequestId};

const PAIR: PairId = PairId(3);
const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

struct Pair {
    now: Instant,
    disk: BTreeMap<u64, Sector>,
    ends: [DiskArbiter; 2],
    ids: u64,
    operations: u64,
    /// Sectors written, in order.
    written: Vec<u64>,
}

const fn member(host: usize, boot: u128) -> Member {
    Member {
        node: NODES[host],
        boot: BootId(boot),
    }
}

fn end(host: usize, boot: u128) -> DiskArbiter {
    DiskArbiter::new(Config::default(), PAIR, NODES, member(host, boot)).expect("one of the nodes")
}

impl Pair {
    fn new(record: Option<Record>) -> Self {
        Self {
            now: Instant(1),
            disk: record.iter().flat_map(format).collect(),
            ends: [end(0, 1), end(1, 1)],
            ids: 0,
            operations: 0,
            written: Vec::new(),
        }
    }

    fn request(&mut self, from: Member, generation: u64, ask: Ask) {
        self.ids += 1;
        let host = usize::from(from.node == NODES[1]);
        self.ends[host].request(&Request {
            id: RequestId(self.ids),
            from,
            generation: Generation(generation),
            ask,
        });
    }

    /// One operation of a host; false if it has none.
    fn operate(&mut self, host: usize) -> bool {
        let mut buffer = [0; SECTOR_BYTES];
        let end = &mut self.ends[host];
        self.operations += 1;
        match end.operation(self.now, &mut buffer) {
            Some(Operation::Read(sector)) => {
                assert!(sector < REGION_SECTORS);
                let found = self.disk.get(&sector).copied();
                end.on_read(self.now, Ok(&found.unwrap_or([0; SECTOR_BYTES])));
            }
            Some(Operation::Write(sector)) => {
                assert!(sector < REGION_SECTORS);
                self.disk.insert(sector, buffer);
                self.written.push(sector);
                end.on_written(self.now, Ok(()));
            }
            None => return false,
        }
        true
    }

    fn answer(&mut self, host: usize) -> Reply {
        while self.operate(host) {
            if let Some(reply) = self.ends[host].reply() {
                return reply;
            }
        }
        panic!("no answer: {:#?}", self.ends[host]);
    }

    fn ask(&mut self, from: Member, generation: u64, ask: Ask) -> Outcome {
        self.request(from, generation, ask);
        self.answer(usize::from(from.node == NODES[1])).outcome
    }

    /// A runs with B as backup in generation 1.
    fn protected() -> Self {
        let mut pair = Self::new(Some(Record::empty(PAIR, NODES)));
        let start = Ask::Start { peer: None };
        assert_eq!(pair.ask(member(0, 1), 0, start), granted(1));
        assert_eq!(
            pair.ask(member(0, 1), 1, Ask::Admit(member(1, 1))),
            granted(1)
        );
        pair
    }
}

fn granted(generation: u64) -> Outcome {
    Outcome::Verdict(Verdict::Granted(Generation(generation)))
}

fn denied(denial: Denial) -> Outcome {
    Outcome::Verdict(Verdict::Denied(denial))
}

#[test]
fn one_host_after_the_other_is_decided_on_the_same_record() {
    let mut pair = Pair::protected();
    assert_eq!(pair.ask(member(1, 1), 1, Ask::Claim), granted(2));
    let late = pair.ask(member(0, 1), 1, Ask::Claim);
    assert_eq!(late, denied(Denial::Superseded));
    assert_eq!(pair.ask(member(1, 1), 2, Ask::Stop), granted(2));
    assert!(pair.operate(1) && pair.operate(1));
    assert_eq!(pair.ask(member(0, 1), 2, Ask::Query), Outcome::Known);
    let record = pair.ends[0].record().expect("queried");
    assert_eq!(record.state, RecordState::Stopped);
    assert_eq!(record.owner, Some(member(1, 1)));
    // What takes a takeover's time: look, promise, read, write, read.
    pair.operations = 0;
    assert_eq!(
        pair.ask(member(1, 1), 2, Ask::Claim),
        denied(Denial::NotRunning)
    );
    assert_eq!(pair.operations, 4 + 2 + 4 + 2 + 4);
}

#[test]
fn a_region_that_is_not_initialised_or_another_pairs_is_refused() {
    let mut pair = Pair::new(None);
    let refused = Outcome::Refused(Refusal::NoRecord);
    assert_eq!(pair.ask(member(0, 1), 0, Ask::Query), refused);
    assert_eq!(pair.ask(member(0, 1), 0, Ask::Claim), refused);
    let mut pair = Pair::new(Some(Record::empty(PairId(4), NODES)));
    assert_eq!(pair.ask(member(1, 1), 0, Ask::Claim), refused);
    // A host whose half is damaged throughout cannot know what it promised.
    let mut pair = Pair::protected();
    pair.disk.retain(|sector, _| *sector < REGION_SECTORS / 2);
    pair.ends[1] = end(1, 2);
    assert_eq!(pair.ask(member(1, 2), 1, Ask::Claim), refused);
    let storage = Outcome::Refused(Refusal::Storage);
    assert_eq!(pair.ask(member(0, 1), 1, Ask::Claim), storage);
    let stranger = member(1, 1);
    let stranger = Member {
        node: NodeId(9),
        ..stranger
    };
    assert!(DiskArbiter::new(Config::default(), PAIR, NODES, stranger).is_none());
}

#[test]
fn what_a_dead_host_left_undecided_is_settled_by_the_second_query() {
    let mut pair = Pair::protected();
    pair.request(member(1, 1), 1, Ask::Claim);
    // It dies right after its record is on the disk, without learning that it is.
    let before = pair.disk.clone();
    while pair.ends[1].reply().is_none() {
        assert!(pair.operate(1));
    }
    assert_ne!(pair.disk, before);
    let generation = |pair: &Pair| pair.ends[0].record().map(|record| record.generation);
    assert_eq!(pair.ask(member(0, 1), 1, Ask::Query), Outcome::Known);
    assert_eq!(generation(&pair), Some(Generation(1)));
    assert_eq!(pair.ask(member(0, 1), 1, Ask::Query), Outcome::Known);
    assert_eq!(generation(&pair), Some(Generation(2)));
}

#[test]
fn an_operation_that_fails_is_done_again_after_a_while() {
    let mut pair = Pair::protected();
    pair.request(member(1, 1), 1, Ask::Claim);
    let mut buffer = [0; SECTOR_BYTES];
    let config = Config::default();
    let mut failures = 0;
    let reply = loop {
        let end = &mut pair.ends[1];
        let first = end.operation(pair.now, &mut buffer).expect("due");
        assert_eq!(end.operation(pair.now, &mut buffer), None);
        assert_eq!(end.poll_at(), Instant::NEVER);
        match first {
            Operation::Read(_) => end.on_read(pair.now, Err(DiskFailed)),
            Operation::Write(_) => end.on_written(pair.now, Err(DiskFailed)),
        }
        failures += 1;
        assert_eq!(end.failed(), failures);
        assert_eq!(end.operation(pair.now, &mut buffer), None);
        assert_eq!(end.poll_at(), pair.now.after(config.retry));
        pair.now = pair.now.after(config.retry);
        let mut again = end.clone();
        assert_eq!(again.operation(pair.now, &mut buffer), Some(first));
        assert!(pair.operate(1));
        if let Some(reply) = pair.ends[1].reply() {
            break reply;
        }
    };
    assert_eq!(reply.outcome, granted(2));
}

#[test]
fn of_two_that_meet_the_second_node_lets_the_first_one_through() {
    let mut pair = Pair::protected();
    for host in 0..2 {
        pair.request(member(host, 1), 1, Ask::Claim);
    }
    let mut replies = Vec::new();
    let begun = pair.now;
    while replies.len() < 2 {
        for host in 0..2 {
            pair.operate(host);
            replies.extend(pair.ends[host].reply());
        }
        pair.now = pair.now.after(Duration::from_micros(500));
    }
    let outcomes = [granted(2), denied(Denial::Superseded)];
    assert!(
        outcomes
            .iter()
            .all(|wanted| replies.iter().any(|reply| reply.outcome == *wanted))
    );
    assert!(pair.now.since(begun) < Duration::from_millis(100));
}

#[test]
fn another_hosts_request_is_not_taken() {
    let mut pair = Pair::protected();
    pair.ends[0].request(&Request {
        id: RequestId(50),
        from: member(1, 1),
        generation: Generation(1),
        ask: Ask::Claim,
    });
    while pair.operate(0) {}
    assert_eq!(pair.ends[0].reply(), None);
    assert_eq!(pair.ends[0].poll_at(), Instant::NEVER);
}

#[test]
fn no_word_is_written_over_the_one_before_not_even_after_a_reboot() {
    for operations in 0..30 {
        let mut pair = Pair::protected();
        for boot in 1..4 {
            pair.ends[1] = end(1, boot);
            pair.written.clear();
            pair.request(member(1, boot), 1, Ask::Claim);
            let done = (0..operations).take_while(|_| pair.operate(1)).count();
            let words: Vec<Vec<u64>> = pair.written.chunks(2).map(Vec::from).collect();
            let apart = |pair: &[Vec<u64>]| !pair[0].iter().any(|sector| pair[1].contains(sector));
            assert!(
                words.windows(2).all(apart),
                "{words:?} in {done} operations"
            );
            let Some(last) = words.last().cloned() else {
                continue;
            };
            // The next boot's first word.
            pair.ends[1] = end(1, boot + 10);
            pair.written.clear();
            pair.request(member(1, boot + 10), 1, Ask::Claim);
            while pair.written.len() < 2 {
                assert!(pair.operate(1));
            }
            let both = [last, pair.written.clone()];
            assert!(apart(&both), "{both:?} after {operations} operations");
        }
    }
}
