//! From SVM exit codes to the exits of the seam.

use arch::addr::Gpa;
use arch::event::{Event, EventKind, vector};
use arch::regs::Cr0;
use arch::svm::capability::SvmFeatures;
use arch::svm::control::{CleanBits, InterruptState};
use arch::svm::exit::{ExitCode, IoInfo, NptFault, mov_cr_register, mov_dr_register};
use iced_x86::{Mnemonic, Register};
use vmm::cpu::{CounterKind, Exit, NestedFault, PortAccess, Window};

use super::code::general_register;
use super::vcpu::Vcpu;
use crate::guest_ram::GuestRam;

/// What to do about an exit.
#[derive(Debug)]
pub(super) enum Next {
    /// Return it.
    Surface(Exit),
    /// It is dealt with: enter again.
    Again,
    /// The timer or another host interrupt: it has been taken by now.
    Interrupted,
}

/// DR6 without any cause (APM 2 13.1.1.3). The block holds this while the guest runs, so that what is set behind
/// a #DB exit is what that exception adds; the guest's own DR6 is kept apart.
pub(super) const DR6_NEUTRAL: u64 = 0xffff_0ff0;
/// DR6.BS: a single step.
pub(super) const DR6_SINGLE_STEP: u64 = 1 << 14;
/// B0 … B3, BD, BS, BT.
pub(super) const DR6_CAUSES: u64 = 0xe00f;

/// An instruction without prefixes: its first bytes, those of their bits that count, its length.
#[derive(Clone, Copy)]
struct Plain(u32, u32, u8);

impl Plain {
    const CPUID: Self = Self(0xa20f, 0xffff, 2);
    const RDTSC: Self = Self(0x310f, 0xffff, 2);
    const RDMSR: Self = Self(0x320f, 0xffff, 2);
    const WRMSR: Self = Self(0x300f, 0xffff, 2);
    const RDPMC: Self = Self(0x330f, 0xffff, 2);
    const HLT: Self = Self(0x00f4, 0x00ff, 1);
    const RDTSCP: Self = Self(0xf9_010f, 0xff_ffff, 3);
    /// No bytes are this.
    const UNKNOWN: Self = Self(1, 0, 0);

    /// What most programs execute to cause an exit.
    #[inline]
    fn of(code: ExitCode, info_1: u64) -> Self {
        match code {
            ExitCode::CPUID => Self::CPUID,
            ExitCode::RDTSC => Self::RDTSC,
            ExitCode::MSR if info_1 & 1 == 0 => Self::RDMSR,
            ExitCode::MSR => Self::WRMSR,
            ExitCode::RDPMC => Self::RDPMC,
            ExitCode::HLT => Self::HLT,
            _ => Self::UNKNOWN,
        }
    }
}

/// What stands at RIP is no instruction, although QEMU executes it: it ignores prefixes, LOCK among them, with which
/// processors raise #UD.
const NOT_AN_ENCODING: Exit = Exit::NoSuchInstruction;

impl Vcpu {
    /// Decodes the last exit.
    #[inline(always)]
    pub(super) fn dispatch(&mut self, memory: &mut GuestRam) -> Next {
        let control = &self.vmcb.control;
        let code = ExitCode::from_field(control.exit_code);
        let info_1 = control.exit_info_1;
        Next::Surface(match code {
            ExitCode::MSR if info_1 & 1 == 0 => Exit::ReadMsr,
            ExitCode::MSR => {
                // A write of EFER may change how the instruction decodes: its length is taken now.
                self.length = self.length_at_exit(memory);
                Exit::WriteMsr
            }
            ExitCode::IOIO => self.port(info_1),
            ExitCode::NESTED_PAGE_FAULT => return self.nested_fault(memory),
            ExitCode::HLT => Exit::Hlt,
            ExitCode::INTR | ExitCode::NMI => return Next::Interrupted,
            _ => return self.dispatch_rare(memory, code, info_1),
        })
    }

    #[cold]
    fn dispatch_rare(&mut self, memory: &GuestRam, code: ExitCode, info_1: u64) -> Next {
        Next::Surface(match code {
            ExitCode::VINTR if self.is_open(Window::Interrupt) => Exit::Window,
            ExitCode::VINTR => return Next::Again,
            ExitCode::IRET => {
                self.iret();
                return Next::Again;
            }
            ExitCode::RDTSCP => Exit::Rdtscp,
            ExitCode::RDPMC => Exit::Rdpmc,
            ExitCode::INVD | ExitCode::WBINVD => Exit::Wbinvd,
            ExitCode::MONITOR => Exit::Monitor,
            ExitCode::MWAIT | ExitCode::MWAIT_ARMED => Exit::Mwait,
            ExitCode::XSETBV => Exit::Xsetbv,
            ExitCode::VMMCALL => Exit::Hypercall,
            ExitCode::RSM
            | ExitCode::INVLPGA
            | ExitCode::VMRUN
            | ExitCode::VMLOAD
            | ExitCode::VMSAVE
            | ExitCode::STGI
            | ExitCode::CLGI
            | ExitCode::SKINIT
            | ExitCode::RDPRU
            | ExitCode::INVLPGB
            | ExitCode::ILLEGAL_INVLPGB
            | ExitCode::INVPCID
            | ExitCode::MCOMMIT
            | ExitCode::TLBSYNC => Exit::NoSuchInstruction,
            ExitCode::TASK_SWITCH => Exit::TaskSwitch {
                selector: info_1 as u16,
            },
            ExitCode::SHUTDOWN => Exit::TripleFault,
            ExitCode::INVALID => Exit::EntryRefused {
                reason: self.refused(),
            },
            ExitCode::CR0_SELECTIVE_WRITE => self.cr_write(memory, 0, None),
            ExitCode(number @ 0x00..=0x0f) => self.cr_read(memory, number as u8),
            ExitCode(number @ 0x10..=0x1f) => {
                self.cr_write(memory, number as u8 & 15, mov_cr_register(info_1))
            }
            ExitCode(number @ 0x20..=0x3f) => self.dr_access(memory, number as u8),
            ExitCode(number @ 0x40..=0x5f) => {
                return self.exception(memory, number as u8 & 31, info_1);
            }
            _ => self.unexpected(),
        })
    }

    fn unexpected(&self) -> Exit {
        Exit::Unexpected {
            code: self.vmcb.control.exit_code,
            qualification: self.vmcb.control.exit_info_1,
        }
    }

    /// QEMU reports RDTSCP as RDTSC, and has counted it.
    #[inline]
    pub(super) fn time_stamp(&mut self, memory: &GuestRam) -> Exit {
        if self.counting.kind() != CounterKind::Tsc {
            return Exit::Rdtsc;
        }
        let Plain(opcode, mask, length) = Plain::RDTSC;
        if self.is_in_code_page(opcode, mask) {
            self.length = length;
            return Exit::Rdtsc;
        }
        let Plain(opcode, mask, length) = Plain::RDTSCP;
        if self.is_in_code_page(opcode, mask) {
            self.length = length;
        } else {
            self.fill_code_page(memory);
            match self.instruction(memory) {
                Some(instruction) if instruction.mnemonic() == Mnemonic::Rdtscp => {
                    self.length = instruction.len() as u8;
                }
                _ => return Exit::Rdtsc,
            }
        }
        self.icount = self.icount.wrapping_sub(1);
        Exit::Rdtscp
    }

    #[inline]
    fn port(&mut self, info_1: u64) -> Exit {
        let info = IoInfo::decode(info_1);
        let length = self
            .vmcb
            .control
            .exit_info_2
            .wrapping_sub(self.vmcb.save.rip);
        if matches!(length, 1..=15) {
            self.length = length as u8;
        }
        Exit::Port(PortAccess {
            port: info.port,
            size: info.size,
            write: !info.input,
            string: info.string,
        })
    }

    /// Maps RAM that the guest touches for the first time.
    #[inline(never)]
    fn nested_fault(&mut self, memory: &mut GuestRam) -> Next {
        let gpa = Gpa(self.vmcb.control.exit_info_2);
        let fault = NptFault::decode(self.vmcb.control.exit_info_1);
        let Some(frame) = memory.host_frame(gpa) else {
            return Next::Surface(Exit::NestedFault(NestedFault {
                gpa,
                write: fault.write,
                execute: fault.execute,
                in_page_walk: fault.in_page_walk,
            }));
        };
        // All RAM is mapped with all rights, so a fault on what is present means broken tables.
        if fault.present || self.nested.map_large(gpa, frame).is_err() {
            return Next::Surface(self.unexpected());
        }
        memory.mark_touched(gpa);
        self.counts.ram_faults = self.counts.ram_faults.wrapping_add(1);
        self.after_ram_fault = true;
        Next::Again
    }

    fn cr_read(&mut self, memory: &GuestRam, cr: u8) -> Exit {
        let register = mov_cr_register(self.vmcb.control.exit_info_1).or_else(|| {
            let instruction = self.instruction(memory)?;
            self.length = instruction.len() as u8;
            general_register(instruction.op_register(0))
        });
        register.map_or(NOT_AN_ENCODING, |register| Exit::ReadCr { cr, register })
    }

    fn cr_write(&mut self, memory: &GuestRam, cr: u8, reported: Option<arch::regs::Gpr>) -> Exit {
        if let Some(register) = reported {
            self.length = self.length_at_exit(memory);
            let value = self.cr_source(register);
            return Exit::WriteCr { cr, value };
        }
        let Some(instruction) = self.instruction(memory) else {
            return NOT_AN_ENCODING;
        };
        self.length = instruction.len() as u8;
        let cr0 = self.vmcb.save.cr0;
        let value = match instruction.mnemonic() {
            Mnemonic::Mov => general_register(instruction.op_register(1))
                .map(|register| self.cr_source(register)),
            Mnemonic::Clts => Some(cr0 & !Cr0::TS.bits()),
            // The low four bits; PE can be set but not cleared (APM 3, LMSW).
            Mnemonic::Lmsw => self
                .word_operand(memory, &instruction)
                .map(|word| cr0 & !0xe | u64::from(word) & 0xf),
            _ => None,
        };
        match value {
            Some(value) => Exit::WriteCr { cr, value },
            None => self.unexpected(),
        }
    }

    /// The source of a MOV to CR, which is 64 bits wide in 64-bit mode and 32 bits elsewhere.
    fn cr_source(&self, register: arch::regs::Gpr) -> u64 {
        let value = self.block.gprs[register];
        if self.is_64_bit() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    fn dr_access(&mut self, memory: &GuestRam, code: u8) -> Exit {
        let write = code & 0x10 != 0;
        let dr = code & 7;
        let assists = self
            .capabilities
            .features
            .contains(SvmFeatures::DECODE_ASSISTS);
        let register = if assists {
            Some(mov_dr_register(self.vmcb.control.exit_info_1))
        } else {
            self.instruction(memory).and_then(|instruction| {
                self.length = instruction.len() as u8;
                general_register(instruction.op_register(u32::from(write)))
            })
        };
        match register {
            Some(register) if write => Exit::WriteDr { dr, register },
            Some(register) => Exit::ReadDr { dr, register },
            None => NOT_AN_ENCODING,
        }
    }

    fn exception(&mut self, memory: &GuestRam, number: u8, info_1: u64) -> Next {
        let has_code = matches!(number, vector::DF | vector::TS..=vector::PF | vector::AC)
            && self.vmcb.save.cr0 & Cr0::PE.bits() != 0;
        let event = Event {
            vector: number,
            kind: EventKind::Exception,
            error_code: has_code.then_some(info_1 as u32),
            instruction_length: 0,
        };
        let mut dr6 = 0;
        match number {
            // A machine check is the host's, not the guest's.
            vector::MC => return Next::Surface(self.unexpected()),
            vector::DB => {
                dr6 = (self.vmcb.save.dr6 ^ DR6_NEUTRAL) & DR6_CAUSES;
                self.vmcb.save.dr6 = DR6_NEUTRAL;
                self.vmcb.changed(CleanBits::DEBUG_REGISTERS);
                if dr6 & DR6_SINGLE_STEP != 0 && self.counting.kind() == CounterKind::Tsc {
                    self.finish_repeat(memory);
                }
            }
            vector::AC => {}
            _ => return self.reflect(event),
        }
        Next::Surface(Exit::Exception { event, dr6 })
    }

    /// QEMU answers a MOV to CR3 that sets reserved bits with the exit of a refused entry; a processor raises #GP
    /// (APM 2 3.1.2). Makes the one the other. A refused entry is never mistaken for it: then the instruction at RIP is
    /// one that would fault too.
    #[cold]
    pub(super) fn recognise_cr3_fault(&mut self, memory: &GuestRam) {
        let reserved = !((1u64 << self.capabilities.processor.physical_bits.min(63)) - 1);
        let Some(instruction) = self.instruction(memory) else {
            return;
        };
        let source = general_register(instruction.op_register(1));
        if instruction.mnemonic() == Mnemonic::Mov
            && instruction.op_register(0) == Register::CR3
            && source.is_some_and(|register| self.cr_source(register) & reserved != 0)
        {
            self.vmcb.control.exit_code = u64::from(ExitCode::EXCEPTION.0) + u64::from(vector::GP);
            self.vmcb.control.exit_info_1 = 0;
        }
    }

    /// QEMU traps behind each iteration of a repeated instruction and then once more, behind the look at a count of zero.
    /// A processor has left the instruction by then: so does the guest, and the look is counted here.
    fn finish_repeat(&mut self, memory: &GuestRam) {
        let before = core::mem::replace(&mut self.stepped_to, self.vmcb.save.rip);
        if before == self.vmcb.save.rip
            && let Some(instruction) = self.instruction(memory)
            && self.is_repeated_to_the_end(&instruction)
        {
            self.step_over(instruction.len() as u8);
            self.stepped_to = self.vmcb.save.rip;
        }
    }

    /// Gives the guest an exception that exits only for `UNCOUNTED_EXCEPTIONS`' reason.
    fn reflect(&mut self, event: Event) -> Next {
        if event.vector == vector::PF {
            // An intercepted page fault does not write CR2 (APM 2 15.12.15).
            self.vmcb.save.cr2 = self.vmcb.control.exit_info_2;
            self.vmcb.changed(CleanBits::CR2);
        }
        if self.deliver(event) {
            Next::Again
        } else {
            Next::Surface(Exit::TripleFault)
        }
    }

    /// Bytes of the instruction of the last exit.
    #[inline]
    pub(super) fn length_at_exit(&mut self, memory: &GuestRam) -> u8 {
        if self.length != 0 {
            return self.length;
        }
        let control = &self.vmcb.control;
        if self.capabilities.features.contains(SvmFeatures::NEXT_RIP) {
            let length = control.next_rip.wrapping_sub(self.vmcb.save.rip);
            if matches!(length, 1..=15) {
                return length as u8;
            }
        }
        let code = ExitCode::from_field(control.exit_code);
        let plain = Plain::of(code, control.exit_info_1);
        if self.is_in_code_page(plain.0, plain.1) {
            return plain.2;
        }
        self.length_in_memory(memory, plain)
    }

    #[cold]
    fn length_in_memory(&mut self, memory: &GuestRam, plain: Plain) -> u8 {
        self.fill_code_page(memory);
        if self.is_in_code_page(plain.0, plain.1) {
            return plain.2;
        }
        match self.instruction(memory) {
            Some(instruction) => instruction.len() as u8,
            // The processor has just executed it, so it was readable: the guest's own tables have changed
            // behind its TLB. Two bytes is what most of these instructions have.
            None => 2,
        }
    }

    /// Steps over `length` bytes.
    #[inline]
    pub(super) fn step_over(&mut self, length: u8) {
        self.move_rip(length);
        self.vmcb
            .control
            .interrupt_state
            .remove(InterruptState::SHADOW);
        self.length = 0;
        if self.counting.counts() {
            self.icount = self.icount.wrapping_add(1);
        }
    }
}
