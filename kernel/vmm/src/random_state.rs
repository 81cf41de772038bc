//! Virtual processors in random states: whatever state a guest gets its processor into, the host stays up.
//!
//! Each trial takes a state that is valid, spoils some of it, fills the memory around RIP with random bytes
//! and runs. The processor either takes the state or the back end says which check it failed; a panic or a
//! fault of the host is the bug that this looks for. Only tests ask for it (`test.random_states`).

use arch::addr::Gpa;
use arch::event::{Event, EventKind};
use arch::regs::{
    CpuState, Cr0, Cr4, Efer, Rflags, Segment, SegmentAttributes, SegmentName, Shadow, Xcr0,
};

use crate::cpu::{Exit, Vcpu};
use crate::memory::{GuestMemory, NotRam};
use crate::random::Random;

/// Memory that the trials use.
pub const MEMORY_BYTES: u64 = 2 << 20;
const CODE: u64 = 0x1_0000;
const PAGE_TABLES: u64 = 0x2_0000;
/// Exits of one trial.
const EXITS: u32 = 8;
/// Instructions of one trial.
const INSTRUCTIONS: u64 = 2000;
/// Host ticks per entry.
const BUDGET: u64 = 200_000;

/// What came of the trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// States that the processor took.
    pub entered: u64,
    /// States that it refused.
    pub refused: u64,
    /// Exits handled.
    pub exits: u64,
}

/// Runs `count` trials; `seed` chooses them.
///
/// # Errors
///
/// There is too little memory.
pub fn try_states<V: Vcpu>(
    vcpu: &mut V,
    memory: &mut V::Memory,
    count: u64,
    seed: u64,
) -> Result<Outcome, NotRam> {
    let mut random = Random::new(seed | 1);
    let mut outcome = Outcome::default();
    for _ in 0..count {
        fill(memory, &mut random)?;
        let mut state = valid(&mut random);
        for _ in 0..1 + random.below(5) {
            spoil(&mut state, &mut random);
        }
        vcpu.restore(&state);
        outcome.add(trial(vcpu, memory, &mut random));
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, (refused, exits): (bool, u64)) {
        self.refused += u64::from(refused);
        self.entered += u64::from(!refused);
        self.exits += exits;
    }
}

/// Runs one state for a while; whatever exits is stepped over or answered by an event.
fn trial<V: Vcpu>(vcpu: &mut V, memory: &mut V::Memory, random: &mut Random) -> (bool, u64) {
    let end = vcpu.icount().after(INSTRUCTIONS);
    for n in 0..EXITS {
        match vcpu.run(memory, end, BUDGET) {
            Exit::EntryRefused { .. } => return (n == 0, u64::from(n)),
            Exit::Landed | Exit::HostWork | Exit::TripleFault | Exit::Unexpected { .. } => {
                return (false, u64::from(n));
            }
            Exit::Exception { event, .. } => {
                if !vcpu.inject(event) {
                    return (false, u64::from(n));
                }
            }
            _ => match random.below(3) {
                0 if !vcpu.inject(Event::general_protection()) => return (false, u64::from(n)),
                0 => {}
                1 => vcpu.advance(memory),
                _ => vcpu.advance_by(random.below(16) as u8),
            },
        }
    }
    (false, u64::from(EXITS))
}

/// Random code, and page tables that map the first 2 MiB to themselves in each paging mode.
fn fill<M: GuestMemory>(memory: &mut M, random: &mut Random) -> Result<(), NotRam> {
    for at in (0..0x400).step_by(8) {
        memory.write(Gpa(CODE - 0x200 + at), &random.draw().to_le_bytes())?;
    }
    let tables: [(u64, u64); 3] = [
        (PAGE_TABLES, (PAGE_TABLES + 0x1000) | 0x27),
        (PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 0x27),
        (PAGE_TABLES + 0x2000, 0xe7),
    ];
    for (at, entry) in tables {
        memory.write(Gpa(at), &entry.to_le_bytes())?;
    }
    Ok(())
}

/// One of the modes a guest can be in.
fn valid(random: &mut Random) -> CpuState {
    let mut state = match random.below(4) {
        0 => {
            let mut state = CpuState::real_mode(0);
            state.rip = 0;
            state.segments[SegmentName::Cs] = Segment::real((CODE >> 4) as u16, 0x9b);
            state
        }
        1 => CpuState::protected_mode(CODE as u32),
        2 => {
            let mut state = CpuState::protected_mode(CODE as u32);
            state.control.cr0 |= Cr0::PG;
            state.control.cr4 |= Cr4::PSE;
            state.control.cr3 = PAGE_TABLES + 0x2000;
            state
        }
        _ => {
            let mut state = CpuState::protected_mode(CODE as u32);
            state.control.cr0 |= Cr0::PG | Cr0::NE;
            state.control.cr4 |= Cr4::PAE | Cr4::OSFXSR;
            state.control.cr3 = PAGE_TABLES;
            state.control.efer = Efer::LME | Efer::LMA;
            state.segments[SegmentName::Cs] = Segment::flat(8, 0xa09b);
            state
        }
    };
    state.gprs.0.iter_mut().for_each(|gpr| *gpr = value(random));
    state
}

/// Changes one part of the state to something that may not go with the rest.
fn spoil(state: &mut CpuState, random: &mut Random) {
    let value = value(random);
    let flip = 1 << random.below(64);
    let CpuState {
        gprs: _,
        rip,
        rflags,
        segments,
        gdtr,
        idtr,
        control,
        debug,
        msrs,
        shadow,
        pending,
        xsave,
        icount: _,
    } = state;
    match random.below(24) {
        0 => *rip = value,
        1 => *rflags ^= Rflags::from_bits_retain(flip),
        2 => *rflags = Rflags::from_bits_retain(value),
        3 => control.cr0 ^= Cr0::from_bits_retain(flip),
        4 => control.cr4 ^= Cr4::from_bits_retain(flip),
        5 => control.efer ^= Efer::from_bits_retain(flip),
        6 => control.cr3 = value,
        7 => control.pdptes = [value, flip, !value, !flip],
        8 => control.xcr0 = Xcr0::from_bits_retain(value),
        9 => control.cr2 = value,
        10 => debug.dr7 = value,
        11 => debug.dr6 = value,
        12 => debug.debugctl = value & 0xffff,
        13 => debug.dr = [value, flip, !value, !flip],
        14 => *shadow = Shadow::from_bits_truncate(value as u8),
        15 => *pending = event(random),
        16 => xsave
            .0
            .iter_mut()
            .for_each(|byte| *byte = random.draw() as u8),
        17 => gdtr.base = value,
        18 => idtr.base = value,
        19 => (msrs.pat, msrs.sysenter_esp, msrs.lstar) = (value, value, !value),
        20 => (msrs.kernel_gs_base, msrs.star, msrs.sfmask) = (value, value, !value),
        n => {
            let segment = &mut segments[SegmentName::ALL[random.below(8) as usize]];
            match n {
                21 => segment.attributes ^= SegmentAttributes::from_bits_retain(1 << (flip % 17)),
                22 => segment.base = value,
                _ => (segment.selector, segment.limit) = (value as u16, flip as u32),
            }
        }
    }
}

fn event(random: &mut Random) -> Option<Event> {
    const KINDS: [EventKind; 6] = [
        EventKind::Interrupt,
        EventKind::Nmi,
        EventKind::Exception,
        EventKind::SoftwareInterrupt,
        EventKind::PrivilegedSoftwareException,
        EventKind::SoftwareException,
    ];
    Some(Event {
        vector: random.draw() as u8,
        kind: KINDS[random.below(6) as usize],
        error_code: (random.below(2) == 0).then_some(random.draw() as u32),
        instruction_length: random.below(20) as u8,
    })
}

/// Anything, with a bias to what is near something that matters.
fn value(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => CODE.wrapping_add(random.below(512)).wrapping_sub(256),
        1 => random.draw() >> random.below(64),
        2 => 0x7fff_ffff_f000 + random.below(8192),
        3 => !random.below(8192),
        4 => random.below(MEMORY_BYTES),
        _ => random.draw(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ram, ScriptedVcpu, Step};

    #[test]
    fn every_trial_is_accounted_for() {
        let mut vcpu = ScriptedVcpu::new(CpuState::real_mode(0), &[]);
        let refused = Exit::EntryRefused { reason: "x" };
        vcpu.programs = alloc::vec![
            alloc::vec![Step {
                retired: 5,
                exit: refused
            }],
            alloc::vec![Step {
                retired: 5,
                exit: Exit::TripleFault
            }],
            alloc::vec![Step {
                retired: 10_000,
                exit: Exit::Hlt
            }],
        ];
        let mut ram = Ram::new(MEMORY_BYTES as usize);
        let outcome = try_states(&mut vcpu, &mut ram, 10, 3).expect("enough memory");
        assert_eq!(
            outcome,
            Outcome {
                entered: 2,
                refused: 8,
                exits: 0
            }
        );
        assert!(try_states(&mut vcpu, &mut Ram::new(0x1000), 1, 3).is_err());
    }

    #[test]
    fn spoiling_reaches_every_part_of_the_state() {
        let mut random = Random::new(77);
        let base = CpuState::protected_mode(CODE as u32);
        let mut changed = [false; 11];
        for _ in 0..2000 {
            let mut s = base;
            spoil(&mut s, &mut random);
            let parts = [
                s.rip != base.rip,
                s.rflags != base.rflags,
                s.segments != base.segments,
                s.gdtr != base.gdtr,
                s.idtr != base.idtr,
                s.control != base.control,
                s.debug != base.debug,
                s.msrs != base.msrs,
                s.shadow != base.shadow,
                s.pending != base.pending,
                s.xsave != base.xsave,
            ];
            changed
                .iter_mut()
                .zip(parts)
                .for_each(|(seen, now)| *seen |= now);
        }
        assert_eq!(changed, [true; 11]);
    }
}
