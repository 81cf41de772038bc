//! The guest's hardware breakpoints in QEMU.
//!
//! A processor takes them from the control block at VMRUN. QEMU's translator knows only of those that a MOV to DR7
//! has switched on, so the host executes one, and another behind the exit. In between they are on for the host as well:
//! a breakpoint at an address that the host has mapped is therefore left out, and never fires.

use core::arch::asm;

use arch::addr::Hpa;
use arch::regs::Gpr;
use vmm::cpu::CounterKind;

use super::vcpu::Vcpu;
use crate::mem::physmap;
use crate::x86;

/// DR7 without breakpoints (APM 2 13.1.1.4).
const DR7_OFF: u64 = 0x400;
/// Enable bits of all breakpoints.
const DR7_ENABLES: u64 = 0xff;
/// R/Wn of a breakpoint on instructions.
const KIND_CODE: u64 = 0;
/// R/Wn of a breakpoint on ports: the loop emulates those.
const KIND_PORT: u64 = 2;
/// Bytes below the stack pointer that count as its stack.
const STACK_REACH: u64 = 4096;
/// Bytes that the longest data breakpoint watches, less one.
const REACH: u64 = 7;

impl Vcpu {
    /// Whether there are breakpoints that the host has to switch on.
    #[inline]
    pub(super) fn has_breakpoints(&self) -> bool {
        self.vmcb.save.dr7 & DR7_ENABLES != 0 && self.counting.kind() == CounterKind::Tsc
    }

    /// Switches on what cannot fire in the host.
    pub(super) fn arm_breakpoints(&self) {
        let wanted = self.vmcb.save.dr7;
        let mut dr7 = DR7_OFF;
        for (n, address) in (0u32..).zip(self.live.breakpoints()) {
            let enables = wanted & 3 << (2 * n);
            let condition = wanted & 0xf << (16 + 4 * n);
            let kind = condition >> (16 + 4 * n) & 3;
            let in_host = host_maps(address) || host_maps(address.wrapping_add(REACH));
            let safe = !in_host && (kind == KIND_CODE || !self.delivery_touches(address));
            if enables != 0 && kind != KIND_PORT && safe {
                dr7 |= enables | condition;
            }
        }
        // SAFETY: the upper half is zero, general detect is off, and the host accesses none of the addresses:
        // it has no mapping there.
        unsafe { set_dr7(dr7) };
    }

    /// Whether an address lies in the guest's IDT, GDT or TSS, or where it pushes.
    fn delivery_touches(&self, address: u64) -> bool {
        let save = &self.vmcb.save;
        let stack = save.ss.base.wrapping_add(self.block.gprs[Gpr::Rsp]);
        let within = |base: u64, length: u64| {
            address.wrapping_add(REACH).wrapping_sub(base) <= length.saturating_add(REACH)
        };
        within(save.idtr.base, u64::from(save.idtr.limit))
            || within(save.gdtr.base, u64::from(save.gdtr.limit))
            || within(save.tr.base, u64::from(save.tr.limit))
            || within(stack.wrapping_sub(STACK_REACH), STACK_REACH)
    }

    /// Switches all off.
    pub(super) fn disarm_breakpoints(&self) {
        // SAFETY: enables nothing.
        unsafe { set_dr7(DR7_OFF) };
    }
}

/// Writes DR7.
///
/// # Safety
///
/// The upper half is zero, and nothing the host does meets a breakpoint that the value enables.
unsafe fn set_dr7(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Whether the host's page tables map a linear address, or its 8-byte neighbourhood.
fn host_maps(address: u64) -> bool {
    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let mut table = x86::cr3() & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let index = address >> shift & 0x1ff;
        // SAFETY: the tables in use lie in RAM, which the physical map covers; nothing changes them meanwhile.
        let entry = unsafe {
            physmap::ptr(Hpa(table | index << 3))
                .cast::<u64>()
                .read_volatile()
        };
        if entry & PRESENT == 0 {
            return false;
        }
        if entry & LARGE != 0 {
            return true;
        }
        table = entry & ADDRESS;
    }
    true
}
