//! Over a repeated string instruction in one go, to a breakpoint of the host's own behind it: [`vmm::pmu::breakpoint`].
//!
//! A fault in an iteration would lead the guest elsewhere, so every exception exits meanwhile, and those that do so only
//! for this are given to the guest by the next entry. Where there is no free register the iterations are stepped.

use arch::event::vector;
use arch::regs::{Paging, Rflags, SegmentName};
use arch::vmx::control::Interruptibility;
use arch::vmx::exit::{ExitReason, debug_exception_bits};
use arch::vmx::{event as format, field};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use vmm::code::{CodeContext, fetch};
use vmm::cpu::{Exit, Vcpu as _};
use vmm::pmu::breakpoint::Breakpoint;
use vmm::pmu::landing::Place;
use vmm::pmu::step;

use super::counter::Method;
use super::live;
use super::setup::INTERCEPTED_EXCEPTIONS;
use super::vcpu::Vcpu;
use crate::guest_ram::GuestRam;
use crate::x86;

/// A breakpoint that is set for one entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    breakpoint: Breakpoint,
    /// What its register holds of the guest's.
    guests_address: u64,
}

impl Vcpu {
    /// Where the guest stands.
    pub(super) fn place(&self, memory: &GuestRam) -> Place {
        // In a shadow breakpoints may be overlooked; one step ends it.
        let shadow = Interruptibility::STI | Interruptibility::MOV_SS;
        let at_once = self.pending.is_none() && !self.interruptibility().intersects(shadow);
        let instruction = at_once
            .then(|| self.instruction(memory, &self.code_context(self.rip, &self.read_paging())))
            .flatten();
        if instruction.is_some_and(|i| step::is_repeated(&i)) {
            Place::Repeat
        } else {
            Place::Boundary
        }
    }

    fn code_context<'a>(&self, rip: u64, paging: &'a Paging) -> CodeContext<'a> {
        CodeContext {
            paging,
            cs_base: self.segment_base(SegmentName::Cs),
            cs_attributes: self.read_attributes(SegmentName::Cs),
            cpl: self.cpl(),
            rip,
        }
    }

    fn instruction(&self, memory: &GuestRam, context: &CodeContext<'_>) -> Option<Instruction> {
        let code = fetch(memory, context).ok()?;
        let bytes = code.bytes.get(..usize::from(code.length))?;
        let instruction =
            Decoder::with_ip(context.bitness(), bytes, context.rip, DecoderOptions::NONE).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// The linear address behind the instruction at RIP. `None`: there is none, the offset does not reach that far.
    fn behind(&self, memory: &GuestRam) -> Option<u64> {
        let paging = self.read_paging();
        let here = self.code_context(self.rip, &paging);
        let length = self.instruction(memory, &here)?.len() as u64;
        let rip = self.rip.checked_add(length)?;
        let bits = here.bitness();
        if bits < u64::BITS && rip >> bits != 0 {
            return None;
        }
        Some(self.code_context(rip, &paging).linear().0)
    }

    /// Sets the breakpoint behind the instruction at RIP for the next entry. False: there is none to be had.
    pub(super) fn begin_over(&mut self, memory: &GuestRam) -> bool {
        let Some(address) = self.behind(memory) else {
            return false;
        };
        let Some(breakpoint) = Breakpoint::find(self.vmcs.read(field::GUEST_DR7)) else {
            return false;
        };
        self.own();
        let guests_address = live::exchange_breakpoint(breakpoint.register(), address);
        self.vmcs.set(field::GUEST_DR7, breakpoint.dr7());
        // SAFETY: more exceptions exit; `end_over` handles all of them.
        unsafe { self.vmcs.write(field::EXCEPTION_BITMAP, u32::MAX) };
        self.over = Some(Over {
            breakpoint,
            guests_address,
        });
        true
    }

    /// Behind the exit, before anything else looks at the guest: takes the breakpoint back. True: the exit was only for
    /// it, and the guest goes on.
    ///
    /// # Errors
    ///
    /// The exit to return instead of the one that has come.
    #[cold]
    pub(super) fn end_over(&mut self, reason: ExitReason) -> Result<bool, Exit> {
        let Some(breakpoint) = self.take_back_breakpoint() else {
            return Ok(false);
        };
        if reason != ExitReason::EXCEPTION_OR_NMI {
            return Ok(false);
        }
        let info = self.vmcs.read(field::EXIT_INTERRUPTION_INFO);
        let number = format::vector_of(info);
        match number {
            // It exits by the same bit as exceptions do.
            vector::NMI => Ok(false),
            vector::DB => Ok(self.is_only_breakpoint(&breakpoint)),
            _ if INTERCEPTED_EXCEPTIONS & 1 << number != 0 => Ok(false),
            _ => self.reflect(info),
        }
    }

    /// Gives the guest its debug registers back, and exits for exceptions as ever.
    pub(super) fn take_back_breakpoint(&mut self) -> Option<Breakpoint> {
        let Over {
            breakpoint,
            guests_address,
        } = self.over.take()?;
        live::exchange_breakpoint(breakpoint.register(), guests_address);
        self.vmcs.set(field::GUEST_DR7, breakpoint.guests_dr7());
        // SAFETY: what always exits.
        unsafe {
            self.vmcs
                .write(field::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS);
        }
        Some(breakpoint)
    }

    /// Whether the #DB of the last exit is none of the guest's. Else what the breakpoint adds to it is hidden.
    fn is_only_breakpoint(&mut self, breakpoint: &Breakpoint) -> bool {
        let causes = debug_exception_bits(self.vmcs.read(field::EXIT_QUALIFICATION));
        if breakpoint.guests_share(causes).is_some() {
            self.hidden_causes = breakpoint.cause();
            return false;
        }
        // The exit stores it as the exception would have pushed it, set (SDM 3 29.3.3); the repeated instruction, which
        // has ended, cleared it.
        self.store_rflags(self.rflags - Rflags::RF);
        true
    }

    /// Gives the guest an exception that exits for no reason of its own.
    fn reflect(&mut self, info: u32) -> Result<bool, Exit> {
        let event = format::decode(
            info,
            || self.vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE),
            || self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH),
        );
        let Some(event) = event else {
            return Ok(false);
        };
        if event.vector == vector::PF {
            // SAFETY: CR2 means nothing to the host but in a page fault, which ends it.
            unsafe { x86::set_cr2(self.vmcs.read(field::EXIT_QUALIFICATION)) };
        }
        if matches!(self.counting.method, Method::SteppedTsc) {
            // Delivered by the processor it would have taken a tick.
            self.icount = self.icount.wrapping_add(1);
        }
        if self.queue_event(event) {
            Ok(true)
        } else {
            Err(Exit::TripleFault)
        }
    }
}
