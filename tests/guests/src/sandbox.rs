//! Running code that may do anything, and taking the machine back afterwards: by any fault, by its own return, or by
//! an event of the interrupt generator. What the code wrecks in memory is not repaired; a guest that uses this ends
//! in whatever way it ends.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gdt::{self, TablePointer};
use crate::idt::{self, Fault, Frame};
use crate::racy::Racy;
use crate::{boot, console, cpu, generator, multiboot, paging, println};

/// The vector of the watchdog.
const WATCHDOG: u8 = 0xfe;

/// Interrupt stack of all handlers in here: random code leaves any RSP behind.
const HANDLER_STACK: u64 = 2;

/// What a machine in order looks like.
pub struct Sandbox {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// There is a generator that can end what runs too long.
    watchdog: bool,
}

fn on_event(frame: &mut Frame) {
    // The watchdog came when the code had just ended.
    if frame.vector == 2 && !idt::in_catch() {
        return;
    }
    idt::abandon(frame);
}

impl Sandbox {
    /// Remembers the present state as the one to come back to. Takes the mappings of everything but RAM away, and write
    /// access to the image's code.
    pub fn new() -> Self {
        // SAFETY: the slot is not in use yet.
        unsafe { (*gdt::task()).ist[HANDLER_STACK as usize - 1] = HANDLERS.address() + STACK_SIZE };
        idt::load_with_stack(HANDLER_STACK);
        for vector in 0..=255 {
            idt::hook(vector, Some(on_event));
        }
        let ram_end = multiboot::memory_end().next_multiple_of(LARGE_PAGE);
        for page in (ram_end..1 << 32).step_by(LARGE_PAGE as usize) {
            // SAFETY: nothing of the runtime lies behind the end of RAM.
            unsafe { paging::entry(page, 2).write_volatile(0) };
        }
        let (start, end) = boot::read_only();
        for page in (start..end).step_by(4096) {
            paging::protect(page, paging::P);
        }
        // SAFETY: drops what was mapped before.
        unsafe { cpu::set_cr3(cpu::cr3()) };
        Self {
            cr0: cpu::cr0(),
            cr3: cpu::cr3(),
            cr4: cpu::cr4(),
            efer: cpu::rdmsr(cpu::msr::EFER),
            watchdog: generator::present(),
        }
    }

    /// Runs `code` for at most about `limit` instructions, if there is a generator.
    pub fn run<F: FnMut()>(&self, limit: u32, mut code: F) -> Option<Fault> {
        if self.watchdog {
            // An NMI gets through whatever the code does to IF.
            cpu::out32(generator::DELAY, limit);
            cpu::out32(generator::RAISE, generator::NMI | u32::from(WATCHDOG));
        }
        let fault = idt::catch(&mut code);
        self.repair();
        if self.watchdog {
            // Takes the watchdog's place: one that can wait for ever, since IF is 0.
            generator::raise(WATCHDOG, u32::MAX);
        }
        fault
    }

    /// Puts back what the code may have changed.
    fn repair(&self) {
        // SAFETY: leaves TF, NT, AC and the like behind.
        unsafe { asm!("push 2", "popfq") };
        let pointer = TablePointer {
            limit: 0xff,
            base: gdt::address(),
        };
        // SAFETY: the values from the start; each is tried, since the machine may be in any state.
        unsafe {
            asm!("lgdt [{}]", in(reg) &pointer, options(nostack, preserves_flags));
            asm!("mov ds, {0:e}", "mov es, {0:e}", "mov ss, {0:e}", in(reg) u32::from(gdt::DATA));
            cpu::set_cr0(self.cr0);
            if cpu::cr3() != self.cr3 {
                cpu::set_cr3(self.cr3);
            }
            cpu::set_cr4(self.cr4);
            cpu::set_dr7(0x400);
            idt::load_with_stack(HANDLER_STACK);
        }
        for vector in 0..=255 {
            idt::hook(vector, Some(on_event));
        }
        let efer = self.efer;
        // SAFETY: as above.
        idt::catch(|| unsafe { cpu::wrmsr(cpu::msr::EFER, efer) });
        gdt::load_task();
        // Unblocks NMIs: the watchdog may have been one, and abandoning it left out its IRET.
        // SAFETY: returns to the next instruction.
        unsafe {
            asm!("mov {0}, rsp", "push 0x10", "push {0}", "push 2", "push 0x08", "lea {0}, [rip + 2f]", "push {0}", "iretq",
                 "2:", out(reg) _);
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

const LARGE_PAGE: u64 = 2 << 20;
const STACK_SIZE: u64 = 32 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_SIZE as usize]);

static STACK: Racy<Stack> = Racy::new(Stack([0; STACK_SIZE as usize]));
static HANDLERS: Racy<Stack> = Racy::new(Stack([0; STACK_SIZE as usize]));
static ROUND: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BODY: Racy<Option<(Body, Sandbox)>> = Racy::new(None);

/// What runs in each round.
pub type Body = fn(&Sandbox, u64);

/// Calls `body` for the rounds 0 to `count`, and goes on with the next one when a round wrecks the caller's own
/// stack. Then ends the guest with status 0: what the rounds did is not judged.
pub fn rounds(count: u64, body: Body) -> ! {
    COUNT.store(count, Relaxed);
    // SAFETY: nothing runs in the sandbox yet.
    unsafe { BODY.get().write(Some((body, Sandbox::new()))) };
    idt::set_restart(go_on, STACK.address() + STACK_SIZE);
    go_on()
}

extern "C" fn go_on() -> ! {
    idt::leave_all();
    // SAFETY: written by `rounds`.
    if let Some((body, sandbox)) = unsafe { &*BODY.get() } {
        sandbox.repair();
        loop {
            let round = ROUND.fetch_add(1, Relaxed);
            if round >= COUNT.load(Relaxed) {
                break;
            }
            if round.is_multiple_of(100) {
                println!("round {round}");
            }
            body(sandbox, round);
        }
    }
    println!("done");
    console::exit(0)
}
