//! The loop: exit → handle → place → inject → enter.

use arch::event::{Event, vector};
use arch::regs::Rflags;

use crate::board::Pending;
use crate::cpu::{Exit, Icount, Vcpu, Window};
use crate::exits::{self, Next};
use crate::host::Host;
use crate::machine::{Machine, Stop};
use crate::stats::{Reason, Trace};

/// Exits that one call of [`Machine::run`] handles at most: a guest that does nothing but exit must not
/// keep the host from its other work.
const MAX_EXITS_PER_SLICE: u32 = 4096;

/// DR6.BS: a single step raised the #DB.
const DR6_SINGLE_STEP: u64 = 1 << 14;

impl<V: Vcpu> Machine<V> {
    /// Runs the guest for about `budget` host TSC ticks, until it waits, or until it stops. Returns why it
    /// stopped, at once if it had already.
    pub fn run(&mut self, host: &mut impl Host, budget: u64) -> Option<Stop> {
        if self.stop.is_some() {
            return self.stop;
        }
        self.stats.resume();
        if self.stats.noted() >= self.exit_limit {
            self.stop = Some(Stop::ExitLimit);
        }
        if self.board.hears() {
            self.door.listen(host);
        }
        if self.door.has_input() && !self.logged {
            self.enter_typed_and_wanted();
        }
        for _ in 0..MAX_EXITS_PER_SLICE {
            if self.stop.is_some() {
                break;
            }
            let Some((until, budget)) = self.place(host, budget) else {
                break;
            };
            let exit = self.vcpu.run(&mut self.memory, until, budget);
            let reason = Reason::from(&exit);
            let trace = Trace {
                reason,
                rip: self.vcpu.rip(),
                icount: self.vcpu.icount().0,
            };
            self.stats.record(trace, self.vcpu.host_local().host_ticks);
            if self.logged {
                self.note_exit(reason);
            }
            match self.handle(&exit, host) {
                Next::Retire => self.retire(),
                Next::RetireBytes(length) => {
                    // TF is not what stepping over an instruction changes.
                    self.vcpu.advance_by(length);
                    self.trap_after(self.single_stepping());
                }
                Next::Repeat => self.trap_after(self.single_stepping()),
                Next::Stay => {}
                Next::Inject(event) => self.inject(event),
                Next::Stop(stop) => self.stop = Some(stop),
            }
            if let Some(request) = self.board.request() {
                self.stop = Some(request.into());
            }
            if self.logged {
                self.note_place(reason);
            }
            if reason == Reason::HostWork {
                break;
            }
        }
        if let Some(stop) = self.stop {
            self.board.flush(host, &mut self.door);
            if self.logged {
                self.end_log(stop);
            }
        }
        self.stop
    }

    /// The host time, in nanoseconds, until which the guest has nothing to do; `None` if it has.
    #[must_use]
    pub fn idle_until(&self) -> Option<u64> {
        let waits = self.halted && self.stop.is_none() && !self.door.has_input();
        waits.then(|| match self.board.deadline() {
            Some(deadline) => self.door.host_time(deadline),
            None => u64::MAX,
        })
    }

    /// Lets enter what has come, gives the processor what it can take now, asks for windows for what it cannot, and
    /// says how far and for how many host ticks it may run. `None`: it waits, or has stopped.
    #[inline]
    fn place(&mut self, host: &mut impl Host, mut budget: u64) -> Option<(Icount, u64)> {
        let now = self.vcpu.icount();
        if now >= self.limit {
            self.stop = Some(Stop::InstructionLimit);
            return None;
        }
        let mut until = self.limit;
        if self.logged {
            (until, budget) = self.place_logged(host, budget)?;
        }
        if self.board.has_time() {
            if !self.logged {
                budget = self.let_time_in(host, budget);
            }
            self.deliver(now);
        } else {
            match self.board.due() {
                None => self.want(Pending::default()),
                Some(due) if due > now => {
                    self.want(Pending::default());
                    until = until.min(due);
                }
                Some(_) => self.deliver(now),
            }
        }
        if self.halted {
            self.waits();
            return None;
        }
        Some((until, budget))
    }

    /// The processor waits. With interrupts off only an NMI could end it.
    #[cold]
    fn waits(&mut self) {
        if !self.board.has_time() || !self.vcpu.rflags().contains(Rflags::IF) {
            self.stop = Some(Stop::Halted);
        } else {
            self.waits_in_vain();
        }
    }

    /// What comes by itself enters a guest whose log is kept or followed. Returns as [`Machine::place`] does.
    #[inline(never)]
    fn place_logged(&mut self, host: &mut impl Host, budget: u64) -> Option<(Icount, u64)> {
        let replaying = self.door.replayer().is_some();
        let (mut until, mut budget) = if replaying {
            (self.follow_log()?, budget)
        } else {
            self.place_inputs(host, budget)?
        };
        if let Some(instructions) = self.cut() {
            budget = budget.min(instructions);
            if replaying {
                until = until.min(self.vcpu.icount().after(instructions));
            }
        }
        // Something that entered may have switched it off.
        self.stop.is_none().then(|| (until.min(self.limit), budget))
    }

    /// Lets time enter a guest without a log, wherever it is, if the devices' deadline has come. Returns how much of
    /// `budget` is left until the next one.
    fn let_time_in(&mut self, host: &mut impl Host, budget: u64) -> u64 {
        let reading = self.door.reading(host);
        while let Some(deadline) = self.board.deadline() {
            match self.door.late(reading, deadline) {
                Ok(late) => {
                    let now = self.door.enter_time(deadline, late);
                    self.board.advance(now);
                }
                Err(left) => return budget.min(host.ticks(left)),
            }
        }
        budget
    }

    #[cold]
    fn enter_typed_and_wanted(&mut self) {
        while let Some(operation) = self.door.operation() {
            self.perform(operation);
        }
        if let Some(bytes) = self.door.typed() {
            self.board
                .receive(self.door.last(), &bytes, &mut self.memory);
        }
        while let Some(input) = self.door.news() {
            self.enter(input);
        }
    }

    /// Hands over what devices hold pending, or asks for the window in which it can be taken.
    pub(crate) fn deliver(&mut self, now: Icount) {
        let mut pending = self.board.pending(now);
        for window in [Window::Nmi, Window::Interrupt] {
            if pending.includes(window) && self.vcpu.can_take(window) {
                if let Some(event) = self.board.acknowledge(now, window) {
                    self.halted = false;
                    self.inject(event);
                }
                pending = self.board.pending(now);
            }
        }
        self.want(pending);
    }

    /// Asks for the windows of what is pending and for no other: one that nothing waits for any more would end
    /// every run at once.
    #[inline]
    pub(crate) fn want(&mut self, pending: Pending) {
        if self.wanted != pending {
            self.change_windows(pending);
        }
    }

    #[cold]
    fn change_windows(&mut self, pending: Pending) {
        for window in [Window::Nmi, Window::Interrupt] {
            let wanted = pending.includes(window);
            if wanted != self.wanted.includes(window) {
                self.vcpu.request_window(window, wanted);
            }
        }
        self.wanted = pending;
    }

    /// Gives an event to the processor; one exception too many is a triple fault.
    fn inject(&mut self, event: Event) {
        if !self.vcpu.inject(event) {
            self.stop = Some(Stop::TripleFault);
        }
    }

    fn single_stepping(&self) -> bool {
        self.vcpu.rflags().contains(Rflags::TF)
    }

    /// The instruction of the exit is done.
    fn retire(&mut self) {
        let tf = self.single_stepping();
        self.vcpu.advance(&self.memory);
        self.trap_after(tf);
    }

    /// The trap that the processor would raise behind an instruction, or an iteration of a repeated one, that
    /// it had executed itself (SDM 3 18.3.1).
    #[inline]
    fn trap_after(&mut self, single_stepping: bool) {
        if single_stepping || self.traps != 0 {
            self.trap(single_stepping);
        }
    }

    #[cold]
    fn trap(&mut self, single_stepping: bool) {
        let mut traps = core::mem::take(&mut self.traps);
        if single_stepping {
            traps |= DR6_SINGLE_STEP;
        }
        let mut debug = self.vcpu.debug();
        debug.dr6 |= traps;
        self.vcpu.set_debug(&debug);
        self.inject(Event::exception(vector::DB));
    }

    /// One arm per exit, one call per arm.
    fn handle(&mut self, exit: &Exit, host: &mut impl Host) -> Next {
        match *exit {
            Exit::Cpuid => exits::cpu::cpuid(self),
            Exit::Hlt => exits::cpu::hlt(self),
            Exit::Rdtsc => exits::time::rdtsc(self, host),
            Exit::Rdtscp => exits::time::rdtscp(self, host),
            Exit::Rdpmc => Next::Inject(Event::general_protection()),
            Exit::Rdrand { register, size } | Exit::Rdseed { register, size } => {
                exits::cpu::random(self, host, register, size)
            }
            Exit::ReadMsr => exits::msr::read(self, host),
            Exit::WriteMsr => exits::msr::write(self, host),
            Exit::Port(access) => exits::io::port(self, host, access),
            Exit::ReadCr { cr, register } => exits::control::read_cr(self, cr, register),
            Exit::WriteCr { cr, value } => exits::control::write_cr(self, cr, value),
            Exit::ReadDr { dr, register } => exits::debug::read(self, dr, register),
            Exit::WriteDr { dr, register } => exits::debug::write(self, dr, register),
            Exit::Xsetbv => exits::control::xsetbv(self),
            Exit::Wbinvd => Next::Retire,
            Exit::Invlpg { gva } => exits::control::invlpg(self, gva),
            Exit::Monitor | Exit::Mwait | Exit::NoSuchInstruction => {
                Next::Inject(Event::undefined_opcode())
            }
            Exit::Hypercall => exits::cpu::hypercall(self),
            Exit::NestedFault(fault) => exits::io::nested_fault(self, host, fault),
            Exit::Exception { event, dr6 } => exits::debug::exception(self, event, dr6),
            Exit::TaskSwitch { selector } => Next::Stop(Stop::TaskSwitch { selector }),
            Exit::TripleFault => Next::Stop(Stop::TripleFault),
            Exit::EntryRefused { reason } => Next::Stop(Stop::EntryRefused(reason)),
            Exit::Unexpected {
                code,
                qualification,
            } => Next::Stop(Stop::Unexpected {
                code,
                qualification,
            }),
            Exit::Landed | Exit::HostWork | Exit::Window => Next::Stay,
        }
    }
}

#[cfg(test)]
mod net_tests;
#[cfg(test)]
mod pc_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod tests;
