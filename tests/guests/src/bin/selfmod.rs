//! Code that changes itself, with exits in between.
//!
//! Broken by: a hypervisor that decodes an instruction from bytes it kept, or reads them before the guest's write is
//! visible; code in RAM that is first touched by the fetch.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use guests::check::Group;
use guests::racy::{Page, Racy};
use guests::{cpu, multiboot, paging, scratch};

static CODE: Racy<[Page; 2]> = Racy::new([Page::ZERO; 2]);

fn place(at: u64, code: &[u8]) {
    for (index, &byte) in code.iter().enumerate() {
        // SAFETY: memory that holds nothing but this code.
        unsafe { (at as *mut u8).add(index).write_volatile(byte) };
    }
}

/// Calls code that takes RDI, EDX and changes RAX, RCX, RDX.
fn call(at: u64, rdi: u64) -> u64 {
    let rax;
    // SAFETY: code placed by this guest.
    unsafe {
        asm!("push rbx", "cpuid", "call r8", "pop rbx", in("r8") at, in("rdi") rdi, inout("rax") 0_u64 => rax, out("rcx") _,
             out("rdx") _);
    }
    rax
}

fn run() {
    let at = CODE.address();
    let device = scratch::base();
    let mut group = Group::new("an immediate that changes around exits");
    for round in 0..500_u32 {
        // mov eax, imm32; push rax; xor eax, eax; cpuid; pop rax; ret
        let [a, b, c, d] = round.to_le_bytes();
        place(
            at,
            &[
                0xb8, a, b, c, d, 0x50, 0x31, 0xc0, 0x53, 0x0f, 0xa2, 0x5b, 0x58, 0xc3,
            ],
        );
        group.equal(round, call(at, 0), u64::from(round));
    }
    group.done();

    // The same address holds one exiting instruction after the other, of different lengths.
    let mut group = Group::new("an exiting instruction that changes");
    let forms: [(&[u8], u64); 6] = [
        (&[0x8b, 0x07, 0xc3], 0x4433_2211), // mov eax, [rdi]
        (&[0x8a, 0x47, 0x01, 0xc3], 0x22),  // mov al, [rdi + 1]
        (&[0x48, 0x8b, 0x07, 0xc3], 0x8877_6655_4433_2211), // mov rax, [rdi]
        (&[0x0f, 0xb6, 0x47, 0x03, 0xc3], 0x44), // movzx eax, byte [rdi + 3]
        (&[0x48, 0x63, 0x47, 0x04, 0xc3], 0xffff_ffff_8877_6655), // movsxd rax, [rdi + 4]
        (&[0x66, 0x8b, 0x87, 0x02, 0, 0, 0, 0xc3], 0x4433), // mov ax, [rdi + 2]
    ];
    // SAFETY: the scratch device.
    unsafe { (device as *mut u64).write_volatile(0x8877_6655_4433_2211) };
    for round in 0..60 {
        let (code, want) = forms[round % forms.len()];
        // `xor eax, eax` first: CPUID left something there.
        place(at + 64, &[0x31, 0xc0]);
        place(at + 66, code);
        group.equal(round, call(at + 64, device), want);
    }
    group.done();

    // One instruction across a page border, whose second page changes its frame.
    let mut group = Group::new("an instruction across two pages");
    paging::map(0x5000_0000, at, paging::P | paging::W);
    for round in 0..40_u64 {
        let second = if round % 2 == 0 {
            at + 4096
        } else {
            (multiboot::memory_end() - 0x10_0000) & !0xfff
        };
        paging::map(0x5000_1000, second, paging::P | paging::W);
        // mov eax, [rdi + disp32]: 8b 87 in the first page, the displacement in the second.
        place(0x5000_0ffc, &[0x31, 0xc0, 0x8b, 0x87]);
        place(0x5000_1000, &[(round % 2) as u8 * 4, 0, 0, 0, 0xc3]);
        let want = if round % 2 == 0 {
            0x4433_2211
        } else {
            0x8877_6655
        };
        group.equal(round, call(0x5000_0ffc, device), want);
    }
    group.done();

    // An instruction that overwrites the exiting one behind it.
    let mut group = Group::new("a store right before the exit it changes");
    for round in 0..50_u32 {
        // mov dword [rip + 5], imm32: patches the 4 bytes of `mov eax, imm32` behind `nop; xor eax, eax; in al, 0xb8`.
        place(at + 256, &[0xc7, 0x05, 0x06, 0, 0, 0]);
        place(at + 262, &round.to_le_bytes());
        place(
            at + 266,
            &[0x31, 0xc0, 0xe4, 0xb8, 0x90, 0xb8, 0, 0, 0, 0, 0xc3],
        );
        group.equal(round, call(at + 256, 0), u64::from(round));
    }
    group.done();
    cpu::cpuid(0, 0);
}

guests::main!(run);
