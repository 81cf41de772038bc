//! Interrupts and NMIs from the generator: when they come, to the instruction, and what keeps them back.
//!
//! Broken by: landing one instruction early or late, injection inside a shadow or with IF=0, a lost pending event,
//! NMIs that nest, HLT that does not wake, and an exit inside a shadow that forgets the shadow.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

use guests::check::{self, Group};
use guests::idt::{self, Frame};
use guests::racy::{Page, Racy};
use guests::random::Random;
use guests::{cpu, generator, scratch, snippet};

const VECTOR: u8 = 0x50;
/// NOPs of the sled.
const SLED: usize = 4096;

/// What a handler saw.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    rip: u64,
    rcx: u64,
    rsi: u64,
    rdi: u64,
    rflags: u64,
}

const MOST: usize = 512;
static SEEN: Racy<([Seen; MOST], usize)> = Racy::new((
    [Seen {
        rip: 0,
        rcx: 0,
        rsi: 0,
        rdi: 0,
        rflags: 0,
    }; MOST],
    0,
));

fn seen() -> &'static [Seen] {
    // SAFETY: read by the main flow while no handler runs.
    unsafe {
        let log = &*SEEN.get();
        &log.0[..log.1]
    }
}

fn reset() {
    // SAFETY: no handler runs.
    unsafe { (*SEEN.get()).1 = 0 };
}

fn note(frame: &mut Frame) {
    // SAFETY: the main flow is interrupted.
    let log = unsafe { &mut *SEEN.get() };
    if log.1 < MOST {
        log.0[log.1] = Seen {
            rip: frame.rip,
            rcx: frame.rcx,
            rsi: frame.rsi,
            rdi: frame.rdi,
            rflags: frame.rflags,
        };
        log.1 += 1;
    }
}

// Each snippet raises what EDI says (EAX) after the delay that was set, and counts from there. All end with CLI.
global_asm!(
    ".pushsection .text",
    ".macro raising name",
    ".global \\name, \\name\\()_at",
    "\\name:",
    "mov eax, edi",
    ".endm",
    ".macro raised name",
    "out 0xf0, eax",
    "\\name\\()_at:",
    ".endm",
    // Plain NOPs.
    "raising sled",
    "sti",
    "nop",
    "raised sled",
    ".rept 4096",
    "nop",
    ".endr",
    "cli",
    "ret",
    // The same with interrupts off, for NMIs.
    "raising masked_sled",
    "raised masked_sled",
    ".rept 4096",
    "nop",
    ".endr",
    "ret",
    // A loop of two instructions; ECX says where it is.
    "raising loop_sled",
    "mov ecx, 100000",
    "sti",
    "nop",
    "raised loop_sled",
    "2: dec ecx",
    "jnz 2b",
    "cli",
    "ret",
    // Every instruction exits.
    "raising exit_sled",
    "push rbx",
    "mov esi, eax",
    "sti",
    "nop",
    "mov edx, 0x1230",
    "raised exit_sled",
    ".rept 100",
    "cpuid", // 2 bytes
    ".endr",
    "cli",
    "pop rbx",
    "ret",
    // Memory instructions on the device, 2 bytes each.
    "raising device_sled",
    "sti",
    "nop",
    "raised device_sled",
    ".rept 100",
    "mov ecx, [rsi]",
    ".endr",
    "cli",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn sled(event: u32, device: u64);
    fn sled_at();
    fn masked_sled(event: u32, device: u64);
    fn masked_sled_at();
    fn loop_sled(event: u32, device: u64);
    fn loop_sled_at();
    fn exit_sled(event: u32, device: u64);
    fn exit_sled_at();
    fn device_sled(event: u32, device: u64);
    fn device_sled_at();
}

type Sled = unsafe extern "C" fn(u32, u64);

fn run() {
    if !generator::present() {
        check::skip("interrupts", "no interrupt generator");
        return;
    }
    idt::hook(VECTOR, Some(note));
    idt::hook(2, Some(note));
    exact_delay();
    loops_and_exits();
    masks_and_shadows();
    halting();
    nmis();
    string_instruction();
    back_to_back();
    every_vector();
}

/// Raises once and returns what was seen.
fn raise(code: Sled, event: u32, delay: u32) -> &'static [Seen] {
    reset();
    cpu::out32(generator::DELAY, delay);
    // SAFETY: the sleds change caller-saved registers only; handlers are installed.
    unsafe { code(event, scratch::base()) };
    seen()
}

fn delays() -> impl Iterator<Item = u32> {
    let mut random = Random::new(3);
    (0..200).chain((0..100).map(move |_| random.below(SLED as u64 - 1) as u32))
}

fn exact_delay() {
    let at = sled_at as *const () as u64;
    let mut group = Group::new("interrupt exactly N instructions behind OUT");
    for delay in delays() {
        let got = raise(sled, u32::from(VECTOR), delay);
        group.equal((delay, "count"), got.len(), 1);
        if let Some(first) = got.first() {
            group.equal(delay, first.rip.wrapping_sub(at), u64::from(delay));
        }
    }
    group.done();
    let at = masked_sled_at as *const () as u64;
    let mut group = Group::new("NMI exactly N instructions behind OUT, IF=0");
    for delay in delays().take(220) {
        let got = raise(masked_sled, generator::NMI, delay);
        group.equal((delay, "count"), got.len(), 1);
        if let Some(first) = got.first() {
            group.equal(delay, first.rip.wrapping_sub(at), u64::from(delay));
            group.equal((delay, "IF"), first.rflags & 0x200, 0);
        }
    }
    group.done();
}

fn loops_and_exits() {
    let at = loop_sled_at as *const () as u64;
    let mut random = Random::new(8);
    let mut group = Group::new("delay inside a loop");
    for round in 0..100 {
        let delay = if round < 20 {
            round
        } else {
            random.below(199_990) as u32
        };
        let got = raise(loop_sled, u32::from(VECTOR), delay);
        group.equal((delay, "count"), got.len(), 1);
        if let Some(first) = got.first() {
            let at_jump = delay % 2;
            group.equal((delay, "rip"), first.rip - at, u64::from(at_jump) * 2);
            group.equal(
                (delay, "ecx"),
                first.rcx,
                100_000 - u64::from(delay).div_ceil(2),
            );
        }
    }
    group.done();
    let mut group = Group::new("delay over exiting instructions");
    let sleds: [(Sled, u64); 2] = [
        (exit_sled, exit_sled_at as *const () as u64),
        (device_sled, device_sled_at as *const () as u64),
    ];
    for (code, at) in sleds {
        for delay in 0..100 {
            let got = raise(code, u32::from(VECTOR), delay);
            group.equal((at, delay, "count"), got.len(), 1);
            if let Some(first) = got.first() {
                group.equal(
                    (at, delay),
                    first.rip.wrapping_sub(at),
                    u64::from(delay) * 2,
                );
            }
        }
    }
    group.done();
}

// The event is pending with IF=0 when these begin (all but `ss_*`), and is due at `…_due`.
snippet!(sti_nop, sti_nop_due, ["sti", "nop"], ["nop", "cli"]);
snippet!(sti_sti, sti_sti_due, ["sti", "sti"], ["nop", "nop", "cli"]);
snippet!(
    sti_cpuid,
    sti_cpuid_due,
    ["push rbx", "sti", "cpuid"],
    ["nop", "cli", "pop rbx"]
);
snippet!(
    sti_port,
    sti_port_due,
    ["sti", "in al, 0xb8"],
    ["nop", "cli"]
);
snippet!(
    sti_device,
    sti_device_due,
    ["mov eax, 0xd0000000", "sti", "mov ecx, [rax]"],
    ["nop", "cli"]
);
snippet!(sti_rdtsc, sti_rdtsc_due, ["sti", "rdtsc"], ["nop", "cli"]);
snippet!(
    popf_on,
    popf_on_due,
    ["push 0x202", "popfq"],
    ["nop", "cli"]
);
snippet!(
    iret_on,
    iret_on_due,
    [
        "mov rax, rsp",
        "push 0x10",
        "push rax",
        "push 0x202",
        "push 0x08",
        "lea rcx, [rip + iret_on_due]",
        "push rcx",
        "iretq"
    ],
    ["nop", "cli"]
);
snippet!(sti_cli, sti_cli_due, ["sti", "cli", "nop"], ["nop"]);
snippet!(sti_hlt, sti_hlt_due, ["sti", "hlt"], ["cli"]);
snippet!(
    ss_nop,
    ss_nop_due,
    [
        "mov edx, 0x10",
        "mov eax, 0x50",
        "sti",
        "nop",
        "out 0xf0, eax",
        "mov ss, edx",
        "nop"
    ],
    ["nop", "cli"]
);
snippet!(
    ss_cpuid,
    ss_cpuid_due,
    [
        "push rbx",
        "mov edx, 0x10",
        "mov eax, 0x50",
        "sti",
        "nop",
        "out 0xf0, eax",
        "mov ss, edx",
        "cpuid"
    ],
    ["nop", "cli", "pop rbx"]
);
snippet!(
    ss_port,
    ss_port_due,
    [
        "mov edx, 0x10",
        "mov eax, 0x50",
        "sti",
        "nop",
        "out 0xf0, eax",
        "mov ss, edx",
        "out 0xb8, al"
    ],
    ["nop", "cli"]
);
snippet!(
    ss_nmi,
    ss_nmi_due,
    [
        "mov edx, 0x10",
        "mov eax, 0x100",
        "out 0xf0, eax",
        "mov ss, edx",
        "nop"
    ],
    ["nop"]
);
snippet!(
    ss_nmi_cpuid,
    ss_nmi_cpuid_due,
    [
        "push rbx",
        "mov edx, 0x10",
        "mov eax, 0x100",
        "out 0xf0, eax",
        "mov ss, edx",
        "cpuid"
    ],
    ["nop", "pop rbx"]
);
snippet!(
    halt_delayed,
    halt_delayed_due,
    ["mov eax, 0x50", "sti", "out 0xf0, eax", "hlt"],
    ["nop", "cli"]
);

type Code = unsafe extern "C" fn();

/// Runs code and compares where the one event came.
fn due_at(name: &'static str, code: Code, due: Code) {
    // SAFETY: the snippets keep what the calling convention says.
    unsafe { code() };
    let mut group = Group::new(name);
    group.equal("events", seen().len(), 1);
    if let Some(first) = seen().first() {
        group.equal("rip", first.rip, due as *const () as u64);
    }
    group.done();
}

fn masks_and_shadows() {
    let pending: [(&'static str, Code, Code); 8] = [
        ("pending until behind STI; NOP", sti_nop, sti_nop_due),
        ("a second STI makes no shadow", sti_sti, sti_sti_due),
        ("CPUID in the STI shadow", sti_cpuid, sti_cpuid_due),
        ("IN in the STI shadow", sti_port, sti_port_due),
        ("MMIO in the STI shadow", sti_device, sti_device_due),
        ("RDTSC in the STI shadow", sti_rdtsc, sti_rdtsc_due),
        ("POPF makes no shadow", popf_on, popf_on_due),
        ("IRET makes no shadow", iret_on, iret_on_due),
    ];
    for (name, code, due) in pending {
        reset();
        generator::raise(VECTOR, 0);
        check::equal("nothing while IF=0", seen().len(), 0);
        due_at(name, code, due);
    }
    reset();
    generator::raise(VECTOR, 0);
    // SAFETY: a handler is installed.
    unsafe { sti_cli() };
    check::equal("STI; CLI lets nothing in", seen().len(), 0);
    // SAFETY: a handler is installed.
    unsafe { cpu::sti() };
    cpu::cli();
    check::equal("and it is pending still", seen().len(), 1);

    let stack: [(&'static str, Code, Code); 5] = [
        ("MOV SS shadow", ss_nop, ss_nop_due),
        ("CPUID in the MOV SS shadow", ss_cpuid, ss_cpuid_due),
        ("OUT in the MOV SS shadow", ss_port, ss_port_due),
        ("NMI and the MOV SS shadow", ss_nmi, ss_nmi_due),
        (
            "NMI and CPUID in the MOV SS shadow",
            ss_nmi_cpuid,
            ss_nmi_cpuid_due,
        ),
    ];
    for (name, code, due) in stack {
        reset();
        cpu::out32(generator::DELAY, 1);
        due_at(name, code, due);
    }
    reset();
    let before = generator::delivered();
    generator::raise(0x51, 0);
    generator::raise(VECTOR, 0);
    // SAFETY: a handler is installed.
    unsafe { cpu::sti() };
    cpu::cli();
    check::equal("the second OUT replaces the first", seen().len(), 1);
    check::equal("deliveries are counted", generator::delivered() - before, 1);
}

fn halting() {
    for delay in [1, 50, 1_000_000, u32::MAX] {
        reset();
        cpu::out32(generator::DELAY, delay);
        due_at(
            "HLT makes a delayed event due",
            halt_delayed,
            halt_delayed_due,
        );
    }
    reset();
    generator::raise(VECTOR, 0);
    due_at("STI; HLT with one pending", sti_hlt, sti_hlt_due);
    let mut group = Group::new("HLT a thousand times");
    for round in 0..1000 {
        reset();
        generator::raise(VECTOR, 100);
        // SAFETY: a handler is installed.
        unsafe { cpu::sti_hlt() };
        group.equal(round, seen().len(), 1);
    }
    group.done();
}

static DEPTH: Racy<(u32, u32)> = Racy::new((0, 0));

/// Raises another NMI from inside, twice, and watches for nesting.
fn nested_nmi(frame: &mut Frame) {
    note(frame);
    // SAFETY: the main flow is interrupted; that this handler does not nest is what is checked.
    let depth = unsafe { &mut *DEPTH.get() };
    depth.0 += 1;
    depth.1 = depth.1.max(depth.0);
    if seen().len() < 3 {
        generator::raise_nmi(0);
        for _ in 0..50 {
            cpu::opaque(());
        }
        cpu::cpuid(0, 0);
    }
    depth.0 -= 1;
}

/// Lets an interrupt into an NMI handler.
fn open_nmi(frame: &mut Frame) {
    note(frame);
    generator::raise(VECTOR, 3);
    // SAFETY: a handler is installed.
    unsafe { cpu::sti() };
    cpu::cpuid(0, 0);
    cpu::cpuid(0, 0);
    cpu::cli();
}

fn nmis() {
    idt::hook(2, Some(nested_nmi));
    let got = raise(masked_sled, generator::NMI, 5);
    let mut group = Group::new("NMI while an NMI is handled");
    group.equal("count", got.len(), 3);
    for (index, seen) in got.iter().enumerate() {
        // The next one comes right behind IRET: no instruction runs in between.
        group.equal(
            index,
            seen.rip.wrapping_sub(masked_sled_at as *const () as u64),
            5,
        );
    }
    // SAFETY: no handler runs.
    group.equal("depth", unsafe { (*DEPTH.get()).1 }, 1);
    group.done();
    idt::hook(2, Some(open_nmi));
    let got = raise(masked_sled, generator::NMI, 9);
    check::equal("interrupt inside an NMI handler", got.len(), 2);
    idt::hook(2, Some(note));
    let got = raise(masked_sled, generator::NMI, 9);
    check::equal("NMIs come again afterwards", got.len(), 1);
    let got = raise(sled, generator::NMI, 33);
    check::equal("NMI with IF=1", got.len(), 1);
}

static FROM: Racy<[Page; 4]> = Racy::new([Page::ZERO; 4]);
static TO: Racy<[Page; 4]> = Racy::new([Page::ZERO; 4]);

/// An interrupt may come between two iterations of REP MOVS: registers tell how far it is, and it goes on.
fn string_instruction() {
    let mut group = Group::new("interrupt in REP MOVSB");
    let size = 4 * 4096_u64;
    let (from, to) = (FROM.address(), TO.address());
    let mut random = Random::new(5);
    for index in 0..size {
        // SAFETY: our pages.
        unsafe {
            (from as *mut u8)
                .add(index as usize)
                .write_volatile(random.value() as u8)
        };
    }
    for _ in 0..60 {
        let delay = random.below(size) as u32;
        // SAFETY: our pages.
        unsafe { (to as *mut u8).write_bytes(0, size as usize) };
        reset();
        cpu::out32(generator::DELAY, delay);
        // SAFETY: copies our pages; a handler is installed.
        unsafe {
            core::arch::asm!("sti", "nop", "out 0xf0, eax", "rep movsb", "nop", "nop", "cli", in("eax") u32::from(VECTOR),
                             inout("rcx") size => _, inout("rsi") from => _, inout("rdi") to => _);
        }
        // A delay that reaches behind the string instruction is still pending.
        // SAFETY: a handler is installed.
        unsafe { cpu::sti_and_wait(seen().is_empty()) };
        group.equal((delay, "count"), seen().len(), 1);
        if let Some(first) = seen()
            .first()
            .filter(|first| first.rcx != 0 && first.rcx != size)
        {
            group.equal((delay, "rdi"), first.rdi, to + size - first.rcx);
            group.equal((delay, "rsi"), first.rsi, from + size - first.rcx);
        }
        // SAFETY: our pages.
        let equal = unsafe {
            (*FROM.get())[3].0 == (*TO.get())[3].0 && (*FROM.get())[0].0 == (*TO.get())[0].0
        };
        group.that((delay, "copy"), equal, "differs");
    }
    group.done();
}

/// The handler raises the next one, which comes right behind IRET.
fn chain(frame: &mut Frame) {
    note(frame);
    if seen().len() < 200 {
        generator::raise(VECTOR, 0);
    }
}

fn back_to_back() {
    idt::hook(VECTOR, Some(chain));
    let got = raise(sled, u32::from(VECTOR), 7);
    let mut group = Group::new("interrupts back to back");
    group.equal("count", got.len(), 200);
    for (index, seen) in got.iter().enumerate() {
        group.equal(index, seen.rip.wrapping_sub(sled_at as *const () as u64), 7);
    }
    group.done();
    idt::hook(VECTOR, Some(note));
}

fn every_vector() {
    let mut group = Group::new("every vector");
    for vector in 32..=255 {
        idt::hook(vector, Some(note));
        let got = raise(sled, u32::from(vector), 3);
        group.equal(vector, got.len(), 1);
        idt::hook(vector, None);
    }
    group.done();
}

guests::main!(run);
