//! The world of the shared disk's model check: two hosts with the real disk arbiter, and a disk that
//! tears, delays and reorders writes. A write is begun, may tear its sector, and lands; a crash at any
//! point of it leaves a stray write that may land at any later time, tear, or never happen.

use std::collections::BTreeMap;

use ftlink::arbiter::disk::block::{Block, SECTOR_BYTES, Sector};
use ftlink::arbiter::disk::{Config, DiskArbiter, DiskFailed, Operation, REGION_SECTORS, format};
use ftlink::arbiter::{Ask, Member, Outcome, Record, Request, Verdict, decide};
use ftlink::ids::{BootId, Duration, Generation, Instant, NodeId, PairId, RequestId};

/// Sectors that hold words.
pub const PLACES: usize = 8;
const STRIDE: u64 = REGION_SECTORS / PLACES as u64;
const PAIR: PairId = PairId(3);
const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Time stands still; no pause takes any.
const NOW: Instant = Instant(1);
const CONFIG: Config = Config {
    retry: Duration::ZERO,
    pause: Duration::ZERO,
};

/// A mistake in what surrounds the arbiter, to show that an invariant notices it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Reads after the first of a sector are served from the host's cache.
    CachedReads,
    /// Writes are reported done a word before they land, as by a cache that is written back.
    EarlyDone,
    /// The second copy of a word is not written.
    OneCopy,
    /// A host has one sector, which holds the word before as well.
    OneSector,
    /// A boot does not find what its host's earlier boots have promised and accepted.
    Forgets,
}

/// What the invariants forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Two hosts were answered from records that exclude each other.
    Forked,
    /// A generation was granted twice, or to somebody outside the members.
    Granted,
    /// An answer does not know of one that was given before its request was made.
    Outdated,
}

/// What a place holds; none where it is torn, neither the old word nor the new one.
type Place = Option<Block>;

/// A write on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    place: usize,
    block: Block,
    torn: bool,
}

/// A host in one of its boots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    arbiter: DiskArbiter,
    me: Member,
    asks: usize,
    asked: Option<Request>,
    /// Decisions known to the world when it asked.
    floor: u64,
    writing: Option<Write>,
    cache: [Option<Place>; PLACES],
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of each host, followed by a reboot.
    pub crashes: [u8; 2],
    /// Hosts crash only while they write: with a write left under way.
    pub in_writes: bool,
    /// Torn sectors.
    pub tears: u8,
    /// Failed operations.
    pub failures: u8,
    /// Ballots above this number are not followed.
    pub ballots: u64,
}

/// What each host asks, one after the other; a reboot goes on with the next.
pub type Script = [&'static [Ask]; 2];

/// One state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The hosts; `None` while one is down.
    pub hosts: [Option<Host>; 2],
    boots: [u8; 2],
    done: [usize; 2],
    disk: [Place; PLACES],
    stray: [Option<Write>; 2],
    behind: [Vec<Write>; 2],
    /// What may still happen.
    pub budget: Budget,
    /// Records that answers were given from, by sequence.
    decided: BTreeMap<u64, Record>,
    granted: BTreeMap<Generation, Member>,
    /// The first invariant that was broken.
    pub violation: Option<Violation>,
    bug: Option<Bug>,
    script: Script,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A host asks what is next in its script.
    Ask(usize),
    /// It does its next operation; a read is done at once, a write begun.
    Operate(usize),
    /// Its operation fails; a write may have taken effect or not.
    Fail(usize),
    /// The write under way tears its sector.
    Tear(usize),
    /// It lands, and is reported done.
    Land(usize),
    /// It lands, and nobody learns of it: the host goes down.
    LandAndCrash(usize),
    /// The host goes down.
    Crash(usize),
    /// It comes back.
    Boot(usize),
    /// What a dead boot, or a failed operation, has left lands.
    StrayLands(usize),
    /// It tears its sector.
    StrayTears(usize),
}

/// The host with index `host` in its boot number `boot`.
pub fn member(host: usize, boot: u8) -> Member {
    // The later boot has the smaller id, so that ids cannot stand for time.
    Member {
        node: NODES[host],
        boot: BootId(u128::from(100 - boot)),
    }
}

fn protected() -> Record {
    let mut record = Record::empty(PAIR, NODES);
    for (id, from, ask) in [
        (1, member(0, 1), Ask::Start { peer: None }),
        (2, member(0, 1), Ask::Admit(member(1, 1))),
    ] {
        let request = Request {
            id: RequestId(id),
            from,
            generation: record.generation,
            ask,
        };
        record = decide(&record, &request).store.expect("granted");
    }
    for seat in &mut record.seats {
        seat.answered = None;
    }
    record.sequence = 0;
    record
}

impl World {
    /// A protected pair on a disk at rest.
    pub fn new(budget: Budget, script: Script, bug: Option<Bug>) -> Self {
        let record = protected();
        let mut world = Self {
            hosts: [None, None],
            boots: [0; 2],
            done: [0; 2],
            disk: [None; PLACES],
            stray: [None; 2],
            behind: [Vec::new(), Vec::new()],
            budget,
            decided: BTreeMap::new(),
            granted: BTreeMap::from([(record.generation, member(0, 1))]),
            violation: None,
            bug,
            script,
        };
        for (sector, bytes) in format(&record) {
            let place = place_of(sector);
            world.disk[place] = Some(decode(place, &bytes));
        }
        world.boot(0);
        world.boot(1);
        world
    }

    fn boot(&mut self, host: usize) {
        self.boots[host] += 1;
        let me = member(host, self.boots[host]);
        let arbiter = DiskArbiter::new(CONFIG, PAIR, NODES, me);
        self.hosts[host] = Some(Host {
            arbiter: arbiter.expect("one of the nodes"),
            me,
            asks: 0,
            asked: None,
            floor: 0,
            writing: None,
            cache: [None; PLACES],
        });
    }

    /// What can happen now.
    pub fn actions(&self, actions: &mut Vec<Action>) {
        for index in 0..2 {
            if self.stray[index].is_some() {
                actions.push(Action::StrayLands(index));
                if self.budget.tears > 0 {
                    actions.push(Action::StrayTears(index));
                }
            }
            let Some(host) = &self.hosts[index] else {
                actions.push(Action::Boot(index));
                continue;
            };
            if self.budget.crashes[index] > 0 && (host.writing.is_some() || !self.budget.in_writes)
            {
                actions.push(Action::Crash(index));
            }
            match host.writing {
                Some(write) => {
                    actions.push(Action::Land(index));
                    if self.budget.crashes[index] > 0 && !self.budget.in_writes {
                        actions.push(Action::LandAndCrash(index));
                    }
                    if !write.torn && self.budget.tears > 0 {
                        actions.push(Action::Tear(index));
                    }
                    if self.budget.failures > 0 && self.has_room(index) {
                        actions.push(Action::Fail(index));
                    }
                }
                None if host.asked.is_none() => actions.push(Action::Ask(index)),
                None => actions.push(Action::Operate(index)),
            }
            // Behind an answer there is a mark to write.
            if host.asked.is_none() && host.arbiter.poll_at() <= NOW {
                actions.push(Action::Operate(index));
            }
        }
    }

    /// Does it; `None` if nothing comes of it.
    pub fn step(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Ask(host) => self.ask(host),
            Action::Operate(host) => self.operate(host),
            Action::Fail(host) => self.fail(host),
            Action::Tear(host) => {
                let write = self.hosts[host].as_mut()?.writing.as_mut()?;
                write.torn = true;
                let place = write.place;
                self.tear(place)
            }
            Action::Land(host) => {
                let write = self.hosts[host].as_mut()?.writing.take()?;
                self.disk[write.place] = Some(write.block);
                self.written(host, Ok(()))
            }
            Action::LandAndCrash(host) => {
                let write = self.hosts[host].as_mut()?.writing.take()?;
                self.disk[write.place] = Some(write.block);
                self.crash(host)
            }
            Action::Crash(host) => self.crash(host),
            Action::Boot(host) => {
                self.boot(host);
                Some(())
            }
            Action::StrayLands(host) => {
                let write = self.stray[host].take()?;
                self.disk[write.place] = Some(write.block);
                Some(())
            }
            Action::StrayTears(host) => {
                let write = self.stray[host].take()?;
                self.tear(write.place)
            }
        }
    }

    fn tear(&mut self, place: usize) -> Option<()> {
        self.budget.tears = self.budget.tears.checked_sub(1)?;
        self.disk[place] = None;
        Some(())
    }

    /// A host goes down. What it was writing becomes a stray write, unless there is one already.
    fn crash(&mut self, index: usize) -> Option<()> {
        self.budget.crashes[index] = self.budget.crashes[index].checked_sub(1)?;
        let host = self.hosts[index].take()?;
        if self.has_room(index) {
            self.stray[index] = host.writing;
        }
        Some(())
    }

    /// Whether one more write of a host may go astray.
    fn has_room(&self, host: usize) -> bool {
        self.stray[host].is_none()
    }

    fn ask(&mut self, index: usize) -> Option<()> {
        let ask = *self.script[index].get(self.done[index])?;
        let floor = self.decided.keys().next_back().copied().unwrap_or(0);
        let host = self.hosts[index].as_mut()?;
        host.asks += 1;
        let known = host.arbiter.record().map(|record| record.generation);
        let request = Request {
            id: RequestId(host.asks as u64),
            from: host.me,
            generation: known.unwrap_or(Generation(1)),
            ask,
        };
        host.arbiter.request(&request);
        host.asked = Some(request);
        host.floor = floor;
        self.done[index] += 1;
        Some(())
    }

    fn operate(&mut self, index: usize) -> Option<()> {
        let bug = self.bug;
        let host = self.hosts[index].as_mut()?;
        let mut buffer = [0; SECTOR_BYTES];
        match host.arbiter.operation(NOW, &mut buffer)? {
            Operation::Read(sector) => {
                let place = place_of(sector);
                let mut found = self.disk[place];
                if bug == Some(Bug::CachedReads) && place / 4 != index {
                    found = *host.cache[place].get_or_insert(found);
                }
                if bug == Some(Bug::Forgets) && place / 4 == index {
                    found = Some(Block::initial(protected()));
                }
                let bytes = encode(place, found);
                host.arbiter.on_read(NOW, Ok(&bytes));
                // Nobody else writes a host's own half: when its reads of it are done is all one.
                let reads_own = place / 4 == index && place % 4 < 3;
                if reads_own && self.stray[index].is_none() {
                    return self.operate(index);
                }
            }
            Operation::Write(sector) => {
                let place = place_of(sector);
                let block = decode(place, &buffer);
                let place = match bug {
                    Some(Bug::OneSector) => place / 4 * 4,
                    _ => place,
                };
                let write = Write {
                    place,
                    block,
                    torn: false,
                };
                if bug == Some(Bug::OneCopy) && place % 2 == 1 {
                    return self.written(index, Ok(()));
                }
                if bug == Some(Bug::EarlyDone) {
                    self.write_behind(index, write);
                    return self.written(index, Ok(()));
                }
                host.writing = Some(write);
            }
        }
        self.answered(index)
    }

    fn write_behind(&mut self, index: usize, write: Write) {
        if write.place.is_multiple_of(2) {
            for write in self.behind[index].drain(..) {
                self.disk[write.place] = Some(write.block);
            }
        }
        self.behind[index].push(write);
    }

    /// A write fails, and may still land at any time; the arbiter does it again.
    fn fail(&mut self, index: usize) -> Option<()> {
        self.budget.failures = self.budget.failures.checked_sub(1)?;
        let host = self.hosts[index].as_mut()?;
        self.stray[index] = Some(host.writing.take()?);
        self.written(index, Err(DiskFailed))
    }

    fn written(&mut self, index: usize, result: Result<(), DiskFailed>) -> Option<()> {
        let host = self.hosts[index].as_mut()?;
        host.arbiter.on_written(NOW, result);
        self.answered(index)
    }

    /// Looks at the answer, if there is one.
    fn answered(&mut self, index: usize) -> Option<()> {
        let host = self.hosts[index].as_mut()?;
        let Some(reply) = host.arbiter.reply() else {
            return Some(());
        };
        let request = host.asked.take()?;
        assert_eq!(reply.id, request.id);
        let (me, floor) = (host.me, host.floor);
        let record = *host.arbiter.record()?;
        assert_eq!(reply.record, Some(record.summary()));
        if reply.outcome == Outcome::Known {
            self.note_decided(record);
            return Some(());
        }
        if record.sequence < floor {
            self.violation.get_or_insert(Violation::Outdated);
        }
        self.note_decided(record);
        let Outcome::Verdict(Verdict::Granted(generation)) = reply.outcome else {
            return Some(());
        };
        if matches!(request.ask, Ask::Claim | Ask::Start { .. }) {
            let holder = *self.granted.entry(generation).or_insert(me);
            let before = self.granted.range(..generation).next_back();
            let was_member = before.is_some() && me.boot == member(index, 1).boot;
            if holder != me || (request.ask == Ask::Claim && !was_member) {
                self.violation.get_or_insert(Violation::Granted);
            }
        }
        Some(())
    }

    /// Decided records follow one another: one per sequence, generations never fall, and no two of a
    /// generation have different owners.
    fn note_decided(&mut self, record: Record) {
        let known = *self.decided.entry(record.sequence).or_insert(record);
        let mut records = self.decided.values();
        let mut last = records.next().copied();
        let mut ordered = known == record;
        for next in records {
            ordered &= last.is_none_or(|last| {
                last.generation < next.generation
                    || (last.generation == next.generation && last.owner == next.owner)
            });
            last = Some(*next);
        }
        if !ordered {
            self.violation.get_or_insert(Violation::Forked);
        }
    }

    /// Whether what can still happen is within the bounds.
    pub fn is_within(&self) -> bool {
        let number = |place: &Place| match place {
            Some(block) => block.promised.number,
            None => 0,
        };
        self.disk.iter().map(number).max() <= Some(self.budget.ballots)
    }

    /// `host` does nothing any more; its write under way never happens.
    pub fn fall_silent(&mut self, host: usize) {
        self.hosts[host] = None;
        self.stray[host] = None;
    }

    /// Lets `host` alone go on; whether its request, or the next one, is answered.
    pub fn finish(&mut self, host: usize) -> bool {
        for _ in 0..200 {
            let Some(up) = &self.hosts[host] else {
                return false;
            };
            let action = match (up.writing, up.asked) {
                (Some(_), _) => Action::Land(host),
                (None, Some(_)) => Action::Operate(host),
                (None, None) => Action::Ask(host),
            };
            let waited = up.asked.is_some();
            if self.step(action).is_none() {
                return false;
            }
            let waits = self.hosts[host]
                .as_ref()
                .is_some_and(|up| up.asked.is_some());
            if waited && !waits {
                return true;
            }
        }
        false
    }
}

fn place_of(sector: u64) -> usize {
    (sector / STRIDE) as usize
}

fn encode(place: usize, found: Place) -> Sector {
    match found {
        Some(block) => block.encode(NODES[place / 4]),
        None => {
            let mut bytes = Block::initial(protected()).encode(NODES[place / 4]);
            bytes[SECTOR_BYTES / 2..].fill(0x5a);
            bytes
        }
    }
}

fn decode(place: usize, bytes: &Sector) -> Block {
    Block::decode(bytes, NODES[place / 4], &protected()).expect("what is written is readable")
}
