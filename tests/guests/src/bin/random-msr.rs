//! Reads and writes MSRs all over: the known ranges whole, then random numbers and values.
//!
//! Broken by: a host MSR that a guest reaches, a write that makes the next entry fail, a host that panics on a number.
//! Whatever happens to the guest is right.
//!
//! Command line: `seed=N`, `count=N`.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::random::Random;
use guests::sandbox::Sandbox;
use guests::{command_line, cpu, println};

fn run() {
    let mut random = Random::new(command_line::number("seed", 1));
    let count = command_line::number("count", 20_000);
    let sandbox = Sandbox::new();
    let mut known = 0;
    for number in (0..0x1000)
        .chain(0xc000_0000..0xc000_0200)
        .chain(0xc001_0000..0xc001_0200)
        .chain(0x4000_0000..0x4000_0100)
    {
        let mut value = None;
        sandbox.run(1000, || value = Some(cpu::rdmsr(number)));
        if let Some(value) = value {
            known += 1;
            println!("msr {number:#x} = {value:#x}");
        }
        write(&sandbox, number, value.unwrap_or(0) ^ 1 << random.below(64));
    }
    println!("{known} MSRs can be read");
    for _ in 0..count {
        let number = match random.below(5) {
            0 => random.value() as u32,
            1 => 0xc000_0080 + random.below(8) as u32,
            2 => 0xc000_0100 + random.below(4) as u32,
            3 => 0x170 + random.below(16) as u32,
            _ => {
                [0, 0xc000_0000, 0xc001_0000, 0x800, 0x480][random.below(5) as usize]
                    + random.below(0x200) as u32
            }
        };
        let value = match random.below(4) {
            0 => random.value(),
            1 => 1 << random.below(64),
            2 => !0,
            _ => random.below(0x1000),
        };
        write(&sandbox, number, value);
    }
    println!("done");
}

/// Writes and takes exits with the new value; then puts the old one back if there is one.
fn write(sandbox: &Sandbox, number: u32, value: u64) {
    let mut old = None;
    sandbox.run(1000, || {
        old = Some(cpu::rdmsr(number));
        // SAFETY: none: the point of this guest.
        unsafe { cpu::wrmsr(number, value) };
        cpu::cpuid(0, 0);
        cpu::in8(0x1234);
    });
    if let Some(old) = old {
        // SAFETY: the value from before.
        sandbox.run(1000, || unsafe { cpu::wrmsr(number, old) });
    }
}

guests::main!(run);
