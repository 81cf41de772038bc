//! Events into the guest: injection, windows, and events whose delivery an exit cut off
//! (SDM 3 26.8.3, 28.6, 29.2.4).

use arch::event::{Event, EventKind, Merged, merge};
use arch::regs::{Cr0, Rflags};
use arch::vmx::control::{Interruptibility, PendingDebug, PrimaryControls};
use arch::vmx::{event as format, field};
use vmm::cpu::Window;

use super::vcpu::Vcpu;

const SHADOW: Interruptibility = Interruptibility::STI.union(Interruptibility::MOV_SS);
/// IA32_DEBUGCTL.BTF: RFLAGS.TF traps branches only.
const TRAP_BRANCHES_ONLY: u64 = 1 << 1;

impl Vcpu {
    /// What of an interrupt shadow the last exit has left; blocking of NMIs is not to be believed here.
    #[inline]
    fn stored_interruptibility(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.vmcs.read(field::GUEST_INTERRUPTIBILITY))
    }

    /// Bochs 2.7 does not end the blocking of NMIs at a VM entry with a guest that has none: it shows that of the guest
    /// that ran before. But a guest's NMIs can only be blocked by one that was injected.
    #[inline]
    pub(super) fn interruptibility(&self) -> Interruptibility {
        let mut stored = self.stored_interruptibility();
        if !self.nmi_may_block.get() {
            stored.remove(Interruptibility::NMI);
        }
        stored
    }

    pub(super) fn set_interruptibility(&self, value: Interruptibility) {
        self.nmi_may_block
            .set(value.contains(Interruptibility::NMI));
        self.vmcs.set(field::GUEST_INTERRUPTIBILITY, value.bits());
    }

    /// Another guest's state was in the processor: what this one's last exit has left is still its own.
    #[cold]
    pub(super) fn note_nmi_blocking(&self) {
        let blocked = self.interruptibility().contains(Interruptibility::NMI);
        self.nmi_may_block.set(blocked);
    }

    /// See [`vmm::cpu::Vcpu::inject`].
    pub(super) fn queue_event(&mut self, event: Event) -> bool {
        let combined = match self.pending {
            Some(first) if event.kind == EventKind::Exception => merge(first, event),
            _ => Merged::Deliver(event),
        };
        match combined {
            Merged::Deliver(event) => {
                self.pending = Some(event);
                true
            }
            Merged::TripleFault => false,
        }
    }

    /// See [`vmm::cpu::Vcpu::can_take`].
    pub(super) fn window_is_open(&self, window: Window) -> bool {
        if self.pending.is_some() {
            return false;
        }
        let blocked = self.interruptibility();
        match window {
            Window::Interrupt => !blocked.intersects(SHADOW) && self.rflags.contains(Rflags::IF),
            // Some processors refuse an NMI in the shadow of STI, too (SDM 3 28.3.1.5).
            Window::Nmi => !blocked.intersects(SHADOW | Interruptibility::NMI),
        }
    }

    /// Whether a window that was asked for is open.
    pub(super) fn wanted_window_is_open(&self) -> bool {
        let wanted = self.windows;
        wanted.contains(PrimaryControls::INTERRUPT_WINDOW_EXITING)
            && self.window_is_open(Window::Interrupt)
            || wanted.contains(PrimaryControls::NMI_WINDOW_EXITING)
                && self.window_is_open(Window::Nmi)
    }

    /// Closes or opens the two window exits as asked for.
    #[inline(never)]
    pub(super) fn prepare_windows(&mut self) {
        let mut wanted = self.windows;
        if wanted.contains(PrimaryControls::NMI_WINDOW_EXITING)
            && self.interruptibility().contains(Interruptibility::STI)
        {
            // Whether the NMI window opens in the shadow of STI depends on the processor. With the shadow
            // goes RFLAGS.IF, so the interrupt window opens right behind it.
            wanted.remove(PrimaryControls::NMI_WINDOW_EXITING);
            wanted.insert(PrimaryControls::INTERRUPT_WINDOW_EXITING);
        }
        if wanted != self.loaded_windows {
            let controls = self.capabilities.primary | wanted;
            // SAFETY: only the two window exits change, both of which this processor has.
            unsafe {
                self.vmcs.write(field::PRIMARY_CONTROLS, controls.bits());
            }
            self.loaded_windows = wanted;
        }
    }

    /// Fills in the VM-entry fields for the pending event.
    #[cold]
    pub(super) fn prepare_injection(&self, event: Event) {
        let protected = Cr0::from_bits_retain(self.vmcs.read(field::GUEST_CR0)).contains(Cr0::PE);
        let fields = format::encode(event, protected);
        if event.kind == EventKind::Nmi {
            self.set_interruptibility(self.interruptibility());
            self.nmi_may_block.set(true);
        }
        // SAFETY: the fields only choose what the guest's own IDT is entered with; nonsense is refused by
        // the entry's checks.
        unsafe {
            self.vmcs.write(field::ENTRY_INTERRUPTION_INFO, fields.info);
            self.vmcs
                .write(field::ENTRY_EXCEPTION_ERROR_CODE, fields.error_code);
            self.vmcs
                .write(field::ENTRY_INSTRUCTION_LENGTH, fields.instruction_length);
        }
        self.align_single_step();
    }

    /// Takes back what [`Vcpu::prepare_injection`] filled in, after an entry that failed.
    pub(super) fn cancel_injection(&self) {
        // SAFETY: no event is always valid.
        unsafe { self.vmcs.write(field::ENTRY_INTERRUPTION_INFO, 0) };
    }

    /// In an interrupt shadow the pending single step must agree with RFLAGS.TF, or the entry is refused
    /// (SDM 3 28.3.1.5). It gets out of step when the flags, or the shadow, were set from outside, or
    /// when a #DB was taken out of the shadow by an exit.
    pub(super) fn align_single_step(&self) {
        if !self.interruptibility().intersects(SHADOW) {
            return;
        }
        let mut pending =
            PendingDebug::from_bits_retain(self.vmcs.read(field::GUEST_PENDING_DEBUG));
        pending.set(PendingDebug::SINGLE_STEP, self.single_steps());
        self.vmcs.set(field::GUEST_PENDING_DEBUG, pending.bits());
    }

    /// Whether the guest traps behind every instruction.
    fn single_steps(&self) -> bool {
        self.rflags.contains(Rflags::TF)
            && self.vmcs.read(field::GUEST_DEBUGCTL) & TRAP_BRANCHES_ONLY == 0
    }

    /// The instruction at RIP counts as executed: shadows and RF end, and a single step is due.
    #[inline]
    pub(super) fn finish_instruction(&mut self) {
        let blocked = self.stored_interruptibility();
        if blocked.intersects(SHADOW) {
            self.vmcs
                .set(field::GUEST_INTERRUPTIBILITY, (blocked - SHADOW).bits());
        }
        if self.rflags.intersects(Rflags::RF | Rflags::TF) {
            self.finish_marked_instruction();
        }
    }

    #[cold]
    fn finish_marked_instruction(&mut self) {
        self.store_rflags(self.rflags - Rflags::RF);
        if self.single_steps() {
            let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
            let step = PendingDebug::SINGLE_STEP.bits();
            self.vmcs.set(field::GUEST_PENDING_DEBUG, pending | step);
        }
    }

    /// For exits that can come while an event is being delivered: such an event is delivered again at the next
    /// entry, unless the exit's handler combines it with another one. Returns whether there was one.
    pub(super) fn keep_cut_off_event(&mut self) -> bool {
        let idt_vectoring = self.vmcs.read(field::IDT_VECTORING_INFO);
        let correction = self.counting.correction(&self.frame, idt_vectoring);
        self.icount = self.icount.wrapping_add(correction);
        if idt_vectoring & format::VALID == 0 {
            return false;
        }
        self.pending = format::decode(
            idt_vectoring,
            || self.vmcs.read(field::IDT_VECTORING_ERROR_CODE),
            || self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH),
        );
        if self
            .pending
            .is_some_and(|event| event.kind == EventKind::Nmi)
        {
            // The delivery has begun to block NMIs; blocked, the NMI could not be delivered again.
            let blocked = self.interruptibility();
            self.set_interruptibility(blocked - Interruptibility::NMI);
        }
        true
    }

    /// The exit hit an IRET that had already ended NMI blocking: it executes again, so the blocking goes on.
    #[cold]
    pub(super) fn block_nmi_again(&self) {
        if self.nmi_may_block.get() {
            let blocked = self.interruptibility();
            self.set_interruptibility(blocked | Interruptibility::NMI);
        }
    }
}
