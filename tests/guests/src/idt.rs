//! The interrupt descriptor table. Every vector has a stub; what happens depends on the vector's
//! hook, or else, inside [`catch`], the fault is recorded and the code that caused it abandoned.

use core::arch::{asm, global_asm};
use core::fmt;

use crate::console;
use crate::gdt::{self, TablePointer};
use crate::println;
use crate::racy::Racy;

/// Registers at an interrupt; what a hook changes is what the guest goes on with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What was recorded of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// IDT index.
    pub vector: u8,
    /// Error code, 0 if the exception has none.
    pub error: u64,
    /// Return address pushed.
    pub rip: u64,
    /// CS pushed.
    pub cs: u16,
    /// Flags pushed.
    pub rflags: u64,
    /// Stack pointer pushed.
    pub rsp: u64,
    /// CR2 at entry of the handler.
    pub cr2: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {} error {:#x} rip {:#x} cr2 {:#x}",
            self.vector, self.error, self.rip, self.cr2
        )
    }
}

/// What runs instead of the default for a vector.
pub type Hook = fn(&mut Frame);

static IDT: Racy<[[u64; 2]; 256]> = Racy::new([[0; 2]; 256]);
static HOOKS: Racy<[Option<Hook>; 256]> = Racy::new([None; 256]);
static LAST: Racy<Option<Fault>> = Racy::new(None);
/// Stack pointer to abandon code with, 0 outside [`catch`].
static GUARD: Racy<u64> = Racy::new(0);

/// Present interrupt gate, ring 0.
pub const INTERRUPT_GATE: u64 = 0x8e;
/// Present trap gate, ring 0.
pub const TRAP_GATE: u64 = 0x8f;
/// Present interrupt gate that INT n may use from ring 3.
pub const USER_GATE: u64 = 0xee;

/// Where to go on, and with what stack, after a fault outside [`catch`].
static RESTART: Racy<Option<(extern "C" fn() -> !, u64)>> = Racy::new(None);

/// Makes a fault outside [`catch`] go on in `code` with an empty stack, instead of ending the guest.
pub fn set_restart(code: extern "C" fn() -> !, stack_top: u64) {
    // SAFETY: one processor, no reference is held.
    unsafe { RESTART.get().write(Some((code, stack_top))) };
}

/// Whether there is a [`catch`] to abandon.
pub fn in_catch() -> bool {
    // SAFETY: a copy.
    unsafe { GUARD.get().read() != 0 }
}

/// Leaves every [`catch`]: the code that called it is gone.
pub fn leave_all() {
    // SAFETY: one processor, no reference is held.
    unsafe { GUARD.get().write(0) };
}

global_asm!(
    ".text",
    ".balign 16",
    ".global interrupt_stubs, guarded_call, guarded_return",
    "interrupt_stubs:",
    ".set stub_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if !(stub_vector == 8 || (stub_vector >= 10 && stub_vector <= 14) || stub_vector == 17 \
        || stub_vector == 21)",
    "push 0",
    ".endif",
    ".byte 0x68", // push imm32
    ".long stub_vector",
    "jmp interrupt_common",
    ".set stub_vector, stub_vector + 1",
    ".endr",
    "interrupt_common:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
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
    "call {dispatch}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // guarded_call(code, argument): calls code(argument); `guarded_return` also ends it from any depth.
    "guarded_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push qword ptr [{guard}]",
    "mov qword ptr [{guard}], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "guarded_return:",
    "pop qword ptr [{guard}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    dispatch = sym dispatch,
    guard = sym GUARD,
);

unsafe extern "C" {
    fn interrupt_stubs();
    fn guarded_call(code: extern "C" fn(*mut u8), argument: *mut u8);
    fn guarded_return();
}

extern "C" fn dispatch(frame: &mut Frame) {
    let vector = frame.vector as usize & 255;
    // SAFETY: one processor; hooks are set by the main flow only, which is not running.
    if let Some(hook) = unsafe { (*HOOKS.get())[vector] } {
        hook(frame);
    } else {
        abandon(frame);
    }
}

/// Records the fault and makes the interrupted [`catch`] return it. For hooks that want to end what
/// they interrupted.
pub fn abandon(frame: &mut Frame) {
    let fault = record(frame);
    // SAFETY: one processor; the main flow, which is not running, holds no reference.
    let guard = unsafe { GUARD.get().read() };
    // SAFETY: as above.
    let restart = unsafe { RESTART.get().read() };
    if let (0, Some((code, stack))) = (guard, restart) {
        frame.rip = code as *const () as u64;
        frame.cs = u64::from(gdt::CODE64);
        frame.ss = u64::from(gdt::DATA);
        frame.rsp = stack - 8;
        frame.rflags = 2;
        return;
    }
    if guard == 0 {
        println!("FAIL unexpected fault: {fault}");
        println!("{frame:x?}");
        console::exit(97);
    }
    frame.rip = guarded_return as *const () as u64;
    frame.cs = u64::from(gdt::CODE64);
    frame.ss = u64::from(gdt::DATA);
    frame.rsp = guard;
    frame.rflags = 2;
}

/// Stores what [`last`] returns, and returns it.
pub fn record(frame: &Frame) -> Fault {
    let fault = Fault {
        vector: frame.vector as u8,
        error: frame.error,
        rip: frame.rip,
        cs: frame.cs as u16,
        rflags: frame.rflags,
        rsp: frame.rsp,
        cr2: crate::cpu::cr2(),
    };
    // SAFETY: one processor; the main flow is not running.
    unsafe { LAST.get().write(Some(fault)) };
    fault
}

/// The last fault recorded since [`catch`] began, if any.
pub fn last() -> Option<Fault> {
    // SAFETY: a copy; handlers have returned.
    unsafe { LAST.get().read_volatile() }
}

/// Makes [`last`] return nothing: the fault was handled.
pub fn forget() {
    // SAFETY: one processor, no reference is held.
    unsafe { LAST.get().write_volatile(None) };
}

/// Runs `code`; the first fault without a hook abandons it and is returned. `code` must not own
/// anything that needs dropping.
pub fn catch<F: FnMut()>(mut code: F) -> Option<Fault> {
    extern "C" fn call<F: FnMut()>(code: *mut u8) {
        // SAFETY: `catch` passes a pointer to its own `F`.
        unsafe { (*code.cast::<F>())() }
    }
    forget();
    // SAFETY: `guarded_call` keeps the callee-saved registers, also when the code is abandoned.
    unsafe { guarded_call(call::<F>, (&raw mut code).cast()) };
    last()
}

/// [`catch`] for a snippet of machine code.
pub fn catch_code(code: unsafe extern "C" fn()) -> Option<Fault> {
    // SAFETY: what the snippet may break is what the check is about; faults are caught.
    catch(|| unsafe { code() })
}

/// Sets or removes the hook of a vector.
pub fn hook(vector: u8, hook: Option<Hook>) {
    // SAFETY: one processor; a handler only reads.
    unsafe { (*HOOKS.get())[usize::from(vector)] = hook };
}

/// Address of a vector's stub.
pub fn stub(vector: u8) -> u64 {
    interrupt_stubs as *const () as u64 + u64::from(vector) * 16
}

/// Writes a gate: `kind` is the type byte, `ist` an interrupt stack or 0.
pub fn set_gate(vector: u8, handler: u64, selector: u16, kind: u64, ist: u64) {
    let low = (handler & 0xffff)
        | u64::from(selector) << 16
        | ist << 32
        | kind << 40
        | (handler >> 16 & 0xffff) << 48;
    // SAFETY: one processor; interrupts of this vector are not due.
    unsafe { (*IDT.get())[usize::from(vector)] = [low, handler >> 32] };
}

/// Puts a vector's stub back in place, as an interrupt gate.
pub fn reset_gate(vector: u8) {
    let ist = u64::from(vector == 8);
    set_gate(vector, stub(vector), gdt::CODE64, INTERRUPT_GATE, ist);
}

/// Where the table lies.
pub fn address() -> u64 {
    IDT.address()
}

/// Loads another table.
///
/// # Safety
/// It holds a gate for what may come.
pub unsafe fn load_from(base: u64, limit: u16) {
    let pointer = TablePointer { limit, base };
    // SAFETY: by this function's contract.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags)) };
}

/// Fills the table and loads it.
pub fn load() {
    load_with_stack(0);
}

/// As [`load`], but every vector but #DF uses this interrupt stack, or none if 0.
pub fn load_with_stack(ist: u64) {
    for vector in 0..=255 {
        let stack = if vector == 8 { 1 } else { ist };
        set_gate(vector, stub(vector), gdt::CODE64, INTERRUPT_GATE, stack);
    }
    // SAFETY: all gates were just written.
    unsafe { load_from(IDT.address(), 0xfff) };
}
