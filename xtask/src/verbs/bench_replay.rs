//! `cargo xtask bench replay`: what recording and replaying cost, and how long a log gets.
//!
//! Linux does some work three times: without a log, recorded, and replayed by the host that has recorded it. Times are the
//! host's own, which in the emulators counts instructions; the start and the end of Linux are measured by themselves and taken
//! off.

use std::fmt::Write;

use anyhow::{Context, Result};
use boot::Firmware;

use super::bench_boot::on_duet;
use super::run::check_platform;
use crate::artifacts::Artifacts;
use crate::debian;
use crate::emulator::Platform;
use crate::needs::{self, Need};
use crate::{serial, workspace};

/// A piece of work: its name, the shell's words for it, and the most that Duet aims at: recorded to unrecorded, replayed to
/// recorded (in hundredths), and Mbit of log for each second of the guest (in hundredths).
struct Work(&'static str, &'static str, Option<[u32; 2]>, Option<u32>);

const WORK: [Work; 3] = [
    Work(
        "CPU: sha256sum of 64 MB",
        "dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum >/dev/null",
        Some([102, 105]),
        Some(100),
    ),
    Work(
        "300 forks",
        "for i in $(seq 300); do /bin/true; done",
        Some([110, 110]),
        None,
    ),
    // Nobody waits for a replayed timer, so its time says nothing.
    Work("idle: sleep 10", "sleep 10", None, Some(15)),
];
const NOTHING: &str = "true";
const RECORDED: &str = "\n[test]\nreplays = 1\n";

/// What one start of Linux came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    /// Nanoseconds without a log, recorded, replayed.
    ns: [f64; 3],
    /// Bytes of its log.
    bytes: f64,
}

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
    let measure = |script: &str| -> Result<(String, Figures)> {
        let log = directory.join(format!("{platform}-live.log"));
        let live = on_duet(platform, &artifacts, &files, (script, ""), &log)?;
        let log = directory.join(format!("{platform}-recorded.log"));
        let recorded = on_duet(platform, &artifacts, &files, (script, RECORDED), &log)?;
        let said = live + &recorded;
        let figures = figures(&said)?;
        Ok((said, figures))
    };
    let (_, base) = measure(NOTHING)?;
    let mut out = heading();
    let mut last = String::new();
    for work in &WORK {
        let (said, figures) = measure(work.1)?;
        out += &row(work, base, figures);
        last = said;
    }
    print!("{out}\n{}", entries(&last)?);
    Ok(())
}

/// The value of `key` in the line `kind| … which …`.
fn value(said: &str, kind: &str, which: (&str, &str), key: &str) -> Result<f64> {
    let line = said
        .lines()
        .find(|line| serial::field(line, kind, which.0) == Some(which.1))
        .with_context(|| format!("no {kind} line for {}={}", which.0, which.1))?;
    let text = serial::field(line, kind, key).with_context(|| format!("{key} in {line:?}"))?;
    text.parse().with_context(|| format!("{key} in {line:?}"))
}

fn figures(said: &str) -> Result<Figures> {
    let mut figures = Figures::default();
    for (ns, mode) in figures.ns.iter_mut().zip(["live", "recorded", "replayed"]) {
        *ns = value(said, "run", ("mode", mode), "ns")?;
    }
    for kind in ["answers", "inputs", "outputs", "checks"] {
        figures.bytes += value(said, "log", ("kind", kind), "bytes")?;
    }
    Ok(figures)
}

fn heading() -> String {
    format!(
        "{:<26}{:>12}{:>7}{:>12}{:>7}{:>10}{:>7}\n",
        "", "recorded /", "aim", "replayed /", "aim", "Mbit per", "aim"
    ) + &format!(
        "{:<26}{:>12}{:>7}{:>12}{:>7}{:>10}{:>7}\n",
        "", "unrecorded", "", "recorded", "", "second", ""
    )
}

fn row(work: &Work, base: Figures, with: Figures) -> String {
    let Work(name, _, ratios, rate) = work;
    let [live, recorded, replayed] = [0, 1, 2].map(|i| with.ns[i] - base.ns[i]);
    let aim = |hundredths: Option<u32>| {
        hundredths.map_or("–".to_owned(), |h| format!("{:.2}", f64::from(h) / 100.0))
    };
    let ratio = |a: f64, b: f64| {
        if ratios.is_some() && b > 0.0 {
            format!("{:.3}", a / b)
        } else {
            "–".to_owned()
        }
    };
    // Bits for each nanosecond are thousands of Mbit for each second.
    let mbit = (with.bytes - base.bytes) * 8.0 / recorded * 1000.0;
    format!(
        "{name:<26}{:>12}{:>7}{:>12}{:>7}{mbit:>10.3}{:>7}\n",
        ratio(recorded, live),
        aim(ratios.map(|r| r[0])),
        ratio(replayed, recorded),
        aim(ratios.map(|r| r[1])),
        aim(*rate),
    )
}

/// The sizes of entries, what recording adds to an exit, where inputs were placed.
fn entries(said: &str) -> Result<String> {
    let mut out = String::new();
    let each = |kind: &str| -> Result<f64> {
        let of = |key| value(said, "log", ("kind", kind), key);
        Ok(of("bytes")? / of("entries")?.max(1.0))
    };
    writeln!(
        out,
        "bytes of an answer: {:.2} (aim 3), of an input: {:.2} (aim 8)",
        each("answers")?,
        each("inputs")?
    )?;
    // The live run comes first, the recorded one second.
    let mut rdtsc = said
        .lines()
        .filter(|line| serial::field(line, "exits", "reason") == Some("rdtsc"))
        .map(|line| {
            value(line, "exits", ("reason", "rdtsc"), "ticks")
                .and_then(|ticks| Ok(ticks / value(line, "exits", ("reason", "rdtsc"), "count")?))
        });
    let (live, recorded) = (rdtsc.next(), rdtsc.next());
    let live = live.context("no RDTSC exits")??;
    let recorded = recorded.context("no RDTSC exits of a recorded guest")??;
    writeln!(
        out,
        "host instructions that recording adds to an RDTSC exit: {:.0} ({live:.0} without; aim 100)",
        recorded - live
    )?;
    let inputs = value(said, "log", ("kind", "inputs"), "entries")?;
    let at_exits = said
        .lines()
        .find_map(|line| serial::field(line, "log", "inputs_at_exits"))
        .context("inputs_at_exits")?
        .parse::<f64>()?;
    writeln!(
        out,
        "inputs placed at deterministic exits: {:.0} of {inputs:.0}; at landings: {:.0}",
        at_exits,
        inputs - at_exits
    )?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "run| vm=linux mode=live ns=1000\r\n\
        exits| vm=linux reason=rdtsc count=10 ticks=3500\r\n\
        run| vm=linux mode=recorded ns=1020\r\n\
        exits| vm=linux reason=rdtsc count=10 ticks=4400\r\n\
        log| vm=linux kind=answers entries=10 bytes=25\r\n\
        log| vm=linux kind=inputs entries=4 bytes=20\r\n\
        log| vm=linux kind=outputs entries=0 bytes=0\r\n\
        log| vm=linux kind=checks entries=1 bytes=5\r\n\
        log| vm=linux inputs_at_exits=3\r\n\
        run| vm=linux mode=replayed ns=1071\r\n";

    #[test]
    fn figures_are_found_and_compared() {
        let base = Figures::default();
        let with = figures(SAID).unwrap();
        assert_eq!((with.ns, with.bytes), ([1000.0, 1020.0, 1071.0], 50.0));
        let cpu = row(&WORK[0], base, with);
        assert!(cpu.contains("1.020") && cpu.contains("1.050"), "{cpu}");
        // 400 bits in 1020 ns.
        assert!(cpu.contains("392.157"), "{cpu}");
        let idle = row(&WORK[2], base, with);
        assert!(!idle.contains("1.020"), "{idle}");
        let sizes = entries(SAID).unwrap();
        for text in [
            "answer: 2.50",
            "input: 5.00",
            "exit: 90",
            "exits: 3 of 4",
            "landings: 1",
        ] {
            assert!(sizes.contains(text), "{text}: {sizes}");
        }
        assert!(figures("").is_err());
    }
}
