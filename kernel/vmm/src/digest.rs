//! Digests of a machine's state, by which two executions are compared.

use arch::addr::Gpa;
use arch::regs::{
    ControlRegisters, CpuState, DebugRegisters, DescriptorTable, Gprs, Segment, Segments,
    SystemMsrs, XsaveArea,
};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::memory::{GuestMemory, NotRam};

/// Digest of everything a processor holds between two instructions, the instruction count included.
///
/// The header of the extended state is left out: whether a component is stored or known to be initial is
/// not a difference a guest can see.
#[must_use]
pub fn cpu_state(state: &CpuState) -> u64 {
    let CpuState {
        gprs: Gprs(gprs),
        rip,
        rflags,
        segments: Segments(segments),
        gdtr,
        idtr,
        control,
        debug,
        msrs,
        shadow,
        pending,
        xsave: XsaveArea(xsave),
        icount,
    } = state;
    let mut hash = Words(Xxh3Default::new());
    gprs.iter().for_each(|g| hash.add(*g));
    hash.add(*rip);
    hash.add(rflags.bits());
    for Segment {
        selector,
        base,
        limit,
        attributes,
    } in segments
    {
        hash.add(u64::from(*selector) | u64::from(*limit) << 32);
        hash.add(*base);
        hash.add(u64::from(attributes.bits()));
    }
    for DescriptorTable { base, limit } in [gdtr, idtr] {
        hash.add(*base);
        hash.add(u64::from(*limit));
    }
    control_registers(&mut hash, control);
    let DebugRegisters {
        dr,
        dr6,
        dr7,
        debugctl,
    } = debug;
    dr.iter().for_each(|d| hash.add(*d));
    [dr6, dr7, debugctl].into_iter().for_each(|d| hash.add(*d));
    system_msrs(&mut hash, msrs);
    hash.add(u64::from(shadow.bits()));
    if let Some(event) = pending {
        hash.add(1 << 63 | u64::from(event.vector) | (event.kind as u64) << 8);
        hash.add(event.error_code.map_or(u64::MAX, u64::from));
        hash.add(u64::from(event.instruction_length));
    }
    let (legacy, rest) = xsave.split_at(512);
    hash.0.update(legacy);
    hash.0.update(rest.get(64..).unwrap_or_default());
    hash.add(*icount);
    hash.0.digest()
}

struct Words(Xxh3Default);

impl Words {
    fn add(&mut self, word: u64) {
        self.0.update(&word.to_le_bytes());
    }
}

fn control_registers(hash: &mut Words, control: &ControlRegisters) {
    let ControlRegisters {
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
        xcr0,
        pdptes,
    } = control;
    for word in [cr0.bits(), *cr2, *cr3, cr4.bits(), efer.bits(), xcr0.bits()] {
        hash.add(word);
    }
    pdptes.iter().for_each(|p| hash.add(*p));
}

fn system_msrs(hash: &mut Words, msrs: &SystemMsrs) {
    let SystemMsrs {
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
    } = msrs;
    for word in [
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
    ] {
        hash.add(*word);
    }
}

/// Digest of the first `bytes` of guest memory.
///
/// # Errors
///
/// There is less memory.
pub fn memory<M: GuestMemory>(memory: &M, bytes: u64) -> Result<u64, NotRam> {
    let mut digest = 0;
    let mut page = [0; 4096];
    for at in (0..bytes).step_by(page.len()) {
        memory.read(Gpa(at), &mut page)?;
        digest = xxh3_64(&page).wrapping_add(u64::rotate_left(digest, 1));
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::event::Event;
    use arch::regs::{Gpr, SegmentName, Shadow};

    #[test]
    fn every_part_of_the_state_counts() {
        let base = CpuState::protected_mode(0x1000);
        let changes: [fn(&mut CpuState); 12] = [
            |s| s.gprs[Gpr::R15] = 1,
            |s| s.rip += 1,
            |s| s.rflags = arch::regs::Rflags::IF,
            |s| s.segments[SegmentName::Tr].limit += 1,
            |s| s.idtr.limit += 1,
            |s| s.control.cr2 = 1,
            |s| s.control.pdptes[3] = 1,
            |s| s.debug.dr[2] = 1,
            |s| s.msrs.pat = 1,
            |s| s.shadow = Shadow::STI,
            |s| s.pending = Some(Event::interrupt(3)),
            |s| s.icount = 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = base;
            change(&mut other);
            assert_ne!(cpu_state(&base), cpu_state(&other), "change {i}");
        }
    }

    #[test]
    fn registers_count_but_the_header_of_extended_state_does_not() {
        let base = CpuState::protected_mode(0);
        let mut other = base;
        other.xsave.0[512] = 3;
        assert_eq!(cpu_state(&base), cpu_state(&other));
        other.xsave.0[600] = 3;
        assert_ne!(cpu_state(&base), cpu_state(&other));
        other = base;
        other.xsave.0[160] = 3;
        assert_ne!(cpu_state(&base), cpu_state(&other));
    }

    #[test]
    fn memory_digests_depend_on_where_the_bytes_are() {
        let mut a = crate::testing::Ram::new(0x4000);
        let mut b = crate::testing::Ram::new(0x4000);
        a.put(0x1000, &[1]);
        b.put(0x2000, &[1]);
        assert_ne!(memory(&a, 0x4000), memory(&b, 0x4000));
        assert!(memory(&a, 0x5000).is_err());
    }
}
