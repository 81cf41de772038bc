//! One virtual processor: the run loop, and the seam.

use core::fmt;

use arch::addr::{Gva, Hpa};
use arch::event::{Event, EventKind, Merged, merge};
use arch::npt;
use arch::regs::{
    ControlRegisters, CpuState, DebugRegisters, Gprs, Paging, Rflags, Segment, SegmentAttributes,
    SegmentName, SystemMsrs,
};
use arch::svm::capability::SvmFeatures;
use arch::svm::control::{CleanBits, InterruptControl, InterruptState, TlbControl};
use arch::svm::entry_check;
use arch::svm::exit::ExitCode;
use arch::svm::vmcb::SaveArea;
use vmm::cpu::{CounterKind, Exit, ExitKind, HostLocalCounts, Icount, PREFER_EXIT_WITHIN, Window};
use vmm::pmu::Skid;
use vmm::pmu::landing::Landing;

use super::code::CodePage;
use super::control::ControlBlock;
use super::counter::Counting;
use super::entry::{self, EntryBlock};
use super::event::{Events, Reach};
use super::exit::Next;
use super::live::LiveState;
use super::pmu::Programmed;
use super::step::UnderWay;
use super::{Capabilities, Processor, Svm};
use crate::guest_ram::GuestRam;
use crate::vt::nested::{Format, NestedTables};
use crate::{apic, interrupts};

/// Nested page tables as SVM reads them.
pub(super) struct Npt;

impl Format for Npt {
    fn table(to: Hpa) -> u64 {
        npt::table(to)
    }
    fn large_page(to: Hpa) -> u64 {
        npt::large_page(to)
    }
    fn is_present(entry: u64) -> bool {
        npt::is_present(entry)
    }
    fn target(entry: u64) -> Hpa {
        Hpa(entry & npt::ADDRESS)
    }
}

/// Why there is no virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewError {
    /// No frames for the control block or the nested tables.
    OutOfMemory,
    /// All address-space identifiers are in use.
    NoAsid,
}

impl fmt::Display for NewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "no memory for the control block of a virtual processor",
            Self::NoAsid => "all address-space identifiers are in use",
        })
    }
}

/// The registers of before an entry that may be refused: a refusing VMRUN leaves QEMU's host state in the block.
struct Backup {
    save: SaveArea,
    interrupt_state: InterruptState,
    gprs: Gprs,
}

/// A virtual processor.
///
/// Translations are tagged with the address-space identifier. They are flushed at the first entry, after
/// [`restore_state`](Vcpu::restore_state), and when CR0, CR3, CR4 or EFER change other than by the guest's own
/// instructions. They need no flush when a page of RAM is mapped: what is not present is not cached (APM 2 15.25.11).
pub struct Vcpu {
    pub(super) block: EntryBlock,
    pub(super) vmcb: ControlBlock,
    pub(super) icount: u64,
    pub(super) counting: Counting,
    /// Whether the next entry is not a plain one; derived from the rest by `look_again`.
    attention: bool,
    /// What the block holds is to be checked before the next entry.
    unchecked: bool,
    flush: bool,
    pub(super) clean_after_exit: CleanBits,
    /// Bytes of the instruction of the last exit; 0: not known.
    pub(super) length: u8,
    pub(super) events: Events,
    pub(super) live: LiveState,
    pub(super) nested: NestedTables<Npt>,
    pub(super) code_page: CodePage,
    /// DR6 as the guest reads it.
    pub(super) dr6: u64,
    /// RIP behind the last single step.
    pub(super) stepped_to: u64,
    /// The guest's EFER.LME is set, although the control block has it clear.
    pub(super) hidden_lme: bool,
    pub(super) counts: HostLocalCounts,
    /// The last exit was a first touch of RAM.
    pub(super) after_ram_fault: bool,
    pub(super) capabilities: Capabilities,
    /// The test switch by which landings are stepped.
    pub(super) skid: Option<Skid>,
    /// The way to where this run is to land, if that is stepped.
    pub(super) landing: Option<Landing>,
    pub(super) under_way: Option<UnderWay>,
    /// Where a performance counter counts: it overflows in the next entry behind so many instructions.
    pub(super) overflow: u64,
    processor: &'static Processor,
    backup: Option<Backup>,
}

impl Vcpu {
    /// A processor in the state after power-on, with RIP 0, in an empty address space.
    ///
    /// # Errors
    ///
    /// See [`NewError`].
    pub fn new(svm: &Svm) -> Result<Self, NewError> {
        let mut vmcb = ControlBlock::new().ok_or(NewError::OutOfMemory)?;
        let nested = NestedTables::new().ok_or(NewError::OutOfMemory)?;
        let asid = svm.processor.take_asid().ok_or(NewError::NoAsid)?;
        vmcb.set_up(&svm.capabilities, &svm.bitmaps, nested.root(), asid);
        if svm.counting.kind() == CounterKind::Tsc {
            vmcb.intercept_for_emulator();
        }
        let clean_bits = svm.capabilities.features.contains(SvmFeatures::CLEAN_BITS);
        let mut vcpu = Self {
            block: EntryBlock {
                guest: vmcb.physical().0,
                guest_mapped: vmcb.pointer() as u64,
                host: svm.processor.host_state.0,
                timer_register: apic::timer_mmio().map_or(0, |register| register as u64),
                timer_ticks: 1,
                tsc_entry: 0,
                tsc_exit: 0,
                gprs: Gprs::default(),
            },
            vmcb,
            icount: 0,
            counting: svm.counting,
            attention: true,
            unchecked: true,
            flush: true,
            clean_after_exit: if clean_bits {
                CleanBits::all()
            } else {
                CleanBits::empty()
            },
            length: 0,
            events: Events::NONE,
            live: LiveState::new(svm.processor),
            nested,
            code_page: CodePage::NONE,
            dr6: 0,
            stepped_to: 0,
            hidden_lme: false,
            counts: HostLocalCounts::default(),
            after_ram_fault: false,
            capabilities: svm.capabilities,
            skid: svm.skid,
            landing: None,
            under_way: None,
            overflow: u64::MAX,
            processor: svm.processor,
            backup: None,
        };
        vcpu.restore_state(&CpuState::real_mode(0));
        Ok(vcpu)
    }

    /// Counts in another way than [`Svm::calibrate`] has found.
    pub(super) fn count_by(&mut self, counting: Counting) {
        self.counting = counting;
        self.look_again();
    }

    /// The next entry flushes this guest's translations, and the page of code looked at last is forgotten.
    pub(super) fn flush_translations(&mut self) {
        self.flush = true;
        self.attention = true;
        self.code_page = CodePage::NONE;
    }

    /// The next entry is preceded by the checks that VMRUN makes.
    pub(super) fn must_check(&mut self) {
        self.unchecked = true;
        self.attention = true;
    }

    /// Queues an event; returns `false` if it and the one whose delivery it interrupts make a triple fault.
    pub(super) fn deliver(&mut self, event: Event) -> bool {
        let event = match self.events.pending {
            Some(first) if event.kind == EventKind::Exception => match merge(first, event) {
                Merged::Deliver(event) => event,
                Merged::TripleFault => return false,
            },
            _ => event,
        };
        self.events.pending = Some(event);
        self.attention = true;
        true
    }

    fn look_again(&mut self) {
        self.attention = self.unchecked
            || self.flush
            || self.has_breakpoints()
            || !self.events.is_quiet()
            || self.skid.is_some()
            || matches!(self.counting, Counting::Pmu(_));
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from_field(self.vmcb.control.exit_code)
    }

    /// Names what VMRUN would refuse.
    fn refusal(&self) -> Option<&'static str> {
        if self.dr6 >> 32 != 0 {
            return Some("APM 2 15.5.1: DR6[63:32] are not zero");
        }
        entry_check::check(&self.vmcb, &self.capabilities.processor).or_else(|| self.refused_xcr0())
    }

    /// Everything before an entry that is not a plain one.
    ///
    /// # Errors
    ///
    /// The exit to return instead of entering.
    pub(super) fn prepare(&mut self) -> Result<Reach, Exit> {
        if self.unchecked {
            if let Some(reason) = self.refusal() {
                return Err(Exit::EntryRefused { reason });
            }
            self.backup = Some(Backup {
                save: self.vmcb.save,
                interrupt_state: self.vmcb.control.interrupt_state,
                gprs: self.block.gprs,
            });
        }
        let reach = self.load_events()?;
        if !self.live.is_loaded() {
            self.live.load();
            // Another guest may have run under the same identifier.
            self.flush = true;
            // Another guest's block may be what the processor has cached.
            self.vmcb.control.clean_bits = CleanBits::empty();
        }
        let by_asid = self
            .capabilities
            .features
            .contains(SvmFeatures::FLUSH_BY_ASID);
        self.vmcb.control.tlb_control = match (self.flush, by_asid) {
            (false, _) => TlbControl::NOTHING,
            (true, true) => TlbControl::GUEST,
            (true, false) => TlbControl::ALL,
        };
        if self.has_breakpoints() {
            self.arm_breakpoints();
        }
        Ok(reach)
    }

    /// Everything behind an exit that was not a plain one.
    pub(super) fn settle(&mut self, retired: u64) {
        if self.has_breakpoints() {
            self.disarm_breakpoints();
        }
        let code = self.exit_code();
        let counted_twice = self.settle_events(code, retired);
        self.icount = self.icount.wrapping_sub(counted_twice);
        if code != ExitCode::INVALID {
            self.vmcb.control.tlb_control = TlbControl::NOTHING;
            self.flush = false;
            self.unchecked = false;
            self.backup = None;
        }
        self.look_again();
    }

    /// VMRUN has refused the state although no check of ours did: puts the state back and tries to name why.
    pub(super) fn refused(&mut self) -> &'static str {
        if let Some(Backup {
            save,
            interrupt_state,
            gprs,
        }) = self.backup.take()
        {
            self.vmcb.save = save;
            self.vmcb.control.interrupt_state = interrupt_state;
            self.block.gprs = gprs;
        }
        self.vmcb.control.clean_bits = CleanBits::empty();
        // QEMU writes back an interrupt control it has not read yet: zero, with which no interrupt of the host
        // would ever end the next entry.
        self.vmcb.control.interrupt_control = InterruptControl::V_INTR_MASKING;
        self.must_check();
        self.refusal()
            .unwrap_or("VMRUN refused the state; no check of APM 2 15.5.1 says why")
    }

    /// Enters the guest until there is an exit to return.
    fn run_guest(&mut self, memory: &mut GuestRam, until: u64, budget: u64) -> Exit {
        let exact = self.counting.kind() == CounterKind::Tsc;
        let counts = self.counting.counts();
        let mut left = budget;
        let mut first_entry = None;
        loop {
            let mut ticks = left.max(1);
            if exact {
                ticks = ticks.min(until.wrapping_sub(self.icount));
            }
            self.block.timer_ticks = self.counting.timer_ticks(ticks);
            if (self.attention || !self.live.is_loaded())
                && let Err(exit) = self.get_ready(memory, until, ticks)
            {
                return exit;
            }
            self.length = 0;
            let retired = self.enter();
            if self.exit_code() == ExitCode::INVALID && exact {
                self.recognise_cr3_fault(memory);
            }
            let cut_off = self.vmcb.control.exit_interrupt_info & 1 << 31 != 0;
            if self.attention || cut_off {
                self.end_step(memory);
                self.settle(retired);
            }
            // The commonest exits carry nothing: they need not go through `Next`.
            match self.exit_code() {
                ExitCode::CPUID => return Exit::Cpuid,
                ExitCode::RDTSC => return self.time_stamp(memory),
                _ => {}
            }
            let interrupted = match self.dispatch(memory) {
                Next::Surface(exit) => return exit,
                Next::Again => false,
                Next::Interrupted => true,
            };
            if counts && self.icount >= until && !self.has_to_leave_shadow() {
                return Exit::Landed;
            }
            let started = *first_entry.get_or_insert(self.block.tsc_entry);
            left = budget.saturating_sub(self.block.tsc_exit.wrapping_sub(started));
            if interrupted && interrupts::pending_work() {
                self.counts.interrupts = self.counts.interrupts.wrapping_add(1);
                return Exit::HostWork;
            }
            if left == 0 {
                return Exit::HostWork;
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.processor.give_back_asid(self.vmcb.control.asid);
    }
}

impl vmm::cpu::Vcpu for Vcpu {
    type Memory = GuestRam;

    fn run(&mut self, memory: &mut GuestRam, until: Icount, budget: u64) -> Exit {
        if until.0 <= self.icount {
            return Exit::Landed;
        }
        let exit = self.run_guest(memory, until.0, budget);
        let exit = self.in_time(until.0, exit);
        if self.counting.kind() == CounterKind::ExitOrdinal
            && exit.kind() == ExitKind::Deterministic
        {
            self.icount = self.icount.wrapping_add(1);
        }
        exit
    }

    #[inline]
    fn icount(&self) -> Icount {
        Icount(self.icount)
    }

    fn counter(&self) -> CounterKind {
        self.counting.kind()
    }

    fn prefer_exit_within(&self) -> u64 {
        match self.counting {
            Counting::Pmu(Programmed { prefer_exit, .. }) => *prefer_exit,
            Counting::Tsc(_) | Counting::ExitOrdinal { .. } => PREFER_EXIT_WITHIN,
        }
    }

    #[inline]
    fn advance(&mut self, memory: &GuestRam) {
        let length = self.length_at_exit(memory);
        self.step_over(length);
    }

    #[inline]
    fn advance_by(&mut self, length: u8) {
        self.step_over(length);
    }

    fn inject(&mut self, event: Event) -> bool {
        self.deliver(event)
    }

    fn pending(&self) -> Option<Event> {
        self.events.pending
    }

    fn can_take(&self, window: Window) -> bool {
        self.is_open(window)
    }

    fn request_window(&mut self, window: Window, wanted: bool) {
        match window {
            Window::Interrupt => self.events.interrupt_window = wanted,
            Window::Nmi => self.events.nmi_window = wanted,
        }
        self.look_again();
    }

    #[inline]
    fn gprs(&self) -> &Gprs {
        &self.block.gprs
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.block.gprs
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    #[inline]
    fn set_rip(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
    }

    #[inline]
    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.vmcb.save.rflags)
    }

    #[inline]
    fn set_rflags(&mut self, rflags: Rflags) {
        self.vmcb.save.rflags = rflags.bits();
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.segment_of(name)
    }

    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl & 3
    }

    #[inline]
    fn segment_base(&self, name: SegmentName) -> u64 {
        self.vmcb_segment(name).base
    }

    #[inline]
    fn segment_attributes(&self, name: SegmentName) -> SegmentAttributes {
        self.attributes_of(name)
    }

    fn control(&self) -> ControlRegisters {
        self.control_registers()
    }

    fn set_control(&mut self, control: &ControlRegisters) {
        self.set_control_registers(control);
    }

    #[inline]
    fn paging(&self) -> Paging {
        self.paging_registers()
    }

    fn debug(&self) -> DebugRegisters {
        self.debug_registers()
    }

    fn set_debug(&mut self, debug: &DebugRegisters) {
        self.set_debug_registers(debug);
    }

    fn msrs(&self) -> SystemMsrs {
        self.system_msrs()
    }

    fn set_msrs(&mut self, msrs: &SystemMsrs) {
        self.set_system_msrs(msrs);
    }

    fn set_segment_base(&mut self, name: SegmentName, base: u64) {
        self.set_base_of(name, base);
    }

    fn invalidate_page(&mut self, gva: Gva) {
        self.code_page = CodePage::NONE;
        entry::invalidate(gva.0, self.vmcb.control.asid);
    }

    fn save(&mut self) -> CpuState {
        self.save_state()
    }

    fn restore(&mut self, state: &CpuState) {
        self.restore_state(state);
    }

    fn host_local(&self) -> HostLocalCounts {
        self.counts
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.dump_block(out)
    }
}
