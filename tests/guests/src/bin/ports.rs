//! IN, OUT, INS and OUTS in every form.
//!
//! Broken by: a wrong operand size (upper register bits), string instructions that ignore DF, REP with count
//! 0, address size, segment bases or page borders, and a fault in the middle of a REP that loses its place.
//! The lines between `<` and `>` are printed by OUTS itself; the manifest expects them.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use guests::check::{self, Group};
use guests::cpu::{self, msr};
use guests::idt;
use guests::racy::{Page, Racy};
use guests::{console, paging, println};

/// Nothing answers here: reads give all ones.
const UNKNOWN: u16 = 0x1230;
/// Filler that no device returns.
const FILL: u8 = 0x77;

static PAGES: Racy<[Page; 2]> = Racy::new([Page::ZERO; 2]);

macro_rules! in_rax {
    ($code:literal, $port:expr, $rax:expr) => {{
        let mut rax: u64 = $rax;
        // SAFETY: a port read changes RAX only.
        unsafe { asm!($code, in("dx") $port, inout("rax") rax, options(nostack)) };
        rax
    }};
}

fn run() {
    sizes();
    console_port();
    outs();
    ins();
    faults_in_rep();
}

/// All ones of the right width, and the rest of RAX as the architecture says.
fn sizes() {
    let old = 0x1122_3344_5566_7788;
    let mut group = Group::new("in keeps or clears upper bits");
    for port in [UNKNOWN, 0x2ff0, 0xfff0] {
        group.equal(
            (port, "al, dx"),
            in_rax!("in al, dx", port, old),
            0x1122_3344_5566_77ff,
        );
        group.equal(
            (port, "ax, dx"),
            in_rax!("in ax, dx", port, old),
            0x1122_3344_5566_ffff,
        );
        group.equal(
            (port, "eax, dx"),
            in_rax!("in eax, dx", port, old),
            0xffff_ffff,
        );
    }
    group.equal(
        "al, imm",
        in_rax!("in al, 0xb8", 0_u16, old),
        0x1122_3344_5566_77ff,
    );
    group.equal(
        "ax, imm",
        in_rax!("in ax, 0xb8", 0_u16, old),
        0x1122_3344_5566_ffff,
    );
    group.equal("eax, imm", in_rax!("in eax, 0xb8", 0_u16, old), 0xffff_ffff);
    group.done();

    let mut group = Group::new("out changes no register");
    let rax = 0xa1b2_c3d4_e5f6_0718;
    group.equal("al, dx", in_rax!("out dx, al", UNKNOWN, rax), rax);
    group.equal("ax, dx", in_rax!("out dx, ax", UNKNOWN, rax), rax);
    group.equal("eax, dx", in_rax!("out dx, eax", UNKNOWN, rax), rax);
    group.equal("al, imm", in_rax!("out 0xb8, al", 0_u16, rax), rax);
    group.equal("ax, imm", in_rax!("out 0xb8, ax", 0_u16, rax), rax);
    group.equal("eax, imm", in_rax!("out 0xb8, eax", 0_u16, rax), rax);
    group.done();
}

fn console_port() {
    check::equal(
        "console port reads its number",
        cpu::in8(console::CONSOLE),
        0xe9,
    );
    for byte in *b"<out imm>\n" {
        // SAFETY: prints.
        unsafe { asm!("out 0xe9, al", in("al") byte, options(nostack)) };
    }
}

/// OUTS to the console; returns RSI and RCX behind it.
macro_rules! outs {
    ($code:literal, $rsi:expr, $rcx:expr) => {{
        let (mut rsi, mut rcx): (u64, u64) = ($rsi, $rcx);
        // SAFETY: reads the text and prints it.
        unsafe {
            asm!($code, "cld", in("dx") console::CONSOLE, inout("rsi") rsi, inout("rcx") rcx);
        }
        (rsi, rcx)
    }};
}

fn outs() {
    let at = PAGES.address();
    let put = |offset: u64, text: &[u8]| {
        // SAFETY: lies inside the two pages.
        unsafe {
            core::ptr::copy_nonoverlapping(text.as_ptr(), (at + offset) as *mut u8, text.len());
        }
    };
    put(0, b"<rep outsb>\n");
    let mut group = Group::new("outs registers");
    group.equal("rep", outs!("rep outsb", at, 12).0, at + 12);
    put(0, b"\n>dts bstuo per<");
    group.equal("std", outs!("std; rep outsb", at + 15, 16).0, at - 1);
    let (rsi, rcx) = outs!("rep outsb", at, 0);
    group.equal("count 0 rsi", rsi, at);
    group.equal("count 0 rcx", rcx, 0);
    put(0, b"<one>\n");
    let mut next = at;
    for _ in 0..6 {
        next = outs!("outsb", next, 99).0;
    }
    group.equal("single", next, at + 6);
    group.equal(
        "single keeps rcx",
        outs!("outs dx, byte ptr [rsi]", at + 5, 99).1,
        99,
    );
    put(4096 - 8, b"<outs over a page border>\n");
    group.equal(
        "border",
        outs!("rep outsb", at + 4096 - 8, 26).0,
        at + 4096 + 18,
    );
    put(0x40, b"<outs by fs>\n");
    // SAFETY: FS is not used otherwise.
    unsafe { cpu::wrmsr(msr::FS_BASE, at) };
    let (rsi, _) = outs!("rep outs dx, byte ptr fs:[rsi]", 0x40, 13);
    group.equal("fs override", rsi, 0x40 + 13);
    put(0x40, b"<outs by esi>\n");
    let (rsi, rcx) = outs!(
        "rep outs dx, byte ptr [esi]",
        0xdead_0000_0000_0000 | (at + 0x40),
        0xffff_0000_0000_000e
    );
    group.equal("esi", rsi, at + 0x40 + 14);
    group.equal("ecx", rcx & 0xffff_ffff, 0);
    group.done();

    // The value of wider OUTS cannot be seen; their registers can.
    let mut group = Group::new("outsw and outsd registers");
    for count in [0, 1, 5] {
        let (mut rsi, mut rcx) = (at, count);
        // SAFETY: reads the page.
        unsafe { asm!("rep outsw", in("dx") UNKNOWN, inout("rsi") rsi, inout("rcx") rcx) };
        group.equal(("outsw", count), (rsi - at) << 8 | rcx, (count * 2) << 8);
        (rsi, rcx) = (at, count);
        // SAFETY: reads the page.
        unsafe { asm!("rep outsd", in("dx") UNKNOWN, inout("rsi") rsi, inout("rcx") rcx) };
        group.equal(("outsd", count), (rsi - at) << 8 | rcx, (count * 4) << 8);
    }
    group.done();
}

fn clear() {
    // SAFETY: our pages, no reference held.
    unsafe { PAGES.address_as::<u8>().write_bytes(FILL, 8192) };
}

/// Checks that exactly `range` of the two pages holds `value`.
fn only(group: &mut Group, what: &'static str, range: core::ops::Range<u64>, value: u8) {
    for offset in 0..8192_u64 {
        // SAFETY: our pages.
        let got = unsafe {
            PAGES
                .address_as::<u8>()
                .add(offset as usize)
                .read_volatile()
        };
        let want = if range.contains(&offset) { value } else { FILL };
        if got != want {
            group.equal((what, offset), got, want);
            return;
        }
    }
    group.equal(what, 0, 0);
}

macro_rules! ins {
    ($code:literal, $port:expr, $rdi:expr, $rcx:expr) => {{
        clear();
        let (mut rdi, mut rcx): (u64, u64) = ($rdi, $rcx);
        // SAFETY: writes to our pages.
        unsafe { asm!($code, "cld", in("dx") $port, inout("rdi") rdi, inout("rcx") rcx) };
        (rdi, rcx)
    }};
}

fn ins() {
    let at = PAGES.address();
    let mut group = Group::new("ins");
    let cases: [(&'static str, u64, u64); 3] = [("byte", 1, 0), ("word", 2, 0), ("dword", 4, 0)];
    for (what, size, _) in cases {
        for count in [0_u64, 1, 3, 17] {
            let end = match size {
                1 => ins!("rep insb", UNKNOWN, at + 0x100, count),
                2 => ins!("rep insw", UNKNOWN, at + 0x100, count),
                _ => ins!("rep insd", UNKNOWN, at + 0x100, count),
            };
            only(&mut group, what, 0x100..0x100 + size * count, 0xff);
            group.equal((what, count, "rdi"), end.0, at + 0x100 + size * count);
            group.equal((what, count, "rcx"), end.1, 0);
        }
    }
    group.equal(
        "std rdi",
        ins!("std; rep insd", UNKNOWN, at + 0x100, 3).0,
        at + 0x100 - 12,
    );
    only(&mut group, "std", 0xf8..0x104, 0xff);
    group.equal("single rcx", ins!("insb", console::CONSOLE, at, 7).1, 7);
    only(&mut group, "single", 0..1, 0xe9);
    ins!("rep insb", console::CONSOLE, at + 4000, 200);
    only(&mut group, "page border", 4000..4200, 0xe9);
    ins!("rep insd", UNKNOWN, at + 4094, 1);
    only(&mut group, "element over the border", 4094..4098, 0xff);
    let (rdi, _) = ins!(
        "rep ins byte ptr [edi], dx",
        UNKNOWN,
        0xbad0_0000_0000_0000 | (at + 8),
        0x5500_0000_0000_0002
    );
    only(&mut group, "edi", 8..10, 0xff);
    group.equal("edi end", rdi, at + 10);
    ins!("rep insb", UNKNOWN, at, 8192);
    only(&mut group, "8192 bytes", 0..8192, 0xff);
    group.done();
}

/// The second page is taken away: the elements before it are done, the fault says where it goes on.
fn faults_in_rep() {
    let at = PAGES.address();
    let second = at + 4096;
    clear();
    paging::protect(second, 0);
    let mut registers = [0_u64; 3];
    let mut code = 0_u64;
    let fault = idt::catch(|| {
        idt::hook(14, Some(stop_at_fault));
        // SAFETY: the fault is handled by the hook, which maps the page.
        unsafe {
            asm!("lea {code}, [rip + 2f]", "2: rep insb", code = out(reg) code, in("dx") console::CONSOLE,
                 inout("rdi") second - 16 => registers[0], inout("rcx") 32_u64 => registers[1]);
        }
    });
    idt::hook(14, None);
    check::no_fault("rep insb goes on after a page fault", fault);
    let (first, rdi, rcx) = seen();
    check::fault("page fault inside rep insb", first, 14, 2, code);
    check::equal(
        "page fault inside rep insb: cr2",
        first.map_or(0, |f| f.cr2),
        second,
    );
    check::equal("rdi at the fault", rdi, second);
    check::equal("rcx at the fault", rcx, 16);
    check::equal("rdi at the end", registers[0], second + 16);
    let mut group = Group::new("bytes of the interrupted rep insb");
    only(&mut group, "all", 4096 - 16..4096 + 16, 0xe9);
    group.done();

    println!("<");
    paging::protect(second, 0);
    // SAFETY: our page; the text lies before the border.
    unsafe { ((second - 8) as *mut [u8; 8]).write_volatile(*b"<8 left>") };
    idt::hook(14, Some(stop_at_fault));
    // SAFETY: the fault is handled by the hook, which maps the page.
    unsafe {
        asm!("rep outsb", in("dx") console::CONSOLE, inout("rsi") second - 8 => registers[0],
             inout("rcx") 8 + 16_u64 => registers[1]);
    }
    idt::hook(14, None);
    println!("");
    let (first, _, rcx) = seen();
    check::fault_anywhere("page fault inside rep outsb", first, 14, 0);
    check::equal(
        "page fault inside rep outsb: cr2",
        first.map_or(0, |f| f.cr2),
        second,
    );
    check::equal("rcx of outsb at the fault", rcx, 16);
    check::equal("rsi of outsb at the end", registers[0], second + 16);
}

static SEEN: Racy<(Option<idt::Fault>, u64, u64)> = Racy::new((None, 0, 0));

fn seen() -> (Option<idt::Fault>, u64, u64) {
    // SAFETY: a copy; the handler has returned.
    unsafe { SEEN.get().read_volatile() }
}

/// Remembers the fault and maps the page; bytes there are printable.
fn stop_at_fault(frame: &mut idt::Frame) {
    let fault = idt::record(frame);
    // SAFETY: the main flow is interrupted.
    unsafe {
        SEEN.get()
            .write_volatile((Some(fault), frame.rdi, frame.rcx))
    };
    paging::protect(fault.cr2 & !0xfff, paging::P | paging::W);
    if frame.rsi == fault.cr2 {
        // SAFETY: the page was just mapped.
        unsafe { (fault.cr2 as *mut u8).write_bytes(b'.', 16) };
    }
    // What `catch` returns is for faults that ended the code.
    idt::forget();
}

guests::main!(run);
