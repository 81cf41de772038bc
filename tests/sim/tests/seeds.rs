//! The simulator over many seeds, twice the same, and with defects that each check must catch.

use sim::{Bug, Options, Violation, run, sweep};

/// Seeds of the ordinary tests, and of the long ones.
const SEEDS: u64 = 500;
const FULL_SEEDS: u64 = 10_000;

#[test]
fn every_seed_keeps_every_rule() {
    let seeds = if std::env::var_os("DUET_TEST_FULL").is_some() {
        FULL_SEEDS
    } else {
        SEEDS
    };
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let sweep = sweep(0, seeds, threads, &Options::default());
    if let Some(failure) = &sweep.failure {
        panic!("{failure}");
    }
    assert_eq!(sweep.passed, seeds);
    println!("{:#?}", sweep.total);
    // The seeds must reach what they are there for.
    assert!(sweep.total.takeovers > seeds / 10);
    assert!(sweep.total.fenced > seeds / 50);
    assert!(sweep.total.late_releases > 0);
    assert!(sweep.total.releases > seeds * 100);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [3, 14, 15, 92] {
        let first = run(seed, &Options::default()).unwrap();
        let second = run(seed, &Options::default()).unwrap();
        assert_eq!(first, second);
        let traced = Options {
            trace: true,
            ..Options::default()
        };
        assert_eq!(run(seed, &traced).unwrap().digest, first.digest);
    }
    let other = run(65, &Options::default()).unwrap();
    assert_ne!(other.digest, run(3, &Options::default()).unwrap().digest);
}

/// A defect must lead to the violation it is there for within `seeds` seeds; the failure names its seed
/// and shows its trace.
fn assert_caught(bug: Bug, seeds: u64, expected: fn(&Violation) -> bool) {
    let options = Options { bug, trace: false };
    let failure = (0..seeds)
        .filter_map(|seed| run(seed, &options).err())
        .find(|failure| expected(&failure.violation));
    let failure = failure.unwrap_or_else(|| panic!("{bug:?} was not caught in {seeds} seeds"));
    let text = failure.to_string();
    assert!(text.contains(&format!("--seed {}", failure.seed)));
    assert!(!failure.trace.is_empty());
    println!("{bug:?}: seed {}: {}", failure.seed, failure.violation);
}

#[test]
fn defects_of_hosts_are_caught() {
    use Violation::{
        AckedUnheld, NotHealed, OutputsDiffer, ReleasedUnheld, ReleasedWhileMute, ReplayDiffers,
        SurvivorLacks,
    };
    assert_caught(Bug::ReleasesUngated, 20, |v| {
        matches!(v, ReleasedUnheld { .. })
    });
    assert_caught(Bug::CountsUnheld, 20, |v| matches!(v, AckedUnheld { .. }));
    assert_caught(Bug::ActsWithoutVerdict, 100, |v| {
        matches!(v, ReleasedWhileMute(..))
    });
    assert_caught(Bug::ActsWhenFenced, 200, |v| {
        matches!(v, ReleasedWhileMute(..))
    });
    assert_caught(Bug::SkipsDraining, 200, |v| {
        matches!(v, SurvivorLacks { .. })
    });
    assert_caught(Bug::ReplaysWrongly, 20, |v| {
        matches!(v, ReplayDiffers { .. })
    });
    assert_caught(Bug::NeverAsks, 5, |v| matches!(v, NotHealed(_)));
    assert_caught(Bug::ChangesLateOutputs, 50, |v| {
        matches!(v, ReleasedUnheld { .. } | OutputsDiffer(_))
    });
}

#[test]
fn defects_of_the_machine_around_the_link_are_caught() {
    use Violation::{GuestLost, Spins, TooManyLate, TwoActors, UnfencedItself, WrongEntry};
    assert_caught(Bug::NeverSleeps, 5, |v| matches!(v, Spins));
    assert_caught(Bug::RepeatsOutputs, 200, |v| matches!(v, TooManyLate(_)));
    assert_caught(Bug::GivesUp, 200, |v| matches!(v, GuestLost));
    assert_caught(Bug::DropsEntries, 5, |v| matches!(v, WrongEntry { .. }));
    assert_caught(Bug::Unfences, 200, |v| matches!(v, UnfencedItself(..)));
    assert_caught(Bug::ForgesVerdict, 200, |v| matches!(v, TwoActors(..)));
}

#[test]
fn defects_of_the_arbiter_are_caught() {
    use Violation::{GrantedStranger, GrantedTwice};
    assert_caught(Bug::ArbiterForgets, 500, |v| matches!(v, GrantedTwice(_)));
    assert_caught(Bug::ArbiterGrantsAnyone, 500, |v| {
        matches!(v, GrantedStranger(_))
    });
}
