//! The seam between the guest machine and the processor's virtualization extension.
//!
//! A backend (`kernel/metal/src/vt/{vmx,svm}`) runs the guest and returns decoded exits; which vendor
//! it is cannot be seen from this side. Everything above is the same code for both.

use arch::addr::{Gpa, Gva};
use arch::event::Event;
use arch::regs::{
    ControlRegisters, CpuState, DebugRegisters, Gpr, Gprs, Paging, Rflags, Segment,
    SegmentAttributes, SegmentName, SystemMsrs,
};

use crate::memory::GuestMemory;

/// Number of guest instructions retired since power-on: an execution point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Icount(pub u64);

impl Icount {
    /// A point that is never reached.
    pub const NEVER: Icount = Icount(u64::MAX);

    /// Behind the instruction that comes next. No count gets near its end.
    #[inline]
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The point `instructions` later; saturates at [`Icount::NEVER`].
    #[must_use]
    pub const fn after(self, instructions: u64) -> Self {
        Self(self.0.saturating_add(instructions))
    }
}

/// An I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT or OUTS.
    pub write: bool,
    /// INS or OUTS; the loop decodes the instruction for its addresses.
    pub string: bool,
}

/// What a guest access wanted of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The byte accessed; where the vendor gives only the page, the page.
    pub gpa: Gpa,
    /// It was a write.
    pub write: bool,
    /// It was an instruction fetch.
    pub execute: bool,
    /// The processor was walking the guest's page tables, not accessing the operand.
    pub in_page_walk: bool,
}

/// Why `run` returned. Every exit but the last group is caused by the guest's own instruction stream.
///
/// At an exit that names an instruction, RIP points at it, it has had no effect and it is not counted;
/// [`Vcpu::advance`] steps over it and counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// RDRAND into a register of `size` bytes (2, 4, 8).
    Rdrand {
        /// Destination.
        register: Gpr,
        /// Operand bytes.
        size: u8,
    },
    /// RDSEED into a register of `size` bytes (2, 4, 8).
    Rdseed {
        /// Destination.
        register: Gpr,
        /// Operand bytes.
        size: u8,
    },
    /// RDMSR; the number is in ECX.
    ReadMsr,
    /// WRMSR; the number is in ECX, the value in EDX:EAX.
    WriteMsr,
    /// IN, OUT, INS, OUTS.
    Port(PortAccess),
    /// MOV from control register `cr` (0, 3, 4 or 8).
    ReadCr {
        /// Control register number.
        cr: u8,
        /// Destination.
        register: Gpr,
    },
    /// MOV to control register `cr`, CLTS (cr 0) or LMSW (cr 0): `value` is what the whole register is to
    /// become.
    WriteCr {
        /// Control register number.
        cr: u8,
        /// New value.
        value: u64,
    },
    /// MOV from a debug register.
    ReadDr {
        /// Debug register number as encoded, 0 … 7.
        dr: u8,
        /// Destination.
        register: Gpr,
    },
    /// MOV to a debug register.
    WriteDr {
        /// Debug register number as encoded, 0 … 7.
        dr: u8,
        /// Source.
        register: Gpr,
    },
    /// XSETBV; index in ECX, value in EDX:EAX.
    Xsetbv,
    /// WBINVD, WBNOINVD or INVD.
    Wbinvd,
    /// INVLPG.
    Invlpg {
        /// Its operand.
        gva: Gva,
    },
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// An instruction of the virtualization extension itself, or another one that this machine does not
    /// have although the processor does (VMXON, VMRUN, SKINIT, GETSEC, INVPCID …): #UD.
    NoSuchInstruction,
    /// An access to guest physical memory that the nested page tables do not map.
    NestedFault(NestedFault),
    /// An intercepted exception of the guest, not delivered yet: RIP is what the processor would push. For
    /// #DB, `dr6` holds the bits the processor would set in DR6.
    Exception {
        /// The exception.
        event: Event,
        /// New bits for DR6 (#DB only).
        dr6: u64,
    },
    /// A hardware task switch.
    TaskSwitch {
        /// Selector of the new TSS.
        selector: u16,
    },
    /// The guest's processor shut down.
    TripleFault,
    /// The processor refused the guest's state at entry; `reason` is what the backend found wrong (the
    /// failed check by manual section) and the state is as it was.
    EntryRefused {
        /// The failed check.
        reason: &'static str,
    },
    /// An exit that no code expects: vendor code and qualification for the dump.
    Unexpected {
        /// The vendor's exit code.
        code: u64,
        /// The vendor's qualification.
        qualification: u64,
    },

    /// The point asked for is reached. `icount()` equals it, unless it lies in an interrupt shadow
    /// where this processor cannot stop: then it is the first point behind the shadow.
    Landed,
    /// The host wants the processor: the budget is used up or a host interrupt was taken.
    HostWork,
    /// A window that was asked for is open.
    Window,
}

/// Whether an exit comes from the guest's instruction stream or from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// Happens on every host that executes the same instructions: counted, compared, an ordinal.
    Deterministic,
    /// Happens on this host only.
    HostLocal,
}

impl Exit {
    /// Which of the two kinds.
    #[must_use]
    pub const fn kind(&self) -> ExitKind {
        match self {
            Exit::Landed | Exit::HostWork | Exit::Window => ExitKind::HostLocal,
            Exit::Cpuid
            | Exit::Hlt
            | Exit::Rdtsc
            | Exit::Rdtscp
            | Exit::Rdpmc
            | Exit::Rdrand { .. }
            | Exit::Rdseed { .. }
            | Exit::ReadMsr
            | Exit::WriteMsr
            | Exit::Port(_)
            | Exit::ReadCr { .. }
            | Exit::WriteCr { .. }
            | Exit::ReadDr { .. }
            | Exit::WriteDr { .. }
            | Exit::Xsetbv
            | Exit::Wbinvd
            | Exit::Invlpg { .. }
            | Exit::Monitor
            | Exit::Mwait
            | Exit::Hypercall
            | Exit::NoSuchInstruction
            | Exit::NestedFault(_)
            | Exit::Exception { .. }
            | Exit::TaskSwitch { .. }
            | Exit::TripleFault
            | Exit::EntryRefused { .. }
            | Exit::Unexpected { .. } => ExitKind::Deterministic,
        }
    }
}

/// How exactly a backend counts and stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// The time-stamp counter ticks once per retired instruction (emulators).
    Tsc,
    /// A performance counter counts retired instructions; the guest is stopped early and stepped.
    Pmu,
    /// No exact counter: `icount()` counts deterministic exits and `run` lands only there.
    ExitOrdinal,
}

/// Counts of what happened on this host only and never surfaces as an [`Exit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLocalCounts {
    /// Host interrupts taken while the guest ran.
    pub interrupts: u64,
    /// First touches of guest RAM, mapped on the spot.
    pub ram_faults: u64,
    /// Entries into the guest.
    pub entries: u64,
    /// TSC ticks between the guest's last instruction before an exit and its first one behind the next
    /// entry, summed over all entries; the cost of entry and exit is included. First touches of RAM
    /// are left out: they are in `ram_fault_ticks`.
    pub host_ticks: u64,
    /// The same for first touches of guest RAM.
    pub ram_fault_ticks: u64,
}

/// [`Vcpu::prefer_exit_within`] where a stop is cheap: a microsecond or less.
pub const PREFER_EXIT_WITHIN: u64 = 1000;

/// When the guest could take an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// A maskable interrupt.
    Interrupt,
    /// A non-maskable interrupt.
    Nmi,
}

/// One virtual processor.
///
/// Between two calls of `run` the state is that between two instructions. Register accessors are cheap;
/// [`Vcpu::save`] and [`Vcpu::restore`] copy everything.
pub trait Vcpu {
    /// The guest memory this backend maps.
    type Memory: GuestMemory;

    /// Runs the guest until an exit surfaces.
    ///
    /// Never executes past `until`, except out of an interrupt shadow (see [`Exit::Landed`]);
    /// `until <= icount()` returns [`Exit::Landed`] at once. Returns [`Exit::HostWork`] after at most about
    /// `budget` host TSC ticks. An event given to [`Vcpu::inject`], or cut off by the last exit, is delivered
    /// before the first instruction; accesses to RAM that is not mapped yet are resolved inside.
    fn run(&mut self, memory: &mut Self::Memory, until: Icount, budget: u64) -> Exit;

    /// Instructions retired since power-on.
    fn icount(&self) -> Icount;

    /// How `icount` is obtained.
    fn counter(&self) -> CounterKind;

    /// Instructions that a guest is given to come to a deterministic exit by itself, before it is stopped at a count for
    /// what waits to enter. Landing at an exit costs neither host anything; more where a stop is dear.
    fn prefer_exit_within(&self) -> u64 {
        PREFER_EXIT_WITHIN
    }

    /// Steps over the instruction of the last exit and counts it: RIP moves behind it, interrupt shadows
    /// end, RF is cleared. Works also if handling the exit has changed the mode or the mapping of the code
    /// (MOV to CR0, WRMSR to EFER): the length is that of the instruction as the processor executed it.
    fn advance(&mut self, memory: &Self::Memory);

    /// Steps over an instruction of known `length` in bytes; otherwise as [`Vcpu::advance`]. For instructions
    /// the loop has decoded itself.
    fn advance_by(&mut self, length: u8);

    /// Queues an event for delivery at the next entry. The caller has made sure that the guest can take it
    /// now ([`Vcpu::can_take`]); exceptions can always be taken. An exception given while a cut-off event is
    /// pending is combined with it by [`arch::event::merge`]; returns `false` if that is a triple fault.
    #[must_use]
    fn inject(&mut self, event: Event) -> bool;

    /// The event that will be delivered at the next entry.
    fn pending(&self) -> Option<Event>;

    /// Whether an interrupt or NMI could be delivered before the next instruction: not masked, no shadow,
    /// nothing pending.
    fn can_take(&self, window: Window) -> bool;

    /// Asks for (or no longer for) [`Exit::Window`] as soon as `can_take(window)` holds.
    fn request_window(&mut self, window: Window, wanted: bool);

    /// General registers.
    fn gprs(&self) -> &Gprs;
    /// General registers, to be changed.
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// Instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// Flags.
    fn rflags(&self) -> Rflags;
    /// Sets the flags.
    fn set_rflags(&mut self, rflags: Rflags);
    /// A segment register with its hidden part.
    fn segment(&self, name: SegmentName) -> Segment;
    /// Control registers as the guest reads them.
    fn control(&self) -> ControlRegisters;
    /// Sets control registers, `pdptes` included; values are valid for this machine (the loop has checked
    /// them, derived EFER.LMA and read the PDPTEs from guest memory). Flushes what has to be flushed.
    fn set_control(&mut self, control: &ControlRegisters);
    /// What of the control registers decides about translation and mode: all that most exits look at.
    fn paging(&self) -> Paging {
        self.control().paging()
    }
    /// Debug registers.
    fn debug(&self) -> DebugRegisters;
    /// Sets debug registers.
    fn set_debug(&mut self, debug: &DebugRegisters);
    /// System MSRs.
    fn msrs(&self) -> SystemMsrs;
    /// Sets system MSRs; addresses are canonical.
    fn set_msrs(&mut self, msrs: &SystemMsrs);
    /// Current privilege level: SS.DPL (SDM 3 6.5).
    fn cpl(&self) -> u8 {
        self.segment(SegmentName::Ss).dpl()
    }
    /// The base of a segment.
    fn segment_base(&self, name: SegmentName) -> u64 {
        self.segment(name).base
    }
    /// The attributes of a segment.
    fn segment_attributes(&self, name: SegmentName) -> SegmentAttributes {
        self.segment(name).attributes
    }
    /// Sets the base of FS or GS.
    fn set_segment_base(&mut self, name: SegmentName, base: u64);
    /// Drops translations of one page, as INVLPG does.
    fn invalidate_page(&mut self, gva: Gva);

    /// Copies the whole state out.
    fn save(&mut self) -> CpuState;
    /// Makes the processor be in `state`. All translations are dropped.
    fn restore(&mut self, state: &CpuState);

    /// What happened on this host only.
    fn host_local(&self) -> HostLocalCounts;
    /// The vendor's control structure as text, for the dump of a stopped guest.
    fn dump(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result;
}
