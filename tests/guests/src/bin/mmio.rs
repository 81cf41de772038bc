//! Every instruction of the tables below runs twice from the same registers and memory: once on RAM,
//! where the processor itself executes it, and once on the scratch device, where the hypervisor emulates it.
//! Registers, flags and memory must come out equal.
//!
//! Broken by: wrong operand size or addressing, upper halves not cleared, wrong flags, REP counts, DF,
//! segment bases, one access split or repeated, 16- and 32-bit code segments.
//!
//! Command line: `more=1` tries instead instructions that a hypervisor may refuse to emulate.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::check::Group;
use guests::cpu::{self, msr};
use guests::racy::{Page, Racy};
use guests::random::Random;
use guests::scratch;
use guests::state::{AF, ARITHMETIC_FLAGS, Case, RBP, RBX, RCX, RDI, RSI, State, entries};
use guests::{cases, check, command_line, gdt, paging};

/// Where the page under test is mapped; RIP-relative operands reach it.
const WINDOW: u64 = 0x4000_0000;
/// The page before the window, always RAM.
const BEFORE: u64 = WINDOW - 0x1000;

core::arch::global_asm!(".global window", ".set window, 0x40000000");

// RBX and RDI point to window + 0x100, RSI to window + 0x200, RBP to RAM, RCX is 4.
cases!(moves, ".code64", "ret";
    "mov al, [rbx]", "mov ah, [rbx + 1]", "mov bh, [rbx + 2]", "mov dil, [rbx + 3]", "mov r9b, [rbx + 4]",
    "mov ax, [rbx + 6]", "mov eax, [rbx + 8]", "mov rax, [rbx + 16]", "mov r15, [rbx + 24]", "mov r11d, [rbx]",
    "mov r12w, [rbx]", "mov rbx, [rbx]", "mov [rbx], al", "mov [rbx + 1], ah", "mov [rbx + 2], dh",
    "mov [rbx + 3], sil", "mov [rbx + 4], r10b", "mov [rbx + 6], ax", "mov [rbx + 8], eax", "mov [rbx + 16], rax",
    "mov [rbx + 24], r14", "mov [rbx + 32], r13d", "mov [rbx + 36], r8w",
    "mov byte ptr [rbx], 0x5a", "mov word ptr [rbx + 2], 0x1234", "mov dword ptr [rbx + 4], 0x89abcdef",
    "mov qword ptr [rbx + 8], -2", "mov rax, [rbx + rcx*8]", "mov eax, [rbx + rcx*4 + 0x20]",
    "mov ax, [rbx + rcx*2 - 4]", "mov al, [rbx + rcx]", "mov rdx, [rbx + 0x180]", "mov rdx, [rbx - 0x80]",
    "mov r13, rbx; mov rax, [r13]", "mov r12, rbx; mov rax, [r12 + 8]", "mov r12, rbx; mov [r12 + r12*1 - 0x40000100], cl",
    "mov rax, [rip + window + 0x18]", "mov [rip + window + 0x28], edx", "mov byte ptr [rip + window + 0x31], 7",
    "mov dword ptr [rip + window + 0x34], 0x01020304", "mov eax, ds:[0x40000108]", "mov [0x40000110], r9",
    "mov eax, [ebx]", "mov [ebx + ecx*4], dx", "mov rax, fs:[0x40]", "mov gs:[0x48], r8d", "mov rax, fs:[rcx*8 + 0x40]",
    "movabs rax, [0x40000120]", "movabs [0x40000128], eax", "movabs al, [0x40000131]", "movabs [0x40000132], ax",
    "movzx eax, byte ptr [rbx]", "movzx rax, word ptr [rbx + 2]", "movzx r9d, word ptr [rbx]", "movzx ax, byte ptr [rbx + 5]",
    "movsx eax, byte ptr [rbx]", "movsx rax, byte ptr [rbx + 1]", "movsx ax, byte ptr [rbx + 2]", "movsx rax, word ptr [rbx + 4]",
    "movsx eax, word ptr [rbx + 6]", "movsxd rax, dword ptr [rbx + 8]", "mov rax, [rbx + 3]", "mov [rbx + 5], rax", "mov [rbx + 0xefc], eax",
    "mov eax, [rbx + 0xefc]", "mov rax, [rbx + 0xef8]",
);
cases!(strings, ".code64", "ret";
    "stosb", "stosw", "stosd", "stosq", "rep stosb", "rep stosw", "rep stosd", "rep stosq", "std; rep stosd",
    "mov ecx, 600; rep stosb", "xor ecx, ecx; rep stosq", "lodsb", "lodsw", "lodsd", "lodsq", "std; lodsq", "rep lodsb",
    "movsb", "movsw", "movsd", "movsq", "rep movsb", "rep movsq", "std; rep movsd", "xor ecx, ecx; rep movsb",
    "mov rsi, rbp; movsb", "mov rsi, rbp; movsq", "mov rsi, rbp; mov ecx, 40; rep movsq", "mov rsi, rbp; std; rep movsw",
    "mov rdi, rbp; movsb", "mov rdi, rbp; movsd", "mov rdi, rbp; mov ecx, 33; rep movsd", "mov rdi, rbp; std; rep movsq",
    "mov rdi, rbp; mov ecx, 5; rep movs byte ptr [edi], byte ptr [esi]", "rep stos dword ptr [edi], eax",
    "mov rdi, rbp; mov esi, 0x40; rep movs dword ptr [rdi], fs:[rsi]",
);
cases!(arithmetic, ".code64", "ret";
    "add [rbx], al", "add [rbx], ax", "add [rbx], eax", "add [rbx], rax", "add al, [rbx]", "add rax, [rbx + 8]", "add edx, [rbx]",
    "add byte ptr [rbx], 1", "add dword ptr [rbx], 0x7fffffff", "add qword ptr [rbx], -1", "add word ptr [rbx], 0x100",
    "sub [rbx], al", "sub [rbx], dx", "sub [rbx], edx", "sub [rbx], rdx", "sub r8, [rbx]", "sub ch, [rbx + 1]", "sub qword ptr [rbx], 0x10",
    "cmp [rbx], al", "cmp [rbx], ax", "cmp [rbx], eax", "cmp [rbx], rax", "cmp rax, [rbx]", "cmp byte ptr [rbx], 0x80", "cmp dword ptr [rbx], 5",
    "cmp qword ptr [rbx], -1", "cmp ah, [rbx + 3]", "inc byte ptr [rbx]", "inc word ptr [rbx]", "inc dword ptr [rbx]", "inc qword ptr [rbx]",
    "dec byte ptr [rbx]", "dec dword ptr [rbx]", "dec qword ptr [rbx]", "lock add [rbx], eax", "lock inc qword ptr [rbx]",
    "not byte ptr [rbx]", "not dword ptr [rbx]", "not qword ptr [rbx]", "neg dword ptr [rbx]", "adc [rbx], eax", "adc rax, [rbx]", "sbb [rbx], rdx",
    "sbb eax, [rbx]", "xchg [rbx], al", "xchg [rbx], ax", "xchg [rbx], eax", "xchg rax, [rbx]", "xchg [rbx + 2], dh",
);
cases!(logic, ".code64", "ret";
    "and [rbx], al", "and [rbx], eax", "and [rbx], rax", "and edx, [rbx]", "and dword ptr [rbx], 0xf0f0f0f", "and byte ptr [rbx], 0x7f",
    "or [rbx], ax", "or [rbx], rdx", "or rdx, [rbx]", "or qword ptr [rbx], 0x40", "or word ptr [rbx], 0x8000", "lock or dword ptr [rbx], 1",
    "xor [rbx], al", "xor [rbx], r9", "xor r10d, [rbx]", "xor byte ptr [rbx], 0xff", "test [rbx], al", "test [rbx], ax",
    "test [rbx], edx", "test [rbx], rax", "test byte ptr [rbx], 1", "test dword ptr [rbx], 0x80000000", "test qword ptr [rbx], 0x1000",
);
cases!(more, ".code64", "ret";
    "push qword ptr [rbx]; pop rax", "push rax; pop qword ptr [rbx]", "bt dword ptr [rbx], 3", "bts dword ptr [rbx], 5", "btr qword ptr [rbx], 7",
    "bt [rbx], ecx", "xadd [rbx], eax", "cmpxchg [rbx], edx", "mov eax, [rbx]; cmpxchg [rbx], edx", "movnti [rbx], rax", "cmovc rax, [rbx]",
    "cmovnc eax, [rbx]", "setc byte ptr [rbx]", "imul eax, [rbx], 3", "shl dword ptr [rbx], 1", "cmpsb", "mov rsi, rbp; repe cmpsb",
    "scasb", "repne scasb", "cmpxchg8b [rbx]",
);
// DS and ES have base window + 0x100; the same pointers as above, less that base.
cases!(code32, ".code32", "retf";
    "mov eax, [ebx]", "mov al, [ebx + ecx*2 + 1]", "mov [ebx + 4], dx", "mov ds:[0x20], eax", "mov ax, ds:[0x24]", "mov dword ptr [ebx], 0x12345678",
    "mov word ptr [ebx + 6], 0x9abc", "movzx edx, byte ptr [ebx]", "movsx ecx, word ptr [ebx]", "rep stosd", "rep movsb", "std; rep movsw", "lodsd",
    "add [ebx], eax", "sub edx, [ebx]", "cmp dword ptr [ebx], 0", "inc dword ptr [ebx]", "xchg [ebx], ecx", "mov bx, 8; mov ax, [bx + 0x10]",
);
cases!(code16, ".code16", ".byte 0x66, 0xcb";
    "mov ax, [bx]", "mov [bx + si - 0x100], dx", "mov eax, [ebx + ecx*4]", "mov al, ds:[0x20]", "mov dword ptr [di + 4], 0x12345678", "mov word ptr [bx], 0x55aa",
    "rep stosw", "rep movsb", "std; lodsd", "movzx edx, byte ptr [bx]", "add [bx], ax", "xchg [bx], ecx", "or word ptr [bx], 0x101", "mov ax, [bp]",
);

static RAM: Racy<Page> = Racy::new(Page::ZERO);
static BUFFER: Racy<Page> = Racy::new(Page::ZERO);
static EDGE: Racy<Page> = Racy::new(Page::ZERO);

/// Selectors of segments with base window + 0x100.
const SHIFTED_DATA: u16 = gdt::FREE;
const FLAT_CODE16: u16 = gdt::FREE + 8;

/// How a table's code is entered.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Bits64,
    Far(u16),
}

fn run() {
    gdt::set(SHIFTED_DATA, 0x40cf_9300_0100_ffff);
    gdt::set(FLAT_CODE16, 0x008f_9b00_0000_ffff);
    // SAFETY: FS and GS are not used otherwise.
    unsafe {
        cpu::wrmsr(msr::FS_BASE, WINDOW + 0x100);
        cpu::wrmsr(msr::GS_BASE, WINDOW + 0x180);
    }
    paging::map(BEFORE, EDGE.address(), paging::P | paging::W);
    device_basics();
    if command_line::number("more", 0) != 0 {
        table("more", &raw const more, Mode::Bits64, 1);
        page_crossing();
        return;
    }
    let all = ARITHMETIC_FLAGS;
    table("moves", &raw const moves, Mode::Bits64, all);
    table("strings", &raw const strings, Mode::Bits64, all);
    table("arithmetic", &raw const arithmetic, Mode::Bits64, all);
    table("logic", &raw const logic, Mode::Bits64, all & !AF);
    table(
        "code32",
        &raw const code32,
        Mode::Far(gdt::CODE32),
        all & !AF,
    );
    table(
        "code16",
        &raw const code16,
        Mode::Far(FLAT_CODE16),
        all & !AF,
    );
    nothing_there();
}

/// Plain loads and stores, so that the tables can trust them.
fn device_basics() {
    let mut group = Group::new("mmio holds what is written");
    let base = scratch::base() as *mut u64;
    for index in 0..512 {
        // SAFETY: the scratch device.
        unsafe { base.add(index).write_volatile(pattern(index, 1)) };
    }
    for index in 0..512 {
        // SAFETY: the scratch device.
        let got = unsafe { base.add(index).read_volatile() };
        group.equal(index, got, pattern(index, 1));
    }
    group.done();
}

fn pattern(index: usize, seed: u64) -> u64 {
    Random::new(seed << 16 | index as u64).value()
}

/// The words of a page that the cases can reach.
fn words() -> impl Iterator<Item = usize> {
    (0..128).chain(504..512)
}

fn fill(page: u64, seed: u64) {
    for index in words() {
        // SAFETY: the scratch device or a page of ours.
        unsafe {
            (page as *mut u64)
                .add(index)
                .write_volatile(pattern(index, seed))
        };
    }
}

fn table(name: &'static str, first: *const Case, mode: Mode, flags: u64) {
    let mut group = Group::new(name);
    for case in entries(first) {
        for seed in 1..4 {
            one_case(&mut group, &case, mode, flags, seed);
        }
    }
    group.done();
}

/// Runs a case on RAM and on the device and compares everything.
fn one_case(group: &mut Group, case: &Case, mode: Mode, flags: u64, seed: u64) {
    let expected = run_on(RAM.address(), case, mode, seed);
    let buffer_after: Page = copy_of(BUFFER.address());
    let got = run_on(scratch::base(), case, mode, seed);
    for (index, (&g, &w)) in got.gprs.iter().zip(&expected.gprs).enumerate() {
        group.that(
            (case.text(), seed, index),
            g == w,
            format_args!("register {index}: got {g:#x} want {w:#x}"),
        );
    }
    let (g, w) = (got.rflags & flags, expected.rflags & flags);
    group.that(
        (case.text(), seed),
        g == w,
        format_args!("flags got {g:#x} want {w:#x}"),
    );
    // Looked up once: it is an exit.
    let (device, ram) = (scratch::base() as *const u64, RAM.address() as *const u64);
    for index in words() {
        // SAFETY: the two pages under test.
        let (g, w) = unsafe {
            (
                device.add(index).read_volatile(),
                ram.add(index).read_volatile(),
            )
        };
        if g != w {
            group.equal((case.text(), seed, index * 8), g, w);
        }
    }
    let same = copy_of(BUFFER.address()).0 == buffer_after.0;
    group.that((case.text(), seed), same, "RAM buffer differs");
}

fn copy_of(page: u64) -> Page {
    // SAFETY: a page of ours.
    unsafe { (page as *const Page).read_volatile() }
}

fn run_on(page: u64, case: &Case, mode: Mode, seed: u64) -> State {
    fill(page, seed);
    fill(BUFFER.address(), seed + 100);
    paging::map(WINDOW, page, paging::P | paging::W);
    let mut random = Random::new(seed);
    let mut state = State {
        gprs: core::array::from_fn(|_| random.value()),
        rflags: 2 | (random.value() & ARITHMETIC_FLAGS),
    };
    state.gprs[RCX] = 4;
    if mode == Mode::Bits64 {
        state.gprs[RBX] = WINDOW + 0x100;
        state.gprs[RDI] = WINDOW + 0x100;
        state.gprs[RSI] = WINDOW + 0x200;
        state.gprs[RBP] = BUFFER.address() + 0x400;
        // SAFETY: the cases touch the window and the buffer.
        unsafe { state.run(case.code) };
    } else if let Mode::Far(selector) = mode {
        // High halves of registers are undefined after a switch to 64-bit mode: keep them zero.
        for value in &mut state.gprs {
            *value &= 0xffff_ffff;
        }
        for index in 8..16 {
            state.gprs[index] = 0;
        }
        state.gprs[RBX] = 0x40;
        state.gprs[RDI] = 0x80;
        state.gprs[RSI] = 0x100;
        state.gprs[RBP] = 0x40;
        load_data_segments(SHIFTED_DATA);
        // SAFETY: the cases touch the window through DS and ES; BP-relative ones read low memory.
        unsafe { state.run_far(case.code, selector) };
        load_data_segments(gdt::DATA);
    }
    state
}

fn load_data_segments(selector: u16) {
    // SAFETY: 64-bit code does not use the bases of DS and ES.
    unsafe { core::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(selector)) };
}

/// One load by this instruction, aligned or not.
macro_rules! load {
    ($code:literal, $at:expr) => {{
        let value: u64;
        // SAFETY: reads a device, RAM of ours, or nothing.
        unsafe { core::arch::asm!($code, out(reg) value, in(reg) $at) };
        value
    }};
}

/// One store of 8 bytes, aligned or not.
fn store(at: u64, value: u64) {
    // SAFETY: writes to a device, RAM of ours, or nothing.
    unsafe { core::arch::asm!("mov [{}], {}", in(reg) at, in(reg) value) };
}

/// Addresses without a device.
fn nothing_there() {
    if !cpu::on_duet() {
        check::skip("mmio without a device", "bare machine");
        return;
    }
    let mut group = Group::new("mmio without a device");
    for offset in [0_u64, 4, 0x123, 0xff8] {
        let at = scratch::NOTHING + offset;
        group.equal((at, 1), load!("movzx {0:e}, byte ptr [{1}]", at), 0xff);
        group.equal((at, 2), load!("movzx {0:e}, word ptr [{1}]", at), 0xffff);
        group.equal((at, 4), load!("mov {0:e}, [{1}]", at), 0xffff_ffff);
        group.equal((at, 8), load!("mov {0}, [{1}]", at), !0);
        store(at, 0);
        group.equal((at, "after a write"), load!("mov {0}, [{1}]", at), !0);
    }
    group.done();
}

/// An access that begins in RAM and ends in the device.
fn page_crossing() {
    let mut group = Group::new("access across RAM and device");
    fill(scratch::base(), 9);
    fill(EDGE.address(), 8);
    paging::map(WINDOW, scratch::base(), paging::P | paging::W);
    let want = pattern(511, 8) >> 32 | pattern(0, 9) << 32;
    let at = WINDOW - 4;
    group.equal("read", load!("mov {0}, [{1}]", at), want);
    store(at, 0x1122_3344_5566_7788);
    group.equal(
        "after write",
        load!("mov {0}, [{1}]", at),
        0x1122_3344_5566_7788,
    );
    group.done();
}

guests::main!(run);
