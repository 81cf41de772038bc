//! Executes random bytes, in ring 0 and ring 3, as 64-, 32- and 16-bit code, with random registers. Half of the
//! bytes are drawn from a list of instructions that hypervisors have to deal with.
//!
//! Broken by: a host that panics, hangs or is written to by anything a guest executes. Whatever happens to the guest is
//! right.
//!
//! Command line: `seed=N`, `count=N`.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guests::racy::{Page, Racy};
use guests::random::Random;
use guests::sandbox::{self, Sandbox};
use guests::state::State;
use guests::{command_line, gdt, paging, scratch, user};

static CODE: Racy<[Page; 2]> = Racy::new([Page::ZERO; 2]);
static DATA: Racy<[Page; 2]> = Racy::new([Page::ZERO; 2]);
/// Where code and data are mapped, with nothing around them.
const CODE_AT: u64 = 0x5000_0000;
const DATA_AT: u64 = 0x5001_0000;
static SEED: AtomicU64 = AtomicU64::new(0);
const FLAT_CODE16: u16 = gdt::FREE;

/// Instructions and prefixes with exits, faults or special treatment behind them.
const HOSTILE: [&[u8]; 64] = [
    &[0x0f, 0xa2],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x30],
    &[0x0f, 0x01, 0xf9],
    &[0x0f, 0x33],
    &[0xf4],
    &[0x0f, 0x09],
    &[0x0f, 0x08],
    &[0x0f, 0x06],
    &[0x0f, 0x20, 0xc0],
    &[0x0f, 0x22, 0xc0],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x20, 0xe0],
    &[0x0f, 0x22, 0xe0],
    &[0x44, 0x0f, 0x20, 0xc0],
    &[0x44, 0x0f, 0x22, 0xc0],
    &[0x0f, 0x21, 0xc0],
    &[0x0f, 0x23, 0xf8],
    &[0x0f, 0x23, 0xf0],
    &[0x0f, 0x23, 0xc1],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xd8],
    &[0x0f, 0x01, 0xda],
    &[0x0f, 0x01, 0xdc],
    &[0x0f, 0x01, 0xdd],
    &[0x0f, 0x01, 0xde],
    &[0x0f, 0x01, 0xdf],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0xc7, 0xf0],
    &[0x0f, 0xc7, 0xf8],
    &[0x0f, 0x01, 0x03],
    &[0x0f, 0x01, 0x0b],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x00, 0xd0],
    &[0x8e, 0xd0],
    &[0x8e, 0xd8],
    &[0xcd, 0x80],
    &[0xcc],
    &[0xf1],
    &[0xce],
    &[0xcf],
    &[0x48, 0xcf],
    &[0xec],
    &[0xee],
    &[0xed],
    &[0xef],
    &[0x66, 0xed],
    &[0xf3, 0x6c],
    &[0xf3, 0x6e],
    &[0xf3, 0x6d],
    &[0x9d],
    &[0xfb],
    &[0xfa],
    &[0x0f, 0x05],
    &[0x0f, 0x34],
    &[0x0f, 0x78, 0xc0],
    &[0xf3, 0x0f, 0xc7, 0x33],
    &[0x0f, 0x37],
];

/// MMIO instructions: RBX and RDI point to the device half of the time.
const MEMORY: [&[u8]; 16] = [
    &[0x8b, 0x03],
    &[0x48, 0x89, 0x03],
    &[0x88, 0x07],
    &[0x66, 0x8b, 0x43, 0x11],
    &[0xf3, 0xaa],
    &[0xf3, 0xa4],
    &[0x01, 0x03],
    &[0x48, 0x87, 0x03],
    &[0xff, 0x03],
    &[0xff, 0x33],
    &[0xff, 0x13],
    &[0x0f, 0xb1, 0x0b],
    &[0x0f, 0x11, 0x03],
    &[0xf0, 0x48, 0x0f, 0xc7, 0x0b],
    &[0xd9, 0x03],
    &[0x0f, 0x18, 0x03],
];

const PREFIXES: [u8; 12] = [
    0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48,
];

fn run() {
    gdt::set(FLAT_CODE16, 0x008f_9b00_0000_ffff);
    SEED.store(command_line::number("seed", 1), Relaxed);
    sandbox::rounds(command_line::number("count", 2000), round);
}

fn round(sandbox: &Sandbox, round: u64) {
    let mut random = Random::new(SEED.load(Relaxed) << 32 | round);
    let length = fill(&mut random);
    // Ring 3 half of the time: code in ring 0 soon wrecks its machine.
    let mode = random.below(6);
    let mut state = registers(&mut random);
    let all = paging::P | paging::W | paging::U;
    for page in [0, 4096] {
        paging::map(CODE_AT + page, CODE.address() + page, all);
        paging::map(DATA_AT + page, DATA.address() + page, all);
    }
    // An instruction on the device that a hypervisor does not emulate ends the machine: seldom.
    paging::protect(scratch::ADDRESS, if random.one_in(32) { all } else { 0 });
    let entry = CODE_AT + 4096 - random.below(length);
    let user_code = [gdt::USER_CODE64, gdt::USER_CODE32][random.below(2) as usize];
    sandbox.run(3000, || {
        // SAFETY: none: the point of this guest.
        unsafe {
            match mode {
                0 => state.run(entry),
                1 => state.run_far(entry, gdt::CODE32),
                2 => state.run_far(entry, FLAT_CODE16),
                _ => drop(user::enter(entry, DATA_AT, user_code, 0x3002)),
            }
        }
    });
}

/// Fills the code pages around their border; returns how far before it code begins at most.
fn fill(random: &mut Random) -> u64 {
    // SAFETY: the code is not running.
    let code = unsafe { core::slice::from_raw_parts_mut(CODE.address_as::<u8>(), 8192) };
    code.fill(0xcc);
    let start = 4096 - 48;
    let mut at = start;
    while at < start + 120 {
        let piece: &[u8] = match random.below(8) {
            0 | 1 => HOSTILE[random.below(HOSTILE.len() as u64) as usize],
            2 => MEMORY[random.below(MEMORY.len() as u64) as usize],
            3 => &[PREFIXES[random.below(PREFIXES.len() as u64) as usize]],
            // mov ecx, an MSR; mov dx, a port.
            4 => &[
                0xb9,
                random.value() as u8,
                [0, 1, 2, 8][random.below(4) as usize],
                0,
                [0, 0xc0, 0x40][random.below(3) as usize],
            ],
            5 => &[0x66, 0xba, random.value() as u8, random.below(3) as u8],
            _ => &random.value().to_le_bytes(),
        };
        code[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    avoid_own_ports(code);
    if random.one_in(2) { 48 } else { 1 }
}

/// `out imm8` to the exit port would end the test early.
fn avoid_own_ports(code: &mut [u8]) {
    for index in 0..code.len() - 1 {
        if code[index + 1] == 0xf4 && matches!(code[index], 0xe6 | 0xe7) {
            code[index + 1] = 0x80;
        }
    }
}

fn registers(random: &mut Random) -> State {
    let mut state = State {
        gprs: [0; 16],
        rflags: 2,
    };
    for value in &mut state.gprs {
        *value = match random.below(6) {
            0 => random.value(),
            1 => scratch::ADDRESS + random.below(4096),
            2 => DATA_AT + random.below(8192),
            3 => random.below(64),
            4 => 0xffff_8000_0000_0000 | random.value() >> 17,
            _ => CODE_AT + random.below(8192),
        };
    }
    state.rflags |= random.value() & if random.one_in(4) { 0x24_4fd5 } else { 0xcd5 };
    state
}

guests::main!(run);
