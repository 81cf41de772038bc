//! The virtual processor: the run loop, and the seam's trait.

use alloc::rc::Rc;
use core::cell::Cell;
use core::fmt;

use arch::addr::{Gva, Hpa};
use arch::ept;
use arch::event::Event;
use arch::regs::{
    ControlRegisters, CpuState, DebugRegisters, Gpr, Gprs, Paging, Rflags, Segment,
    SegmentAttributes, SegmentName, SystemMsrs,
};
use arch::vmx::capability::Capabilities;
use arch::vmx::control::PrimaryControls;
use arch::vmx::exit::{ENTRY_FAILED, ExitReason};
use arch::vmx::field::{self, SegmentFields};
use vmm::cpu::{CounterKind, Exit, ExitKind, HostLocalCounts, Icount, PREFER_EXIT_WITHIN, Window};
use vmm::pmu::landing::Landing;

use super::control::{self, Vmcs};
use super::counter::{self, Counting, Method, Programmed};
use super::entry::{self, Frame};
use super::live::{Live, Registers};
use super::over::Over;
use super::pmu::Lists;
use super::setup::{self, Resources};
use super::step::Margin;
use super::{Processor, Vmx};
use crate::guest_ram::GuestRam;
use crate::vt::nested::{Format, NestedTables};
use crate::x86;

/// Why a virtual processor could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewError {
    /// No frame for the VMCS or the root of the extended page tables.
    OutOfMemory,
}

impl fmt::Display for NewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewError::OutOfMemory => write!(f, "no memory for a virtual processor"),
        }
    }
}

/// EPT entries for the table builder.
pub(super) struct Ept;

impl Format for Ept {
    fn table(to: Hpa) -> u64 {
        ept::table(to)
    }
    fn large_page(to: Hpa) -> u64 {
        ept::large_page(to)
    }
    fn is_present(entry: u64) -> bool {
        ept::is_present(entry)
    }
    fn target(entry: u64) -> Hpa {
        Hpa(entry & ept::ADDRESS)
    }
}

/// One virtual processor on VT-x. It always runs with the same guest memory.
pub struct Vcpu {
    pub(super) frame: Frame,
    pub(super) vmcs: Vmcs,
    pub(super) tables: NestedTables<Ept>,
    pub(super) capabilities: Capabilities,
    pub(super) processor: &'static Processor,
    pub(super) live: Rc<Live>,
    pub(super) vpid: Option<u16>,
    pub(super) counting: Counting,
    pub(super) icount: u64,
    /// RIP and RFLAGS as they are in the VMCS: read at each exit, since hardly any is handled without them.
    pub(super) rip: u64,
    pub(super) rflags: Rflags,
    /// An NMI was injected whose handler may not have ended.
    pub(super) nmi_may_block: Cell<bool>,
    pub(super) counts: HostLocalCounts,
    /// RSP as it is in the VMCS: written back only if it differs.
    pub(super) loaded_rsp: u64,
    /// Delivered at the next entry.
    pub(super) pending: Option<Event>,
    /// Window exits asked for.
    pub(super) windows: PrimaryControls,
    /// Window exits in the VMCS.
    pub(super) loaded_windows: PrimaryControls,
    /// Host-side registers of the restored state that the processor would not take.
    pub(super) refused: Option<&'static str>,
    /// The next entry ends a first touch of RAM.
    pub(super) entry_is_for_ram: bool,
    /// How early this guest is stopped, if landings are stepped.
    pub(super) margin: Margin,
    /// Where a performance counter counts.
    pub(super) lists: Option<Lists>,
    /// The way to where this run is to land, if that is stepped.
    pub(super) landing: Option<Landing>,
    /// The breakpoint of the entry under way.
    pub(super) over: Option<Over>,
    /// Causes of the last #DB that are that breakpoint's, not the guest's.
    pub(super) hidden_causes: u64,
    launched: bool,
    /// TSC at the last exit, or at the first call of `run`; 0 before that.
    last_exit_tsc: u64,
}

impl Vcpu {
    /// A virtual processor in the state after power-on, its RIP at 0.
    ///
    /// # Errors
    ///
    /// There is no memory for its tables.
    pub fn new(vmx: &Vmx) -> Result<Self, NewError> {
        Self::counting(vmx, vmx.counting)
    }

    /// The same, counting otherwise than [`Vmx::calibrate`] has found.
    pub(super) fn counting(vmx: &Vmx, counting: Counting) -> Result<Self, NewError> {
        let processor = vmx.processor;
        let mut capabilities = vmx.capabilities;
        let mut lists = None;
        let mut counting = counting;
        let mut margin = Margin::Fixed(0);
        match (counting.method, vmx.skid) {
            (Method::Tsc, Some(skid)) => {
                counting.method = Method::SteppedTsc;
                margin = Margin::Random(skid);
            }
            (Method::Pmu(Programmed { counter, .. }), _) => {
                Lists::add_controls(&mut capabilities);
                lists = Some(Lists::new(counter).ok_or(NewError::OutOfMemory)?);
                margin = Margin::Fixed(counter.margin());
            }
            (Method::Tsc | Method::SteppedTsc | Method::ExitOrdinal, _) => {}
        }
        let tables = NestedTables::new().ok_or(NewError::OutOfMemory)?;
        let ept_pointer = ept::pointer(tables.root(), capabilities.ept_vpid.accessed_dirty());
        let vmcs = Vmcs::new(processor, capabilities.revision).ok_or(NewError::OutOfMemory)?;
        let vpid = capabilities.has_vpid().then(|| processor.new_vpid());
        let resources = Resources {
            ept_pointer,
            msr_bitmap: vmx.msr_bitmap,
            vpid,
        };
        setup::write(&vmcs, &capabilities, &resources);
        if let Some(lists) = &lists {
            lists.set_up(&vmcs);
        }
        // The tables' frame may have been another guest's root before.
        control::invept(capabilities.ept_vpid.invept_single().then_some(ept_pointer));
        let state = CpuState::real_mode(0);
        let mut vcpu = Self {
            frame: Frame::new(),
            vmcs,
            tables,
            capabilities,
            processor,
            live: Live::new(Registers::of(&state)),
            vpid,
            counting,
            icount: 0,
            rip: state.rip,
            rflags: state.rflags,
            nmi_may_block: Cell::new(false),
            counts: HostLocalCounts::default(),
            loaded_rsp: 0,
            pending: None,
            windows: PrimaryControls::empty(),
            loaded_windows: PrimaryControls::empty(),
            refused: None,
            entry_is_for_ram: false,
            margin,
            lists,
            landing: None,
            over: None,
            hidden_causes: 0,
            launched: false,
            last_exit_tsc: 0,
        };
        vcpu.copy_in(&state);
        Ok(vcpu)
    }

    /// Makes the live registers this guest's.
    #[inline]
    pub(super) fn own(&self) {
        if self.live.own(self.processor) {
            self.note_nmi_blocking();
        }
    }

    /// Enters the guest once. `Err` is an entry that the processor refused. `PLAIN`: the TSC counts.
    #[inline(always)]
    fn enter_once<const PLAIN: bool>(&mut self, timer: u32) -> Result<ExitReason, Exit> {
        let vmcs = self.vmcs.current();
        vmcs.set(field::PREEMPTION_TIMER, timer);
        let rsp = self.frame.gprs[Gpr::Rsp];
        if rsp != self.loaded_rsp {
            vmcs.set(field::GUEST_RSP, rsp);
        }
        if (self.windows | self.loaded_windows) != PrimaryControls::empty() {
            self.prepare_windows();
        }
        let event = self.pending.take();
        if let Some(event) = event {
            self.prepare_injection(event);
        }
        // SAFETY: VMX operation is on (`processor` exists), this VMCS is current since `current` above, its
        // host state was written by `setup`, its tables map only this guest's frames, and the frame is
        // its own. Host code runs with interrupts masked.
        let failed = unsafe { entry::enter(&raw mut self.frame, u32::from(self.launched)) };
        let reason = vmcs.read(field::EXIT_REASON);
        if failed != 0 || reason & ENTRY_FAILED != 0 {
            self.pending = event;
            self.take_back_breakpoint();
            return Err(self.entry_refused(if failed != 0 { 0 } else { reason }));
        }
        self.launched = true;
        let rsp = vmcs.read(field::GUEST_RSP);
        self.frame.gprs[Gpr::Rsp] = rsp;
        self.loaded_rsp = rsp;
        self.rip = vmcs.read(field::GUEST_RIP);
        self.rflags = Rflags::from_bits_retain(vmcs.read(field::GUEST_RFLAGS));
        let retired = if PLAIN || matches!(self.counting.method, Method::SteppedTsc) {
            self.counting.ticks(&self.frame)
        } else {
            self.retired_otherwise()
        };
        self.icount = self.icount.wrapping_add(retired);
        self.count_host_ticks();
        Ok(ExitReason(reason as u16))
    }

    /// Adds what the host has taken between the last exit and the entry that followed.
    #[inline(always)]
    fn count_host_ticks(&mut self) {
        self.counts.entries = self.counts.entries.wrapping_add(1);
        let between = self.frame.entry_tsc.wrapping_sub(self.last_exit_tsc);
        self.last_exit_tsc = self.frame.exit_tsc;
        let ticks = between.wrapping_add(self.counting.overhead);
        let sum = if self.entry_is_for_ram {
            self.entry_is_for_ram = false;
            &mut self.counts.ram_fault_ticks
        } else {
            &mut self.counts.host_ticks
        };
        *sum = sum.wrapping_add(ticks);
    }

    /// Runs until something surfaces; the checks of `run` have been made. `PLAIN`: the TSC counts, and nothing is
    /// stepped.
    #[inline(always)]
    fn run_until<const PLAIN: bool>(
        &mut self,
        memory: &mut GuestRam,
        until: u64,
        budget: u64,
    ) -> Exit {
        let mut left = budget;
        loop {
            // An exit on RAM in an event's delivery can leave an event and no instruction: the event is
            // delivered before the landing, as it is where the RAM was mapped already.
            let instructions = until.saturating_sub(self.icount);
            if instructions == 0 && self.pending.is_none() {
                return Exit::Landed;
            }
            let timer = if PLAIN {
                counter::timer(instructions, left)
            } else {
                match self.approach(memory, until, instructions, left) {
                    Ok(timer) => timer,
                    Err(exit) => return exit,
                }
            };
            let reason = match self.enter_once::<PLAIN>(timer) {
                Ok(reason) => reason,
                Err(refused) => return refused,
            };
            let is_over = if PLAIN {
                false
            } else {
                match self.end_over(reason) {
                    Ok(is_over) => is_over,
                    Err(exit) => return exit,
                }
            };
            if !is_over && let Some(exit) = self.decode(reason, memory) {
                return exit;
            }
            let ticks = self.frame.exit_tsc.wrapping_sub(self.frame.entry_tsc);
            left = left.saturating_sub(ticks);
            if left == 0 && self.icount < until {
                self.take_host_interrupts();
                return Exit::HostWork;
            }
        }
    }
}

impl Vcpu {
    /// [`Vcpu::run_until`] where it takes more than the TSC.
    #[cold]
    #[inline(never)]
    fn run_otherwise(&mut self, memory: &mut GuestRam, until: u64, budget: u64) -> Exit {
        let exit = self.run_until::<false>(memory, until, budget);
        let exit = self.in_time(until, exit);
        if !self.counting.counts() && exit.kind() == ExitKind::Deterministic {
            self.icount = self.icount.wrapping_add(1);
        }
        exit
    }
}

impl Processor {
    /// A VPID for a new virtual processor, flushed of what an old one with the same number left.
    fn new_vpid(&self) -> u16 {
        let vpid = self.next_vpid.get();
        self.next_vpid.set(vpid.checked_add(1).unwrap_or(1));
        vpid
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.live.disown(self.processor);
    }
}

impl vmm::cpu::Vcpu for Vcpu {
    type Memory = GuestRam;

    fn run(&mut self, memory: &mut GuestRam, until: Icount, budget: u64) -> Exit {
        if let Some(reason) = self.refused {
            return Exit::EntryRefused { reason };
        }
        if until.0 <= self.icount {
            return Exit::Landed;
        }
        self.own();
        if self.last_exit_tsc == 0 {
            self.last_exit_tsc = x86::rdtsc();
        }
        if matches!(self.counting.method, Method::Tsc) {
            self.run_until::<true>(memory, until.0, budget)
        } else {
            self.run_otherwise(memory, until.0, budget)
        }
    }

    fn icount(&self) -> Icount {
        Icount(self.icount)
    }

    fn counter(&self) -> CounterKind {
        self.counting.kind()
    }

    fn prefer_exit_within(&self) -> u64 {
        match self.counting.method {
            Method::Pmu(Programmed { prefer_exit, .. }) => *prefer_exit,
            Method::Tsc | Method::SteppedTsc | Method::ExitOrdinal => PREFER_EXIT_WITHIN,
        }
    }

    fn advance(&mut self, _memory: &GuestRam) {
        let length = self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        self.advance_by(length as u8);
    }

    #[inline]
    fn advance_by(&mut self, length: u8) {
        let mut next = self.rip.wrapping_add(u64::from(length));
        if next >> 32 != 0 && !self.in_64_bit_mode() {
            next &= 0xffff_ffff;
        }
        self.store_rip(next);
        if self.counting.counts() {
            self.icount = self.icount.wrapping_add(1);
        }
        self.finish_instruction();
    }

    fn inject(&mut self, event: Event) -> bool {
        self.queue_event(event)
    }

    fn pending(&self) -> Option<Event> {
        self.pending
    }

    fn can_take(&self, window: Window) -> bool {
        self.window_is_open(window)
    }

    fn request_window(&mut self, window: Window, wanted: bool) {
        let bit = match window {
            Window::Interrupt => PrimaryControls::INTERRUPT_WINDOW_EXITING,
            Window::Nmi => PrimaryControls::NMI_WINDOW_EXITING,
        };
        self.windows.set(bit, wanted);
    }

    fn gprs(&self) -> &Gprs {
        &self.frame.gprs
    }

    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.store_rip(rip);
    }

    fn rflags(&self) -> Rflags {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: Rflags) {
        self.store_rflags(rflags);
        self.align_single_step();
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.read_segment(name)
    }

    fn control(&self) -> ControlRegisters {
        self.read_control()
    }

    fn set_control(&mut self, control: &ControlRegisters) {
        self.write_control(control);
    }

    #[inline]
    fn paging(&self) -> Paging {
        self.read_paging()
    }

    fn debug(&self) -> DebugRegisters {
        self.read_debug()
    }

    fn set_debug(&mut self, debug: &DebugRegisters) {
        self.write_debug(debug);
    }

    fn msrs(&self) -> SystemMsrs {
        self.read_msrs()
    }

    fn set_msrs(&mut self, msrs: &SystemMsrs) {
        self.write_msrs(msrs);
    }

    #[inline]
    fn cpl(&self) -> u8 {
        (self.read_attributes(SegmentName::Ss).bits() >> 5 & 3) as u8
    }

    #[inline]
    fn segment_base(&self, name: SegmentName) -> u64 {
        self.vmcs.read(SegmentFields::of(name).base)
    }

    #[inline]
    fn segment_attributes(&self, name: SegmentName) -> SegmentAttributes {
        self.read_attributes(name)
    }

    fn set_segment_base(&mut self, name: SegmentName, base: u64) {
        self.vmcs.set(SegmentFields::of(name).base, base);
    }

    fn invalidate_page(&mut self, gva: Gva) {
        self.flush_page(gva.0);
    }

    fn save(&mut self) -> CpuState {
        self.copy_out()
    }

    fn restore(&mut self, state: &CpuState) {
        self.copy_in(state);
    }

    fn host_local(&self) -> HostLocalCounts {
        self.counts
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.write_dump(out)
    }
}
