//! Single step and hardware breakpoints, over ordinary instructions and over those that a hypervisor
//! emulates.
//!
//! Broken by: an emulated instruction that loses the single-step trap or doubles it, TF or RF treated wrongly on
//! re-entry, MOV SS shadows forgotten at an exit, DR6 bits, and breakpoints lost because the hypervisor keeps its
//! own values in the debug registers.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

use guests::check::{self, Group};
use guests::idt::{self, Frame};
use guests::racy::{Page, Racy};
use guests::{cpu, scratch, snippet};

// A walk: `step_walk` sets TF; every address where a #DB is due is in the table `step_expected`. `s "code"` is an
// instruction with a trap behind it, `n "code"` one without (it is in or makes a shadow).
global_asm!(
    ".macro s code:vararg",
    "\\code",
    "771:",
    ".pushsection .rodata.steps, \"a\"",
    ".quad 771b",
    ".popsection",
    ".endm",
    ".pushsection .rodata.steps, \"a\"",
    ".global step_expected",
    "step_expected:",
    ".popsection",
    ".global step_walk",
    "step_walk:",
    "push rbx",
    "mov r8, rdi", // the device
    "mov r9, rsi", // memory
    "cld",
    "xor esi, esi",
    "pushfq",
    "or dword ptr [rsp], 0x100",
    "popfq",
    "s nop",
    "s xor eax, eax",
    "s cpuid",
    "s mov edx, 0x1230",
    "s in al, dx",
    "s out dx, al",
    "s mov eax, 0x80000001",
    "s cpuid",
    "s cpuid",
    "s mov rax, cr0",
    "s mov cr0, rax",
    "s mov rax, cr4",
    "s mov cr4, rax",
    "s mov rax, cr3",
    "s mov cr3, rax",
    "s mov rax, cr8",
    "s mov rax, dr0",
    "s mov dr0, rax",
    "s mov rax, dr7",
    "s invlpg [r9]",
    "s wbinvd",
    "s mov ecx, 0xc0000080",
    "s rdmsr",
    "s wrmsr",
    "s mov ecx, 0x277",
    "s rdmsr",
    "s rdtsc",
    "s mov eax, [r8]",
    "s mov [r8 + 8], eax",
    "s add dword ptr [r8], 1",
    "s inc dword ptr [r9]",
    // Each iteration of a string instruction traps.
    "s mov ecx, 3",
    "s mov rdi, r9",
    ".rept 2",
    ".pushsection .rodata.steps, \"a\"",
    ".quad 772f",
    ".popsection",
    ".endr",
    "772:",
    "s rep stosb",
    "s mov edx, 0x1230",
    "s mov ecx, 3",
    "s mov rdi, r9",
    ".rept 2",
    ".pushsection .rodata.steps, \"a\"",
    ".quad 773f",
    ".popsection",
    ".endr",
    "773:",
    "s rep insb",
    "s mov ecx, 2",
    "s mov rdi, r8",
    ".pushsection .rodata.steps, \"a\"",
    ".quad 774f",
    ".popsection",
    "774:",
    "s rep stosd",
    "s mov rdi, r8",
    "s stosb",
    // REP with count 0 is one instruction.
    "s xor ecx, ecx",
    "s rep stosb",
    "s jmp 775f",
    "775:",
    "s pushfq",
    "s pop r10",
    // No trap between MOV SS and the instruction behind it, exit or not.
    "s mov eax, 0x10",
    "mov ss, eax",
    "s nop",
    "mov ss, eax",
    "s cpuid",
    "s mov eax, 0x10",
    "mov ss, eax",
    "s in al, dx",
    // An interrupt gate clears TF for the handler; IRET brings it back, and traps are due again one instruction
    // later.
    "int 0x43",
    "s nop",
    "s cpuid",
    "s pushfq",
    "s and dword ptr [rsp], 0xfffffeff",
    "s popfq",
    "nop",
    "cpuid",
    "mov rax, r10",
    "pop rbx",
    "ret",
    ".pushsection .rodata.steps, \"a\"",
    ".global step_expected_end",
    "step_expected_end:",
    ".popsection",
);

unsafe extern "C" {
    fn step_walk(device: u64, memory: u64) -> u64;
    static step_expected: u64;
    static step_expected_end: u64;
}

static MEMORY: Racy<Page> = Racy::new(Page::ZERO);
const MOST: usize = 256;

/// What #DB saw: RIP and DR6.
struct Trace {
    count: usize,
    entries: [(u64, u64); MOST],
}

static TRACE: Racy<Trace> = Racy::new(Trace {
    count: 0,
    entries: [(0, 0); MOST],
});

fn trace_reset() {
    // SAFETY: no handler runs.
    unsafe { (*TRACE.get()).count = 0 };
}

fn trace() -> &'static [(u64, u64)] {
    // SAFETY: handlers have returned; used before the next reset.
    unsafe { &(&(*TRACE.get()).entries)[..(*TRACE.get()).count] }
}

/// Notes RIP and DR6; a breakpoint on an instruction lets it run.
fn on_debug(frame: &mut Frame) {
    let dr6 = cpu::dr6();
    // SAFETY: DR6 is only information.
    unsafe { cpu::set_dr6(0xffff_0ff0) };
    // SAFETY: the main flow is interrupted.
    let trace = unsafe { &mut *TRACE.get() };
    if trace.count < MOST {
        trace.entries[trace.count] = (frame.rip, dr6 & 0xe00f);
        trace.count += 1;
    }
    frame.rflags |= 1 << 16;
}

fn return_at_once(_frame: &mut Frame) {}

fn run() {
    idt::hook(1, Some(on_debug));
    idt::hook(0x43, Some(return_at_once));
    single_step();
    code_breakpoints();
    data_breakpoints();
    port_breakpoint();
    general_detect();
}

fn single_step() {
    trace_reset();
    // SAFETY: addresses of the device and of a page.
    let flags = unsafe { step_walk(scratch::base(), MEMORY.address()) };
    check::equal("PUSHF shows TF", flags & 0x100, 0x100);
    let mut group = Group::new("one #DB per instruction");
    let start = &raw const step_expected;
    // SAFETY: the table of the walk above.
    let expected = unsafe {
        core::slice::from_raw_parts(
            start,
            (&raw const step_expected_end).offset_from(start) as usize,
        )
    };
    // TCG that counts instructions has one more trap in a REP, the one that finds the count used up; and
    // what a hypervisor emulates as a whole has one. There, traps at the same place count once.
    let fold = cpu::is_tcg();
    let mut last = 0;
    let mut seen = trace().iter().filter(|(rip, _)| {
        let again = fold && *rip == last;
        last = *rip;
        !again
    });
    let mut previous = 0;
    for (index, &want) in expected.iter().enumerate() {
        if fold && want == previous {
            continue;
        }
        previous = want;
        let Some(&(rip, dr6)) = seen.next() else {
            group.equal((index, "missing"), 0, want);
            break;
        };
        if rip != want {
            group.equal((index, "rip"), rip, want);
            break;
        }
        group.equal((index, rip, "dr6"), dr6, 0x4000);
    }
    group.equal("traps left over", seen.count(), 0);
    group.done();
}

/// QEMU's TCG does not arm breakpoints that a hypervisor loads with VMRUN.
fn breakpoints_missing(name: &str) -> bool {
    let missing = cpu::is_tcg() && cpu::on_duet();
    if missing {
        check::skip(name, "TCG has none behind VMRUN");
    }
    missing
}

snippet!(
    four,
    four_1,
    ["nop"],
    ["nop", "cpuid", "nop", "in al, dx", "nop"]
);

/// Breakpoints on instructions: before them, once each, also on one that exits and on the one behind it.
fn code_breakpoints() {
    if breakpoints_missing("code breakpoints") {
        return;
    }
    let start = four_1 as *const () as u64;
    let addresses = [start, start + 1, start + 3, start + 5];
    // SAFETY: the breakpoints lie in `four`.
    unsafe {
        cpu::set_dr0(addresses[0]);
        cpu::set_dr1(addresses[1]);
        cpu::set_dr2(addresses[2]);
        cpu::set_dr3(addresses[3]);
        cpu::set_dr7(0x4ff);
    }
    let mut group = Group::new("code breakpoints");
    for round in 0..3 {
        trace_reset();
        call_four();
        group.equal((round, "count"), trace().len(), 4);
        for (index, (&(rip, dr6), want)) in trace().iter().zip(addresses).enumerate() {
            group.equal((round, index, "rip"), rip, want);
            group.equal((round, index, "dr6"), dr6, 1 << index);
        }
    }
    // SAFETY: off.
    unsafe { cpu::set_dr7(0x400) };
    trace_reset();
    call_four();
    group.equal("off", trace().len(), 0);
    group.equal("dr0 reads back", cpu::dr0(), addresses[0]);
    group.equal("dr3 reads back", cpu::dr3(), addresses[3]);
    group.done();
}

fn call_four() {
    // SAFETY: CPUID and IN clobber what is named; RBX is kept by hand.
    unsafe {
        core::arch::asm!("push rbx", "call {}", "pop rbx", sym four, inout("eax") 0 => _, out("ecx") _,
                         inout("edx") 0x1230 => _);
    }
}

snippet!(store_1, store_1_at, ["mov [rdi], al"], ["nop"]);
snippet!(store_8, store_8_at, ["mov [rdi], rax"], ["nop"]);
snippet!(load_4, load_4_at, ["mov eax, [rdi]"], ["nop"]);
snippet!(
    push_8,
    push_8_at,
    ["lea rsi, [rsp]", "lea rsp, [rdi + 8]", "push rax"],
    ["mov rsp, rsi"]
);

fn call_with(code: unsafe extern "C" fn(), rdi: u64) {
    // SAFETY: the code touches what RDI points to.
    unsafe {
        core::arch::asm!("call {}", in(reg) code, in("rdi") rdi, inout("rax") 5_u64 => _, out("rsi") _);
    }
}

/// Breakpoints on data: behind the instruction, by size and kind.
fn data_breakpoints() {
    if breakpoints_missing("data breakpoints") {
        return;
    }
    type Code = unsafe extern "C" fn();
    let at = MEMORY.address() + 0x100;
    // DR7 fields of breakpoint 1: kind (1 write, 3 read or write), length (0: 1, 1: 2, 3: 4, 2: 8 bytes).
    let cases: [(&'static str, Code, Code, u64, u64, u64, bool); 9] = [
        ("write 1", store_1, store_1_at, at, 1, 0, true),
        ("write 1 beside", store_1, store_1_at, at + 1, 1, 0, false),
        ("write 1 of 2", store_1, store_1_at, at + 1, 1, 1, true),
        ("write 1 of 4", store_1, store_1_at, at + 3, 1, 3, true),
        ("write 8", store_8, store_8_at, at, 1, 2, true),
        ("write 8 over 1", store_8, store_8_at, at - 4, 1, 0, true),
        ("read, watching writes", load_4, load_4_at, at, 1, 3, false),
        ("read", load_4, load_4_at, at, 3, 3, true),
        ("push", push_8, push_8_at, at, 3, 2, true),
    ];
    let mut group = Group::new("data breakpoints");
    for (what, code, code_at, operand, kind, length, hit) in cases {
        // SAFETY: watches our page.
        unsafe {
            cpu::set_dr1(at);
            cpu::set_dr7(0x400 | 8 | kind << 20 | length << 22);
        }
        trace_reset();
        call_with(code, operand);
        // SAFETY: off.
        unsafe { cpu::set_dr7(0x400) };
        group.equal((what, "count"), trace().len(), usize::from(hit));
        if let Some(&(rip, dr6)) = trace().first() {
            group.equal((what, "rip"), rip, code_at as *const () as u64);
            group.equal((what, "dr6"), dr6, 2);
        }
    }
    group.done();
}

snippet!(port_in, port_in_at, ["in al, dx"], ["nop"]);

/// A breakpoint on a port (CR4.DE): the hypervisor has to look for it itself when it emulates the access.
fn port_breakpoint() {
    if !cpu::has_1d(2) || breakpoints_missing("port breakpoint") {
        check::skip("port breakpoint", "not there");
        return;
    }
    let cr4 = cpu::cr4();
    // SAFETY: DE changes only debug registers.
    unsafe {
        cpu::set_cr4(cr4 | 8);
        cpu::set_dr2(0x1230);
        cpu::set_dr7(0x400 | 0x20 | 2 << 24);
    }
    trace_reset();
    // SAFETY: reads a port.
    unsafe { core::arch::asm!("call {}", sym port_in, in("edx") 0x1230, out("al") _) };
    // SAFETY: off, and the value from before.
    unsafe {
        cpu::set_dr7(0x400);
        cpu::set_cr4(cr4);
    }
    let mut group = Group::new("port breakpoint");
    group.equal("count", trace().len(), 1);
    if let Some(&(rip, dr6)) = trace().first() {
        group.equal("rip", rip, port_in_at as *const () as u64);
        group.equal("dr6", dr6, 4);
    }
    group.done();
}

snippet!(read_dr0, read_dr0_at, [], ["mov rax, dr0"]);

/// DR7.GD: a move to or from a debug register faults; the handler can use them.
fn general_detect() {
    idt::hook(1, None);
    // SAFETY: GD makes the next access fault and is cleared by it.
    unsafe { cpu::set_dr7(0x400 | 1 << 13) };
    let got = idt::catch_code(read_dr0);
    if got.is_none() && cpu::is_tcg() {
        check::skip("general detect", "TCG does not have it");
        // SAFETY: off.
        unsafe { cpu::set_dr7(0x400) };
        return;
    }
    check::fault("general detect", got, 1, 0, read_dr0_at as *const () as u64);
    check::equal("DR6.BD", cpu::dr6() & 0xe00f, 0x2000);
    check::equal("DR7.GD is cleared", cpu::dr7(), 0x400);
}

guests::main!(run);
