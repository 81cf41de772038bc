//! From the Multiboot entry (32-bit protected mode) to `guest_main` in long mode with the low 4 GiB
//! identity-mapped by supervisor 2 MiB pages.
//!
//! A guest that wants to run 32-bit code first defines the symbol `guest_protected_stage`; it is called
//! before long mode is entered, with the loader's segments and a stack.

use core::arch::global_asm;

use crate::racy::{Page, Racy};
use crate::{gdt, idt, multiboot, paging};

/// Bytes of the boot stack.
pub const STACK_SIZE: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_SIZE]);

static STACK: Racy<Stack> = Racy::new(Stack([0; STACK_SIZE]));
static PML4: Racy<Page> = Racy::new(Page::ZERO);
static PDPT: Racy<Page> = Racy::new(Page::ZERO);
static DIRECTORIES: Racy<[Page; 4]> = Racy::new([Page::ZERO; 4]);

global_asm!(
    ".section .multiboot, \"a\"",
    ".balign 4",
    // Flags: align modules, give memory information.
    ".long 0x1badb002, 3, -(0x1badb002 + 3)",
    ".section .boot, \"ax\"",
    ".weak guest_protected_stage",
    ".code32",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov esp, offset {stack} + {stack_size}",
    "mov dword ptr [{magic}], eax",
    "mov dword ptr [{info}], ebx",
    "mov eax, offset guest_protected_stage",
    "test eax, eax",
    "jz 2f",
    "call eax",
    "2:",
    // PML4[0] -> PDPT, PDPT[0..4] -> directories, 2048 pages of 2 MiB.
    "mov eax, offset {pdpt} + 3",
    "mov dword ptr [{pml4}], eax",
    "mov eax, offset {directories} + 3",
    "mov edi, offset {pdpt}",
    "mov ecx, 4",
    "3:",
    "mov dword ptr [edi], eax",
    "add eax, 0x1000",
    "add edi, 8",
    "dec ecx",
    "jnz 3b",
    "mov edi, offset {directories}",
    "mov eax, 0x83",
    "mov ecx, 2048",
    "4:",
    "mov dword ptr [edi], eax",
    "add eax, 0x200000",
    "add edi, 8",
    "dec ecx",
    "jnz 4b",
    "mov eax, offset {pml4}",
    "mov cr3, eax",
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100", // LME
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010001", // PG, WP, PE
    "mov cr0, eax",
    "lgdt [{gdt_pointer}]",
    // ljmp 0x08:start64
    ".byte 0xea",
    ".long start64",
    ".word 0x08",
    ".code64",
    "start64:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "lea rsp, [rip + {stack} + {stack_size}]",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".text",
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    magic = sym multiboot::MULTIBOOT_MAGIC,
    info = sym multiboot::MULTIBOOT_INFO,
    pml4 = sym PML4,
    pdpt = sym PDPT,
    directories = sym DIRECTORIES,
    gdt_pointer = sym gdt::POINTER,
    start = sym start,
);

unsafe extern "C" {
    fn guest_main() -> !;
    static image_end: u8;
    static read_only_end: u8;
}

extern "C" fn start() -> ! {
    gdt::load();
    idt::load();
    paging::adopt(PML4.address());
    // SAFETY: the guest's entry, made by `main!`.
    unsafe { guest_main() }
}

/// First address behind the image: RAM from here to [`multiboot::memory_end`] is not used by the
/// runtime, except where the loader put modules and information.
pub fn image_end_address() -> u64 {
    &raw const image_end as u64
}

/// The image's code and constants: first address and the first behind them.
pub fn read_only() -> (u64, u64) {
    (0x10_0000, &raw const read_only_end as u64)
}
