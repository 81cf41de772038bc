//! Duet, the bare-metal hypervisor: bring-up of one host, then its guests.
//!
//! [`start`] runs on the boot loader's stack and page tables and builds Duet's own; [`go_on`] does the rest
//! on those. What cannot work is said on the serial port and ends the run; nothing hangs silently.

#![no_std]
#![no_main]
// Bare metal: registers, page tables and devices are reached here and nowhere else; every block says why
// it is sound.
#![allow(unsafe_code)]

extern crate alloc;

mod acpi;
mod apic;
mod archive;
mod boot_info;
#[cfg(feature = "bringup-tests")]
mod bringup_tests;
mod cards;
mod clock;
mod disk;
mod entropy;
mod fpu;
mod gdt;
mod guest_ram;
mod guests;
mod interrupts;
mod logger;
mod logs;
mod mem;
mod nic;
mod panic;
mod pci;
mod power;
mod serial;
mod smp;
mod time;
mod vt;
mod x86;

use arch::addr::Hpa;
use arch::calibrate::TOLERANCE_PPM;
use bootloader_api::BootInfo;
use mem::paging::Built;
use mem::{frames, paging, stacks};
use spin::{Mutex, Once};
use vmm::config::{Config, WhenIdle};

use crate::archive::Archive;
use crate::boot_info::Boot;
use crate::gdt::InterruptStack;
use crate::power::fail;

bootloader_api::entry_point!(start, config = &boot_info::CONFIG);

/// Pages of the stack that everything runs on: guests' exits are handled on it.
const BOOT_STACK_PAGES: u64 = 32;
/// Pages of each interrupt stack: enough to report a panic.
const INTERRUPT_STACK_PAGES: u64 = 4;

/// The boot loader's information, checked.
static BOOT: Once<Boot> = Once::new();
/// What building the page tables left to do.
static BUILT: Mutex<Option<Built>> = Mutex::new(None);

/// The boot loader's jump: one processor, long mode, the boot loader's page tables, interrupts masked.
fn start(info: &'static mut BootInfo) -> ! {
    time::start();
    if serial::reconfigure(serial::COM1, 115_200).is_err() {
        // Nobody can be told; the configuration may name another port.
        serial::close();
    }
    logger::init();
    log::info!("duet {}", env!("CARGO_PKG_VERSION"));
    let selectors = gdt::init();
    interrupts::idt::init(&selectors);
    let boot = Boot::take(info).unwrap_or_else(|error| fail(format_args!("{error}")));
    panic::set_image_offset(boot.kernel_offset);
    if frames::init(&boot).is_err() {
        fail(format_args!("too little memory for the frame allocator"));
    }
    let boot = BOOT.call_once(|| boot);
    let built = paging::build(boot).unwrap_or_else(|error| fail(format_args!("{error}")));
    let stack = stacks::allocate("main", BOOT_STACK_PAGES)
        .unwrap_or_else(|error| fail(format_args!("{error}")));
    let root = built.root;
    *BUILT.lock() = Some(built);
    // SAFETY: the tables were just built and map the stack; `go_on` takes what it needs from statics.
    unsafe { paging::switch(root, stack.top, go_on) }
}

/// Everything after the switch to Duet's own page tables and stack.
extern "C" fn go_on() -> ! {
    let ramdisk = own_memory();
    if fpu::init().is_err() {
        fail(format_args!("the processor has no FXSAVE"));
    }
    let platform = BOOT.get().map(|boot| acpi::read(boot.rsdp));
    let platform = match platform {
        Some(Ok(platform)) => platform,
        Some(Err(error)) => fail(format_args!("{error}")),
        None => fail(format_args!("no boot information")),
    };
    if let Some(how) = platform.power_off {
        power::set_power_off(how);
    }
    start_clocks(&platform);
    smp::report(&platform);
    let functions = pci::enumerate(&platform);
    let archive = Archive::open(ramdisk).unwrap_or_else(|error| fail(format_args!("{error}")));
    log::debug!("guest files: {} KiB", archive.bytes() >> 10);
    let config = configure(&archive);
    // The level is known only now.
    pci::list(&functions);
    #[cfg(feature = "bringup-tests")]
    bringup_tests::run(&archive);
    let entropy = match entropy::gather(archive.seed()) {
        Ok((entropy, source)) => {
            log::info!("entropy: {source}");
            Some(entropy)
        }
        Err(entropy::NoEntropy) => {
            log::warn!("entropy: neither RDSEED nor a seed: this host cannot be one of a pair");
            None
        }
    };
    nic::start(&functions, &config, entropy.as_ref())
        .unwrap_or_else(|error| fail(format_args!("{error}")));
    let outcome = guests::run(&config, archive, entropy);
    nic::report_counters();
    report();
    logger::plain(format_args!("duet: all guests stopped"));
    match config.when_idle {
        WhenIdle::Poweroff => power::end(outcome),
        WhenIdle::Halt => power::stay(outcome),
    }
}

/// What the host went through besides running guests.
fn report() {
    let taken = interrupts::counters();
    log::debug!(
        "host interrupts: {} timer, {} NMI, {} spurious, {} unexpected",
        taken.timer,
        taken.nmi,
        taken.spurious,
        taken.unexpected
    );
    if taken.error > 0 {
        log::warn!(
            "LAPIC: {} errors, status {:#x}",
            taken.error,
            taken.error_status
        );
    }
    if serial::dropped() > 0 {
        log::warn!("serial: {} bytes dropped", serial::dropped());
    }
}

/// Reads `duet.toml` and applies what concerns the host.
fn configure(archive: &Archive) -> Config {
    let Some(bytes) = archive.file("duet.toml") else {
        fail(format_args!("guest files: duet.toml is missing"));
    };
    let Ok(text) = core::str::from_utf8(bytes) else {
        fail(format_args!("duet.toml: not UTF-8"));
    };
    let config = Config::parse(text).unwrap_or_else(|error| fail(format_args!("{error}")));
    power::set_emulator_exit(config.emulator_exit);
    logger::set_level(config.log_level);
    let (port, baud) = (config.serial.port, config.serial.baud);
    if let Err(error) = serial::reconfigure(port, baud) {
        fail(format_args!("duet.toml: {error}"));
    }
    log::info!("node {}", config.node_name);
    config
}

/// Interrupt stacks, the boot loader's memory, the check of the page tables. Gives the ramdisk.
fn own_memory() -> Option<(Hpa, u64)> {
    for stack in InterruptStack::ALL {
        let mapped = stacks::allocate(stack.name(), INTERRUPT_STACK_PAGES);
        let mapped = mapped.unwrap_or_else(|error| fail(format_args!("{error}")));
        // SAFETY: the stack was just mapped for this, and no handler is running.
        unsafe { gdt::set_interrupt_stack(stack, mapped.top) };
    }
    let built = BUILT.lock().take()?;
    let boot = BOOT.get()?;
    mem::reclaim(boot, &built);
    let audit = paging::audit();
    if let Some(at) = audit.violation {
        fail(format_args!(
            "paging: {at:#x} is both writable and executable"
        ));
    }
    log::info!(
        "memory: {} MiB of RAM; mapped: {} KiB text, {} KiB constants, no page writable and executable",
        boot.ram_bytes() >> 20,
        audit.executable >> 10,
        audit.read_only >> 10,
    );
    if boot.regions_dropped > 0 {
        log::warn!(
            "memory map: {} regions too many, not used",
            boot.regions_dropped
        );
    }
    Some((built.ramdisk?, boot.ramdisk?.length))
}

/// Interrupt controllers and clocks.
fn start_clocks(platform: &acpi::Platform) {
    interrupts::legacy::mask_8259();
    for at in &platform.io_apics {
        interrupts::legacy::mask_io_apic(*at);
    }
    apic::init().unwrap_or_else(|error| fail(format_args!("{error}")));
    let Ok(clocks) = time::calibrate(platform) else {
        fail(format_args!(
            "time: neither HPET nor PM timer nor PIT works"
        ));
    };
    log::info!(
        "time: TSC {}.{:03} MHz, {} (version {:#x}) timer {}.{:03} MHz, by the {}",
        clocks.tsc_hz / 1_000_000,
        clocks.tsc_hz / 1000 % 1000,
        if apic::is_x2apic() { "x2APIC" } else { "xAPIC" },
        apic::version(),
        apic::timer_frequency() / 1_000_000,
        apic::timer_frequency() / 1000 % 1000,
        clocks.reference
    );
    if clocks.spread_ppm > TOLERANCE_PPM {
        log::warn!("time: clocks disagree by {} ppm", clocks.spread_ppm);
    }
}
