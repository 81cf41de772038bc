//! The interrupt descriptor table and its 256 stubs.

use core::arch::{asm, naked_asm};

use arch::event::vector;
use spin::Once;

use super::dispatch;
use crate::gdt::{InterruptStack, Selectors};

/// Bytes from one stub to the next.
const STUB_SIZE: u64 = 16;

/// The stubs, one every [`STUB_SIZE`] bytes. Each pushes an error code where the processor does not
/// (SDM 3 7.13, table 7-1: vectors 8, 10 … 14, 17, 21, 29 and 30 have one) and its vector.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
        ".set duet_vector, 0",
        ".rept 256",
        ".balign {size}",
        ".if (duet_vector - 8) * (duet_vector - 10) * (duet_vector - 11) * (duet_vector - 12) * (duet_vector - 13) * (duet_vector - 14) * (duet_vector - 17) * (duet_vector - 21) * (duet_vector - 29) * (duet_vector - 30)",
        "push 0",
        ".endif",
        "push duet_vector",
        "jmp {common}",
        ".set duet_vector, duet_vector + 1",
        ".endr",
        size = const STUB_SIZE,
        common = sym common,
    )
}

/// Saves the registers, calls [`dispatch`] on an aligned stack and returns from the interrupt.
#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rbp",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        // 22 words are on a stack that the processor aligned to 16 bytes before it pushed.
        "call {dispatch}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        dispatch = sym dispatch,
    )
}

/// An interrupt gate (SDM 3 7.14.1, figure 7-8).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    attributes: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

/// Present, privilege level 0, 64-bit interrupt gate: interrupts stay masked in the handler.
const INTERRUPT_GATE: u8 = 0x8e;

#[repr(C, align(16))]
struct Table([Gate; 256]);

/// What LIDT loads.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

static IDT: Once<Table> = Once::new();

fn stack_of(number: u8) -> Option<InterruptStack> {
    match number {
        vector::DB => Some(InterruptStack::Debug),
        vector::NMI => Some(InterruptStack::Nmi),
        vector::DF => Some(InterruptStack::DoubleFault),
        vector::PF => Some(InterruptStack::PageFault),
        vector::MC => Some(InterruptStack::MachineCheck),
        _ => None,
    }
}

fn gate(number: u8, code_selector: u16) -> Gate {
    let stub = (stubs as *const () as u64).wrapping_add(u64::from(number) * STUB_SIZE);
    Gate {
        offset_low: stub as u16,
        selector: code_selector,
        stack: stack_of(number).map_or(0, |stack| stack as u8 + 1),
        attributes: INTERRUPT_GATE,
        offset_middle: (stub >> 16) as u16,
        offset_high: (stub >> 32) as u32,
        reserved: 0,
    }
}

/// Loads the IDT. The interrupt stacks must be set before the first interrupt that uses one.
pub fn init(selectors: &Selectors) {
    let table = IDT.call_once(|| {
        let mut table = Table([gate(0, selectors.code.0); 256]);
        for (number, slot) in (0..=255).zip(table.0.iter_mut()) {
            *slot = gate(number, selectors.code.0);
        }
        table
    });
    let pointer = Pointer {
        limit: (size_of::<Table>() - 1) as u16,
        base: base(table),
    };
    // SAFETY: the table is static, every gate leads to a stub that saves all registers.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

fn base(table: &'static Table) -> u64 {
    table as *const Table as u64
}
