//! The run of one seed: hosts, wires and arbiter, from event to event, with the checks after each.

use std::fmt;

use ftlink::arbiter::{Ask, Outcome as ArbiterOutcome, Record, Reply, Request, decide};
use ftlink::fence;
use ftlink::ids::{Duration, Instant};
use ftlink::link::LinkEvent;
use ftlink::role::{Asker, Input, Mode, Role};

use crate::Bug;
use crate::checks::{Checks, Violation};
use crate::host::{Given, Host, NODES, PAIR};
use crate::network::{Network, Parcel};
use crate::plan::{Fault, HEALED, Plan, Planned};
use crate::random::{Random, mix};

/// Whatever was wrong, the pair is whole again by then.
const DEADLINE: Instant = Instant(9_000_000_000);
/// The operator reboots hosts that ask for it this long after everything was healed.
const OPERATOR: Instant = Instant(HEALED.0 + 200_000_000);
/// A whole pair runs on this long before the run ends.
const AFTERGLOW: Duration = Duration::from_millis(100);
/// Service rounds of one host without anything arriving or leaving after which it spins.
const SPIN_ROUNDS: u32 = 100;
/// Lines of a trace that are kept.
const TRACE_LINES: usize = 4_000;

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep the trace also when nothing fails.
    pub trace: bool,
    /// A defect, to see it caught.
    pub bug: Bug,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Folds everything that happened: equal runs, equal digests.
    pub digest: u64,
    /// Simulated time, in nanoseconds.
    pub time: Instant,
    /// Parcels sent.
    pub parcels: u64,
    /// Outputs released.
    pub releases: u64,
    /// Of them, by outvoted hosts that did not know it yet.
    pub late_releases: u64,
    /// Times a host took over from the other.
    pub takeovers: u64,
    /// Times a host was fenced.
    pub fenced: u64,
    /// Guests started from power-on.
    pub incarnations: u64,
    /// Hosts that had to be rebooted at the end.
    pub reboots: u64,
    /// The trace, where wanted.
    pub trace: Vec<String>,
}

/// A run that broke a check.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that repeats it.
    pub seed: u64,
    /// When.
    pub at: Instant,
    /// What was broken.
    pub violation: Violation,
    /// What led to it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(formatter, "{line}")?;
        }
        let ms = self.at.0 / 1_000_000;
        write!(
            formatter,
            "seed {} broke a check at {ms} ms: {}\nrepeat it with: cargo xtask sim --seed {}",
            self.seed, self.violation, self.seed
        )
    }
}

struct World {
    now: Instant,
    hosts: [Host; 2],
    network: Network,
    record: Record,
    plan: Plan,
    next_fault: usize,
    on: Vec<Planned>,
    boots: u128,
    restarts: [Instant; 2],
    operator_done: bool,
    whole_since: Option<Instant>,
    /// The only fault of the plan met a protected pair: the guest must survive it.
    must_survive: Option<u64>,
    checks: Checks,
    options: Options,
    idle_rounds: [u32; 2],
    outcome: Outcome,
}

/// Runs one seed.
///
/// # Errors
///
/// The first check that was broken.
pub fn run(seed: u64, options: &Options) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, *options);
    match world.go() {
        Ok(()) => Ok(world.finish()),
        Err(_) if !options.trace => {
            // The same once more, this time written down.
            let traced = Options {
                trace: true,
                ..*options
            };
            run(seed, &traced)
        }
        Err(violation) => Err(Box::new(Failure {
            seed,
            at: world.now,
            violation,
            trace: world.outcome.trace,
        })),
    }
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(mix(seed));
        let plan = Plan::draw(&mut random.fork());
        let network = Network::new(plan.climate, random.fork());
        let mut host =
            |index: usize| Host::new(index, plan.clocks[index], random.fork(), options.bug);
        let hosts = [host(0), host(1)];
        let record = Record::empty(PAIR, NODES);
        let mut world = Self {
            now: Instant(0),
            hosts,
            network,
            record,
            plan,
            next_fault: 0,
            on: Vec::new(),
            boots: 0,
            restarts: [Instant::NEVER; 2],
            operator_done: false,
            whole_since: None,
            must_survive: None,
            checks: Checks::default(),
            options,
            idle_rounds: [0; 2],
            outcome: Outcome::default(),
        };
        let plan = format!("{:?}", world.plan);
        world.note(|| plan);
        world.start(0);
        world.start(1);
        world
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.options.trace {
            if self.outcome.trace.len() >= TRACE_LINES {
                self.outcome.trace.remove(0);
            }
            let now = self.now.0;
            let line = format!(
                "{:5}.{:06} ms  {}",
                now / 1_000_000,
                now % 1_000_000,
                text()
            );
            self.outcome.trace.push(line);
        }
    }

    fn fold(&mut self, value: u64) {
        self.outcome.digest = mix(self.outcome.digest ^ value ^ self.now.0.rotate_left(32));
    }

    fn start(&mut self, host: usize) {
        self.boots += 1;
        self.restarts[host] = Instant::NEVER;
        self.hosts[host].start(self.now, self.boots);
        let boot = self.boots;
        self.note(|| format!("host {host} starts, boot {boot}"));
    }

    fn finish(mut self) -> Outcome {
        self.outcome.time = self.now;
        self.outcome.parcels = self.network.sent;
        self.outcome.releases = self.checks.releases;
        self.outcome.late_releases = self.checks.late_releases;
        self.outcome.incarnations = self.checks.incarnations;
        self.outcome
    }

    fn next_event(&self) -> Instant {
        let mut at = self.network.next_at();
        for host in &self.hosts {
            at = at.min(host.wake);
        }
        if let Some(fault) = self.plan.faults.get(self.next_fault) {
            at = at.min(fault.begin);
        }
        for fault in &self.on {
            at = at.min(fault.end);
        }
        if !self.operator_done {
            at = at.min(OPERATOR);
        }
        at.min(self.restarts[0]).min(self.restarts[1])
    }

    fn go(&mut self) -> Result<(), Violation> {
        loop {
            self.now = self.next_event().max(self.now);
            if self.now > DEADLINE {
                return Err(Violation::NotHealed(
                    [0, 1].map(|host| self.hosts[host].role()),
                ));
            }
            self.end_faults();
            self.begin_faults();
            self.operate();
            self.deliver()?;
            for host in 0..2 {
                if self.hosts[host].wake <= self.now {
                    self.serve(host)?;
                }
            }
            if self.is_done()? {
                return Ok(());
            }
        }
    }

    fn begin_faults(&mut self) {
        while let Some(&planned) = self.plan.faults.get(self.next_fault)
            && planned.begin <= self.now
        {
            self.next_fault += 1;
            self.note(|| format!("begins: {:?}", planned.fault));
            let protected = self.is_protected();
            if protected && self.plan.faults.len() == 1 {
                self.must_survive = Some(self.checks.incarnations);
            }
            let now = self.now;
            match planned.fault {
                Fault::Crash { host } => {
                    self.hosts[host].crash();
                    self.restarts[host] = planned.end;
                    continue;
                }
                Fault::Stall { host } => {
                    if self.hosts[host].link().is_some() {
                        self.hosts[host].stalled = Some(planned.end);
                    }
                    continue;
                }
                Fault::HandOver => {
                    for host in &mut self.hosts {
                        let local = host.local(now);
                        // It is obeyed by a protected primary and refused by everyone else.
                        let obeyed = host
                            .link_mut()
                            .is_some_and(|link| link.hand_over(local).is_ok());
                        if obeyed {
                            host.wake = now;
                        }
                    }
                    continue;
                }
                Fault::Carrier { host } => {
                    if let Some(link) = self.hosts[host].link_mut() {
                        link.carrier(true);
                    }
                }
                _ => {}
            }
            self.on.push(planned);
            self.network.faults.push(planned);
        }
    }

    fn end_faults(&mut self) {
        let now = self.now;
        let over: Vec<Planned> = self
            .on
            .extract_if(.., |planned| planned.end <= now)
            .collect();
        for planned in over {
            self.note(|| format!("ends: {:?}", planned.fault));
            if let Fault::Carrier { host } = planned.fault
                && let Some(link) = self.hosts[host].link_mut()
            {
                link.carrier(false);
            }
        }
        self.network.faults.retain(|planned| planned.end > now);
        for host in 0..2 {
            if self.restarts[host] <= self.now {
                self.start(host);
            }
        }
    }

    /// After everything is healed, the operator reboots what waits for it.
    fn operate(&mut self) {
        if self.operator_done || self.now < OPERATOR {
            return;
        }
        self.operator_done = true;
        for host in 0..2 {
            let stuck = matches!(
                self.hosts[host].role(),
                Some(Role::Fenced | Role::Diverged | Role::Waiting)
            );
            if stuck {
                self.outcome.reboots += 1;
                self.start(host);
            }
        }
    }

    fn deliver(&mut self) -> Result<(), Violation> {
        while let Some(parcel) = self.network.arrive(self.now) {
            match parcel {
                Parcel::Datagram { to, path, bytes } => {
                    self.idle_rounds[to] = 0;
                    if let Some(bytes) = self.hosts[to].receive(self.now, path, bytes) {
                        self.network.recycle(bytes);
                    }
                }
                Parcel::Request(request) => self.arbitrate(&request)?,
                Parcel::Reply { to, reply } => {
                    let now = self.now;
                    let host = &mut self.hosts[to];
                    // What the arbiter says to a host that stands still is lost, and asked again.
                    if host.stalled.is_none() && host.member() == reply.to {
                        let local = host.local(now);
                        if let Some(link) = host.link_mut() {
                            link.verdict(local, &reply);
                        }
                        host.wake = now;
                    }
                }
            }
        }
        Ok(())
    }

    fn arbitrate(&mut self, request: &Request) -> Result<(), Violation> {
        let mut decision = decide(&self.record, request);
        if self.options.bug == Bug::ArbiterGrantsAnyone
            && request.ask == Ask::Claim
            && !self.record.is_member(request.from)
        {
            let mut record = self.record;
            record.owner = Some(request.from);
            record.generation = request.generation;
            decision = decide(&record, request);
        }
        if let ArbiterOutcome::Verdict(verdict) = decision.reply.outcome {
            self.note(|| {
                format!(
                    "arbiter: {:?} from {}: {verdict:?}",
                    request.ask, request.from
                )
            });
            self.checks.on_verdict(&self.record, request, verdict)?;
        }
        let forgets = self.options.bug == Bug::ArbiterForgets && request.ask == Ask::Claim;
        if let Some(record) = decision.store
            && !forgets
        {
            self.record = record;
        }
        self.answer(request, decision.reply);
        Ok(())
    }

    fn answer(&mut self, request: &Request, reply: Reply) {
        let to = usize::from(request.from.node == NODES[1]);
        self.network.reply(self.now, to, reply);
    }

    fn serve(&mut self, index: usize) -> Result<(), Violation> {
        let mut given = Given::default();
        let [first, second] = &mut self.hosts;
        let (host, peer) = if index == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let peer_member = peer.member();
        let follows = host.link().and_then(|link| link.fence().follows());
        let followed = follows == Some(peer_member) && peer.link().is_some();
        host.service(self.now, &mut given, |position| {
            followed.then(|| peer.entry_at(position)).flatten()
        })?;
        let mut busy = !given.events.is_empty() || !given.released.is_empty();
        for path in 0..2 {
            while let Some(datagram) = host.egress(self.now, path) {
                self.network.datagram(self.now, index, path, datagram);
                busy = true;
            }
        }
        host.plan_wake(self.now);
        for request in given.requests {
            self.network.request(self.now, index, request);
            busy = true;
        }
        self.idle_rounds[index] = if busy { 0 } else { self.idle_rounds[index] + 1 };
        if self.idle_rounds[index] > SPIN_ROUNDS {
            return Err(Violation::Spins);
        }
        for event in given.events {
            self.on_event(index, event)?;
        }
        for release in given.released {
            self.fold(release.position ^ release.output);
            let [host, peer] = [&self.hosts[index], &self.hosts[1 - index]];
            self.checks.on_release(host, peer, &self.record, release)?;
        }
        for at in 0..2 {
            let [host, peer] = [&self.hosts[at], &self.hosts[1 - at]];
            self.checks.on_step(host, peer)?;
        }
        Ok(())
    }

    fn on_event(&mut self, index: usize, event: LinkEvent) -> Result<(), Violation> {
        self.note(|| format!("host {index}: {event:?}"));
        let LinkEvent::Fence(fence::Event::Changed {
            from, to, input, ..
        }) = event
        else {
            return Ok(());
        };
        self.fold(u64::from(from.code()) << 16 | u64::from(to.code()) << 8 | input as u64);
        match (from, to) {
            (_, Role::Asking(Asker::Backup)) if self.options.bug == Bug::GivesUp => {
                self.start(index);
            }
            (Role::Draining, Role::Primary(_)) => {
                self.outcome.takeovers += 1;
                self.checks.on_takeover(&self.hosts[index])?;
            }
            (_, Role::Primary(_)) if from_power_on(from, input) => self.checks.on_power_on(),
            (_, Role::Fenced) => self.outcome.fenced += 1,
            _ => {}
        }
        Ok(())
    }

    fn is_protected(&self) -> bool {
        let roles = [0, 1].map(|host| self.hosts[host].role());
        roles.contains(&Some(Role::Primary(Mode::Protected))) && roles.contains(&Some(Role::Backup))
    }

    /// The pair is whole, after everything was healed, and has been for a while.
    fn is_done(&mut self) -> Result<bool, Violation> {
        if self.now < OPERATOR || !self.operator_done {
            return Ok(false);
        }
        let roles = [0, 1].map(|host| self.hosts[host].role());
        // A host that needs state transfer gets none here: its primary goes on alone.
        let waits = roles.contains(&Some(Role::Primary(Mode::Solo)))
            && roles.contains(&Some(Role::Waiting));
        if !self.is_protected() && !waits {
            self.whole_since = None;
            return Ok(false);
        }
        let since = *self.whole_since.get_or_insert(self.now);
        if self.now.since(since) < AFTERGLOW {
            return Ok(false);
        }
        if self
            .must_survive
            .is_some_and(|incarnation| incarnation != self.checks.incarnations)
        {
            return Err(Violation::GuestLost);
        }
        Ok(true)
    }
}

/// The change starts a guest, and does not take one over.
fn from_power_on(from: Role, input: Input) -> bool {
    matches!(from, Role::Cold | Role::Asking(Asker::Cold))
        && matches!(input, Input::Granted | Input::Confirmed)
}
