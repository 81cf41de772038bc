//! The way to where a run is to land, if the last instructions of it are stepped.

use arch::vmx::control::PrimaryControls;
use vmm::cpu::Exit;
use vmm::pmu::Skid;
use vmm::pmu::landing::{Landing, Move, Passed};

use super::counter::{self, Method, Programmed};
use super::pmu;
use super::vcpu::Vcpu;
use crate::guest_ram::GuestRam;
use crate::vt::passed_exit;

/// Instructions behind which a guest is stopped that does not come by the breakpoint behind one.
const BEHIND_REPEAT: u64 = 2;

/// How early the guest is stopped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Margin {
    /// At random: the test switch.
    Random(Skid),
    /// By what the processor's counter stops late.
    Fixed(u64),
}

impl Vcpu {
    /// What the preemption timer gets for the next entry, on the way to `until`, which is `instructions` away.
    ///
    /// # Errors
    ///
    /// The exit to return instead of entering.
    #[cold]
    #[inline(never)]
    pub(super) fn approach(
        &mut self,
        memory: &GuestRam,
        until: u64,
        instructions: u64,
        budget: u64,
    ) -> Result<u32, Exit> {
        let bound = counter::bound(budget, self.capabilities.timer_shift);
        if !self.counting.counts() {
            return Ok(bound);
        }
        self.hidden_causes = 0;
        let next = self.next_move(memory, until);
        let over = next == Ok(Move::StepOver) && self.begin_over(memory);
        let Method::Pmu(Programmed { counter, .. }) = self.counting.method else {
            let reach = match next {
                Ok(Move::Arm { after }) => after,
                // Iterations are counted here: the point may lie inside.
                Ok(Move::StepOver) if over => instructions,
                // No processor that this runs on delivers the monitor trap: the preemption timer does it.
                Ok(Move::Step | Move::StepOver) => instructions.min(1),
                // Only an event is left to deliver. Counted by the TSC, the timer has never let a guest pass.
                Ok(Move::Arrived) | Err(Passed { .. }) => instructions,
            };
            return Ok(counter::timer(reach, budget));
        };
        let (after, stepping) = match next {
            Ok(Move::Arm { after }) => (after, false),
            // Should it not come by the breakpoint, it is stopped.
            Ok(Move::StepOver) if over => (BEHIND_REPEAT, false),
            Ok(Move::Step | Move::StepOver) => (u64::MAX, true),
            // An event is left to deliver: the trap comes in front of the first instruction behind it.
            Ok(Move::Arrived) if self.pending.is_some() => (u64::MAX, true),
            Ok(Move::Arrived) => return Err(Exit::Landed),
            Err(passed) => return Err(passed_exit(passed)),
        };
        pmu::rearm();
        if let Some(lists) = &mut self.lists {
            lists.load(counter.entry_list(after));
        }
        self.windows.set(PrimaryControls::MONITOR_TRAP, stepping);
        Ok(bound)
    }

    fn next_move(&mut self, memory: &GuestRam, until: u64) -> Result<Move, Passed> {
        let mut landing = match self.landing {
            Some(landing) if landing.target() == until => landing,
            _ => {
                let margin = match &mut self.margin {
                    Margin::Random(skid) => skid.margin(),
                    Margin::Fixed(margin) => *margin,
                };
                Landing::new(until, margin)
            }
        };
        let next = landing.next(self.icount, || self.place(memory));
        self.landing = Some(landing);
        next
    }

    /// The exit to return, `exit` unless a performance counter has let the guest run past where it was to land.
    #[cold]
    pub(super) fn in_time(&self, until: u64, exit: Exit) -> Exit {
        match (self.counting.method, &self.landing) {
            (Method::Pmu(_), Some(landing)) if self.icount >= until => landing
                .reached(self.icount)
                .map_or_else(passed_exit, |()| exit),
            _ => exit,
        }
    }

    /// Instructions that were counted in the last entry otherwise than by the TSC.
    #[cold]
    pub(super) fn retired_otherwise(&self) -> u64 {
        match (self.counting.method, &self.lists) {
            (Method::Pmu(pmu), Some(lists)) => {
                lists.retired(&pmu.counter).wrapping_sub(pmu.overhead)
            }
            _ => 0,
        }
    }
}
