//! A processor with a counter that stops late, and proof that every landing on it is exact or fails loudly.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::landing::{Landing, Move, Passed, Place};
use crate::random::Random;

/// One instruction of a program.
#[derive(Clone, Copy, Debug)]
enum Op {
    Plain,
    /// So many iterations, at least 1; counts as one instruction.
    Repeat(u8),
    /// Faults once: the delivery takes a step and retires nothing, then the handler's first instruction does.
    Fault,
    /// Exits before it executes.
    Exit,
    /// So many iterations, then it faults for good: its place is the handler's, and it has not retired.
    RepeatFaults(u8),
    /// Nothing stops it behind this, only behind the instruction that follows.
    LoadSs,
}

/// Where the processor is: everything it does shows here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    instruction: usize,
    /// Iterations done, or the fault delivered.
    within: u8,
    count: u64,
}

/// Why it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Exit,
    Local,
    End,
}

struct Processor<'a> {
    program: &'a [Op],
    state: State,
    random: Random,
    /// The most that the counter stops late, in things done.
    skid: u64,
}

impl Processor<'_> {
    /// Does the next thing, unless that is an exit, or the program has ended.
    fn work(&mut self) -> Option<Stop> {
        let state = &mut self.state;
        let last = match self.program.get(state.instruction) {
            None => return Some(Stop::End),
            Some(Op::Exit) => return Some(Stop::Exit),
            Some(Op::Plain | Op::LoadSs) => 0,
            Some(Op::Repeat(iterations)) => iterations - 1,
            Some(Op::Fault) => 1,
            Some(Op::RepeatFaults(iterations)) if state.within == *iterations => {
                state.instruction += 1;
                state.within = 0;
                return None;
            }
            Some(Op::RepeatFaults(_)) => u8::MAX,
        };
        if state.within == last {
            self.retire();
        } else {
            state.within += 1;
        }
        None
    }

    fn retire(&mut self) {
        self.state.instruction += 1;
        self.state.within = 0;
        self.state.count += 1;
    }

    /// The next thing is the delivery of a fault that has been raised.
    fn is_faulting(&self) -> bool {
        match self.program.get(self.state.instruction) {
            Some(Op::RepeatFaults(iterations)) => self.state.within == *iterations,
            _ => false,
        }
    }

    fn is_in_shadow(&self) -> bool {
        let before = self.state.instruction.wrapping_sub(1);
        self.state.within == 0 && matches!(self.program.get(before), Some(Op::LoadSs))
    }

    fn place(&self) -> Place {
        match self.program.get(self.state.instruction) {
            Some(Op::Repeat(_) | Op::RepeatFaults(_)) if !self.is_faulting() => Place::Repeat,
            _ => Place::Boundary,
        }
    }

    /// Runs; `after` instructions on the counter overflows, and stops it late.
    fn run(&mut self, after: u64) -> Stop {
        self.run_to(after, |_| false)
    }

    /// The same, unless it comes by where it `ends`.
    fn run_to(&mut self, after: u64, ends: impl Fn(&Self) -> bool) -> Stop {
        let overflow = self.state.count + after;
        let mut late = self.random.below(self.skid + 1);
        loop {
            if ends(self) {
                return Stop::Local;
            }
            if self.state.count >= overflow {
                if late == 0 && !self.is_in_shadow() {
                    return Stop::Local;
                }
                late = late.saturating_sub(1);
            }
            if let Some(stop) = self.work() {
                return stop;
            }
        }
    }

    /// Does one thing, with the one in the shadow behind it.
    fn step(&mut self) -> Option<Stop> {
        let stop = self.work();
        if stop.is_none() && self.is_in_shadow() {
            return self.work();
        }
        stop
    }

    /// Runs to a breakpoint behind the repeated instruction; a fault, which would lead past it, ends that too.
    fn step_over(&mut self) -> Stop {
        let behind = match self.program.get(self.state.instruction) {
            Some(Op::Repeat(_)) => Some(self.state.instruction + 1),
            _ => None,
        };
        self.run_to(2, |processor| {
            Some(processor.state.instruction) == behind || processor.is_faulting()
        })
    }

    /// Where the guest is to be handed back for `target`.
    fn is_behind(&self, target: u64) -> bool {
        self.state.count >= target && !self.is_in_shadow()
    }

    /// Goes to `target` by the landing logic, handling exits on the way. `None`: the program ended before.
    fn land(&mut self, target: u64, margin: u64) -> Result<Option<State>, Passed> {
        let mut landing = Landing::new(target, margin);
        loop {
            if self.is_behind(target) {
                landing.reached(self.state.count)?;
                return Ok(Some(self.state));
            }
            let at = self.state.count.min(target);
            let stop = match landing.next(at, || self.place())? {
                Move::Arm { after } => Some(self.run(after)),
                // Arrived in a shadow: out of it.
                Move::Step | Move::Arrived => self.step(),
                Move::StepOver => Some(self.step_over()),
            };
            match stop {
                Some(Stop::End) => return Ok(None),
                // Handled and stepped over; the way to the target starts anew, as it does for a caller.
                Some(Stop::Exit) => {
                    if self.state.count >= target {
                        landing.reached(self.state.count)?;
                    }
                    self.retire();
                    landing = Landing::new(target, margin);
                }
                Some(Stop::Local) | None => {}
            }
        }
    }
}

/// The one state in which a point is: as soon as its count is reached, or behind the shadow there. `None`: the program ends
/// before.
fn point(program: &[Op], count: u64) -> Option<State> {
    let mut processor = processor(program, 0, 1);
    while !processor.is_behind(count) {
        match processor.work() {
            None => {}
            Some(Stop::Exit) => processor.retire(),
            Some(Stop::End | Stop::Local) => return None,
        }
    }
    Some(processor.state)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop_oneof![
        8 => Just([Op::Plain].into()),
        2 => (1_u8..40).prop_map(|iterations| [Op::Repeat(iterations)].into()),
        1 => (0_u8..40).prop_map(|iterations| [Op::RepeatFaults(iterations)].into()),
        1 => Just([Op::Fault].into()),
        1 => Just([Op::Exit].into()),
        1 => Just([Op::LoadSs, Op::Plain].into()),
        1 => Just([Op::LoadSs, Op::Exit].into()),
    ]
}

fn program() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(ops(), 1..100).prop_map(|ops| ops.concat())
}

fn processor(program: &[Op], skid: u64, seed: u64) -> Processor<'_> {
    Processor {
        program,
        state: State::default(),
        random: Random::new(seed),
        skid,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A skid within the margin: every landing is exact, one after another.
    #[test]
    fn every_landing_is_exact(
        program in program(),
        distances in proptest::collection::vec(1_u64..60, 1..12),
        margin in 2_u64..40,
        seed: u64,
    ) {
        // Less than the margin, by one more where it is late because of a shadow.
        let mut processor = processor(&program, margin - 2, seed);
        let mut target = 0;
        for distance in distances {
            target += distance;
            match processor.land(target, margin) {
                Ok(Some(state)) => prop_assert_eq!(Some(state), point(&program, target)),
                Ok(None) => {
                    prop_assert_eq!(point(&program, target), None);
                    break;
                }
                Err(passed) => prop_assert!(false, "{passed:?}"),
            }
        }
    }

    /// A skid beyond the margin: a landing is exact or an error, never wrong.
    #[test]
    fn a_larger_skid_is_noticed(
        program in program(),
        target in 1_u64..100,
        margin in 1_u64..10,
        beyond in 1_u64..60,
        seed: u64,
    ) {
        let mut processor = processor(&program, margin + beyond, seed);
        if let Ok(Some(state)) = processor.land(target, margin) {
            prop_assert_eq!(Some(state), point(&program, target));
        }
    }
}

#[test]
fn a_skid_beyond_the_margin_passes() {
    let program = [Op::Plain; 1000];
    let passed = (0..200)
        .filter(|seed| processor(&program, 50, *seed + 1).land(500, 10).is_err())
        .count();
    assert!((100..200).contains(&passed), "{passed}");
}

#[test]
fn an_overflow_at_a_deterministic_exit_still_lands() {
    // The counter overflows where the exit is, and in front of it, and behind it.
    for exit_at in 80..110 {
        let mut program: Vec<_> = [Op::Plain; 200].into();
        program[exit_at] = Op::Exit;
        for seed in 1..20 {
            let landed = processor(&program, 9, seed).land(100, 10);
            assert_eq!(landed, Ok(point(&program, 100)));
        }
    }
}

#[test]
fn no_landing_is_inside_a_repeated_instruction() {
    let mut program: Vec<_> = [Op::Plain; 100].into();
    program[50] = Op::Repeat(200);
    for target in [50, 51, 52] {
        for seed in 1..100 {
            let landed = processor(&program, 7, seed).land(target, 8);
            assert_eq!(landed, Ok(point(&program, target)));
        }
    }
}

#[test]
fn a_repeated_instruction_that_faults_does_not_run_away() {
    let mut program: Vec<_> = [Op::Plain; 100].into();
    program[50] = Op::RepeatFaults(30);
    for target in [50, 51, 52] {
        for seed in 1..100 {
            let landed = processor(&program, 7, seed).land(target, 9);
            assert_eq!(landed, Ok(point(&program, target)));
        }
    }
}

#[test]
fn a_point_in_a_shadow_is_behind_it() {
    let mut program: Vec<_> = [Op::Plain; 100].into();
    program[50] = Op::LoadSs;
    for (target, at) in [(50, 50), (51, 52), (52, 52)] {
        for seed in 1..100 {
            let landed = processor(&program, 7, seed).land(target, 9);
            assert_eq!(landed.map(|s| s.map(|s| s.count)), Ok(Some(at)));
        }
    }
}
