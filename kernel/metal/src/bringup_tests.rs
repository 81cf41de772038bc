//! Deliberate faults of the host, each of which must end in a clean panic that names it.
//!
//! Compiled only with the feature `bringup-tests`. The guest files choose the fault: the contents of a file
//! named `bringup-test`.

use arch::addr::PAGE_SIZE;

use crate::archive::Archive;
use crate::mem::{frames, physmap};

/// Performs the fault that the guest files ask for, if they ask for one.
pub fn run(archive: &Archive) {
    let Some(name) = archive.file("bringup-test") else {
        return;
    };
    let name = name.trim_ascii();
    log::info!("bring-up test {}", name.escape_ascii());
    match name {
        b"panic" => panic!("asked for by a bring-up test"),
        b"panic-twice" => panic!("{}", Twice),
        b"stack-overflow" => log::info!("{}", overflow(1)),
        b"divide-error" => divide_error(),
        b"undefined-opcode" => undefined_opcode(),
        b"write-text" => write(run as *const () as *mut u8),
        b"write-constant" => write(CONSTANT.as_ptr().cast_mut()),
        b"execute-data" => execute_data(),
        b"double-free" => double_free(),
        b"null" => write(core::ptr::null_mut::<u8>().wrapping_add(8)),
        b"nmi" => non_maskable(),
        _ => panic!("no bring-up test of this name"),
    }
    log::info!("bring-up test ended");
}

/// Cannot be printed.
struct Twice;

impl core::fmt::Display for Twice {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("while a panic is being reported")
    }
}

static CONSTANT: [u8; 8] = *b"constant";

/// Recurses for ever, with a frame that the compiler cannot remove.
#[inline(never)]
#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame[(depth % 64) as usize]
}

fn divide_error() {
    // SAFETY: the exception ends the run.
    unsafe {
        core::arch::asm!("xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
    };
}

fn undefined_opcode() {
    // SAFETY: the exception ends the run.
    unsafe { core::arch::asm!("ud2") };
}

fn write(at: *mut u8) {
    // SAFETY: the page is not writable, which is what is being shown: the exception ends the run.
    unsafe { at.write_volatile(0x90) };
}

fn execute_data() {
    let frame = frames::alloc_zeroed().expect("a free frame");
    let code = physmap::ptr(frame);
    // SAFETY: the frame is ours. The physical map is not executable, which is what is being shown: the
    // exception ends the run.
    unsafe {
        code.write_bytes(0xc3, PAGE_SIZE as usize);
        core::mem::transmute::<*mut u8, extern "C" fn()>(code)();
    }
}

fn double_free() {
    let frame = frames::alloc_zeroed().expect("a free frame");
    frames::free(frame);
    frames::free(frame);
}

/// An NMI at this processor must be counted and otherwise change nothing.
fn non_maskable() {
    let before = crate::interrupts::counters().nmi;
    crate::apic::send_nmi_to_self();
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
    assert_eq!(
        crate::interrupts::counters().nmi,
        before + 1,
        "the NMI was not counted once"
    );
}
