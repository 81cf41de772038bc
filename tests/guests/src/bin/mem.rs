//! All RAM of a larger machine: zero at the start, and every page holds what is written.
//!
//! Broken by: memory that is not cleared, two guest pages on one host page, an edge that is off by a page, frames lost
//! when large pages are split.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::check::Group;
use guests::{boot, cpu, multiboot, println};

const PAGE: u64 = 4096;

fn run() {
    let start = boot::image_end_address()
        .next_multiple_of(PAGE)
        .max(used_by_loader());
    let end = multiboot::memory_end() & !(PAGE - 1);
    println!("memory under test: {start:#x} to {end:#x}");
    let mut group = Group::new("memory is zero at the start");
    // Backwards first in a part, so that not every frame is touched by its first byte.
    let mut page = end - PAGE;
    while page >= start {
        let sum = (0..PAGE / 8).fold(0, |sum, word| sum | read(page + word * 8));
        if sum != 0 && cpu::on_duet() {
            group.equal(page, sum, 0);
        }
        page -= PAGE;
    }
    group.equal("read", 0, 0);
    group.done();

    let mut group = Group::new("every page holds its own value");
    for page in pages(start, end) {
        write(page, page ^ 0x5555);
        write(page + PAGE - 8, !page);
    }
    for page in pages(start, end) {
        if read(page) != page ^ 0x5555 || read(page + PAGE - 8) != !page {
            group.equal(page, read(page), page ^ 0x5555);
        }
    }
    group.equal("compared", 0, 0);
    group.done();

    let mut group = Group::new("the edges of memory");
    write(end - 8, 0x1234);
    group.equal("last word", read(end - 8), 0x1234);
    if cpu::on_duet()
        && multiboot::memory_map()
            .filter(|range| range.kind == 1)
            .count()
            > 0
    {
        group.equal("behind the end", read(end), !0);
        write(end, 5);
        group.equal("behind the end is not memory", read(end), !0);
    }
    group.done();
}

/// First address behind what the loader placed above the image.
fn used_by_loader() -> u64 {
    let modules = multiboot::modules()
        .map(|module| module.bytes.as_ptr_range().end as u64)
        .max();
    let command_line = multiboot::command_line().as_ptr() as u64;
    let behind = modules
        .unwrap_or(0)
        .max(command_line)
        .max(multiboot::address());
    if behind < 0x10_0000 {
        0
    } else {
        behind.next_multiple_of(0x1_0000) + 0x1_0000
    }
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start..end).step_by(PAGE as usize)
}

fn read(at: u64) -> u64 {
    // SAFETY: RAM behind the image, or an address where nothing is.
    unsafe { (at as *const u64).read_volatile() }
}

fn write(at: u64, value: u64) {
    // SAFETY: as `read`.
    unsafe { (at as *mut u64).write_volatile(value) };
}

guests::main!(run);
