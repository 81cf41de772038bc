//! The way to a point: run far, then step.

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing: this is the point.
    Arrived,
    /// Run; the counter is to overflow after so many instructions.
    Arm {
        /// At least 1.
        after: u64,
    },
    /// Execute one instruction, or deliver one event.
    Step,
    /// Run to a breakpoint behind the repeated instruction at which the guest stands: it counts as one, whatever the
    /// number of its iterations, so no point lies inside.
    StepOver,
}

/// The guest was let run too far: a larger skid than this processor is known for. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Where it was to stop.
    pub target: u64,
    /// Where it is.
    pub at: u64,
}

/// Where a stop has left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between two instructions.
    Boundary,
    /// At a repeated string instruction, and iterations of it are not counted: it may have begun.
    Repeat,
}

/// One way to one point. It is asked before each entry; stops on the way, for whatever reason, do no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    target: u64,
    margin: u64,
    /// The last entry was ended by the counter, or by something else before it.
    armed: bool,
}

/// The most that one step goes: the instruction in the shadow of a load of SS is executed with it where the step is a
/// trap.
const LONGEST_STEP: u64 = 2;

impl Landing {
    /// To `target`, with a counter that stops the guest at most `margin` instructions after its overflow.
    #[must_use]
    pub const fn new(target: u64, margin: u64) -> Self {
        Self {
            target,
            margin,
            armed: false,
        }
    }

    /// Where it leads.
    #[must_use]
    pub const fn target(&self) -> u64 {
        self.target
    }

    /// What to do `at` this count. `place` is asked only if it matters.
    ///
    /// # Errors
    ///
    /// The target lies behind; or it may: the counter stopped the guest late, at the target's count. Iterations may have
    /// been executed since that count was reached, or a fault delivered.
    pub fn next(&mut self, at: u64, place: impl FnOnce() -> Place) -> Result<Move, Passed> {
        let was_armed = core::mem::replace(&mut self.armed, false);
        let Some(left) = self.target.checked_sub(at) else {
            return Err(self.passed(at));
        };
        if left == 0 {
            // Without a skid it stopped where the instruction before retired, as a step does.
            return if was_armed && self.margin != 0 {
                Err(self.passed(at))
            } else {
                Ok(Move::Arrived)
            };
        }
        if left > self.margin {
            self.armed = true;
            return Ok(Move::Arm {
                after: left - self.margin,
            });
        }
        Ok(match place() {
            Place::Boundary => Move::Step,
            Place::Repeat => Move::StepOver,
        })
    }

    /// Whether the guest, which has come to the target's count or behind it `at` this one, is where it was to stop, or has
    /// exited in time. The trap behind a step comes one instruction late where that began in front of a shadow: no
    /// point lies inside one.
    ///
    /// # Errors
    ///
    /// As [`Landing::next`].
    pub const fn reached(&self, at: u64) -> Result<(), Passed> {
        let late = at.wrapping_sub(self.target);
        let exact = if self.armed {
            late == 0 && self.margin == 0
        } else {
            late < LONGEST_STEP
        };
        if exact { Ok(()) } else { Err(self.passed(at)) }
    }

    const fn passed(&self, at: u64) -> Passed {
        Passed {
            target: self.target,
            at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_up_to_the_margin_and_steps_the_rest() {
        let mut landing = Landing::new(1000, 8);
        assert_eq!(
            landing.next(0, || Place::Boundary),
            Ok(Move::Arm { after: 992 })
        );
        assert_eq!(landing.next(995, || Place::Boundary), Ok(Move::Step));
        assert_eq!(landing.next(995, || Place::Boundary), Ok(Move::Step));
        assert_eq!(landing.next(996, || Place::Repeat), Ok(Move::StepOver));
        assert_eq!(landing.next(1000, || Place::Repeat), Ok(Move::Arrived));
    }

    #[test]
    fn a_target_within_the_margin_is_stepped_to() {
        let mut landing = Landing::new(8, 8);
        assert_eq!(landing.next(0, || Place::Boundary), Ok(Move::Step));
        assert_eq!(
            Landing::new(9, 8).next(0, || Place::Boundary),
            Ok(Move::Arm { after: 1 })
        );
    }

    #[test]
    fn passing_is_an_error() {
        let mut landing = Landing::new(100, 10);
        let passed = |at| Err(Passed { target: 100, at });
        assert_eq!(landing.next(101, || Place::Boundary), passed(101));
        // The whole margin was skidded: what has happened at this count already cannot be told.
        assert_eq!(
            landing.next(5, || Place::Boundary),
            Ok(Move::Arm { after: 85 })
        );
        assert_eq!(landing.next(100, || Place::Boundary), passed(100));
        assert_eq!(landing.reached(100), Ok(()));
        let mut exact = Landing::new(100, 0);
        assert_eq!(
            exact.next(5, || Place::Boundary),
            Ok(Move::Arm { after: 95 })
        );
        assert_eq!(exact.next(100, || Place::Repeat), Ok(Move::Arrived));
    }

    #[test]
    fn only_a_step_may_end_behind_a_shadow() {
        let passed = |at| Err(Passed { target: 100, at });
        let mut landing = Landing::new(100, 10);
        assert_eq!(
            landing.next(0, || Place::Boundary),
            Ok(Move::Arm { after: 90 })
        );
        assert_eq!(landing.reached(100), passed(100));
        assert_eq!(landing.reached(101), passed(101));
        assert_eq!(landing.next(99, || Place::Boundary), Ok(Move::Step));
        assert_eq!(landing.reached(100), Ok(()));
        assert_eq!(landing.reached(101), Ok(()));
        assert_eq!(landing.reached(102), passed(102));
        assert_eq!(landing.reached(99), passed(99));
    }

    #[test]
    fn where_the_guest_stands_is_asked_only_within_the_margin() {
        let mut landing = Landing::new(100, 10);
        let never = || -> Place { panic!("asked") };
        assert_eq!(landing.next(5, never), Ok(Move::Arm { after: 85 }));
        assert_eq!(Landing::new(100, 10).next(100, never), Ok(Move::Arrived));
    }
}
