//! Every exception with its error code and return address, exceptions inside handlers, and faults of
//! the delivery itself.
//!
//! Broken by: error codes or RIP lost on the way through the hypervisor, an event whose delivery was cut off
//! by an exit and that is not delivered again, or delivered with the wrong kind or length, and wrong combining
//! of two exceptions (#DF where it does not belong, or none where it does).

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guests::gdt::{self, CODE64};
use guests::idt::{self, Fault, Frame, INTERRUPT_GATE};
use guests::racy::{Page, Racy};
use guests::state::State;
use guests::{cases, check, cpu, generator, multiboot, paging, println, snippet};

snippet!(
    divide,
    divide_at,
    ["xor edx, edx", "xor ecx, ecx"],
    ["div ecx"]
);
snippet!(
    divide_wide,
    divide_wide_at,
    ["mov edx, 5", "mov ecx, 5"],
    ["div ecx"]
);
snippet!(icebp, icebp_at, [], [".byte 0xf1"]);
snippet!(int3, int3_at, [], ["int3"]);
snippet!(int_3, int_3_at, [], [".byte 0xcd, 3"]);
snippet!(int_40, int_40_at, [], ["int 0x40"]);
snippet!(int_0d, int_0d_at, [], ["int 0x0d"]);
snippet!(ud2, ud2_at, [], ["ud2"]);
snippet!(into64, into64_at, [], [".byte 0xce"]);
snippet!(x87, x87_at, [], ["fninit"]);
snippet!(
    load_not_present,
    load_not_present_at,
    ["mov eax, 0x58"],
    ["mov ds, eax"]
);
snippet!(
    load_stack_not_present,
    load_stack_not_present_at,
    ["mov eax, 0x58"],
    ["mov ss, eax"]
);
snippet!(
    load_beyond,
    load_beyond_at,
    ["mov eax, 0x3ff8"],
    ["mov ds, eax"]
);
snippet!(load_ldt, load_ldt_at, ["mov eax, 0x1c"], ["mov es, eax"]);
snippet!(
    non_canonical,
    non_canonical_at,
    ["mov rax, 0x8000000000000000"],
    ["mov rcx, [rax]"]
);
snippet!(
    non_canonical_stack,
    non_canonical_stack_at,
    ["mov rdx, rsp", "mov rbp, 0x8000000000000000"],
    ["mov rcx, [rbp]"]
);
snippet!(
    privileged_cr4,
    privileged_cr4_at,
    ["mov rax, cr4", "bts rax, 40"],
    ["mov cr4, rax"]
);
snippet!(
    read_hole,
    read_hole_at,
    ["mov rax, 0x50000008"],
    ["mov ecx, [rax]"]
);
snippet!(
    write_hole,
    write_hole_at,
    ["mov rax, 0x50000ff8"],
    ["mov [rax], rcx"]
);
snippet!(
    write_read_only,
    write_read_only_at,
    ["mov rax, 0x50001ffc"],
    ["mov [rax], ecx"]
);
snippet!(
    read_reserved,
    read_reserved_at,
    ["mov rax, 0x50002000"],
    ["mov al, [rax]"]
);
snippet!(
    read_crossing,
    read_crossing_at,
    ["mov rax, 0x50001ffe"],
    ["add dword ptr [rax], 1"]
);
snippet!(
    x87_divide,
    x87_divide_at,
    [
        "fninit",
        "push 0x37b",
        "fldcw [rsp]",
        "pop rax",
        "fld1",
        "fldz",
        "fdivp"
    ],
    ["fwait", "fninit"]
);
snippet!(
    simd_divide,
    simd_divide_at,
    [
        "push 0x1d80",
        "ldmxcsr [rsp]",
        "pop rax",
        "xorps xmm0, xmm0",
        "pcmpeqd xmm1, xmm1",
        "pslld xmm1, 25",
        "psrld xmm1, 2"
    ],
    ["divps xmm1, xmm0"]
);
snippet!(
    jump_hole,
    jump_hole_at,
    ["mov rax, 0x50000000"],
    ["jmp rax"]
);
snippet!(
    raise_interrupt,
    raise_interrupt_at,
    [
        "xor eax, eax",
        "out 0xf8, eax",
        "mov eax, 0x41",
        "sti",
        "nop"
    ],
    ["out 0xf0, eax", "nop", "cli"]
);
snippet!(
    raise_nmi,
    raise_nmi_at,
    ["xor eax, eax", "out 0xf8, eax", "mov eax, 0x100"],
    ["out 0xf0, eax", "nop"]
);

cases!(compat, ".code32", "retf"; "mov al, 0x7f; inc al; into", "mov eax, 99; bound eax, [ebx]");

const HOLE: u64 = 0x5000_0000;

static TARGET: Racy<Page> = Racy::new(Page::ZERO);

fn run() {
    paging::map(HOLE, 0, 0);
    paging::map(HOLE + 0x1000, TARGET.address(), paging::P);
    paging::map(HOLE + 0x2000, 1 << 50, paging::P);
    faults_and_traps();
    selectors();
    page_faults();
    floating_point();
    compatibility_mode();
    nested();
    task_state();
    delivery_faults();
    fresh_memory();
}

fn address(code: unsafe extern "C" fn()) -> u64 {
    code as *const () as u64
}

fn faults_and_traps() {
    let at = address;
    check::fault("#DE", idt::catch_code(divide), 0, 0, at(divide_at));
    check::fault(
        "#DE overflow",
        idt::catch_code(divide_wide),
        0,
        0,
        at(divide_wide_at),
    );
    check::fault_unless_tcg(
        "#DB by INT1",
        idt::catch_code(icebp),
        1,
        0,
        at(icebp_at) + 1,
    );
    check::fault("#BP by INT3", idt::catch_code(int3), 3, 0, at(int3_at) + 1);
    check::fault(
        "#BP by INT 3",
        idt::catch_code(int_3),
        3,
        0,
        at(int_3_at) + 2,
    );
    check::fault(
        "INT 0x40",
        idt::catch_code(int_40),
        0x40,
        0,
        at(int_40_at) + 2,
    );
    check::fault("#UD", idt::catch_code(ud2), 6, 0, at(ud2_at));
    check::fault("#UD by INTO", idt::catch_code(into64), 6, 0, at(into64_at));
    let cr0 = cpu::cr0();
    // SAFETY: TS makes x87 instructions fault, nothing else.
    unsafe { cpu::set_cr0(cr0 | 8) };
    check::fault("#NM", idt::catch_code(x87), 7, 0, at(x87_at));
    // SAFETY: the value from before.
    unsafe { cpu::set_cr0(cr0) };
}

fn selectors() {
    let at = address;
    check::fault(
        "#NP",
        idt::catch_code(load_not_present),
        11,
        0x58,
        at(load_not_present_at),
    );
    check::fault(
        "#SS by selector",
        idt::catch_code(load_stack_not_present),
        12,
        0x58,
        at(load_stack_not_present_at),
    );
    check::fault_unless_tcg(
        "#SS by address",
        idt::catch_code(non_canonical_stack),
        12,
        0,
        at(non_canonical_stack_at),
    );
    check::fault(
        "#GP beyond the table",
        idt::catch_code(load_beyond),
        13,
        0x3ff8,
        at(load_beyond_at),
    );
    check::fault(
        "#GP without an LDT",
        idt::catch_code(load_ldt),
        13,
        0x1c,
        at(load_ldt_at),
    );
    check::fault(
        "#GP by address",
        idt::catch_code(non_canonical),
        13,
        0,
        at(non_canonical_at),
    );
    if cpu::is_tcg() && !cpu::on_duet() {
        check::skip("#GP by CR4", "TCG sets any bit");
    } else {
        check::fault(
            "#GP by CR4",
            idt::catch_code(privileged_cr4),
            13,
            0,
            at(privileged_cr4_at),
        );
    }
}

/// Error code of a reserved bit in a present entry; TCG leaves out the present bit.
fn reserved_error() -> u64 {
    if cpu::is_tcg() { 8 } else { 9 }
}

/// Error code that names a gate; TCG multiplies by the size of a gate in long mode.
fn gate_error(vector: u64) -> u64 {
    vector * if cpu::is_tcg() { 16 } else { 8 } + 2
}

fn page_fault(
    name: &'static str,
    code: unsafe extern "C" fn(),
    at: unsafe extern "C" fn(),
    error: u64,
    cr2: u64,
) {
    let got = idt::catch_code(code);
    check::fault(name, got, 14, error, address(at));
    check::equal(name, got.map_or(0, |f| f.cr2), cr2);
}

fn page_faults() {
    page_fault("#PF read", read_hole, read_hole_at, 0, HOLE + 8);
    page_fault("#PF write", write_hole, write_hole_at, 2, HOLE + 0xff8);
    page_fault(
        "#PF read-only",
        write_read_only,
        write_read_only_at,
        3,
        HOLE + 0x1ffc,
    );
    page_fault(
        "#PF reserved bit",
        read_reserved,
        read_reserved_at,
        reserved_error(),
        HOLE + 0x2000,
    );
    let got = idt::catch_code(jump_hole);
    // Without NX and SMEP a fetch is reported as a read.
    check::fault("#PF fetch", got, 14, 0, HOLE);
    let got = idt::catch_code(read_crossing);
    check::that(
        "#PF crossing",
        got.is_some_and(|f| f.vector == 14 && f.rip == address(read_crossing_at)),
        got,
    );
}

fn floating_point() {
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    // SAFETY: MP and NE on, EM and TS off; OSFXSR and OSXMMEXCPT on: enables floating point.
    unsafe {
        cpu::set_cr0((cr0 & !0xc) | 0x22);
        cpu::set_cr4(cr4 | 0x600);
    }
    check::fault(
        "#MF",
        idt::catch_code(x87_divide),
        16,
        0,
        address(x87_divide_at),
    );
    // SAFETY: masks the exception that is pending still.
    unsafe { core::arch::asm!("fninit") };
    let got = idt::catch_code(simd_divide);
    check::fault_unless_tcg("#XM", got, 19, 0, address(simd_divide_at));
    // SAFETY: the default value.
    unsafe { core::arch::asm!("push 0x1f80", "ldmxcsr [rsp]", "pop rax", out("rax") _) };
}

fn compatibility_mode() {
    let names = [("#OF", 4_u8, 5_u64), ("#BR", 5, 5)];
    static BOUNDS: [u32; 2] = [1, 9];
    for (case, (name, vector, offset)) in guests::state::entries(&raw const compat).zip(names) {
        let got = idt::catch(|| {
            let mut state = State {
                gprs: [0; 16],
                rflags: 2,
            };
            state.gprs[guests::state::RBX] = BOUNDS.as_ptr() as u64;
            // SAFETY: the code faults or returns.
            unsafe { state.run_far(case.code, gdt::CODE32) };
        });
        // INTO is a trap of one byte behind MOV (2) and INC (2); BOUND faults behind MOV (5).
        check::fault(name, got, vector, 0, case.code + offset);
    }
}

static FIRST: Racy<Option<Fault>> = Racy::new(None);

fn first() -> Option<Fault> {
    // SAFETY: a copy; handlers have returned.
    unsafe { FIRST.get().read_volatile() }
}

/// Maps the page that was missing and lets the instruction run again.
fn map_page(frame: &mut Frame) {
    let fault = idt::record(frame);
    // SAFETY: the main flow is interrupted.
    unsafe { FIRST.get().write_volatile(Some(fault)) };
    let page = fault.cr2 & !0xfff;
    let physical = if page == HOLE { TARGET.address() } else { page };
    paging::map(page, physical, paging::P | paging::W);
    idt::forget();
}

/// A #GP handler that itself faults once.
fn fault_in_handler(frame: &mut Frame) {
    // SAFETY: the #PF hook maps the page.
    unsafe { (HOLE as *mut u64).write_volatile(7) };
    idt::abandon(frame);
}

fn nested() {
    idt::hook(14, Some(map_page));
    idt::hook(13, Some(fault_in_handler));
    let got = idt::catch_code(non_canonical);
    check::fault("#GP around #PF", got, 13, 0, address(non_canonical_at));
    let inner = first();
    check::fault_anywhere("#PF inside the #GP handler", inner, 14, 2);
    check::equal(
        "#PF inside the #GP handler: cr2",
        inner.map_or(0, |f| f.cr2),
        HOLE,
    );
    idt::hook(13, None);
    idt::hook(14, None);
    paging::map(HOLE, 0, 0);

    // A #GP whose gate is missing: contributory on contributory.
    idt::set_gate(13, idt::stub(13), CODE64, 0x0e, 0);
    let got = idt::catch_code(non_canonical);
    check::fault_anywhere("#DF: #GP without a gate", got, 8, 0);
    idt::reset_gate(13);
    // #PF, then #GP by the handler's selector: a double fault as well.
    idt::set_gate(14, idt::stub(14), 0x3ff8, INTERRUPT_GATE, 0);
    check::fault_anywhere(
        "#DF: #PF into a bad selector",
        idt::catch_code(read_hole),
        8,
        0,
    );
    idt::reset_gate(14);
    // #UD is benign: the second exception is delivered alone. EXT (bit 0) is not compared: emulators differ.
    idt::set_gate(6, idt::stub(6), CODE64, 0x0e, 0);
    let got = idt::catch_code(ud2).map(without_ext);
    check::fault(
        "#NP: #UD without a gate",
        got,
        11,
        gate_error(6),
        address(ud2_at),
    );
    idt::reset_gate(6);
    // INT n without a gate, and through a gate that is no gate.
    idt::set_gate(0x40, idt::stub(0x40), CODE64, 0x0e, 0);
    check::fault(
        "#NP: INT n without a gate",
        idt::catch_code(int_40),
        11,
        gate_error(0x40),
        address(int_40_at),
    );
    idt::set_gate(0x40, idt::stub(0x40), CODE64, 0x82, 0);
    check::fault(
        "#GP: INT n through no gate",
        idt::catch_code(int_40),
        13,
        gate_error(0x40),
        address(int_40_at),
    );
    idt::reset_gate(0x40);
    // INT 13 is a software interrupt: no error code is pushed, so the stub's frame is one word off.
    idt::set_gate(0x0d, idt::stub(0x42), CODE64, INTERRUPT_GATE, 0);
    check::fault(
        "INT 0x0d pushes no error code",
        idt::catch_code(int_0d),
        0x42,
        0,
        address(int_0d_at) + 2,
    );
    idt::reset_gate(0x0d);
}

fn without_ext(fault: Fault) -> Fault {
    Fault {
        error: fault.error & !1,
        ..fault
    }
}

/// A task state segment too short for the interrupt stack that a gate wants.
fn task_state() {
    let task = gdt::task();
    gdt::set_system(gdt::TSS, task as u64, 90, 9);
    // SAFETY: the descriptor was just written; interrupt stack 1 still fits.
    unsafe { core::arch::asm!("ltr {:x}", in(reg) gdt::TSS) };
    idt::set_gate(0x40, idt::stub(0x40), CODE64, INTERRUPT_GATE, 7);
    check::fault(
        "#TS",
        idt::catch_code(int_40),
        10,
        u64::from(gdt::TSS),
        address(int_40_at),
    );
    idt::reset_gate(0x40);
    gdt::load_task();
}

/// Sets interrupt stack 2.
fn set_stack(top: u64) {
    // SAFETY: the slot is used only by the gates of these checks.
    unsafe { (*gdt::task()).ist[1] = top };
}

fn use_stack(vector: u8, on: bool) {
    idt::set_gate(
        vector,
        idt::stub(vector),
        CODE64,
        INTERRUPT_GATE,
        if on { 2 } else { u64::from(vector == 8) },
    );
}

/// Whether INT1 exists; TCG raises #UD.
fn has_int1() -> bool {
    idt::catch_code(icebp).is_some_and(|f| f.vector == 1)
}

/// The events that the delivery checks use: name, vector, code, return address.
fn events() -> [(&'static str, u8, unsafe extern "C" fn(), u64); 8] {
    [
        ("INT n", 0x40, int_40, address(int_40_at) + 2),
        ("INT3", 3, int3, address(int3_at) + 1),
        ("INT1", 1, icebp, address(icebp_at) + 1),
        ("#UD", 6, ud2, address(ud2_at)),
        ("#GP", 13, non_canonical, address(non_canonical_at)),
        ("#DE", 0, divide, address(divide_at)),
        (
            "interrupt",
            0x41,
            raise_interrupt,
            address(raise_interrupt_at) + 2,
        ),
        ("NMI", 2, raise_nmi, address(raise_nmi_at) + 2),
    ]
}

/// The handler's stack is not mapped: a page fault on the normal stack, then the event again. What is
/// external is not repeated by an instruction, so it would be lost on a bare processor too.
fn delivery_faults() {
    println!("delivery to a stack that is not mapped:");
    set_stack(HOLE + 0x1000);
    for (name, vector, code, rip) in events().into_iter().take(6) {
        if vector == 1 && !has_int1() {
            check::skip(name, "TCG has no INT1");
            continue;
        }
        paging::map(HOLE, 0, 0);
        use_stack(vector, true);
        idt::hook(14, Some(map_page));
        // SAFETY: no handler runs.
        unsafe { FIRST.get().write_volatile(None) };
        let got = idt::catch_code(code);
        idt::hook(14, None);
        use_stack(vector, false);
        check::that(
            name,
            got.is_some_and(|f| f.vector == vector && f.rip == rip),
            got,
        );
        let inner = first().map(without_ext);
        let back = if matches!(vector, 0x40 | 3 | 1) {
            rip - if vector == 0x40 { 2 } else { 1 }
        } else {
            rip
        };
        if vector == 1 {
            // INT1 is a trap in some processors' eyes by the time the stack is found missing.
            check::fault_anywhere("INT1 without a stack", inner, 14, 2);
        } else {
            check::fault("#PF while delivering the one above", inner, 14, 2, back);
        }
        check::equal("its cr2", inner.map_or(0, |f| f.cr2), HOLE + 0xff8);
    }
    // A page fault whose own stack is missing.
    paging::map(HOLE, 0, 0);
    use_stack(14, true);
    check::fault_anywhere(
        "#DF: #PF without a stack",
        idt::catch_code(read_reserved),
        8,
        0,
    );
    use_stack(14, false);
}

static NEXT_FRESH: AtomicU64 = AtomicU64::new(4 << 20);

/// The start of 2 MiB of RAM that nobody has touched.
fn fresh() -> u64 {
    let at = NEXT_FRESH.fetch_add(2 << 20, Relaxed);
    assert!(
        at + (2 << 20) <= multiboot::memory_end(),
        "guest needs more memory"
    );
    at
}

/// The hypervisor meets memory it has not mapped while an event is being delivered.
fn fresh_memory() {
    println!("delivery to a stack in fresh memory:");
    for (name, vector, code, rip) in events() {
        if matches!(vector, 0x41 | 2) && !generator::present() || vector == 1 && !has_int1() {
            check::skip(name, "no interrupt generator, or no INT1 (TCG)");
            continue;
        }
        set_stack(fresh() + 0x10_0000);
        use_stack(vector, true);
        let got = idt::catch_code(code);
        use_stack(vector, false);
        check::fault(name, got, vector, 0, rip);
    }
    // Stack of a page fault and of a double fault.
    set_stack(fresh() + 0x1000);
    use_stack(14, true);
    check::fault(
        "#PF on a fresh stack",
        idt::catch_code(write_hole),
        14,
        2,
        address(write_hole_at),
    );
    use_stack(14, false);
    set_stack(fresh() + 0x1000);
    use_stack(8, true);
    idt::set_gate(13, idt::stub(13), CODE64, 0x0e, 0);
    check::fault_anywhere("#DF on a fresh stack", idt::catch_code(non_canonical), 8, 0);
    idt::reset_gate(13);
    use_stack(8, false);
    fresh_tables();
}

/// Tables that reach into fresh memory, which reads as zeros.
fn fresh_tables() {
    let border = fresh();
    let table = border - 0x40 * 16;
    // SAFETY: the lower half of the table lies in RAM that is ours since the last `fresh`.
    unsafe {
        core::ptr::copy_nonoverlapping(idt::address() as *const u8, table as *mut u8, 0x40 * 16);
        idt::load_from(table, 0xfff);
    }
    check::fault(
        "gate in fresh memory",
        idt::catch_code(int_40),
        13,
        gate_error(0x40),
        address(int_40_at),
    );
    idt::load();

    let border = fresh();
    let table = border - 0x100;
    let pointer = gdt::TablePointer {
        limit: 0x3fff,
        base: table,
    };
    let old = gdt::TablePointer {
        limit: 0xff,
        base: gdt::address(),
    };
    // SAFETY: the copy holds every descriptor in use.
    unsafe {
        core::ptr::copy_nonoverlapping(gdt::address() as *const u8, table as *mut u8, 0x100);
        core::arch::asm!("lgdt [{}]", in(reg) &pointer);
    }
    check::fault(
        "descriptor in fresh memory",
        idt::catch_code(load_beyond),
        13,
        0x3ff8,
        address(load_beyond_at),
    );
    // SAFETY: the table from before.
    unsafe { core::arch::asm!("lgdt [{}]", in(reg) &old) };

    // SAFETY: nothing else lies at 0x60000000.
    unsafe { paging::entry(0x6000_0000, 2).write_volatile(fresh() | 7) };
    let got = idt::catch(|| {
        // SAFETY: faults, since a fresh page table is empty.
        unsafe { (0x6000_1234 as *const u8).read_volatile() };
    });
    check::fault_anywhere("page table in fresh memory", got, 14, 0);
    check::equal(
        "page table in fresh memory: cr2",
        got.map_or(0, |f| f.cr2),
        0x6000_1234,
    );
    // SAFETY: reads fresh memory.
    let code_at = fresh();
    let got = idt::catch(|| {
        // SAFETY: fresh memory is `add [rax], al` over and over; RAX is not canonical.
        unsafe { core::arch::asm!("call rcx", in("rax") 1_u64 << 63, in("rcx") code_at) };
    });
    check::fault("code in fresh memory", got, 13, 0, code_at);
}

guests::main!(run);
