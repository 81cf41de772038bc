//! What the guest did: exits by reason with their cost, and the last few of them for a dump.

use core::fmt;

use crate::cpu::Exit;

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

/// Exits kept for a dump.
pub const TRACES: usize = 16;

/// The counts of one guest.
#[derive(Clone, Debug)]
pub struct ExitStatistics {
    counts: [u64; Reason::COUNT],
    ticks: [u64; Reason::COUNT],
    traces: [Option<Trace>; TRACES],
    next_trace: usize,
    last: Option<Reason>,
    last_host_ticks: u64,
}

impl Default for ExitStatistics {
    fn default() -> Self {
        Self {
            counts: [0; Reason::COUNT],
            ticks: [0; Reason::COUNT],
            traces: [None; TRACES],
            next_trace: 0,
            last: None,
            last_host_ticks: 0,
        }
    }
}

impl ExitStatistics {
    /// Notes an exit. `host_ticks` is the processor's running total, which has grown since the last exit
    /// by what handling that one and entering again took.
    #[inline]
    pub fn record(&mut self, trace: Trace, host_ticks: u64) {
        let spent = host_ticks.wrapping_sub(self.last_host_ticks);
        self.last_host_ticks = host_ticks;
        if let Some(ticks) = self.last.and_then(|r| self.ticks.get_mut(r as usize)) {
            *ticks = ticks.wrapping_add(spent);
        }
        if let Some(count) = self.counts.get_mut(trace.reason as usize) {
            *count += 1;
        }
        self.last = Some(trace.reason);
        if let Some(place) = self.traces.get_mut(self.next_trace % TRACES) {
            *place = Some(trace);
        }
        self.next_trace = (self.next_trace + 1) % TRACES;
    }

    /// How often, and host ticks in all, for each reason that occurred. The last exit's cost is not in
    /// it: the guest has not been entered again.
    pub fn totals(&self) -> impl Iterator<Item = (Reason, u64, u64)> + '_ {
        ALL.iter().filter_map(|reason| {
            let count = self.count(*reason);
            let ticks = self.ticks.get(*reason as usize).copied().unwrap_or(0);
            (count != 0).then_some((*reason, count, ticks))
        })
    }

    /// How often a reason occurred.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.counts.get(reason as usize).copied().unwrap_or(0)
    }

    /// The last exits, oldest first.
    pub fn traces(&self) -> impl Iterator<Item = &Trace> + '_ {
        let (newer, older) = self.traces.split_at(self.next_trace.min(TRACES));
        older.iter().chain(newer).flatten()
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
    fn the_last_exits_come_oldest_first() {
        let mut stats = ExitStatistics::default();
        for n in 0..TRACES as u64 + 3 {
            stats.record(trace(Reason::Hlt, n), 0);
        }
        let kept: Vec<_> = stats.traces().map(|t| t.icount).collect();
        assert_eq!(kept, (3..TRACES as u64 + 3).collect::<Vec<_>>());
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
