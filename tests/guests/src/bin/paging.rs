//! The guest's own page tables: demand paging, copy on write, protection bits, accessed and dirty bits, large pages.
//!
//! Broken by: guest page faults taken for nested ones or the other way, wrong error codes, translations kept after
//! INVLPG or a CR3 write, A/D bits not set, a walk that ignores NX, WP, U/S, SMEP or SMAP.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use guests::check::{self, Group};
use guests::idt::{self, Frame};
use guests::paging::{A, D, G, NX, P, PS, U, W};
use guests::racy::{Page, Racy};
use guests::{cpu, multiboot, paging, user};

const SPACE: u64 = 0x5000_0000;
/// Far from everything: a root entry of its own.
const HIGH: u64 = 0xffff_9000_0000_0000;

static FRAMES: Racy<[Page; 8]> = Racy::new([Page::ZERO; 8]);

fn frame(index: u64) -> u64 {
    FRAMES.address() + index * 4096
}

fn read(address: u64) -> u64 {
    // SAFETY: mapped by the caller, or the fault is what is checked.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: u64, value: u64) {
    // SAFETY: as `read`.
    unsafe { (address as *mut u64).write_volatile(value) };
}

fn run() {
    for index in 0..8 {
        write(frame(index), 0x1000 + index);
    }
    demand();
    copy_on_write();
    accessed_and_dirty();
    no_execute();
    supervisor_modes();
    // Lets ring 3 use pages that hold this guest's code: behind SMEP.
    protection();
    stale_translations();
    large_pages();
    upper_levels();
    context_identifiers();
}

static FAULTS: Racy<u64> = Racy::new(0);

fn faults() -> u64 {
    // SAFETY: a copy.
    unsafe { FAULTS.get().read_volatile() }
}

/// Maps pages of the space as they are touched: four frames in turn.
fn on_demand(frame_: &mut Frame) {
    let at = cpu::cr2();
    assert!(
        (SPACE..SPACE + 0x20_0000).contains(&at) && frame_.error & 1 == 0,
        "fault at {at:#x}"
    );
    // SAFETY: the main flow is interrupted.
    unsafe { *FAULTS.get() += 1 };
    paging::map(at & !0xfff, frame(at >> 12 & 3), P | W);
}

fn demand() {
    for page in 0..512 {
        paging::map(SPACE + page * 4096, 0, 0);
    }
    idt::hook(14, Some(on_demand));
    let mut group = Group::new("demand paging");
    for page in 0..512 {
        group.equal(page, read(SPACE + page * 4096), 0x1000 + (page & 3));
    }
    group.equal("faults", faults(), 512);
    for page in 0..512 {
        group.equal(page, read(SPACE + page * 4096), 0x1000 + (page & 3));
    }
    group.equal("no more faults", faults(), 512);
    group.done();
    idt::hook(14, None);
}

/// A write to a read-only page gets a copy.
fn on_write(frame_: &mut Frame) {
    assert!(frame_.error == 3, "error {:#x}", frame_.error);
    let page = cpu::cr2() & !0xfff;
    // SAFETY: frame 5 is free.
    unsafe { core::ptr::copy_nonoverlapping(page as *const u8, frame(5) as *mut u8, 4096) };
    paging::map(page, frame(5), P | W);
}

fn copy_on_write() {
    paging::map(SPACE, frame(0), P);
    idt::hook(14, Some(on_write));
    let mut group = Group::new("copy on write");
    group.equal("shared", read(SPACE), 0x1000);
    write(SPACE + 8, 77);
    group.equal("copy keeps the rest", read(SPACE), 0x1000);
    group.equal("copy has the change", read(SPACE + 8), 77);
    group.equal("original", read(frame(0) + 8), 0);
    group.done();
    idt::hook(14, None);
    // Without CR0.WP ring 0 writes anywhere.
    paging::map(SPACE, frame(6), P);
    // SAFETY: WP is put back.
    unsafe { cpu::set_cr0(cpu::cr0() & !(1 << 16)) };
    let got = idt::catch(|| write(SPACE + 16, 5));
    // SAFETY: as it was.
    unsafe { cpu::set_cr0(cpu::cr0() | 1 << 16) };
    check::no_fault("write without WP", got);
    check::equal("written without WP", read(frame(6) + 16), 5);
    check::fault_anywhere("write with WP", idt::catch(|| write(SPACE + 16, 6)), 14, 3);
}

fn accessed_and_dirty() {
    let mut group = Group::new("accessed and dirty bits");
    paging::map(SPACE, frame(0), P | W);
    group.equal("fresh", paging::read(SPACE) & (A | D), 0);
    read(SPACE);
    group.equal("read", paging::read(SPACE) & (A | D), A);
    write(SPACE, 0x1000);
    group.equal("write", paging::read(SPACE) & (A | D), A | D);
    paging::map(SPACE, frame(0), P | W);
    group.equal("cleared", paging::read(SPACE) & (A | D), 0);
    write(SPACE, 0x1000);
    group.equal("write again", paging::read(SPACE) & (A | D), A | D);
    // SAFETY: a table entry of ours.
    let directory = unsafe { paging::entry(SPACE, 2).read_volatile() };
    group.equal("directory", directory & A, A);
    group.done();
}

fn protection() {
    paging::map(SPACE, frame(0), P | W);
    let user_error = from_user_read(SPACE);
    check::equal("user read of a supervisor page", user_error, 5);
    paging::map(SPACE, frame(0), P | U);
    check::equal("user read of a user page", from_user_read(SPACE), 0x1000);
    paging::map(SPACE, 0, 0);
    check::equal("user read of nothing", from_user_read(SPACE), 4);
}

/// Reads an address in ring 3: the value, or the error code of the page fault.
fn from_user_read(address: u64) -> u64 {
    user::run(read_in_user as *const () as u64, address).unwrap_or_else(|fault| fault.error)
}

guests::snippet!(
    read_in_user,
    read_in_user_at,
    [],
    ["mov rax, [rdi]", "int 0x80"]
);

/// A function of one RET in frame 7.
fn place_code() {
    // SAFETY: frame 7 is free.
    unsafe { (frame(7) as *mut u8).write_volatile(0xc3) };
}

fn call(address: u64) {
    // SAFETY: a RET is there, or the fault is what is checked.
    unsafe { asm!("call {}", in(reg) address) };
}

fn no_execute() {
    if !cpu::has_extended_d(20) {
        check::skip("no-execute", "not offered");
        return;
    }
    place_code();
    paging::map(SPACE, frame(7), P);
    check::no_fault("execute", idt::catch(|| call(SPACE)));
    paging::map(SPACE, frame(7), P | NX);
    check::fault(
        "NX without EFER.NXE is reserved",
        idt::catch(|| call(SPACE)),
        14,
        reserved_fetch(),
        SPACE,
    );
    let efer = cpu::rdmsr(cpu::msr::EFER);
    // SAFETY: enables a bit that no entry in use has set.
    unsafe { cpu::wrmsr(cpu::msr::EFER, efer | 1 << 11) };
    check::fault(
        "execute an NX page",
        idt::catch(|| call(SPACE)),
        14,
        0x11,
        SPACE,
    );
    check::equal("read an NX page", read(SPACE) & 0xff, 0xc3);
    paging::map(SPACE, frame(7), P);
    check::no_fault("execute again", idt::catch(|| call(SPACE)));
    paging::map(SPACE, 0, 0);
    check::fault(
        "fetch from nothing",
        idt::catch(|| call(SPACE)),
        14,
        0x10,
        SPACE,
    );
}

/// Without NXE a fetch shows no I bit; TCG leaves out P with RSVD.
fn reserved_fetch() -> u64 {
    if cpu::is_tcg() { 8 } else { 9 }
}

fn supervisor_modes() {
    place_code();
    let cr4 = cpu::cr4();
    if cpu::has_7b(7) {
        paging::map(SPACE, frame(7), P | U);
        // SAFETY: all code runs from supervisor pages.
        unsafe { cpu::set_cr4(cr4 | 1 << 20) };
        check::fault("SMEP", idt::catch(|| call(SPACE)), 14, 0x11, SPACE);
        // SAFETY: as it was.
        unsafe { cpu::set_cr4(cr4) };
        check::no_fault("without SMEP", idt::catch(|| call(SPACE)));
    } else {
        check::skip("SMEP", "not offered");
    }
    if cpu::has_7b(20) {
        paging::map(SPACE, frame(0), P | U | W);
        // SAFETY: all data lies in supervisor pages.
        unsafe { cpu::set_cr4(cr4 | 1 << 21) };
        check::fault_anywhere("SMAP", idt::catch(|| write(SPACE, 1)), 14, 3);
        let got = idt::catch(|| {
            // SAFETY: STAC allows the access.
            unsafe { asm!("stac") };
            write(SPACE, 0x1000);
            // SAFETY: as it was.
            unsafe { asm!("clac") };
        });
        check::no_fault("STAC", got);
        // SAFETY: as it was.
        unsafe { cpu::set_cr4(cr4) };
    } else {
        check::skip("SMAP", "not offered");
    }
}

/// Remapping with the invalidation that the architecture asks for.
fn stale_translations() {
    let mut group = Group::new("remapping");
    for round in 0..64 {
        paging::map(SPACE, frame(round & 3), P | W);
        group.equal((round, "invlpg"), read(SPACE), 0x1000 + (round & 3));
        cpu::cpuid(0, 0);
        // SAFETY: an entry of the space; CR3 is written next.
        unsafe {
            paging::entry(SPACE, 1).write_volatile(frame((round + 1) & 3) | P | W);
            cpu::set_cr3(cpu::cr3());
        }
        group.equal((round, "cr3"), read(SPACE), 0x1000 + ((round + 1) & 3));
    }
    group.done();
    let cr4 = cpu::cr4();
    let mut group = Group::new("global pages");
    // SAFETY: PGE changes only what a CR3 write drops.
    unsafe { cpu::set_cr4(cr4 | 0x80) };
    paging::map(SPACE, frame(0), P | W | G);
    group.equal("global", read(SPACE), 0x1000);
    // SAFETY: changing PGE drops everything.
    unsafe {
        paging::entry(SPACE, 1).write_volatile(frame(1) | P | W | G);
        cpu::set_cr4(cr4);
    }
    group.equal("PGE off drops it", read(SPACE), 0x1001);
    paging::map(SPACE, frame(2), P | W);
    group.equal("invlpg drops it", read(SPACE), 0x1002);
    group.done();
}

fn large_pages() {
    let mut group = Group::new("large pages");
    // SAFETY: an address that nothing uses, mapped to RAM that the image lies in.
    unsafe { paging::entry(0x8000_0000, 2).write_volatile(P | W | PS) };
    cpu::invlpg(0x8000_0000);
    group.equal("2 MiB", read(0x8000_0000 + frame(3)), 0x1003);
    let got = idt::catch(|| {
        // SAFETY: bit 13 is reserved in a large page's entry.
        unsafe { paging::entry(0x8000_0000, 2).write_volatile(P | W | PS | 1 << 13) };
        cpu::invlpg(0x8000_0000);
        read(0x8000_0000 + frame(3));
    });
    group.that(
        "reserved bit",
        got.is_some_and(|f| f.vector == 14 && f.error & 8 == 8),
        format_args!("{got:?}"),
    );
    if cpu::has_extended_d(26) {
        // SAFETY: an address that nothing uses.
        unsafe { paging::entry(HIGH, 3).write_volatile(P | W | PS) };
        group.equal("1 GiB", read(HIGH + frame(2)), 0x1002);
    }
    group.done();
}

fn upper_levels() {
    let mut group = Group::new("four levels");
    let high = HIGH + (1 << 30);
    paging::map(high, frame(1), P | W);
    group.equal("high half", read(high), 0x1001);
    // The entry above forbids writing: the page cannot allow it.
    let directory = paging::entry(high, 2);
    // SAFETY: a table of ours.
    unsafe { directory.write_volatile(directory.read_volatile() & !W) };
    cpu::invlpg(high);
    let got = idt::catch(|| write(high, 1));
    group.that(
        "write through a read-only directory",
        got.is_some_and(|f| f.error == 3),
        format_args!("{got:?}"),
    );
    // A table in memory that was never touched: empty.
    let fresh = (multiboot::memory_end() - 0x20_0000) & !0xfff;
    // SAFETY: RAM that nothing uses.
    unsafe { paging::entry(HIGH + (2 << 30), 3).write_volatile(fresh | P | W) };
    let got = idt::catch(|| {
        read(HIGH + (2 << 30));
    });
    group.that(
        "fresh directory",
        got.is_some_and(|f| f.vector == 14 && f.error == 0),
        format_args!("{got:?}"),
    );
    group.done();
}

fn context_identifiers() {
    if !cpu::has_1c(17) {
        check::skip("PCID", "not offered");
        return;
    }
    let (cr3, cr4) = (cpu::cr3(), cpu::cr4());
    let mut group = Group::new("PCID");
    // SAFETY: CR3's low bits are 0; the tables stay the same.
    unsafe {
        cpu::set_cr4(cr4 | 1 << 17);
        paging::map(SPACE, frame(0), P | W);
        for identifier in [1, 2, 0xfff, 1] {
            cpu::set_cr3(cr3 | identifier);
            group.equal(("cr3", identifier), cpu::cr3(), cr3 | identifier);
            group.equal(identifier, read(SPACE), 0x1000);
        }
        cpu::set_cr3(cr3 | 1 | 1 << 63);
        group.equal("no-flush bit is not kept", cpu::cr3(), cr3 | 1);
        let got = idt::catch(|| cpu::set_cr4(cr4 & !(1 << 17)));
        group.that(
            "PCIDE off keeps working",
            got.is_none(),
            format_args!("{got:?}"),
        );
        cpu::set_cr3(cr3);
        cpu::set_cr4(cr4);
    }
    group.done();
}

guests::main!(run);
