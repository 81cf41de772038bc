//! The one door: every value that is not a function of the guest's own execution enters here.
//!
//! It has three modes, and a handler is written once for all of them:
//!
//! - *live*: a value is taken from the host;
//! - *recording*: it is taken from the host and put into the log;
//! - *replaying*: it is taken from the log, and the host is never asked.
//!
//! What an instruction asks for is an answer of [`Door::take`] or [`Door::now`]. What comes by itself is collected by
//! [`Door::listen`], [`Door::operate`] and [`Door::offer`], and enters where [`crate::place`] puts it. What the guest puts
//! out leaves by [`Door::console_byte`], [`Door::console_line`] and [`Door::transmit`], at once or, behind a gate, when it
//! is [released](Door::release).

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use devices::time::GuestTime;

use crate::host::Host;
use crate::log::{Answer, Input};
use crate::machine::Operation;
use crate::output::{Destination, Output, OutputQueue};
use crate::record::Recorder;
use crate::replay::{Difference, Replayer};

/// Frequency of the guest's time-stamp counter in Hz. One tick is one nanosecond of guest time, so that
/// no rounding can differ between hosts.
pub const GUEST_TSC_HZ: u64 = 1_000_000_000;

/// Host time, in nanoseconds, by which a deadline can be missed and still count as met. No guest can tell: when it asks
/// what time it is, it gets the whole answer.
const PUNCTUAL_NS: u64 = 100_000;
/// Typed bytes that wait for a point; more stay with the host.
const MAX_TYPED: usize = 256;
/// Operations that wait for a point; more are refused.
const MAX_OPERATIONS: usize = 8;
/// Frames and changes of links that wait for a point; more stay with the host.
const MAX_NEWS: usize = 64;

/// A value that an instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The guest's time-stamp counter: RDTSC, RDTSCP, MSR 0x10; or another clock.
    TimeStamp,
    /// RDRAND or RDSEED.
    Random,
    /// What the clock shows at power-on: seconds since 1970.
    WallClock,
}

/// Where values come from.
#[derive(Default)]
pub enum Mode {
    /// The host.
    #[default]
    Live,
    /// The host; the log is written.
    Recording(Box<Recorder>),
    /// The log.
    Replaying(Box<Replayer>),
}

/// The door of one guest.
#[derive(Default)]
pub struct Door {
    /// Host time at which guest time was zero, in nanoseconds.
    base: u64,
    /// The guest time that entered last.
    last: GuestTime,
    /// What WRMSR to the time-stamp counter added: a function of the guest's execution.
    time_stamp_offset: u64,
    pub(crate) mode: Mode,
    /// What was typed and has not entered.
    typed: VecDeque<u8>,
    /// What an operator wants and has not entered.
    operations: VecDeque<Operation>,
    /// What came from the network and has not entered, and memory of frames that have.
    news: VecDeque<Input>,
    spare: Vec<Vec<u8>>,
    /// Frames that the guest's cards would have dropped.
    unwanted: u64,
    /// Outputs that wait for the log, if they have to.
    gate: Option<Box<OutputQueue>>,
    /// A question that the log did not answer.
    unanswered: Option<Difference>,
    /// For the test that a leak is noticed: answers left until the guest is given the host's own time.
    leak: Option<u64>,
}

impl Door {
    /// The door of a guest that is switched on now.
    pub fn new(host: &mut impl Host, mode: Mode) -> Self {
        Self {
            base: host.now_ns(),
            mode,
            ..Self::default()
        }
    }

    /// Makes time-stamp answer `number`, from 1, the host's own time, past the log: a leak that has to be noticed.
    pub fn leak_clock_at(&mut self, number: u64) {
        self.leak = Some(number);
    }

    /// Whether no log is kept or followed.
    #[inline]
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live)
    }

    /// Where values come from.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The log's writer.
    #[must_use]
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        match &mut self.mode {
            Mode::Recording(recorder) => Some(recorder),
            _ => None,
        }
    }

    /// The log's reader.
    #[must_use]
    pub fn replayer(&mut self) -> Option<&mut Replayer> {
        match &mut self.mode {
            Mode::Replaying(replayer) => Some(replayer),
            _ => None,
        }
    }

    /// A question that the log did not answer. The guest must not run on.
    #[inline]
    pub fn unanswered(&mut self) -> Option<Difference> {
        self.unanswered.take()
    }

    // Answers.

    /// The answer to a question at this point of execution.
    #[inline]
    pub fn take(&mut self, host: &mut impl Host, question: Question) -> u64 {
        let answer = match question {
            Question::TimeStamp => {
                let now = self.now(host).0.wrapping_add(self.time_stamp_offset);
                return self.leaky(host).unwrap_or(now);
            }
            _ if matches!(self.mode, Mode::Replaying(_)) => return self.logged(question),
            Question::Random => Answer::Random(host.random()),
            Question::WallClock => Answer::WallClock(host.unix_seconds()),
        };
        if let Mode::Recording(recorder) = &mut self.mode {
            recorder.answer(answer);
        }
        let (Answer::Clock(value) | Answer::Random(value) | Answer::WallClock(value)) = answer;
        value
    }

    /// Guest time, asked for at this point of execution.
    #[inline]
    pub fn now(&mut self, host: &mut impl Host) -> GuestTime {
        match &mut self.mode {
            Mode::Live => {
                let now = GuestTime(host.now_ns().wrapping_sub(self.base));
                self.last = self.last.max(now);
            }
            Mode::Recording(recorder) => {
                let now = GuestTime(host.now_ns().wrapping_sub(self.base)).max(self.last);
                recorder.answer(Answer::Clock(now.since(self.last)));
                self.last = now;
            }
            Mode::Replaying(_) => {
                let moved = self.logged(Question::TimeStamp);
                self.last = later(self.last, moved);
            }
        }
        self.last
    }

    fn logged(&mut self, question: Question) -> u64 {
        let Mode::Replaying(replayer) = &mut self.mode else {
            return 0;
        };
        replayer.answer(question).unwrap_or_else(|difference| {
            self.unanswered.get_or_insert(difference);
            0
        })
    }

    #[inline]
    fn leaky(&mut self, host: &mut impl Host) -> Option<u64> {
        let left = self.leak.as_mut()?;
        *left = left.saturating_sub(1);
        if *left != 0 {
            return None;
        }
        self.leak = None;
        Some(host.now_ns())
    }

    // What comes by itself.

    /// Collects what has come for the guest.
    #[inline]
    pub fn listen(&mut self, host: &mut impl Host) {
        if matches!(self.mode, Mode::Replaying(_)) {
            return;
        }
        while self.typed.len() < MAX_TYPED
            && let Some(byte) = host.console_input()
        {
            self.typed.push_back(byte);
        }
    }

    /// An operator wants something. False: too much waits already, or the log says what happens.
    pub fn operate(&mut self, operation: Operation) -> bool {
        let takes =
            !matches!(self.mode, Mode::Replaying(_)) && self.operations.len() < MAX_OPERATIONS;
        if takes {
            self.operations.push_back(operation);
        }
        takes
    }

    /// Whether anything waits to enter.
    #[inline]
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.typed.is_empty() || !self.operations.is_empty() || !self.news.is_empty()
    }

    /// A frame has come for network card `nic`, of at most [`MAX_DATA`](crate::log::MAX_DATA) bytes. False: too much waits
    /// already, or the log says what comes.
    pub(crate) fn offer(&mut self, nic: u8, frame: &[u8]) -> bool {
        let takes = self.takes_news();
        if takes {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(frame);
            self.news.push_back(Input::Rx {
                device: nic,
                frame: bytes,
            });
        }
        takes
    }

    /// The link of network card `nic` has gone up or down. False as above.
    pub(crate) fn offer_link(&mut self, nic: u8, up: bool) -> bool {
        let takes = self.takes_news();
        if takes {
            self.news.push_back(Input::LinkState { device: nic, up });
        }
        takes
    }

    /// A frame has come that nobody in the guest would see: it does not enter.
    pub(crate) fn ignore(&mut self) {
        self.unwanted = self.unwanted.wrapping_add(1);
    }

    /// Frames that did not enter because the guest's cards would have dropped them.
    #[must_use]
    pub const fn unwanted(&self) -> u64 {
        self.unwanted
    }

    fn takes_news(&self) -> bool {
        !matches!(self.mode, Mode::Replaying(_)) && self.news.len() < MAX_NEWS
    }

    /// What came from the network next.
    pub(crate) fn news(&mut self) -> Option<Input> {
        self.news.pop_front()
    }

    /// Takes back the memory of a frame that has entered.
    pub(crate) fn give_back(&mut self, mut frame: Vec<u8>) {
        if self.spare.len() < MAX_NEWS {
            frame.clear();
            self.spare.push(frame);
        }
    }

    /// What was typed.
    pub(crate) fn typed(&mut self) -> Option<Vec<u8>> {
        (!self.typed.is_empty()).then(|| self.typed.drain(..).collect())
    }

    /// What an operator wants next.
    pub(crate) fn operation(&mut self) -> Option<Operation> {
        self.operations.pop_front()
    }

    /// What time it is by the host's clock. Nothing enters by this.
    #[inline]
    pub fn reading(&self, host: &mut impl Host) -> GuestTime {
        GuestTime(host.now_ns().wrapping_sub(self.base)).max(self.last)
    }

    /// Whether `deadline` has come if it is `now`, and how many nanoseconds late that is noticed; else how many are left.
    ///
    /// # Errors
    ///
    /// It has not.
    #[inline]
    pub fn late(&self, now: GuestTime, deadline: GuestTime) -> Result<u64, u64> {
        if now < deadline {
            return Err(deadline.since(now));
        }
        let late = now.since(deadline.max(self.last));
        Ok(if late < PUNCTUAL_NS { 0 } else { late })
    }

    /// Time enters: the `deadline` has come, and is so late.
    pub(crate) fn enter_time(&mut self, deadline: GuestTime, late: u64) -> GuestTime {
        self.last = later(deadline.max(self.last), late);
        self.last
    }

    /// The guest time that entered last: what devices go by at accesses that do not show time.
    #[inline]
    #[must_use]
    pub const fn last(&self) -> GuestTime {
        self.last
    }

    /// The host time, in nanoseconds, at which it will be `time` for the guest.
    #[must_use]
    pub const fn host_time(&self, time: GuestTime) -> u64 {
        self.base.saturating_add(time.0)
    }

    // What goes out. A replayed guest says nothing: that has been said.

    /// The guest with the host's serial port says a byte.
    pub fn console_byte(&mut self, host: &mut impl Host, byte: u8) {
        self.put_out(host, "", Destination::Serial, &[byte]);
    }

    /// The guest named `guest` says a line.
    pub fn console_line(&mut self, host: &mut impl Host, guest: &str, line: &[u8]) {
        self.put_out(host, guest, Destination::Line, line);
    }

    /// Network card `nic` of the guest named `guest` sends a frame.
    pub fn transmit(&mut self, host: &mut impl Host, guest: &str, nic: u8, frame: &[u8]) {
        self.put_out(host, guest, Destination::Network(nic), frame);
    }

    /// From now on outputs wait in `gate`, or, with `None`, leave at once. Returns the gate before, with what waits in it.
    pub fn set_gate(&mut self, gate: Option<Box<OutputQueue>>) -> Option<Box<OutputQueue>> {
        core::mem::replace(&mut self.gate, gate)
    }

    /// What waits behind the gate.
    #[must_use]
    pub fn gate(&self) -> Option<&OutputQueue> {
        self.gate.as_deref()
    }

    /// The log is held elsewhere up to byte `held`: outputs of the guest named `guest` that waited for no more leave.
    pub fn release(&mut self, host: &mut impl Host, guest: &str, held: u64) {
        if let Some(gate) = &mut self.gate {
            gate.release(held, |output| hand_out(host, guest, output));
        }
    }

    fn put_out(
        &mut self,
        host: &mut impl Host,
        guest: &str,
        destination: Destination,
        bytes: &[u8],
    ) {
        let output = Output { destination, bytes };
        if !self.produce(output) {
            return;
        }
        match &mut self.gate {
            Some(gate) => {
                // One that finds no room is lost, as on a line or in a network, and counted.
                gate.push(output);
            }
            None => hand_out(host, guest, output),
        }
    }

    /// What the guest has put out so far is noted in the log, which has come to `position` with that.
    pub(crate) fn noted(&mut self, position: u64) {
        if let Some(gate) = &mut self.gate {
            gate.note(position);
        }
    }

    fn produce(&mut self, output: Output<'_>) -> bool {
        let now = self.last;
        match &mut self.mode {
            Mode::Live => true,
            Mode::Recording(recorder) => {
                recorder.produced.add(now, output);
                true
            }
            Mode::Replaying(replayer) => {
                replayer.produced.add(now, output);
                false
            }
        }
    }

    // The time-stamp counter.

    /// The guest wrote `value` to its time-stamp counter. Returns how far the counter is ahead of guest time now.
    pub fn set_time_stamp(&mut self, host: &mut impl Host, value: u64) -> u64 {
        self.time_stamp_offset = value.wrapping_sub(self.now(host).0);
        self.time_stamp_offset
    }

    /// How far the time-stamp counter is ahead of guest time, modulo 2⁶⁴: IA32_TSC_ADJUST (SDM 3 18.17.3).
    #[must_use]
    pub const fn time_stamp_offset(&self) -> u64 {
        self.time_stamp_offset
    }

    /// The guest wrote IA32_TSC_ADJUST.
    pub fn set_time_stamp_offset(&mut self, offset: u64) {
        self.time_stamp_offset = offset;
    }

    /// The guest's processor is reset: its counter shows guest time again.
    pub fn reset(&mut self) {
        self.time_stamp_offset = 0;
    }
}

fn hand_out(host: &mut impl Host, guest: &str, output: Output<'_>) {
    match output.destination {
        Destination::Serial => output.bytes.iter().for_each(|b| host.console_byte(*b)),
        Destination::Line => host.console_line(guest, output.bytes),
        Destination::Network(nic) => host.transmit(guest, nic, output.bytes),
    }
}

const fn later(time: GuestTime, ns: u64) -> GuestTime {
    GuestTime(time.0.saturating_add(ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestHost;

    #[test]
    fn guest_time_never_goes_back() {
        let mut host = TestHost {
            now_ns: 100,
            ..TestHost::default()
        };
        let mut door = Door::default();
        assert_eq!(door.take(&mut host, Question::TimeStamp), 100);
        host.now_ns = 40;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 100);
        host.now_ns = 150;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 150);
    }

    #[test]
    fn a_written_counter_goes_on_from_there() {
        let mut host = TestHost {
            now_ns: 100,
            ..TestHost::default()
        };
        let mut door = Door::default();
        assert_eq!(door.set_time_stamp(&mut host, 5), 5u64.wrapping_sub(100));
        host.now_ns = 110;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 15);
        door.set_time_stamp(&mut host, u64::MAX);
        host.now_ns = 112;
        assert_eq!(door.take(&mut host, Question::TimeStamp), 1);
        door.reset();
        assert_eq!(door.take(&mut host, Question::TimeStamp), 112);
    }

    #[test]
    fn the_wall_clock_and_what_is_typed_are_the_hosts() {
        let mut host = TestHost {
            now_ns: 7_000_000_000,
            typed: [b'x', b'y'].into(),
            ..TestHost::default()
        };
        let mut door = Door::new(&mut host, Mode::Live);
        assert_eq!(door.take(&mut host, Question::WallClock), 7);
        assert!(!door.has_input());
        door.listen(&mut host);
        assert!(door.has_input());
        assert_eq!(door.typed().as_deref(), Some(&b"xy"[..]));
        assert_eq!(door.typed(), None);
    }

    #[test]
    fn a_deadline_has_come_when_it_has_and_small_delays_do_not_count() {
        let mut host = TestHost {
            now_ns: 1000,
            ..TestHost::default()
        };
        let mut door = Door::new(&mut host, Mode::Live);
        let late = |door: &Door, host: &mut TestHost, deadline| {
            door.late(door.reading(host), GuestTime(deadline))
        };
        host.now_ns = 1040;
        assert_eq!(late(&door, &mut host, 50), Err(10));
        assert_eq!(door.host_time(GuestTime(50)), 1050);
        host.now_ns = 1051;
        assert_eq!(late(&door, &mut host, 50), Ok(0));
        assert_eq!(door.enter_time(GuestTime(50), 0), GuestTime(50));
        host.now_ns = 301_000;
        assert_eq!(late(&door, &mut host, 100), Ok(299_900));
        assert_eq!(door.enter_time(GuestTime(100), 299_900), GuestTime(300_000));
        // Time that has been shown does not go back to a deadline before it.
        assert_eq!(late(&door, &mut host, 200), Ok(0));
        assert_eq!(door.enter_time(GuestTime(200), 0), GuestTime(300_000));
    }

    #[test]
    fn a_replay_answers_what_was_recorded_and_never_asks_the_host() {
        let mut host = TestHost {
            now_ns: 5_000,
            random: 77,
            ..TestHost::default()
        };
        let mut door = Door::new(
            &mut host,
            Mode::Recording(Box::new(Recorder::new(&[], false))),
        );
        let questions = [
            Question::WallClock,
            Question::TimeStamp,
            Question::Random,
            Question::TimeStamp,
        ];
        let ask = |door: &mut Door, host: &mut TestHost| {
            questions.map(|question| {
                host.now_ns += 1_234;
                door.take(host, question)
            })
        };
        let recorded = ask(&mut door, &mut host);
        let mut log = [0; 64];
        let length = door.recorder().unwrap().take(&mut log);

        let mut other = TestHost::default();
        let mut replayer = Replayer::new();
        assert_eq!(replayer.feed(&log[..length]), length);
        let mut door = Door::new(&mut other, Mode::Replaying(Box::new(replayer)));
        assert_eq!(ask(&mut door, &mut other), recorded);
        assert_eq!(door.unanswered(), None);
        // There is no more.
        door.take(&mut other, Question::Random);
        assert_eq!(
            door.unanswered(),
            Some(Difference::Question {
                asked: Question::Random,
                logged: None
            })
        );
    }

    #[test]
    fn a_replayed_guest_is_not_heard_and_hears_only_the_log() {
        let mut host = TestHost {
            typed: [b'x'].into(),
            ..TestHost::default()
        };
        let replayer = Replayer::new();
        let mut door = Door::new(&mut host, Mode::Replaying(Box::new(replayer)));
        door.console_byte(&mut host, b'a');
        door.console_line(&mut host, "vm", b"line");
        door.listen(&mut host);
        assert!(!door.operate(Operation::Reset));
        assert!(host.said.is_empty() && host.lines.is_empty() && !door.has_input());
        assert_eq!(host.typed.len(), 1);
    }

    #[test]
    fn operations_that_nobody_takes_are_refused() {
        let mut door = Door::default();
        let taken = (0..100)
            .take_while(|_| door.operate(Operation::Nmi))
            .count();
        assert_eq!(taken, MAX_OPERATIONS);
    }

    #[test]
    fn a_leak_is_the_hosts_own_time_once() {
        let mut host = TestHost {
            now_ns: 1000,
            ..TestHost::default()
        };
        let mut door = Door::new(&mut host, Mode::Live);
        door.leak_clock_at(2);
        let mut ask = || door.take(&mut host, Question::TimeStamp);
        assert_eq!([ask(), ask(), ask()], [0, 1000, 0]);
    }
}
