//! 64-bit basics: control, debug and model-specific registers, CPUID and what it promises, compatibility mode.
//!
//! Broken by: a control register that reads back other than written, a forbidden value that is taken, an MSR that
//! is shared with the host, CPUID promising what faults or hiding what works, upper register halves.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use guests::check::{self, Group};
use guests::cpu::{self, msr};
use guests::gdt::{self, TablePointer};
use guests::idt::{self, Fault};
use guests::state::{RAX, RBX, RCX, State};
use guests::{cases, snippet};

snippet!(read_cr1, read_cr1_at, [], [".byte 0x0f, 0x20, 0xc8"]);
snippet!(read_cr5, read_cr5_at, [], [".byte 0x0f, 0x20, 0xe8"]);
snippet!(read_dr8, read_dr8_at, [], [".byte 0x44, 0x0f, 0x21, 0xc0"]);
snippet!(read_dr4, read_dr4_at, [], [".byte 0x0f, 0x21, 0xe0"]);
snippet!(
    monitor,
    monitor_at,
    ["mov rax, rsp", "xor ecx, ecx", "xor edx, edx"],
    ["monitor"]
);
snippet!(mwait, mwait_at, ["xor eax, eax", "xor ecx, ecx"], ["mwait"]);
snippet!(rdpmc, rdpmc_at, ["xor ecx, ecx"], ["rdpmc"]);
snippet!(vmxon, vmxon_at, [], ["vmxon [rsp - 8]"]);
snippet!(vmxoff, vmxoff_at, [], ["vmxoff"]);
// RAX is a valid address: an invalid one is #GP before the hypervisor is asked.
snippet!(vmrun, vmrun_at, ["xor eax, eax"], ["vmrun"]);
snippet!(vmload, vmload_at, ["xor eax, eax"], ["vmload"]);
snippet!(clgi, clgi_at, [], ["clgi"]);
snippet!(skinit, skinit_at, ["xor eax, eax"], ["skinit eax"]);
snippet!(getsec, getsec_at, ["xor eax, eax"], ["getsec"]);
snippet!(rdrand, rdrand_at, [], ["rdrand rax"]);
snippet!(wbinvd, wbinvd_at, [], ["wbinvd"]);

cases!(compat, ".code32", "retf";
    ".byte 0x40", "xor ecx, ecx; mov eax, 0x40000000; cpuid", "mov ecx, 0xc0000080; rdmsr", "push 0x12345678; pop eax",
);
cases!(compat16, ".code16", ".byte 0x66, 0xcb"; "mov ax, 0x1234", "mov ecx, 0x40000000; mov eax, ecx; cpuid");

fn run() {
    control_registers();
    cr8();
    debug_registers();
    tables();
    model_specific();
    cpuid();
    hidden();
    compatibility();
}

fn at(code: unsafe extern "C" fn()) -> u64 {
    code as *const () as u64
}

/// Writes a control register through `write` and expects #GP(0). TCG alone takes nearly anything.
fn refused(name: &str, mut write: impl FnMut()) {
    if !cpu::on_duet() && (cpu::is_tcg() || name.starts_with("unknown")) {
        check::skip(name, "the bare emulator takes it");
    } else {
        check::fault_anywhere(name, idt::catch(&mut write), 13, 0);
    }
}

/// As [`refused`], where the processor itself has to refuse: a hypervisor need not look. TCG does not.
fn refused_by_processor(name: &str, write: impl FnMut()) {
    if cpu::is_tcg() {
        check::skip(name, "TCG takes it");
    } else {
        refused(name, write);
    }
}

fn control_registers() {
    // Firmware may leave CD and NW set.
    let cr0 = cpu::cr0() & !(3 << 29);
    // SAFETY: turns caches on.
    unsafe { cpu::set_cr0(cr0) };
    let (cr3, cr4, efer) = (cpu::cr3(), cpu::cr4(), cpu::rdmsr(msr::EFER));
    check::equal("CR0 in long mode", cr0 & 0x8001_0011, 0x8001_0011);
    check::equal("CR4.PAE", cr4 & 0x20, 0x20);
    check::equal("EFER", efer & 0x500, 0x500);
    // SAFETY: each value is a harmless change, refused, or put back.
    unsafe {
        refused("CR0: PG without PE", || cpu::set_cr0(cr0 & !1));
        refused("CR0: NW without CD", || cpu::set_cr0(cr0 | 1 << 29));
        refused_by_processor("CR0: bit 32", || cpu::set_cr0(cr0 | 1 << 32));
        refused("CR0: PG off in 64-bit code", || {
            cpu::set_cr0(cr0 & !(1 << 31))
        });
        refused("CR4: PAE off", || cpu::set_cr4(cr4 & !0x20));
        refused("CR4: bit 31", || cpu::set_cr4(cr4 | 1 << 31));
        refused("EFER: LME off", || cpu::wrmsr(msr::EFER, efer & !0x100));
        refused("EFER: bit 20", || cpu::wrmsr(msr::EFER, efer | 1 << 20));
        refused_by_processor("CR3: bit 52", || cpu::set_cr3(cr3 | 1 << 52));
        let mut group = Group::new("control registers read back");
        for bits in [8, 1 << 16, 1 << 18, 0x20, 2, 3 << 29, 1 << 30] {
            cpu::set_cr0(cr0 ^ bits);
            group.equal(("cr0", bits), cpu::cr0(), (cr0 ^ bits) | 0x10);
            cpu::set_cr0(cr0);
        }
        for (bits, offered) in [
            (4_u64, cpu::has_1d(4)),
            (8, cpu::has_1d(2)),
            (0x80, cpu::has_1d(13)),
            (0x40, cpu::has_1d(7)),
            (0x600, true),
        ] {
            if !offered {
                continue;
            }
            cpu::set_cr4(cr4 | bits);
            group.equal(("cr4", bits), cpu::cr4(), cr4 | bits);
            cpu::set_cr4(cr4);
        }
        cpu::set_cr3(cr3);
        group.equal("cr3", cpu::cr3(), cr3);
        cpu::set_cr2(0x1234_5678_9abc_def0);
        cpu::cpuid(0, 0);
        group.equal("cr2 over an exit", cpu::cr2(), 0x1234_5678_9abc_def0);
        cpu::wrmsr(msr::EFER, efer | 1);
        group.equal("efer.sce", cpu::rdmsr(msr::EFER), efer | 1);
        cpu::wrmsr(msr::EFER, efer);
        // LMSW sets TS and MP but cannot clear PE; CLTS clears TS.
        asm!("lmsw {:x}", in(reg) 0xa_u16);
        group.equal("lmsw", cpu::cr0() & 0xf, 0xb);
        asm!("clts");
        group.equal("clts", cpu::cr0() & 0xf, 3);
        cpu::set_cr0(cr0);
        let word: u64;
        asm!("smsw {}", out(reg) word);
        group.equal("smsw", word & 0xffff, cr0 & 0xffff);
        group.done();
    }
    check::fault(
        "MOV from CR1",
        idt::catch_code(read_cr1),
        6,
        0,
        at(read_cr1_at),
    );
    check::fault(
        "MOV from CR5",
        idt::catch_code(read_cr5),
        6,
        0,
        at(read_cr5_at),
    );
    check::no_fault("WBINVD", idt::catch_code(wbinvd));
}

fn cr8() {
    let mut group = Group::new("CR8");
    for priority in [0, 5, 15, 0] {
        // SAFETY: interrupts are off.
        unsafe { cpu::set_cr8(priority) };
        group.equal(priority, cpu::cr8(), priority);
    }
    group.done();
    // SAFETY: refused.
    refused_by_processor("CR8: 16", || unsafe { cpu::set_cr8(16) });
}

fn debug_registers() {
    let mut group = Group::new("debug registers read back");
    // SAFETY: no breakpoint is enabled.
    unsafe {
        for value in [0, 0x1234_5678, 0xffff_8000_dead_b000] {
            cpu::set_dr0(value);
            cpu::set_dr1(value + 1);
            cpu::set_dr2(value + 2);
            cpu::set_dr3(value + 3);
            cpu::cpuid(0, 0);
            group.equal("dr0", cpu::dr0(), value);
            group.equal("dr1", cpu::dr1(), value + 1);
            group.equal("dr2", cpu::dr2(), value + 2);
            group.equal("dr3", cpu::dr3(), value + 3);
        }
        cpu::set_dr6(0);
        group.equal("dr6 fixed bits", cpu::dr6() & 0xffff_eff0, 0xffff_0ff0);
        cpu::set_dr6(0xe00f);
        group.equal("dr6", cpu::dr6() & 0xe00f, 0xe00f);
        cpu::set_dr6(0xffff_0ff0);
        cpu::set_dr7(0);
        group.equal("dr7 fixed bit", cpu::dr7(), 0x400);
        cpu::set_dr7(0x00f0_0400);
        group.equal("dr7", cpu::dr7(), 0x00f0_0400);
        cpu::set_dr7(0x400);
        let cr4 = cpu::cr4();
        group.that("dr4 is dr6", idt::catch_code(read_dr4).is_none(), "faults");
        cpu::set_cr4(cr4 | 8);
        let got = idt::catch_code(read_dr4);
        group.that(
            "dr4 with DE",
            got.is_some_and(|f| f.vector == 6),
            format_args!("{got:?}"),
        );
        cpu::set_cr4(cr4);
        refused("DR7: bit 32", || cpu::set_dr7(1 << 32 | 0x400));
        refused("DR6: bit 32", || cpu::set_dr6(1 << 32));
    }
    group.done();
    if cpu::on_duet() {
        // Bochs exits to the hypervisor first, which cannot tell DR8 from DR0.
        check::skip("MOV from DR8", "Bochs exits before it looks");
    } else {
        check::fault(
            "MOV from DR8",
            idt::catch_code(read_dr8),
            6,
            0,
            at(read_dr8_at),
        );
    }
}

fn tables() {
    let (mut gdt_pointer, mut idt_pointer) = (TablePointer::default(), TablePointer::default());
    let (task, local): (u64, u64);
    // SAFETY: stores into our variables.
    unsafe {
        asm!("sgdt [{}]", "sidt [{}]", "str {}", "sldt {}", in(reg) &mut gdt_pointer, in(reg) &mut idt_pointer,
             out(reg) task, out(reg) local);
    }
    let mut group = Group::new("SGDT, SIDT, STR, SLDT");
    group.equal("gdt", gdt_pointer.base, gdt::address());
    group.equal("gdt limit", gdt_pointer.limit, 0xff);
    group.equal("idt", idt_pointer.base, idt::address());
    group.equal("idt limit", idt_pointer.limit, 0xfff);
    group.equal("tr", task, u64::from(gdt::TSS));
    group.equal("ldtr", local, 0);
    group.done();
}

fn model_specific() {
    let mut group = Group::new("MSRs hold what is written");
    let high = 0xffff_8000_1234_5678;
    let values = [
        (msr::STAR, 0x0023_0008_1111_2222),
        (msr::LSTAR, high),
        (msr::CSTAR, high + 8),
        (msr::SFMASK, 0x4_7700),
        (msr::SYSENTER_CS, 0x60),
        (msr::SYSENTER_ESP, high),
        (msr::SYSENTER_EIP, high + 16),
        (msr::FS_BASE, high),
        (msr::GS_BASE, high + 24),
        (msr::KERNEL_GS_BASE, high + 32),
        (msr::PAT, 0x0007_0406_0007_0506),
    ];
    for (number, value) in values {
        let old = cpu::rdmsr(number);
        // SAFETY: none is in use.
        unsafe { cpu::wrmsr(number, value) };
        cpu::cpuid(0, 0);
        group.equal(number, cpu::rdmsr(number), value);
        // SAFETY: the value from before.
        unsafe { cpu::wrmsr(number, old) };
    }
    group.done();
    // SAFETY: refused.
    unsafe {
        refused_by_processor("LSTAR: not canonical", || cpu::wrmsr(msr::LSTAR, 1 << 63));
        refused_by_processor("FS_BASE: not canonical", || {
            cpu::wrmsr(msr::FS_BASE, 1 << 48)
        });
        refused_by_processor("SYSENTER_EIP: not canonical", || {
            cpu::wrmsr(msr::SYSENTER_EIP, 1 << 62)
        });
        refused_by_processor("PAT: type 2", || cpu::wrmsr(msr::PAT, 2));
        refused("unknown MSR, write", || cpu::wrmsr(0x1234_5678, 0));
        refused("unknown MSR 0xc0001234, write", || {
            cpu::wrmsr(0xc000_1234, 0)
        });
    }
    refused("unknown MSR, read", || {
        cpu::rdmsr(0x1234_5678);
    });
    refused("unknown MSR 0x1fff, read", || {
        cpu::rdmsr(0x1fff);
    });
    let (first, second) = (cpu::rdmsr(msr::TSC), cpu::rdmsr(msr::TSC));
    if cpu::on_duet() || !cpu::is_tcg() {
        check::that("MSR 0x10 moves on", second > first, (first, second));
    }
}

fn cpuid() {
    let mut state = State {
        gprs: [!0; 16],
        rflags: 0x8d7,
    };
    state.gprs[RAX] = 0xffff_ffff_0000_0000;
    state.gprs[RCX] = 0xffff_ffff_0000_0000;
    // SAFETY: CPUID and RET.
    unsafe { state.run(at(plain_cpuid)) };
    let leaf = cpu::cpuid(0, 0);
    let mut group = Group::new("CPUID");
    group.equal("rax", state.gprs[RAX], u64::from(leaf.eax));
    group.equal("rbx", state.gprs[RBX], u64::from(leaf.ebx));
    group.equal("rcx", state.gprs[RCX], u64::from(leaf.ecx));
    group.equal("r15", state.gprs[15], !0);
    group.equal("flags", state.rflags & 0x8d5, 0x8d5);
    group.that("highest leaf", leaf.eax >= 7 && leaf.eax < 0x100, leaf.eax);
    group.that(
        "highest extended leaf",
        cpu::cpuid(0x8000_0000, 0).eax >= 0x8000_0008,
        "too low",
    );
    group.that("long mode", cpu::has_extended_d(29), "not shown");
    let features = cpu::cpuid(1, 0);
    group.that(
        "FPU TSC MSR PAE CX8 PGE CMOV PAT FXSR SSE SSE2",
        features.edx & 0x0701_a171 == 0x0701_a171,
        features.edx,
    );
    let width = cpu::cpuid(0x8000_0008, 0).eax;
    group.that(
        "address widths",
        (36..=52).contains(&(width & 0xff)) && width >> 8 & 0xff >= 48,
        width,
    );
    // OSXSAVE mirrors CR4.
    if cpu::has_1c(26) {
        let cr4 = cpu::cr4();
        group.that("OSXSAVE off", !cpu::has_1c(27), "");
        // SAFETY: switches XSAVE on.
        unsafe { cpu::set_cr4(cr4 | 1 << 18) };
        group.that("OSXSAVE on", cpu::has_1c(27), "");
        // SAFETY: the value from before.
        unsafe { cpu::set_cr4(cr4) };
    }
    group.done();
    if cpu::on_duet() {
        let base = cpu::cpuid(0x4000_0000, 0);
        check::equal("hypervisor leaf", base.eax, 0x4000_0000);
        check::that("hypervisor bit", cpu::has_1c(31), ());
        let mut again = Group::new("CPUID is the same every time");
        for number in (0..=leaf.eax)
            .chain(0x8000_0000..0x8000_0009)
            .filter(|&number| number != 1)
        {
            again.that(
                number,
                cpu::cpuid(number, 0) == cpu::cpuid(number, 0),
                "differs",
            );
        }
        again.done();
    }
}

snippet!(plain_cpuid, plain_cpuid_at, [], ["cpuid"]);
snippet!(vmcall, vmcall_at, ["xor eax, eax"], ["vmcall"]);
snippet!(vmmcall, vmmcall_at, ["xor eax, eax"], ["vmmcall"]);

/// What Duet hides does not work either.
fn hidden() {
    if !cpu::on_duet() {
        check::skip("hidden instructions", "bare machine");
        return;
    }
    let features = cpu::cpuid(1, 0);
    check::equal(
        "MONITOR, VMX, RDRAND hidden",
        features.ecx & (1 << 3 | 1 << 5 | 1 << 30),
        0,
    );
    check::equal("SVM hidden", cpu::cpuid(0x8000_0001, 0).ecx & 4, 0);
    check::equal(
        "TSX, MPX, SGX, RDSEED, AVX-512 hidden",
        cpu::cpuid(7, 0).ebx & 0x0005_4814,
        0,
    );
    let invalid: [(&str, unsafe extern "C" fn(), unsafe extern "C" fn()); 8] = [
        ("MONITOR", monitor, monitor_at),
        ("MWAIT", mwait, mwait_at),
        ("VMXON", vmxon, vmxon_at),
        ("VMXOFF", vmxoff, vmxoff_at),
        ("VMRUN", vmrun, vmrun_at),
        ("VMLOAD", vmload, vmload_at),
        ("CLGI", clgi, clgi_at),
        ("SKINIT", skinit, skinit_at),
    ];
    for (name, code, code_at) in invalid {
        check::fault(name, idt::catch_code(code), 6, 0, at(code_at));
    }
    check::fault("GETSEC", idt::catch_code(getsec), 6, 0, at(getsec_at));
    check::fault("RDPMC", idt::catch_code(rdpmc), 13, 0, at(rdpmc_at));
    let random = idt::catch_code(rdrand);
    check::that(
        "RDRAND works or is #UD",
        random.is_none_or(|f: Fault| f.vector == 6),
        random,
    );
    let is_amd = cpu::cpuid(0, 0).ecx == u32::from_le_bytes(*b"cAMD");
    let mut state = State {
        gprs: [0; 16],
        rflags: 2,
    };
    let call = if is_amd { vmmcall } else { vmcall };
    let got = idt::catch(|| {
        // SAFETY: the hypercall changes RAX.
        unsafe { state.run(at(call)) };
    });
    check::no_fault("hypercall", got);
    check::equal("hypercall answers all ones", state.gprs[RAX], !0);
}

fn compatibility() {
    let mut group = Group::new("compatibility mode");
    let efer = cpu::rdmsr(msr::EFER);
    let leaf = cpu::cpuid(0x4000_0000, 0);
    let wanted = [8, u64::from(leaf.eax), efer & 0xffff_ffff, 0x1234_5678];
    for (case, want) in guests::state::entries(&raw const compat).zip(wanted) {
        let mut state = State {
            gprs: [7; 16],
            rflags: 2,
        };
        // SAFETY: changes general registers.
        unsafe { state.run_far(case.code, gdt::CODE32) };
        group.equal(case.text(), state.gprs[RAX] & 0xffff_ffff, want);
    }
    gdt::set(gdt::FREE, 0x008f_9b00_0000_ffff);
    for (case, want) in
        guests::state::entries(&raw const compat16).zip([0x1234, u64::from(leaf.eax)])
    {
        let mut state = State {
            gprs: [0; 16],
            rflags: 2,
        };
        // SAFETY: changes general registers.
        unsafe { state.run_far(case.code, gdt::FREE) };
        group.equal(case.text(), state.gprs[RAX] & 0xffff_ffff, want);
    }
    group.done();
}

guests::main!(run);
