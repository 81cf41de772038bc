//! The programs by which a host proves its instruction counter; `vmm::selftest` runs them.
//!
//! They are only ever executed by a virtual processor, in 32-bit protected mode at
//! `vmm::selftest::LOAD_ADDRESS`; here they are data. The mixed program goes through what makes counting
//! hard: repeated instructions with a count of zero and more, interrupt shadows, faults, a page fault by itself and
//! in a repeated instruction, software and injected interrupts, and instructions that exit.

use core::arch::global_asm;

use vmm::selftest::{INJECT_PORT, Programs, SOFTWARE_VECTOR};

global_asm!(
    r#"
    .pushsection .rodata.proof, "a"
    .code32
    .global duet_proof_counted, duet_proof_counted_end
duet_proof_counted:
1:  dec ecx
    jnz 1b
    hlt
duet_proof_counted_end:

    .global duet_proof_mixed, duet_proof_mixed_end
    .global duet_proof_fault, duet_proof_page_fault, duet_proof_interrupt
duet_proof_mixed:
1:  imul ebx, ebx, 1664525              // Numerical Recipes' generator: which way each round goes
    add ebx, 1013904223
    mov ecx, ebx                        // REP STOSB of 0 to 31 bytes
    shr ecx, 27
    mov edi, 0x20000
    mov eax, ebx
    rep stosb
    mov ecx, ebx                        // REP MOVSD backwards, 0 to 15 double words
    shr ecx, 28
    mov esi, 0x20100
    mov edi, 0x20200
    std
    rep movsd
    cld
    sti                                 // the shadow of STI
    nop
    cli
    mov edx, ss                         // the shadow of MOV SS
    mov ss, edx
    nop
    ud2                                 // a fault that the decoder raises
    xor edx, edx                        // a fault that execution raises
    xor ecx, ecx
    div ecx
    .byte 0xa0, 0, 0, 0x40, 0           // mov al, [0x400000]: a page fault
    mov edi, 0x400000                   // the same inside of REP STOSB, which the handler steps over with the NOPs
    mov ecx, 3
    rep stosb
    nop
    nop
    nop
    int {software}
    xor eax, eax                        // an exit that answers with the count
    cpuid
    add [0x20300], eax
    sti
    nop
    out {inject}, al                    // an exit behind which an interrupt is injected
    nop
    cli
    pushfd
    popfd
    mov eax, ebx
    and eax, 0x7ffc
    add [eax + 0x28000], ebx
    test ebx, 0x10000
    jz 2f
    lock xadd [0x20304], ebx
    mov [0x20ffe], ebx                  // crosses a page
2:  dec ebp
    jnz 1b
    hlt
duet_proof_fault:
    add dword ptr [esp], 2
    iretd
duet_proof_page_fault:
    add esp, 4
    add dword ptr [esp], 5
    iretd
duet_proof_interrupt:
    inc dword ptr [0x20308]
    iretd
duet_proof_mixed_end:
    .code64
    .popsection
    "#,
    software = const SOFTWARE_VECTOR,
    inject = const INJECT_PORT,
);

unsafe extern "C" {
    static duet_proof_counted: u8;
    static duet_proof_counted_end: u8;
    static duet_proof_mixed: u8;
    static duet_proof_mixed_end: u8;
    static duet_proof_fault: u8;
    static duet_proof_page_fault: u8;
    static duet_proof_interrupt: u8;
}

/// The bytes between two labels.
fn between(start: &'static u8, end: &'static u8) -> &'static [u8] {
    let bytes = core::ptr::from_ref(end).addr() - core::ptr::from_ref(start).addr();
    // SAFETY: both labels lie in the section above, which is read-only data, `start` before `end`.
    unsafe { core::slice::from_raw_parts(start, bytes) }
}

/// The programs.
pub fn programs() -> Programs<'static> {
    // SAFETY: the labels are defined above and what they name is never written.
    let (counted, mixed, handlers) = unsafe {
        (
            between(&duet_proof_counted, &duet_proof_counted_end),
            between(&duet_proof_mixed, &duet_proof_mixed_end),
            [
                &duet_proof_fault,
                &duet_proof_page_fault,
                &duet_proof_interrupt,
            ],
        )
    };
    let offset = |label: &u8| (core::ptr::from_ref(label).addr() - mixed.as_ptr().addr()) as u32;
    let [fault_handler, page_fault_handler, interrupt_handler] = handlers.map(offset);
    Programs {
        counted,
        mixed,
        fault_handler,
        page_fault_handler,
        interrupt_handler,
    }
}
