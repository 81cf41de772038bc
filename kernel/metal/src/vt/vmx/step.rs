//! Landing behind one instruction: stepping.

use vmm::pmu::landing::{Landing, Move, Place};

use super::vcpu::Vcpu;

impl Vcpu {
    /// How many instructions the next entry may execute on the way to `until`, which is `instructions` away.
    #[cold]
    pub(super) fn approach(&mut self, until: u64, instructions: u64) -> u64 {
        if let Some(skid) = &mut self.skid
            && self.landing.is_none_or(|landing| landing.target() != until)
        {
            self.landing = Some(Landing::new(until, skid.margin()));
        }
        let Some(landing) = &mut self.landing else {
            return instructions;
        };
        match landing.next(self.icount, Place::Boundary) {
            Ok(Move::Arm { after }) => after,
            Ok(Move::Step | Move::StepOver) => step(instructions),
            // Only an event is left to deliver. Counted by the TSC, the timer has never let a guest pass.
            Ok(Move::Arrived) | Err(_) => instructions,
        }
    }
}

/// A step, as long as no processor that this runs on delivers the monitor trap: the preemption timer stops behind one
/// instruction.
fn step(instructions: u64) -> u64 {
    instructions.min(1)
}
