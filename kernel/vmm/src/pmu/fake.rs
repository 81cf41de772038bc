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
            Some(Op::Plain) => 0,
            Some(Op::Repeat(iterations)) => iterations - 1,
            Some(Op::Fault) => 1,
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

    fn place(&self) -> Place {
        match self.program.get(self.state.instruction) {
            Some(Op::Repeat(_)) => Place::Repeat,
            _ => Place::Boundary,
        }
    }

    /// Runs; `after` instructions on the counter overflows, and stops it late.
    fn run(&mut self, after: u64) -> Stop {
        let overflow = self.state.count + after;
        let mut late = self.random.below(self.skid + 1);
        loop {
            if self.state.count >= overflow {
                if late == 0 {
                    return Stop::Local;
                }
                late -= 1;
            }
            if let Some(stop) = self.work() {
                return stop;
            }
        }
    }

    /// Runs to a breakpoint behind the repeated instruction.
    fn step_over(&mut self) -> Option<Stop> {
        let at = self.state.instruction;
        while self.state.instruction == at {
            if let Some(stop) = self.work() {
                return Some(stop);
            }
        }
        None
    }

    /// Goes to `target` by the landing logic, handling exits on the way. `None`: the program ended before.
    fn land(&mut self, target: u64, margin: u64) -> Result<Option<State>, Passed> {
        let mut landing = Landing::new(target, margin);
        loop {
            let stop = match landing.next(self.state.count, self.place())? {
                Move::Arrived => return Ok(Some(self.state)),
                Move::Arm { after } => Some(self.run(after)),
                Move::Step => self.work(),
                Move::StepOver => self.step_over(),
            };
            match stop {
                Some(Stop::End) => return Ok(None),
                // Handled and stepped over; the way to the target starts anew, as it does for a caller.
                Some(Stop::Exit) => {
                    self.retire();
                    landing = Landing::new(target, margin);
                }
                Some(Stop::Local) | None => {}
            }
        }
    }
}

/// The one state in which a point is: as soon as its count is reached.
fn point(program: &[Op], count: u64) -> Option<State> {
    let instruction = usize::try_from(count).ok()?;
    (instruction <= program.len()).then_some(State {
        instruction,
        within: 0,
        count,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => Just(Op::Plain),
        2 => (1_u8..40).prop_map(Op::Repeat),
        1 => Just(Op::Fault),
        1 => Just(Op::Exit),
    ]
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
        program in proptest::collection::vec(op(), 1..120),
        distances in proptest::collection::vec(1_u64..60, 1..12),
        margin in 0_u64..40,
        seed: u64,
    ) {
        // One thing less than the margin; exact if there is none.
        let mut processor = processor(&program, margin.saturating_sub(1), seed);
        let mut target = 0;
        for distance in distances {
            target += distance;
            match processor.land(target, margin) {
                Ok(Some(state)) => prop_assert_eq!(Some(state), point(&program, target)),
                Ok(None) => {
                    prop_assert!(target > program.len() as u64);
                    break;
                }
                Err(passed) => prop_assert!(false, "{passed:?}"),
            }
        }
    }

    /// A skid beyond the margin: a landing is exact or an error, never wrong.
    #[test]
    fn a_larger_skid_is_noticed(
        program in proptest::collection::vec(op(), 1..120),
        target in 1_u64..100,
        margin in 0_u64..10,
        beyond in 1_u64..60,
        seed: u64,
    ) {
        prop_assume!(margin > 0);
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
