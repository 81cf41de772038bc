//! Never ends: ring 3 with alignment checks on and a stack that is not aligned, where the handler of #AC runs in ring 3
//! as well, so that each delivery causes the next (CVE-2015-5307). Where the processor does not check
//! alignment, the code loops by itself.
//!
//! Broken by: a host that cannot leave the guest because the processor delivers events for ever.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests as _;

core::arch::global_asm!(
    ".section .boot, \"ax\"",
    ".code32",
    ".global guest_protected_stage",
    "guest_protected_stage:",
    "mov esi, offset loop_text",
    "mov ecx, 15",
    "mov dx, 0xe9",
    "cld",
    "rep outsb",
    "lgdt [loop_gdt_pointer]",
    "lidt [loop_idt_pointer]",
    // Gate 17: handler in ring 3 code.
    "mov eax, offset loop_handler",
    "mov word ptr [loop_idt + 17 * 8], ax",
    "shr eax, 16",
    "mov word ptr [loop_idt + 17 * 8 + 6], ax",
    "mov word ptr [loop_idt + 17 * 8 + 2], 0x1b",
    "mov word ptr [loop_idt + 17 * 8 + 4], 0x8e00",
    "mov eax, cr0",
    "or eax, 0x40000", // AM
    "mov cr0, eax",
    "lea ebx, [esp - 0x201]",
    "mov eax, 0x23",
    "push eax",
    "push ebx",
    "mov eax, 0x40002", // AC
    "push eax",
    "mov eax, 0x1b",
    "push eax",
    "mov eax, offset loop_user",
    "push eax",
    "iretd",
    "loop_user:",
    "push eax",
    "2: jmp 2b",
    "loop_handler:",
    "3: jmp 3b",
    ".balign 8",
    "loop_gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff",
    "loop_gdt_pointer: .word 39",
    ".long loop_gdt",
    "loop_idt_pointer: .word 18 * 8 - 1",
    ".long loop_idt",
    ".balign 8",
    "loop_idt: .skip 18 * 8",
    "loop_text: .ascii \"looping in #AC\\n\"",
    ".code64",
    ".text",
);

#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    guests::console::exit(1)
}
