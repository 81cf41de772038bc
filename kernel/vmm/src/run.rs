//! The loop: exit → handle → place → inject → enter.

use arch::event::{Event, EventKind, vector};
use arch::regs::Rflags;

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
    /// Runs the guest for about `budget` host TSC ticks or until it stops. Returns why it stopped, at
    /// once if it had already.
    pub fn run(&mut self, host: &mut impl Host, budget: u64) -> Option<Stop> {
        self.stats.resume();
        if self.stats.noted() >= self.exit_limit {
            self.stop.get_or_insert(Stop::ExitLimit);
        }
        for _ in 0..MAX_EXITS_PER_SLICE {
            if self.stop.is_some() {
                break;
            }
            let until = self.place();
            if self.stop.is_some() {
                break;
            }
            let exit = self.vcpu.run(&mut self.memory, until, budget);
            let trace = Trace {
                reason: Reason::from(&exit),
                rip: self.vcpu.rip(),
                icount: self.vcpu.icount().0,
            };
            self.stats.record(trace, self.vcpu.host_local().host_ticks);
            match self.handle(&exit, host) {
                Next::Retire => self.retire(),
                Next::RetireBytes(length) => {
                    let tf = self.single_stepping();
                    self.vcpu.advance_by(length);
                    self.trap_after(tf);
                }
                Next::Repeat => self.trap_after(self.single_stepping()),
                Next::Stay => {}
                Next::Inject(event) => self.inject(event),
                Next::Stop(stop) => self.stop = Some(stop),
            }
            if let Some(status) = self.board.exit_status() {
                self.stop = Some(Stop::ExitStatus(status));
            }
            if matches!(exit, Exit::HostWork) {
                break;
            }
        }
        if self.stop.is_some() {
            self.board.flush(host);
        }
        self.stop
    }

    /// Gives the processor what it can take now, asks for a window for what it cannot, and says how far
    /// it may run.
    #[inline]
    fn place(&mut self) -> Icount {
        let now = self.vcpu.icount();
        if now >= self.limit {
            self.stop = Some(Stop::InstructionLimit);
            return now;
        }
        match self.board.due() {
            Some(due) if due > now => {
                self.want(None);
                due.min(self.limit)
            }
            Some(_) => {
                self.deliver(now);
                self.limit
            }
            None => {
                self.want(None);
                if self.halted {
                    self.stop = Some(Stop::Halted);
                }
                self.limit
            }
        }
    }

    /// Hands over the event that devices hold pending, or asks for the window in which it can be taken.
    fn deliver(&mut self, now: Icount) {
        let pending = self
            .board
            .pending(now)
            .filter(|event| self.above_task_priority(event));
        let Some(event) = pending else {
            self.want(None);
            if self.halted {
                self.stop = Some(Stop::Halted);
            }
            return;
        };
        let window = match event.kind {
            EventKind::Nmi => Window::Nmi,
            _ => Window::Interrupt,
        };
        if self.vcpu.can_take(window) {
            self.halted = false;
            self.board.delivered();
            self.inject(event);
            self.want(None);
        } else if self.halted {
            // Interrupts are off and only an interrupt is pending: nothing can wake it.
            self.stop = Some(Stop::Halted);
        } else {
            self.want(Some(window));
        }
    }

    /// Asks for this window and for no other: one that nothing waits for any more would end every run at once.
    #[inline]
    fn want(&mut self, window: Option<Window>) {
        if self.wanted == window {
            return;
        }
        if let Some(old) = self.wanted {
            self.vcpu.request_window(old, false);
        }
        if let Some(new) = window {
            self.vcpu.request_window(new, true);
        }
        self.wanted = window;
    }

    fn above_task_priority(&self, event: &Event) -> bool {
        event.kind != EventKind::Interrupt || event.vector >> 4 > self.task_priority
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
    fn trap_after(&mut self, single_stepping: bool) {
        let mut traps = core::mem::take(&mut self.traps);
        if single_stepping {
            traps |= DR6_SINGLE_STEP;
        }
        if traps != 0 {
            let mut debug = self.vcpu.debug();
            debug.dr6 |= traps;
            self.vcpu.set_debug(&debug);
            self.inject(Event::exception(vector::DB));
        }
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
mod tests;
