//! Duet, the bare-metal hypervisor: bring-up of one host, then its guests.

#![no_std]
#![no_main]
// Bare metal: registers, page tables and devices are reached here and nowhere else; every block says why
// it is sound.
#![allow(unsafe_code)]

extern crate alloc;

mod apic;
mod boot_info;
mod fpu;
mod gdt;
mod guest_ram;
mod interrupts;
mod logger;
mod mem;
mod panic;
mod power;
mod serial;
mod time;
mod vt;
mod x86;

use bootloader_api::BootInfo;

bootloader_api::entry_point!(start, config = &boot_info::CONFIG);

/// The boot loader's jump: one processor, long mode, the boot loader's page tables, interrupts masked.
fn start(info: &'static mut BootInfo) -> ! {
    time::start();
    if serial::reconfigure(serial::COM1, 115_200).is_err() {
        // Without a port there is nobody to tell; a configured port is tried later.
        serial::close();
    }
    logger::init();
    log::info!("duet {}", env!("CARGO_PKG_VERSION"));
    let selectors = gdt::init();
    interrupts::idt::init(&selectors);
    let boot = match boot_info::Boot::take(info) {
        Ok(boot) => boot,
        Err(error) => power::fail(format_args!("{error}")),
    };
    if mem::frames::init(&boot).is_err() {
        power::fail(format_args!("too little memory for the frame allocator"));
    }
    if apic::init().is_err() {
        power::fail(format_args!("the processor has no local APIC"));
    }
    if fpu::init().is_err() {
        power::fail(format_args!("the processor has no FXSAVE"));
    }
    log::info!("{} KiB of RAM", boot.ram_bytes() >> 10);
    vt::start();
    log::info!("duet: all guests stopped");
    power::end(power::Outcome::Success)
}
