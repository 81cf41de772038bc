//! What the unit tests of this crate share: RAM in a vector, a host without surprises, a processor that
//! follows a script.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use arch::addr::{Gpa, Gva};
use arch::event::{Event, Merged, merge};
use arch::regs::{
    ControlRegisters, CpuState, Cr0, Cr4, DebugRegisters, Efer, Gprs, Rflags, Segment, SegmentName,
    Shadow, SystemMsrs, Xcr0,
};

use crate::code::{CodeContext, decode, fetch};
use crate::cpu::{
    CounterKind, Exit, ExitKind, HostLocalCounts, Icount, PREFER_EXIT_WITHIN, Vcpu, Window,
};
use crate::host::Host;
use crate::memory::{GuestMemory, NotRam};

/// RAM from address 0 up.
pub struct Ram(pub Vec<u8>);

impl Ram {
    pub fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.write(Gpa(at), bytes).expect("inside of test RAM");
    }

    pub fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn put_u32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn range(&self, at: Gpa, length: usize) -> Result<core::ops::Range<usize>, NotRam> {
        let start = usize::try_from(at.0).map_err(|_| NotRam(at))?;
        let end = start.checked_add(length).ok_or(NotRam(at))?;
        if end <= self.0.len() {
            Ok(start..end)
        } else {
            Err(NotRam(at))
        }
    }
}

impl GuestMemory for Ram {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, from: Gpa, to: &mut [u8]) -> Result<(), NotRam> {
        let range = self.range(from, to.len())?;
        to.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn write(&mut self, to: Gpa, from: &[u8]) -> Result<(), NotRam> {
        let range = self.range(to, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }
}

/// 64-bit mode with page tables at `cr3`.
pub fn control_long(cr3: u64) -> ControlRegisters {
    ControlRegisters {
        cr0: Cr0::PE | Cr0::PG | Cr0::ET,
        cr2: 0,
        cr3,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        xcr0: Xcr0::X87,
        pdptes: [0; 4],
    }
}

/// Protected mode without paging.
pub fn control_protected() -> ControlRegisters {
    ControlRegisters {
        cr0: Cr0::PE | Cr0::ET,
        cr2: 0,
        cr3: 0,
        cr4: Cr4::empty(),
        efer: Efer::empty(),
        xcr0: Xcr0::X87,
        pdptes: [0; 4],
    }
}

/// A host whose time and randomness the test sets.
#[derive(Default)]
pub struct TestHost {
    pub now_ns: u64,
    pub random: u64,
    pub lines: Vec<String>,
    /// What COM1 said.
    pub said: Vec<u8>,
    /// What is typed on COM1.
    pub typed: VecDeque<u8>,
    /// Frames that guests sent: through which card.
    pub sent: Vec<(u8, Vec<u8>)>,
}

impl Host for TestHost {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn random(&mut self) -> u64 {
        self.random
    }

    fn unix_seconds(&mut self) -> u64 {
        self.now_ns / 1_000_000_000
    }

    fn ticks(&self, ns: u64) -> u64 {
        ns
    }

    fn console_byte(&mut self, byte: u8) {
        self.said.push(byte);
    }

    fn console_input(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }

    fn transmit(&mut self, _: &str, nic: u8, frame: &[u8]) {
        self.sent.push((nic, frame.to_vec()));
    }

    fn console_line(&mut self, guest: &str, line: &[u8]) {
        self.lines
            .push(format!("{guest}| {}", String::from_utf8_lossy(line)));
    }
}

/// What a scripted processor does at one call of `run`: retire instructions, then exit.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub retired: u64,
    pub exit: Exit,
}

/// What is wrong with a scripted processor's counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CounterFault {
    #[default]
    None,
    /// Counts one too many at each entry.
    OnePerEntry,
    /// Executes one instruction more than asked for at a landing, uncounted.
    LandsLate,
    /// Executes two instructions more than asked for at a landing.
    Overshoots,
}

/// A processor that follows a script. It stops at `until` like a real one.
pub struct ScriptedVcpu {
    pub state: CpuState,
    pub script: VecDeque<Step>,
    /// Events in the order in which they were delivered, with the point.
    pub delivered: Vec<(u64, Event)>,
    pub wanted: Vec<Window>,
    /// The budgets of the calls of `run`.
    pub budgets: Vec<u64>,
    pub invalidated: Vec<Gva>,
    /// Scripts that `restore` begins: the last first, down to one that stays.
    pub programs: Vec<Vec<Step>>,
    pub fault: CounterFault,
    /// `restore` switches interrupts on: there is no STI in a script.
    pub interrupts_on: bool,
    /// `run` returns when the budget, in instructions, is used up; and there is no code, instructions have no length.
    pub free_running: bool,
    pub counter: CounterKind,
    pub prefer_exit: u64,
    /// Bytes of the instruction of the last exit, as long as there is one at RIP.
    length: Option<u8>,
}

impl ScriptedVcpu {
    pub fn new(state: CpuState, script: &[Step]) -> Self {
        Self {
            state,
            script: script.iter().copied().collect(),
            delivered: Vec::new(),
            wanted: Vec::new(),
            budgets: Vec::new(),
            invalidated: Vec::new(),
            programs: Vec::new(),
            fault: CounterFault::None,
            interrupts_on: false,
            free_running: false,
            counter: CounterKind::Tsc,
            prefer_exit: PREFER_EXIT_WITHIN,
            length: None,
        }
    }
}

impl Vcpu for ScriptedVcpu {
    type Memory = Ram;

    fn run(&mut self, memory: &mut Ram, until: Icount, budget: u64) -> Exit {
        self.budgets.push(budget);
        if let Some(event) = self.state.pending.take() {
            self.delivered.push((self.state.icount, event));
        }
        if let Some(window) = self.wanted.iter().copied().find(|w| self.can_take(*w)) {
            assert!(self.wanted.contains(&window));
            return Exit::Window;
        }
        let Some(step) = self.script.front_mut() else {
            return Exit::HostWork;
        };
        let allowed = until.0.saturating_sub(self.state.icount);
        if allowed == 0 {
            return Exit::Landed;
        }
        let counts = self.counter == CounterKind::Tsc;
        if self.free_running && budget < allowed.min(step.retired) {
            step.retired -= budget;
            self.state.icount += if counts { budget } else { 0 };
            return Exit::HostWork;
        }
        if !counts {
            step.retired = 0;
            self.state.icount += u64::from(step.exit.kind() == ExitKind::Deterministic);
        }
        if step.retired > allowed {
            let (executed, counted) = match self.fault {
                CounterFault::None => (allowed, allowed),
                CounterFault::OnePerEntry => (allowed, allowed + 1),
                CounterFault::LandsLate => (allowed + 1, allowed),
                CounterFault::Overshoots => (allowed + 2, allowed + 2),
            };
            step.retired = step.retired.saturating_sub(executed);
            self.state.icount += counted;
            return Exit::Landed;
        }
        self.state.icount += step.retired + u64::from(self.fault == CounterFault::OnePerEntry);
        let exit = step.exit;
        self.script.pop_front();
        // Measured at the exit, as backends do: handling it may change where the code is mapped.
        let cs = &self.state.segments[SegmentName::Cs];
        let context = CodeContext {
            paging: &self.state.control.paging(),
            cs_base: cs.base,
            cs_attributes: cs.attributes,
            cpl: 0,
            rip: self.state.rip,
        };
        let instruction = fetch(memory, &context).and_then(|code| decode(&code, &context));
        self.length = instruction.ok().map(|i| i.len() as u8);
        if self.free_running {
            self.length = Some(0);
        }
        exit
    }

    fn icount(&self) -> Icount {
        Icount(self.state.icount)
    }

    fn counter(&self) -> CounterKind {
        self.counter
    }

    fn prefer_exit_within(&self) -> u64 {
        self.prefer_exit
    }

    fn advance(&mut self, _: &Ram) {
        let length = self.length.expect("an instruction at the exit");
        self.advance_by(length);
    }

    fn advance_by(&mut self, length: u8) {
        self.state.rip = self.state.rip.wrapping_add(u64::from(length));
        self.state.icount += u64::from(self.counter == CounterKind::Tsc);
        self.state.shadow &= Shadow::NMI;
        self.state.rflags -= Rflags::RF;
    }

    fn inject(&mut self, event: Event) -> bool {
        match self.state.pending {
            None => self.state.pending = Some(event),
            Some(first) => match merge(first, event) {
                Merged::Deliver(event) => self.state.pending = Some(event),
                Merged::TripleFault => return false,
            },
        }
        true
    }

    fn pending(&self) -> Option<Event> {
        self.state.pending
    }

    fn can_take(&self, window: Window) -> bool {
        let shadow = self.state.shadow;
        self.state.pending.is_none()
            && match window {
                Window::Interrupt => {
                    self.state.rflags.contains(Rflags::IF)
                        && !shadow.intersects(Shadow::STI | Shadow::MOV_SS)
                }
                Window::Nmi => !shadow.intersects(Shadow::NMI | Shadow::MOV_SS),
            }
    }

    fn request_window(&mut self, window: Window, wanted: bool) {
        self.wanted.retain(|w| *w != window);
        if wanted {
            self.wanted.push(window);
        }
    }

    fn gprs(&self) -> &Gprs {
        &self.state.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.state.gprs
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
    }
    fn rflags(&self) -> Rflags {
        self.state.rflags
    }
    fn set_rflags(&mut self, rflags: Rflags) {
        self.state.rflags = rflags;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        self.state.segments[name]
    }
    fn control(&self) -> ControlRegisters {
        self.state.control
    }
    fn set_control(&mut self, control: &ControlRegisters) {
        self.state.control = *control;
    }
    fn debug(&self) -> DebugRegisters {
        self.state.debug
    }
    fn set_debug(&mut self, debug: &DebugRegisters) {
        self.state.debug = *debug;
    }
    fn msrs(&self) -> SystemMsrs {
        self.state.msrs
    }
    fn set_msrs(&mut self, msrs: &SystemMsrs) {
        self.state.msrs = *msrs;
    }
    fn set_segment_base(&mut self, name: SegmentName, base: u64) {
        self.state.segments[name].base = base;
    }
    fn invalidate_page(&mut self, gva: Gva) {
        self.invalidated.push(gva);
    }
    fn save(&mut self) -> CpuState {
        self.state
    }
    fn restore(&mut self, state: &CpuState) {
        self.state = *state;
        let program = if self.programs.len() > 1 {
            self.programs.pop()
        } else {
            self.programs.first().cloned()
        };
        self.script = program.unwrap_or_default().into();
        self.state.rflags.set(Rflags::IF, self.interrupts_on);
    }
    fn host_local(&self) -> HostLocalCounts {
        HostLocalCounts::default()
    }
    fn dump(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        out.write_str("scripted")
    }
}
