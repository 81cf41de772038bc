//! Placement: where, in the guest's execution, something enters that comes by itself.
//!
//! An execution point is only ever a deterministic exit that has been handled, or what a run up to a count landed on: both
//! can be found again. Wherever the host happened to stop the guest cannot (a fault that is delivered retires no
//! instruction). So a recorded guest runs on from there, to the next deterministic exit if one comes soon, else to a
//! count; what has come enters there and is logged with the point. A replayed guest runs to the point of the log's next
//! entry, and has to come by it.

use alloc::boxed::Box;

use arch::addr::{Gpa, LARGE_PAGE_SIZE};
use devices::time::GuestTime;

use crate::cpu::{CounterKind, ExitKind, Icount, Vcpu};
use crate::digest::{self, Parts};
use crate::host::Host;
use crate::log::{End, Input, MemoryPart, Point, Registers, Snapshot, What};
use crate::machine::{Machine, Stop};
use crate::memory::GuestMemory;
use crate::nondet::Mode;
use crate::replay::{self, Difference, Next};
use crate::stats::Reason;

/// Longest slice of a run that is cut at random: 2²² instructions.
const SLICE_BITS: u32 = 22;

/// Where the execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Deterministic exits handled since power-on.
    exits: u64,
    /// Instructions retired when the last one had been handled.
    base: Icount,
    /// It is at an execution point.
    at_point: bool,
    /// Where to land for what waits to enter.
    landing: Option<Icount>,
}

impl Place {
    /// At power-on.
    pub(crate) const fn new(icount: Icount) -> Self {
        Self {
            exits: 0,
            base: icount,
            at_point: true,
            landing: None,
        }
    }

    /// A deterministic exit has been handled, or a reset.
    #[inline]
    pub(crate) fn arrive(&mut self, icount: Icount) {
        self.base = icount;
        self.at_point = true;
        self.landing = None;
    }

    fn point(&self, icount: Icount) -> Point {
        Point {
            exits: self.exits,
            after: icount.0.saturating_sub(self.base.0),
        }
    }
}

impl<V: Vcpu> Machine<V> {
    /// Where the execution is.
    #[must_use]
    pub fn point(&self) -> Point {
        self.place.point(self.vcpu.icount())
    }

    /// Notes a deterministic exit before it is handled.
    #[inline(never)]
    pub(crate) fn note_exit(&mut self, reason: Reason) {
        if reason.kind() == ExitKind::Deterministic {
            self.place.exits = self.place.exits.wrapping_add(1);
            self.fold(reason as u64);
        }
    }

    /// Notes where an exit has left the guest, after it has been handled.
    #[inline(never)]
    pub(crate) fn note_place(&mut self, reason: Reason) {
        match reason.kind() {
            ExitKind::Deterministic => self.place.arrive(self.vcpu.icount()),
            ExitKind::HostLocal => self.place.at_point = reason == Reason::Landed,
        }
        if let Some(difference) = self.door.unanswered() {
            self.diverge(difference, None);
        }
    }

    #[inline]
    fn fold(&mut self, what: u64) {
        let digest = match &mut self.door.mode {
            Mode::Live => return,
            Mode::Recording(recorder) => &mut recorder.digest,
            Mode::Replaying(replayer) => &mut replayer.digest,
        };
        let registers = (self.vcpu.rip(), self.vcpu.rflags().bits(), self.vcpu.gprs());
        digest.fold_exit(what, self.vcpu.icount().0, registers);
    }

    fn registers(&self) -> Registers {
        Registers {
            icount: self.vcpu.icount().0,
            rip: self.vcpu.rip(),
            rflags: self.vcpu.rflags().bits(),
            gprs: *self.vcpu.gprs(),
        }
    }

    /// Cuts a run of the guest at random, if that was asked for: `None`, or how many instructions it may run.
    pub(crate) fn cut(&mut self) -> Option<u64> {
        Some(self.slicing.as_mut()?.magnitude(SLICE_BITS))
    }

    // Recording.

    /// Lets enter and logs what has come, if this is a point. Returns how far the guest may run and for how many host
    /// ticks; `None` if it has to wait for the log.
    pub(crate) fn place_inputs(
        &mut self,
        host: &mut impl Host,
        mut budget: u64,
    ) -> Option<(Icount, u64)> {
        let (here, now) = (self.point(), self.door.reading(host));
        let recorder = self.door.recorder()?;
        if !recorder.has_room() {
            return None;
        }
        recorder.advance(now);
        let silent_until = recorder.silent_until();
        if self.place.at_point {
            self.place.landing = None;
            // A guest that waits has nothing to check.
            let check_is_due = !self.halted && recorder.check_is_due(here);
            if check_is_due || recorder.output_is_due() || self.door.has_input() {
                self.enter_waiting();
            }
        } else if recorder.point_is_due() || self.door.has_input() {
            self.land_soon();
        }
        if now < silent_until {
            budget = budget.min(host.ticks(silent_until.since(now)));
        }
        while self.stop.is_none()
            && let Some(deadline) = self.board.deadline()
        {
            match self.door.late(now, deadline) {
                Err(left) => {
                    budget = budget.min(host.ticks(left));
                    break;
                }
                Ok(late) if self.place.at_point => self.enter_logged(Input::Time { late })?,
                Ok(_) => {
                    self.land_soon();
                    break;
                }
            }
        }
        Some((self.place.landing.unwrap_or(Icount::NEVER), budget))
    }

    /// Something waits to enter and this is no point: the guest is to come to one.
    fn land_soon(&mut self) {
        if self.vcpu.counter() != CounterKind::ExitOrdinal {
            let within = self.vcpu.prefer_exit_within();
            let soon = self.vcpu.icount().after(within);
            self.place.landing.get_or_insert(soon);
        }
    }

    /// Logs what is due and lets enter what does not depend on time.
    #[inline(never)]
    fn enter_waiting(&mut self) {
        if self.door.recorder().is_some_and(|r| r.output_is_due()) {
            self.log_output();
        }
        self.log_check_if_due();
        while self.stop.is_none()
            && let Some(operation) = self.door.operation()
        {
            self.log_entering(Input::Control(operation));
        }
        if self.stop.is_none()
            && let Some(bytes) = self.door.typed()
        {
            self.log_entering(Input::Console(bytes));
        }
        while self.stop.is_none()
            && self.door.recorder().is_some_and(|r| r.has_room())
            && let Some(input) = self.door.news()
        {
            self.log_entering(input);
        }
    }

    /// Lets enter and logs `input`. `None` if the log has no room for it.
    #[inline(never)]
    fn enter_logged(&mut self, input: Input) -> Option<()> {
        if !self.door.recorder()?.has_room() {
            return None;
        }
        self.log_entering(input);
        Some(())
    }

    /// Prepares for an entry at this point, and gives it the point. What the processor can take now it takes before
    /// anything enters: a window that opens here opens before.
    fn at_entry(&mut self) -> Point {
        self.deliver(self.vcpu.icount());
        self.fold(Reason::COUNT as u64);
        self.point()
    }

    fn log_entering(&mut self, mut input: Input) {
        let point = self.at_entry();
        if let Some(recorder) = self.door.recorder() {
            recorder.input(point, &mut input);
        }
        self.enter(input);
    }

    fn log_output(&mut self) {
        if self.door.recorder().is_none_or(|r| r.produced.is_empty()) {
            return;
        }
        let point = self.at_entry();
        if let Some(recorder) = self.door.recorder() {
            recorder.output(point);
            let position = recorder.position();
            self.door.noted(position);
        }
    }

    #[inline]
    fn log_check_if_due(&mut self) {
        let point = self.point();
        if self.door.recorder().is_some_and(|r| r.check_is_due(point)) {
            self.log_check();
        }
    }

    fn log_check(&mut self) {
        let point = self.at_entry();
        let wanted = self.door.recorder().is_some_and(|r| r.wants_snapshot());
        let snapshot = wanted.then(|| Snapshot {
            parts: digest::parts(&self.vcpu.save()),
            registers: self.registers(),
        });
        let memory = self.next_part_of_memory();
        if let Some(recorder) = self.door.recorder() {
            recorder.check(point, snapshot, memory);
        }
    }

    /// The part of memory that is to be checked here, if one is.
    fn next_part_of_memory(&mut self) -> Option<MemoryPart> {
        let (memory, size) = (&self.memory, self.memory.size());
        let recorder = match &mut self.door.mode {
            Mode::Recording(recorder) if recorder.memory_is_due() => recorder,
            _ => return None,
        };
        let large_pages = size.div_ceil(LARGE_PAGE_SIZE);
        let part = recorder.next_part(large_pages, |page| {
            memory.is_untouched(Gpa(page * LARGE_PAGE_SIZE))
        });
        let mut part = MemoryPart {
            first: part.start,
            pages: part.end - part.start,
            digest: 0,
        };
        // All of it is RAM.
        part.digest = digest::part_of_memory(memory, part.range(size)).ok()?;
        Some(part)
    }

    // Replaying.

    /// Lets enter what the log has for this point. Returns how far the guest may run; `None` if there is no more, or the
    /// executions differ.
    #[inline(never)]
    pub(crate) fn follow_log(&mut self) -> Option<Icount> {
        let until = self.follow_entries()?;
        let Some(last) = self.stop_at else {
            return Some(until);
        };
        let here = self.point();
        if here >= last {
            self.stop = Some(Stop::StopPoint);
            return None;
        }
        let there = if here.exits == last.exits {
            self.place.base.after(last.after)
        } else {
            Icount::NEVER
        };
        Some(until.min(there))
    }

    fn follow_entries(&mut self) -> Option<Icount> {
        while self.stop.is_none() {
            let here = self.point();
            let next = match self.door.replayer()?.peek() {
                Next::At(point) => point,
                Next::Nothing => break,
                Next::End => {
                    self.stop = Some(Stop::LogEnd);
                    break;
                }
                Next::Damaged(error) => {
                    self.diverge(Difference::Damaged(error), None);
                    break;
                }
            };
            if next.exits > here.exits {
                return Some(Icount::NEVER);
            }
            if next < here {
                self.diverge(Difference::Passed, None);
            } else if next > here {
                return Some(self.place.base.after(next.after));
            } else if !self.place.at_point {
                // The count is reached, and a window opened there: a run up to it lands at once.
                return Some(self.vcpu.icount());
            } else {
                self.follow_entry();
            }
        }
        None
    }

    /// The execution is at the point of the log's next entry.
    fn follow_entry(&mut self) {
        self.at_entry();
        let taken = match self.door.replayer().map(|r| r.take()) {
            Some(Ok(Some((_, what)))) => what,
            Some(Err(difference)) => return self.diverge(difference, None),
            Some(Ok(None)) | None => return,
        };
        let mut recorded = None;
        let compared = match &taken {
            What::Check {
                digest,
                snapshot,
                memory,
            } => {
                recorded = snapshot.as_ref().map(|s| s.registers);
                let logged = snapshot.as_ref().map(|s| s.parts);
                self.compare(*digest)
                    .and_then(|()| self.compare_state(logged))
                    .and_then(|()| self.compare_memory(*memory))
            }
            What::Input { check, .. } => self.compare_low(*check),
            What::Output {
                length,
                digest,
                check,
                ..
            } => self
                .compare(*check)
                .and_then(|()| self.compare_output((*length, *digest))),
            What::End { .. } => Err(Difference::RunsOn),
        };
        match (compared, taken) {
            (Err(difference), _) => self.diverge(difference, recorded),
            (Ok(()), What::Input { input, .. }) => self.enter(input),
            (Ok(()), _) => {}
        }
    }

    fn compare(&mut self, logged: u64) -> Result<(), Difference> {
        self.door.replayer().map_or(Ok(()), |r| r.compare(logged))
    }

    fn compare_low(&mut self, logged: u16) -> Result<(), Difference> {
        self.door
            .replayer()
            .map_or(Ok(()), |r| r.compare_low(logged))
    }

    fn compare_state(&mut self, logged: Option<Parts>) -> Result<(), Difference> {
        let Some(logged) = logged else {
            return Ok(());
        };
        let here = digest::parts(&self.vcpu.save());
        if here == logged {
            Ok(())
        } else {
            Err(Difference::State { logged, here })
        }
    }

    fn compare_memory(&self, logged: Option<MemoryPart>) -> Result<(), Difference> {
        let Some(part) = logged else {
            return Ok(());
        };
        let range = part.range(self.memory.size());
        let here = digest::part_of_memory(&self.memory, range.clone()).ok();
        if here == Some(part.digest) {
            Ok(())
        } else {
            Err(Difference::PartOfMemory(range))
        }
    }

    fn compare_output(&mut self, logged: (u32, u64)) -> Result<(), Difference> {
        let here = self.door.replayer().map(|r| r.produced.take());
        match here {
            Some(here) if here != logged => Err(Difference::Output { logged, here }),
            _ => Ok(()),
        }
    }

    #[cold]
    fn diverge(&mut self, difference: Difference, recorded: Option<Registers>) {
        let (here, registers) = (self.point(), self.registers());
        if let Some(replayer) = self.door.replayer() {
            let found = replayer.divergence(here, difference, recorded, registers);
            self.divergence.get_or_insert(Box::new(found));
        }
        self.stop = Some(Stop::Diverged);
    }

    /// The guest waits, and the log has nothing for it here.
    #[cold]
    pub(crate) fn waits_in_vain(&mut self) {
        if self.door.replayer().is_some() {
            self.diverge(Difference::Passed, None);
        }
    }

    // Both.

    /// Something enters here.
    pub(crate) fn enter(&mut self, input: Input) {
        let now = self.door.last();
        match input {
            Input::Time { late } => match self.board.deadline() {
                Some(deadline) => {
                    let now: GuestTime = self.door.enter_time(deadline, late);
                    self.board.advance(now);
                }
                None => self.diverge(Difference::NoDevice, None),
            },
            Input::Console(bytes) if self.board.hears() => {
                self.board.receive(now, &bytes, &mut self.memory);
            }
            Input::Rx { device, frame } if self.board.nic(device).is_some() => {
                let memory = &mut self.memory;
                self.board.receive_frame(now, device, &frame, memory);
                self.door.give_back(frame);
            }
            Input::LinkState { device, up } if self.board.nic(device).is_some() => {
                self.board.set_link(now, device, up);
            }
            Input::Control(operation) => self.perform(operation),
            Input::Console(_) | Input::Rx { .. } | Input::LinkState { .. } => {
                self.diverge(Difference::NoDevice, None);
            }
        }
        self.deliver(self.vcpu.icount());
    }

    /// The guest has stopped for good: the log ends, or has to end here too.
    pub(crate) fn end_log(&mut self, stop: Stop) {
        // Other stops are this host's doing, or may be taken back.
        if !self.place.at_point
            || matches!(
                stop,
                Stop::Reset | Stop::LogEnd | Stop::StopPoint | Stop::Diverged
            )
        {
            return;
        }
        let here = self.point();
        if let Some(replayer) = self.door.replayer()
            && stop == Stop::InstructionLimit
            && replayer.peek() != Next::At(here)
        {
            // A replay that is stopped on the way.
            return;
        }
        let stop = replay::stop_digest(&stop);
        match &self.door.mode {
            Mode::Live => {}
            Mode::Recording(_) => self.log_end(stop),
            Mode::Replaying(_) => self.follow_to_end(stop),
        }
    }

    fn end(&mut self, stop: u64) -> End {
        let size = self.memory.size();
        End {
            stop,
            state: digest::cpu_state(&self.vcpu.save()),
            // All of it is RAM.
            memory: digest::memory(&self.memory, size).unwrap_or(0),
        }
    }

    fn log_end(&mut self, stop: u64) {
        self.log_output();
        let end = self.end(stop);
        let point = self.at_entry();
        if let Some(recorder) = self.door.recorder() {
            recorder.end(point, end);
        }
    }

    fn follow_to_end(&mut self, stop: u64) {
        let here = self.point();
        loop {
            let next = self.door.replayer().map(|r| r.peek());
            match next {
                // A log that was cut off says nothing about how the guest ended.
                Some(Next::Nothing | Next::End) | None => return,
                Some(Next::At(point)) if point == here => {}
                Some(_) => return self.diverge(Difference::Stopped, None),
            }
            self.at_entry();
            let taken = match self.door.replayer().map(|r| r.take()) {
                Some(Ok(Some((_, what)))) => what,
                Some(Err(difference)) => return self.diverge(difference, None),
                Some(Ok(None)) | None => return,
            };
            let compared = match taken {
                What::Output {
                    length,
                    digest,
                    check,
                    ..
                } => self
                    .compare(check)
                    .and_then(|()| self.compare_output((length, digest))),
                What::Check { digest, .. } => self.compare(digest),
                What::Input { .. } => Err(Difference::Stopped),
                What::End { digest, end } => {
                    let compared = self
                        .compare(digest)
                        .and_then(|()| self.compare_end(stop, end));
                    return compared.unwrap_or_else(|difference| self.diverge(difference, None));
                }
            };
            if let Err(difference) = compared {
                return self.diverge(difference, None);
            }
        }
    }

    fn compare_end(&mut self, stop: u64, logged: End) -> Result<(), Difference> {
        let here = self.end(stop);
        if logged.stop != here.stop {
            return Err(Difference::Stop);
        }
        if logged.memory != here.memory {
            return Err(Difference::Memory {
                logged: logged.memory,
                here: here.memory,
            });
        }
        if logged.state == here.state {
            Ok(())
        } else {
            Err(Difference::LastState)
        }
    }
}
