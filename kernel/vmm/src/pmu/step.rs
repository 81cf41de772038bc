//! Stepping by RFLAGS.TF, hidden from the guest: for processors that have no trap of their own behind an instruction.
//!
//! TF is the guest's to see. Instructions that show it, replace it, or end the stepping are told apart before the step;
//! what they have left behind is put right after it. The caller intercepts every exception meanwhile, so none is
//! delivered with a TF that is not the guest's.

use arch::regs::Rflags;
use iced_x86::{Instruction, Mnemonic, Register};

/// How an instruction treats TF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all.
    Plain,
    /// PUSHF: it is in the image on the stack, which is to be mended ([`Step::image_shows_it`]).
    PushFlags,
    /// POPF, IRET: it is replaced, by the guest's.
    PopFlags,
    /// SYSCALL in long mode: it is in R11, and SFMASK may clear it and so hide the trap.
    SystemCall,
    /// SYSRET in long mode: it is replaced by the one in R11, and so is the trap.
    SystemReturn,
    /// INT n, INT3, or INTO that finds OF set: delivery puts it on the stack and clears it. Nothing traps behind it; it is
    /// to be delivered as an event instead.
    Interrupt {
        /// Which.
        vector: u8,
        /// Bytes of the instruction.
        length: u8,
    },
    /// A load of SS: the trap comes one instruction later. That one is to be looked at too ([`behind_shadow`]).
    LoadSs {
        /// Bytes of the instruction.
        length: u8,
    },
}

/// What an instruction does with TF.
#[must_use]
pub fn kind(instruction: &Instruction, rflags: Rflags, long_mode: bool) -> Kind {
    let length = instruction.len() as u8;
    let to_ss = instruction.op_count() > 0 && instruction.op_register(0) == Register::SS;
    match instruction.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => Kind::PushFlags,
        Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Iret
        | Mnemonic::Iretd
        | Mnemonic::Iretq => Kind::PopFlags,
        Mnemonic::Syscall if long_mode => Kind::SystemCall,
        Mnemonic::Sysret | Mnemonic::Sysretq if long_mode => Kind::SystemReturn,
        // In virtual-8086 mode with little privilege it is #GP (APM 2 8.2.14); the processor finds out.
        Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into if is_virtual_8086(rflags) => Kind::Plain,
        Mnemonic::Int => Kind::Interrupt {
            vector: instruction.immediate8(),
            length,
        },
        Mnemonic::Int3 => Kind::Interrupt { vector: 3, length },
        Mnemonic::Into if rflags.contains(Rflags::OF) => Kind::Interrupt { vector: 4, length },
        Mnemonic::Mov | Mnemonic::Pop if to_ss => Kind::LoadSs { length },
        _ => Kind::Plain,
    }
}

/// With an I/O privilege level below 3.
fn is_virtual_8086(rflags: Rflags) -> bool {
    rflags.contains(Rflags::VM) && !rflags.contains(Rflags::IOPL)
}

/// What the trap behind the shadow of a load of SS has to put right, given the instruction in the shadow: those that
/// can be intercepted are, and exit.
#[must_use]
pub const fn behind_shadow(second: Kind) -> Kind {
    match second {
        Kind::SystemCall | Kind::SystemReturn => second,
        _ => Kind::Plain,
    }
}

/// The registers that a step changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Flags.
    pub rflags: Rflags,
    /// R11.
    pub r11: u64,
    /// The flags that SYSCALL clears.
    pub sfmask: u64,
}

/// A step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    kind: Kind,
    before: Registers,
}

const TF: u64 = Rflags::TF.bits();

impl Step {
    /// Sets the registers for a step over an instruction of `kind`, which is neither an interrupt nor a load of SS.
    #[must_use]
    pub fn begin(kind: Kind, registers: &mut Registers) -> Self {
        let before = *registers;
        registers.rflags |= Rflags::TF;
        match kind {
            Kind::SystemCall => registers.sfmask &= !TF,
            Kind::SystemReturn => registers.r11 |= TF,
            _ => {}
        }
        Self { kind, before }
    }

    /// The trap has come: makes the registers what they would be without it. Returns whether the guest traps by itself.
    #[must_use]
    pub fn complete(&self, registers: &mut Registers) -> bool {
        let guests = self.before.rflags.contains(Rflags::TF);
        let (flag, traps) = match self.kind {
            Kind::PopFlags => (registers.rflags.contains(Rflags::TF), guests),
            Kind::SystemCall => {
                registers.sfmask = self.before.sfmask;
                registers.r11 = registers.r11 & !TF | if guests { TF } else { 0 };
                let left = guests && self.before.sfmask & TF == 0;
                (left, left)
            }
            Kind::SystemReturn => {
                registers.r11 = self.before.r11;
                let loaded = self.before.r11 & TF != 0;
                (loaded, loaded)
            }
            Kind::Plain | Kind::PushFlags | Kind::Interrupt { .. } | Kind::LoadSs { .. } => {
                (guests, guests)
            }
        };
        registers.rflags.set(Rflags::TF, flag);
        traps
    }

    /// Something else has come, and the instruction has had no effect: takes back what was set for it.
    pub fn abandon(&self, registers: &mut Registers) {
        let guests = self.before.rflags.contains(Rflags::TF);
        registers.rflags.set(Rflags::TF, guests);
        registers.sfmask = self.before.sfmask;
        if self.kind == Kind::SystemReturn {
            registers.r11 = self.before.r11;
        }
    }

    /// Behind [`Step::complete`]: the image of the flags on top of the stack shows a TF that is not the guest's.
    #[must_use]
    pub fn image_shows_it(&self) -> bool {
        self.kind == Kind::PushFlags && !self.before.rflags.contains(Rflags::TF)
    }
}

/// Whether an instruction is a string instruction with a count: where iterations are not counted, it may have begun.
#[must_use]
pub fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn kind_of(bytes: &[u8], rflags: Rflags) -> Kind {
        let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::AMD);
        kind(&decoder.decode(), rflags, true)
    }

    #[test]
    fn instructions_that_know_the_flag_are_told_apart() {
        let none = Rflags::empty();
        assert_eq!(kind_of(&[0x90], none), Kind::Plain);
        assert_eq!(kind_of(&[0x9c], none), Kind::PushFlags);
        assert_eq!(kind_of(&[0x66, 0x9c], none), Kind::PushFlags);
        assert_eq!(kind_of(&[0x9d], none), Kind::PopFlags);
        assert_eq!(kind_of(&[0x48, 0xcf], none), Kind::PopFlags);
        assert_eq!(kind_of(&[0x0f, 0x05], none), Kind::SystemCall);
        assert_eq!(kind_of(&[0x48, 0x0f, 0x07], none), Kind::SystemReturn);
        let int = |vector, length| Kind::Interrupt { vector, length };
        assert_eq!(kind_of(&[0xcd, 0x80], none), int(0x80, 2));
        assert_eq!(kind_of(&[0xcc], none), int(3, 1));
        assert_eq!(kind_of(&[0x8e, 0xd0], none), Kind::LoadSs { length: 2 });
        assert_eq!(kind_of(&[0x8e, 0xd8], none), Kind::Plain);
        let mut old = Decoder::new(32, &[0x17, 0xce, 0xce], 0);
        let (pop, into) = (old.decode(), old.decode());
        assert_eq!(kind(&pop, none, false), Kind::LoadSs { length: 1 });
        assert_eq!(kind(&into, none, false), Kind::Plain);
        assert_eq!(kind(&into, Rflags::OF, false), int(4, 1));
        let (vm, iopl) = (Rflags::VM, Rflags::IOPL);
        assert_eq!(kind_of(&[0xcd, 0x80], vm), Kind::Plain);
        assert_eq!(kind_of(&[0xcd, 0x80], vm | iopl), int(0x80, 2));
    }

    fn registers(tf: bool) -> Registers {
        let mut rflags = Rflags::IF;
        rflags.set(Rflags::TF, tf);
        Registers {
            rflags,
            r11: 0x202,
            sfmask: 0x4_0700,
        }
    }

    /// What SYSCALL does, with the trap that follows if TF is left.
    fn syscall(registers: &mut Registers) -> bool {
        registers.r11 = registers.rflags.bits();
        registers.rflags = Rflags::from_bits_retain(registers.r11 & !registers.sfmask);
        registers.rflags.contains(Rflags::TF)
    }

    fn sysret(registers: &mut Registers) -> bool {
        registers.rflags = Rflags::from_bits_retain(registers.r11);
        registers.rflags.contains(Rflags::TF)
    }

    fn popf(tf: bool) -> impl Fn(&mut Registers) -> bool {
        move |registers| {
            let trapping = registers.rflags.contains(Rflags::TF);
            registers.rflags.set(Rflags::TF, tf);
            trapping
        }
    }

    /// A step ends like the instruction by itself, whichever TF the guest has, and always with a trap.
    fn check(kind: Kind, start: Registers, execute: impl Fn(&mut Registers) -> bool) {
        let mut alone = start;
        let traps = execute(&mut alone);
        let mut stepped = start;
        let step = Step::begin(kind, &mut stepped);
        assert!(execute(&mut stepped), "{kind:?} runs on");
        assert_eq!(step.complete(&mut stepped), traps, "{kind:?} {start:?}");
        assert_eq!(stepped, alone, "{kind:?} {start:?}");
        let mut abandoned = start;
        Step::begin(kind, &mut abandoned).abandon(&mut abandoned);
        assert_eq!(abandoned, start);
    }

    #[test]
    fn a_step_leaves_what_the_instruction_alone_would() {
        for tf in [false, true] {
            let start = registers(tf);
            check(Kind::Plain, start, |r| r.rflags.contains(Rflags::TF));
            for popped in [false, true] {
                check(Kind::PopFlags, start, popf(popped));
                let mut returning = start;
                returning.r11 = 0x202 | if popped { TF } else { 0 };
                check(Kind::SystemReturn, returning, sysret);
                let mut calling = start;
                calling.sfmask = 0x200 | if popped { TF } else { 0 };
                check(Kind::SystemCall, calling, syscall);
            }
        }
    }

    #[test]
    fn only_a_flag_that_is_not_the_guests_is_taken_from_the_image() {
        let image = |kind, tf| Step::begin(kind, &mut registers(tf)).image_shows_it();
        assert!(image(Kind::PushFlags, false));
        assert!(!image(Kind::PushFlags, true));
        assert!(!image(Kind::Plain, false));
    }

    #[test]
    fn repeated_instructions_are_recognised() {
        let decode = |bytes: &[u8]| Decoder::new(64, bytes, 0).decode();
        assert!(is_repeated(&decode(&[0xf3, 0xa4])));
        assert!(is_repeated(&decode(&[0xf2, 0xae])));
        assert!(!is_repeated(&decode(&[0xa4])));
        // PAUSE has the prefix too.
        assert!(!is_repeated(&decode(&[0xf3, 0x90])));
    }
}
