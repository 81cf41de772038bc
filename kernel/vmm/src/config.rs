//! `duet.toml`: what an operator configures, parsed and checked before anything starts.
//!
//! `boot/duet.toml` is the commented default; `docs/configuration.md` describes every key. Every error
//! names the line and the key.

pub mod net;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use crate::log::Point;

use crate::profile::Level;

/// Guests that one host can be given.
pub const MAX_GUESTS: usize = 64;
/// Most RAM of a guest, in MiB: what lies below the guest's device addresses.
pub const MAX_MEMORY_MIB: u64 = 3072;
/// Longest command line, in bytes.
pub const MAX_CMDLINE: usize = 2048;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This host's name: 1 … 32 of `a-z 0-9 -`.
    pub node_name: String,
    /// Where the log and the operator console are.
    pub serial: Serial,
    /// What is logged.
    pub log_level: log::LevelFilter,
    /// What happens when every guest has stopped.
    pub when_idle: WhenIdle,
    /// How the host ends an emulator it runs in.
    pub emulator_exit: EmulatorExit,
    /// What only tests of Duet itself ask for.
    pub test: Test,
    /// The network cards that are used, in the order of the file.
    pub nics: Vec<net::Nic>,
    /// The guests, in the order of the file.
    pub guests: Vec<Guest>,
}

/// The host's serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// First I/O port of the 16550.
    pub port: u16,
    /// Bits per second.
    pub baud: u32,
}

/// What the host does when every guest has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenIdle {
    /// Switch the machine off.
    #[default]
    Poweroff,
    /// Stay up.
    Halt,
}

/// Which emulator's exit port the host may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmulatorExit {
    /// None: a real machine.
    #[default]
    None,
    /// QEMU's isa-debug-exit at port 0xf4.
    Qemu,
    /// Bochs's port 0x8900.
    Bochs,
}

/// What only tests of Duet itself ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Test {
    /// Ticks by which the instruction counter is made wrong on purpose, to see the self-test reject it.
    pub counter_skew: i64,
    /// Random processor states tried before the guests start (`vmm::random_state`).
    pub random_states: u64,
    /// Keeps the logs of guests that have none in memory, and replays each guest so many times when it has stopped.
    pub replays: u64,
    /// Those logs have a check at every exit.
    pub check_exits: bool,
    /// Cuts the runs of guests with a log at random, by this seed; 0: does not.
    pub slices: u64,
    /// Gives guests with a log the host's own time for this answer of the time-stamp counter, from 1, past the log, to
    /// see it noticed; 0: does not.
    pub leak_clock_at: u64,
    /// Stops guests up to so many instructions before where they are to land, at random, and steps the rest; 0: does
    /// not.
    pub skid: u64,
}

/// When a guest is stopped whatever it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// After exactly this many instructions.
    pub instructions: Option<u64>,
    /// After about this many exits: a guest can do without retiring instructions, but not without exits.
    pub exits: Option<u64>,
}

/// Where a guest's first serial port leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// Its lines are logged under the guest's name; nothing can be typed.
    #[default]
    Log,
    /// To the host's serial port, byte by byte, both ways. One guest can have that.
    Serial,
}

/// Which processor a guest is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cpu {
    /// This one; a host that is less does not start the guest.
    Level(Level),
    /// The highest level the host has.
    #[default]
    Best,
}

/// Where what comes by itself may enter a guest with a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Points {
    /// At any instruction: a host without a proven counter does not start the guest.
    #[default]
    Exact,
    /// On such a host only at its deterministic exits: a guest that computes for a while has to wait for its interrupts.
    Exits,
}

/// Whether a guest's log is kept or followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Log {
    /// Neither.
    #[default]
    None,
    /// It is written to the log partition.
    Record {
        /// Each deterministic exit can be compared by itself, at the price of a log many times as long.
        every_exit: bool,
    },
    /// It is followed.
    Replay {
        /// The file of the guest archive that it is read from.
        file: String,
        /// Where to stop, if not at its end.
        stop_at: Option<Point>,
    },
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Unique name: 1 … 32 of `a-z 0-9 -`.
    pub name: String,
    /// RAM in MiB, 1 … [`MAX_MEMORY_MIB`].
    pub memory_mib: u64,
    /// Its processor.
    pub cpu: Cpu,
    /// What is started.
    pub image: Image,
    /// The devices test guests need are present, instead of the chips of a PC.
    pub test_devices: bool,
    /// A PC has the debug console and the exit port of test guests too.
    pub test_ports: bool,
    /// Where its console is.
    pub console: Console,
    /// When it is stopped whatever it does.
    pub limits: Limits,
    /// Whether its log is kept or followed.
    pub log: Log,
    /// Where its log's entries may be placed.
    pub points: Points,
    /// Its network cards.
    pub nics: Vec<net::GuestNic>,
}

/// What a guest starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// An ELF32 or a.out-kludge Multiboot 1 kernel.
    Multiboot {
        /// File in the guest archive.
        kernel: String,
        /// Command line.
        cmdline: String,
        /// Module strings; the first word of each is its file.
        modules: Vec<String>,
    },
    /// Raw bytes entered in real mode.
    Flat {
        /// File in the guest archive.
        kernel: String,
        /// Where it is loaded and entered, CS = 0.
        load_address: u16,
    },
    /// A Linux kernel, or what else is a bzImage.
    Linux {
        /// File in the guest archive.
        kernel: String,
        /// File in the guest archive with the initial RAM disk.
        initrd: Option<String>,
        /// Command line.
        cmdline: String,
    },
}

impl Image {
    /// The files of the guest archive that this image needs.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let (kernel, initrd, modules) = match self {
            Image::Multiboot {
                kernel, modules, ..
            } => (kernel, None, modules.as_slice()),
            Image::Flat { kernel, .. } => (kernel, None, &[][..]),
            Image::Linux { kernel, initrd, .. } => (kernel, initrd.as_deref(), &[][..]),
        };
        core::iter::once(kernel.as_str())
            .chain(initrd)
            .chain(modules.iter().filter_map(|m| module_file(m)))
    }
}

/// The file that a module string names: its first word.
#[must_use]
pub fn module_file(module: &str) -> Option<&str> {
    module.split_whitespace().next()
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong; names the key.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "duet.toml line {}: {}", self.line, self.message)
    }
}

impl core::error::Error for ConfigError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeTable,
    #[serde(default)]
    serial: SerialTable,
    #[serde(default)]
    log: LogTable,
    #[serde(default)]
    host: HostTable,
    #[serde(default)]
    test: Test,
    #[serde(default)]
    nic: Vec<net::NicTable>,
    #[serde(default)]
    vm: Vec<Spanned<VmTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    name: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialTable {
    port: Option<Spanned<u16>>,
    baud: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    level: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    #[serde(default)]
    when_idle: WhenIdle,
    #[serde(default)]
    emulator_exit: EmulatorExit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmTable {
    name: Spanned<String>,
    memory_mib: Spanned<u64>,
    cpu: Option<Spanned<String>>,
    kernel: Spanned<String>,
    format: Spanned<String>,
    initrd: Option<Spanned<String>>,
    cmdline: Option<Spanned<String>>,
    modules: Option<Spanned<Vec<String>>>,
    load_address: Option<Spanned<u64>>,
    #[serde(default)]
    test_devices: bool,
    #[serde(default)]
    test_ports: bool,
    console: Option<Spanned<Console>>,
    instruction_limit: Option<Spanned<u64>>,
    exit_limit: Option<Spanned<u64>>,
    record: Option<Spanned<Record>>,
    replay: Option<Spanned<String>>,
    stop_at: Option<Spanned<String>>,
    #[serde(default)]
    points: Points,
    #[serde(default)]
    nic: Vec<net::GuestNicTable>,
}

/// How closely a recorded guest can be compared with its replay.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    /// Every few entries.
    Batch,
    /// At every exit.
    Exit,
}

/// Turns byte positions into line numbers and findings into errors.
struct Checker<'a>(&'a str);

impl Checker<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> ConfigError {
        let before = self
            .0
            .get(..span.start.min(self.0.len()))
            .unwrap_or_default();
        let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
        ConfigError {
            line,
            message: message.into(),
        }
    }

    fn name(&self, key: &str, value: &Spanned<String>) -> Result<String, ConfigError> {
        let text = value.get_ref();
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=32).contains(&text.len()) && text.chars().all(allowed) {
            Ok(text.clone())
        } else {
            let message = format!("{key}: {text:?} is not 1 to 32 of a-z, 0-9 and -");
            Err(self.error(value.span(), message))
        }
    }

    fn file(&self, key: &str, value: &Spanned<String>) -> Result<String, ConfigError> {
        let text = value.get_ref();
        let allowed = |c: char| c.is_ascii_graphic();
        // 100 bytes is what a ustar header holds for a name.
        if (1..=100).contains(&text.len()) && text.chars().all(allowed) {
            Ok(text.clone())
        } else {
            let message = format!("{key}: {text:?} is not a file name of 1 to 100 printable bytes");
            Err(self.error(value.span(), message))
        }
    }
}

impl Config {
    /// Parses and checks the text of a `duet.toml`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its line and key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let check = Checker(text);
        let file: File = toml::from_str(text)
            .map_err(|e| check.error(e.span().unwrap_or(0..0), e.message().to_owned()))?;
        let nics = net::nics(&check, &file.nic)?;
        let mut guests = Vec::new();
        for table in &file.vm {
            let mut guest = guest(&check, table.get_ref())?;
            let before: Vec<_> = guests.iter().flat_map(|g: &Guest| &g.nics).collect();
            guest.nics = net::guest_nics(&check, &table.get_ref().nic, &nics, &before)?;
            if guest.test_devices && !guest.nics.is_empty() {
                let message = "vm.nic: a guest with test devices has none";
                return Err(check.error(table.span(), message));
            }
            if guests.iter().any(|g: &Guest| g.name == guest.name) {
                let message = format!("vm.name: {:?} is used twice", guest.name);
                return Err(check.error(table.get_ref().name.span(), message));
            }
            if guest.console == Console::Serial
                && guests.iter().any(|g: &Guest| g.console == Console::Serial)
            {
                let span = table.get_ref().console.as_ref().map_or(0..0, Spanned::span);
                let message = "vm.console: another guest has the serial port";
                return Err(check.error(span, message));
            }
            if matches!(guest.log, Log::Record { .. })
                && guests
                    .iter()
                    .any(|g: &Guest| matches!(g.log, Log::Record { .. }))
            {
                let span = table.get_ref().record.as_ref().map_or(0..0, Spanned::span);
                let message = "vm.record: another guest has the log partition";
                return Err(check.error(span, message));
            }
            if guests.len() == MAX_GUESTS {
                let message = format!("vm: more than {MAX_GUESTS} guests");
                return Err(check.error(table.span(), message));
            }
            guests.push(guest);
        }
        Ok(Self {
            node_name: check.name("node.name", &file.node.name)?,
            serial: serial(&check, &file.serial)?,
            log_level: log_level(&check, &file.log)?,
            when_idle: file.host.when_idle,
            emulator_exit: file.host.emulator_exit,
            test: file.test,
            nics,
            guests,
        })
    }
}

fn serial(check: &Checker<'_>, table: &SerialTable) -> Result<Serial, ConfigError> {
    let port = table.port.as_ref().map_or(0x3f8, |p| *p.get_ref());
    if let Some(p) = table
        .port
        .as_ref()
        .filter(|p| ![0x3f8, 0x2f8, 0x3e8, 0x2e8].contains(p.get_ref()))
    {
        let message = format!("serial.port: {port:#x} is none of 0x3f8, 0x2f8, 0x3e8, 0x2e8");
        return Err(check.error(p.span(), message));
    }
    let baud = table.baud.as_ref().map_or(115_200, |b| *b.get_ref());
    if let Some(b) = table
        .baud
        .as_ref()
        .filter(|b| *b.get_ref() == 0 || 115_200 % *b.get_ref() != 0)
    {
        let message = format!("serial.baud: {baud} does not divide 115200");
        return Err(check.error(b.span(), message));
    }
    Ok(Serial { port, baud })
}

fn log_level(check: &Checker<'_>, table: &LogTable) -> Result<log::LevelFilter, ConfigError> {
    let Some(level) = &table.level else {
        return Ok(log::LevelFilter::Info);
    };
    match level.get_ref().as_str() {
        "error" => Ok(log::LevelFilter::Error),
        "warn" => Ok(log::LevelFilter::Warn),
        "info" => Ok(log::LevelFilter::Info),
        "debug" => Ok(log::LevelFilter::Debug),
        "trace" => Ok(log::LevelFilter::Trace),
        other => {
            let message =
                format!("log.level: {other:?} is none of error, warn, info, debug, trace");
            Err(check.error(level.span(), message))
        }
    }
}

fn guest(check: &Checker<'_>, table: &VmTable) -> Result<Guest, ConfigError> {
    let name = check.name("vm.name", &table.name)?;
    let memory_mib = *table.memory_mib.get_ref();
    if !(1..=MAX_MEMORY_MIB).contains(&memory_mib) {
        let message = format!("vm.memory_mib: {memory_mib} is not 1 to {MAX_MEMORY_MIB}");
        return Err(check.error(table.memory_mib.span(), message));
    }
    let limits = Limits {
        instructions: limit(
            check,
            "vm.instruction_limit",
            table.instruction_limit.as_ref(),
        )?,
        exits: limit(check, "vm.exit_limit", table.exit_limit.as_ref())?,
    };
    let kernel = check.file("vm.kernel", &table.kernel)?;
    let image = match table.format.get_ref().as_str() {
        "linux" => linux(check, table, kernel)?,
        "multiboot" => multiboot(check, table, kernel)?,
        "flat" => flat(check, table, kernel)?,
        other => {
            let message = format!("vm.format: {other:?} is none of linux, multiboot, flat");
            return Err(check.error(table.format.span(), message));
        }
    };
    Ok(Guest {
        name,
        memory_mib,
        cpu: cpu(check, table)?,
        image,
        test_devices: table.test_devices,
        test_ports: table.test_ports,
        console: console(check, table)?,
        limits,
        log: log_of(check, table)?,
        points: table.points,
        nics: Vec::new(),
    })
}

fn log_of(check: &Checker<'_>, table: &VmTable) -> Result<Log, ConfigError> {
    if let (None, Some(stop_at)) = (&table.replay, &table.stop_at) {
        let message = "vm.stop_at: only a guest that is replayed is stopped at a point";
        return Err(check.error(stop_at.span(), message));
    }
    match (&table.record, &table.replay) {
        (None, None) => Ok(Log::None),
        (Some(record), None) => Ok(Log::Record {
            every_exit: matches!(record.get_ref(), Record::Exit),
        }),
        (None, Some(file)) => Ok(Log::Replay {
            file: check.file("vm.replay", file)?,
            stop_at: table
                .stop_at
                .as_ref()
                .map(|point| stop_at(check, point))
                .transpose()?,
        }),
        (Some(_), Some(replay)) => {
            let message = "vm.replay: a guest that is replayed cannot be recorded";
            Err(check.error(replay.span(), message))
        }
    }
}

fn stop_at(check: &Checker<'_>, text: &Spanned<String>) -> Result<Point, ConfigError> {
    text.get_ref().parse().map_err(|_| {
        let message = format!("vm.stop_at: {:?} is not EXITS+INSTRUCTIONS", text.get_ref());
        check.error(text.span(), message)
    })
}

fn cpu(check: &Checker<'_>, table: &VmTable) -> Result<Cpu, ConfigError> {
    let Some(word) = &table.cpu else {
        return Ok(Cpu::Best);
    };
    match word.get_ref().as_str() {
        "best" => Ok(Cpu::Best),
        "x86-64-v2" => Ok(Cpu::Level(Level::V2)),
        "x86-64-v3" => Ok(Cpu::Level(Level::V3)),
        other => {
            let message = format!("vm.cpu: {other:?} is none of best, x86-64-v2, x86-64-v3");
            Err(check.error(word.span(), message))
        }
    }
}

fn console(check: &Checker<'_>, table: &VmTable) -> Result<Console, ConfigError> {
    match &table.console {
        Some(serial) if table.test_devices && *serial.get_ref() == Console::Serial => {
            let message = "vm.console: a guest with test devices has no serial port";
            Err(check.error(serial.span(), message))
        }
        other => Ok(other.as_ref().map_or(Console::default(), |c| *c.get_ref())),
    }
}

fn limit(
    check: &Checker<'_>,
    key: &str,
    value: Option<&Spanned<u64>>,
) -> Result<Option<u64>, ConfigError> {
    match value {
        Some(zero) if *zero.get_ref() == 0 => {
            let message = format!("{key}: 0 would never let the guest run");
            Err(check.error(zero.span(), message))
        }
        other => Ok(other.map(|limit| *limit.get_ref())),
    }
}

/// The command line, empty if there is none.
fn cmdline(check: &Checker<'_>, table: &VmTable) -> Result<String, ConfigError> {
    let Some(cmdline) = &table.cmdline else {
        return Ok(String::new());
    };
    let text = cmdline.get_ref();
    if text.len() > MAX_CMDLINE || text.contains('\0') {
        let message = format!("vm.cmdline: longer than {MAX_CMDLINE} bytes, or with a NUL");
        return Err(check.error(cmdline.span(), message));
    }
    Ok(text.clone())
}

/// Refuses a key that a format has no use for.
fn unused<T>(
    check: &Checker<'_>,
    key: Option<&Spanned<T>>,
    message: &str,
) -> Result<(), ConfigError> {
    key.map_or(Ok(()), |key| Err(check.error(key.span(), message)))
}

fn linux(check: &Checker<'_>, table: &VmTable, kernel: String) -> Result<Image, ConfigError> {
    unused(
        check,
        table.load_address.as_ref(),
        "vm.load_address: a linux kernel says itself where it is loaded",
    )?;
    unused(
        check,
        table.modules.as_ref(),
        "vm.modules: a linux kernel has none; vm.initrd is its RAM disk",
    )?;
    let initrd = table.initrd.as_ref();
    Ok(Image::Linux {
        kernel,
        initrd: initrd.map(|i| check.file("vm.initrd", i)).transpose()?,
        cmdline: cmdline(check, table)?,
    })
}

fn multiboot(check: &Checker<'_>, table: &VmTable, kernel: String) -> Result<Image, ConfigError> {
    unused(
        check,
        table.load_address.as_ref(),
        "vm.load_address: a multiboot kernel says itself where it is loaded",
    )?;
    unused(
        check,
        table.initrd.as_ref(),
        "vm.initrd: a multiboot kernel gets its files by vm.modules",
    )?;
    let cmdline = cmdline(check, table)?;
    let modules = table
        .modules
        .as_ref()
        .map(|m| m.get_ref().clone())
        .unwrap_or_default();
    if let Some(m) = &table.modules {
        for module in m.get_ref() {
            let file = module_file(module).unwrap_or_default();
            check.file("vm.modules", &Spanned::new(m.span(), file.to_owned()))?;
            if module.len() > MAX_CMDLINE || module.contains('\0') {
                let message = format!("vm.modules: longer than {MAX_CMDLINE} bytes, or with a NUL");
                return Err(check.error(m.span(), message));
            }
        }
    }
    Ok(Image::Multiboot {
        kernel,
        cmdline,
        modules,
    })
}

fn flat(check: &Checker<'_>, table: &VmTable, kernel: String) -> Result<Image, ConfigError> {
    unused(
        check,
        table.cmdline.as_ref(),
        "vm.cmdline: a flat image has no command line",
    )?;
    unused(
        check,
        table.modules.as_ref(),
        "vm.modules: a flat image has no modules",
    )?;
    unused(
        check,
        table.initrd.as_ref(),
        "vm.initrd: a flat image has no RAM disk",
    )?;
    let Some(address) = &table.load_address else {
        let message = "vm.load_address: missing, a flat image needs it";
        return Err(check.error(table.format.span(), message));
    };
    match u16::try_from(*address.get_ref()) {
        // Below lies the real-mode vector table.
        Ok(load_address) if load_address >= 0x500 => Ok(Image::Flat {
            kernel,
            load_address,
        }),
        _ => {
            let message = format!(
                "vm.load_address: {:#x} is not 0x500 to 0xffff",
                address.get_ref()
            );
            Err(check.error(address.span(), message))
        }
    }
}

#[cfg(test)]
mod tests;
