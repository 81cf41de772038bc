//! `cargo xtask bench`: figures, counted in host instructions, which both emulators repeat exactly.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boot::{Firmware, GuestFile, Payload};

use super::run::check_platform;
use crate::artifacts::Artifacts;
use crate::emulator::{Machine, NicModel, Platform, Processor, batch};
use crate::guests::{self, Guests};
use crate::needs::{self, Need};
use crate::{config, progress, serial, workspace};

/// The guest that exits often.
const GUEST: &str = "bench";
/// Bytes of the file that makes the start realistic.
const LARGE_FILE_BYTES: u64 = 20_000_000;
const LARGE_FILE: &str = "large.bin";
const TIMEOUT: Duration = Duration::from_secs(300);

/// Measures.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// What an exit costs, how long the start takes, how much memory the hypervisor needs.
    Exits {
        /// Which machine.
        #[arg(long, value_enum, default_value_t = Platform::Qemu)]
        platform: Platform,
    },
    /// How long Linux takes to a shell, and how fast it then works.
    Boot {
        /// Which machine.
        #[arg(long, value_enum, default_value_t = Platform::Qemu)]
        platform: Platform,
    },
    /// What recording and replaying cost, and how long a log gets.
    Replay {
        /// Which machine.
        #[arg(long, value_enum, default_value_t = Platform::Qemu)]
        platform: Platform,
    },
    /// How fast a guest's network is, compared with the same Linux without Duet, and what a frame costs.
    Net {
        /// Which machine; only QEMU can run the same without Duet.
        #[arg(long, value_enum, default_value_t = Platform::Qemu)]
        platform: Platform,
        /// The host's network card.
        #[arg(long, value_enum, default_value_t)]
        card: NicModel,
    },
    /// What the replication protocol costs: sealing, small entries, goodput, memory.
    Link,
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, or the run failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let platform = match arguments.what {
        What::Exits { platform } => platform,
        What::Boot { platform } => return super::bench_boot::run(platform),
        What::Replay { platform } => return super::bench_replay::run(platform),
        What::Net { platform, card } => return super::bench_net::run(platform, card),
        What::Link => return super::bench_link::run(),
    };
    check_platform(platform, Firmware::Bios)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(platform, false))?;
    let said = measure(platform)?;
    print!("{}", table(&said)?);
    Ok(())
}

fn measure(platform: Platform) -> Result<String> {
    let artifacts = Artifacts::build()?;
    let guests = Guests::load()?;
    let mut guest = guests.named(GUEST)?.clone();
    guest.modules.push(LARGE_FILE.to_owned());
    guest.memory_mib = guest.memory_mib.max(64);
    let images = guests::build(&guests)?;
    let directory = workspace::output("bench")?;
    let large = directory.join(LARGE_FILE);
    std::fs::File::create(&large)
        .and_then(|file| file.set_len(LARGE_FILE_BYTES))
        .with_context(|| large.display().to_string())?;

    let mut files = guests::files(&images, [guests.named(GUEST)?]);
    files.push(GuestFile {
        name: LARGE_FILE.to_owned(),
        path: large,
    });
    let payload = Payload {
        config: config::compose(platform, std::slice::from_ref(&guest))?,
        files,
        seed: Some(crate::artifacts::seed()?),
    };
    let disk = directory.join("duet.img");
    artifacts.image(Firmware::Bios, &payload, &disk)?;
    let machine = Machine {
        platform,
        firmware: Firmware::Bios,
        disk,
        memory_mib: 512,
        processor: Processor::Full,
        nics: Vec::new(),
    };
    let log = directory.join(format!("{platform}.log"));
    let outcome = progress::step("running the bench guest", || {
        batch::run(&machine, &log, TIMEOUT)
    })?;
    let reason = serial::stop_reason(&outcome.serial, GUEST);
    ensure!(
        reason == Some("exit status 0"),
        "{}; the bench guest: {}\n{}",
        outcome.end,
        reason.unwrap_or("did not stop"),
        serial::tail(&outcome.serial, 30)
    );
    Ok(outcome.serial)
}

/// A row: what it is, the host's name for it, KVM's figure in the same emulator, the aim.
struct Row(&'static str, &'static str, Option<u64>, Option<u64>);

const ROWS: [Row; 8] = [
    Row("CPUID", "cpuid", Some(2958), Some(400)),
    Row("RDTSC", "rdtsc", None, Some(400)),
    Row("RDMSR", "rdmsr", Some(2916), Some(500)),
    Row("port read", "port-read", Some(1530), Some(600)),
    Row("MMIO read", "mmio-read", Some(3550), Some(1500)),
    Row("MMIO write", "mmio-write", Some(3550), Some(1500)),
    Row("HLT and wake-up", "hlt", Some(6370), None),
    Row("fresh memory", "ram-fault", Some(22_000), Some(2000)),
];

/// The table of a run's serial output.
fn table(said: &str) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "host instructions per exit and return")?;
    writeln!(
        out,
        "{:<18}{:>8}{:>10}{:>8}{:>8}",
        "", "Duet", "exits", "aim", "KVM"
    )?;
    for Row(title, reason, kvm, aim) in ROWS {
        let (mean, count) = match exits(said, reason)? {
            Some((count, ticks)) if count > 0 => ((ticks / count).to_string(), count.to_string()),
            _ => ("–".to_owned(), "–".to_owned()),
        };
        let (aim, kvm) = (figure(aim), figure(kvm));
        writeln!(out, "{title:<18}{mean:>8}{count:>10}{aim:>8}{kvm:>8}")?;
    }
    let value = |kind, key| said.lines().find_map(|l| serial::field(l, kind, key));
    let start = value("boot", "entry_to_first_guest_ms").unwrap_or("–");
    let memory = value("memory", "hypervisor_kib").unwrap_or("–");
    writeln!(
        out,
        "\nkernel entry to the guest's first instruction, 20 MB of guest files: {start} ms (aim 1500)"
    )?;
    writeln!(
        out,
        "hypervisor memory besides guest RAM: {memory} KiB (aim 32768)"
    )?;
    Ok(out)
}

fn figure(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| v.to_string())
}

/// Count and ticks of the bench guest's exits of one reason.
fn exits(said: &str, reason: &str) -> Result<Option<(u64, u64)>> {
    let Some(line) = said.lines().find(|line| {
        serial::field(line, "exits", "vm") == Some(GUEST)
            && serial::field(line, "exits", "reason") == Some(reason)
    }) else {
        return Ok(None);
    };
    let number = |key| {
        serial::field(line, "exits", key)
            .and_then(|value| value.parse::<u64>().ok())
            .with_context(|| format!("{key} in the line {line:?}"))
    };
    Ok(Some((number("count")?, number("ticks")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "[    0.900000] INFO  boot| entry_to_first_guest_ms=812\r\n\
        [    1.000000] INFO  memory| hypervisor_kib=9216\r\n\
        [    1.000000] INFO  exits| vm=hello reason=cpuid count=1 ticks=1\r\n\
        [    1.000000] INFO  exits| vm=bench reason=cpuid count=1000 ticks=321000\r\n\
        [    1.000000] INFO  exits| vm=bench reason=hlt count=0 ticks=0\r\n";

    #[test]
    fn the_table_divides_ticks_by_exits() {
        let table = table(SAID).unwrap();
        let row = |title: &str| {
            let line = table.lines().find(|l| l.starts_with(title)).unwrap();
            line[title.len()..]
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(row("CPUID"), ["321", "1000", "400", "2958"]);
        assert_eq!(row("RDTSC"), ["–", "–", "400", "–"], "not measured");
        assert_eq!(
            row("HLT and wake-up"),
            ["–", "–", "–", "6370"],
            "no division by zero"
        );
        assert!(
            table.contains("812 ms") && table.contains("9216 KiB"),
            "{table}"
        );
    }

    #[test]
    fn a_malformed_line_is_named() {
        let error = exits("exits| vm=bench reason=cpuid count=x ticks=1", "cpuid").unwrap_err();
        assert!(error.to_string().contains("count"), "{error}");
    }
}
