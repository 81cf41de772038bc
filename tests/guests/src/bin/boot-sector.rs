//! A boot sector that starts another guest on a bare PC or emulator, so that guests can be validated on
//! processor models other than QEMU's: no hypervisor, no Multiboot loader needed.
//!
//! The disk: this sector with its parameters filled in (see the labels), a sector with the command line, then the
//! guest as a flat image. `sectors` says how long that is. With `entry` 0 it is loaded at 0x7c00 and entered in
//! real mode; otherwise it is loaded at 1 MiB and entered as a Multiboot kernel.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests as _;

core::arch::global_asm!(
    ".section .flat.start, \"awx\"",
    ".code16",
    ".global flat_start",
    "flat_start:",
    "cli",
    "cld",
    "xor ax, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov sp, 0x7000",
    // Out of the way of what is loaded at 0x7c00: this sector moves to 0x600.
    "mov si, 0x7c00",
    "mov di, 0x600",
    "mov cx, 256",
    "rep movsw",
    ".byte 0xea", // ljmp 0:moved
    ".word moved - 0x7600, 0",
    "moved:",
    "mov byte ptr [drive - 0x7600], dl",
    "in al, 0x92", // A20
    "or al, 2",
    "and al, 0xfe",
    "out 0x92, al",
    // The command line to 0x800.
    "mov word ptr [packet_segment - 0x7600], 0x80",
    "mov word ptr [packet_count - 0x7600], 1",
    "call read",
    "mov word ptr [packet_segment - 0x7600], 0x1000",
    "mov edi, 0x7c00",
    "cmp dword ptr [entry - 0x7600], 0",
    "je 2f",
    "mov edi, 0x100000",
    "2:",
    // 32 sectors at a time through 0x10000.
    "mov word ptr [packet_count - 0x7600], 32",
    "call read",
    "mov bx, 0x10",
    "call limits",
    "mov esi, 0x10000",
    "mov ecx, 32 * 128",
    ".byte 0x67",
    "rep movsd",
    "sub dword ptr [sectors - 0x7600], 32",
    "jg 2b",
    "mov bx, 0x18",
    "call limits",
    "cmp dword ptr [entry - 0x7600], 0",
    "jne 3f",
    ".byte 0xea", // ljmp 0:0x7c00
    ".word 0x7c00, 0",
    "3:",
    "lgdt [gdt_pointer - 0x7600]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0xea", // ljmp 8:protected
    ".word protected - 0x7600, 8",
    ".code32",
    "protected:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ebx, offset information - 0x7600",
    "mov eax, 0x2badb002",
    "jmp dword ptr [entry - 0x7600]",
    ".code16",
    "read:",
    "push edi",
    "mov ah, 0x42",
    "mov dl, byte ptr [drive - 0x7600]",
    "mov si, offset packet - 0x7600",
    "int 0x13",
    "cli",
    "pop edi",
    "movzx eax, word ptr [packet_count - 0x7600]",
    "add dword ptr [packet_sector - 0x7600], eax",
    "ret",
    // Gives DS and ES the limit of descriptor BX and base 0.
    "limits:",
    "lgdt [gdt_pointer - 0x7600]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    "mov ds, bx",
    "mov es, bx",
    "and al, 0xfe",
    "mov cr0, eax",
    "xor bx, bx",
    "mov ds, bx",
    "mov es, bx",
    "ret",
    ".balign 4",
    "packet:",
    ".word 16",
    "packet_count: .word 0",
    ".word 0",
    "packet_segment: .word 0",
    "packet_sector: .long 1, 0",
    "gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x000093000000ffff",
    "gdt_pointer: .word 31",
    ".long gdt - 0x7600",
    // Multiboot information: memory sizes and command line.
    "information: .long 5, 640, 0xf800, 0, 0x800",
    ".org 0x1e0",
    "sectors: .long 0", // 0x1e0: sectors of the image
    "entry: .long 0",   // 0x1e4: entry of a Multiboot kernel, or 0
    "drive: .byte 0",
    ".org 0x1fe",
    ".word 0xaa55",
);
