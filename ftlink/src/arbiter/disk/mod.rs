//! The arbiter on a shared disk: the record as a register that either host changes by ballots, over
//! nothing but whole-sector reads and writes. Sans-IO: [`DiskArbiter::operation`] says what to do to
//! the disk next, and is told what came of it.
//!
//! This is Disk Paxos (Gafni and Lamport, 2003) for one disk and two hosts, with a change function in
//! place of a value (Rystsov, "CASPaxos", 2018). An attempt promises a ballot above all others, reads
//! the peer's word, decides by [`decide`](super::decide) on the newest accepted record, writes the
//! result, and reads again. Who meets a higher promise gives up and tries anew; who does not has
//! changed the record. A result that was written by a host that gave up or died may be found and
//! completed by the next attempt of either; the same request then gets the same answer.
//!
//! What the disk may do, and why that is survived:
//! - tear a sector: every word goes to a pair of sectors that does not hold the word before it;
//! - apply the write of a dead boot, or one that was reported failed, at any later time: it spoils
//!   one sector, and every word is in two. One such write of a host may be under way at a time;
//! - do the two hosts' writes in any order: each host writes its own sectors only.
//!
//! A write that is reported done must be readable by the other host: no cache that one host's reads
//! are served from while the other host writes.

pub mod block;

use core::fmt;

use super::{Ask, Member, Outcome, Record, Refusal, Reply, Request, Summary, decide, refuse};
use crate::ids::{Duration, Instant, NodeId, PairId};

use block::{Ballot, Block, Sector};

/// Places for a word in each host's half of the region.
const PLACES: u8 = 4;
/// Copies of a word; a stray write spoils one of them.
const COPIES: u8 = 2;
/// Sectors from one place to the next: places do not share a 4 KiB physical sector, which a drive
/// may lose as a whole when power fails.
const STRIDE_SECTORS: u64 = 8;
/// Sectors of the shared disk that are the arbiter's.
pub const REGION_SECTORS: u64 = 2 * PLACES as u64 * STRIDE_SECTORS;
/// Doublings of the pause after an attempt that was given up.
const MAX_DOUBLINGS: u32 = 10;

/// When it tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Before a disk operation that failed is done again.
    pub retry: Duration,
    /// After an attempt that met a higher ballot. The second node waits four times as long, doubled
    /// with each attempt, so that one of the two gets through.
    pub pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retry: Duration::from_millis(20),
            pause: Duration::from_millis(5),
        }
    }
}

/// What is to be done to the disk; sectors count from the begin of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read this sector and call [`DiskArbiter::on_read`].
    Read(u64),
    /// Write the buffer to this sector, through to the medium, and call
    /// [`DiskArbiter::on_written`].
    Write(u64),
}

/// The disk did not do what it was told; whether a write took effect is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskFailed;

impl fmt::Display for DiskFailed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the shared disk did not read or write")
    }
}

impl core::error::Error for DiskFailed {}

/// The sectors that initialise a region with `record`: a new one for a new pair, a restored one for a
/// lost region. All of them must be written, while no host of the pair uses the disk.
pub fn format(record: &Record) -> impl Iterator<Item = (u64, Sector)> {
    let block = Block::initial(*record);
    let nodes = record.seats.map(|seat| seat.node);
    (0..2 * PLACES).map(move |place| {
        let node = nodes[usize::from(place / PLACES)];
        (sector(place), block.encode(node))
    })
}

const fn sector(place: u8) -> u64 {
    place as u64 * STRIDE_SECTORS
}

/// What a scan has found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Found {
    /// Halves with at least one valid block.
    halves: [bool; 2],
    promised: Option<Ballot>,
    accepted: Option<Block>,
    decided: Option<Block>,
    /// The newest of this host's own blocks, and its place.
    own: Option<(Block, u8)>,
    /// The checksum at each place read; 0 where it was torn.
    sums: [u64; 2 * PLACES as usize],
    torn: bool,
}

impl Found {
    fn add(&mut self, half: usize, own: bool, place: u8, block: Block) {
        self.halves[half] = true;
        self.promised = self.promised.max(Some(block.promised));
        newest(&mut self.accepted, block);
        if block.decided {
            newest(&mut self.decided, block);
        }
        if own
            && self
                .own
                .is_none_or(|(known, _)| known.rank() < block.rank())
        {
            self.own = Some((block, place));
        }
    }
}

/// Keeps the block accepted in the higher ballot; of equals, the one known to be decided.
fn newest(known: &mut Option<Block>, block: Block) {
    let key = |block: &Block| (block.accepted, block.decided);
    if known.is_none_or(|known| key(&known) < key(&block)) {
        *known = Some(block);
    }
}

/// Where an attempt, or a query, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Nothing is to be done.
    Idle,
    /// Reads what the peer has written, and at a boot's first attempt what this host has.
    Load,
    /// Reads what both hosts have written, for a query.
    Look,
    /// Writes its promise.
    Promise,
    /// Reads the peer's half for higher promises and accepted records.
    Prepare,
    /// Writes the changed record.
    Accept,
    /// Reads the peer's half for higher promises.
    Confirm,
    /// Writes that the record is decided; the answer is out already.
    Mark,
}

/// This host's end of the arbiter on the shared disk, in one boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskArbiter {
    config: Config,
    me: Member,
    /// The pair's nodes, in the order of the halves; nothing else of it counts.
    like: Record,
    /// Which half is this host's.
    half: u8,
    step: Step,
    /// Next place of a scan, or next copy of a word.
    at: u8,
    due: Instant,
    under_way: bool,
    found: Found,
    /// What the scan before this one found, where it met a torn sector.
    seen: Option<[u64; 2 * PLACES as usize]>,
    /// This host's newest word; none before the first load.
    word: Option<Block>,
    /// Which two places the next word goes to.
    upper: bool,
    highest: u64,
    given_up: u32,
    binding: Option<Request>,
    query: Option<Request>,
    /// The request the present attempt is for; none settles what another attempt left.
    served: Option<Request>,
    decision: Option<Reply>,
    reply: Option<Reply>,
    /// The newest record a query saw undecided: if the next one sees it too, its maker is gone.
    unsettled: Option<Ballot>,
    decided: Option<Record>,
    failed: u64,
}

impl DiskArbiter {
    /// The arbiter of `me`, one of the pair's `nodes`, which are in the order the region was
    /// initialised with. `None` for a stranger.
    #[must_use]
    pub fn new(config: Config, pair: PairId, nodes: [NodeId; 2], me: Member) -> Option<Self> {
        let half = nodes.iter().position(|node| *node == me.node)?;
        Some(Self {
            config,
            me,
            like: Record::empty(pair, nodes),
            half: u8::from(half == 1),
            step: Step::Idle,
            at: 0,
            due: Instant(0),
            under_way: false,
            found: Found::default(),
            seen: None,
            word: None,
            upper: false,
            highest: 0,
            given_up: 0,
            binding: None,
            query: None,
            served: None,
            decision: None,
            reply: None,
            unsettled: None,
            decided: None,
            failed: 0,
        })
    }

    /// Takes a request of this host's fence. A repeated one changes nothing; a newer one takes the
    /// place of an older one of its kind. Other hosts' requests are ignored: they have their own end.
    pub fn request(&mut self, request: &Request) {
        if request.from != self.me {
            return;
        }
        let slot = match request.ask {
            Ask::Query => &mut self.query,
            _ => &mut self.binding,
        };
        if slot.is_none_or(|known| known.id < request.id) {
            *slot = Some(*request);
        }
    }

    /// The answer to a request, once there is one. Call until it gives none.
    pub fn reply(&mut self) -> Option<Reply> {
        self.reply.take()
    }

    /// The newest record this host has seen decided.
    #[must_use]
    pub const fn record(&self) -> Option<&Record> {
        self.decided.as_ref()
    }

    /// Disk operations that failed.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// When [`operation`](Self::operation) next has something to do; `NEVER` while an operation is
    /// under way or nothing is asked.
    #[must_use]
    pub fn poll_at(&self) -> Instant {
        let idle = self.step == Step::Idle && self.binding.is_none() && self.query.is_none();
        if self.under_way || idle {
            Instant::NEVER
        } else {
            self.due
        }
    }

    /// What to do to the disk now; the sector to write is put into `buffer`. At most one operation is
    /// under way at a time, and each is answered by [`on_read`](Self::on_read) or
    /// [`on_written`](Self::on_written) once.
    pub fn operation(&mut self, now: Instant, buffer: &mut Sector) -> Option<Operation> {
        if self.under_way || now < self.due {
            return None;
        }
        if self.step == Step::Idle {
            self.begin();
        }
        let operation = match self.word {
            _ if self.step == Step::Idle => return None,
            Some(word) if self.writes() => {
                *buffer = word.encode(self.me.node);
                Operation::Write(sector(self.copy_place()))
            }
            _ => Operation::Read(sector(self.at)),
        };
        self.under_way = true;
        Some(operation)
    }

    /// The place of the copy that is written next.
    fn copy_place(&self) -> u8 {
        self.half * PLACES + u8::from(self.upper) * COPIES + self.at
    }

    fn begin(&mut self) {
        if let Some(binding) = self.binding {
            self.attempt(Some(binding));
        } else if self.query.is_some() {
            self.scan(Step::Look);
        }
    }

    /// Looks before it promises: a promise below the peer's would be made for nothing.
    fn attempt(&mut self, request: Option<Request>) {
        self.served = request;
        self.scan(Step::Load);
    }

    fn promise(&mut self, word: Block) {
        self.highest = self.highest.saturating_add(1);
        self.word = Some(Block {
            promised: Ballot {
                number: self.highest,
                by: self.me,
            },
            ..word
        });
        self.write(Step::Promise);
    }

    fn write(&mut self, step: Step) {
        self.step = step;
        self.at = 0;
    }

    /// Both halves in a boot's first load and in a look; else the peer's alone, for nobody else
    /// writes this host's.
    fn scan(&mut self, step: Step) {
        self.step = step;
        self.seen = None;
        self.rewind();
    }

    fn rewind(&mut self) {
        self.found = Found::default();
        self.at = match self.half {
            1 => 0,
            _ if self.reads_both() => 0,
            _ => PLACES,
        };
    }

    fn reads_both(&self) -> bool {
        self.step == Step::Look || (self.step == Step::Load && self.word.is_none())
    }

    fn scan_end(&self) -> u8 {
        if self.half == 0 || self.reads_both() {
            2 * PLACES
        } else {
            PLACES
        }
    }

    const fn writes(&self) -> bool {
        matches!(self.step, Step::Promise | Step::Accept | Step::Mark)
    }

    /// The read under way is done. Of a read that is not under way nothing is taken.
    pub fn on_read(&mut self, now: Instant, read: Result<&Sector, DiskFailed>) {
        if !self.under_way || self.writes() {
            return;
        }
        self.under_way = false;
        let Ok(bytes) = read else {
            return self.fail(now);
        };
        let half = self.at / PLACES;
        let node = self.like.seats[usize::from(half)].node;
        match Block::decode(bytes, node, &self.like) {
            Ok(block) => {
                let own = half == self.half;
                self.found.add(usize::from(half), own, self.at, block);
                self.found.sums[usize::from(self.at)] = block::sum(bytes);
            }
            Err(_) => self.found.torn = true,
        }
        self.at += 1;
        if self.at == self.scan_end() {
            self.scanned(now);
        }
    }

    /// The write under way is done, through to the medium. One that failed is done again.
    pub fn on_written(&mut self, now: Instant, written: Result<(), DiskFailed>) {
        if !self.under_way || !self.writes() {
            return;
        }
        self.under_way = false;
        if written.is_err() {
            return self.fail(now);
        }
        self.at += 1;
        if self.at < COPIES {
            return;
        }
        self.upper = !self.upper;
        match self.step {
            Step::Promise => self.scan(Step::Prepare),
            Step::Accept => self.scan(Step::Confirm),
            _ => self.step = Step::Idle,
        }
    }

    fn fail(&mut self, now: Instant) {
        self.failed += 1;
        self.due = now.after(self.config.retry);
    }

    /// A torn sector may be one that is being written, and then the words read before it may be old by
    /// now. What is found twice in the same state was not being written in between.
    fn scanned(&mut self, now: Instant) {
        let found = core::mem::take(&mut self.found);
        if found.torn && self.seen != Some(found.sums) {
            self.seen = Some(found.sums);
            return self.rewind();
        }
        self.seen = None;
        let highest = found.promised.map_or(0, |ballot| ballot.number);
        self.highest = self.highest.max(highest);
        match self.step {
            Step::Load => self.loaded(&found),
            Step::Look => self.looked(&found),
            _ => self.judge(now, &found),
        }
    }

    /// The first attempt of a boot goes on from what both hosts, and its own earlier boots, have left.
    fn loaded(&mut self, found: &Found) {
        if let Some(word) = self.word {
            return self.promise(word);
        }
        let (Some(accepted), Some((own, place)), [true, true]) =
            (found.accepted, found.own, found.halves)
        else {
            return self.refuse(Refusal::NoRecord);
        };
        self.upper = place % PLACES < COPIES;
        // One number is left to what an earlier boot may still be writing.
        self.highest = self.highest.saturating_add(1);
        self.promise(Block {
            promised: own.promised,
            ..accepted
        });
    }

    /// A query is answered with what is known to be decided. What stays undecided from one query to
    /// the next was left by a host that died, and is settled.
    fn looked(&mut self, found: &Found) {
        self.step = Step::Idle;
        let (Some(decided), Some(accepted), [true, true]) =
            (found.decided, found.accepted, found.halves)
        else {
            return self.refuse(Refusal::NoRecord);
        };
        let open = (accepted.accepted > decided.accepted).then_some(accepted.accepted);
        if open.is_some() && open == self.unsettled {
            self.unsettled = None;
            return self.attempt(None);
        }
        self.unsettled = open;
        self.learn(&decided.record);
        self.answer_query();
    }

    /// Meets a higher promise and gives up, or goes on.
    fn judge(&mut self, now: Instant, found: &Found) {
        let Some(word) = self.word else {
            self.step = Step::Idle;
            return;
        };
        let (Some(promised), Some(accepted)) = (found.promised, found.accepted) else {
            return self.refuse(Refusal::Storage);
        };
        if promised > word.promised {
            return self.give_up(now);
        }
        if self.step == Step::Prepare {
            self.propose(word, accepted);
        } else {
            self.decided(word);
        }
    }

    fn propose(&mut self, word: Block, accepted: Block) {
        let mut base = Some(word);
        newest(&mut base, accepted);
        let mut record = base.unwrap_or(word).record;
        self.decision = self.served.map(|request| {
            let decision = decide(&record, &request);
            record = decision.store.unwrap_or(record);
            decision.reply
        });
        self.word = Some(Block {
            promised: word.promised,
            accepted: word.promised,
            decided: false,
            record,
        });
        self.write(Step::Accept);
    }

    fn decided(&mut self, word: Block) {
        self.given_up = 0;
        self.learn(&word.record);
        match self.decision.take() {
            Some(reply) => {
                self.reply = Some(reply);
                if self.binding.is_some_and(|request| request.id == reply.id) {
                    self.binding = None;
                }
            }
            None => self.answer_query(),
        }
        self.word = Some(Block {
            decided: true,
            ..word
        });
        self.write(Step::Mark);
    }

    fn learn(&mut self, record: &Record) {
        if self
            .decided
            .is_none_or(|known| known.sequence <= record.sequence)
        {
            self.decided = Some(*record);
        }
    }

    fn summary(&self) -> Option<Summary> {
        self.decided.map(|record| record.summary())
    }

    fn answer_query(&mut self) {
        let record = self.summary();
        self.reply = self.query.take().map(|query| Reply {
            id: query.id,
            to: query.from,
            outcome: Outcome::Known,
            record,
        });
    }

    /// There is nothing to decide on; the fence asks again.
    fn refuse(&mut self, refusal: Refusal) {
        self.step = Step::Idle;
        let refused = match self.served.take() {
            Some(_) => self.binding.take(),
            None => self.query.take(),
        };
        self.reply = refused.map(|request| refuse(&request, refusal, None));
    }

    fn give_up(&mut self, now: Instant) {
        self.step = Step::Idle;
        let doublings = self.given_up.min(MAX_DOUBLINGS);
        self.given_up += 1;
        let times = match self.half {
            0 => 1,
            _ => 4 << doublings,
        };
        self.due = now.after(self.config.pause.times(times));
    }
}
