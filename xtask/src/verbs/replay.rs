//! `cargo xtask replay`: records a guest to a file, and runs it again from there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use boot::{Firmware, GuestFile, Payload};
use clap::Parser;
use vmm::log::Point;

use super::run::{self, Guest, Network};
use crate::artifacts::{Artifacts, seed};
use crate::emulator::{End, Machine, Platform, Processor, interactive};
use crate::needs::{self, Need};
use crate::recording::Recording;
use crate::workspace;

/// Bytes of the partition that a log is recorded to. The file is sparse.
const LOG_PARTITION_BYTES: u64 = 96 << 20;
/// The log's name among the guest files.
const LOG_FILE: &str = "duet.log";

/// Records a guest to a file, and runs it again from there.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Runs a guest as `cargo xtask run` does, and brings its log out.
    Record(Record),
    /// Runs a recorded guest again, and stops at the first difference.
    Replay(Replay),
}

#[derive(clap::Args, Debug)]
struct Record {
    /// The recording.
    file: PathBuf,
    /// Puts a check at every exit into the log, for a report with both register files.
    #[arg(long)]
    every_exit: bool,
    #[command(flatten)]
    guest: run::Arguments,
}

#[derive(clap::Args, Debug)]
struct Replay {
    /// The recording.
    file: PathBuf,
    /// Prints the machine there: INSTRUCTIONS since power-on, or EXITS+INSTRUCTIONS since that exit.
    #[arg(long, value_name = "POINT")]
    stop_at: Option<StopAt>,
    /// Cuts the run at random by this seed, which must not make a difference.
    #[arg(long, value_name = "SEED")]
    slices: Option<u64>,
}

/// Where a replay is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopAt {
    Instructions(u64),
    Point(Point),
}

impl std::str::FromStr for StopAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let point = text.parse().map(Self::Point).ok();
        let instructions = || text.parse().map(Self::Instructions).ok();
        point
            .or_else(instructions)
            .ok_or_else(|| format!("{text:?} is neither INSTRUCTIONS nor EXITS+INSTRUCTIONS"))
    }
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, how the run failed, or that the replay was not the recorded run.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.verb {
        Verb::Record(arguments) => record(arguments),
        Verb::Replay(arguments) => replay(arguments),
    }
}

fn record(arguments: &Record) -> Result<()> {
    ensure!(
        !arguments.guest.uefi,
        "--uefi: a log is written to an ATA disk, which only the machine with a BIOS has"
    );
    // Not being able to write it is cheaper to find before the run.
    std::fs::write(&arguments.file, []).with_context(|| arguments.file.display().to_string())?;
    let checks = if arguments.every_exit {
        "exit"
    } else {
        "batch"
    };
    let (config, files, network) = prepare(&arguments.guest)?;
    let config = edit(&config, |vm| {
        vm.insert("record".to_owned(), checks.into());
    })?;
    let (end, disk) = start(&arguments.guest, config, files, network.as_ref())?;
    let log = boot::read_log(&disk)?.context("the host left no log")?;
    let recording = Recording {
        arguments: words(&arguments.guest)?,
        log,
    };
    recording.write(&arguments.file)?;
    println!(
        "{}: {} bytes",
        arguments.file.display(),
        recording.log.len()
    );
    run::report(&end)
}

fn replay(arguments: &Replay) -> Result<()> {
    let recording = Recording::read(&arguments.file)?;
    let guest = guest(&recording)?;
    let (config, mut files, network) = prepare(&guest)?;
    let config = edit(&config, |vm| {
        vm.insert("replay".to_owned(), LOG_FILE.into());
        match arguments.stop_at {
            None => {}
            Some(StopAt::Instructions(count)) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                vm.insert("instruction_limit".to_owned(), count.into());
            }
            Some(StopAt::Point(point)) => {
                vm.insert("stop_at".to_owned(), point.to_string().into());
            }
        }
    })?;
    let config = match arguments.slices {
        Some(seed) => format!("{config}\n[test]\nslices = {seed}\n"),
        None => config,
    };
    let log = output(guest.platform)?.join(LOG_FILE);
    std::fs::write(&log, &recording.log).with_context(|| log.display().to_string())?;
    files.push(GuestFile {
        name: LOG_FILE.to_owned(),
        path: log,
    });
    // Nothing comes from there, but the host has to have the card that the guest's is connected to.
    let (end, _) = start(&guest, config, files, network.as_ref())?;
    match end {
        End::Failure => {
            bail!("the replay is not the recorded run, or the log does not fit: see above")
        }
        end => run::report(&end),
    }
}

/// Where the files of runs on a platform are.
fn output(platform: Platform) -> Result<PathBuf> {
    workspace::output(&format!("replay-{platform}"))
}

/// Checks what can be checked, and makes what is missing.
fn prepare(arguments: &run::Arguments) -> Result<(String, Vec<GuestFile>, Option<Network>)> {
    let guest = Guest::choose(arguments)?;
    run::check_platform(arguments.platform, Firmware::Bios)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(arguments.platform, false))?;
    let network = Network::of(arguments, &guest)?;
    let (config, files) = guest.files(arguments, network.as_ref())?;
    Ok((config, files, network))
}

/// Changes the first guest of a configuration.
fn edit(config: &str, change: impl FnOnce(&mut toml::Table)) -> Result<String> {
    let mut config: toml::Table = toml::from_str(config)?;
    let vm = config
        .get_mut("vm")
        .and_then(|vms| vms.as_array_mut())
        .and_then(|vms| vms.first_mut())
        .and_then(|vm| vm.as_table_mut())
        .context("the configuration has no guest")?;
    change(vm);
    let text = toml::to_string(&config)?;
    vmm::config::Config::parse(&text)?;
    Ok(text)
}

fn start(
    arguments: &run::Arguments,
    config: String,
    files: Vec<GuestFile>,
    network: Option<&Network>,
) -> Result<(End, PathBuf)> {
    let payload = Payload {
        config,
        files,
        seed: Some(seed()?),
    };
    let disk = output(arguments.platform)?.join("duet.img");
    Artifacts::build()?.image(Firmware::Bios, &payload, &disk)?;
    boot::add_log_partition(&disk, LOG_PARTITION_BYTES)?;
    let end = interactive::run(&Machine {
        platform: arguments.platform,
        firmware: Firmware::Bios,
        disk: disk.clone(),
        memory_mib: arguments.mem,
        processor: Processor::Full,
        nics: Network::nics(network),
    })?;
    Ok((end, disk))
}

/// The options that start the same guest from anywhere.
fn words(arguments: &run::Arguments) -> Result<Vec<String>> {
    let path = |path: &Path| -> Result<String> {
        let path = path
            .canonicalize()
            .with_context(|| path.display().to_string())?;
        let text = path.to_str().context("a file name that is not UTF-8")?;
        Ok(text.to_owned())
    };
    let mut words = vec![
        "--platform".to_owned(),
        arguments.platform.to_string(),
        "--mem".to_owned(),
        arguments.mem.to_string(),
    ];
    if arguments.net {
        words.push("--net".to_owned());
    }
    for port in &arguments.forward {
        words.push(format!("--forward={port}"));
    }
    for (option, text) in [
        ("--guest", &arguments.guest),
        ("--cmdline", &arguments.cmdline),
    ] {
        if let Some(text) = text {
            words.push(format!("{option}={text}"));
        }
    }
    for (option, file) in [
        ("--kernel", &arguments.kernel),
        ("--initrd", &arguments.initrd),
        ("--config", &arguments.config),
    ] {
        if let Some(file) = file {
            words.push(format!("{option}={}", path(file)?));
        }
    }
    Ok(words)
}

/// The options that a recording was made with.
fn guest(recording: &Recording) -> Result<run::Arguments> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Options {
        #[command(flatten)]
        guest: run::Arguments,
    }
    let options = Options::try_parse_from(&recording.arguments)
        .context("the options that the recording was made with")?;
    Ok(options.guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &[&str]) -> Verb {
        Command::try_parse_from(std::iter::once(&"replay").chain(words))
            .unwrap()
            .arguments
            .verb
    }

    #[test]
    fn a_recording_starts_the_guest_it_was_made_with() {
        let initrd = tempfile::NamedTempFile::new().unwrap();
        let path = initrd.path().canonicalize().unwrap();
        let options = ["record", "f", "--platform", "bochs", "--mem", "400"];
        let more = [
            "--initrd",
            path.to_str().unwrap(),
            "--cmdline=-x --y",
            "--net",
            "--forward=80",
        ];
        let Verb::Record(record) = parse(&[&options[..], &more].concat()) else {
            panic!("not a record");
        };
        let recording = Recording {
            arguments: words(&record.guest).unwrap(),
            log: Vec::new(),
        };
        let guest = guest(&recording).unwrap();
        assert_eq!(guest.initrd, Some(path));
        assert_eq!(guest.cmdline.as_deref(), Some("-x --y"));
        assert_eq!((guest.net, guest.forward), (true, vec![80]));
        assert_eq!((guest.mem, guest.platform), (400, record.guest.platform));
    }

    #[test]
    fn points_are_instructions_or_instructions_since_an_exit() {
        let stop_at = |text: &str| text.parse::<StopAt>();
        assert_eq!(stop_at("12"), Ok(StopAt::Instructions(12)));
        let point = Point { exits: 3, after: 4 };
        assert_eq!(stop_at("3+4"), Ok(StopAt::Point(point)));
        assert!(stop_at("x").is_err() && stop_at("3+").is_err());
    }

    #[test]
    fn the_first_guest_is_recorded_or_replayed() {
        let config = "[node]\nname = \"a\"\n[[vm]]\nname = \"x\"\nmemory_mib = 1\nkernel = \"k\"\nformat = \"linux\"\n";
        let text = edit(config, |vm| {
            vm.insert("replay".to_owned(), LOG_FILE.into());
        })
        .unwrap();
        let guests = vmm::config::Config::parse(&text).unwrap().guests;
        assert!(
            matches!(&guests[0].log, vmm::config::Log::Replay { file, .. } if file == LOG_FILE)
        );
        assert!(edit("[node]\nname = \"a\"\n", |_| {}).is_err());
    }
}
