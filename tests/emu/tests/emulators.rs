//! The emulator tests: every test guest on every platform, the host's end, starts that must fail, and the registers
//! that the hypervisor must not touch.
//!
//! Guests of one group share one start of a host. Tests begin all at once; the laboratory lets as many emulators run
//! as there are processors.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use boot::Firmware;
use emu::{
    BAD_STARTS, DIVERGING, FAULTS, HostRun, Judged, Lab, judge_linux, judge_network,
    judge_replay_file,
};
use libtest_mimic::{Arguments, Trial};
use xtask::emulator::Platform;
use xtask::guests::{Guest, Guests};
use xtask::simd;
use xtask::verbs::test::{FULL_VARIABLE, PLATFORM_VARIABLE};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    match trials() {
        Ok(trials) => {
            // Most tests only wait for a run that another one has started.
            arguments.test_threads.get_or_insert(trials.len().max(1));
            libtest_mimic::run(&arguments, trials).exit_code()
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Result<Vec<Trial>> {
    let guests = Guests::load()?.list;
    let full = std::env::var_os(FULL_VARIABLE).is_some();
    let mut trials = vec![trial("kernel/no-simd".to_owned(), no_simd)];
    for platform in platforms()? {
        // A recorded guest is judged like any other: it need not run twice.
        let (replayed, plain): (Vec<_>, Vec<_>) = guests
            .iter()
            .cloned()
            .partition(|g| g.is_replayed_on(platform) && (full || is_replayed(g)));
        for run in runs(platform, Firmware::Bios, &plain) {
            add_run(&mut trials, run);
        }
        for run in replayed_runs(platform, &replayed) {
            add_replayed_run(&mut trials, run);
        }
        for run in special_runs(platform, &guests) {
            add_run(&mut trials, run);
        }
        add_replayed_run(&mut trials, stepped_run(platform, &guests));
        trials.push(trial(format!("{platform}/linux"), move || {
            judge_linux(platform, Firmware::Bios, if full { 10 } else { 1 })
        }));
        trials.push(trial(format!("{platform}/network"), move || {
            judge_network(platform)
        }));
        trials.push(trial(format!("{platform}/replay-file"), move || {
            judge_replay_file(platform)
        }));
        for diverging in &DIVERGING {
            let name = format!("{platform}/diverging/{}", diverging.guest);
            let guests = guests.clone();
            trials.push(trial(name, move || diverging.judge(platform, &guests)));
        }
        for bad in BAD_STARTS.iter().filter(|bad| bad.on.contains(&platform)) {
            let name = format!("{platform}/bad/{}", bad.name);
            trials.push(trial(name, move || bad.judge(platform)));
        }
        for fault in FAULTS.iter().filter(|_| full) {
            let name = format!("{platform}/fault/{}", fault.name);
            trials.push(trial(name, move || fault.judge(platform)));
        }
        if platform == Platform::Bochs {
            continue;
        }
        if full {
            trials.push(trial(format!("{platform}-uefi/linux"), move || {
                // Under UEFI QEMU does not count exactly.
                judge_linux(platform, Firmware::Uefi, 0)
            }));
        }
        let under_uefi = |guest: &&Guest| full || guest.name == "hello";
        let some: Vec<_> = guests.iter().filter(under_uefi).cloned().collect();
        for run in runs(platform, Firmware::Uefi, &some) {
            add_run(&mut trials, run);
        }
    }
    Ok(trials)
}

/// Those asked for by the environment, else both emulators.
fn platforms() -> Result<Vec<Platform>> {
    let Ok(name) = std::env::var(PLATFORM_VARIABLE) else {
        return Ok(vec![Platform::Qemu, Platform::Bochs]);
    };
    [Platform::Qemu, Platform::Bochs, Platform::Kvm]
        .into_iter()
        .find(|platform| platform.to_string() == name)
        .map(|platform| vec![platform])
        .with_context(|| format!("{PLATFORM_VARIABLE}={name}: neither qemu, bochs nor kvm"))
}

/// One start of a host per group of guests.
fn runs(platform: Platform, firmware: Firmware, guests: &[Guest]) -> Vec<HostRun> {
    let mut groups: BTreeMap<&str, Vec<Guest>> = BTreeMap::new();
    for guest in guests.iter().filter(|g| g.runs_on(platform)) {
        groups.entry(&guest.group).or_default().push(guest.clone());
    }
    groups
        .into_iter()
        .map(|(group, guests)| {
            let uefi = if firmware == Firmware::Uefi {
                "-uefi"
            } else {
                ""
            };
            let group = if group.is_empty() { "guests" } else { group };
            HostRun::new(
                format!("{platform}{uefi}-{group}"),
                platform,
                firmware,
                guests,
            )
        })
        .collect()
}

/// Starts with something unusual, after which a guest still has to run.
fn special_runs(platform: Platform, guests: &[Guest]) -> [HostRun; 2] {
    let hello: Vec<_> = guests
        .iter()
        .filter(|g| g.name == "hello")
        .cloned()
        .collect();
    let run = |name| {
        let name = format!("{platform}-{name}");
        HostRun::new(name, platform, Firmware::Bios, hello.clone())
    };
    [
        run("counter-off-by-one").with(
            "\n[test]\ncounter_skew = 1\n",
            &[
                "counter: rejected by the self-test",
                "counter: none is exact",
            ],
        ),
        run("random-states").with(
            "\n[test]\nrandom_states = 2000\n",
            &["counter: exact, proven on", "random states: "],
        ),
    ]
}

/// Guests that are recorded and replayed in every run of the tests, all of them in long ones.
const REPLAYED: [&str; 12] = [
    "hello",
    "storm",
    "interrupts",
    "exceptions",
    "debug",
    "ring3",
    "selfmod",
    "ports",
    "paging",
    "long",
    "real",
    "rdtsc",
];

fn is_replayed(guest: &Guest) -> bool {
    REPLAYED.contains(&guest.name.as_str())
}

/// Guests recorded and replayed, with runs cut at random.
fn replayed_runs(platform: Platform, guests: &[Guest]) -> Vec<HostRun> {
    runs(platform, Firmware::Bios, guests)
        .into_iter()
        .map(|run| {
            let mut run = run.with("\n[test]\nreplays = 1\nslices = 1\n", &[]);
            run.name.push_str("-replayed");
            run
        })
        .collect()
}

/// A test for each guest that is replayed, and one for its host.
fn add_replayed_run(trials: &mut Vec<Trial>, run: HostRun) {
    let run = Arc::new(run);
    for guest in run.guests().to_vec() {
        let shared = Arc::clone(&run);
        let name = format!("{}/{}", run.name, guest.name);
        trials.push(trial(name, move || shared.judge_replays(&guest, 1)));
    }
    let name = format!("{}/host", run.name);
    trials.push(trial(name, move || run.judge_host()));
}

/// Guests whose landings are stepped in one run.
const STEPPED: [&str; 11] = [
    "hello",
    "interrupts",
    "exceptions",
    "debug",
    "ring3",
    "selfmod",
    "ports",
    "paging",
    "long",
    "real",
    "fpu-a",
];

/// Some guests recorded and replayed, with runs cut at random and every landing stepped, by which the counter is proven
/// too.
fn stepped_run(platform: Platform, guests: &[Guest]) -> HostRun {
    let stepped = guests
        .iter()
        .filter(|g| STEPPED.contains(&g.name.as_str()) && g.is_replayed_on(platform))
        .cloned()
        .collect();
    let name = format!("{platform}-stepped");
    HostRun::new(name, platform, Firmware::Bios, stepped).with(
        "\n[test]\nreplays = 1\nslices = 2\nskid = 2000\n",
        &["counter: exact, proven on"],
    )
}

/// A test for each guest of a run, and one for its host.
fn add_run(trials: &mut Vec<Trial>, run: HostRun) {
    let run = Arc::new(run);
    for guest in run.guests().to_vec() {
        let shared = Arc::clone(&run);
        let name = format!("{}/{}", run.name, guest.name);
        trials.push(trial(name, move || shared.judge_guest(&guest)));
    }
    let name = format!("{}/host", run.name);
    trials.push(trial(name, move || run.judge_host()));
}

fn trial(name: String, test: impl FnOnce() -> Judged + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test().map_err(|error| format!("{error:#}").into())
    })
}

fn no_simd() -> Judged {
    let violations = simd::check(&Lab::get()?.artifacts.kernel)?;
    anyhow::ensure!(
        violations.is_empty(),
        "{} instructions use registers that belong to the guest:\n{violations:#?}",
        violations.len()
    );
    Ok(())
}
