//! Puts the processor into odd but possible states and takes exits in them: control register combinations, segments of
//! every type, flags, debug registers, tables with strange limits.
//!
//! Broken by: a state that a processor can be in but a VM entry refuses, and a host that loses its own state to
//! the guest's. Whatever happens to the guest is right.
//!
//! Command line: `seed=N`, `count=N`.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guests::gdt::{self, TablePointer};
use guests::random::Random;
use guests::sandbox::{self, Sandbox};
use guests::state::State;
use guests::{cases, command_line, cpu, generator, idt, paging, scratch};

cases!(exits64, ".code64", "ret";
    "cpuid", "in al, dx", "mov eax, [rbx]", "rdtsc", "pushfq; popfq", "mov rax, cr0; mov cr0, rax",
    "mov rax, cr4; mov cr4, rax", "mov rax, dr7; mov dr7, rax", "mov rax, cr3; mov cr3, rax", "mov ecx, 0xc0000080; rdmsr; wrmsr",
    "int3", "ud2", "int 0x55", "syscall", "invlpg [rbx]",
);
cases!(exits32, ".code32", "retf"; "cpuid", "in al, dx", "mov eax, [ebx]", "rdtsc", "int3", "ud2", "pushfd; popfd", "into");

static SEED: AtomicU64 = AtomicU64::new(0);

fn run() {
    SEED.store(command_line::number("seed", 1), Relaxed);
    sandbox::rounds(command_line::number("count", 3000), round);
}

fn round(sandbox: &Sandbox, round: u64) {
    let mut random = Random::new(SEED.load(Relaxed) << 32 | round);
    let device = paging::P | paging::W;
    paging::protect(scratch::ADDRESS, device);
    sandbox.run(2000, || odd_state(&mut random));
}

/// Each change may fault, which ends the round; the next one starts from a machine in order.
fn odd_state(random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        match random.below(8) {
            0 => control_register_0(random),
            1 => control_register_4(random),
            2 => debug_registers(random),
            3 => segments(random),
            4 => tables(random),
            5 => system_segments(random),
            6 => {
                // SAFETY: none: the point of this guest.
                unsafe {
                    cpu::wrmsr(
                        cpu::msr::EFER,
                        cpu::rdmsr(cpu::msr::EFER) ^ 1 << random.below(16),
                    )
                };
            }
            _ => bases(random),
        }
    }
    let first = if random.one_in(4) {
        (&raw const exits32, true)
    } else {
        (&raw const exits64, false)
    };
    let length = guests::state::entries(first.0).count() as u64;
    let Some(case) = guests::state::entries(first.0).nth(random.below(length) as usize) else {
        return;
    };
    let mut state = State {
        gprs: [0x1234; 16],
        rflags: 2,
    };
    state.gprs[guests::state::RBX] = scratch::ADDRESS;
    // TF, IF off, DF, IOPL, NT, RF, AC, VIF, VIP, ID.
    state.rflags |= random.value() & 0x3d_7dd5;
    if generator::present() && random.one_in(4) {
        cpu::out32(generator::DELAY, random.below(30) as u32);
        cpu::out32(generator::RAISE, random.below(0x200) as u32);
    }
    // SAFETY: none: the point of this guest.
    unsafe {
        if first.1 {
            state.run_far(case.code, gdt::CODE32);
        } else {
            state.run(case.code);
        }
    }
}

fn control_register_0(random: &mut Random) {
    let flip = 1 << [0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31, 17, 40][random.below(13) as usize];
    // SAFETY: none: the point of this guest.
    unsafe { cpu::set_cr0(cpu::cr0() ^ flip) };
}

fn control_register_4(random: &mut Random) {
    // SAFETY: none: the point of this guest.
    unsafe { cpu::set_cr4(cpu::cr4() ^ 1 << random.below(25)) };
}

/// QEMU's TCG aborts, whatever the machine, on a data breakpoint that an event's delivery hits: addresses are far
/// from every stack.
fn debug_registers(random: &mut Random) {
    // SAFETY: none: the point of this guest.
    unsafe {
        cpu::set_dr0(scratch::ADDRESS);
        cpu::set_dr1(scratch::ADDRESS + 4);
        cpu::set_dr2(random.value() | 1 << 62);
        cpu::set_dr3(0x1234);
        cpu::set_dr6(random.value() & 0xffff_ffff);
        cpu::set_dr7(random.value() & 0xffff_ffff);
    }
}

/// Descriptors with random type and attributes into ES, DS, FS, GS, SS.
fn segments(random: &mut Random) {
    let attributes = random.value() & 0x00d0_7f00_0000_0000 | 0x0000_8000_0000_0000;
    gdt::set(
        gdt::FREE,
        attributes | random.value() & 0xff0f_00ff_ffff_ffff,
    );
    let selector = u32::from(gdt::FREE) | random.below(4) as u32;
    // SAFETY: none: the point of this guest.
    unsafe {
        match random.below(5) {
            0 => asm!("mov es, {0:e}", in(reg) selector),
            1 => asm!("mov ds, {0:e}", in(reg) selector),
            2 => asm!("mov fs, {0:e}", in(reg) selector),
            3 => asm!("mov gs, {0:e}", in(reg) selector),
            _ => asm!("mov ss, {0:e}", in(reg) selector & !3),
        }
    }
}

fn tables(random: &mut Random) {
    // Without the gates of the exceptions, or the code segment, every fault is a triple fault: seldom.
    let limits = if random.one_in(64) {
        [0, 0x7f, 0x48]
    } else {
        [0xff, 0xfff, 0xffff]
    };
    let limit = limits[random.below(3) as usize];
    let gdt_pointer = TablePointer {
        limit,
        base: gdt::address(),
    };
    let idt_pointer = TablePointer {
        limit,
        base: idt::address(),
    };
    // SAFETY: none: the point of this guest.
    unsafe {
        if random.one_in(2) {
            asm!("lgdt [{}]", in(reg) &gdt_pointer);
        } else {
            asm!("lidt [{}]", in(reg) &idt_pointer);
        }
    }
}

/// Local descriptor table and task state of random type and size. The task state stays where it is: the handlers'
/// stacks are named there.
fn system_segments(random: &mut Random) {
    let kind = [2, 9, 11, 1, 3, 12][random.below(6) as usize];
    gdt::set_system(
        gdt::FREE,
        gdt::task() as u64,
        random.value() as u32 & 0xf_ffff,
        kind,
    );
    // SAFETY: none: the point of this guest.
    unsafe {
        if random.one_in(2) {
            asm!("lldt {:x}", in(reg) gdt::FREE);
        } else {
            asm!("ltr {:x}", in(reg) gdt::FREE);
        }
    }
}

fn bases(random: &mut Random) {
    let number = [
        cpu::msr::FS_BASE,
        cpu::msr::GS_BASE,
        cpu::msr::KERNEL_GS_BASE,
        cpu::msr::SYSENTER_EIP,
        cpu::msr::LSTAR,
        cpu::msr::STAR,
    ][random.below(6) as usize];
    // SAFETY: none: the point of this guest.
    unsafe { cpu::wrmsr(number, random.value() >> random.below(40)) };
}

guests::main!(run);
