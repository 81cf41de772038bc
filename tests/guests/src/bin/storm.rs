//! A PC under a storm of interrupts at odd times, in everything that makes replaying one hard.
//!
//! What it does depends on where each interrupt hits: the handler folds the interrupted registers into a hash, which is
//! printed now and then. It checks little itself; its replay has to print the same.
//!
//! Broken by: an interrupt that a replay delivers one instruction early or late, in another iteration of a repeated
//! instruction or on the other side of a fault; time, or a register of the floating-point unit, that is not the recorded one.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // a kernel: registers, page tables, code that changes itself

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use guests::check::{self, Group};
use guests::cpu::{self, msr};
use guests::idt::{self, Frame};
use guests::paging::{self, P, W};
use guests::racy::{Page, Racy};
use guests::random::Random;
use guests::{command_line, gdt, println, user};

/// x2APIC registers (SDM 3 11.12.1.2).
mod x2apic {
    pub(super) const EOI: u32 = 0x80b;
    pub(super) const SPURIOUS: u32 = 0x80f;
    pub(super) const COMMAND: u32 = 0x830;
    pub(super) const TIMER: u32 = 0x832;
    pub(super) const INITIAL_COUNT: u32 = 0x838;
    pub(super) const CURRENT_COUNT: u32 = 0x839;
    pub(super) const DIVIDE: u32 = 0x83e;
}

const VECTOR: u8 = 0x40;
const NMI: u8 = 2;
const UNDEFINED: u8 = 6;
const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;
/// Where pages are mapped and unmapped: nothing else is there.
const WINDOW: u64 = 0x70_0000_0000;
const WINDOW_PAGES: u64 = 16;
/// The I/O APIC, mapped behind the window.
const IO_APIC: u64 = 0xfec0_0000;
const IO_APIC_WINDOW: u64 = WINDOW + 0x10_0000;

static TICKS: AtomicU64 = AtomicU64::new(0);
static HASH: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Ticks after which the fault that is waited for is handled.
static PATIENCE: AtomicU64 = AtomicU64::new(0);
static BUFFERS: Racy<[Page; 16]> = Racy::new([Page::ZERO; 16]);
static CODE: Racy<Page> = Racy::new(Page::ZERO);
static COPIES: Racy<[Page; WINDOW_PAGES as usize]> = Racy::new([Page::ZERO; WINDOW_PAGES as usize]);

fn fold(value: u64) {
    let hash = HASH.load(Ordering::Relaxed) ^ value;
    let hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    HASH.store(hash, Ordering::Relaxed);
}

fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// Asks for the next interrupt, after an interval that depends on all that has happened.
fn arm() {
    let hash = HASH.load(Ordering::Relaxed);
    // SAFETY: the timer interrupts, which is what this guest is about.
    unsafe { cpu::wrmsr(x2apic::INITIAL_COUNT, 30_000 + (hash >> 20) % 200_000) };
}

fn on_tick(frame: &mut Frame) {
    for value in [
        frame.rip,
        frame.rcx,
        frame.rsi,
        frame.rdi,
        frame.rax,
        frame.rflags,
    ] {
        fold(value);
    }
    TICKS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the interrupt is over.
    unsafe { cpu::wrmsr(x2apic::EOI, 0) };
    arm();
}

fn on_nmi(frame: &mut Frame) {
    fold(frame.rip);
    fold(0x4e4d49);
}

/// UD2: an exception inside of its handler, with interrupts on.
fn on_undefined(frame: &mut Frame) {
    fold(frame.rip);
    // SAFETY: handlers are re-entrant, the stack is large enough.
    unsafe { asm!("sti", "int3", "cli") };
    frame.rip += 2;
}

fn on_breakpoint(frame: &mut Frame) {
    fold(frame.rip);
}

/// The first write to a page copies it; a page that is waited for is there when enough ticks have come.
fn on_page_fault(frame: &mut Frame) {
    let address = cpu::cr2();
    let index = address.wrapping_sub(WINDOW) >> 12;
    if index >= WINDOW_PAGES {
        println!("FAIL page fault at {address:#x}");
        return idt::abandon(frame);
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
    if ticks() < PATIENCE.load(Ordering::Relaxed) {
        // Again, until then: the processor executes nothing but faults and handlers.
        return;
    }
    let copy = COPIES.address() + (index << 12);
    let original = paging::read(address & !0xfff) & 0xf_ffff_f000;
    if original != 0 && original != copy {
        // SAFETY: two pages of ours, mapped where they are.
        unsafe {
            core::ptr::copy_nonoverlapping(original as *const u8, copy as *mut u8, 4096);
        }
    }
    paging::map(address & !0xfff, copy, P | W);
    fold(address);
}

fn time() {
    for _ in 0..20 {
        fold(cpu::rdtsc());
    }
    fold(cpu::rdmsr(x2apic::CURRENT_COUNT));
}

fn devices() {
    cpu::out8(0x43, 0);
    fold(u64::from(cpu::in8(0x40)) << 8 | u64::from(cpu::in8(0x40)));
    fold(cpu::in8(0x61).into());
    cpu::out8(0x70, 0);
    fold(cpu::in8(0x71).into());
    cpu::out8(0x3f8 + 7, HASH.load(Ordering::Relaxed) as u8);
    fold(cpu::in8(0x3f8 + 7).into());
    fold(cpu::in32(0x608).into());
    let select = IO_APIC_WINDOW as *mut u32;
    // SAFETY: the I/O APIC's index and data registers; the version has no effect.
    unsafe {
        select.write_volatile(1);
        fold(select.byte_add(16).read_volatile().into());
    }
}

fn repeated() {
    let from = BUFFERS.address();
    let to = from + 8 * 4096;
    for (count, element) in [(8 * 4096, 1_u64), (4096, 8), (0, 1), (3, 1)] {
        // SAFETY: both halves of the buffers, each of them 32 KiB.
        unsafe {
            if element == 1 {
                asm!("rep movsb", inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _);
            } else {
                let value = HASH.load(Ordering::Relaxed);
                asm!("rep stosq", inout("rcx") count => _, inout("rdi") from => _, in("rax") value);
            }
        }
    }
    // SAFETY: inside of the buffers; a comparison that ends in the middle.
    unsafe {
        let left: u64;
        asm!("repe cmpsb", inout("rcx") 8 * 4096_u64 => left, inout("rsi") from => _, inout("rdi") to => _);
        fold(left);
    }
}

fn modified() {
    let at = CODE.address();
    for round in 0..50_u32 {
        // mov eax, imm32; ret
        let [a, b, c, d] = (round ^ ticks() as u32).to_le_bytes();
        for (offset, byte) in [0xb8, a, b, c, d, 0xc3].into_iter().enumerate() {
            // SAFETY: a page that holds nothing but this code.
            unsafe { (at as *mut u8).add(offset).write_volatile(byte) };
        }
        let value: u64;
        // SAFETY: the code just placed.
        unsafe { asm!("call {}", in(reg) at, out("rax") value) };
        fold(value);
    }
}

fn copied() {
    let original = BUFFERS.address();
    for index in 0..WINDOW_PAGES {
        let page = WINDOW + (index << 12);
        paging::map(page, original + ((index & 7) << 12), P);
        // SAFETY: mapped; the write faults, and the handler maps a copy.
        unsafe {
            let word = (page + 8 * (ticks() & 0x1ff)) as *mut u64;
            fold(word.read_volatile());
            word.write_volatile(index ^ ticks());
            fold(word.read_volatile());
        }
    }
}

fn waited_for() {
    let page = WINDOW;
    paging::map(page, 0, 0);
    PATIENCE.store(ticks() + 2, Ordering::Relaxed);
    // SAFETY: faults until the handler maps it.
    unsafe { fold((page as *const u64).read_volatile()) };
    PATIENCE.store(0, Ordering::Relaxed);
}

global_asm!(
    ".pushsection .text",
    ".global storm_syscall, storm_user",
    "storm_syscall:", // interrupts are off: the stack is the user's
    "lea rax, [rax + rcx]",
    "sysretq",
    "storm_user:",
    "mov rbx, rdi",
    "xor eax, eax",
    "2:",
    "push rax",
    "syscall",
    "pop rdx",
    "imul rax, rdx",
    "add rax, rbx",
    "dec rbx",
    "jnz 2b",
    "int 0x80",
    ".popsection",
);

unsafe extern "C" {
    fn storm_syscall();
    fn storm_user();
}

fn ring3() {
    const INTERRUPTS_ON: u64 = 0x202;
    match user::run_with(
        storm_user as *const () as u64,
        300,
        gdt::USER_CODE64,
        INTERRUPTS_ON,
    ) {
        Ok(value) => fold(value),
        Err(fault) => check::that("ring 3", false, fault),
    }
    // The way back is an interrupt gate, left by abandoning its frame.
    sti();
}

fn extended() {
    let mut words = [0x3ff8_0000_0000_0000_u64, 0x4009_21fb_5444_2d18, 0, 0];
    // SAFETY: the guest uses no floating-point registers elsewhere; SSE is on.
    unsafe {
        asm!(
            "fninit",
            "fld qword ptr [{p}]",
            "fld qword ptr [{p} + 8]",
            "mov ecx, 400",
            "2:",
            "fmul st(0), st(1)",
            "fsqrt",
            "movsd xmm0, [{p}]",
            "movsd xmm7, [{p} + 8]",
            "mulsd xmm7, xmm0",
            "sqrtsd xmm7, xmm7",
            "movsd [{p} + 8], xmm7",
            "dec ecx",
            "jnz 2b",
            "fstp qword ptr [{p} + 16]",
            "fstp st(0)",
            "movsd [{p} + 24], xmm7",
            p = in(reg) words.as_mut_ptr(),
            out("ecx") _,
        );
    }
    words.into_iter().for_each(fold);
    if cpu::has_1c(28) {
        // SAFETY: AVX is on, and used nowhere else.
        unsafe {
            asm!(
                "vmovq xmm1, {value}",
                "vinsertf128 ymm2, ymm1, xmm1, 1",
                "mov ecx, 200",
                "2:",
                "vxorps ymm3, ymm2, ymm3",
                "vshufps ymm2, ymm3, ymm2, 0x1b",
                "dec ecx",
                "jnz 2b",
                "vextractf128 xmm4, ymm2, 1",
                "vmovq {value}, xmm4",
                value = inout(reg) HASH.load(Ordering::Relaxed) => words[0],
                out("ecx") _,
            );
        }
        fold(words[0]);
    }
}

fn nested() {
    // SAFETY: its handler steps over it.
    unsafe { asm!("ud2") };
    // An NMI to this processor: the handler runs before the next instruction but one.
    const DELIVERY_NMI: u64 = 4 << 8;
    // SAFETY: there is a handler.
    unsafe { cpu::wrmsr(x2apic::COMMAND, DELIVERY_NMI) };
}

fn waiting() {
    let before = ticks();
    while ticks() == before {
        // SAFETY: the timer runs.
        unsafe { asm!("sti", "hlt") };
    }
    fold(cpu::rdtsc());
}

fn masked() {
    for round in 0..30_u64 {
        // SAFETY: interrupts wait, and come behind the shadow.
        unsafe {
            asm!("cli", "mov {t:e}, ss", "mov ss, {t:e}", "nop", "sti", "nop", t = out(reg) _)
        };
        fold(round);
    }
    // SAFETY: the priority holds the timer back for a while.
    unsafe {
        cpu::set_cr8(15);
        time();
        cpu::set_cr8(0);
    }
}

const PARTS: [(&str, fn()); 11] = [
    ("time", time),
    ("devices", devices),
    ("repeated instructions", repeated),
    ("self-modifying code", modified),
    ("pages copied on write", copied),
    ("a page waited for", waited_for),
    ("ring 3 and SYSCALL", ring3),
    ("x87, SSE, AVX", extended),
    ("nested exceptions and NMIs", nested),
    ("waiting", waiting),
    ("masked interrupts", masked),
];

fn sti() {
    // SAFETY: there are handlers for what comes.
    unsafe { asm!("sti") };
}

fn set_up() {
    idt::hook(VECTOR, Some(on_tick));
    idt::hook(NMI, Some(on_nmi));
    idt::hook(UNDEFINED, Some(on_undefined));
    idt::hook(BREAKPOINT, Some(on_breakpoint));
    idt::hook(PAGE_FAULT, Some(on_page_fault));
    paging::map(IO_APIC_WINDOW, IO_APIC, P | W);
    const FXSR_AND_SSE: u64 = 3 << 9;
    const OSXSAVE: u64 = 1 << 18;
    const MONITOR_COPROCESSOR: u64 = 1 << 1;
    const EMULATION: u64 = 1 << 2;
    // SAFETY: switches the extended state on; STAR and LSTAR are valid; the APIC interrupts from `arm` on.
    unsafe {
        cpu::set_cr0(cpu::cr0() & !EMULATION | MONITOR_COPROCESSOR);
        cpu::set_cr4(cpu::cr4() | FXSR_AND_SSE);
        if cpu::has_1c(28) {
            cpu::set_cr4(cpu::cr4() | OSXSAVE);
            cpu::xsetbv(0, 7);
        }
        cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | 1);
        // SYSRET's selectors are 16 and 8 above.
        let user_base = u64::from(gdt::USER_CODE64 - 16);
        cpu::wrmsr(msr::STAR, user_base << 48 | u64::from(gdt::CODE64) << 32);
        cpu::wrmsr(msr::LSTAR, storm_syscall as *const () as u64);
        cpu::wrmsr(msr::SFMASK, 0x200);
        cpu::wrmsr(msr::APIC_BASE, cpu::rdmsr(msr::APIC_BASE) | 3 << 10);
        cpu::wrmsr(x2apic::SPURIOUS, 0x1ff);
        cpu::wrmsr(x2apic::DIVIDE, 0xb);
        cpu::wrmsr(x2apic::TIMER, VECTOR.into());
    }
}

fn run() {
    if !cpu::on_duet() {
        return check::skip("the storm", "a PC with an x2APIC on Duet");
    }
    set_up();
    let mut random = Random::new(command_line::number("seed", 1));
    let wanted = command_line::number("ticks", 10);
    arm();
    sti();
    for (name, part) in PARTS {
        let until = ticks() + wanted;
        while ticks() < until {
            part();
        }
        println!("ok {name}: {:016x}", HASH.load(Ordering::Relaxed));
    }
    let until = ticks() + wanted * 4;
    let mut group = Group::new("all of it in turn");
    while ticks() < until {
        let (_, part) = PARTS[random.below(PARTS.len() as u64) as usize];
        part();
    }
    group.that("ticks", ticks() >= until, "a tick got lost");
    group.done();
    cpu::cli();
    println!(
        "the storm is over: {} ticks, {} page faults, {:016x}",
        ticks(),
        FAULTS.load(Ordering::Relaxed),
        HASH.load(Ordering::Relaxed)
    );
}

guests::main!(run);
