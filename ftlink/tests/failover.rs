//! The detector's four suspicions, the role table as `docs/failover.md` prints it, and the tests that
//! the documents name.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use ftlink::detector::{Config, Detector, Progress, Suspicion};
use ftlink::ids::{Instant, LogPos};
use ftlink::role::{Cell, Gate, Input, Role};

const fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// Polls every 5 ms up to `until`, hearing the peer all the while if `heard`.
fn first(progress: impl Fn(u64) -> Progress, heard: bool) -> Option<(u64, Suspicion)> {
    let config = Config::hardware();
    let mut detector = Detector::new(at(0));
    (0..2_000).step_by(5).find_map(|ms| {
        if heard {
            detector.on_heard(at(ms), 1);
        }
        detector
            .poll(&config, at(ms), &progress(ms))
            .map(|suspicion| (ms, suspicion))
    })
}

#[test]
fn silence_on_every_path_is_suspect_after_100_ms() {
    assert_eq!(
        first(|_| Progress::default(), false),
        Some((100, Suspicion::Silence))
    );
    assert_eq!(first(|_| Progress::default(), true), None);
}

#[test]
fn each_stall_is_suspect_after_500_ms_although_heartbeats_come() {
    let unacked = |_| Progress {
        oldest_unacked: Some(at(20)),
        ..Progress::default()
    };
    assert_eq!(first(unacked, true), Some((520, Suspicion::AckStall)));
    let full = |_| Progress {
        ring_full_since: Some(at(40)),
        ..Progress::default()
    };
    assert_eq!(first(full, true), Some((540, Suspicion::RingStall)));
    let replay = |ms: u64| Progress {
        held: LogPos(if ms < 100 { 0 } else { 5 }),
        ..Progress::default()
    };
    assert_eq!(first(replay, true), Some((600, Suspicion::ReplayStall)));
    let moving = |ms: u64| Progress {
        held: LogPos(ms / 50 + 5),
        verified: LogPos(ms / 50),
        ..Progress::default()
    };
    assert_eq!(first(moving, true), None);
}

#[test]
fn a_host_that_did_not_look_does_not_blame_its_peer() {
    let config = Config::hardware();
    let mut detector = Detector::new(at(0));
    let idle = Progress::default();
    assert_eq!(detector.poll(&config, at(5), &idle), None);
    assert_eq!(detector.poll(&config, at(3_000), &idle), None);
    // From here it looks, and hears nothing.
    assert_eq!(detector.poll(&config, at(3_040), &idle), None);
    assert_eq!(
        detector.poll(&config, at(3_080), &idle),
        Some(Suspicion::Silence)
    );
    assert!(detector.poll_at(&config, &idle) <= at(3_080));
}

#[test]
fn only_acting_roles_release_and_only_following_ones_accept() {
    for role in Role::ALL {
        assert_eq!(Role::from_code(role.code()), Some(role));
        assert_eq!(role.gate() != Gate::Shut, role.offers_log(), "{role}");
        assert!(!(role.accepts_entries() && role.offers_log()), "{role}");
    }
    assert_eq!(Role::from_code(16), None);
}

#[test]
fn no_input_but_a_verdict_the_word_or_the_end_of_draining_makes_a_host_act() {
    for role in Role::ALL {
        for input in Input::ALL {
            let Cell::Go(next) = role.on(input) else {
                continue;
            };
            if next.gate() != Gate::Shut && role.gate() == Gate::Shut {
                let allowed = [
                    Input::Granted,
                    Input::Confirmed,
                    Input::Drained,
                    Input::DrainedOnWord,
                ];
                assert!(
                    allowed.contains(&input),
                    "{role} on {input:?} becomes {next}"
                );
            }
            assert_ne!(
                role,
                Role::Fenced,
                "a fenced host becomes {next} on {input:?}"
            );
        }
    }
}

/// The table as the document prints it: one line for each cell that does something.
fn table() -> String {
    let mut text = String::from("| role | input | becomes |\n|---|---|---|\n");
    for role in Role::ALL {
        for input in Input::ALL {
            if let Cell::Go(next) = role.on(input) {
                writeln!(text, "| {role} | {input:?} | {next} |").expect("written");
            }
        }
        for (cell, what) in [(Cell::Keep, "stays"), (Cell::Refuse, "refuses")] {
            let inputs: Vec<_> = Input::ALL
                .into_iter()
                .filter(|input| role.on(*input) == cell)
                .map(|input| format!("{input:?}"))
                .collect();
            if !inputs.is_empty() {
                writeln!(text, "| {role} | {} | {what} |", inputs.join(", ")).expect("written");
            }
        }
    }
    text
}

#[test]
fn the_document_prints_the_table() {
    let document = include_str!("../../docs/failover.md");
    let table = table();
    assert!(
        document.contains(&table),
        "docs/failover.md should hold this table:\n{table}"
    );
}

/// The source of every test that a document may name.
fn sources() -> String {
    let ftlink = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = ["src", "tests", "witness", "../tests/sim"]
        .iter()
        .map(|folder| ftlink.join(folder))
        .collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(&path).expect("readable");
            }
        }
    }
    text
}

/// Names of tests in a piece of a document: long names in code marks, or their begin and a dot-dot-dot.
fn tests_named(text: &str) -> Vec<&str> {
    let code = text.split('`').skip(1).step_by(2);
    let word =
        |letter: char| !(letter.is_ascii_lowercase() || matches!(letter, '0'..='9' | '_' | '…'));
    code.flat_map(|code| code.split(word))
        .filter(|name| name.ends_with('…') || name.matches('_').count() >= 3)
        .collect()
}

fn exists(sources: &str, name: &str) -> bool {
    match name.strip_suffix('…') {
        Some(begin) => sources.contains(&format!("fn {begin}")),
        None => sources.contains(&format!("fn {name}(")),
    }
}

#[test]
fn every_row_of_the_takeover_tables_names_a_test_that_exists() {
    let document = include_str!("../../docs/failover.md");
    let (cases, _) = document.split_once("## Role table").expect("a role table");
    let sources = sources();
    let mut rows = 0;
    let lines = cases.lines().filter(|line| line.starts_with("| "));
    for line in lines.filter(|line| !line.starts_with("| fault") && !line.starts_with("| mistake"))
    {
        let names = tests_named(line);
        assert!(!names.is_empty(), "no test in {line}");
        for name in names {
            assert!(exists(&sources, name), "{name} is no test: {line}");
        }
        rows += 1;
    }
    assert!(rows > 30, "{rows} rows");
}

#[test]
fn every_test_named_by_the_protocol_exists() {
    let document = include_str!("../../docs/protocol.md");
    let sources = sources();
    let names = tests_named(document);
    assert!(names.len() > 25, "{} names", names.len());
    for name in names {
        assert!(exists(&sources, name), "{name} is no test");
    }
}
