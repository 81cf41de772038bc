//! Segments and the task state segment.

use core::arch::asm;

use crate::racy::Racy;

/// 64-bit code, ring 0.
pub const CODE64: u16 = 0x08;
/// Flat data, ring 0.
pub const DATA: u16 = 0x10;
/// Flat 32-bit code, ring 0.
pub const CODE32: u16 = 0x18;
/// Flat 32-bit code, ring 3. This one and the next two stand as SYSRET wants them.
pub const USER_CODE32: u16 = 0x20 | 3;
/// Flat data, ring 3.
pub const USER_DATA: u16 = 0x28 | 3;
/// 64-bit code, ring 3.
pub const USER_CODE64: u16 = 0x30 | 3;
/// 16-bit code, ring 0, base 0, 64 KiB.
pub const CODE16: u16 = 0x38;
/// 16-bit data, ring 0, base 0, 64 KiB.
pub const DATA16: u16 = 0x40;
/// The task state segment, two slots.
pub const TSS: u16 = 0x48;
/// A data segment that is not present.
pub const NOT_PRESENT: u16 = 0x58;
/// A copy of the first six as SYSENTER and SYSEXIT want them: kernel code and data, user 32-bit code
/// and data, user 64-bit code and data.
pub const SYSENTER: u16 = 0x60;
/// First slot that a guest may use with [`set`].
pub const FREE: u16 = 0x90;

const SLOTS: usize = 32;
const CODE64_BITS: u64 = 0x00af_9b00_0000_ffff;
const DATA_BITS: u64 = 0x00cf_9300_0000_ffff;
const CODE32_BITS: u64 = 0x00cf_9b00_0000_ffff;
const DPL3: u64 = 3 << 45;
/// Bit 47 of a descriptor: present.
pub const PRESENT: u64 = 1 << 47;

static GDT: Racy<[u64; SLOTS]> = Racy::new({
    let mut gdt = [0; SLOTS];
    gdt[1] = CODE64_BITS;
    gdt[2] = DATA_BITS;
    gdt[3] = CODE32_BITS;
    gdt[4] = CODE32_BITS | DPL3;
    gdt[5] = DATA_BITS | DPL3;
    gdt[6] = CODE64_BITS | DPL3;
    gdt[7] = 0x0000_9b00_0000_ffff;
    gdt[8] = 0x0000_9300_0000_ffff;
    gdt[11] = DATA_BITS & !PRESENT;
    gdt[12] = CODE64_BITS;
    gdt[13] = DATA_BITS;
    gdt[14] = CODE32_BITS | DPL3;
    gdt[15] = DATA_BITS | DPL3;
    gdt[16] = CODE64_BITS | DPL3;
    gdt[17] = DATA_BITS | DPL3;
    gdt
});

/// Operand of LGDT, LIDT, SGDT, SIDT.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub struct TablePointer {
    /// Last valid offset.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

/// What the boot code gives to LGDT.
pub(crate) static POINTER: Racy<PointerTo> = Racy::new(PointerTo {
    limit: (SLOTS * 8 - 1) as u16,
    base: &raw const GDT as *const u8,
});

/// As [`TablePointer`], with a base known at link time.
#[repr(C, packed)]
pub(crate) struct PointerTo {
    limit: u16,
    base: *const u8,
}

/// The 64-bit task state segment, with a full I/O permission bitmap.
#[repr(C, packed(4))]
pub struct TaskState {
    reserved_0: u32,
    /// Stacks for rings 0 to 2.
    pub rsp: [u64; 3],
    reserved_1: u64,
    /// Interrupt stacks 1 to 7.
    pub ist: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    io_map_base: u16,
    /// A set bit denies the port to ring 3.
    pub io_map: [u8; 8192],
    io_map_end: u8,
}

/// Bytes of each of the two emergency stacks.
const EXTRA_STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct ExtraStack([u8; EXTRA_STACK]);

static RING0_STACK: Racy<ExtraStack> = Racy::new(ExtraStack([0; EXTRA_STACK]));
static IST1_STACK: Racy<ExtraStack> = Racy::new(ExtraStack([0; EXTRA_STACK]));

static TASK: Racy<TaskState> = Racy::new(TaskState {
    reserved_0: 0,
    rsp: [0; 3],
    reserved_1: 0,
    ist: [0; 7],
    reserved_2: 0,
    reserved_3: 0,
    io_map_base: 104,
    io_map: [0xff; 8192],
    io_map_end: 0xff,
});

/// The task state segment, to be changed.
pub fn task() -> *mut TaskState {
    TASK.get()
}

/// Writes a descriptor slot.
pub fn set(selector: u16, descriptor: u64) {
    let slot = usize::from(selector >> 3);
    // SAFETY: one processor, no reference is held; what the descriptor says matters only when loaded.
    unsafe { (*GDT.get())[slot] = descriptor };
}

/// Reads a descriptor slot.
pub fn get(selector: u16) -> u64 {
    // SAFETY: one processor, no reference is held.
    unsafe { (*GDT.get())[usize::from(selector >> 3)] }
}

/// Where the table lies.
pub fn address() -> u64 {
    GDT.address()
}

/// Writes the descriptor of a 64-bit task state segment or local descriptor table into two slots.
pub fn set_system(selector: u16, base: u64, limit: u32, kind: u64) {
    let low = u64::from(limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (kind | 0x80) << 40
        | u64::from(limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    set(selector, low);
    set(selector + 8, base >> 32);
}

/// Makes the task state segment available again and loads it.
pub fn load_task() {
    set_system(TSS, TASK.address(), size_of::<TaskState>() as u32 - 1, 9);
    // SAFETY: the descriptor was just written.
    unsafe { asm!("ltr {:x}", in(reg) TSS, options(nostack, preserves_flags)) };
}

/// Fills in the stacks and loads TR. Interrupt stack 1 is for double faults.
pub(crate) fn load() {
    // SAFETY: the task state is not in use yet.
    unsafe {
        (*TASK.get()).rsp[0] = RING0_STACK.address() + EXTRA_STACK as u64;
        (*TASK.get()).ist[0] = IST1_STACK.address() + EXTRA_STACK as u64;
    }
    load_task();
    // SAFETY: no local descriptor table; the one after reset lies at address 0.
    unsafe { asm!("lldt {:x}", in(reg) 0_u16, options(nostack, preserves_flags)) };
}
