//! Counting guest instructions and stopping after a given number of them.
//!
//! In an emulator whose TSC ticks once per retired instruction, the ticks between the two RDTSC of `entry`
//! are a constant and the guest's instructions. The constant is measured with a guest whose first
//! instruction exits. Where measurements disagree, exits are counted instead.
//!
//! The rules (measured in Bochs 2.7 with `count=1`): a VM entry and a VM exit cost one tick each, and so does
//! each attempt of the guest that ends in a fault. Delivery of an event is free. When an exit cuts off the
//! delivery of an event that the guest's own instruction caused, that instruction's tick is missing, and
//! delivering the event again at the next entry is free; so it is added at the exit. An exit during the
//! delivery at the entry itself takes the place of the entry's tick.

use arch::addr::{Gpa, LARGE_PAGE_SIZE};
use arch::regs::CpuState;
use arch::vmx::event;
use vmm::cpu::{CounterKind, Exit, Icount, Vcpu as _};
use vmm::memory::GuestMemory;

use super::entry::Frame;
use super::{NewError, Vcpu, Vmx};
use crate::guest_ram::GuestRam;

/// How instructions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// By the TSC.
    Tsc {
        /// Ticks from the RDTSC before an entry to the one behind the exit when the guest executes nothing.
        overhead: u64,
    },
    /// Not at all: deterministic exits are counted.
    ExitOrdinal,
}

/// The most that the preemption timer can be set to.
const TIMER_MAX: u64 = u32::MAX as u64;

impl Counting {
    /// In the seam's words.
    pub(super) const fn kind(self) -> CounterKind {
        match self {
            Counting::Tsc { .. } => CounterKind::Tsc,
            Counting::ExitOrdinal => CounterKind::ExitOrdinal,
        }
    }

    /// Preemption-timer value that stops the guest after `instructions`, or earlier when `budget` TSC ticks
    /// are used up.
    #[inline]
    pub(super) fn timer(self, instructions: u64, budget: u64, shift: u32) -> u32 {
        let value = match self {
            // A value of n + 1 stops behind n instructions; with 0 left only a pending event is delivered.
            Counting::Tsc { .. } => instructions.min(budget).min(TIMER_MAX - 1) + 1,
            Counting::ExitOrdinal => (budget >> shift).saturating_add(1).min(TIMER_MAX),
        };
        value as u32
    }

    /// Instructions retired in the entry that has just ended. One less than none, wrapped, if the exit came
    /// during the delivery of an event at the entry.
    #[inline]
    pub(super) const fn retired(self, frame: &Frame) -> u64 {
        match self {
            Counting::Tsc { overhead } => frame
                .exit_tsc
                .wrapping_sub(frame.entry_tsc)
                .wrapping_sub(overhead),
            Counting::ExitOrdinal => 0,
        }
    }

    /// What an exit of a kind that can hit an event's delivery adds to [`Counting::retired`].
    pub(super) fn correction(self, frame: &Frame, idt_vectoring: u32) -> u64 {
        if self == Counting::ExitOrdinal {
            0
        } else if self.retired(frame) == u64::MAX {
            1
        } else {
            cut_off_attempt(idt_vectoring)
        }
    }

    /// Host ticks that the entry itself cost.
    #[inline]
    pub(super) const fn entry_overhead(self) -> u64 {
        match self {
            Counting::Tsc { overhead } => overhead,
            Counting::ExitOrdinal => 0,
        }
    }
}

/// 1 if the exit cut off an event of the guest's own making: everything but interrupts and NMIs.
fn cut_off_attempt(idt_vectoring: u32) -> u64 {
    const FIRST_OF_THE_GUEST: u32 = 3;
    let valid = idt_vectoring & event::VALID != 0;
    u64::from(valid && event::kind_bits(idt_vectoring) >= FIRST_OF_THE_GUEST)
}

/// Where the calibration guests' code lies.
const CODE: u16 = 0x1000;
/// VMCALL, alone.
const EXIT_AT_ONCE: &[u8] = &[0x0f, 0x01, 0xc1];
/// `mov cx, 1000; 1: loop 1b; vmcall`.
const LOOP: &[u8] = &[0xb9, 0xe8, 0x03, 0xe2, 0xfe, 0x0f, 0x01, 0xc1];
/// Instructions of [`LOOP`] before the VMCALL.
const LOOP_INSTRUCTIONS: u64 = 1001;
/// How often each measurement has to come out the same.
const REPEATS: u32 = 8;
/// Budget that no calibration guest uses up, in TSC ticks.
const BUDGET: u64 = 1 << 32;

/// Finds out how to count on this processor.
pub(super) fn calibrate(vmx: &Vmx) -> Result<Counting, NewError> {
    let mut memory = GuestRam::new(LARGE_PAGE_SIZE).map_err(|_| NewError::OutOfMemory)?;
    let mut vcpu = Vcpu::new(vmx)?;
    vcpu.counting = Counting::Tsc { overhead: 0 };
    let Some(overhead) = overhead(&mut vcpu, &mut memory) else {
        return Ok(Counting::ExitOrdinal);
    };
    vcpu.counting = Counting::Tsc { overhead };
    if counts_exactly(&mut vcpu, &mut memory) && lands_exactly(&mut vcpu, &mut memory) {
        Ok(vcpu.counting)
    } else {
        Ok(Counting::ExitOrdinal)
    }
}

/// Prepares a calibration guest; false if its code does not fit its memory.
fn load(vcpu: &mut Vcpu, memory: &mut GuestRam, code: &[u8]) -> bool {
    vcpu.restore(&CpuState::real_mode(CODE));
    memory.write(Gpa(u64::from(CODE)), code).is_ok()
}

fn overhead(vcpu: &mut Vcpu, memory: &mut GuestRam) -> Option<u64> {
    let mut constant = None;
    // The first round maps the guest's memory: its last entry is measured like the others.
    for _ in 0..REPEATS {
        let loaded = load(vcpu, memory, EXIT_AT_ONCE);
        if !loaded || vcpu.run(memory, Icount::NEVER, BUDGET) != Exit::Hypercall {
            return None;
        }
        let ticks = vcpu.frame.exit_tsc.wrapping_sub(vcpu.frame.entry_tsc);
        if *constant.get_or_insert(ticks) != ticks {
            return None;
        }
    }
    constant
}

fn counts_exactly(vcpu: &mut Vcpu, memory: &mut GuestRam) -> bool {
    (0..REPEATS).all(|_| {
        load(vcpu, memory, LOOP)
            && vcpu.run(memory, Icount::NEVER, BUDGET) == Exit::Hypercall
            && vcpu.icount() == Icount(LOOP_INSTRUCTIONS)
    })
}

fn lands_exactly(vcpu: &mut Vcpu, memory: &mut GuestRam) -> bool {
    if !load(vcpu, memory, LOOP) {
        return false;
    }
    for step in 1.. {
        let target = vcpu.icount().after(step);
        let exit = vcpu.run(memory, target, BUDGET);
        if exit == Exit::Hypercall {
            break;
        }
        if exit != Exit::Landed || vcpu.icount() != target {
            return false;
        }
    }
    vcpu.icount() == Icount(LOOP_INSTRUCTIONS)
}
