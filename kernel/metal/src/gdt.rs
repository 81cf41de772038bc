//! Segments, the task state segment and its interrupt stacks.

use core::cell::UnsafeCell;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// An entry of the TSS's interrupt stack table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InterruptStack {
    /// For #DF, the last exception that can be reported.
    DoubleFault = 0,
    /// For NMIs, which come at any time.
    Nmi = 1,
    /// For #MC, likewise.
    MachineCheck = 2,
    /// For #PF: the only way to report a stack overflow is on another stack.
    PageFault = 3,
    /// For #DB, which the debug registers may raise at any instruction.
    Debug = 4,
}

impl InterruptStack {
    /// All of them, in the order of their index.
    pub const ALL: [InterruptStack; 5] = [
        InterruptStack::DoubleFault,
        InterruptStack::Nmi,
        InterruptStack::MachineCheck,
        InterruptStack::PageFault,
        InterruptStack::Debug,
    ];

    /// For messages.
    pub const fn name(self) -> &'static str {
        match self {
            InterruptStack::DoubleFault => "double fault",
            InterruptStack::Nmi => "NMI",
            InterruptStack::MachineCheck => "machine check",
            InterruptStack::PageFault => "page fault",
            InterruptStack::Debug => "debug",
        }
    }
}

/// The selectors in use.
#[derive(Clone, Copy, Debug)]
pub struct Selectors {
    /// 64-bit code at privilege level 0.
    pub code: SegmentSelector,
    /// Data at privilege level 0.
    pub data: SegmentSelector,
    /// The task state segment.
    pub task: SegmentSelector,
}

/// The one processor's TSS. Changed only by `set_interrupt_stack`, read only by the processor.
struct Tss(UnsafeCell<TaskStateSegment>);

// SAFETY: only the one running processor touches it (see `set_interrupt_stack`).
unsafe impl Sync for Tss {}

/// One stack for all of them until the real ones are mapped.
#[repr(align(16))]
struct EarlyStack(UnsafeCell<[u8; EARLY_STACK_BYTES]>);

const EARLY_STACK_BYTES: usize = 16 << 10;

// SAFETY: only the processor writes to it, and only in a handler that does not return.
unsafe impl Sync for EarlyStack {}

static EARLY_STACK: EarlyStack = EarlyStack(UnsafeCell::new([0; EARLY_STACK_BYTES]));

static TSS: Tss = Tss(UnsafeCell::new(TaskStateSegment::new()));
static GDT: Once<(GlobalDescriptorTable, Selectors)> = Once::new();

/// Loads the GDT, all segment registers and TR.
pub fn init() -> Selectors {
    let (table, selectors) = GDT.call_once(|| {
        let mut table = GlobalDescriptorTable::new();
        let code = table.append(Descriptor::kernel_code_segment());
        let data = table.append(Descriptor::kernel_data_segment());
        // SAFETY: the TSS is a static: the descriptor's address stays valid.
        let task = table.append(unsafe { Descriptor::tss_segment_unchecked(TSS.0.get()) });
        (table, Selectors { code, data, task })
    });
    for stack in InterruptStack::ALL {
        // SAFETY: the static is a stack of this size, aligned, used for nothing else.
        unsafe {
            set_interrupt_stack(stack, EARLY_STACK.0.get() as u64 + EARLY_STACK_BYTES as u64)
        };
    }
    table.load();
    // SAFETY: the selectors index the table just loaded, whose code and data segments are flat and at
    // privilege level 0; the TSS descriptor is available since this runs once.
    unsafe {
        CS::set_reg(selectors.code);
        SS::set_reg(selectors.data);
        DS::set_reg(selectors.data);
        ES::set_reg(selectors.data);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(selectors.task);
    }
    *selectors
}

/// The selectors in use, once [`init`] has run.
pub fn selectors() -> Option<Selectors> {
    GDT.get().map(|(_, selectors)| *selectors)
}

/// Linear addresses of the GDT and the TSS, for a VMCS's host state.
pub fn bases() -> (u64, u64) {
    let table = GDT
        .get()
        .map_or(0, |(table, _)| table.entries().as_ptr() as u64);
    (table, TSS.0.get() as u64)
}

/// Sets the stack that interrupts with this index switch to.
///
/// # Safety
///
/// `top` is the end of a mapped, writable, 16-byte aligned stack that nothing else uses, and no handler is
/// running on the old one.
pub unsafe fn set_interrupt_stack(stack: InterruptStack, top: u64) {
    // SAFETY: one processor, interrupts masked; the processor reads the entry at the next delivery.
    unsafe {
        (*TSS.0.get()).interrupt_stack_table[stack as usize] = VirtAddr::new(top);
    }
}
