//! Landing behind one instruction: stepping by RFLAGS.TF, which SVM has instead of a trap of its own.
//!
//! What the guest must not see of TF is decided in [`vmm::pmu::step`]; here it meets the control block. While a guest
//! is stepped every exception exits and is injected with the guest's own flags. Delivering an event is a step by
//! itself: the entry ends before the first instruction behind it, since an interrupt of the host is pending. No landing
//! lies in an interrupt shadow, where processors do not stop: behind a load of SS the trap comes one instruction
//! later.
//!
//! Where a performance counter counts, repeated string instructions count once: the guest runs over them to a breakpoint
//! behind ([`vmm::pmu::breakpoint`]).

use arch::addr::Gva;
use arch::event::{Event, EventKind, vector};
use arch::regs::{Efer, Gpr, Rflags, SegmentAttributes, SegmentName};
use arch::svm::capability::SvmFeatures;
use arch::svm::control::{CleanBits, Intercepts1};
use arch::svm::exit::ExitCode;
use vmm::cpu::{CounterKind, Exit};
use vmm::memory::GuestMemory;
use vmm::pmu::breakpoint::Breakpoint;
use vmm::pmu::landing::{Landing, Move, Passed, Place};
use vmm::pmu::step::{self, Kind, Registers, Step};
use vmm::walk::{Access, translate};

use super::control::UNCOUNTED_EXCEPTIONS;
use super::counter::Counting;
use super::event::{Nmi, Reach};
use super::exit::{DR6_CAUSES, DR6_NEUTRAL, DR6_SINGLE_STEP};
use super::vcpu::Vcpu;
use crate::apic;
use crate::guest_ram::GuestRam;
use crate::vt::passed_exit;

/// The timer is over before VMRUN: an interrupt of the host is pending, and only an event is delivered.
const AT_ONCE: u64 = 1;
/// Longest that a step can take, in ticks; it ends by its trap.
const STEP_TICKS: u64 = 64;
/// Instructions in the shadow of a load of SS that would show TF, or end the stepping: they exit instead.
const SHOWING: Intercepts1 = Intercepts1::PUSHF
    .union(Intercepts1::POPF)
    .union(Intercepts1::IRET)
    .union(Intercepts1::INT_N);
/// Exceptions that exit only while the guest is stepped, on some processors others do always.
const WHILE_STEPPING: u32 =
    UNCOUNTED_EXCEPTIONS | 1 << vector::BP | 1 << vector::OF | 1 << vector::UD;
/// Instructions behind which a guest is stopped that does not come by the breakpoint behind one.
const BEHIND_REPEAT: u64 = 2;
const DEBUG: ExitCode = ExitCode(ExitCode::EXCEPTION.0 + vector::DB as u32);

/// What the entry under way is for.
#[derive(Clone, Copy, Debug)]
enum Under {
    /// A trap behind an instruction.
    Step {
        step: Step,
        /// Intercepts that were added for an instruction in a shadow.
        added: Intercepts1,
    },
    /// The delivery of the INT n at this RIP.
    Interrupt { rip: u64 },
    /// A repeated string instruction, to a breakpoint behind it.
    Over(Breakpoint),
}

/// A step under way: what has to be taken back behind the exit.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    what: Under,
    exceptions: u32,
}

impl Vcpu {
    /// [`Vcpu::prepare`], and an entry that goes less far than `ticks`, if that is what comes next.
    ///
    /// # Errors
    ///
    /// The exit to return instead of entering.
    #[cold]
    #[inline(never)]
    pub(super) fn get_ready(
        &mut self,
        memory: &GuestRam,
        until: u64,
        ticks: u64,
    ) -> Result<(), Exit> {
        self.overflow = u64::MAX;
        let by_pmu = matches!(self.counting, Counting::Pmu(_));
        let Some(next) = self.next_move(memory, until) else {
            if self.prepare()? == Reach::Step {
                self.block.timer_ticks = self.counting.timer_ticks(1);
            }
            return Ok(());
        };
        let (ticks, stepping) = match next {
            Ok(Move::Arm { after }) if by_pmu => {
                self.overflow = after;
                (ticks, false)
            }
            Ok(Move::Arm { after }) => (ticks.min(after), false),
            Err(passed) if by_pmu => return Err(passed_exit(passed)),
            // Arrived, in a shadow: out of it.
            Ok(Move::Step | Move::StepOver | Move::Arrived) | Err(Passed { .. }) => (ticks, true),
        };
        self.events.by_injection = stepping || by_pmu;
        let reach = self.prepare()?;
        self.block.timer_ticks = match (self.events.pending.is_some(), reach) {
            (true, _) if stepping => self.only_deliver(),
            (false, _) if next == Ok(Move::StepOver) => self.begin_over(memory, ticks),
            (false, _) if stepping => self.begin_step(memory),
            (false, Reach::Step) => self.begin_step(memory),
            (true, Reach::Step) if by_pmu => self.only_deliver(),
            (true, Reach::Step) => self.counting.timer_ticks(1),
            (_, Reach::Free) => self.counting.timer_ticks(ticks),
        };
        Ok(())
    }

    /// What comes next on the way to `until`, if landings are stepped.
    fn next_move(&mut self, memory: &GuestRam, until: u64) -> Option<Result<Move, Passed>> {
        let mut landing = match (self.landing, &mut self.skid, self.counting) {
            (Some(landing), ..) if landing.target() == until => landing,
            (_, _, Counting::Pmu(pmu)) => Landing::new(until, pmu.counter.margin()),
            (_, Some(skid), _) => Landing::new(until, skid.margin()),
            (landing, None, _) => landing?,
        };
        let next = landing.next(self.icount.min(until), || self.place(memory));
        self.landing = Some(landing);
        Some(next)
    }

    /// Where the guest stands. QEMU counts iterations, so that points lie between them.
    fn place(&self, memory: &GuestRam) -> Place {
        let may_be = matches!(self.counting, Counting::Pmu(_))
            && self.events.pending.is_none()
            && !self.in_shadow();
        let instruction = may_be.then(|| self.instruction(memory)).flatten();
        if instruction.is_some_and(|i| step::is_repeated(&i)) {
            Place::Repeat
        } else {
            Place::Boundary
        }
    }

    /// The exit to return, `exit` unless a performance counter has let the guest run past where it was to land.
    #[inline]
    pub(super) fn in_time(&self, until: u64, exit: Exit) -> Exit {
        match (self.counting, &self.landing) {
            (Counting::Pmu(_), Some(landing)) if self.icount >= until => landing
                .reached(self.icount)
                .map_or_else(passed_exit, |()| exit),
            _ => exit,
        }
    }

    /// Makes the next entry end behind the delivery of its event. Returns what the timer gets.
    fn only_deliver(&self) -> u64 {
        if self.counting.kind() == CounterKind::Tsc {
            return AT_ONCE;
        }
        // Elsewhere nobody knows how long the timer takes.
        apic::raise_timer_interrupt();
        self.counting.timer_ticks(STEP_TICKS)
    }

    fn kind_at(&self, memory: &GuestRam, rip: u64) -> Kind {
        let rflags = Rflags::from_bits_retain(self.vmcb.save.rflags);
        let long_mode = self.vmcb.save.efer & Efer::LMA.bits() != 0;
        // What cannot be read faults, or is executed from a translation that the tables no longer show.
        self.instruction_at(memory, rip)
            .map_or(Kind::Plain, |i| step::kind(&i, rflags, long_mode))
    }

    /// Sets the block for one instruction. Returns what the timer gets.
    fn begin_step(&mut self, memory: &GuestRam) -> u64 {
        let rip = self.vmcb.save.rip;
        let exceptions = self.vmcb.control.intercept_exceptions;
        let mut added = Intercepts1::empty();
        let kind = match self.kind_at(memory, rip) {
            Kind::Interrupt { vector, length } => {
                self.begin_interrupt(vector, length);
                return self.only_deliver();
            }
            Kind::LoadSs { length } => {
                added = SHOWING - self.vmcb.control.intercepts_1;
                let next = rip.wrapping_add(u64::from(length));
                step::behind_shadow(self.kind_at(memory, next))
            }
            kind => kind,
        };
        let mut registers = self.step_registers();
        let step = Step::begin(kind, &mut registers);
        self.set_step_registers(&registers);
        self.vmcb.control.intercept_exceptions |= WHILE_STEPPING;
        self.vmcb.intercept(added, true);
        self.under_way = Some(UnderWay {
            what: Under::Step { step, added },
            exceptions,
        });
        self.counting.timer_ticks(STEP_TICKS)
    }

    /// Sets the block for the repeated instruction at RIP, which may take `ticks`. Returns what the timer gets.
    fn begin_over(&mut self, memory: &GuestRam, ticks: u64) -> u64 {
        let (Some(address), Some(breakpoint)) =
            (self.behind(memory), Breakpoint::find(self.vmcb.save.dr7))
        else {
            // The guest uses them all: by its iterations.
            return self.begin_step(memory);
        };
        let exceptions = self.vmcb.control.intercept_exceptions;
        self.live
            .lend_breakpoint(breakpoint.register(), Some(address));
        self.vmcb.save.dr7 = breakpoint.dr7();
        self.vmcb.control.intercept_exceptions |= WHILE_STEPPING;
        self.vmcb
            .changed(CleanBits::INTERCEPTS | CleanBits::DEBUG_REGISTERS);
        self.overflow = BEHIND_REPEAT;
        self.under_way = Some(UnderWay {
            what: Under::Over(breakpoint),
            exceptions,
        });
        self.counting.timer_ticks(ticks)
    }

    /// Behind its exit: what the guest has not asked for becomes an interrupt of the host.
    fn end_over(&mut self, breakpoint: &Breakpoint) {
        self.live.lend_breakpoint(breakpoint.register(), None);
        self.vmcb.save.dr7 = breakpoint.guests_dr7();
        self.vmcb.changed(CleanBits::DEBUG_REGISTERS);
        if self.exit_code() != DEBUG {
            return;
        }
        let causes = (self.vmcb.save.dr6 ^ DR6_NEUTRAL) & DR6_CAUSES;
        self.vmcb.save.dr6 &= !breakpoint.cause();
        if breakpoint.guests_share(causes).is_none() {
            self.vmcb.save.dr6 = DR6_NEUTRAL;
            self.vmcb.save.rflags &= !Rflags::RF.bits();
            self.vmcb.control.exit_code = u64::from(ExitCode::INTR.0);
        }
    }

    /// Delivers an INT n as an event, with the guest's own flags; it counts as executed.
    fn begin_interrupt(&mut self, vector: u8, length: u8) {
        let rip = self.vmcb.save.rip;
        let exceptions = self.vmcb.control.intercept_exceptions;
        self.vmcb.control.intercept_exceptions |= WHILE_STEPPING;
        self.vmcb.changed(CleanBits::INTERCEPTS);
        self.vmcb.control.event_injection = arch::svm::event::encode(Event {
            vector,
            kind: EventKind::SoftwareInterrupt,
            error_code: None,
            instruction_length: length,
        });
        self.step_over(length);
        if self.saves_next_rip() {
            // What such a processor pushes.
            self.vmcb.control.next_rip = self.vmcb.save.rip;
        }
        self.under_way = Some(UnderWay {
            what: Under::Interrupt { rip },
            exceptions,
        });
    }

    fn saves_next_rip(&self) -> bool {
        self.capabilities.features.contains(SvmFeatures::NEXT_RIP)
    }

    fn step_registers(&self) -> Registers {
        Registers {
            rflags: Rflags::from_bits_retain(self.vmcb.save.rflags),
            r11: self.block.gprs[Gpr::R11],
            sfmask: self.vmcb.save.sfmask,
        }
    }

    fn set_step_registers(&mut self, registers: &Registers) {
        self.vmcb.save.rflags = registers.rflags.bits();
        self.block.gprs[Gpr::R11] = registers.r11;
        self.vmcb.save.sfmask = registers.sfmask;
    }

    /// Behind the exit of a step, before anything else looks at the block. A trap that the guest would not have had
    /// becomes an interrupt of the host.
    #[cold]
    #[inline(never)]
    pub(super) fn end_step(&mut self, memory: &mut GuestRam) {
        let Some(UnderWay { what, exceptions }) = self.under_way.take() else {
            return;
        };
        self.vmcb.control.intercept_exceptions = exceptions;
        self.vmcb.changed(CleanBits::INTERCEPTS);
        match what {
            Under::Interrupt { rip } => self.end_interrupt(rip),
            Under::Over(breakpoint) => self.end_over(&breakpoint),
            Under::Step { step, added } => {
                self.vmcb.intercept(added, false);
                self.end_instruction(memory, &step, added);
            }
        }
    }

    fn end_interrupt(&mut self, rip: u64) {
        let refused = self.exit_code() == ExitCode::INVALID;
        let cut_off = self.vmcb.control.exit_interrupt_info & 1 << 31 != 0;
        if refused || cut_off {
            // It runs again. What QEMU counted of one that was cut off is taken out of the count with it.
            self.vmcb.save.rip = rip;
            let counted = match self.counting {
                Counting::Tsc(_) => refused,
                Counting::Pmu(_) => true,
                Counting::ExitOrdinal { .. } => false,
            };
            if counted {
                self.icount = self.icount.wrapping_sub(1);
            }
        }
    }

    fn end_instruction(&mut self, memory: &mut GuestRam, step: &Step, added: Intercepts1) {
        let code = self.exit_code();
        let causes = (self.vmcb.save.dr6 ^ DR6_NEUTRAL) & DR6_CAUSES;
        let mut registers = self.step_registers();
        if code != DEBUG || causes & DR6_SINGLE_STEP == 0 {
            step.abandon(&mut registers);
            self.set_step_registers(&registers);
            self.leave_shadow_to_itself(code, added);
            return;
        }
        let traps = step.complete(&mut registers);
        self.set_step_registers(&registers);
        if step.image_shows_it() && !self.mend_image(memory) {
            // Pushed a moment ago to where nothing leads now.
            self.vmcb.control.exit_code = u64::from(ExitCode::BUSY.0);
        } else if !traps {
            self.vmcb.save.dr6 ^= DR6_SINGLE_STEP;
            self.vmcb.changed(CleanBits::DEBUG_REGISTERS);
            if causes == DR6_SINGLE_STEP {
                self.vmcb.control.exit_code = u64::from(ExitCode::INTR.0);
            }
        }
    }

    /// An instruction behind a load of SS has exited only because of the step: it is stepped by itself.
    fn leave_shadow_to_itself(&mut self, code: ExitCode, added: Intercepts1) {
        let only_for_step = match code {
            ExitCode::PUSHF | ExitCode::POPF | ExitCode::INT_N => true,
            ExitCode::IRET => self.events.nmi != Nmi::Blocked,
            _ => false,
        };
        if !only_for_step || added.is_empty() {
            return;
        }
        if code == ExitCode::INT_N && self.counting.kind() == CounterKind::Tsc {
            // QEMU has counted it.
            self.icount = self.icount.wrapping_sub(1);
        }
        self.vmcb.control.exit_code = u64::from(ExitCode::INTR.0);
    }

    /// Takes TF out of the flags on top of the guest's stack. False if they are not there.
    fn mend_image(&self, memory: &mut GuestRam) -> bool {
        let rsp = self.block.gprs[Gpr::Rsp];
        // TF is the lowest bit of the second byte.
        let linear = if self.is_64_bit() {
            rsp.wrapping_add(1)
        } else {
            let ss = self.segment_of(SegmentName::Ss);
            let big = ss.attributes.contains(SegmentAttributes::BIG);
            let mask = if big { 0xffff_ffff } else { 0xffff };
            ss.base.wrapping_add(rsp.wrapping_add(1) & mask) & 0xffff_ffff
        };
        let access = Access {
            write: true,
            execute: false,
            user: self.vmcb.save.cpl == 3,
        };
        let mut byte = [0];
        let paging = self.paging_registers();
        translate(memory, &paging, Gva(linear), access).is_ok_and(|gpa| {
            let read = memory.read(gpa, &mut byte).is_ok();
            read && memory.write(gpa, &[byte[0] & !1]).is_ok()
        })
    }

    /// Whether the guest stands where no landing is.
    pub(super) fn has_to_leave_shadow(&self) -> bool {
        self.landing.is_some() && self.in_shadow()
    }
}
