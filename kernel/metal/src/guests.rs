//! The guests of this host: made from the configuration, run in turn, reported when they stop.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use devices::acpi_pm::TimerWidth;
use devices::chipset;
use vmm::board::Kind;
use vmm::config::{Config, Console, Cpu, Guest, Image, Log, Points};
use vmm::cpu::{CounterKind, Vcpu};
use vmm::host::Host;
use vmm::load::{self, GuestFiles, load};
use vmm::log::header::Header;
use vmm::machine::{Machine, Stop};
use vmm::memory::GuestMemory;
use vmm::nondet::{Door, Mode, Question};
use vmm::profile::{Leaf, Level, Profile};
use vmm::replay::Progress;
use vmm::report::{Dump, Exits};

use crate::archive::Archive;
use crate::cards::{self, Cards};
use crate::entropy::Entropy;
use crate::guest_ram::GuestRam;
use crate::logs::{self, Cursor, LogPartition, Sink};
use crate::power::{self, Outcome};
use crate::vt::{self, Backend, Vendor};
use crate::{clock, logger, mem, nic, serial, time, x86};

/// Host time that a guest gets before the next one's turn, in nanoseconds.
const SLICE_NS: u64 = 10_000_000;

/// The same while output waits for the serial port.
const OUTPUT_NS: u64 = 1_000_000;

impl GuestFiles for Archive {
    fn file(&self, name: &str) -> Option<&[u8]> {
        Archive::file(self, name)
    }
}

/// What guests ask of this host.
struct BareMetal {
    random: Option<ChaCha20Rng>,
    cards: Cards,
}

impl Host for BareMetal {
    fn now_ns(&mut self) -> u64 {
        time::now_ns()
    }

    fn random(&mut self) -> u64 {
        self.random.as_mut().map_or(0, Rng::next_u64)
    }

    fn unix_seconds(&mut self) -> u64 {
        clock::unix_seconds()
    }

    fn ticks(&self, ns: u64) -> u64 {
        time::ticks(ns)
    }

    fn console_byte(&mut self, byte: u8) {
        logger::console(byte);
    }

    fn console_input(&mut self) -> Option<u8> {
        serial::read()
    }

    fn console_line(&mut self, guest: &str, line: &[u8]) {
        logger::plain(format_args!("{guest}| {}", Printable(line)));
    }

    fn transmit(&mut self, guest: &str, nic: u8, frame: &[u8]) {
        self.cards.transmit(guest, nic, frame);
    }
}

/// Bytes of a guest as text: what is not ASCII is shown as `?`.
struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |b: &u8| if b.is_ascii() { char::from(*b) } else { '?' };
        self.0.iter().try_for_each(|b| f.write_char(shown(b)))
    }
}

/// Runs all guests until each has stopped. Success means that all ended as they wanted.
pub fn run(config: &Config, archive: Archive, entropy: Option<Entropy>) -> Outcome {
    let random = entropy.map(|entropy| ChaCha20Rng::from_seed(entropy.0));
    let host = BareMetal {
        random,
        cards: Cards::default(),
    };
    match Vendor::enable() {
        Ok(Vendor::Vmx(vmx)) => run_on(vmx, archive, config, host),
        Ok(Vendor::Svm(svm)) => run_on(svm, archive, config, host),
        Err(error) => power::fail(format_args!("{error}")),
    }
}

fn run_on<B: Backend>(
    mut backend: B,
    archive: Archive,
    config: &Config,
    mut host: BareMetal,
) -> Outcome {
    log::info!("guests are run by {}", B::NAME);
    vt::prove_counter(&mut backend, &config.test, host.random());
    if config.test.random_states != 0 {
        vt::try_random_states(&backend, config.test.random_states);
    }
    let mut outcome = Outcome::Success;
    let mut running = Vec::with_capacity(config.guests.len());
    // Guests that can ask to be started again need their files, and a log that is followed is one.
    let keep = config
        .guests
        .iter()
        .any(|guest| !guest.test_devices || guest.log != Log::None || config.test.replays != 0);
    let mut room = Room {
        backend: &backend,
        archive: Some(archive),
        config,
        host: &mut host,
    };
    for guest in &config.guests {
        match room.start(guest, Kept::of(guest, config)) {
            Ok(machine) => running.push(machine),
            Err(reason) => {
                log::error!("vm {}: not started: {reason}", guest.name);
                outcome = Outcome::Failure;
            }
        }
    }
    if !keep {
        room.archive = None;
    }
    log::info!("memory| hypervisor_kib={}", mem::usage().hypervisor >> 10);
    log::info!(
        "boot| entry_to_first_guest_ms={}",
        time::now_ns() / 1_000_000
    );
    while !running.is_empty() {
        // A 16550's queue of 16 bytes is empty after 1.4 ms.
        let slice = if serial::pump() { OUTPUT_NS } else { SLICE_NS };
        let frames_wait = nic::poll();
        let budget = time::ticks(nic::until_poll(slice, false));
        // The earliest moment at which a guest has something to do; 0: at once.
        let mut wake = u64::MAX;
        let mut again = Vec::new();
        running.retain_mut(
            |guest: &mut Running<'_, B>| match room.turn(guest, budget) {
                Turn::Runs(next) => {
                    wake = wake.min(next);
                    true
                }
                Turn::Over(ended) => {
                    room.host.cards.disconnect(&guest.guest.name);
                    outcome = outcome.and(ended);
                    again.extend(guest.replay_next());
                    false
                }
            },
        );
        for (guest, kept) in again {
            wake = 0;
            match room.start(guest, kept) {
                Ok(machine) => running.push(machine),
                Err(reason) => {
                    log::error!("vm {}: not replayed: {reason}", guest.name);
                    outcome = Outcome::Failure;
                }
            }
        }
        if wake != 0 && !frames_wait && !running.is_empty() {
            time::wait_until(wake.min(time::now_ns() + nic::until_poll(slice, true)));
        }
    }
    outcome
}

/// What becomes of a guest's log.
enum Kept {
    /// There is none.
    Nothing,
    /// It is written.
    Written { every_exit: bool },
    /// It is written to memory, and then the guest is replayed so many times.
    Tried { replays: u64 },
    /// It is read from a file.
    Read(String),
    /// It is read from memory: what is tried for the time `number`, of `replays`.
    Retried {
        log: Vec<Box<[u8]>>,
        number: u64,
        replays: u64,
    },
}

impl Kept {
    fn of(guest: &Guest, config: &Config) -> Self {
        match (&guest.log, config.test.replays) {
            (Log::Record { every_exit }, _) => Self::Written {
                every_exit: *every_exit,
            },
            (Log::Replay { file, .. }, _) => Self::Read(file.clone()),
            (Log::None, 0) => Self::Nothing,
            (Log::None, replays) => Self::Tried { replays },
        }
    }
}

/// A guest that runs.
struct Running<'a, B: Backend> {
    guest: &'a Guest,
    machine: Machine<B::Vcpu>,
    kept: Kept,
    sink: Sink,
    cursor: Cursor,
    /// Host time of its start, in nanoseconds.
    started: u64,
}

impl<'a, B: Backend> Running<'a, B> {
    /// The replay that follows when it has stopped.
    fn replay_next(&mut self) -> Option<(&'a Guest, Kept)> {
        let (log, number, replays) = match (
            core::mem::replace(&mut self.kept, Kept::Nothing),
            core::mem::replace(&mut self.sink, Sink::None),
        ) {
            (Kept::Tried { replays }, Sink::Memory(log)) => (log, 1, replays),
            (
                Kept::Retried {
                    log,
                    number,
                    replays,
                },
                _,
            ) => (log, number + 1, replays),
            _ => return None,
        };
        (number <= replays).then_some((
            self.guest,
            Kept::Retried {
                log,
                number,
                replays,
            },
        ))
    }
}

/// What a guest's turn came to.
enum Turn {
    /// It has something to do at this host time; 0: at once.
    Runs(u64),
    /// It is over.
    Over(Outcome),
}

/// What guests are started and run with.
struct Room<'a, B: Backend> {
    backend: &'a B,
    archive: Option<Archive>,
    config: &'a Config,
    host: &'a mut BareMetal,
}

impl<B: Backend> Room<'_, B> {
    fn start<'g>(&mut self, guest: &'g Guest, kept: Kept) -> Result<Running<'g, B>, String> {
        let archive = self.archive.as_ref().ok_or("its files are gone")?;
        let profile = profile(guest)?;
        let mut memory = GuestRam::new(guest.memory_mib << 20).map_err(|error| {
            format!(
                "vm.memory_mib: {} KiB wanted, {} KiB free",
                error.wanted >> 10,
                error.available >> 10
            )
        })?;
        let state = load(&guest.image, archive, &mut memory).map_err(|error| error.to_string())?;
        let mut vcpu = self.backend.new_vcpu().map_err(|error| error.to_string())?;
        vcpu.restore(&state);
        let header = || {
            Header::of(guest, &profile, vcpu.counter(), &memory, &state)
                .map_err(|_| "its memory cannot be read".to_string())
        };
        if !matches!(kept, Kept::Nothing)
            && guest.points == Points::Exact
            && vcpu.counter() == CounterKind::ExitOrdinal
        {
            return Err(
                "vm.points: no instruction counter is proven here, and a guest with a log needs one \
                 (\"exits\" does without)"
                    .into(),
            );
        }
        let mut sink = Sink::None;
        let mut cursor = Cursor::default();
        let mode = match &kept {
            Kept::Nothing => Mode::Live,
            Kept::Written { every_exit } => {
                let log = LogPartition::find().map_err(|e| format!("vm.record: {e}"))?;
                sink = Sink::Disk(Box::new(log));
                logs::recording(&header()?, *every_exit)
            }
            Kept::Tried { .. } => {
                sink = Sink::Memory(Vec::new());
                logs::recording(&header()?, self.config.test.check_exits)
            }
            Kept::Read(file) => {
                let log = archive
                    .file(file)
                    .ok_or_else(|| format!("vm.replay: no file {file:?}"))?;
                cursor = Cursor::behind_header(log, &header()?)
                    .map_err(|error| format!("vm.replay: {file}: {error}"))?;
                logs::replaying()
            }
            Kept::Retried { log, .. } => {
                let first = log.first().ok_or("its log is empty")?;
                cursor = Cursor::behind_header(first, &header()?)?;
                logs::replaying()
            }
        };
        let mut door = Door::new(self.host, mode);
        // What is asked before the first exit is asked while the machine is made.
        feed(&kept, archive, &mut cursor, &mut door);
        seed(&guest.image, &mut memory, &mut door, self.host);
        let test = &self.config.test;
        if test.leak_clock_at != 0 && !door.is_live() {
            door.leak_clock_at(test.leak_clock_at);
        }
        let mut running = Running {
            guest,
            machine: machine(guest, vcpu, memory, profile, door, self.host),
            kept,
            sink,
            cursor,
            started: time::now_ns(),
        };
        if test.slices != 0 && !matches!(running.kept, Kept::Nothing) {
            let number = match running.kept {
                Kept::Retried { number, .. } => number,
                _ => 0,
            };
            running.machine.slice(test.slices.wrapping_add(number));
        }
        if let Log::Replay {
            stop_at: Some(point),
            ..
        } = guest.log
        {
            running.machine.stop_at(point);
        }
        if running.machine.door().replayer().is_none() {
            self.host.cards.connect(guest);
        }
        log::info!("vm {}: started with {} MiB", guest.name, guest.memory_mib);
        Ok(running)
    }

    /// Lets a guest run, and takes or gives its log.
    fn turn(&mut self, running: &mut Running<'_, B>, budget: u64) -> Turn {
        if let Some(archive) = &self.archive {
            let door = running.machine.door();
            feed(&running.kept, archive, &mut running.cursor, door);
        }
        let guest = &running.guest.name;
        self.host.cards.deliver(guest, &mut running.machine);
        let stop = running.machine.run(self.host, budget);
        if let Some(recorder) = running.machine.door().recorder()
            && let Err(error) = running.sink.drain(recorder, stop.is_some())
        {
            log::error!("vm {}: its log cannot be kept: {error}", running.guest.name);
            return Turn::Over(Outcome::Failure);
        }
        let Some(stop) = stop else {
            return Turn::Runs(running.machine.idle_until().unwrap_or(0));
        };
        if let (Stop::Reset, Some(archive)) = (stop, &self.archive)
            && restart(running.guest, archive, &mut running.machine, self.host)
        {
            return Turn::Runs(0);
        }
        Turn::Over(report(running, stop))
    }
}

/// Loads a guest anew after it has reset itself. False if it cannot be loaded.
fn restart<V: Vcpu<Memory = GuestRam>>(
    guest: &Guest,
    archive: &Archive,
    machine: &mut Machine<V>,
    host: &mut BareMetal,
) -> bool {
    log::info!("vm {}: reset", guest.name);
    let memory = machine.memory();
    memory.clear();
    match load(&guest.image, archive, memory) {
        Ok(state) => {
            let (memory, door) = machine.memory_and_door();
            seed(&guest.image, memory, door, host);
            machine.restart(&state);
            true
        }
        Err(error) => {
            log::error!("vm {}: not started again: {error}", guest.name);
            false
        }
    }
}

/// Gives a guest that was just loaded a seed for its random numbers.
fn seed(image: &Image, memory: &mut GuestRam, door: &mut Door, host: &mut BareMetal) {
    let random = || door.take(host, Question::Random);
    if load::seed(image, memory, random).is_err() {
        log::warn!("a guest has too little memory for a seed");
    }
}

/// Gives a replayed guest more of its log.
fn feed(kept: &Kept, archive: &Archive, cursor: &mut Cursor, door: &mut Door) {
    let Some(replayer) = door.replayer() else {
        return;
    };
    match kept {
        Kept::Retried { log, .. } => cursor.feed(|piece| log.get(piece).map(|p| &**p), replayer),
        Kept::Read(file) => {
            let log = archive.file(file);
            cursor.feed(|piece| log.filter(|_| piece == 0), replayer);
        }
        Kept::Nothing | Kept::Written { .. } | Kept::Tried { .. } => {}
    }
}

fn machine<V: Vcpu<Memory = GuestRam>>(
    guest: &Guest,
    vcpu: V,
    memory: GuestRam,
    profile: Profile,
    mut door: Door,
    host: &mut BareMetal,
) -> Machine<V> {
    let devices = if guest.test_devices {
        Kind::Test
    } else {
        let clock_base = door.take(host, Question::WallClock);
        pc(guest, memory.size(), &profile, clock_base)
    };
    let mut limits = guest.limits;
    if door.replayer().is_some() {
        // Exits of this host's own making count too; the log says when it ends.
        limits.exits = None;
    }
    Machine::new(
        guest.name.clone(),
        vcpu,
        memory,
        profile,
        &devices,
        door,
        limits,
    )
}

/// The processor of a guest.
fn profile(guest: &Guest) -> Result<Profile, String> {
    let host = |leaf, subleaf| {
        let answer = x86::cpuid(leaf, subleaf);
        Leaf {
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
        }
    };
    let level = match guest.cpu {
        Cpu::Level(level) => Ok(level),
        Cpu::Best => Level::best(&host),
    };
    let profile = level
        .and_then(|level| Profile::new(level, &host))
        .map_err(|missing| format!("vm.cpu: {missing}"))?;
    log::info!("vm {}: its processor is {}", guest.name, profile.level());
    Ok(if guest.test_devices {
        profile
    } else {
        profile.with_local_apic()
    })
}

/// The chips of a guest that has a PC's.
fn pc(guest: &Guest, memory: u64, profile: &Profile, clock_base: u64) -> Kind {
    Kind::Pc {
        chips: chipset::Config {
            low_memory: memory,
            high_memory: 0,
            clock_base,
            serial: [true; 2],
            physical_address_bits: profile.physical_bits(),
            timer_width: TimerWidth::Bits32,
            virtio: cards::of(guest),
        },
        serial: guest.console == Console::Serial,
        test_ports: guest.test_ports,
    }
}

/// Says what became of a guest, and whether that is a success.
fn report<B: Backend>(running: &mut Running<'_, B>, stop: Stop) -> Outcome {
    let machine = &mut running.machine;
    let name = &running.guest.name;
    let mode = match machine.door().mode() {
        Mode::Live => "live",
        Mode::Recording(_) => "recorded",
        Mode::Replaying(_) => "replayed",
    };
    let ns = time::now_ns() - running.started;
    logger::plain(format_args!("run| vm={name} mode={mode} ns={ns}"));
    let Some(progress) = machine.door().replayer().map(|r| r.progress()) else {
        logger::plain(format_args!("vm {name}: stopped: {stop}"));
        lines(&Exits(machine).to_string());
        logs::report(name, machine.door(), logger::plain);
        if stop.wants_dump() {
            lines(&Dump(machine).to_string());
        }
        return Outcome::of(stop.is_success());
    };
    let Progress {
        entries,
        inputs,
        checks,
    } = progress;
    logger::plain(format_args!(
        "vm {name}: replayed: {stop} ({entries} entries, {inputs} inputs, {checks} checks)"
    ));
    lines(&Exits(machine).to_string());
    if let Some(divergence) = machine.divergence() {
        lines(&divergence.to_string());
    }
    if stop.wants_dump() {
        logger::plain(format_args!(
            "at {}, {} instructions",
            machine.point(),
            machine.vcpu().icount().0
        ));
        lines(&Dump(machine).to_string());
    }
    Outcome::of(stop != Stop::Diverged)
}

fn lines(text: &str) {
    text.lines()
        .for_each(|line| logger::plain(format_args!("{line}")));
}
