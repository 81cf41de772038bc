//! From exit reasons to the seam's exits (SDM 3 29.2, appendix C).

use arch::addr::{Gpa, Gva};
use arch::event::vector;
use arch::regs::{Cr0, Gpr};
use arch::vmx::exit::{
    CrAccess, DrAccess, ENTRY_FAILED, EptViolation, ExitReason, PortQualification, cr0_after_lmsw,
    debug_exception_bits, random_destination, task_switch_selector,
};
use arch::vmx::{event as format, field};
use vmm::cpu::{Exit, NestedFault, PortAccess};

use super::entry;
use super::vcpu::Vcpu;
use crate::guest_ram::GuestRam;
use crate::vt::nested::MapError;
use crate::{interrupts, x86};

impl Vcpu {
    /// What the exit is to the machine, or `None` if it concerns only this host and the guest goes on.
    #[inline(always)]
    pub(super) fn decode(&mut self, reason: ExitReason, memory: &mut GuestRam) -> Option<Exit> {
        Some(match reason {
            ExitReason::CPUID => Exit::Cpuid,
            ExitReason::PREEMPTION_TIMER | ExitReason::MONITOR_TRAP => return None,
            ExitReason::PORT => self.port(),
            ExitReason::EPT_VIOLATION => return self.ept_violation(memory),
            ExitReason::RDTSC => Exit::Rdtsc,
            ExitReason::RDMSR => Exit::ReadMsr,
            ExitReason::WRMSR => Exit::WriteMsr,
            ExitReason::HLT => Exit::Hlt,
            ExitReason::INTERRUPT_WINDOW | ExitReason::NMI_WINDOW => {
                return self.wanted_window_is_open().then_some(Exit::Window);
            }
            ExitReason::EXTERNAL_INTERRUPT => {
                self.take_host_interrupts();
                Exit::HostWork
            }
            ExitReason::CONTROL_REGISTER => self.control_register(),
            ExitReason::DEBUG_REGISTER => self.debug_register(),
            ExitReason::EXCEPTION_OR_NMI => self.exception(),
            _ => self.decode_rare(reason),
        })
    }

    #[cold]
    fn decode_rare(&mut self, reason: ExitReason) -> Exit {
        self.keep_cut_off_event();
        match reason {
            ExitReason::RDTSCP => Exit::Rdtscp,
            ExitReason::RDPMC => Exit::Rdpmc,
            ExitReason::RDRAND => {
                let (register, size) = self.random_destination();
                Exit::Rdrand { register, size }
            }
            ExitReason::RDSEED => {
                let (register, size) = self.random_destination();
                Exit::Rdseed { register, size }
            }
            ExitReason::XSETBV => Exit::Xsetbv,
            ExitReason::WBINVD | ExitReason::INVD => Exit::Wbinvd,
            ExitReason::INVLPG => Exit::Invlpg {
                gva: Gva(self.qualification()),
            },
            ExitReason::MONITOR => Exit::Monitor,
            ExitReason::MWAIT => Exit::Mwait,
            ExitReason::VMCALL => Exit::Hypercall,
            ExitReason::TRIPLE_FAULT => Exit::TripleFault,
            ExitReason::TASK_SWITCH => Exit::TaskSwitch {
                selector: task_switch_selector(self.qualification()),
            },
            ExitReason::GETSEC
            | ExitReason::INVEPT
            | ExitReason::INVVPID
            | ExitReason::INVPCID
            | ExitReason::VMFUNC
            | ExitReason::ENCLS
            | ExitReason::XSAVES
            | ExitReason::XRSTORS => Exit::NoSuchInstruction,
            ExitReason(number)
                if (ExitReason::VMCLEAR.0..=ExitReason::VMXON.0).contains(&number) =>
            {
                Exit::NoSuchInstruction
            }
            _ => self.unexpected(),
        }
    }

    fn unexpected(&self) -> Exit {
        Exit::Unexpected {
            code: u64::from(self.vmcs.read(field::EXIT_REASON)),
            qualification: self.qualification(),
        }
    }

    fn qualification(&self) -> u64 {
        self.vmcs.read(field::EXIT_QUALIFICATION)
    }

    fn random_destination(&self) -> (Gpr, u8) {
        random_destination(self.vmcs.read(field::EXIT_INSTRUCTION_INFO))
    }

    fn port(&self) -> Exit {
        let access = PortQualification::decode(self.qualification());
        Exit::Port(PortAccess {
            port: access.port,
            size: access.size,
            write: access.write,
            string: access.string,
        })
    }

    fn control_register(&self) -> Exit {
        match CrAccess::decode(self.qualification()) {
            CrAccess::Read { cr, register } => Exit::ReadCr { cr, register },
            CrAccess::Write { cr, register } => Exit::WriteCr {
                cr,
                value: self.operand(register),
            },
            CrAccess::Clts => Exit::WriteCr {
                cr: 0,
                value: (self.read_cr0() - Cr0::TS).bits(),
            },
            CrAccess::Lmsw { source } => Exit::WriteCr {
                cr: 0,
                value: cr0_after_lmsw(self.read_cr0().bits(), source),
            },
        }
    }

    /// A general register as the source of an instruction whose operand is 64 bits in 64-bit mode and 32
    /// bits otherwise.
    fn operand(&self, register: Gpr) -> u64 {
        let value = self.frame.gprs[register];
        if self.in_64_bit_mode() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    fn debug_register(&self) -> Exit {
        let access = DrAccess::decode(self.qualification());
        let (dr, register) = (access.dr, access.register);
        if access.read {
            Exit::ReadDr { dr, register }
        } else {
            Exit::WriteDr { dr, register }
        }
    }

    #[cold]
    fn exception(&mut self) -> Exit {
        const NMI: u32 = 2;
        let cut_off = self.keep_cut_off_event();
        let info = self.vmcs.read(field::EXIT_INTERRUPTION_INFO);
        if format::kind_bits(info) == NMI {
            self.counts.interrupts = self.counts.interrupts.wrapping_add(1);
            entry::raise_on_host::<{ vector::NMI }>();
            return Exit::HostWork;
        }
        if format::vector_of(info) == vector::MC {
            entry::raise_on_host::<{ vector::MC }>();
        }
        if info & format::NMI_UNBLOCKED_BY_IRET != 0 && !cut_off {
            self.block_nmi_again();
        }
        let event = format::decode(
            info,
            || self.vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE),
            || self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH),
        );
        let Some(event) = event else {
            return self.unexpected();
        };
        let dr6 = if event.vector == vector::DB {
            self.align_single_step();
            debug_exception_bits(self.qualification()) & !self.hidden_causes
        } else {
            0
        };
        Exit::Exception { event, dr6 }
    }

    /// Maps RAM that is touched for the first time; everything else is the machine's.
    #[inline(never)]
    fn ept_violation(&mut self, memory: &mut GuestRam) -> Option<Exit> {
        let cut_off = self.keep_cut_off_event();
        let vmcs = self.vmcs.current();
        let gpa = Gpa(vmcs.read(field::GUEST_PHYSICAL_ADDRESS));
        let violation = EptViolation::decode(vmcs.read(field::EXIT_QUALIFICATION));
        if violation.nmi_unblocked_by_iret && !cut_off {
            self.block_nmi_again();
        }
        let Some(frame) = memory.host_frame(gpa) else {
            return Some(Exit::NestedFault(NestedFault {
                gpa,
                write: violation.write,
                execute: violation.execute,
                in_page_walk: violation.in_page_walk,
            }));
        };
        match self.tables.map_large(gpa, frame) {
            Ok(()) => {
                memory.mark_touched(gpa);
                self.counts.ram_faults = self.counts.ram_faults.wrapping_add(1);
                self.entry_is_for_ram = true;
                None
            }
            Err(
                error
                @ (MapError::OutOfMemory | MapError::AlreadyMapped | MapError::AddressTooHigh),
            ) => {
                log::error!("guest memory at {gpa:#x}: {error:?}");
                Some(self.unexpected())
            }
        }
    }

    /// Lets the host's handlers run for what is pending.
    pub(super) fn take_host_interrupts(&mut self) {
        let before = interrupts::counters();
        x86::interrupt_window();
        if interrupts::counters() != before {
            self.counts.interrupts = self.counts.interrupts.wrapping_add(1);
        }
    }

    /// Why the processor refused to enter, for an exit reason with [`ENTRY_FAILED`] or a VMLAUNCH or VMRESUME
    /// that failed outright (`reason` 0).
    #[cold]
    pub(super) fn entry_refused(&mut self, reason: u32) -> Exit {
        self.cancel_injection();
        let basic = ExitReason(reason as u16);
        if reason & ENTRY_FAILED != 0 && basic == ExitReason::MACHINE_CHECK_AT_ENTRY {
            entry::raise_on_host::<{ vector::MC }>();
        }
        let found = arch::vmx::entry_check::first_failure(&self.entry_snapshot());
        let reason = found.unwrap_or_else(|| self.unexplained(reason));
        Exit::EntryRefused { reason }
    }

    fn unexplained(&self, reason: u32) -> &'static str {
        if reason & ENTRY_FAILED == 0 {
            let error = self.vmcs.read(field::INSTRUCTION_ERROR);
            return arch::vmx::control::InstructionError(error).meaning();
        }
        match ExitReason(reason as u16) {
            ExitReason::INVALID_GUEST_STATE => "invalid guest state that no known rule explains",
            ExitReason::MSR_LOADING => "MSR loading",
            _ => "unknown entry failure",
        }
    }
}
