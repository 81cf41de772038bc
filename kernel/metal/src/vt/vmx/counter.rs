//! Counting guest instructions and stopping after a given number of them.
//!
//! In an emulator whose TSC ticks once per retired instruction, the ticks between the two RDTSC of `entry`
//! are a constant and the guest's instructions. The constant is measured with a guest whose first
//! instruction exits. Where measurements disagree, a performance counter is tried the same way, then with landings from
//! afar, and at last exits are counted instead.
//!
//! The rules (measured in Bochs 2.7 with `count=1`): a VM entry and a VM exit cost one tick each, and so does
//! each attempt of the guest that ends in a fault. Delivery of an event is free. When an exit cuts off the
//! delivery of an event that the guest's own instruction caused, that instruction's tick is missing, and
//! delivering the event again at the next entry is free; so it is added at the exit. An exit during the
//! delivery at the entry itself takes the place of the entry's tick.

use alloc::boxed::Box;

use arch::addr::{Gpa, LARGE_PAGE_SIZE};
use arch::regs::CpuState;
use arch::vmx::event;
use vmm::cpu::{CounterKind, Exit, Icount, Vcpu as _};
use vmm::memory::GuestMemory;
use vmm::pmu::intel::{Counter, PREFER_EXIT_NS};

use super::entry::Frame;
use super::{NewError, Vcpu, Vmx, pmu};
use crate::guest_ram::GuestRam;
use crate::time;
use crate::vt::{Uncounted, trial};

/// How instructions are counted.
#[derive(Clone, Copy, Debug)]
pub enum Method {
    /// By the TSC.
    Tsc,
    /// By the TSC, and landings are stepped: the test switch.
    SteppedTsc,
    /// By a performance counter; landings are stepped.
    Pmu(&'static Programmed),
    /// Not at all: deterministic exits are counted.
    ExitOrdinal,
}

/// A performance counter that counts.
#[derive(Clone, Copy, Debug)]
pub struct Programmed {
    /// Which.
    pub counter: Counter,
    /// What it counts around a guest that executes nothing.
    pub overhead: u64,
    /// Instructions worth waiting for an exit: those of [`PREFER_EXIT_NS`], if each takes a tick.
    pub prefer_exit: u64,
}

/// How instructions are counted, and what belongs to the host of it.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    /// How.
    pub(super) method: Method,
    /// Ticks from the RDTSC before an entry to the one behind the exit when the guest executes nothing, where that is
    /// known.
    pub(super) overhead: u64,
}

/// The most that the preemption timer can be set to.
const TIMER_MAX: u64 = u32::MAX as u64;

impl Counting {
    /// Counting exits.
    pub(super) const EXIT_ORDINAL: Self = Self {
        method: Method::ExitOrdinal,
        overhead: 0,
    };

    /// In the seam's words.
    pub(super) const fn kind(&self) -> CounterKind {
        match self.method {
            Method::Tsc | Method::SteppedTsc => CounterKind::Tsc,
            Method::Pmu(_) => CounterKind::Pmu,
            Method::ExitOrdinal => CounterKind::ExitOrdinal,
        }
    }

    /// Whether instructions are counted.
    #[inline]
    pub(super) const fn counts(&self) -> bool {
        !matches!(self.method, Method::ExitOrdinal)
    }

    /// What the entry that has just ended took beyond its own cost: where the TSC counts, instructions. One less than
    /// none, wrapped, if the exit came during the delivery of an event at the entry.
    #[inline]
    pub(super) const fn ticks(&self, frame: &Frame) -> u64 {
        frame
            .exit_tsc
            .wrapping_sub(frame.entry_tsc)
            .wrapping_sub(self.overhead)
    }

    /// What an exit of a kind that can hit an event's delivery adds to the instructions counted.
    pub(super) fn correction(&self, frame: &Frame, idt_vectoring: u32) -> u64 {
        match self.method {
            Method::ExitOrdinal => 0,
            Method::Tsc | Method::SteppedTsc if self.ticks(frame) == u64::MAX => 1,
            Method::Tsc | Method::SteppedTsc => cut_off(idt_vectoring, FIRST_OF_THE_GUEST),
            // An attempt that ends in a fault retires nothing.
            Method::Pmu(_) => cut_off(idt_vectoring, FIRST_BY_INSTRUCTION),
        }
    }
}

/// Preemption-timer value that stops the guest after `instructions`, or earlier when `budget` TSC ticks are used up, where
/// the TSC counts: a value of n + 1 stops behind n instructions; with 0 left only a pending event is delivered.
#[inline]
pub(super) fn timer(instructions: u64, budget: u64) -> u32 {
    (instructions.min(budget).min(TIMER_MAX - 1) + 1) as u32
}

/// Preemption-timer value that stops the guest when `budget` TSC ticks are used up.
pub(super) fn bound(budget: u64, shift: u32) -> u32 {
    (budget >> shift).saturating_add(1).min(TIMER_MAX) as u32
}

/// The first type of an event of the guest's own making: everything but interrupts and NMIs.
const FIRST_OF_THE_GUEST: u32 = 3;
/// The first type of an event that an instruction is there to raise: everything but exceptions, too.
const FIRST_BY_INSTRUCTION: u32 = 4;

/// 1 if the exit cut off an event of this type or a later one.
fn cut_off(idt_vectoring: u32, first: u32) -> u64 {
    let valid = idt_vectoring & event::VALID != 0;
    u64::from(valid && event::kind_bits(idt_vectoring) >= first)
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

/// Finds out whether this processor counts in this way.
///
/// # Errors
///
/// Why it does not.
pub(super) fn calibrate(vmx: &Vmx, way: CounterKind) -> Result<Counting, Uncounted<NewError>> {
    let mut memory = GuestRam::new(LARGE_PAGE_SIZE).map_err(|_| NewError::OutOfMemory)?;
    match way {
        CounterKind::Tsc => {
            let by_tsc = |overhead| Counting {
                method: Method::Tsc,
                overhead,
            };
            try_counting(vmx, &mut memory, by_tsc)?.ok_or(Uncounted::Because(
                "it does not tick once for each instruction",
            ))
        }
        CounterKind::Pmu => by_pmu(vmx, &mut memory),
        CounterKind::ExitOrdinal => Ok(Counting::EXIT_ORDINAL),
    }
}

fn by_pmu(vmx: &Vmx, memory: &mut GuestRam) -> Result<Counting, Uncounted<NewError>> {
    let counter =
        pmu::detect(&vmx.capabilities).map_err(|lack| Uncounted::Because(lack.reason()))?;
    pmu::set_up(&counter);
    let with = |overhead| Counting {
        // Found at start, used for good.
        method: Method::Pmu(Box::leak(Box::new(Programmed {
            counter,
            overhead,
            prefer_exit: time::ticks(PREFER_EXIT_NS),
        }))),
        overhead: 0,
    };
    let counting = try_counting(vmx, memory, with)?.ok_or(Uncounted::Because(
        "it does not count guests of known length exactly",
    ))?;
    let mut vcpu = Vcpu::counting(vmx, counting)?;
    if !trial::lands(&mut vcpu, memory, counter.margin()) {
        return Err(Uncounted::Because("it does not stop a guest in time"));
    }
    Ok(counting)
}

/// Measures what is counted around a guest that executes nothing, and whether the rest is right then.
fn try_counting(
    vmx: &Vmx,
    memory: &mut GuestRam,
    with: impl Fn(u64) -> Counting,
) -> Result<Option<Counting>, NewError> {
    let mut vcpu = Vcpu::counting(vmx, with(0))?;
    let Some(overhead) = overhead(&mut vcpu, memory) else {
        return Ok(None);
    };
    vcpu.counting = with(overhead);
    let exact = counts_exactly(&mut vcpu, memory) && lands_exactly(&mut vcpu, memory);
    Ok(exact.then_some(vcpu.counting))
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
        let counted = match vcpu.counting.method {
            Method::Pmu(_) => vcpu.retired_otherwise(),
            _ => vcpu.counting.ticks(&vcpu.frame),
        };
        if *constant.get_or_insert(counted) != counted {
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
