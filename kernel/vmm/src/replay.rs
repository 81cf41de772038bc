//! Replaying: the log is where everything comes from, and what the execution is compared with.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use arch::regs::Gpr;

use crate::digest::{Parts, Running};
use crate::log::{Answer, DecodeError, Decoder, Entry, Point, Registers, What};
use crate::nondet::Question;
use crate::record::Produced;

/// Bytes of the log that are held ahead of the execution.
const BUFFER_BYTES: usize = 1 << 20;

/// Answers between two placed entries. A recorder makes a check after 64; one instruction can ask for thousands.
const MAX_ANSWERS: usize = 1 << 16;

/// In what an execution differs from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The guest asks for something that is not the log's next answer.
    Question {
        /// What it asks for.
        asked: Question,
        /// What the log has.
        logged: Option<Answer>,
    },
    /// The point of the entry is reached, and the guest has asked for less than the log has answers for.
    NotAsked {
        /// Answers left.
        left: usize,
    },
    /// The execution is past the entry's point without having been there.
    Passed,
    /// The running digest: some exit since the check before was another one, or at other registers.
    Digest {
        /// In the log.
        logged: u64,
        /// Here.
        here: u64,
    },
    /// The running digest is the same, these parts of the processor are not.
    State {
        /// In the log.
        logged: Parts,
        /// Here.
        here: Parts,
    },
    /// The processor at the end.
    LastState,
    /// The guest put out something else.
    Output {
        /// In the log: bytes and their digest.
        logged: (u32, u64),
        /// Here.
        here: (u32, u64),
    },
    /// The guest stopped, and the log has something for it.
    Stopped,
    /// The recorded guest stopped here, this one does not.
    RunsOn,
    /// Both stopped here, for different reasons.
    Stop,
    /// These addresses do not hold the same.
    PartOfMemory(Range<u64>),
    /// The memory they left is not the same.
    Memory {
        /// In the log.
        logged: u64,
        /// Here.
        here: u64,
    },
    /// The input is for a device that this machine does not have.
    NoDevice,
    /// The log is damaged.
    Damaged(DecodeError),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Question { asked, logged } => match logged {
                Some(answer) => write!(f, "the guest asks for {asked:?}, the log has {answer:?}"),
                None => write!(
                    f,
                    "the guest asks for {asked:?}, the log has no answer left"
                ),
            },
            Self::NotAsked { left } => {
                write!(f, "the guest has not asked for {left} answers of the log")
            }
            Self::Passed => f.write_str("the guest did not come by the point of the entry"),
            Self::Digest { logged, here } => {
                write!(
                    f,
                    "the running digest is {here:016x}, in the log {logged:016x}"
                )
            }
            Self::State { logged, here } => {
                f.write_str("the processor differs in its")?;
                logged
                    .differing(here)
                    .try_for_each(|name| write!(f, " [{name}]"))
            }
            Self::LastState => f.write_str("the processor differs when the guest has stopped"),
            Self::Output { logged, here } => write!(
                f,
                "the guest put out {} bytes with digest {:016x}, in the log {} with {:016x}",
                here.0, here.1, logged.0, logged.1
            ),
            Self::Stopped => f.write_str("the guest stopped, in the log it goes on"),
            Self::RunsOn => f.write_str("the guest goes on, in the log it stopped"),
            Self::Stop => f.write_str("the guest stopped for another reason than in the log"),
            Self::Memory { logged, here } => {
                write!(
                    f,
                    "the memory's digest is {here:016x}, in the log {logged:016x}"
                )
            }
            Self::PartOfMemory(range) => {
                write!(
                    f,
                    "guest memory {:#x}-{:#x} differs",
                    range.start, range.end
                )
            }
            Self::NoDevice => f.write_str("the entry is for a device that the guest does not have"),
            Self::Damaged(error) => write!(f, "the log is damaged: {error}"),
        }
    }
}

/// The first difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The entry at which it was found, from 0.
    pub entry: u64,
    /// The placed entry before it: the executions were the same there.
    pub agreed: Point,
    /// Where the execution is.
    pub here: Point,
    /// The entry's point, if it has one.
    pub logged: Option<Point>,
    /// What differs.
    pub difference: Difference,
    /// The recorded register file, if the log has it.
    pub recorded: Option<Registers>,
    /// The register file here.
    pub registers: Registers,
}

/// One page: where, what, and both register files if the log has the recorded one.
impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "divergence: entry {}: {}", self.entry, self.difference)?;
        write!(
            f,
            "the executions agreed at {}; here: {}",
            self.agreed, self.here
        )?;
        match self.logged {
            Some(point) => writeln!(f, "; the entry's point: {point}")?,
            None => writeln!(f)?,
        }
        let (Some(recorded), here) = (&self.recorded, &self.registers) else {
            return writeln!(
                f,
                "the log has no registers for this point: record with a check at every exit to have them"
            );
        };
        if may_be_stale(recorded, here) {
            writeln!(
                f,
                "possible stale translation: only accessed and dirty bits of page tables can differ so"
            )?;
        }
        let mut row = |name: &dyn fmt::Display, logged: u64, here: u64| {
            let mark = if logged == here { ' ' } else { '*' };
            writeln!(f, "{mark} {name:<6} log {logged:016x} here {here:016x}")
        };
        row(&"count", recorded.icount, here.icount)?;
        row(&"Rip", recorded.rip, here.rip)?;
        row(&"Rflags", recorded.rflags, here.rflags)?;
        for gpr in Gpr::ALL {
            row(&format_args!("{gpr:?}"), recorded.gprs[gpr], here.gprs[gpr])?;
        }
        Ok(())
    }
}

/// Whether the registers differ only where the entries of page tables have their accessed and dirty bits (SDM 3, table 4-19):
/// a processor sets these or not according to what it has kept of the tables, which no log can tell.
fn may_be_stale(recorded: &Registers, here: &Registers) -> bool {
    const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
    let pairs = recorded.gprs.0.iter().zip(&here.gprs.0);
    let differing = pairs.fold(0, |bits, (recorded, here)| bits | recorded ^ here);
    let same = |r: &Registers| (r.icount, r.rip);
    same(recorded) == same(here) && differing != 0 && differing & !ACCESSED_DIRTY == 0
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries executed.
    pub entries: u64,
    /// Inputs that entered.
    pub inputs: u64,
    /// Digests compared.
    pub checks: u64,
}

/// What the log has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Something at this point.
    At(Point),
    /// Nothing yet: the guest has to wait for more of the log.
    Nothing,
    /// Nothing ever.
    End,
    /// Something that is no entry.
    Damaged(DecodeError),
}

/// Reads a log ahead up to the next placed entry: the answers before it belong to exits before its point, so the guest
/// may run up to that and never has to wait inside of an exit.
pub struct Replayer {
    bytes: VecDeque<u8>,
    closed: bool,
    decoder: Decoder,
    answers: VecDeque<Answer>,
    next: Option<(Point, What)>,
    damaged: Option<DecodeError>,
    /// The point of the entry taken last, and of the last one at which digests were equal.
    taken: Point,
    agreed: Point,
    progress: Progress,
    /// The running digest.
    pub digest: Running,
    /// Output not compared yet.
    pub produced: Produced,
}

impl Default for Replayer {
    fn default() -> Self {
        Self::new()
    }
}

impl Replayer {
    /// A replay from power-on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: VecDeque::with_capacity(BUFFER_BYTES),
            closed: false,
            decoder: Decoder::default(),
            answers: VecDeque::new(),
            next: None,
            damaged: None,
            taken: Point::default(),
            agreed: Point::default(),
            progress: Progress::default(),
            digest: Running::default(),
            produced: Produced::default(),
        }
    }

    /// Gives it more of the log. Returns how many of the bytes it has taken; it takes some if it is short of them.
    pub fn feed(&mut self, log: &[u8]) -> usize {
        let count = (BUFFER_BYTES.saturating_sub(self.bytes.len())).min(log.len());
        self.bytes.extend(log.iter().take(count));
        count
    }

    /// There is no more of the log.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// What is next.
    #[inline]
    pub fn peek(&mut self) -> Next {
        if self.next.is_none() {
            self.read_ahead();
        }
        match (&self.next, self.damaged) {
            (Some((point, _)), _) => Next::At(*point),
            (None, Some(error)) => Next::Damaged(error),
            (None, None) if self.closed => Next::End,
            (None, None) => Next::Nothing,
        }
    }

    fn read_ahead(&mut self) {
        while self.next.is_none() && self.damaged.is_none() {
            // A whole entry lies in one piece in most cases.
            let (first, second) = self.bytes.as_slices();
            let read = match self.decoder.next(first) {
                Err(DecodeError::Incomplete) if !second.is_empty() => {
                    let joined: Vec<u8> = self.bytes.iter().copied().collect();
                    self.decoder.next(&joined)
                }
                read => read,
            };
            match read {
                Ok((entry, length)) => {
                    self.bytes.drain(..length);
                    match entry {
                        Entry::Answer(_) if self.answers.len() >= MAX_ANSWERS => {
                            self.damaged = Some(DecodeError::NoPoint);
                        }
                        Entry::Answer(answer) => self.answers.push_back(answer),
                        Entry::Placed(point, what) => self.next = Some((point, what)),
                    }
                }
                Err(DecodeError::Incomplete) => return,
                Err(error) => self.damaged = Some(error),
            }
        }
    }

    /// The answer to `asked`.
    ///
    /// # Errors
    ///
    /// The log has another one next.
    #[inline]
    pub fn answer(&mut self, asked: Question) -> Result<u64, Difference> {
        if self.answers.is_empty() && self.next.is_none() {
            self.read_ahead();
        }
        let logged = self.answers.pop_front();
        self.progress.entries += 1;
        match (asked, logged) {
            (Question::TimeStamp, Some(Answer::Clock(value)))
            | (Question::Random, Some(Answer::Random(value)))
            | (Question::WallClock, Some(Answer::WallClock(value))) => Ok(value),
            (asked, logged) => Err(Difference::Question { asked, logged }),
        }
    }

    /// Takes the placed entry: the execution is at its point.
    ///
    /// # Errors
    ///
    /// Answers before it were not asked for.
    pub fn take(&mut self) -> Result<Option<(Point, What)>, Difference> {
        let left = self.answers.len();
        if left != 0 {
            return Err(Difference::NotAsked { left });
        }
        let taken = self.next.take();
        if let Some((point, what)) = &taken {
            self.taken = *point;
            self.progress.entries += 1;
            self.progress.inputs += u64::from(matches!(what, What::Input { .. }));
        }
        Ok(taken)
    }

    /// Compares the running digest.
    ///
    /// # Errors
    ///
    /// It differs.
    pub fn compare(&mut self, logged: u64) -> Result<(), Difference> {
        let here = self.digest.value();
        self.agree(here == logged, logged)
    }

    /// The same for an input's few bits of it.
    ///
    /// # Errors
    ///
    /// They differ.
    pub fn compare_low(&mut self, logged: u16) -> Result<(), Difference> {
        let here = self.digest.low();
        self.agree(here == logged, logged.into())
    }

    fn agree(&mut self, same: bool, logged: u64) -> Result<(), Difference> {
        self.progress.checks += 1;
        if same {
            self.agreed = self.taken;
            return Ok(());
        }
        let here = self.digest.value();
        Err(Difference::Digest { logged, here })
    }

    /// The report of a difference that was found at `here`.
    #[must_use]
    pub fn divergence(
        &self,
        here: Point,
        difference: Difference,
        recorded: Option<Registers>,
        registers: Registers,
    ) -> Divergence {
        Divergence {
            entry: self.progress.entries,
            agreed: self.agreed,
            here,
            logged: self
                .next
                .as_ref()
                .map_or(Some(self.taken), |(p, _)| Some(*p)),
            difference,
            recorded,
            registers,
        }
    }
}

/// The digest by which the reasons of stops are compared.
#[must_use]
pub fn stop_digest(stop: &crate::machine::Stop) -> u64 {
    xxhash_rust::xxh3::xxh3_64(alloc::format!("{stop}").as_bytes())
}
