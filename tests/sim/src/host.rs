//! One simulated host: a link, a machine, and the glue that a real host has around them.

use std::collections::VecDeque;

use ftlink::arbiter::{Member, Outcome, Reply, Request, Verdict};
use ftlink::channel::ChannelConfig;
use ftlink::detector;
use ftlink::fence;
use ftlink::handshake::{CounterKind, Identity, PROTOCOL_VERSION};
use ftlink::ids::{BootId, Duration, Generation, Instant, LogPos, NodeId, PairId};
use ftlink::link::{EgressBuffer, Link, LinkConfig, LinkEvent};
use ftlink::role::{Asker, Mode, Role};
use ftlink::wire::{ETHERNET_MTU_BYTES, MAX_DATAGRAM_BYTES};

use crate::machine::{Entry, Machine, digest};
use crate::random::Random;
use crate::{Bug, Violation};

/// The pair.
pub const PAIR: PairId = PairId(0x0064_7565_7400);
/// The node of each host, by index.
pub const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// What both hosts are.
pub const IDENTITY: Identity = Identity {
    protocol: PROTOCOL_VERSION,
    version: [0, 1, 0],
    vendor: *b"GenuineIntel",
    signature: 1,
    microcode: 2,
    counter: CounterKind::BOCHS_TSC,
    machine: [3; 32],
    profile: 4,
};
/// A service loop looks no more often than this.
pub const SERVICE: Duration = Duration::from_micros(20);
/// Outputs a new primary sends again, not knowing which the world has seen.
const SENT_AGAIN: usize = 32;
/// How often a host that repeats its outputs sends each.
const REPEATS: usize = 600;
/// Datagrams a stalled host's NIC keeps for it.
const NIC_RING: usize = 512;

/// An output that left a host, with what the host was at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The position of its entry.
    pub position: u64,
    /// Its digest.
    pub output: u64,
    /// The host's role.
    pub role: Role,
    /// The host's generation.
    pub generation: Generation,
}

/// What a service round of a host gave to the outside.
#[derive(Default)]
pub struct Given {
    /// Outputs released.
    pub released: Vec<Release>,
    /// What happened.
    pub events: Vec<LinkEvent>,
    /// Requests to the arbiter.
    pub requests: Vec<Request>,
}

/// A host.
pub struct Host {
    /// Which of the two.
    pub index: usize,
    boot: BootId,
    link: Option<Link>,
    machine: Machine,
    clock: (u64, i64),
    random: Random,
    bug: Bug,
    /// Digest of each entry of the log this host has, by position.
    entries: Vec<u64>,
    /// Outputs of the log it has; 0 where there is none.
    outputs: Vec<u64>,
    pending: VecDeque<(u64, u64)>,
    /// The machine has produced an output whose entry found no room.
    owed: bool,
    scratch: Vec<u8>,
    buffer: Box<EgressBuffer>,
    next_tick: Instant,
    /// A backup executes behind what it holds: it goes on then.
    next_replay: Instant,
    /// How far behind at most.
    replay_lag: Duration,
    /// It begins anew in its next round: a defect.
    unfences: bool,
    /// When it looks next.
    pub wake: Instant,
    /// It stands still until then.
    pub stalled: Option<Instant>,
    inbox: VecDeque<(u8, Vec<u8>)>,
}

impl Host {
    /// A host that is down.
    #[must_use]
    pub fn new(index: usize, clock: (u64, i64), mut random: Random, bug: Bug) -> Self {
        let replay_lag = Duration(random.between(1, 30_000_000));
        Self {
            index,
            boot: BootId(0),
            link: None,
            machine: Machine::default(),
            clock,
            random,
            bug,
            entries: Vec::new(),
            outputs: Vec::new(),
            pending: VecDeque::new(),
            owed: false,
            scratch: Vec::new(),
            buffer: Box::new([0; MAX_DATAGRAM_BYTES]),
            next_tick: Instant(0),
            next_replay: Instant(0),
            replay_lag,
            unfences: false,
            wake: Instant::NEVER,
            stalled: None,
            inbox: VecDeque::new(),
        }
    }

    /// The host's own time.
    #[must_use]
    pub fn local(&self, now: Instant) -> Instant {
        let (start, drift) = self.clock;
        let drifted = i128::from(now.0) * i128::from(drift) / 1_000_000;
        Instant(start + now.0.saturating_add_signed(drifted as i64))
    }

    /// It starts in boot `boot`.
    pub fn start(&mut self, now: Instant, boot: u128) {
        self.boot = BootId(boot);
        let mut seed = [0; 32];
        for chunk in seed.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.random.draw().to_le_bytes());
        }
        let config = LinkConfig {
            channel: ChannelConfig {
                pair: PAIR,
                node: NODES[self.index],
                peer: NODES[1 - self.index],
                boot: self.boot,
                secret: [0x5e; 32],
                seed,
                rekey_after: Duration::from_millis(700),
                paths: 2,
            },
            mtu_bytes: ETHERNET_MTU_BYTES,
            log_ring_bytes: 256 * 1024,
            bulk_ring_bytes: 0,
            detector: detector::Config::hardware(),
            fence: fence::Config {
                cold_wait: Duration::from_millis(400),
                hand_over_wait: Duration::from_millis(300),
                probe: Duration::from_millis(100),
                ..fence::Config::default()
            },
        };
        let local = self.local(now);
        self.link = Some(Link::new(config, IDENTITY, local));
        self.forget_guest();
        self.pending.clear();
        self.stalled = None;
        self.unfences = false;
        self.wake = now;
    }

    fn forget_guest(&mut self) {
        self.machine = Machine::default();
        self.entries.clear();
        self.outputs.clear();
        self.owed = false;
    }

    /// It dies.
    pub fn crash(&mut self) {
        self.link = None;
        self.stalled = None;
        self.inbox.clear();
        self.wake = Instant::NEVER;
    }

    /// Its link, while it is up.
    #[must_use]
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Its link, to tell it something.
    pub fn link_mut(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// It, in its present or last boot.
    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            node: NODES[self.index],
            boot: self.boot,
        }
    }

    /// Its role, while it is up.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.link.as_ref().map(|link| link.fence().role())
    }

    /// What its gate takes for held by the peer.
    #[must_use]
    pub fn counted_as_held(&self) -> LogPos {
        match &self.link {
            Some(link) if self.bug == Bug::CountsUnheld => link.head(),
            Some(link) => link.acked(),
            None => LogPos(0),
        }
    }

    /// The output it knows at `position`.
    #[must_use]
    pub fn output_at(&self, position: u64) -> Option<u64> {
        self.outputs
            .get(position as usize)
            .copied()
            .filter(|&output| output != 0)
    }

    /// It has the entry of the output at `position`, read or not.
    #[must_use]
    pub fn holds(&self, position: u64, output: u64) -> bool {
        match self.output_at(position) {
            Some(known) => known == output,
            None => {
                position >= self.entries.len() as u64
                    && self
                        .link
                        .as_ref()
                        .is_some_and(|link| link.held().0 > position)
            }
        }
    }

    /// The digest of the entry it has at `position`.
    #[must_use]
    pub fn entry_at(&self, position: u64) -> Option<u64> {
        self.entries.get(position as usize).copied()
    }

    /// A datagram arrives; a host that stands still finds it later. Gives the buffer back.
    pub fn receive(&mut self, now: Instant, path: u8, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let local = self.local(now);
        let Some(link) = &mut self.link else {
            return Some(bytes);
        };
        if self.stalled.is_some() {
            if self.inbox.len() >= NIC_RING {
                return Some(bytes);
            }
            self.inbox.push_back((path, bytes));
            return None;
        }
        link.ingress(local, path, &mut bytes);
        self.wake = now;
        Some(bytes)
    }

    /// It goes on after a stall, somewhere in its service loop: it may act between two datagrams that
    /// have waited for it.
    fn resume(&mut self, now: Instant, given: &mut Given) {
        self.stalled = None;
        let local = self.local(now);
        let mut before = self.random.below(self.inbox.len() as u64 + 1);
        while let Some((path, mut bytes)) = self.inbox.pop_front() {
            if before == 0 {
                self.release(local, given);
            }
            before = before.wrapping_sub(1);
            if let Some(link) = &mut self.link {
                link.ingress(local, path, &mut bytes);
            }
        }
    }

    /// One round of its service loop.
    ///
    /// # Errors
    ///
    /// A replay that differs.
    pub fn service(
        &mut self,
        now: Instant,
        given: &mut Given,
        mut entry_of_peer: impl FnMut(u64) -> Option<u64>,
    ) -> Result<(), Violation> {
        if self.stalled.is_some_and(|until| until > now) {
            self.wake = self.stalled.unwrap_or(now);
            return Ok(());
        }
        if self.stalled.is_some() {
            self.resume(now, given);
        }
        self.misbehave(now);
        let local = self.local(now);
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.poll(local);
        self.take_events(given);
        if self.next_replay <= now || self.role() == Some(Role::Draining) {
            self.next_replay = now.after(Duration(self.random.below(self.replay_lag.0)));
            self.replay(local, &mut entry_of_peer)?;
        }
        self.drain(local);
        self.take_events(given);
        if self.next_tick <= now {
            self.next_tick = now.after(Duration(self.random.between(500_000, 2_500_000)));
            self.tick(local);
        }
        self.release(local, given);
        self.take_events(given);
        if let Some(link) = &mut self.link {
            while let Some(request) = link.request(local) {
                if self.bug != Bug::NeverAsks {
                    given.requests.push(request);
                }
            }
        }
        Ok(())
    }

    /// Defects of the host as a whole.
    fn misbehave(&mut self, now: Instant) {
        let local = self.local(now);
        match (self.bug, self.role()) {
            // Seen fenced once, in the round before.
            (Bug::Unfences, Some(Role::Fenced)) if self.unfences => self.start(now, self.boot.0),
            (Bug::Unfences, Some(Role::Fenced)) => self.unfences = true,
            (Bug::ForgesVerdict, Some(Role::Asking(Asker::Backup))) => {
                if let Some(link) = &mut self.link
                    && let Some(request) = link.fence().asking()
                {
                    let reply = Reply {
                        id: request.id,
                        to: request.from,
                        outcome: Outcome::Verdict(Verdict::Granted(request.generation.next())),
                        record: None,
                    };
                    link.verdict(local, &reply);
                }
            }
            _ => {}
        }
    }

    /// The next datagram it sends on `path`.
    pub fn egress(&mut self, now: Instant, path: u8) -> Option<&[u8]> {
        if self.stalled.is_some() {
            return None;
        }
        let local = self.local(now);
        let length = self.link.as_mut()?.egress(local, path, &mut self.buffer)?;
        Some(&self.buffer[..length])
    }

    /// When it looks next, after a round.
    pub fn plan_wake(&mut self, now: Instant) {
        if let Some(until) = self.stalled {
            self.wake = until;
            return;
        }
        let local = self.local(now);
        let Some(link) = &self.link else {
            self.wake = Instant::NEVER;
            return;
        };
        let wait = link.poll_at(local).since(local).max(SERVICE);
        let mut wake = now.after(wait);
        let role = link.fence().role();
        if role.runs_guest() {
            wake = wake.min(self.next_tick.max(now.after(SERVICE)));
        }
        if role.accepts_entries() && link.held().0 > self.entries.len() as u64 {
            wake = wake.min(self.next_replay.max(now.after(SERVICE)));
        }
        if self.bug == Bug::NeverSleeps {
            wake = now.after(SERVICE);
        }
        self.wake = wake;
    }

    fn take_events(&mut self, given: &mut Given) {
        let Some(link) = &mut self.link else { return };
        let mut discard = false;
        while let Some(event) = link.event() {
            discard |= event == LinkEvent::Fence(fence::Event::Discard);
            if let LinkEvent::Fence(fence::Event::Changed { to, .. }) = event
                && !matches!(to, Role::Primary(_) | Role::Asking(Asker::Primary))
                && self.bug != Bug::ActsWhenFenced
            {
                self.pending.clear();
            }
            given.events.push(event);
        }
        if discard {
            self.forget_guest();
        }
    }

    fn replay(
        &mut self,
        local: Instant,
        entry_of_peer: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Result<(), Violation> {
        let by = self.member();
        let skips = self.bug == Bug::SkipsDraining && self.role() == Some(Role::Draining);
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let mut diverged = None;
        while !skips && let Some((LogPos(position), bytes)) = link.next_entry() {
            if self.bug == Bug::DropsEntries && position % 64 == 63 {
                continue;
            }
            let hash = digest(bytes);
            let sent = entry_of_peer(position).is_none_or(|sent| sent == hash);
            let expected = position == self.entries.len() as u64;
            let (Some(entry), true, true) = (Entry::read(bytes), sent, expected) else {
                return Err(Violation::WrongEntry { by, position });
            };
            self.entries.push(hash);
            let output = match entry {
                Entry::Input(bytes) => {
                    let wrong = [0xff];
                    let changed = self.bug == Bug::ReplaysWrongly && position % 64 == 63;
                    self.machine.input(if changed { &wrong } else { bytes });
                    0
                }
                Entry::Output(output) => {
                    if output != self.machine.output() {
                        diverged = Some(position);
                    }
                    output
                }
            };
            self.outputs.push(output);
        }
        if diverged.is_none() {
            link.set_verified(LogPos(self.entries.len() as u64));
        }
        match diverged {
            Some(position) => {
                link.diverged(local);
                Err(Violation::ReplayDiffers { by, position })
            }
            None => Ok(()),
        }
    }

    fn drain(&mut self, local: Instant) {
        let Some(link) = &mut self.link else { return };
        let acts_early = self.bug == Bug::ActsWithoutVerdict
            && link.fence().role() == Role::Asking(Asker::Backup);
        if link.fence().role() != Role::Draining && !acts_early {
            return;
        }
        let known: Vec<(u64, u64)> = (0..)
            .zip(self.outputs.iter().copied())
            .filter(|&(_, output)| output != 0)
            .collect();
        let again = known.len().saturating_sub(SENT_AGAIN);
        if !acts_early || self.pending.is_empty() {
            self.pending = known[again..].iter().copied().collect();
        }
        link.drained(local);
    }

    fn tick(&mut self, local: Instant) {
        let Some(link) = &mut self.link else { return };
        if !link.fence().role().runs_guest() {
            return;
        }
        if !self.owed {
            let length = match self.random.below(50) {
                0 => self.random.between(1_500, 4_000),
                _ => self.random.between(1, 40),
            };
            let input: Vec<u8> = (0..length).map(|_| self.random.draw() as u8).collect();
            Entry::Input(&input).write(&mut self.scratch);
            if link.append(local, &self.scratch).is_err() {
                // No room: the guest waits, and this input never entered.
                return;
            }
            self.entries.push(digest(&self.scratch));
            self.outputs.push(0);
            self.owed = self.machine.input(&input);
        }
        if self.owed {
            let output = self.machine.output();
            Entry::Output(output).write(&mut self.scratch);
            if let Ok(LogPos(position)) = link.append(local, &self.scratch) {
                link.flush(local);
                self.owed = false;
                self.entries.push(digest(&self.scratch));
                self.outputs.push(output);
                self.pending.push_back((position, output));
            }
        }
    }

    fn release(&mut self, local: Instant, given: &mut Given) {
        let bug = self.bug;
        let Some(link) = &mut self.link else { return };
        while let Some(&(position, output)) = self.pending.front() {
            let role = link.fence().role();
            let wrong = match bug {
                Bug::ReleasesUngated => matches!(role, Role::Primary(_)),
                Bug::ActsWithoutVerdict => role == Role::Asking(Asker::Backup),
                Bug::ActsWhenFenced => role == Role::Fenced,
                Bug::CountsUnheld => {
                    matches!(role, Role::Primary(Mode::Protected)) && link.head().0 > position
                }
                _ => false,
            };
            if !wrong && !link.may_release(local, LogPos(position)) {
                return;
            }
            self.pending.pop_front();
            let late = bug == Bug::ChangesLateOutputs && self.random.chance(100);
            let release = Release {
                position,
                output: output ^ u64::from(late),
                role: link.fence().role(),
                generation: link.fence().generation(),
            };
            let times = if bug == Bug::RepeatsOutputs {
                REPEATS
            } else {
                1
            };
            given.released.extend(std::iter::repeat_n(release, times));
        }
    }
}
