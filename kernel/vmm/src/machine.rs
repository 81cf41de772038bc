//! One guest machine: processor, memory, devices, and what became of it.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use arch::addr::Gpa;
use arch::regs::CpuState;
use devices::virtio::net::Net;

use crate::board::{Board, Kind, Pending, Request};
use crate::code::MAX_INSTRUCTION;
use crate::config::Limits;
use crate::cpu::{Icount, Vcpu};
use crate::decoded::DecodeCache;
use crate::exits::debug::has_port_breakpoint;
use crate::log::Point;
use crate::nondet::Door;
use crate::place::Place;
use crate::profile::Profile;
use crate::random::Random;
use crate::replay::Divergence;
use crate::stats::ExitStatistics;

/// Why a guest does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It ended itself through the exit port.
    ExitStatus(u32),
    /// It switched itself off.
    PowerOff,
    /// It is to be started again, by its own wish or the host's.
    Reset,
    /// The host switched it off.
    SwitchedOff,
    /// It executed HLT and nothing can wake it.
    Halted,
    /// Its processor shut down.
    TripleFault,
    /// It executed as many instructions as its configuration allows.
    InstructionLimit,
    /// It took as many exits as its configuration allows.
    ExitLimit,
    /// It is at the point where its replay was to stop.
    StopPoint,
    /// It is at the end of the log that it follows.
    LogEnd,
    /// Its execution is not the one in the log.
    Diverged,
    /// It executed an instruction on a device that is not emulated.
    NotEmulated([u8; MAX_INSTRUCTION]),
    /// Its page tables lie outside of RAM.
    TableNotInRam(Gpa),
    /// It switched tasks by hardware, which is not offered.
    TaskSwitch {
        /// Selector of the new TSS.
        selector: u16,
    },
    /// The processor refused its state: the failed check.
    EntryRefused(&'static str),
    /// The processor left it for a reason that no code expects.
    Unexpected {
        /// The vendor's exit code.
        code: u64,
        /// The vendor's qualification.
        qualification: u64,
    },
}

impl Stop {
    /// Whether the guest ended as it wanted to.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(
            self,
            Stop::ExitStatus(0)
                | Stop::PowerOff
                | Stop::SwitchedOff
                | Stop::LogEnd
                | Stop::StopPoint
        )
    }

    /// Whether a dump of the machine helps to understand it: not where the guest has ended as guests do. Where it has
    /// reached a limit, it may hang, and the dump says where.
    #[must_use]
    pub const fn wants_dump(&self) -> bool {
        !matches!(
            self,
            Stop::ExitStatus(_)
                | Stop::PowerOff
                | Stop::Reset
                | Stop::SwitchedOff
                | Stop::Halted
                | Stop::LogEnd
        )
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::ExitStatus(status) => write!(f, "exit status {status}"),
            Stop::PowerOff => f.write_str("power off"),
            Stop::Reset => f.write_str("reset"),
            Stop::SwitchedOff => f.write_str("switched off"),
            Stop::Halted => f.write_str("halted"),
            Stop::TripleFault => f.write_str("triple fault"),
            Stop::InstructionLimit => f.write_str("instruction limit"),
            Stop::ExitLimit => f.write_str("exit limit"),
            Stop::StopPoint => f.write_str("the point asked for"),
            Stop::LogEnd => f.write_str("end of the log"),
            Stop::Diverged => f.write_str("error: the execution is not the one in the log"),
            Stop::NotEmulated(bytes) => {
                write!(f, "error: instruction on a device is not emulated:")?;
                bytes.iter().try_for_each(|b| write!(f, " {b:02x}"))
            }
            Stop::TableNotInRam(gpa) => {
                write!(
                    f,
                    "error: page tables outside of RAM at guest physical {:#x}",
                    gpa.0
                )
            }
            Stop::TaskSwitch { selector } => {
                write!(
                    f,
                    "error: hardware task switch to selector {selector:#x} is not offered"
                )
            }
            Stop::EntryRefused(check) => write!(f, "error: processor state refused: {check}"),
            Stop::Unexpected {
                code,
                qualification,
            } => {
                write!(
                    f,
                    "error: unexpected exit {code:#x}, qualification {qualification:#x}"
                )
            }
        }
    }
}

impl From<Request> for Stop {
    fn from(request: Request) -> Self {
        match request {
            Request::Exit(status) => Stop::ExitStatus(status),
            Request::PowerOff => Stop::PowerOff,
            Request::Reset => Stop::Reset,
        }
    }
}

/// What the host's side can do to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Presses the power button: the guest is asked to switch itself off.
    PowerButton,
    /// Presses the button for a non-maskable interrupt.
    Nmi,
    /// Resets it: whoever runs it loads its image anew.
    Reset,
    /// Switches it off at once.
    Stop,
}

/// A guest machine.
pub struct Machine<V: Vcpu> {
    /// Its name in the configuration.
    pub name: String,
    pub(crate) vcpu: V,
    pub(crate) memory: V::Memory,
    pub(crate) board: Board,
    pub(crate) door: Door,
    pub(crate) profile: Profile,
    pub(crate) stats: ExitStatistics,
    pub(crate) decoded: DecodeCache,
    pub(crate) stop: Option<Stop>,
    /// Waiting in HLT.
    pub(crate) halted: bool,
    /// What the processor was asked windows for.
    pub(crate) wanted: Pending,
    /// TSC_AUX, which only RDTSCP shows: it exits, so the register need not be in the processor.
    pub(crate) tsc_aux: u32,
    pub(crate) limit: Icount,
    pub(crate) exit_limit: u64,
    /// Unknown MSRs touched.
    pub(crate) unknown_msrs: u64,
    /// DR7, which only MOV DR writes, has a breakpoint on I/O enabled.
    pub(crate) port_breakpoints: bool,
    /// DR6 bits of the trap that is due behind the instruction under way.
    pub(crate) traps: u64,
    /// A log is written or followed: exits are counted and points kept.
    pub(crate) logged: bool,
    /// Where the execution is.
    pub(crate) place: Place,
    /// What was found to differ from the log.
    pub(crate) divergence: Option<Box<Divergence>>,
    /// Runs are cut at random: a test of exactness.
    pub(crate) slicing: Option<Random>,
    /// Where its replay is to stop.
    pub(crate) stop_at: Option<Point>,
}

impl<V: Vcpu> Machine<V> {
    /// A machine whose processor and memory are as the loader left them.
    #[must_use]
    pub fn new(
        name: String,
        vcpu: V,
        memory: V::Memory,
        profile: Profile,
        devices: &Kind,
        door: Door,
        limits: Limits,
    ) -> Self {
        let dr7 = vcpu.debug().dr7;
        let logged = !door.is_live();
        let place = Place::new(vcpu.icount());
        let board = Board::new(name.clone(), devices);
        let limit = limits
            .instructions
            .map_or(Icount::NEVER, |n| vcpu.icount().after(n));
        Self {
            name,
            vcpu,
            memory,
            board,
            door,
            profile,
            stats: ExitStatistics::default(),
            decoded: DecodeCache::default(),
            stop: None,
            halted: false,
            wanted: Pending::default(),
            tsc_aux: 0,
            limit,
            exit_limit: limits.exits.unwrap_or(u64::MAX),
            unknown_msrs: 0,
            port_breakpoints: has_port_breakpoint(dr7),
            traps: 0,
            logged,
            place,
            divergence: None,
            slicing: None,
            stop_at: None,
        }
    }

    /// Stops a replay at `point`.
    pub fn stop_at(&mut self, point: Point) {
        self.stop_at = Some(point);
    }

    /// Cuts runs at random from now on.
    pub fn slice(&mut self, seed: u64) {
        self.slicing = Some(Random::new(seed));
    }

    /// What was found to differ from the log.
    #[must_use]
    pub fn divergence(&self) -> Option<&Divergence> {
        self.divergence.as_deref()
    }

    /// Its door.
    #[must_use]
    pub fn door(&mut self) -> &mut Door {
        &mut self.door
    }

    /// What became of it, once it has stopped.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        self.stop
    }

    /// Exits so far.
    #[must_use]
    pub fn statistics(&self) -> &ExitStatistics {
        &self.stats
    }

    /// Its processor.
    #[must_use]
    pub fn vcpu(&mut self) -> &mut V {
        &mut self.vcpu
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&mut self) -> &mut V::Memory {
        &mut self.memory
    }

    /// Does something to it, at the next point. Nothing happens to a machine that has stopped, or follows a log.
    /// False: too much waits already.
    pub fn operate(&mut self, operation: Operation) -> bool {
        self.stop.is_some() || self.door.operate(operation)
    }

    /// A frame has come for its network card `nic`: it enters at the next point, unless the card would drop it anyway. A
    /// machine that has stopped or follows a log takes none. False: too much waits already.
    pub fn receive_frame(&mut self, nic: u8, frame: &[u8]) -> bool {
        if self.stop.is_some() || !self.board.wants_frame(nic, frame) {
            self.door.ignore();
            return true;
        }
        self.door.offer(nic, frame)
    }

    /// The link of its network card `nic` has gone up or down, which the guest is told at the next point. False: too much
    /// waits already, or it follows a log.
    pub fn set_link(&mut self, nic: u8, up: bool) -> bool {
        let there = self.board.nic(nic).is_some();
        self.stop.is_some() || !there || self.door.offer_link(nic, up)
    }

    /// Its network card `nic`.
    #[must_use]
    pub fn nic(&self, nic: u8) -> Option<&Net> {
        self.board.nic(nic)
    }

    /// An operation takes effect.
    pub(crate) fn perform(&mut self, operation: Operation) {
        let now = self.door.last();
        match operation {
            Operation::PowerButton => self.board.press_power_button(now),
            Operation::Nmi => self.board.press_nmi_button(now),
            Operation::Reset => self.stop = Some(Stop::Reset),
            Operation::Stop => self.stop = Some(Stop::SwitchedOff),
        }
    }

    /// Starts it again, after a reset, with what the loader has put into its memory and returned as `state`.
    /// Instructions go on being counted from where they were.
    pub fn restart(&mut self, state: &CpuState) {
        let state = CpuState {
            icount: self.vcpu.icount().0,
            ..*state
        };
        self.vcpu.restore(&state);
        self.want(Pending::default());
        self.board.reset(self.door.last());
        self.door.reset();
        self.stop = None;
        self.halted = false;
        self.tsc_aux = 0;
        self.traps = 0;
        self.port_breakpoints = has_port_breakpoint(state.debug.dr7);
        self.place.arrive(self.vcpu.icount());
    }

    /// Its memory and its door.
    #[must_use]
    pub fn memory_and_door(&mut self) -> (&mut V::Memory, &mut Door) {
        (&mut self.memory, &mut self.door)
    }

    /// Takes the machine apart, so that its memory can be given back.
    #[must_use]
    pub fn into_parts(self) -> (V, V::Memory) {
        (self.vcpu, self.memory)
    }
}
