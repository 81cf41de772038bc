//! Instructions that an assembler made and a processor executed, executed by the emulator.
//!
//! `corpus.txt` has a line for each: the mode, the bytes (GNU as 2.40), the source, and what it changed on a processor:
//! registers, the arithmetic flags after it, bytes of the device by their offset, all in hexadecimal. What is for 16- and
//! 32-bit mode was executed there by the same instruction in 64-bit mode. In mode `16o` the segments, not the
//! registers, point to the device.

use super::tests::{Bench, DEVICE};
use super::*;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use arch::regs::{Gpr, Segment};

const LINES: &str = include_str!("corpus.txt");
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
const AF: u64 = 0x10;
const OF: u64 = 0x800;
/// Bytes that the processor's run looked at.
const BYTES: usize = 0x2000;
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

const fn pattern(at: usize) -> u8 {
    (at * 37 + 11) as u8
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a hexadecimal number")
}

/// The state in which the processor started.
fn bench(mode: &str) -> Bench {
    let mut bench = match mode {
        "64" => Bench::long(),
        _ => Bench::protected(),
    };
    let registers = [
        0x1122_3344_5566_7788,
        3,
        0x0f0e_0d0c_0b0a_0908,
        DEVICE,
        0,
        DEVICE + 0x140,
        DEVICE + 0xa0,
        DEVICE + 0xc0,
        0x8877_6655_4433_2211,
        2,
        0xa0a1_a2a3_a4a5_a6a7,
        0xffff_ffff_8000_0001,
        DEVICE + 0x20,
        DEVICE + 0x30,
        DEVICE,
        0xfedc_ba98_7654_3210,
    ];
    bench.vcpu.state.gprs.0 = registers;
    if mode.starts_with("16") {
        bench.vcpu.state.segments[SegmentName::Cs] = Segment::flat(8, 0x009b);
    }
    if mode == "16o" {
        for (gpr, offset) in [
            (Gpr::Rbx, 0x200),
            (Gpr::Rbp, 0x140),
            (Gpr::Rsi, 0xa0),
            (Gpr::Rdi, 0xc0),
        ] {
            bench.vcpu.state.gprs[gpr] = offset;
        }
        for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Ss] {
            bench.vcpu.state.segments[name].base = DEVICE;
        }
    }
    bench.vcpu.state.rflags = Rflags::FIXED | Rflags::CF;
    for (at, byte) in bench.device.bytes.iter_mut().enumerate() {
        *byte = pattern(at);
    }
    bench
}

/// The flags that the manual leaves undefined after an instruction.
fn undefined(source: &str) -> u64 {
    let is = |name: &str| source.starts_with(name);
    if ["shl", "shr", "sar", "rol", "ror"].into_iter().any(is) {
        if source.ends_with(", 1") { AF } else { AF | OF }
    } else {
        0
    }
}

/// What the emulator makes of a line, in the words of the line.
fn emulate(mode: &str, code: &[u8], undefined: u64) -> Result<Vec<String>, Outcome> {
    let mut b = bench(mode);
    let before = b.vcpu.state.gprs.0;
    let outcome = b.execute(code);
    if outcome != Outcome::Done(code.len() as u8) {
        return Err(outcome);
    }
    let mut changes = Vec::new();
    for ((name, old), new) in REGISTERS.iter().zip(before).zip(b.vcpu.state.gprs.0) {
        if old != new {
            changes.push(format!("{name}={new:x}"));
        }
    }
    let flags = b.vcpu.state.rflags.bits() & ARITHMETIC & !undefined;
    changes.push(format!("flags={flags:x}"));
    for (at, byte) in b.device.bytes.iter().take(BYTES).enumerate() {
        if *byte != pattern(at) {
            changes.push(format!("{at:x}:{byte:02x}"));
        }
    }
    Ok(changes)
}

#[test]
fn the_emulator_does_what_a_processor_did() {
    let mut wrong = Vec::new();
    for line in LINES.lines() {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [mode, code, source, expected] = parts[..] else {
            panic!("not a line: {line}");
        };
        let code: Vec<u8> = (0..code.len())
            .step_by(2)
            .map(|at| number(&code[at..at + 2]) as u8)
            .collect();
        let undefined = undefined(source);
        let expected: Vec<String> = expected
            .split(' ')
            .map(|change| match change.strip_prefix("flags=") {
                Some(flags) => format!("flags={:x}", number(flags) & !undefined),
                None => change.to_string(),
            })
            .collect();
        let got = emulate(mode, &code, undefined);
        if got.as_ref() != Ok(&expected) {
            wrong.push(format!("{line}\n    emulated: {got:x?}"));
        }
    }
    let shown = wrong.len().min(20);
    assert!(
        wrong.is_empty(),
        "{} lines differ:\n{}",
        wrong.len(),
        wrong[..shown].join("\n")
    );
}

#[test]
fn what_is_not_emulated_is_refused_with_its_bytes() {
    for (mode, code) in [
        ("64", &[0x0f, 0x10, 0x03][..]), // movups xmm0, [rbx]
        ("64", &[0xf7, 0x23]),           // mul dword [rbx]
        ("64", &[0xff, 0x33]),           // push [rbx]
        ("64", &[0x0f, 0xc7, 0x0b]),     // cmpxchg8b [rbx]
        ("32", &[0xd8, 0x03]),           // fadd dword [ebx]
        ("32", &[0xff, 0x13]),           // call [ebx]
    ] {
        let mut b = bench(mode);
        let Outcome::Unsupported { bytes } = b.execute(code) else {
            panic!("{code:02x?} was not refused");
        };
        assert!(bytes.starts_with(code));
        assert!(
            b.device
                .accesses
                .iter()
                .all(|(.., written)| written.is_none())
        );
    }
}
