//! The guests of this host: made from the configuration, run in turn, reported when they stop.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use devices::acpi_pm::TimerWidth;
use devices::chipset;
use vmm::board::Kind;
use vmm::config::{Config, Console, Guest};
use vmm::cpu::Vcpu;
use vmm::host::Host;
use vmm::load::{GuestFiles, load};
use vmm::machine::{Machine, Stop};
use vmm::memory::GuestMemory;
use vmm::nondet::{Door, Question};
use vmm::profile::{Leaf, Profile};
use vmm::report::{Dump, Exits};

use crate::archive::Archive;
use crate::entropy::Entropy;
use crate::guest_ram::GuestRam;
use crate::power::{self, Outcome};
use crate::vt::{self, Backend, Vendor};
use crate::{clock, logger, mem, serial, time, x86};

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
    let host = BareMetal { random };
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
    vt::prove_counter(&mut backend, config.test.counter_skew, host.random());
    if config.test.random_states != 0 {
        vt::try_random_states(&backend, config.test.random_states);
    }
    let profile = Profile::new(&|leaf, subleaf| {
        let answer = x86::cpuid(leaf, subleaf);
        Leaf {
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
        }
    });
    let mut outcome = Outcome::Success;
    let mut running = Vec::with_capacity(config.guests.len());
    for guest in &config.guests {
        match start(&backend, guest, &archive, &profile, &mut host) {
            Ok(machine) => running.push((guest, machine)),
            Err(reason) => {
                log::error!("vm {}: not started: {reason}", guest.name);
                outcome = Outcome::Failure;
            }
        }
    }
    // Guests that can ask to be started again need their files.
    let archive = config
        .guests
        .iter()
        .any(|guest| !guest.test_devices)
        .then_some(archive);
    log::info!("memory| hypervisor_kib={}", mem::usage().hypervisor >> 10);
    log::info!(
        "boot| entry_to_first_guest_ms={}",
        time::now_ns() / 1_000_000
    );
    while !running.is_empty() {
        // A 16550's queue of 16 bytes is empty after 1.4 ms.
        let slice = if serial::pump() { OUTPUT_NS } else { SLICE_NS };
        let budget = time::ticks(slice);
        // The earliest moment at which a guest has something to do; 0: at once.
        let mut wake = u64::MAX;
        running.retain_mut(|(guest, machine)| {
            let Some(stop) = machine.run(&mut host, budget) else {
                wake = wake.min(machine.idle_until().unwrap_or(0));
                return true;
            };
            let again = match (stop, &archive) {
                (Stop::Reset, Some(archive)) => restart(guest, archive, machine),
                _ => false,
            };
            if again {
                wake = 0;
                return true;
            }
            report(machine, stop);
            if !stop.is_success() {
                outcome = Outcome::Failure;
            }
            false
        });
        if wake != 0 && !running.is_empty() {
            time::wait_until(wake.min(time::now_ns() + slice));
        }
    }
    outcome
}

/// Loads a guest anew after it has reset itself. False if it cannot be loaded.
fn restart<V: Vcpu<Memory = GuestRam>>(
    guest: &Guest,
    archive: &Archive,
    machine: &mut Machine<V>,
) -> bool {
    log::info!("vm {}: reset", guest.name);
    let memory = machine.memory();
    memory.clear();
    match load(&guest.image, archive, memory) {
        Ok(state) => {
            machine.restart(&state);
            true
        }
        Err(error) => {
            log::error!("vm {}: not started again: {error}", guest.name);
            false
        }
    }
}

fn start<B: Backend>(
    backend: &B,
    guest: &Guest,
    archive: &Archive,
    profile: &Profile,
    host: &mut BareMetal,
) -> Result<Machine<B::Vcpu>, String> {
    let mut memory = GuestRam::new(guest.memory_mib << 20).map_err(|error| {
        alloc::format!(
            "vm.memory_mib: {} KiB wanted, {} KiB free",
            error.wanted >> 10,
            error.available >> 10
        )
    })?;
    let state = load(&guest.image, archive, &mut memory).map_err(|error| error.to_string())?;
    let mut vcpu = backend.new_vcpu().map_err(|error| error.to_string())?;
    vcpu.restore(&state);
    log::info!("vm {}: started with {} MiB", guest.name, guest.memory_mib);
    let mut door = Door::new(host);
    let (devices, profile) = if guest.test_devices {
        (Kind::Test, profile.clone())
    } else {
        (
            pc(
                guest,
                memory.size(),
                profile,
                door.take(host, Question::WallClock),
            ),
            profile.clone().with_local_apic(),
        )
    };
    Ok(Machine::new(
        guest.name.clone(),
        vcpu,
        memory,
        profile,
        &devices,
        door,
        guest.limits,
    ))
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
        },
        serial: guest.console == Console::Serial,
    }
}

fn report<V: Vcpu>(machine: &Machine<V>, stop: Stop) {
    logger::plain(format_args!("vm {}: stopped: {stop}", machine.name));
    lines(&Exits(machine).to_string());
    if stop.wants_dump() {
        lines(&Dump(machine).to_string());
    }
}

fn lines(text: &str) {
    text.lines()
        .for_each(|line| logger::plain(format_args!("{line}")));
}
