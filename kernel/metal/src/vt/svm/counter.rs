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
//! Elsewhere the counter is no instruction counter. Then a performance counter is tried, or exits are counted, and the timer
//! only bounds an entry. What a performance counter counts besides the guest's instructions has to be the same at every
//! entry, whatever ends it.

use alloc::boxed::Box;

use arch::addr::Gpa;
use arch::regs::CpuState;
use arch::svm::exit::ExitCode;
use vmm::cpu::CounterKind;
use vmm::memory::GuestMemory;

use super::exit::Next;
use super::pmu::{self, Programmed};
use super::vcpu::{NewError, Vcpu};
use super::{Svm, entry};
use crate::guest_ram::GuestRam;
use crate::vt::{Uncounted, trial};
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
    /// By a performance counter; landings are stepped.
    Pmu(&'static Programmed),
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
            Self::Pmu(_) => CounterKind::Pmu,
            Self::ExitOrdinal { .. } => CounterKind::ExitOrdinal,
        }
    }

    /// Whether instructions are counted.
    #[inline]
    pub(super) const fn counts(&self) -> bool {
        !matches!(self, Self::ExitOrdinal { .. })
    }

    /// What to write to the timer so that the guest runs for `ticks`.
    #[inline]
    pub(super) fn timer_ticks(&self, ticks: u64) -> u64 {
        let timer_ratio = match self {
            Self::Tsc(constants) => return ticks.min(LONGEST).wrapping_add(constants.lead),
            Self::Pmu(Programmed { timer_ratio, .. }) | Self::ExitOrdinal { timer_ratio } => {
                *timer_ratio
            }
        };
        (ticks.min(LONGEST).wrapping_mul(timer_ratio) >> 16).clamp(SHORTEST, u64::from(u32::MAX))
    }
}

impl Vcpu {
    /// Enters the guest with what the block has for the timer and returns the number of instructions that were counted,
    /// which is 0 where they are not.
    #[inline]
    pub(super) fn enter(&mut self) -> u64 {
        let left_at = self.block.tsc_exit;
        let counted = match self.counting {
            Counting::Pmu(pmu) => Some((pmu, pmu.begin(self.overflow))),
            Counting::Tsc(_) | Counting::ExitOrdinal { .. } => None,
        };
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
            Counting::Pmu(_) | Counting::ExitOrdinal { .. } => {
                (0, counted.map_or(0, |(pmu, entry)| pmu.end(&entry)))
            }
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

/// Timer value that no calibration guest uses up.
const PLENTY: u64 = 1 << 20;

/// One entry of a calibration guest.
struct Probe {
    code: ExitCode,
    /// Ticks between the two reads.
    elapsed: u64,
    /// Instructions the guest executed, by its RIP.
    executed: u64,
    /// The same by a performance counter, with the host's share if that is not known yet.
    retired: u64,
}

/// Enters a guest at [`CODE`]; `before` is done right before.
fn probe_after(
    vcpu: &mut Vcpu,
    memory: &mut GuestRam,
    timer_ticks: u64,
    before: impl Fn(),
) -> Probe {
    let state = CpuState::real_mode(CODE);
    loop {
        vcpu.restore_state(&state);
        if vcpu.prepare().is_err() {
            return Probe {
                code: ExitCode::INVALID,
                elapsed: 0,
                executed: 0,
                retired: 0,
            };
        }
        vcpu.block.timer_ticks = timer_ticks;
        before();
        let retired = vcpu.enter();
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
            retired,
        };
    }
}

fn probe(vcpu: &mut Vcpu, memory: &mut GuestRam, timer_ticks: u64) -> Probe {
    probe_after(vcpu, memory, timer_ticks, || ())
}

/// Runs guests of known length. What does not fit the model above cannot be used.
///
/// # Errors
///
/// Why instructions cannot be counted that way.
pub(super) fn calibrate(svm: &Svm, way: CounterKind) -> Result<Counting, Uncounted<NewError>> {
    let mut memory = GuestRam::new(1 << 20).map_err(|_| NewError::OutOfMemory)?;
    let mut vcpu = Vcpu::new(svm)?;
    match way {
        CounterKind::Tsc => {
            constants(&mut vcpu, &mut memory)
                .map(Counting::Tsc)
                .ok_or(Uncounted::Because(
                    "it does not tick once for each instruction",
                ))
        }
        CounterKind::Pmu => by_pmu(svm, &mut vcpu, &mut memory),
        CounterKind::ExitOrdinal => Ok(Counting::exit_ordinal()),
    }
}

fn put(memory: &mut GuestRam, at: usize, bytes: &[u8]) -> bool {
    memory.write(Gpa(at as u64), bytes).is_ok()
}

/// NOPs, and a HLT.
fn put_sled(memory: &mut GuestRam) -> bool {
    let end = usize::from(CODE) + SLED;
    let mut nops = (usize::from(CODE)..end).step_by(256);
    nops.all(|at| put(memory, at, &[NOP; 256])) && put(memory, end, &[HLT])
}

fn constants(vcpu: &mut Vcpu, memory: &mut GuestRam) -> Option<Constants> {
    let code = usize::from(CODE);
    if !put(memory, code, &[HLT]) {
        return None;
    }
    let overhead = probe(vcpu, memory, PLENTY).elapsed;
    for _ in 0..4 {
        let again = probe(vcpu, memory, PLENTY);
        if again.code != ExitCode::HLT || again.elapsed != overhead || again.executed != 0 {
            return None;
        }
    }
    if !put_sled(memory) {
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

/// Guests whose first instruction exits: HLT, CPUID, VMMCALL, RDMSR, and a NOP in front of which an interrupt is pending.
const NOTHING: [&[u8]; 5] = [
    &[HLT],
    &[0x0f, 0xa2],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x32],
    &[NOP],
];

/// Counts by a performance counter, if it counts guests of known length exactly and stops them in time.
fn by_pmu(
    svm: &Svm,
    vcpu: &mut Vcpu,
    memory: &mut GuestRam,
) -> Result<Counting, Uncounted<NewError>> {
    let counter = pmu::detect().map_err(|lack| Uncounted::Because(lack.reason()))?;
    if !pmu::set_up(&counter) {
        return Err(Uncounted::Because(
            "the speculative mapping of locks cannot be switched off",
        ));
    }
    let ratio = timer_ratio();
    // Found at start, used for good.
    let counting = |counter| Counting::Pmu(Box::leak(Box::new(Programmed::new(counter, ratio))));
    vcpu.counting = counting(counter);
    let share = host_share(vcpu, memory).ok_or(Uncounted::Because(
        "what it counts of an entry and an exit differs",
    ))?;
    let counting = counting(counter.with_host_share(share));
    vcpu.counting = counting;
    let late = lateness(vcpu, memory).ok_or(Uncounted::Because(
        "it does not count a guest of known length exactly, or does not stop it",
    ))?;
    log::info!(
        "counter: an overflow has stopped a guest up to {late} instructions late, {} are allowed",
        counter.margin()
    );
    let mut vcpu = Vcpu::new(svm)?;
    vcpu.count_by(counting);
    if late >= counter.margin() || !trial::lands(&mut vcpu, memory, counter.margin()) {
        return Err(Uncounted::Because("it does not stop a guest in time"));
    }
    Ok(counting)
}

/// What is counted of an entry and an exit. `None`: not always the same.
fn host_share(vcpu: &mut Vcpu, memory: &mut GuestRam) -> Option<u64> {
    let mut share = None;
    for code in NOTHING {
        if !put(memory, usize::from(CODE), code) {
            return None;
        }
        for _ in 0..4 {
            let interrupts = code == [NOP];
            let probed = probe_after(vcpu, memory, PLENTY, || {
                if interrupts {
                    apic::raise_timer_interrupt();
                }
            });
            if probed.executed != 0
                || (probed.code == ExitCode::INTR) != interrupts
                || *share.get_or_insert(probed.retired) != probed.retired
            {
                return None;
            }
        }
    }
    share
}

/// The most that overflows have stopped a guest late. `None`: one of the counts was wrong, or it was not stopped.
fn lateness(vcpu: &mut Vcpu, memory: &mut GuestRam) -> Option<u64> {
    if !put_sled(memory) {
        return None;
    }
    let mut latest = 0;
    for trial in 0..TRIALS {
        vcpu.overflow = 1 + trial * 253;
        let stopped = probe(vcpu, memory, PLENTY);
        if stopped.code != ExitCode::NMI || stopped.retired != stopped.executed {
            return None;
        }
        latest = latest.max(stopped.executed.checked_sub(vcpu.overflow)?);
    }
    Some(latest)
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
