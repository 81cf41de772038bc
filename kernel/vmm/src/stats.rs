//! What the guest did: exits by reason with their cost, and the last few of them for a dump.

use core::fmt;

use crate::cpu::{Exit, ExitKind};

/// Why a guest left, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // the names of `Exit`
pub enum Reason {
    Cpuid,
    Hlt,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Rdrand,
    Rdseed,
    ReadMsr,
    WriteMsr,
    PortRead,
    PortWrite,
    PortString,
    ReadCr,
    WriteCr,
    ReadDr,
    WriteDr,
    Xsetbv,
    Wbinvd,
    Invlpg,
    Monitor,
    Mwait,
    Hypercall,
    NoSuchInstruction,
    MmioRead,
    MmioWrite,
    Exception,
    TaskSwitch,
    TripleFault,
    EntryRefused,
    Unexpected,
    Landed,
    HostWork,
    Window,
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Reason::Window as usize + 1;

    const NAMES: [&'static str; Self::COUNT] = [
        "cpuid",
        "hlt",
        "rdtsc",
        "rdtscp",
        "rdpmc",
        "rdrand",
        "rdseed",
        "rdmsr",
        "wrmsr",
        "port-read",
        "port-write",
        "port-string",
        "cr-read",
        "cr-write",
        "dr-read",
        "dr-write",
        "xsetbv",
        "wbinvd",
        "invlpg",
        "monitor",
        "mwait",
        "hypercall",
        "no-such-instruction",
        "mmio-read",
        "mmio-write",
        "exception",
        "task-switch",
        "triple-fault",
        "entry-refused",
        "unexpected",
        "landed",
        "host-work",
        "window",
    ];

    /// What [`Exit::kind`] says of such exits.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> ExitKind {
        match self {
            Reason::Landed | Reason::HostWork | Reason::Window => ExitKind::HostLocal,
            _ => ExitKind::Deterministic,
        }
    }

    /// Its name in logs and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or("?")
    }
}

impl From<&Exit> for Reason {
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::Cpuid => Reason::Cpuid,
            Exit::Hlt => Reason::Hlt,
            Exit::Rdtsc => Reason::Rdtsc,
            Exit::Rdtscp => Reason::Rdtscp,
            Exit::Rdpmc => Reason::Rdpmc,
            Exit::Rdrand { .. } => Reason::Rdrand,
            Exit::Rdseed { .. } => Reason::Rdseed,
            Exit::ReadMsr => Reason::ReadMsr,
            Exit::WriteMsr => Reason::WriteMsr,
            Exit::Port(port) if port.string => Reason::PortString,
            Exit::Port(port) if port.write => Reason::PortWrite,
            Exit::Port(_) => Reason::PortRead,
            Exit::ReadCr { .. } => Reason::ReadCr,
            Exit::WriteCr { .. } => Reason::WriteCr,
            Exit::ReadDr { .. } => Reason::ReadDr,
            Exit::WriteDr { .. } => Reason::WriteDr,
            Exit::Xsetbv => Reason::Xsetbv,
            Exit::Wbinvd => Reason::Wbinvd,
            Exit::Invlpg { .. } => Reason::Invlpg,
            Exit::Monitor => Reason::Monitor,
            Exit::Mwait => Reason::Mwait,
            Exit::Hypercall => Reason::Hypercall,
            Exit::NoSuchInstruction => Reason::NoSuchInstruction,
            Exit::NestedFault(fault) if fault.write => Reason::MmioWrite,
            Exit::NestedFault(_) => Reason::MmioRead,
            Exit::Exception { .. } => Reason::Exception,
            Exit::TaskSwitch { .. } => Reason::TaskSwitch,
            Exit::TripleFault => Reason::TripleFault,
            Exit::EntryRefused { .. } => Reason::EntryRefused,
            Exit::Unexpected { .. } => Reason::Unexpected,
            Exit::Landed => Reason::Landed,
            Exit::HostWork => Reason::HostWork,
            Exit::Window => Reason::Window,
        }
    }
}

/// One exit as kept for a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Why.
    pub reason: Reason,
    /// RIP at the exit.
    pub rip: u64,
    /// Instructions retired.
    pub icount: u64,
}

/// Exits kept for a dump; a power of two.
pub const TRACES: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Total {
    count: u64,
    ticks: u64,
}

/// The counts of one guest.
#[derive(Clone, Debug)]
pub struct ExitStatistics {
    totals: [Total; Reason::COUNT],
    traces: [Trace; TRACES],
    /// Exits noted in all: those that `traces` holds are the last ones.
    noted: u64,
    /// Whose cost the next entry ends.
    last: Option<Reason>,
    last_host_ticks: u64,
}

impl Default for ExitStatistics {
    fn default() -> Self {
        let none = Trace {
            reason: Reason::HostWork,
            rip: 0,
            icount: 0,
        };
        Self {
            totals: [Total::default(); Reason::COUNT],
            traces: [none; TRACES],
            noted: 0,
            last: None,
            last_host_ticks: 0,
        }
    }
}

impl ExitStatistics {
    /// The guest gets the processor: what the host did meanwhile for others is no exit's cost.
    pub fn resume(&mut self) {
        self.last = None;
    }

    /// Notes an exit. `host_ticks` is the processor's running total, which has grown since the last exit
    /// by what handling that one and entering again took.
    #[inline]
    pub fn record(&mut self, trace: Trace, host_ticks: u64) {
        let spent = host_ticks.wrapping_sub(self.last_host_ticks);
        self.last_host_ticks = host_ticks;
        if let Some(last) = self.last {
            let ticks = &mut self.totals[last as usize].ticks;
            *ticks = ticks.wrapping_add(spent);
        }
        self.last = Some(trace.reason);
        let count = &mut self.totals[trace.reason as usize].count;
        *count = count.wrapping_add(1);
        self.traces[self.noted as usize % TRACES] = trace;
        self.noted = self.noted.wrapping_add(1);
    }

    /// How often, and host ticks in all, for each reason that occurred. The last exit's cost is not in
    /// it: the guest has not been entered again.
    pub fn totals(&self) -> impl Iterator<Item = (Reason, u64, u64)> + '_ {
        let occurred = ALL
            .iter()
            .zip(&self.totals)
            .filter(|(_, total)| total.count != 0);
        occurred.map(|(reason, total)| (*reason, total.count, total.ticks))
    }

    /// Exits in all.
    #[must_use]
    pub fn noted(&self) -> u64 {
        self.noted
    }

    /// How often a reason occurred.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.totals[reason as usize].count
    }

    /// The last exits, oldest first.
    pub fn traces(&self) -> impl Iterator<Item = &Trace> + '_ {
        let kept = self.noted.min(TRACES as u64);
        (self.noted - kept..self.noted).map(|n| &self.traces[n as usize % TRACES])
    }
}

const ALL: [Reason; Reason::COUNT] = {
    use Reason::*;
    [
        Cpuid,
        Hlt,
        Rdtsc,
        Rdtscp,
        Rdpmc,
        Rdrand,
        Rdseed,
        ReadMsr,
        WriteMsr,
        PortRead,
        PortWrite,
        PortString,
        ReadCr,
        WriteCr,
        ReadDr,
        WriteDr,
        Xsetbv,
        Wbinvd,
        Invlpg,
        Monitor,
        Mwait,
        Hypercall,
        NoSuchInstruction,
        MmioRead,
        MmioWrite,
        Exception,
        TaskSwitch,
        TripleFault,
        EntryRefused,
        Unexpected,
        Landed,
        HostWork,
        Window,
    ]
};

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn trace(reason: Reason, icount: u64) -> Trace {
        Trace {
            reason,
            rip: 0,
            icount,
        }
    }

    #[test]
    fn the_cost_goes_to_the_exit_that_caused_it() {
        let mut stats = ExitStatistics::default();
        stats.record(trace(Reason::Cpuid, 0), 50);
        stats.record(trace(Reason::Hlt, 1), 150);
        stats.record(trace(Reason::Cpuid, 2), 350);
        let totals: Vec<_> = stats.totals().collect();
        assert_eq!(totals, [(Reason::Cpuid, 2, 100), (Reason::Hlt, 1, 200)]);
    }

    #[test]
    fn time_spent_on_others_is_nobodys_cost() {
        let mut stats = ExitStatistics::default();
        stats.record(trace(Reason::Cpuid, 0), 50);
        stats.resume();
        stats.record(trace(Reason::Cpuid, 1), 10_050);
        stats.record(trace(Reason::Cpuid, 2), 10_150);
        assert_eq!(stats.totals().next(), Some((Reason::Cpuid, 3, 100)));
    }

    #[test]
    fn the_last_exits_come_oldest_first() {
        let mut stats = ExitStatistics::default();
        for n in 0..TRACES as u64 + 3 {
            stats.record(trace(Reason::Hlt, n), 0);
        }
        let kept: Vec<_> = stats.traces().map(|t| t.icount).collect();
        assert_eq!(kept, (3..TRACES as u64 + 3).collect::<Vec<_>>());
    }

    #[test]
    fn reasons_are_of_the_kind_of_their_exits() {
        for exit in [
            Exit::Landed,
            Exit::HostWork,
            Exit::Window,
            Exit::Cpuid,
            Exit::TripleFault,
        ] {
            assert_eq!(Reason::from(&exit).kind(), exit.kind(), "{exit:?}");
        }
    }

    #[test]
    fn every_reason_has_its_place_and_its_name() {
        for (i, reason) in ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
        assert_eq!(Reason::Window.name(), "window");
        assert_eq!(Reason::Cpuid.name(), "cpuid");
        assert_eq!(Reason::MmioRead.name(), "mmio-read");
    }
}
