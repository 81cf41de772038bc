//! Digests of a machine's state, by which two executions are compared.

use core::ops::Range;

use arch::addr::{Gpa, LARGE_PAGE_SIZE};
use arch::regs::{
    ControlRegisters, CpuState, DebugRegisters, DescriptorTable, Gprs, Segment, Segments,
    SystemMsrs, XsaveArea,
};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use crate::memory::{GuestMemory, NotRam};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Digests of the parts of a processor's state, so that a difference can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts(pub [u64; Parts::NAMES.len()]);

impl Parts {
    /// What they are of.
    pub const NAMES: [&'static str; 7] = [
        "general registers, RIP, RFLAGS or the count of instructions",
        "segments and descriptor tables",
        "control registers",
        "debug registers",
        "MSRs",
        "interrupt shadow or the event under way",
        "extended state",
    ];

    /// The names of the parts in which `self` and `other` differ.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        let pairs = self.0.iter().zip(&other.0);
        let named = Self::NAMES.into_iter().zip(pairs);
        named.filter_map(|(name, (a, b))| (a != b).then_some(name))
    }
}

/// Digest of everything a processor holds between two instructions, the instruction count included.
#[must_use]
pub fn cpu_state(state: &CpuState) -> u64 {
    let mut hash = Words::new();
    parts(state).0.into_iter().for_each(|part| hash.add(part));
    hash.0.digest()
}

/// The same part by part.
///
/// The header of the extended state is left out: whether a component is stored or known to be initial is
/// not a difference a guest can see.
#[must_use]
pub fn parts(state: &CpuState) -> Parts {
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
    let mut registers = Words::new();
    gprs.iter().for_each(|g| registers.add(*g));
    for word in [*rip, rflags.bits(), *icount] {
        registers.add(word);
    }
    let mut events = Words::new();
    events.add(u64::from(shadow.bits()));
    if let Some(event) = pending {
        events.add(1 << 63 | u64::from(event.vector) | (event.kind as u64) << 8);
        events.add(event.error_code.map_or(u64::MAX, u64::from));
        events.add(u64::from(event.instruction_length));
    }
    let mut extended = Words::new();
    let (legacy, rest) = xsave.split_at(512);
    extended.0.update(legacy);
    extended.0.update(rest.get(64..).unwrap_or_default());
    Parts(
        [
            registers,
            segment_registers(segments, [gdtr, idtr]),
            control_registers(control),
            debug_registers(debug),
            system_msrs(msrs),
            events,
            extended,
        ]
        .map(|hash| hash.0.digest()),
    )
}

struct Words(Xxh3Default);

impl Words {
    fn new() -> Self {
        Self(Xxh3Default::new())
    }

    fn add(&mut self, word: u64) {
        self.0.update(&word.to_le_bytes());
    }
}

fn segment_registers(segments: &[Segment], tables: [&DescriptorTable; 2]) -> Words {
    let mut hash = Words::new();
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
    for DescriptorTable { base, limit } in tables {
        hash.add(*base);
        hash.add(u64::from(*limit));
    }
    hash
}

fn control_registers(control: &ControlRegisters) -> Words {
    let ControlRegisters {
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
        xcr0,
        pdptes,
    } = control;
    let mut hash = Words::new();
    for word in [cr0.bits(), *cr2, *cr3, cr4.bits(), efer.bits(), xcr0.bits()] {
        hash.add(word);
    }
    pdptes.iter().for_each(|p| hash.add(*p));
    hash
}

fn debug_registers(debug: &DebugRegisters) -> Words {
    let DebugRegisters {
        dr,
        dr6,
        dr7,
        debugctl,
    } = debug;
    let mut hash = Words::new();
    dr.iter().for_each(|d| hash.add(*d));
    [dr6, dr7, debugctl].into_iter().for_each(|d| hash.add(*d));
    hash
}

fn system_msrs(msrs: &SystemMsrs) -> Words {
    let mut hash = Words::new();
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
    hash
}

/// Digest of the first `bytes` of guest memory: the sum, modulo 2⁶⁴, of a digest of each page that is not all zero and of where it is.
///
/// A sum, so that it is that of its parts; and pages that were never touched cost nothing.
///
/// # Errors
///
/// There is less memory.
pub fn memory<M: GuestMemory>(memory: &M, bytes: u64) -> Result<u64, NotRam> {
    part_of_memory(memory, 0..bytes)
}

/// Digest of a part of guest memory, whose ends are multiples of the page size.
///
/// # Errors
///
/// It is not all memory.
pub fn part_of_memory<M: GuestMemory>(memory: &M, part: Range<u64>) -> Result<u64, NotRam> {
    let mut sum = 0u64;
    let mut page = [0; PAGE];
    let mut at = Gpa(part.start);
    while at.0 < part.end {
        if at.0.is_multiple_of(LARGE_PAGE_SIZE) && memory.is_untouched(at) {
            at = at.offset(LARGE_PAGE_SIZE);
            continue;
        }
        memory.read(at, &mut page)?;
        if page != [0; PAGE] {
            sum = sum.wrapping_add(xxh3_64_with_seed(&page, at.0 / PAGE as u64));
        }
        at = at.offset(PAGE as u64);
    }
    Ok(sum)
}

/// The digest that runs along with an execution: every deterministic exit is folded into it, with the point and the
/// registers. No single difference can get lost: each step is a bijection of the value before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running(u64);

impl Running {
    /// An odd number without pattern (2⁶⁴ divided by the golden ratio).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Folds what happened, where, and the registers. This is on the way of every exit: a word costs two instructions, every
    /// fourth a multiplication.
    #[inline]
    pub fn fold_exit(&mut self, what: u64, icount: u64, registers: (u64, u64, &Gprs)) {
        let (rip, rflags, gprs) = registers;
        let mut digest = Self::stir(self.0 ^ what << 56 ^ icount);
        digest = Self::stir((digest ^ rip).rotate_left(23) ^ rflags);
        let (quads, _) = gprs.0.as_chunks::<4>();
        for [a, b, c, d] in quads {
            let two = (digest ^ a).rotate_left(13) ^ b;
            let three = two.rotate_left(13) ^ c;
            digest = Self::stir(three.rotate_left(13) ^ d);
        }
        self.0 = digest;
    }

    #[inline]
    const fn stir(digest: u64) -> u64 {
        digest.wrapping_mul(Self::FACTOR).rotate_left(29)
    }

    /// All of it.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// A few bits, for where a whole one would be too much.
    #[must_use]
    pub const fn low(self) -> u16 {
        self.0 as u16
    }
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
    fn memory_digests_depend_on_what_is_where_and_not_on_zeroes() {
        let digest = |at: u64, byte: u8| {
            let mut ram = crate::testing::Ram::new(0x4000);
            ram.put(at, &[byte]);
            memory(&ram, 0x4000)
        };
        assert_ne!(digest(0x1000, 1), digest(0x2000, 1));
        assert_ne!(digest(0x1000, 1), digest(0x1000, 2));
        assert_ne!(digest(0x1000, 1), digest(0x1001, 1));
        assert_eq!(digest(0x1000, 0), Ok(0));
        assert!(memory(&crate::testing::Ram::new(0x1000), 0x2000).is_err());
        assert_eq!(memory(&crate::testing::Ram::new(0x8000), 0x8000), Ok(0));
    }

    #[test]
    fn the_whole_of_memory_is_the_sum_of_its_parts() {
        let mut ram = crate::testing::Ram::new(0x4000);
        ram.put(0x1fff, &[1, 2]);
        let parts = [0..0x2000, 0x2000..0x3000, 0x3000..0x4000];
        let parts = parts.map(|part| part_of_memory(&ram, part).unwrap());
        assert_eq!(
            memory(&ram, 0x4000),
            Ok(parts.iter().fold(0, |sum: u64, p| sum.wrapping_add(*p)))
        );
        assert!(parts[0] != 0 && parts[1] != 0 && parts[2] == 0);
        assert!(part_of_memory(&ram, 0x3000..0x5000).is_err());
    }

    #[test]
    fn whatever_is_folded_changes_the_running_digest() {
        let run = |change: &dyn Fn(&mut [u64; 20])| {
            let mut words = [5; 20];
            change(&mut words);
            let [what, icount, rip, rflags, gprs @ ..] = words;
            let mut digest = Running::default();
            digest.fold_exit(1, 1, (1, 1, &Gprs([1; 16])));
            digest.fold_exit(what, icount, (rip, rflags, &Gprs(gprs)));
            digest.fold_exit(2, 2, (2, 2, &Gprs([2; 16])));
            digest.value()
        };
        let base = run(&|_| {});
        for at in 0..20 {
            assert_ne!(run(&|words| words[at] ^= 1), base, "{at}");
        }
        assert_ne!(run(&|words| words[5] = 6), run(&|words| words[6] = 6));
    }
}
