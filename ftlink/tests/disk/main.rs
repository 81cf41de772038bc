//! The model check of the arbiter on a shared disk: every order of the two hosts' reads and writes
//! within bounds, with torn, stray and failing writes and crashes between any two of them; and a
//! mistake for each assumption to show that the invariants notice it.
//!
//! `DUET_MODEL_FULL=1` raises the bounds.

mod rules;
mod world;

use ftlink::arbiter::Ask;
use proptest::prelude::*;
use stateright::{Checker, HasDiscoveries, Model, Property};

use world::{Action, Budget, Bug, Script, Violation, World};

const BOTH_CLAIM: Script = [&[Ask::Claim, Ask::Query], &[Ask::Claim, Ask::Query]];

const EACH_CLAIMS: Script = [&[Ask::Claim], &[Ask::Claim]];

/// The first host comes and goes; the second asks once.
const ONE_REBOOTS: Script = [&[Ask::Claim, Ask::Claim], &[Ask::Claim]];

struct Scenario {
    start: World,
}

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violation.is_none() {
            world.actions(actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        world.step(action)?;
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("one history", |_, world: &World| {
            world.violation.is_none()
        })]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.is_within()
    }
}

fn full() -> bool {
    std::env::var_os("DUET_MODEL_FULL").is_some()
}

fn bound<T>(value: T, more: T) -> T {
    if full() { more } else { value }
}

fn explore(name: &str, budget: Budget, script: Script) {
    let start = World::new(budget, script, None);
    let checker = Scenario { start }.checker().threads(2).spawn_bfs().join();
    println!(
        "disk {name}: {} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    if let Some(path) = checker.discovery("one history") {
        let last = path.last_state().clone();
        panic!(
            "{name}: {:?} after {:?}\nin {last:#?}",
            last.violation,
            path.into_actions()
        );
    }
}

fn notices(bug: Bug, budget: Budget, script: Script, expected: Violation) {
    let start = World::new(budget, script, Some(bug));
    let checker = Scenario { start }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::Any)
        .spawn_dfs()
        .join();
    let path = checker.discovery("one history");
    let path = path.unwrap_or_else(|| panic!("{bug:?} is not noticed"));
    let violation = path.last_state().violation;
    println!(
        "disk {bug:?}: {violation:?} after {} unique states, in {} steps",
        checker.unique_state_count(),
        path.into_actions().len(),
    );
    assert_eq!(violation, Some(expected));
}

const QUIET: Budget = Budget {
    crashes: [0, 0],
    in_writes: false,
    tears: 0,
    failures: 0,
    ballots: 4,
};

const ONE_CRASH: Budget = Budget {
    crashes: [1, 0],
    ..QUIET
};

#[test]
fn both_hosts_claiming_at_once_break_nothing() {
    let ballots = bound(4, 6);
    explore("both claim", Budget { ballots, ..QUIET }, BOTH_CLAIM);
}

#[test]
fn torn_sectors_break_nothing() {
    let budget = Budget {
        tears: 2,
        ballots: bound(3, 4),
        ..QUIET
    };
    explore("torn", budget, bound(EACH_CLAIMS, BOTH_CLAIM));
}

#[test]
fn a_crash_between_any_two_operations_breaks_nothing() {
    let budget = Budget {
        crashes: bound([1, 0], [1, 1]),
        ballots: bound(3, 4),
        ..QUIET
    };
    explore("crash", budget, BOTH_CLAIM);
}

#[test]
fn a_write_of_a_dead_boot_that_lands_late_breaks_nothing() {
    let budget = Budget {
        crashes: [1, 0],
        in_writes: !full(),
        tears: bound(0, 1),
        ballots: 4,
        ..QUIET
    };
    explore("late writes", budget, ONE_REBOOTS);
}

#[test]
fn a_write_that_failed_and_lands_all_the_same_breaks_nothing() {
    let budget = Budget {
        failures: 1,
        tears: bound(0, 1),
        ballots: 3,
        ..QUIET
    };
    explore("failed writes", budget, bound(EACH_CLAIMS, BOTH_CLAIM));
}

#[test]
fn cached_reads_are_noticed() {
    notices(Bug::CachedReads, QUIET, BOTH_CLAIM, Violation::Forked);
}

#[test]
fn writes_reported_before_they_are_done_are_noticed() {
    notices(Bug::EarlyDone, QUIET, ONE_REBOOTS, Violation::Forked);
}

#[test]
fn a_boot_that_forgets_the_one_before_is_noticed() {
    notices(Bug::Forgets, ONE_CRASH, ONE_REBOOTS, Violation::Forked);
}

#[test]
fn a_single_copy_is_noticed() {
    notices(Bug::OneCopy, ONE_CRASH, ONE_REBOOTS, Violation::Forked);
}

#[test]
fn words_written_over_the_ones_before_are_noticed() {
    let budget = Budget { tears: 1, ..QUIET };
    notices(Bug::OneSector, budget, BOTH_CLAIM, Violation::Forked);
}

/// Whatever the hosts and the disk were doing when one of them fell silent for good, the other one's
/// request is answered.
fn whoever_is_left_is_answered(moves: &[u16], left: usize) {
    let budget = Budget {
        crashes: [2, 2],
        in_writes: false,
        tears: 3,
        failures: 2,
        ballots: u64::MAX,
    };
    let script: Script = [&[Ask::Claim; 64], &[Ask::Claim; 64]];
    let mut world = World::new(budget, script, None);
    for choice in moves {
        let mut actions = Vec::new();
        world.actions(&mut actions);
        let action = actions[usize::from(*choice) % actions.len()];
        let mut next = world.clone();
        if next.step(action).is_some() {
            world = next;
        }
        assert_eq!(world.violation, None);
    }
    world.fall_silent(1 - left);
    if world.hosts[left].is_none() {
        world.step(Action::Boot(left)).expect("it was down");
    }
    assert!(world.finish(left), "not answered: {world:#?}");
    assert_eq!(world.violation, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if full() { 20_000 } else { 400 }))]
    #[test]
    fn random_orders_break_nothing_and_whoever_is_left_is_answered(
        moves in prop::collection::vec(any::<u16>(), 0..400), left in 0..2_usize,
    ) {
        whoever_is_left_is_answered(&moves, left);
    }
}
