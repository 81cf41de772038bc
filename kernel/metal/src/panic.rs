//! The end of a run that went wrong: devices muted, everything known written down, then nothing more.

use core::fmt::{Arguments, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::event::vector;
use arch::msr;

use crate::interrupts::Frame;
use crate::logger::Line;
use crate::mem::stacks;
use crate::{apic, nic, power, serial, x86};

/// Most return addresses that are printed.
const MAX_DEPTH: usize = 32;

static PANICKING: AtomicBool = AtomicBool::new(false);
/// What is added to the ELF file's addresses, so that a backtrace can be looked up in it.
static IMAGE_OFFSET: AtomicU64 = AtomicU64::new(0);

/// Notes where the image was loaded.
pub fn set_image_offset(offset: u64) {
    IMAGE_OFFSET.store(offset, Ordering::Relaxed);
}

/// Writes one line past any lock.
fn line(text: Arguments<'_>) {
    let mut line = Line::new();
    if line.write_fmt(text).is_ok() {
        serial::write_in_panic(line.finish());
    }
}

/// Keeps this node from doing anything more to the outside: a twin takes over only if this one is silent.
fn mute() {
    x86::cli();
    nic::mute_all();
    apic::timer_disarm();
}

/// The first panic goes on; one that is raised while it is reported stops at once.
fn begin() {
    mute();
    if PANICKING.swap(true, Ordering::SeqCst) {
        serial::write_in_panic(b"duet: panic: again, while the first was being reported\r\n");
        power::end(power::Outcome::Panic);
    }
}

fn control_registers() {
    // SAFETY: every processor with long mode has EFER.
    let efer = unsafe { x86::rdmsr(msr::EFER) };
    line(format_args!(
        "  cr0 {:016x}  cr2 {:016x}  cr3 {:016x}  cr4 {:016x}",
        x86::cr0(),
        x86::cr2(),
        x86::cr3(),
        x86::cr4()
    ));
    line(format_args!(
        "  efer {efer:016x}  dr6 {:016x}  dr7 {:016x}",
        x86::dr6(),
        x86::dr7()
    ));
}

/// Follows the chain of frame pointers as long as it stays on one known stack and goes up.
fn backtrace(rip: u64, rbp: u64) {
    let offset = IMAGE_OFFSET.load(Ordering::Relaxed);
    line(format_args!(
        "  backtrace (address, address in the ELF file):"
    ));
    let show = |depth: usize, at: u64| {
        line(format_args!(
            "  {depth:3}  {at:016x}  {:x}",
            at.wrapping_sub(offset)
        ));
    };
    show(0, rip);
    let Some(stack) = stacks::containing(rbp) else {
        line(format_args!("  rbp {rbp:016x} is on no known stack"));
        return;
    };
    let mut frame = rbp;
    for depth in 1..MAX_DEPTH {
        if frame < stack.bottom || frame > stack.top - 16 || !frame.is_multiple_of(8) {
            break;
        }
        // SAFETY: both words are inside a mapped stack, as just checked.
        let (next, at) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if at == 0 {
            break;
        }
        show(depth, at);
        if next <= frame {
            break;
        }
        frame = next;
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    // The place first: the message may be what cannot be printed.
    if let Some(at) = info.location() {
        line(format_args!("duet: panic at {}:{}", at.file(), at.line()));
    }
    line(format_args!("duet: panic: {}", info.message()));
    line(format_args!(
        "  rsp {:016x}  rflags {:016x}",
        x86::rsp(),
        x86::rflags()
    ));
    control_registers();
    backtrace(panic as *const () as u64, x86::rbp());
    power::end(power::Outcome::Panic)
}

fn name(number: u8) -> &'static str {
    match number {
        vector::DE => "#DE divide error",
        vector::DB => "#DB debug",
        vector::BP => "#BP breakpoint",
        vector::OF => "#OF overflow",
        vector::BR => "#BR bound range",
        vector::UD => "#UD undefined opcode",
        vector::NM => "#NM no math",
        vector::DF => "#DF double fault",
        vector::TS => "#TS invalid TSS",
        vector::NP => "#NP segment not present",
        vector::SS => "#SS stack",
        vector::GP => "#GP general protection",
        vector::PF => "#PF page fault",
        vector::MF => "#MF x87",
        vector::AC => "#AC alignment",
        vector::MC => "#MC machine check",
        vector::XM => "#XM SIMD",
        _ => "exception",
    }
}

/// An exception of the host itself, which never happens in a healthy one: says everything and stops.
pub fn on_exception(frame: &Frame) -> ! {
    begin();
    let number = frame.vector as u8;
    line(format_args!(
        "duet: panic: {} (vector {number}, error code {:#x})",
        name(number),
        frame.error
    ));
    if number == vector::PF || number == vector::DF {
        // A push faults below the stack pointer; a double fault means that not even the frame fitted.
        let guard =
            stacks::guarding(x86::cr2()).or_else(|| stacks::guarding(frame.rsp.wrapping_sub(8)));
        if let Some(stack) = guard {
            line(format_args!(
                "  stack overflow: {:#x} is in the guard page of the {} stack",
                x86::cr2(),
                stack.name
            ));
        }
    }
    let f = frame;
    for row in [
        [
            ("rax", f.rax),
            ("rbx", f.rbx),
            ("rcx", f.rcx),
            ("rdx", f.rdx),
        ],
        [
            ("rsi", f.rsi),
            ("rdi", f.rdi),
            ("rbp", f.rbp),
            ("rsp", f.rsp),
        ],
        [("r8 ", f.r8), ("r9 ", f.r9), ("r10", f.r10), ("r11", f.r11)],
        [
            ("r12", f.r12),
            ("r13", f.r13),
            ("r14", f.r14),
            ("r15", f.r15),
        ],
        [
            ("rip", f.rip),
            ("cs ", f.cs),
            ("rfl", f.rflags),
            ("ss ", f.ss),
        ],
    ] {
        let [a, b, c, d] = row;
        line(format_args!(
            "  {} {:016x}  {} {:016x}  {} {:016x}  {} {:016x}",
            a.0, a.1, b.0, b.1, c.0, c.1, d.0, d.1
        ));
    }
    control_registers();
    backtrace(frame.rip, frame.rbp);
    power::end(power::Outcome::Panic)
}
