//! User mode: the ways there and back, and what it may not do.
//!
//! Broken by: a wrong CPL after an exit, SYSCALL and SYSENTER MSRs shared with the host, the kernel's GS base lost, an
//! I/O permission bitmap that the hypervisor's own intercept hides, emulation that ignores the privilege level.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

use guests::check::{self, Group};
use guests::cpu::{self, msr};
use guests::idt::{self, Fault};
use guests::racy::Racy;
use guests::{gdt, generator, paging, scratch, snippet, user};

snippet!(where_am_i, where_am_i_at, [], ["mov eax, cs", "int 0x80"]);
snippet!(
    soft_interrupt,
    soft_interrupt_at,
    [],
    ["int 0x40", "int 0x80"]
);
snippet!(user_int3, user_int3_at, [], ["int3", "int 0x80"]);
snippet!(user_cli, user_cli_at, [], ["cli", "int 0x80"]);
snippet!(user_hlt, user_hlt_at, [], ["hlt", "int 0x80"]);
snippet!(user_cr0, user_cr0_at, [], ["mov rax, cr0", "int 0x80"]);
snippet!(user_cr8, user_cr8_at, [], ["mov cr8, rax", "int 0x80"]);
snippet!(user_dr0, user_dr0_at, [], ["mov rax, dr0", "int 0x80"]);
snippet!(
    user_rdmsr,
    user_rdmsr_at,
    ["mov ecx, 0xc0000080"],
    ["rdmsr", "int 0x80"]
);
snippet!(
    user_wrmsr,
    user_wrmsr_at,
    ["mov ecx, 0x277"],
    ["wrmsr", "int 0x80"]
);
snippet!(
    user_invlpg,
    user_invlpg_at,
    [],
    ["invlpg [rsp]", "int 0x80"]
);
snippet!(user_lgdt, user_lgdt_at, [], ["lgdt [rsp]", "int 0x80"]);
snippet!(user_wbinvd, user_wbinvd_at, [], ["wbinvd", "int 0x80"]);
snippet!(user_clts, user_clts_at, [], ["clts", "int 0x80"]);
snippet!(user_swapgs, user_swapgs_at, [], ["swapgs", "int 0x80"]);
snippet!(
    user_xsetbv,
    user_xsetbv_at,
    ["xor ecx, ecx", "mov eax, 1", "xor edx, edx"],
    ["xsetbv", "int 0x80"]
);
snippet!(
    user_cpuid,
    user_cpuid_at,
    ["mov eax, 0x40000000"],
    ["cpuid", "mov eax, ebx", "int 0x80"]
);
snippet!(
    user_in,
    user_in_at,
    ["mov edx, edi", "xor eax, eax"],
    ["in al, dx", "int 0x80"]
);
snippet!(
    user_in4,
    user_in4_at,
    ["mov edx, edi", "xor eax, eax"],
    ["in eax, dx", "int 0x80"]
);
snippet!(
    user_outs,
    user_outs_at,
    ["mov edx, edi", "mov rsi, rsp", "sub rsi, 8"],
    ["outsb", "int 0x80"]
);
snippet!(
    user_device,
    user_device_at,
    ["mov dword ptr [rdi + 8], 0x1234"],
    ["mov eax, [rdi + 8]", "int 0x80"]
);
snippet!(
    user_align,
    user_align_at,
    [],
    ["mov eax, [rsp - 7]", "int 0x80"]
);
snippet!(user_vmcall, user_vmcall_at, [], ["vmcall", "int 0x80"]);
snippet!(
    user_flags,
    user_flags_at,
    ["push 0x3202", "popfq"],
    ["pushfq", "pop rax", "int 0x80"]
);

global_asm!(
    ".pushsection .text",
    // SYSCALL: the kernel gets RCX, R11; it answers with RAX and goes back.
    ".global syscall_entry, user_syscall, sysenter_entry, user_sysenter, user_interrupted, user_interrupted_due",
    "syscall_entry:",
    "mov [rip + {saved}], rcx",
    "mov [rip + {saved} + 8], r11",
    "pushfq",
    "pop qword ptr [rip + {saved} + 16]",
    "swapgs",
    "mov rax, gs:[0]",
    "swapgs",
    "push rax",
    "push rcx",
    "push r11",
    "push rbx",
    "xor eax, eax",
    "cpuid", // an exit on the way
    "pop rbx",
    "pop r11",
    "pop rcx",
    "pop rax",
    "sysretq",
    "user_syscall:",
    "push rdi",
    "popfq",
    "mov r8, rsp",
    "syscall",
    "mov rdx, gs:[0]", // still the user's base
    "shl rdx, 32",
    "or rax, rdx",
    "int 0x80",
    // SYSENTER: RDX and RCX say where SYSEXIT goes.
    "sysenter_entry:",
    "mov rdx, r12",
    "mov rcx, r13",
    "mov eax, cs",
    "shl eax, 16",
    "mov r10d, ss",
    "or eax, r10d",
    "sysexitq",
    "user_sysenter:",
    "lea r12, [rip + 2f]",
    "mov r13, rsp",
    "sysenter",
    "2:",
    "mov ecx, cs",
    "shl rcx, 32",
    "or rax, rcx",
    "int 0x80",
    // An interrupt in ring 3, 3 instructions behind the OUT.
    "user_interrupted:",
    "mov eax, 0x41",
    "out 0xf0, eax",
    "nop",
    "nop",
    "nop",
    "user_interrupted_due:",
    "nop",
    "nop",
    "int 0x80",
    ".popsection",
    saved = sym SAVED,
);

unsafe extern "C" {
    fn syscall_entry();
    fn user_syscall();
    fn sysenter_entry();
    fn user_sysenter();
    fn user_interrupted();
    fn user_interrupted_due();
}

type Code = unsafe extern "C" fn();

static SAVED: Racy<[u64; 3]> = Racy::new([0; 3]);
static KERNEL_WORD: Racy<u64> = Racy::new(0x1111_2222);
static USER_WORD: Racy<u64> = Racy::new(0x3333_4444);

fn at(code: Code) -> u64 {
    code as *const () as u64
}

fn run() {
    basics();
    privileged();
    system_call();
    system_enter();
    ports();
    device();
    alignment();
    interrupted();
}

fn basics() {
    check::equal(
        "IRET to ring 3",
        user::run(at(where_am_i), 0).unwrap_or(0),
        u64::from(gdt::USER_CODE64),
    );
    check::fault(
        "INT 0x40 from ring 3, gate for ring 0",
        user::run(at(soft_interrupt), 0).err(),
        13,
        gate_error(0x40),
        at(soft_interrupt_at),
    );
    idt::set_gate(0x40, idt::stub(0x40), gdt::CODE64, idt::USER_GATE, 0);
    let got = user::run(at(soft_interrupt), 0).err();
    check::fault(
        "INT 0x40 from ring 3",
        got,
        0x40,
        0,
        at(soft_interrupt_at) + 2,
    );
    check::equal("its CS", got.map_or(0, |f: Fault| f.cs), gdt::USER_CODE64);
    idt::reset_gate(0x40);
    idt::set_gate(3, idt::stub(3), gdt::CODE64, idt::USER_GATE, 0);
    check::fault(
        "INT3 from ring 3",
        user::run(at(user_int3), 0).err(),
        3,
        0,
        at(user_int3_at) + 1,
    );
    idt::reset_gate(3);
    let flags = user::run(at(user_flags), 0).unwrap_or(0);
    check::equal("POPF changes neither IF nor IOPL", flags & 0x3200, 0);
    check::equal(
        "CPUID in ring 3",
        user::run(at(user_cpuid), 0).unwrap_or(0),
        u64::from(cpu::cpuid(0x4000_0000, 0).ebx),
    );
}

/// TCG multiplies by the size of a long-mode gate.
fn gate_error(vector: u64) -> u64 {
    vector * if cpu::is_tcg() { 16 } else { 8 } + 2
}

fn privileged() {
    let all: [(&str, Code, Code); 13] = [
        ("CLI", user_cli, user_cli_at),
        ("HLT", user_hlt, user_hlt_at),
        ("MOV from CR0", user_cr0, user_cr0_at),
        ("MOV to CR8", user_cr8, user_cr8_at),
        ("MOV from DR0", user_dr0, user_dr0_at),
        ("RDMSR", user_rdmsr, user_rdmsr_at),
        ("WRMSR", user_wrmsr, user_wrmsr_at),
        ("INVLPG", user_invlpg, user_invlpg_at),
        ("LGDT", user_lgdt, user_lgdt_at),
        ("WBINVD", user_wbinvd, user_wbinvd_at),
        ("CLTS", user_clts, user_clts_at),
        ("SWAPGS", user_swapgs, user_swapgs_at),
        ("XSETBV", user_xsetbv, user_xsetbv_at),
    ];
    for (name, code, code_at) in all {
        if name == "XSETBV" {
            if !cpu::has_1c(26) {
                check::skip("XSETBV in ring 3", "no XSAVE");
                continue;
            }
            // SAFETY: switches XSAVE on.
            unsafe { cpu::set_cr4(cpu::cr4() | 1 << 18) };
        }
        check::fault(name, user::run(at(code), 0).err(), 13, 0, at(code_at));
    }
    if cpu::on_duet() {
        let got = user::run(at(user_vmcall), 0);
        check::that(
            "VMCALL in ring 3",
            matches!(got, Ok(_) | Err(Fault { vector: 6 | 13, .. })),
            got,
        );
    }
}

/// Shares the user's word and points the GS bases at the two words.
fn set_gs() {
    user::share(USER_WORD.address(), 8);
    // SAFETY: GS is not used by the runtime.
    unsafe {
        cpu::wrmsr(msr::GS_BASE, USER_WORD.address());
        cpu::wrmsr(msr::KERNEL_GS_BASE, KERNEL_WORD.address());
    }
}

fn system_call() {
    set_gs();
    // SAFETY: entry and selectors are valid.
    unsafe {
        cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | 1);
        cpu::wrmsr(msr::STAR, 0x0023_0008_0000_0000);
        cpu::wrmsr(msr::LSTAR, at(syscall_entry));
        cpu::wrmsr(msr::SFMASK, 0x4_0001);
    }
    // The first time without the user flags, then with CF, PF, ZF and SF.
    for flags in [0x202, 0x2c7_u64] {
        let got = user::run(at(user_syscall), flags & !0x200);
        check::that("SYSCALL and SYSRET", got == Ok(0x3333_4444_1111_2222), got);
        // SAFETY: a copy.
        let saved = unsafe { SAVED.get().read_volatile() };
        check::equal(
            "R11 holds the flags",
            saved[1] & 0xad5,
            flags & 0xad5 & !0x200,
        );
        check::equal("SFMASK clears CF", saved[2] & 1, 0);
    }
    // SAFETY: off.
    unsafe { cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) & !1) };
    let got = user::run(at(user_syscall), 2).err();
    check::that(
        "SYSCALL without EFER.SCE is #UD",
        got.is_some_and(|f| f.vector == 6),
        got,
    );
}

fn system_enter() {
    let is_amd = cpu::cpuid(0, 0).ecx == u32::from_le_bytes(*b"cAMD");
    if !cpu::has_1d(11) || is_amd {
        check::skip("SYSENTER", "not offered in long mode");
        return;
    }
    // SAFETY: entry, stack and selectors are valid.
    unsafe {
        cpu::wrmsr(msr::SYSENTER_CS, u64::from(gdt::SYSENTER));
        cpu::wrmsr(msr::SYSENTER_EIP, at(sysenter_entry));
        cpu::wrmsr(msr::SYSENTER_ESP, (*gdt::task()).rsp[0]);
    }
    let got = user::run(at(user_sysenter), 0);
    let want = u64::from((gdt::SYSENTER + 32) | 3) << 32
        | u64::from(gdt::SYSENTER) << 16
        | u64::from(gdt::SYSENTER + 8);
    check::that("SYSENTER and SYSEXIT", got == Ok(want), got);
    // SAFETY: off.
    unsafe { cpu::wrmsr(msr::SYSENTER_CS, 0) };
    let got = user::run(at(user_sysenter), 0).err();
    check::that(
        "SYSENTER without a CS is #GP",
        got.is_some_and(|f| f.vector == 13),
        got,
    );
}

/// Allows or denies a port to ring 3.
fn permit(port: u16, allowed: bool) {
    // SAFETY: the bitmap of the task state in use; a byte of it.
    unsafe {
        let byte = (&raw mut (*gdt::task()).io_map)
            .cast::<u8>()
            .add(usize::from(port / 8));
        let bit = 1 << (port % 8);
        byte.write_volatile(if allowed {
            byte.read_volatile() & !bit
        } else {
            byte.read_volatile() | bit
        });
    }
}

fn ports() {
    let port = 0x1234;
    check::fault(
        "IN denied",
        user::run(at(user_in), port).err(),
        13,
        0,
        at(user_in_at),
    );
    permit(port as u16, true);
    check::equal(
        "IN permitted",
        user::run(at(user_in), port).unwrap_or(1),
        0xff,
    );
    check::fault(
        "IN of four ports, one permitted",
        user::run(at(user_in4), port).err(),
        13,
        0,
        at(user_in4_at),
    );
    for next in 0..4 {
        permit(port as u16 + next, true);
    }
    check::equal(
        "IN of four ports permitted",
        user::run(at(user_in4), port).unwrap_or(1),
        0xffff_ffff,
    );
    check::that("OUTS permitted", user::run(at(user_outs), port).is_ok(), ());
    for next in 0..4 {
        permit(port as u16 + next, false);
    }
    check::fault(
        "OUTS denied",
        user::run(at(user_outs), port).err(),
        13,
        0,
        at(user_outs_at),
    );
    // IOPL 3 opens every port.
    let got = user::run_with(at(user_in), port, gdt::USER_CODE64, 0x3002);
    check::that("IN with IOPL 3", got == Ok(0xff), got);
}

/// MMIO from ring 3: by the guest's page tables.
fn device() {
    let base = scratch::base();
    let got = user::run(at(user_device), base).err();
    check::that(
        "MMIO on a supervisor page",
        got.is_some_and(|f| f.vector == 14 && f.error == 7),
        got,
    );
    user::share(base, 4096);
    check::that(
        "MMIO on a user page",
        user::run(at(user_device), base) == Ok(0x1234),
        (),
    );
    paging::protect(base, paging::P | paging::U);
    let got = user::run(at(user_device), base).err();
    check::that(
        "MMIO write on a read-only page",
        got.is_some_and(|f| f.vector == 14 && f.error == 7),
        got,
    );
    paging::protect(base, paging::P | paging::W);
}

fn alignment() {
    // SAFETY: AM matters in ring 3 only.
    unsafe { cpu::set_cr0(cpu::cr0() | 1 << 18) };
    let got = user::run_with(at(user_align), 0, gdt::USER_CODE64, 0x4_0002).err();
    check::fault_unless_tcg("#AC", got, 17, 0, at(user_align_at));
    check::that(
        "no #AC without the flag",
        user::run(at(user_align), 0).is_ok(),
        (),
    );
    // SAFETY: as it was.
    unsafe { cpu::set_cr0(cpu::cr0() & !(1 << 18)) };
}

fn interrupted() {
    if !generator::present() {
        check::skip("interrupt in ring 3", "no interrupt generator");
        return;
    }
    cpu::out32(generator::DELAY, 3);
    let got = user::run_with(at(user_interrupted), 0, gdt::USER_CODE64, 0x3202).err();
    check::fault(
        "interrupt in ring 3",
        got,
        0x41,
        0,
        at(user_interrupted_due),
    );
    let mut group = Group::new("its code segment");
    group.equal("cs", got.map_or(0, |f| f.cs), gdt::USER_CODE64);
    group.done();
}

guests::main!(run);
