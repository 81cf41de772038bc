//! Takes each kind of exit many times; the host's counters between the markers give the cost of one.
//! `bench| reason=R n=N` begins a section, `bench| end` ends it.
//!
//! Command line: `n=N`, default 10000.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::idt::{self, Frame};
use guests::{boot, command_line, cpu, generator, multiboot, println, scratch};

fn run() {
    let n = command_line::number("n", 10_000);
    idt::hook(0x50, Some(wake));
    section("cpuid", n, |_| {
        cpu::cpuid(0, 0);
    });
    section("rdtsc", n, |_| {
        cpu::rdtsc();
    });
    section("rdmsr", n, |_| {
        cpu::rdmsr(cpu::msr::EFER);
    });
    section("port-read", n, |_| {
        cpu::in8(0x80);
    });
    section("port-write", n, |_| cpu::out8(0x80, 0));
    let device = scratch::base() as *mut u32;
    section("mmio-read", n, |_| {
        // SAFETY: the scratch device.
        unsafe { device.read_volatile() };
    });
    // SAFETY: the scratch device.
    section("mmio-write", n, |round| unsafe {
        device.write_volatile(round as u32)
    });
    if generator::present() {
        // Two port writes and the HLT itself are part of each round.
        section("hlt", n, |_| {
            generator::raise(0x50, 100);
            // SAFETY: a handler is installed.
            unsafe { cpu::sti_hlt() };
        });
    }
    fresh_memory();
}

fn wake(_frame: &mut Frame) {}

fn section(reason: &str, n: u64, mut body: impl FnMut(u64)) {
    println!("bench| reason={reason} n={n}");
    for round in 0..n {
        body(round);
    }
    println!("bench| end");
}

/// One byte in each 2 MiB of memory that was not touched, then one in each of 4096 pages of 4 KiB there.
fn fresh_memory() {
    const LARGE: u64 = 2 << 20;
    let first = boot::image_end_address().next_multiple_of(LARGE);
    let end = multiboot::memory_end() & !(LARGE - 1);
    section("ram-fault", (end - first) / LARGE, |round| {
        // SAFETY: RAM behind the image.
        unsafe { ((first + round * LARGE) as *mut u8).write_volatile(1) };
    });
    section("touched-ram", ((end - first) >> 12).min(4096), |round| {
        // SAFETY: RAM behind the image.
        unsafe { ((first + round * 4096) as *mut u8).write_volatile(2) };
    });
}

guests::main!(run);
