//! `cargo xtask bench boot`: how long Linux takes to a shell, which exits that costs, and how fast it then works
//! compared with the same kernel without Duet.
//!
//! The time to the shell is a person's; it depends on the machine this runs on, which should have nothing else to do.
//! Times of the work are the guest's own. Under QEMU's instruction counter one nanosecond of them is one instruction, guest's or
//! hypervisor's, so the comparison does not depend on the machine this runs on.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use boot::{Firmware, Payload};

use super::run::check_platform;
use crate::artifacts::{Artifacts, seed};
use crate::debian::{self, Debian};
use crate::emulator::{Machine, Platform, Processor, batch, qemu};
use crate::linux::Linux;
use crate::needs::{self, Need};
use crate::{config, progress, serial, workspace};

const MEMORY_MIB: u32 = 256;
const TIMEOUT: Duration = Duration::from_secs(900);
/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What the guest says when its shell runs the first command.
const SHELL: &str = "boot| shell";
const AT_THE_SHELL: &str = "echo 'boot| shell'";
/// What the log says when Duet starts, when its guest starts, and at the shell.
const ON_DUET: [&str; 3] = [
    "INFO  duet ",
    "boot| entry_to_first_guest_ms",
    "\nboot| shell",
];

/// Seconds to a shell that Duet aims at.
const fn aim(platform: Platform) -> u32 {
    match platform {
        Platform::Qemu | Platform::Kvm => 8,
        Platform::Bochs => 25,
    }
}

/// A piece of work: its name, the shell's words for it, and what Duet aims at, in hundredths of the speed without it.
struct Work(&'static str, &'static str, Option<u32>);

const WORK: [Work; 3] = [
    Work(
        "sha256sum of 64 MB",
        "dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum >/dev/null",
        Some(90),
    ),
    Work(
        "1000 forks",
        "for i in $(seq 1000); do /bin/true; done",
        Some(60),
    ),
    Work(
        "gzip of 16 MB",
        "dd if=/dev/zero bs=1M count=16 2>/dev/null | gzip >/dev/null",
        None,
    ),
];

/// Measures on `platform`.
///
/// # Errors
///
/// What is missing, or the run failed.
pub fn run(platform: Platform) -> Result<()> {
    check_platform(platform, Firmware::Bios)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(platform, false))?;
    let files = debian::prepare()?;
    let artifacts = Artifacts::build()?;
    let directory = workspace::output("bench")?;

    let log = directory.join(format!("{platform}-boot.log"));
    let (start, times) = milestones(&log, &ON_DUET, || {
        on_duet(platform, &artifacts, &files, (AT_THE_SHELL, ""), &log)
    })?;
    let mut out = String::new();
    let [loaded, guest, shell] = times;
    writeln!(
        out,
        "start of the emulator to a shell: {shell:.1} s (aim {}): \
         firmware and boot loader {loaded:.1}, Duet {:.1}, guest {:.1}",
        aim(platform),
        guest - loaded,
        shell - guest
    )?;
    // Bochs cannot start a kernel without a boot loader, so there is nothing to compare with.
    if platform == Platform::Qemu {
        let log = directory.join("without-boot.log");
        let (_, [shell]) = milestones(&log, &[SHELL], || directly(&files, AT_THE_SHELL, &log))?;
        writeln!(
            out,
            "the same kernel started by the emulator itself: {shell:.1} s"
        )?;
    }
    writeln!(out, "exits until the guest was off again:")?;
    for line in start.lines() {
        if let Some(reason) = serial::field(line, "exits", "reason") {
            let value = |key| serial::field(line, "exits", key).unwrap_or("–");
            writeln!(
                out,
                "  {reason:<14}{:>9}{:>14} instructions of the host",
                value("count"),
                value("ticks")
            )?;
        } else if let Some(count) = serial::field(line, "guest", "instructions") {
            writeln!(
                out,
                "  {:<14}{:>9}{count:>14} instructions of the guest",
                "", ""
            )?;
        }
    }
    if platform == Platform::Qemu {
        let log = directory.join(format!("{platform}-work.log"));
        let said = on_duet(platform, &artifacts, &files, (&workload(), ""), &log)?;
        let bare = directly(&files, &workload(), &directory.join("without-work.log"))?;
        out += &comparison(&said, &bare)?;
    }
    print!("{out}");
    Ok(())
}

/// All work, with a line `work| n=N centiseconds=T` before each piece and at the end.
fn workload() -> String {
    let now = |n: usize| format!("echo 'work| n={n} seconds='$(cut -d' ' -f1 /proc/uptime); ");
    let mut script = String::new();
    for (n, Work(_, words, _)) in WORK.iter().enumerate() {
        script += &now(n);
        script += words;
        script += "; ";
    }
    script + &now(WORK.len())
}

/// Runs `run`, which writes `log`, and says after how many seconds each of the markers was in it.
#[expect(
    clippy::disallowed_methods,
    reason = "how long a person waits; no guest sees it"
)]
fn milestones<T, const N: usize>(
    log: &Path,
    markers: &[&str; N],
    run: impl FnOnce() -> Result<T>,
) -> Result<(T, [f64; N])> {
    match std::fs::remove_file(log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let begin = Instant::now();
    let ended = AtomicBool::new(false);
    let (result, times) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut times = [None; N];
            loop {
                let last = ended.load(Ordering::Relaxed);
                let said = std::fs::read(log).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                for (marker, time) in markers.iter().zip(&mut times) {
                    if time.is_none() && said.contains(marker) {
                        *time = Some(begin.elapsed().as_secs_f64());
                    }
                }
                if last || times.iter().all(Option::is_some) {
                    return times;
                }
                std::thread::sleep(POLL);
            }
        });
        let result = run();
        ended.store(true, Ordering::Relaxed);
        (result, watcher.join())
    });
    let result = result?;
    let times = times.map_err(|_| anyhow!("the thread that reads {} panicked", log.display()))?;
    for (marker, time) in markers.iter().zip(times) {
        ensure!(time.is_some(), "{} lacks {marker:?}", log.display());
    }
    Ok((result, times.map(Option::unwrap_or_default)))
}

/// Runs `script` in Linux on Duet, whose configuration ends with `tables`. Returns what was said, which is in `log` too.
pub(super) fn on_duet(
    platform: Platform,
    artifacts: &Artifacts,
    files: &Debian,
    (script, tables): (&str, &str),
    log: &Path,
) -> Result<String> {
    let guest = Linux {
        memory_mib: MEMORY_MIB,
        kernel: files.kernel.clone(),
        initrd: Some(files.initrd.clone()),
        cmdline: debian::cmdline_running(script)?,
        mac: None,
        instruction_limit: None,
    };
    let payload = Payload {
        config: config::compose_linux(platform, &guest)? + tables,
        files: guest.files(),
        seed: Some(seed()?),
    };
    let disk = log.with_extension("img");
    artifacts.image(Firmware::Bios, &payload, &disk)?;
    let machine = Machine {
        platform,
        firmware: Firmware::Bios,
        disk,
        memory_mib: 2 * MEMORY_MIB,
        processor: Processor::Full,
        nics: Vec::new(),
    };
    let outcome = progress::step("Linux on Duet", || batch::run(&machine, log, TIMEOUT))?;
    ensure!(
        serial::stop_reason(&outcome.serial, "linux") == Some("power off"),
        "{}\n{}",
        outcome.end,
        serial::tail(&outcome.serial, 30)
    );
    Ok(outcome.serial)
}

/// The same kernel started by QEMU itself, with the same processor, counted the same way. Returns what it said, which
/// is in `log` too.
fn directly(files: &Debian, script: &str, log: &Path) -> Result<String> {
    let memory = MEMORY_MIB.to_string();
    let mut command = Command::new(qemu::PROGRAM);
    command
        .args(["-accel", "tcg", "-icount", "shift=0,sleep=on"])
        .args([
            "-cpu",
            "max,-rdrand,-rdseed,-cx16",
            "-m",
            &memory,
            "-no-reboot",
            "-nodefaults",
        ])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initrd)
        .args(["-append", &debian::cmdline_running(script)?])
        .stdin(Stdio::null())
        .stdout(File::create(log).with_context(|| log.display().to_string())?);
    progress::step("the same kernel without Duet", || {
        let status = command
            .status()
            .with_context(|| format!("cannot start {}", qemu::PROGRAM))?;
        ensure!(status.success(), "{} ended with {status}", qemu::PROGRAM);
        Ok(())
    })?;
    let said = std::fs::read(log).with_context(|| log.display().to_string())?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Seconds of each piece of work, of what a guest said.
fn seconds(said: &str) -> Result<Vec<f64>> {
    let at: Vec<f64> = said
        .lines()
        .filter_map(|line| serial::field(line, "work", "seconds"))
        .map(|value| value.parse().with_context(|| format!("seconds {value:?}")))
        .collect::<Result<_>>()?;
    ensure!(
        at.len() == WORK.len() + 1,
        "the work was not done:\n{}",
        serial::tail(said, 20)
    );
    Ok(at.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

fn comparison(on_duet: &str, bare: &str) -> Result<String> {
    let mut out = format!(
        "\n{:<22}{:>10}{:>10}{:>8}{:>7}\n",
        "guest seconds", "on Duet", "without", "ratio", "aim"
    );
    let times = seconds(on_duet)?.into_iter().zip(seconds(bare)?);
    for (Work(name, _, aim), (duet, bare)) in WORK.iter().zip(times) {
        let aim = aim.map_or_else(
            || "–".to_owned(),
            |aim| format!("{:.2}", f64::from(aim) / 100.0),
        );
        // A clock of hundredths may show no time at all.
        let ratio = if duet > 0.0 { bare / duet } else { f64::NAN };
        writeln!(
            out,
            "{name:<22}{duet:>10.2}{bare:>10.2}{ratio:>8.2}{aim:>7}"
        )?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_speed_on_duet() {
        let said = |times: [&str; 4]| {
            let line = |time: &&str| format!("work| n=0 seconds={time}\r\n");
            times.iter().map(line).collect::<String>()
        };
        let duet = said(["1.00", "3.00", "4.00", "4.00"]);
        let bare = said(["0.50", "2.30", "2.90", "3.00"]);
        let table = comparison(&duet, &bare).unwrap();
        let row = |name: &str| {
            table
                .lines()
                .find(|l| l.starts_with(name))
                .unwrap()
                .to_owned()
        };
        assert!(row("sha256sum").ends_with("0.90   0.90"), "{table}");
        assert!(row("1000 forks").ends_with("0.60   0.60"), "{table}");
        assert!(row("gzip").contains("NaN"), "{table}");
    }

    #[test]
    fn milestones_are_what_the_log_holds() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "a b of an earlier run").unwrap();
        let write = |text: &str| Ok(std::fs::write(&log, text)?);
        let ((), [first, second]) = milestones(&log, &["a", "b"], || {
            write("a")?;
            std::thread::sleep(Duration::from_millis(100));
            write("a b")
        })
        .unwrap();
        assert!(first + 0.05 < second, "{first} {second}");
        let error = milestones(&log, &["a", "c"], || write("a")).unwrap_err();
        assert!(error.to_string().ends_with("lacks \"c\""), "{error}");
    }

    #[test]
    fn work_that_was_not_done_is_an_error() {
        let error = seconds("work| n=0 seconds=1.0\nsh: dd: not found\n").unwrap_err();
        assert!(error.to_string().contains("dd: not found"));
    }

    #[test]
    fn the_work_fits_a_command_line() {
        assert!(debian::cmdline_running(&workload()).unwrap().len() < vmm::config::MAX_CMDLINE);
    }
}
