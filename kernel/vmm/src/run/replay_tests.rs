//! Recorded and replayed: the same, however either is sliced; and what is not the same is found.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::pc_tests::pc_of;
use super::tests::at;
use super::*;
use crate::cpu::{CounterKind, PortAccess};
use crate::log::{Entry, Input, Point, What};
use crate::machine::Operation;
use crate::nondet::{Door, Mode};
use crate::random::Random;
use crate::record::Recorder;
use crate::replay::{Difference, Replayer};
use crate::testing::{ScriptedVcpu, Step, TestHost};
use arch::msr;
use arch::regs::{CpuState, Gpr};

const CODE: u32 = 0x4000;

/// A PC that follows a script, with interrupts on and its APIC timer ticking every 50 µs.
fn pc(script: &[Step], mode: Mode) -> Machine<ScriptedVcpu> {
    let mut state = CpuState::protected_mode(CODE);
    state.rflags |= Rflags::IF;
    let mut vcpu = ScriptedVcpu::new(state, script);
    vcpu.free_running = true;
    let mut host = TestHost::default();
    let mut m = pc_of(vcpu, Door::new(&mut host, Mode::Live));
    let mut door = Door::default();
    for (number, value) in [
        (msr::APIC_BASE, 0xfee0_0d00),
        (msr::X2APIC_BASE + 0xf, 0x1ff),
        (msr::X2APIC_BASE + 0x3e, 0xb),
        (msr::X2APIC_BASE + 0x32, 1 << 17 | 0x51),
        (msr::X2APIC_BASE + 0x38, 50_000),
    ] {
        m.board
            .write_msr(&mut host, &mut door, number, value)
            .expect("a register of the APIC");
    }
    m.door = Door::new(&mut host, mode);
    m.logged = !m.door.is_live();
    m
}

fn port(port: u16, write: bool) -> Exit {
    Exit::Port(PortAccess {
        port,
        size: 1,
        write,
        string: false,
    })
}

/// A guest's life: work, questions, console output, waiting; then it switches itself off.
fn script(random: &mut Random, steps: usize) -> Vec<Step> {
    let mut script: Vec<_> = (0..steps)
        .map(|_| {
            let exit = match random.below(12) {
                0..4 => Exit::Rdtsc,
                4 => Exit::Cpuid,
                5 => port(0x40, false),
                6 => port(0x3f8, true),
                7 => port(0x3f8, false),
                8 => Exit::Hlt,
                // #GP: the instruction is not retired, and the next state has the same count.
                9 => Exit::Rdpmc,
                10 => Exit::Rdrand {
                    register: Gpr::Rbx,
                    size: 8,
                },
                _ => Exit::Hypercall,
            };
            at(random.magnitude(16), exit)
        })
        .collect();
    script.push(at(10, port(0x40, false)));
    script
}

/// Runs to the end with a host whose clock, randomness and typist are as `noise` wants.
fn run(m: &mut Machine<ScriptedVcpu>, noise: u64) -> Option<Stop> {
    let mut random = Random::new(noise);
    let mut host = TestHost::default();
    for _ in 0..1_000_000 {
        host.random = random.draw();
        if random.below(30) == 0 {
            host.typed.push_back(random.draw() as u8);
        }
        if random.below(200) == 0 {
            m.operate(Operation::Nmi);
        }
        let before = m.vcpu.state.icount;
        if let Some(stop) = m.run(&mut host, random.magnitude(15)) {
            return Some(stop);
        }
        host.now_ns += m.vcpu.state.icount - before + random.magnitude(12);
        if let Some(until) = m.idle_until() {
            host.now_ns = host.now_ns.max(until.min(1 << 60));
        }
        if m.vcpu.script.is_empty() {
            m.vcpu.script.push_back(at(100_000, Exit::Cpuid));
            m.operate(Operation::Stop);
        }
    }
    None
}

fn record(script: &[Step], noise: u64, every_entry: bool) -> (Machine<ScriptedVcpu>, Vec<u8>) {
    let recorder = Recorder::new(&[], every_entry);
    let mut m = pc(script, Mode::Recording(Box::new(recorder)));
    assert_eq!(run(&mut m, noise), Some(Stop::SwitchedOff));
    let recorder = m.door.recorder().expect("it records");
    let mut log = vec![0; recorder.waiting()];
    recorder.take(&mut log);
    (m, log)
}

fn following(log: &[u8]) -> Mode {
    let mut replayer = Replayer::new();
    assert_eq!(replayer.feed(log), log.len());
    replayer.close();
    Mode::Replaying(Box::new(replayer))
}

fn replay(script: &[Step], log: &[u8], slices: Option<u64>, noise: u64) -> Machine<ScriptedVcpu> {
    let mut m = pc(script, following(log));
    if let Some(seed) = slices {
        m.slice(seed);
    }
    run(&mut m, noise);
    m
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_replay_is_the_recorded_run_however_it_is_sliced(seed: u64, noise: u64, slices: u64) {
        let script = script(&mut Random::new(seed), 300);
        let (recorded, log) = record(&script, noise, seed.is_multiple_of(2));
        for slices in [None, Some(slices)] {
            let replayed = replay(&script, &log, slices, !noise);
            prop_assert_eq!(replayed.divergence(), None);
            prop_assert_eq!(replayed.stopped(), Some(Stop::SwitchedOff));
            prop_assert_eq!(&replayed.vcpu.delivered, &recorded.vcpu.delivered);
            prop_assert_eq!(&replayed.vcpu.state, &recorded.vcpu.state);
        }
    }

    #[test]
    fn a_damaged_log_is_found_out_or_makes_no_difference(
        seed: u64, at in any::<prop::sample::Index>(), bit in 0..8u32
    ) {
        let script = script(&mut Random::new(seed), 60);
        let (recorded, mut log) = record(&script, seed, false);
        *at.get_mut(&mut log) ^= 1 << bit;
        let replayed = replay(&script, &log, None, 1);
        match replayed.stopped() {
            Some(Stop::Diverged) => prop_assert!(replayed.divergence().is_some()),
            // The length of the last entry; or what the operator did, behind which this machine is not run on.
            Some(Stop::LogEnd | Stop::Reset) => {}
            // Nobody read what was typed.
            Some(Stop::SwitchedOff) => {
                prop_assert_eq!(&replayed.vcpu.delivered, &recorded.vcpu.delivered);
                prop_assert_eq!(&replayed.vcpu.state, &recorded.vcpu.state);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_log_that_was_cut_off_is_followed_to_its_end() {
    let script = script(&mut Random::new(5), 100);
    let (_, log) = record(&script, 5, false);
    for end in [0, 1, log.len() / 2] {
        let replayed = replay(&script, &log[..end], Some(3), 1);
        assert_eq!(replayed.stopped(), Some(Stop::LogEnd), "{end}");
    }
    assert!(Stop::LogEnd.is_success());
    // The last entry only says how it ended.
    let replayed = replay(&script, &log[..log.len() - 1], Some(3), 1);
    assert_eq!(replayed.stopped(), Some(Stop::SwitchedOff));
}

#[test]
fn a_replay_can_be_stopped_at_a_point() {
    let script = script(&mut Random::new(7), 100);
    let (_, log) = record(&script, 7, false);
    for point in [
        Point { exits: 0, after: 1 },
        Point {
            exits: 40,
            after: 0,
        },
    ] {
        let mut m = pc(&script, following(&log));
        m.stop_at(point);
        assert_eq!(run(&mut m, 1), Some(Stop::StopPoint));
        assert_eq!(m.point(), point);
        assert_eq!(m.divergence(), None);
    }
}

#[test]
fn a_guest_waits_for_its_log() {
    let script = script(&mut Random::new(6), 100);
    let (recorded, log) = record(&script, 6, false);
    let mut m = pc(&script, Mode::Replaying(Box::default()));
    let mut host = TestHost::default();
    for byte in &log {
        assert_eq!(m.run(&mut host, 1_000_000), None);
        assert_eq!(m.door.replayer().unwrap().feed(&[*byte]), 1);
    }
    run(&mut m, 3);
    assert_eq!(m.divergence(), None);
    assert_eq!(m.stopped(), recorded.stopped());
    assert_eq!(m.vcpu.delivered, recorded.vcpu.delivered);
}

#[test]
fn a_leak_of_the_hosts_clock_is_found_at_the_next_entry() {
    let script: Vec<_> = (0..40).map(|_| at(100, Exit::Rdtsc)).collect();
    let (_, log) = record(&script, 9, true);
    let mut m = pc(&script, following(&log));
    m.door.leak_clock_at(20);
    assert_eq!(run(&mut m, 10), Some(Stop::Diverged));
    let divergence = m.divergence().expect("a divergence");
    assert!(matches!(
        divergence.difference,
        Difference::Digest { .. } | Difference::State { .. }
    ));
    // With a check behind each entry: at the exit behind the leak.
    assert!(divergence.here.exits <= 21, "{divergence:?}");
    assert!(divergence.recorded.is_some());
    let page = divergence.to_string();
    assert!(page.contains("* Rax") && page.contains("  Rbx"), "{page}");
}

#[test]
fn another_guest_is_not_the_one_in_the_log() {
    let script: Vec<_> = (0..40).map(|_| at(100, Exit::Rdtsc)).collect();
    let (_, log) = record(&script, 9, false);
    let mut other = script.clone();
    other[20] = at(100, Exit::Cpuid);
    let m = replay(&other, &log, None, 1);
    assert_eq!(m.stopped(), Some(Stop::Diverged));
    let mut other = script.clone();
    other[20] = at(101, Exit::Rdtsc);
    let m = replay(&other, &log, None, 1);
    assert_eq!(m.stopped(), Some(Stop::Diverged));
    let mut longer = script;
    longer.push(at(0, Exit::Hlt));
    assert_eq!(
        replay(&longer, &log, None, 1).stopped(),
        Some(Stop::Diverged)
    );
}

/// The placed entries of a log.
fn placed(mut log: &[u8]) -> Vec<(Point, What)> {
    let mut decoder = crate::log::Decoder::default();
    let mut placed = Vec::new();
    while !log.is_empty() {
        let (entry, length) = decoder.next(log).expect("a log");
        if let Entry::Placed(point, what) = entry {
            placed.push((point, what));
        }
        log = &log[length..];
    }
    placed
}

#[test]
fn what_comes_between_points_enters_at_the_next_exit_if_that_is_near() {
    let exit = Point { exits: 1, after: 0 };
    let landing = |after| Point { exits: 0, after };
    for (within, work, point) in [
        (1000, 900, exit),
        (1000, 5000, landing(1100)),
        (6000, 5000, exit),
        (6000, 7000, landing(6100)),
    ] {
        let script = [at(100 + work, Exit::Cpuid)];
        let recorder = Recorder::new(&[], false);
        let mut m = pc(&script, Mode::Recording(Box::new(recorder)));
        m.vcpu.prefer_exit = within;
        let mut host = TestHost::default();
        // Stopped by the host between two points.
        m.run(&mut host, 100);
        host.typed.push_back(b'x');
        m.run(&mut host, 100_000);
        m.run(&mut host, 100_000);
        let mut log = [0; 256];
        let length = m.door.recorder().unwrap().take(&mut log);
        let typed = placed(&log[..length])
            .into_iter()
            .find_map(|(point, what)| {
                let What::Input {
                    input: Input::Console(bytes),
                    ..
                } = what
                else {
                    return None;
                };
                Some((point, bytes))
            });
        assert_eq!(typed, Some((point, b"x".to_vec())), "{within} {work}");
    }
}

#[test]
fn without_a_counter_everything_enters_at_exits() {
    let script = script(&mut Random::new(8), 200);
    let recorder = Recorder::new(&[], false);
    let mut m = pc(&script, Mode::Recording(Box::new(recorder)));
    m.vcpu.counter = CounterKind::ExitOrdinal;
    assert_eq!(run(&mut m, 8), Some(Stop::SwitchedOff));
    let recorder = m.door.recorder().unwrap();
    let mut log = vec![0; recorder.waiting()];
    recorder.take(&mut log);
    let placed = placed(&log);
    assert!(placed.len() > 10 && placed.iter().all(|(point, _)| point.after == 0));

    let mut m = pc(&script, following(&log));
    m.vcpu.counter = CounterKind::ExitOrdinal;
    assert_eq!(run(&mut m, 3), Some(Stop::SwitchedOff));
    assert_eq!(m.divergence(), None);
}

#[test]
fn a_guest_waits_while_nobody_takes_its_log() {
    let script: Vec<_> = (0..2_000_000).map(|_| at(0, Exit::Rdtsc)).collect();
    let recorder = Recorder::new(&[], false);
    let mut m = pc(&script, Mode::Recording(Box::new(recorder)));
    let mut host = TestHost::default();
    let mut exits = 0;
    loop {
        host.now_ns += 1_000_000_000;
        m.run(&mut host, 1_000_000);
        if m.point().exits == exits {
            break;
        }
        exits = m.point().exits;
    }
    let recorder = m.door.recorder().unwrap();
    assert!(!recorder.has_room() && recorder.waiting() <= crate::log::ring::RING_BYTES);
    let mut some = vec![0; 1 << 19];
    assert_eq!(recorder.take(&mut some), some.len());
    m.run(&mut host, 1_000_000);
    assert!(m.point().exits > exits);
}

#[test]
fn a_difference_that_passes_is_found() {
    let script = [at(10, Exit::Hypercall); 6];
    let (_, log) = record(&script, 4, false);
    let mut m = pc(&script, following(&log));
    let mut host = TestHost::default();
    // At one exit in the middle, and gone before the log has anything.
    m.vcpu.script.truncate(2);
    m.run(&mut host, 1_000_000);
    m.vcpu.state.gprs[Gpr::R15] = 9;
    m.vcpu.script.push_back(script[0]);
    m.run(&mut host, 1_000_000);
    m.vcpu.state.gprs[Gpr::R15] = 0;
    m.vcpu.script.extend(&script[3..]);
    assert_eq!(run(&mut m, 1), Some(Stop::Diverged));
}

#[test]
fn an_answer_that_nobody_asked_for_is_a_difference() {
    let (_, log) = record(&[at(10, Exit::Rdtsc)], 4, false);
    let m = replay(&[at(10, Exit::Hypercall)], &log, None, 1);
    let found = m.divergence().map(|d| d.difference.clone());
    assert_eq!(found, Some(Difference::NotAsked { left: 1 }));
}

#[test]
fn a_guest_that_runs_without_a_word_is_checked_at_landings() {
    let mut m = pc(&[], Mode::Recording(Box::new(Recorder::new(&[], false))));
    // The timer's interrupt is masked: nothing will come.
    let mut door = Door::default();
    let mut host = TestHost::default();
    let written = m
        .board
        .write_msr(&mut host, &mut door, msr::X2APIC_BASE + 0x32, 1 << 16);
    written.expect("the timer's register");
    let mut log = vec![0; 1 << 16];
    m.vcpu.script.push_back(at(2_000_000_000, Exit::Cpuid));
    for _ in 0..2_000 {
        let before = m.vcpu.state.icount;
        assert_eq!(m.run(&mut host, 1_000_000), None);
        host.now_ns += m.vcpu.state.icount - before;
    }
    let length = m.door.recorder().unwrap().take(&mut log);
    let placed = placed(&log[..length]);
    let time = host.now_ns / 10_000_000;
    assert!(
        (time - 3..=time + 1).contains(&(placed.len() as u64)),
        "{}",
        placed.len()
    );
    assert!(placed.iter().all(|(point, _)| point.exits == 0));
    let parts = placed.iter().filter(|(_, what)| {
        matches!(
            what,
            What::Check {
                memory: Some(_),
                ..
            }
        )
    });
    let (parts, most) = (parts.count() as u64, host.now_ns / 500_000_000);
    assert!((most - 1..=most).contains(&parts), "{parts}");
}

#[test]
fn memory_that_differs_is_found_while_the_guest_runs() {
    let script: Vec<_> = (0..40).map(|_| at(50_000_000, Exit::Rdtsc)).collect();
    let (_, log) = record(&script, 4, false);
    assert_eq!(replay(&script, &log, None, 1).divergence(), None);
    let mut m = pc(&script, following(&log));
    m.memory.put(0x8765, &[1]);
    assert_eq!(run(&mut m, 1), Some(Stop::Diverged));
    let found = m.divergence().map(|d| d.difference.clone());
    let size = m.memory.0.len() as u64;
    assert_eq!(found, Some(Difference::PartOfMemory(0..size.min(2 << 20))));
}

#[test]
fn accessed_bits_are_called_by_their_name() {
    let script = [at(10, Exit::Hypercall); 3];
    let (_, log) = record(&script, 4, true);
    let page = |bits: u64| {
        let mut m = pc(&script, following(&log));
        m.vcpu.state.gprs[Gpr::R15] = bits;
        assert_eq!(run(&mut m, 1), Some(Stop::Diverged));
        m.divergence().map(ToString::to_string).unwrap_or_default()
    };
    assert!(page(1 << 5).contains("possible stale translation"));
    assert!(page(1 << 6).contains("possible stale translation"));
    assert!(!page(1 << 5 | 1).contains("possible stale translation"));
}

#[test]
fn a_guest_that_waits_wakes_long_after_the_last_entry() {
    let script = [at(10, Exit::Hlt), at(10, Exit::Cpuid)];
    let mut m = pc(
        &script,
        Mode::Recording(Box::new(Recorder::new(&[], false))),
    );
    let (mut door, mut host) = (Door::default(), TestHost::default());
    // The timer's next interrupt comes after 300 ms.
    let count = 300_000_000;
    let written = m
        .board
        .write_msr(&mut host, &mut door, msr::X2APIC_BASE + 0x38, count);
    written.expect("the timer's count");
    m.run(&mut host, 1_000_000);
    let until = m.idle_until().expect("it waits");
    assert!((count - 1_000_000..=count + 1_000_000).contains(&until));
    host.now_ns = until - 1;
    m.run(&mut host, 1_000_000);
    assert_eq!((m.idle_until(), m.point().exits), (Some(until), 1));
    host.now_ns = until;
    m.run(&mut host, 1_000_000);
    assert_eq!(m.point().exits, 2);
    let mut log = vec![0; 1 << 12];
    let length = m.door.recorder().unwrap().take(&mut log);
    let inputs = placed(&log[..length]);
    let times = inputs.iter().filter(|(_, what)| {
        matches!(
            what,
            What::Input {
                input: Input::Time { .. },
                ..
            }
        )
    });
    assert_eq!(times.count(), 1);
}

#[test]
fn a_timer_ends_a_run_without_exits_and_enters_soon() {
    let script = [at(10_000_000, Exit::Cpuid)];
    let mut m = pc(
        &script,
        Mode::Recording(Box::new(Recorder::new(&[], false))),
    );
    let mut host = TestHost::default();
    for _ in 0..4 {
        let before = m.vcpu.state.icount;
        m.run(&mut host, 1_000_000);
        host.now_ns += m.vcpu.state.icount - before;
    }
    let mut log = vec![0; 1 << 12];
    let length = m.door.recorder().unwrap().take(&mut log);
    let first = placed(&log[..length])
        .into_iter()
        .next()
        .expect("the timer");
    assert!(matches!(
        first.1,
        What::Input {
            input: Input::Time { .. },
            ..
        }
    ));
    assert!((50_000..=52_000).contains(&first.0.after), "{}", first.0);
}
