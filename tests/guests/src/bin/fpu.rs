//! x87, SSE and AVX registers hold values from the seed while the guest exits in every way, thousands of times.
//! Two instances with different seeds run alternately on one processor.
//!
//! Broken by: extended state that is not saved, not restored, restored for the wrong guest, or saved under the
//! guest's own XCR0; a host that uses SIMD registers; TS or XCR0 of the guest changed behind its back.
//!
//! Command line: `seed=N`, `rounds=N`.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use guests::check::{self, Group};
use guests::idt::{self, Frame};
use guests::racy::Racy;
use guests::random::Random;
use guests::{command_line, cpu, generator, multiboot, println, scratch, snippet};

/// XSAVE area in standard format with x87, SSE, AVX.
const SIZE: usize = 832;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Area([u8; SIZE]);

static WANTED: Racy<Area> = Racy::new(Area([0; SIZE]));
static GOT: Racy<Area> = Racy::new(Area([0; SIZE]));

/// How state is saved and which components there are.
#[derive(Clone, Copy)]
struct Machine {
    xsave: bool,
    avx: bool,
}

fn run() {
    let machine = enable();
    let seed = command_line::number("seed", 1);
    let rounds = command_line::number("rounds", 300);
    println!("xsave {} avx {} seed {seed}", machine.xsave, machine.avx);
    idt::hook(0x50, Some(on_interrupt));
    if machine.xsave {
        control_registers(machine);
    }
    let mut group = Group::new("extended state survives exits");
    let mut random = Random::new(seed);
    for round in 0..rounds {
        make(&mut random, machine);
        load(machine);
        exits(round, machine);
        save(machine);
        compare(&mut group, round, machine);
    }
    group.done();
    task_switched(machine, &mut random);
    if machine.avx {
        narrowed(machine, &mut random);
    }
    images(machine, &mut random);
}

/// Turns everything on.
fn enable() -> Machine {
    let machine = Machine {
        xsave: cpu::has_1c(26),
        avx: cpu::has_1c(26) && cpu::has_1c(28),
    };
    let cr4 = cpu::cr4() | 0x600 | if machine.xsave { 1 << 18 } else { 0 };
    // SAFETY: MP and NE on, EM and TS off, SSE and XSAVE on.
    unsafe {
        cpu::set_cr0((cpu::cr0() & !0xc) | 0x22);
        cpu::set_cr4(cr4);
    }
    if machine.xsave {
        cpu::xsetbv(0, components(machine));
    }
    machine
}

fn components(machine: Machine) -> u64 {
    if machine.avx { 7 } else { 3 }
}

fn area(cell: &Racy<Area>) -> &'static mut [u8; SIZE] {
    // SAFETY: the main flow alone uses the areas.
    unsafe { &mut (*cell.get()).0 }
}

/// An image with random registers and valid control words.
fn make(random: &mut Random, machine: Machine) {
    let image = area(&WANTED);
    for chunk in image.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.value().to_le_bytes());
    }
    image[0..2].copy_from_slice(&(0x037f_u16 & !((random.value() as u16) & 0xc00)).to_le_bytes());
    // No exception is pending; top of stack and condition bits are free.
    image[2..4].copy_from_slice(&((random.value() as u16) & 0x7f40 & !0x80).to_le_bytes());
    image[4] = random.value() as u8;
    // Reserved byte, last opcode, instruction and data pointers: processors differ in keeping them.
    image[5..24].fill(0);
    let rounding = (random.value() as u32) & 0x6000;
    image[24..28]
        .copy_from_slice(&(0x1f80 | rounding | (random.value() as u32 & 0x3f)).to_le_bytes());
    image[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    // Registers of x87 are 10 bytes in 16.
    for register in 0..8 {
        image[32 + register * 16 + 10..48 + register * 16].fill(0);
    }
    image[416..SIZE].fill(0);
    if machine.xsave {
        image[512] = components(machine) as u8;
    }
    if machine.avx {
        for byte in &mut image[576..832] {
            *byte = random.value() as u8;
        }
    }
}

fn load(machine: Machine) {
    let at = area(&WANTED).as_ptr();
    // SAFETY: the image is valid; the runtime uses no extended state.
    unsafe {
        if machine.xsave {
            asm!("xrstor64 [{}]", in(reg) at, in("eax") 7, in("edx") 0);
        } else {
            asm!("fxrstor64 [{}]", in(reg) at);
        }
    }
}

fn save(machine: Machine) {
    let image = area(&GOT);
    image.fill(0);
    let at = image.as_mut_ptr();
    // SAFETY: the area is ours.
    unsafe {
        if machine.xsave {
            asm!("xsave64 [{}]", in(reg) at, in("eax") 7, in("edx") 0);
        } else {
            asm!("fxsave64 [{}]", in(reg) at);
        }
    }
}

/// Compares control words, x87, XMM and YMM registers.
fn compare(group: &mut Group, round: u64, machine: Machine) {
    let (got, want) = (area(&GOT), area(&WANTED));
    let end = if machine.avx { 832 } else { 416 };
    for offset in (0..end).filter(|offset| !(5..24).contains(offset) && !(28..32).contains(offset))
    {
        // Software bytes and header: not state.
        if (416..576).contains(&offset) || got[offset] == want[offset] {
            continue;
        }
        group.equal((round, "image byte", offset), got[offset], want[offset]);
        return;
    }
    group.equal(round, 0, 0);
}

fn on_interrupt(_frame: &mut Frame) {}

/// Exits of every kind; nothing here touches extended state.
fn exits(round: u64, machine: Machine) {
    cpu::cpuid(0, 0);
    cpu::rdtsc();
    cpu::rdmsr(cpu::msr::PAT);
    cpu::in8(0x1230);
    cpu::out32(0x1230, 7);
    let device = scratch::base() as *mut u64;
    // SAFETY: the scratch device, an MSR's own value, a control register's own value.
    unsafe {
        device.write_volatile(round);
        device.read_volatile();
        cpu::wrmsr(cpu::msr::PAT, cpu::rdmsr(cpu::msr::PAT));
        cpu::set_cr0(cpu::cr0());
        cpu::set_cr4(cpu::cr4());
        cpu::set_cr3(cpu::cr3());
    }
    if machine.xsave {
        cpu::xgetbv(0);
        if round.is_multiple_of(4) {
            cpu::xsetbv(0, components(machine));
        }
    }
    if round.is_multiple_of(16) {
        println!("round {round}");
    }
    // Fresh memory, 2 MiB apart, while there is some.
    let fresh = (4 << 20) + round * (2 << 20);
    if fresh < multiboot::memory_end() {
        // SAFETY: RAM that nothing uses.
        unsafe { (fresh as *mut u8).write_volatile(1) };
    }
    if generator::present() {
        generator::raise(0x50, (round % 50) as u32);
        // SAFETY: a handler is installed.
        unsafe { cpu::sti_hlt() };
    }
}

/// XCR0: values that a processor refuses, and that reads show what was written.
fn control_registers(machine: Machine) {
    let valid = components(machine);
    check::equal("XGETBV", cpu::xgetbv(0), valid);
    for (name, value) in [
        ("XCR0 without x87", 2),
        ("XCR0 with AVX alone", 5),
        ("XCR0 bit 62", 1 << 62 | 3),
        ("XCR0 0", 0),
    ] {
        let got = idt::catch(|| cpu::xsetbv(0, value));
        check::fault_anywhere(name, got, 13, 0);
    }
    check::fault_anywhere("XCR1", idt::catch(|| cpu::xsetbv(1, 3)), 13, 0);
    check::equal("XCR0 unchanged", cpu::xgetbv(0), valid);
    cpu::xsetbv(0, 1);
    check::equal("XCR0 x87 alone", cpu::xgetbv(0), 1);
    let size = cpu::cpuid(13, 0).ebx;
    cpu::xsetbv(0, valid);
    let full = cpu::cpuid(13, 0).ebx;
    check::equal("CPUID 13 size follows XCR0: x87", size, 576);
    check::equal(
        "CPUID 13 size follows XCR0: all",
        full,
        if machine.avx { 832 } else { 576 },
    );
}

snippet!(touch, touch_at, [], ["movaps xmm0, xmm0"]);

/// With TS set the registers still hold their values, and the first use faults.
fn task_switched(machine: Machine, random: &mut Random) {
    let mut group = Group::new("state survives exits with TS set");
    make(random, machine);
    load(machine);
    let cr0 = cpu::cr0();
    // SAFETY: TS makes extended instructions fault, nothing else.
    unsafe { cpu::set_cr0(cr0 | 8) };
    exits(1, machine);
    let got = idt::catch_code(touch);
    // SAFETY: clears TS.
    unsafe { asm!("clts") };
    save(machine);
    compare(&mut group, 0, machine);
    group.done();
    check::fault("#NM with TS set", got, 7, 0, touch_at as *const () as u64);
    check::equal("CLTS", cpu::cr0(), cr0);
}

/// With AVX off in XCR0 the upper halves are kept.
fn narrowed(machine: Machine, random: &mut Random) {
    let mut group = Group::new("upper halves survive exits with AVX off in XCR0");
    for round in 0..20 {
        make(random, machine);
        load(machine);
        cpu::xsetbv(0, if round % 2 == 0 { 1 } else { 3 });
        exits(
            2,
            Machine {
                xsave: false,
                avx: false,
            },
        );
        cpu::xsetbv(0, 7);
        save(machine);
        compare(&mut group, round, machine);
    }
    group.done();
}

/// FXSAVE and XSAVE agree, and instructions work on what was restored.
fn images(machine: Machine, random: &mut Random) {
    make(random, machine);
    load(machine);
    save(machine);
    let saved = *area(&GOT);
    let other = area(&GOT);
    other.fill(0);
    // SAFETY: the area is ours.
    unsafe { asm!("fxsave64 [{}]", in(reg) other.as_mut_ptr()) };
    check::that(
        "FXSAVE agrees with XSAVE",
        saved[32..416] == other[32..416],
        (),
    );
    let (mut low, mut status): (u64, u32) = (0, 0);
    // SAFETY: x87 and SSE arithmetic over an exit, stored in our variables.
    unsafe {
        asm!("fninit", "fld1", "fld1", "faddp", "push rbx", "xor eax, eax", "cpuid", "pop rbx",
             "fistp qword ptr [{low}]", low = in(reg) &mut low, out("eax") _, out("ecx") _, out("edx") _);
        asm!("pcmpeqd xmm3, xmm3", "psrlq xmm3, 60", "in al, dx", "movd {0:e}, xmm3", out(reg) status, in("dx") 0x1230,
             out("al") _);
    }
    check::equal("x87 sum over an exit", low, 2);
    check::equal("SSE shift over an exit", status, 15);
}

guests::main!(run);
