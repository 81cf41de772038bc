//! Running machine code from a given register file, and the register file it leaves.

use core::arch::global_asm;

use crate::racy::Racy;

/// General registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15) and flags. RSP is
/// not loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct State {
    pub gprs: [u64; 16],
    pub rflags: u64,
}

/// Index of RAX.
pub const RAX: usize = 0;
/// Index of RCX.
pub const RCX: usize = 1;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP.
pub const RSP: usize = 4;
/// Index of RBP.
pub const RBP: usize = 5;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;

/// CF, PF, AF, ZF, SF, OF.
pub const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// AF, which logic instructions leave undefined.
pub const AF: u64 = 0x10;

static CURRENT: Racy<*mut State> = Racy::new(core::ptr::null_mut());
static NEAR: Racy<u64> = Racy::new(0);
static FAR: Racy<FarPointer> = Racy::new(FarPointer {
    offset: 0,
    selector: 0,
});
static KEEP_RSI: Racy<u64> = Racy::new(0);

/// Operand of a far call: the offset's low 32 bits are followed by the selector, as m16:32 wants.
#[repr(C, packed)]
struct FarPointer {
    offset: u32,
    selector: u16,
}

global_asm!(
    ".macro state_load",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov qword ptr [rip + {current}], rsi",
    "push qword ptr [rsi + 128]",
    "popfq",
    "mov rax, [rsi]",
    "mov rcx, [rsi + 8]",
    "mov rdx, [rsi + 16]",
    "mov rbx, [rsi + 24]",
    "mov rbp, [rsi + 40]",
    "mov rdi, [rsi + 56]",
    "mov r8, [rsi + 64]",
    "mov r9, [rsi + 72]",
    "mov r10, [rsi + 80]",
    "mov r11, [rsi + 88]",
    "mov r12, [rsi + 96]",
    "mov r13, [rsi + 104]",
    "mov r14, [rsi + 112]",
    "mov r15, [rsi + 120]",
    "mov rsi, [rsi + 48]",
    ".endm",
    ".macro state_store",
    "mov qword ptr [rip + {keep_rsi}], rsi",
    "mov rsi, qword ptr [rip + {current}]",
    "mov [rsi], rax",
    "mov [rsi + 8], rcx",
    "mov [rsi + 16], rdx",
    "mov [rsi + 24], rbx",
    "mov [rsi + 40], rbp",
    "mov [rsi + 56], rdi",
    "mov [rsi + 64], r8",
    "mov [rsi + 72], r9",
    "mov [rsi + 80], r10",
    "mov [rsi + 88], r11",
    "mov [rsi + 96], r12",
    "mov [rsi + 104], r13",
    "mov [rsi + 112], r14",
    "mov [rsi + 120], r15",
    "mov rax, qword ptr [rip + {keep_rsi}]",
    "mov [rsi + 48], rax",
    "pushfq",
    "pop qword ptr [rsi + 128]",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".endm",
    ".global run_near, run_far",
    "run_near:", // (code, state)
    "mov qword ptr [rip + {near}], rdi",
    "state_load",
    "call qword ptr [rip + {near}]",
    "state_store",
    "run_far:", // (code, state)
    "state_load",
    "call fword ptr [rip + {code}]",
    "state_store",
    current = sym CURRENT,
    keep_rsi = sym KEEP_RSI,
    near = sym NEAR,
    code = sym FAR,
);

unsafe extern "C" {
    fn run_near(code: u64, state: *mut State);
    fn run_far(code: u64, state: *mut State);
}

impl State {
    /// Runs 64-bit code that ends with RET.
    ///
    /// # Safety
    /// The code may change any general register but RSP, and memory that is its own.
    pub unsafe fn run(&mut self, code: u64) {
        // SAFETY: by this function's contract.
        unsafe { run_near(code, self) };
    }

    /// Runs code in another code segment; it ends with a 32-bit RETF.
    ///
    /// # Safety
    /// As [`State::run`]; the selector is a ring 0 code segment, and code and stack lie below 4 GiB.
    pub unsafe fn run_far(&mut self, code: u64, selector: u16) {
        // SAFETY: one processor; nothing else uses the pointer.
        unsafe {
            FAR.get().write_unaligned(FarPointer {
                offset: code as u32,
                selector,
            });
        }
        // SAFETY: by this function's contract.
        unsafe { run_far(code, self) };
    }
}

/// One case of a table made by [`cases!`](crate::cases).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Case {
    /// Address of the code.
    pub code: u64,
    text: *const core::ffi::c_char,
}

impl Case {
    /// The code as it was written.
    pub fn text(&self) -> &'static str {
        // SAFETY: the table's macro wrote a zero-terminated string.
        let text = unsafe { core::ffi::CStr::from_ptr(self.text) };
        text.to_str().unwrap_or("?")
    }
}

/// Defines a table of code sequences: `cases!(table_name, ".code64", "ret"; "code", "code", …)`.
/// Read it with [`entries`].
#[macro_export]
macro_rules! cases {
    ($name:ident, $mode:literal, $end:literal; $($code:literal),+ $(,)?) => {
        core::arch::global_asm!(
            ".pushsection .rodata.cases, \"a\"",
            ".balign 8",
            concat!(".global ", stringify!($name)),
            concat!(stringify!($name), ":"),
            ".popsection",
            ".pushsection .text",
            $mode,
            $(
                "771:", $code, $end,
                ".pushsection .rodata.cases, \"a\"", ".quad 771b, 772f", ".popsection",
                ".pushsection .rodata.names, \"a\"", "772:", concat!(".asciz \"", $code, "\""), ".popsection",
            )+
            ".code64",
            ".popsection",
            ".pushsection .rodata.cases, \"a\"",
            ".quad 0, 0",
            ".popsection",
        );
        unsafe extern "C" {
            static $name: $crate::state::Case;
        }
    };
}

/// The entries of a table made by [`cases!`](crate::cases).
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "`cases!` makes the only tables"
)]
pub fn entries(first: *const Case) -> impl Iterator<Item = Case> {
    (0..).map_while(move |index| {
        // SAFETY: the table ends with an entry of zeros.
        let case = unsafe { first.add(index).read() };
        (case.code != 0).then_some(case)
    })
}
