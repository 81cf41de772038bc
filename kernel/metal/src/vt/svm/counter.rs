//! Counting the guest's instructions and stopping at one, with the time-stamp counter and the LAPIC timer.
//!
//! In QEMU with `-icount shift=0` both tick once for each instruction that any code retires. The path from the read of
//! the counter to VMRUN and from the exit to the next read has a fixed length, so
//!
//! - instructions of the guest = difference of the two reads − [`Constants::overhead`];
//! - a timer written with `n` + [`Constants::lead`] fires behind exactly `n` instructions of the guest.
//!
//! What does not follow from that: an intercepted instruction is not counted, nor is one that faulted or the delivery
//! of an event; REP counts once for each iteration and once more; RDTSCP is counted although intercepted, and
//! so is an INT n whose delivery exits. The last two are put right where they are noticed.
//!
//! Elsewhere the counter is no instruction counter. Then exits are counted, and the timer only bounds an entry.

use arch::addr::Gpa;
use arch::regs::CpuState;
use arch::svm::exit::ExitCode;
use vmm::cpu::CounterKind;
use vmm::memory::GuestMemory;

use super::exit::Next;
use super::vcpu::{NewError, Vcpu};
use super::{Svm, entry};
use crate::guest_ram::GuestRam;
use crate::{apic, x86};

/// Lengths of the fixed paths, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    /// Ticks between the two reads when the guest executes nothing.
    pub overhead: u64,
    /// Ticks that the timer runs before the guest's first instruction.
    pub lead: u64,
}

/// How instructions are counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// By the time-stamp counter.
    Tsc(Constants),
    /// Not at all: exits are counted.
    ExitOrdinal {
        /// LAPIC timer ticks for each 2¹⁶ ticks of the time-stamp counter.
        timer_ratio: u64,
    },
}

/// Longest entry in ticks; the timer has 32 bits, and a host that wants the processor back sooner says so.
const LONGEST: u64 = 1 << 31;
/// Shortest entry in timer ticks where it needs not be exact: the guest has to make progress.
const SHORTEST: u64 = 2000;

impl Counting {
    /// Counting exits.
    pub(super) fn exit_ordinal() -> Self {
        Self::ExitOrdinal {
            timer_ratio: timer_ratio(),
        }
    }

    /// The kind the seam knows.
    pub const fn kind(&self) -> CounterKind {
        match self {
            Self::Tsc(_) => CounterKind::Tsc,
            Self::ExitOrdinal { .. } => CounterKind::ExitOrdinal,
        }
    }

    /// What to write to the timer so that the guest runs for `ticks`.
    #[inline]
    pub(super) fn timer_ticks(&self, ticks: u64) -> u64 {
        match self {
            Self::Tsc(constants) => ticks.min(LONGEST).wrapping_add(constants.lead),
            Self::ExitOrdinal { timer_ratio } => (ticks.min(LONGEST).wrapping_mul(*timer_ratio)
                >> 16)
                .clamp(SHORTEST, u64::from(u32::MAX)),
        }
    }
}

impl Vcpu {
    /// Enters the guest with what the block has for the timer and returns the number of instructions that were counted,
    /// which is 0 where they are not.
    #[inline]
    pub(super) fn enter(&mut self) -> u64 {
        let left_at = self.block.tsc_exit;
        // SAFETY: SVM is on, or there would be no `self`. The addresses in the block are those of the pages that
        // `self` and the processor own; the nested tables map guest RAM only, and the control block
        // intercepts all that reaches beyond the guest's own registers. Interrupts are masked in all Rust code.
        unsafe { entry::enter(&raw mut self.block) };
        self.vmcb.control.clean_bits = self.clean_after_exit;
        self.counts.entries = self.counts.entries.wrapping_add(1);
        let between = self.block.tsc_entry.wrapping_sub(left_at);
        let elapsed = self.block.tsc_exit.wrapping_sub(self.block.tsc_entry);
        let (overhead, retired) = match self.counting {
            Counting::Tsc(Constants { overhead, .. }) => {
                (overhead, elapsed.saturating_sub(overhead))
            }
            Counting::ExitOrdinal { .. } => (0, 0),
        };
        if left_at != 0 {
            let ticks = if self.after_ram_fault {
                &mut self.counts.ram_fault_ticks
            } else {
                &mut self.counts.host_ticks
            };
            *ticks = ticks.wrapping_add(between).wrapping_add(overhead);
        }
        self.after_ram_fault = false;
        self.icount = self.icount.wrapping_add(retired);
        retired
    }
}

/// Where the calibration guests lie.
const CODE: u16 = 0x1000;
/// NOPs in front of the second guest's HLT.
const SLED: usize = 0x8000;
const NOP: u8 = 0x90;
const HLT: u8 = 0xf4;
/// Timer values tried, from a little more than the lead up.
const TRIALS: u64 = 32;

/// One entry of a calibration guest.
struct Probe {
    code: ExitCode,
    /// Ticks between the two reads.
    elapsed: u64,
    /// Instructions the guest executed, by its RIP.
    executed: u64,
}

fn probe(vcpu: &mut Vcpu, memory: &mut GuestRam, timer_ticks: u64) -> Probe {
    let state = CpuState::real_mode(CODE);
    loop {
        vcpu.restore_state(&state);
        if vcpu.prepare().is_err() {
            return Probe {
                code: ExitCode::INVALID,
                elapsed: 0,
                executed: 0,
            };
        }
        vcpu.counting = Counting::ExitOrdinal { timer_ratio: 0 };
        vcpu.block.timer_ticks = timer_ticks;
        vcpu.enter();
        let code = vcpu.exit_code();
        vcpu.settle(0);
        // The first entry finds the RAM not mapped yet.
        if matches!(vcpu.dispatch(memory), Next::Again) {
            continue;
        }
        return Probe {
            code,
            elapsed: vcpu.block.tsc_exit.wrapping_sub(vcpu.block.tsc_entry),
            executed: vcpu.vmcb.save.rip.wrapping_sub(u64::from(CODE)),
        };
    }
}

/// Runs guests of known length. Whatever does not fit the model above means that exits are counted.
///
/// # Errors
///
/// No memory for the guests.
pub(super) fn calibrate(svm: &Svm) -> Result<Counting, NewError> {
    let mut memory = GuestRam::new(1 << 20).map_err(|_| NewError::OutOfMemory)?;
    let mut vcpu = Vcpu::new(svm)?;
    let constants = constants(&mut vcpu, &mut memory);
    Ok(match constants {
        Some(constants) => Counting::Tsc(constants),
        None => Counting::exit_ordinal(),
    })
}

fn put(memory: &mut GuestRam, at: usize, bytes: &[u8]) -> bool {
    memory.write(Gpa(at as u64), bytes).is_ok()
}

fn constants(vcpu: &mut Vcpu, memory: &mut GuestRam) -> Option<Constants> {
    let code = usize::from(CODE);
    if !put(memory, code, &[HLT]) {
        return None;
    }
    const PLENTY: u64 = 1 << 20;
    let overhead = probe(vcpu, memory, PLENTY).elapsed;
    for _ in 0..4 {
        let again = probe(vcpu, memory, PLENTY);
        if again.code != ExitCode::HLT || again.elapsed != overhead || again.executed != 0 {
            return None;
        }
    }
    for at in (code..code + SLED).step_by(256) {
        if !put(memory, at, &[NOP; 256]) {
            return None;
        }
    }
    if !put(memory, code + SLED, &[HLT]) {
        return None;
    }
    let mut lead = None;
    for trial in 0..TRIALS {
        let ticks = SHORTEST + trial * 797;
        let stopped = probe(vcpu, memory, ticks);
        let this = ticks.checked_sub(stopped.executed)?;
        if stopped.code != ExitCode::INTR
            || stopped.executed == 0
            || stopped.elapsed != overhead.wrapping_add(stopped.executed)
            || *lead.get_or_insert(this) != this
        {
            return None;
        }
    }
    Some(Constants {
        overhead,
        lead: lead?,
    })
}

/// LAPIC timer ticks for each 2¹⁶ ticks of the time-stamp counter, measured.
fn timer_ratio() -> u64 {
    const SPAN: u64 = 1 << 22;
    apic::timer_arm_oneshot(u32::MAX);
    let start = x86::rdtsc();
    while x86::rdtsc().wrapping_sub(start) < SPAN {
        x86::pause();
    }
    let span = x86::rdtsc().wrapping_sub(start);
    let ticks = u64::from(u32::MAX - apic::timer_remaining());
    apic::timer_disarm();
    (ticks << 16) / span.max(1)
}
