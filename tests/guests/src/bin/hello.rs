//! Greets, and shows what the loader gave: command line, memory map, modules.
//!
//! Broken by: a wrong Multiboot hand-over, no long mode, a console or exit port that does not work.

#![no_std]
#![no_main]

use guests::{check, cpu, multiboot, println};

guests::main!(run);

fn run() {
    println!("hello from a guest");
    check::that("multiboot magic", multiboot::valid(), ());
    println!("loader: {}", multiboot::loader_name().unwrap_or("-"));
    println!("command line: {}", multiboot::command_line());
    if let Some((lower, upper)) = multiboot::basic_memory() {
        println!("memory: {lower} KiB low, {upper} KiB from 1 MiB");
    }
    for range in multiboot::memory_map() {
        println!(
            "range: {:#x} + {:#x} kind {}",
            range.base, range.length, range.kind
        );
    }
    for module in multiboot::modules() {
        let first = core::str::from_utf8(module.bytes).unwrap_or("<binary>");
        println!(
            "module: {} ({} bytes): {}",
            module.text,
            module.bytes.len(),
            first.trim_end()
        );
    }
    let vendor = cpu::cpuid(0, 0);
    println!(
        "cpuid: highest leaf {:#x}, on duet {}",
        vendor.eax,
        cpu::on_duet()
    );
    check::that(
        "memory map reaches as far as mem_upper",
        multiboot::memory_end() > 0x10_0000,
        multiboot::memory_end(),
    );
}
