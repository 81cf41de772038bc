//! The proof a host gives of its instruction counter, before any guest starts.
//!
//! Two small programs. The first has a length that is known: the count must be that. The second does what
//! makes counting hard (REP, faults, software and injected interrupts, interrupt shadows, exits). It runs
//! whole, then again in random slices: totals, registers and memory must be equal, and each landing must
//! be where a straight run to the same count also ends. A counter that fails is not used.

use alloc::vec::Vec;
use core::fmt;

use arch::addr::Gpa;
use arch::event::Event;
use arch::regs::{CpuState, Cr0, Cr4, DescriptorTable, Gpr, Rflags};

use crate::cpu::{Exit, Icount, Vcpu};
use crate::digest;
use crate::memory::{GuestMemory, NotRam};
use crate::random::Random;

/// Where the programs are loaded and entered, in 32-bit protected mode with 4 MiB pages.
pub const LOAD_ADDRESS: u32 = 0x1_0000;
/// Memory that the programs may use; all of it is compared.
pub const MEMORY_BYTES: u64 = 0x3_0000;
/// Port whose OUT makes the test inject [`INJECTED_VECTOR`].
pub const INJECT_PORT: u16 = 0x80;
/// Vector of injected interrupts.
pub const INJECTED_VECTOR: u8 = 0x31;
/// Vector that the mixed program raises by INT.
pub const SOFTWARE_VECTOR: u8 = 0x30;
/// Iterations of the counted program: DEC and JNZ each.
pub const COUNTED_ITERATIONS: u32 = 1000;
/// Iterations of the mixed program.
pub const MIXED_ITERATIONS: u32 = 60;

/// Page directory: 4 MiB at 0 mapped to itself, the rest missing.
const PAGE_DIRECTORY: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STACK_TOP: u64 = 0x9000;
/// Landings compared with a straight run to the same point.
const COMPARED_LANDINGS: usize = 40;
const SLICED_PASSES: u64 = 3;
const LONGEST_SLICE: u64 = 160;
/// Exits after which a program that has not ended never will.
const MAX_EXITS: u32 = 1_000_000;
/// Host ticks per entry; only a bound.
const BUDGET: u64 = 100_000_000;

/// Machine code, made for [`LOAD_ADDRESS`].
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// `1: dec ecx; jnz 1b; hlt`.
    pub counted: &'a [u8],
    /// The mixture; counts EBP down and ends with HLT.
    pub mixed: &'a [u8],
    /// Offset in `mixed` of the handler for #DE and #UD: steps over two bytes.
    pub fault_handler: u32,
    /// Offset of the handler for #PF: drops the error code and steps over five bytes.
    pub page_fault_handler: u32,
    /// Offset of the handler for interrupts.
    pub interrupt_handler: u32,
}

/// What was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Instructions of the mixed program.
    pub instructions: u64,
    /// Landings in all sliced runs.
    pub landings: u64,
}

/// Why a counter is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The program of known length gave another count.
    WrongCount {
        /// What it is.
        expected: u64,
        /// What was counted.
        counted: u64,
    },
    /// The same program has two lengths.
    TotalDiffers {
        /// Run whole.
        whole: u64,
        /// Run in slices.
        sliced: u64,
    },
    /// The same program ends in two states.
    StateDiffers {
        /// Instructions at the comparison.
        at: u64,
    },
    /// A landing behind its target.
    Missed {
        /// Asked for.
        target: u64,
        /// Landed at.
        landed: u64,
    },
    /// The program left for a reason it does not have.
    UnexpectedExit(Exit),
    /// The program did not end.
    Endless,
    /// There is too little memory for the programs.
    Memory(Gpa),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCount { expected, counted } => {
                write!(f, "{expected} instructions were counted as {counted}")
            }
            Self::TotalDiffers { whole, sliced } => {
                write!(f, "{whole} instructions in one run, {sliced} in slices")
            }
            Self::StateDiffers { at } => write!(f, "registers or memory differ at {at}"),
            Self::Missed { target, landed } => write!(f, "landed at {landed} instead of {target}"),
            Self::UnexpectedExit(exit) => write!(f, "unexpected exit {exit:?}"),
            Self::Endless => f.write_str("the program does not end"),
            Self::Memory(gpa) => write!(f, "no memory at guest physical {:#x}", gpa.0),
        }
    }
}

impl From<NotRam> for Rejection {
    fn from(NotRam(gpa): NotRam) -> Self {
        Self::Memory(gpa)
    }
}

/// Runs the proof. `seed` chooses the slices.
///
/// # Errors
///
/// The first thing that did not agree.
pub fn prove<V: Vcpu>(
    vcpu: &mut V,
    memory: &mut V::Memory,
    programs: &Programs<'_>,
    seed: u64,
) -> Result<Proof, Rejection> {
    let mut bench = Bench {
        vcpu,
        memory,
        programs,
        random: Random::new(seed | 1),
    };
    bench.start(Program::Counted)?;
    let counted = bench.finish(u64::MAX, &mut Vec::new())?.0;
    let expected = 2 * u64::from(COUNTED_ITERATIONS) + 1;
    if counted != expected {
        return Err(Rejection::WrongCount { expected, counted });
    }
    bench.start(Program::Mixed)?;
    let (whole, state) = bench.finish(u64::MAX, &mut Vec::new())?;
    let mut landings = Vec::new();
    for _ in 0..SLICED_PASSES {
        bench.start(Program::Mixed)?;
        let (sliced, sliced_state) = bench.finish(LONGEST_SLICE, &mut landings)?;
        if sliced != whole {
            return Err(Rejection::TotalDiffers { whole, sliced });
        }
        if sliced_state != state {
            return Err(Rejection::StateDiffers { at: whole });
        }
    }
    for (at, state) in landings
        .iter()
        .step_by((landings.len() / COMPARED_LANDINGS).max(1))
    {
        bench.start(Program::Mixed)?;
        if bench.go_straight(*at)? != *state {
            return Err(Rejection::StateDiffers { at: *at });
        }
    }
    Ok(Proof {
        instructions: whole,
        landings: landings.len() as u64,
    })
}

#[derive(Clone, Copy)]
enum Program {
    Counted,
    Mixed,
}

struct Bench<'a, V: Vcpu> {
    vcpu: &'a mut V,
    memory: &'a mut V::Memory,
    programs: &'a Programs<'a>,
    random: Random,
}

impl<V: Vcpu> Bench<'_, V> {
    /// Fresh memory and a fresh processor.
    fn start(&mut self, program: Program) -> Result<(), Rejection> {
        for at in (0..MEMORY_BYTES).step_by(4096) {
            self.memory.write(Gpa(at), &[0; 4096])?;
        }
        let (image, iterations) = match program {
            Program::Counted => (self.programs.counted, COUNTED_ITERATIONS),
            Program::Mixed => (self.programs.mixed, MIXED_ITERATIONS),
        };
        self.memory.write(Gpa(u64::from(LOAD_ADDRESS)), image)?;
        self.memory
            .write(Gpa(PAGE_DIRECTORY), &0x83_u32.to_le_bytes())?;
        for (vector, handler) in [
            (arch::event::vector::DE, self.programs.fault_handler),
            (arch::event::vector::UD, self.programs.fault_handler),
            (arch::event::vector::PF, self.programs.page_fault_handler),
            (SOFTWARE_VECTOR, self.programs.interrupt_handler),
            (INJECTED_VECTOR, self.programs.interrupt_handler),
        ] {
            self.memory.write(
                Gpa(IDT + 8 * u64::from(vector)),
                &gate(LOAD_ADDRESS + handler),
            )?;
        }
        let mut gdt = [0; 24];
        gdt[8..16].copy_from_slice(&0x00cf_9b00_0000_ffff_u64.to_le_bytes());
        gdt[16..24].copy_from_slice(&0x00cf_9300_0000_ffff_u64.to_le_bytes());
        self.memory.write(Gpa(GDT), &gdt)?;
        let mut state = CpuState::protected_mode(LOAD_ADDRESS);
        state.control.cr0 |= Cr0::PG | Cr0::NE;
        state.control.cr3 = PAGE_DIRECTORY;
        state.control.cr4 = Cr4::PSE;
        state.gdtr = DescriptorTable {
            base: GDT,
            limit: 23,
        };
        state.idtr = DescriptorTable {
            base: IDT,
            limit: 0x7ff,
        };
        state.gprs[Gpr::Rsp] = STACK_TOP;
        state.gprs[Gpr::Rcx] = u64::from(iterations);
        state.gprs[Gpr::Rbp] = u64::from(iterations);
        self.vcpu.restore(&state);
        Ok(())
    }

    /// Runs to HLT in slices of up to `longest` instructions, noting every landing. Returns the count and
    /// the digest at the end.
    fn finish(
        &mut self,
        longest: u64,
        landings: &mut Vec<(u64, u64)>,
    ) -> Result<(u64, u64), Rejection> {
        for _ in 0..MAX_EXITS {
            let now = self.vcpu.icount();
            let target = match longest {
                u64::MAX => Icount::NEVER,
                _ => now.after(1 + self.random.below(longest)),
            };
            match self.vcpu.run(self.memory, target, BUDGET) {
                Exit::Landed => {
                    self.check_landing(target)?;
                    landings.push((self.vcpu.icount().0, self.digest()?));
                }
                Exit::Hlt => {
                    self.vcpu.advance(self.memory);
                    return Ok((self.vcpu.icount().0, self.digest()?));
                }
                exit => self.handle(exit)?,
            }
        }
        Err(Rejection::Endless)
    }

    /// Runs to `at` with as few stops as there are exits, and returns the digest there.
    fn go_straight(&mut self, at: u64) -> Result<u64, Rejection> {
        for _ in 0..MAX_EXITS {
            match self.vcpu.run(self.memory, Icount(at), BUDGET) {
                Exit::Landed => {
                    let landed = self.vcpu.icount().0;
                    return if landed == at {
                        self.digest()
                    } else {
                        Err(Rejection::Missed { target: at, landed })
                    };
                }
                Exit::Hlt => return Err(Rejection::UnexpectedExit(Exit::Hlt)),
                exit => self.handle(exit)?,
            }
        }
        Err(Rejection::Endless)
    }

    /// A landing is at its target, or one later out of an interrupt shadow.
    fn check_landing(&self, target: Icount) -> Result<(), Rejection> {
        let landed = self.vcpu.icount().0;
        if landed == target.0 || landed == target.0 + 1 {
            Ok(())
        } else {
            Err(Rejection::Missed {
                target: target.0,
                landed,
            })
        }
    }

    fn handle(&mut self, exit: Exit) -> Result<(), Rejection> {
        match exit {
            Exit::HostWork => {}
            Exit::Cpuid => {
                // The count itself becomes part of what is compared.
                let count = self.vcpu.icount().0;
                self.vcpu.gprs_mut()[Gpr::Rax] = count & 0xffff_ffff;
                self.vcpu.advance(self.memory);
            }
            Exit::Port(access) if access.port == INJECT_PORT && access.write => {
                self.vcpu.advance(self.memory);
                let can = self.vcpu.rflags().contains(Rflags::IF);
                if !can || !self.vcpu.inject(Event::interrupt(INJECTED_VECTOR)) {
                    return Err(Rejection::UnexpectedExit(exit));
                }
            }
            exit => return Err(Rejection::UnexpectedExit(exit)),
        }
        Ok(())
    }

    fn digest(&mut self) -> Result<u64, Rejection> {
        let memory = digest::memory(self.memory, MEMORY_BYTES)?;
        Ok(digest::cpu_state(&self.vcpu.save()) ^ memory.rotate_left(32))
    }
}

const GDT: u64 = 0x3000;

/// A 32-bit interrupt gate to the code segment (SDM 3 7.11).
fn gate(handler: u32) -> [u8; 8] {
    let [h0, h1, h2, h3] = handler.to_le_bytes();
    [h0, h1, 8, 0, 0, 0x8e, h2, h3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::PortAccess;
    use crate::testing::{CounterFault, Ram, ScriptedVcpu, Step};

    const PROGRAMS: Programs<'_> = Programs {
        counted: &[0x49, 0x75, 0xfd, 0xf4],
        mixed: &[0x0f, 0xa2, 0xe6, 0x80, 0xf4],
        fault_handler: 0,
        page_fault_handler: 0,
        interrupt_handler: 0,
    };

    /// The counted program, then the mixed one at every further start.
    fn proof(fault: CounterFault) -> Result<Proof, Rejection> {
        let access = PortAccess {
            port: INJECT_PORT,
            size: 1,
            write: true,
            string: false,
        };
        let counted = [Step {
            retired: 2 * u64::from(COUNTED_ITERATIONS),
            exit: Exit::Hlt,
        }];
        let mixed = [
            Step {
                retired: 700,
                exit: Exit::Cpuid,
            },
            Step {
                retired: 900,
                exit: Exit::Port(access),
            },
            Step {
                retired: 1234,
                exit: Exit::Hlt,
            },
        ];
        let mut vcpu = ScriptedVcpu::new(CpuState::protected_mode(0), &[]);
        vcpu.programs = alloc::vec![mixed.to_vec(), counted.to_vec()];
        vcpu.fault = fault;
        vcpu.interrupts_on = true;
        prove(
            &mut vcpu,
            &mut Ram::new(MEMORY_BYTES as usize),
            &PROGRAMS,
            7,
        )
    }

    #[test]
    fn an_exact_counter_is_proven() {
        let proof = proof(CounterFault::None).expect("is exact");
        assert_eq!(proof.instructions, 700 + 900 + 1234 + 3);
        assert!(proof.landings > 10);
    }

    #[test]
    fn a_counter_that_is_off_by_one_is_rejected() {
        let rejected = |fault| proof(fault).expect_err("is not exact");
        // Off by one at every entry: already the known length is wrong.
        assert!(matches!(
            rejected(CounterFault::OnePerEntry),
            Rejection::WrongCount { .. }
        ));
        // Stops one instruction late and does not know it.
        assert!(matches!(
            rejected(CounterFault::LandsLate),
            Rejection::TotalDiffers { .. }
        ));
        // Counts right but stops two late.
        assert!(matches!(
            rejected(CounterFault::Overshoots),
            Rejection::Missed { .. }
        ));
    }
}
