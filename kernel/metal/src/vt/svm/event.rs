//! Delivery of events to the guest: injection, cut-off events, windows, NMI blocking.
//!
//! Interrupts are injected as virtual interrupts without an intercept, not by EVENTINJ: QEMU's translator
//! delivers an injected interrupt twice when its instruction counter runs out behind it. (It does not where an interrupt
//! of the host is pending already: a step delivers by EVENTINJ.) A virtual interrupt that was not taken when the guest
//! stops is taken back, so between two runs `pending` is the whole truth.

use arch::event::{Event, EventKind};
use arch::regs::Rflags;
use arch::svm::control::{CleanBits, Intercepts1, InterruptControl, InterruptState};
use arch::svm::entry_check;
use arch::svm::event::{CutOff, decode, encode};
use arch::svm::exit::ExitCode;
use vmm::cpu::{CounterKind, Exit, Window};

use super::vcpu::Vcpu;

/// Whether NMIs are blocked, which SVM does not track for injected ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nmi {
    /// They can be delivered.
    Open,
    /// The handler runs; IRET is intercepted.
    Blocked,
    /// The IRET at this RIP and RSP is about to execute; they are open when one of the two has changed.
    Returning { rip: u64, rsp: u64 },
}

/// What the virtual interrupt in the control block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VirtualInterrupt {
    None,
    /// `pending` is delivered by it.
    Injected,
    /// It is intercepted: it tells when the guest could take one.
    Window,
}

/// The state of event delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    pub(super) pending: Option<Event>,
    pub(super) nmi: Nmi,
    pub(super) interrupt_window: bool,
    pub(super) nmi_window: bool,
    /// Interrupts are delivered by EVENTINJ at the next entry: it ends behind the delivery, an interrupt of the host is
    /// pending, which goes before a virtual one; or a performance counter counts, for which all are to be alike.
    pub(super) by_injection: bool,
    virtual_interrupt: VirtualInterrupt,
    /// RIP and RSP at the last entry that delivered something.
    entered_at: (u64, u64),
}

impl Events {
    pub(super) const NONE: Self = Self {
        pending: None,
        nmi: Nmi::Open,
        interrupt_window: false,
        nmi_window: false,
        by_injection: false,
        virtual_interrupt: VirtualInterrupt::None,
        entered_at: (0, 0),
    };

    /// Nothing of this has to be looked at when the guest runs.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_none()
            && self.nmi == Nmi::Open
            && !self.interrupt_window
            && !self.nmi_window
    }
}

/// How far the next entry may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// As far as the caller wants.
    Free,
    /// One instruction: the window opens somewhere the processor does not stop by itself.
    Step,
}

impl Vcpu {
    /// Whether the last exit left an interrupt shadow.
    #[inline]
    pub(super) fn in_shadow(&self) -> bool {
        self.vmcb
            .control
            .interrupt_state
            .contains(InterruptState::SHADOW)
    }

    /// See [`vmm::cpu::Vcpu::can_take`].
    #[inline]
    pub(super) fn is_open(&self, window: Window) -> bool {
        let unmasked = match window {
            Window::Interrupt => self.vmcb.save.rflags & Rflags::IF.bits() != 0,
            Window::Nmi => self.events.nmi == Nmi::Open,
        };
        unmasked && self.events.pending.is_none() && !self.in_shadow()
    }

    /// Blocks NMIs until the guest's next IRET, or opens them.
    pub(super) fn set_nmi(&mut self, nmi: Nmi) {
        self.events.nmi = nmi;
        self.vmcb.intercept(Intercepts1::IRET, nmi == Nmi::Blocked);
    }

    /// Puts what is to be delivered or waited for into the control block.
    ///
    /// # Errors
    ///
    /// The exit to return instead of entering.
    pub(super) fn load_events(&mut self) -> Result<Reach, Exit> {
        let any_window = self.events.interrupt_window || self.events.nmi_window;
        self.events.entered_at = (self.vmcb.save.rip, self.vmcb.save.rsp);
        let Some(event) = self.events.pending else {
            return self.load_windows();
        };
        if let Some(reason) = entry_check::check_event(event) {
            return Err(Exit::EntryRefused { reason });
        }
        match event.kind {
            EventKind::Interrupt => {
                if self.vmcb.save.rflags & Rflags::IF.bits() == 0 || self.in_shadow() {
                    return Err(Exit::EntryRefused {
                        reason: "APM 2 15.21.4: an interrupt is pending that the guest cannot take",
                    });
                }
                if self.events.by_injection {
                    self.vmcb.control.event_injection = encode(event);
                } else {
                    self.arm_virtual_interrupt(VirtualInterrupt::Injected, event.vector);
                }
            }
            EventKind::Nmi => {
                self.vmcb.control.event_injection = encode(event);
                self.set_nmi(Nmi::Blocked);
            }
            EventKind::Exception | EventKind::PrivilegedSoftwareException => {
                self.vmcb.control.event_injection = encode(event);
            }
            // RIP points at the instruction, which runs again and delivers it.
            EventKind::SoftwareInterrupt | EventKind::SoftwareException => {
                self.events.pending = None;
            }
        }
        Ok(if any_window { Reach::Step } else { Reach::Free })
    }

    fn load_windows(&mut self) -> Result<Reach, Exit> {
        let Events {
            interrupt_window,
            nmi_window,
            nmi,
            ..
        } = self.events;
        if interrupt_window && self.is_open(Window::Interrupt)
            || nmi_window && self.is_open(Window::Nmi)
        {
            return Err(Exit::Window);
        }
        let shadow = self.in_shadow();
        if interrupt_window && !shadow {
            self.arm_virtual_interrupt(VirtualInterrupt::Window, 0);
        }
        // QEMU does not reload the shadow at VMRUN and would report the window inside of it.
        let step = shadow && (interrupt_window || nmi_window)
            || nmi_window && matches!(nmi, Nmi::Returning { .. });
        Ok(if step { Reach::Step } else { Reach::Free })
    }

    fn arm_virtual_interrupt(&mut self, purpose: VirtualInterrupt, vector: u8) {
        self.events.virtual_interrupt = purpose;
        self.vmcb.control.interrupt_control =
            InterruptControl::V_INTR_MASKING | InterruptControl::pending(vector);
        self.vmcb.changed(CleanBits::INTERRUPT);
        if purpose == VirtualInterrupt::Window {
            self.vmcb.intercept(Intercepts1::VINTR, true);
        }
    }

    /// Takes back what the guest did not take, and notes an event whose delivery the exit cut off. Returns how
    /// many of the instructions counted will be counted once more.
    pub(super) fn settle_events(&mut self, code: ExitCode, retired: u64) -> u64 {
        let not_taken = self.disarm_virtual_interrupt();
        self.vmcb.control.event_injection = 0;
        if code == ExitCode::INVALID {
            if self
                .events
                .pending
                .is_some_and(|event| event.kind == EventKind::Nmi)
            {
                self.set_nmi(Nmi::Open);
            }
            return 0;
        }
        let here = (self.vmcb.save.rip, self.vmcb.save.rsp);
        if let Nmi::Returning { rip, rsp } = self.events.nmi
            && here != (rip, rsp)
        {
            self.events.nmi = Nmi::Open;
        }
        let was = self.events.pending.take();
        if not_taken {
            self.events.pending = was;
            return 0;
        }
        match decode(self.vmcb.control.exit_interrupt_info) {
            CutOff::Nothing => 0,
            // Only where instructions are counted (in QEMU) it has been counted already.
            CutOff::Instruction => u64::from(self.counting.kind() == CounterKind::Tsc),
            CutOff::Event(event) => {
                let is_interrupt = was.is_some_and(|was| {
                    // QEMU reports a virtual interrupt that was cut off as an exception. Nothing was
                    // executed, nothing was pushed: the guest has not come to raise one.
                    was.kind == EventKind::Interrupt
                        && was.vector == event.vector
                        && retired == 0
                        && here == self.events.entered_at
                });
                if event.kind == EventKind::Nmi {
                    self.set_nmi(Nmi::Open);
                }
                self.events.pending = if is_interrupt { was } else { Some(event) };
                0
            }
        }
    }

    /// Returns whether an injected interrupt is still in the control block.
    fn disarm_virtual_interrupt(&mut self) -> bool {
        let purpose = self.events.virtual_interrupt;
        if purpose == VirtualInterrupt::None {
            return false;
        }
        let left = self
            .vmcb
            .control
            .interrupt_control
            .contains(InterruptControl::V_IRQ);
        self.events.virtual_interrupt = VirtualInterrupt::None;
        self.vmcb.control.interrupt_control = InterruptControl::V_INTR_MASKING;
        self.vmcb.changed(CleanBits::INTERRUPT);
        if purpose == VirtualInterrupt::Window {
            self.vmcb.intercept(Intercepts1::VINTR, false);
            return false;
        }
        left
    }

    /// The guest is about to execute IRET while NMIs are blocked: lets it, and watches for its end.
    pub(super) fn iret(&mut self) {
        self.set_nmi(Nmi::Returning {
            rip: self.vmcb.save.rip,
            rsp: self.vmcb.save.rsp,
        });
    }
}
