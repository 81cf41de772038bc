//! Two fences and an arbiter by the clock: what a pair does by itself, and when.

use ftlink::arbiter::{Ask, Member, Record, decide};
use ftlink::detector::{self, Suspicion};
use ftlink::fence::{Beat, Config, Event, Fence, OnDivergence, Positions};
use ftlink::ids::{BootId, Duration, Instant, LogPos, NodeId, PairId, RequestId};
use ftlink::role::{Asker, Mode, Role};

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
const PROTECTED: [Role; 2] = [Role::Primary(Mode::Protected), Role::Backup];
const SWAPPED: [Role; 2] = [Role::Backup, Role::Primary(Mode::Protected)];
/// Both hosts hold this much.
const HEAD: LogPos = LogPos(7);

struct Pair {
    config: Config,
    ms: u64,
    fences: [Fence; 2],
    record: Record,
    /// Which hosts reach the arbiter.
    arbiter: [bool; 2],
    /// Since when nothing crosses the link.
    cut_at: Option<u64>,
    /// What was asked, by whom and when; queries left out.
    asked: Vec<(u64, usize, Ask, RequestId)>,
    /// Roles taken, by whom and when.
    taken: Vec<(u64, usize, Role)>,
}

impl Pair {
    fn new(config: Config) -> Self {
        let fence = |host: usize| {
            let me = Member {
                node: NODES[host],
                boot: BootId(host as u128 + 1),
            };
            Fence::new(me, NODES[1 - host], Instant(0))
        };
        let mut pair = Self {
            config,
            ms: 0,
            fences: [fence(0), fence(1)],
            record: Record::empty(PairId(1), NODES),
            arbiter: [true; 2],
            cut_at: None,
            asked: Vec::new(),
            taken: Vec::new(),
        };
        pair.run(1_000);
        assert_eq!(pair.roles(), PROTECTED);
        pair.asked.clear();
        pair.taken.clear();
        pair
    }

    const fn now(&self) -> Instant {
        Instant(self.ms * 1_000_000)
    }

    fn roles(&self) -> [Role; 2] {
        [0, 1].map(|host| self.fences[host].role())
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.ms += 1;
            if self.ms.is_multiple_of(10) && self.cut_at.is_none() {
                self.beats();
            }
            for host in 0..2 {
                self.tick(host);
            }
        }
    }

    fn beats(&mut self) {
        let now = self.now();
        for from in 0..2 {
            let sender = &self.fences[from];
            let beat = Beat {
                from: sender.me(),
                generation: sender.generation(),
                role: sender.role(),
                notice: sender.notice(),
                health: sender.health(&self.config, now),
            };
            self.fences[1 - from].on_beat(now, &self.config, &beat, own());
        }
    }

    fn tick(&mut self, host: usize) {
        let now = self.now();
        let detect = detector::Config::hardware().detect;
        let silent = self
            .cut_at
            .is_some_and(|at| now.since(Instant(at * 1_000_000)) >= detect);
        let fence = &mut self.fences[host];
        fence.on_suspicion(now, &self.config, silent.then_some(Suspicion::Silence));
        fence.poll(now, &self.config, own());
        if fence.role() == Role::Draining {
            fence.drained(now);
        }
        while let Some(request) = fence.request(now, &self.config) {
            if request.ask != Ask::Query {
                self.asked.push((self.ms, host, request.ask, request.id));
            }
            if self.arbiter[host] {
                let decision = decide(&self.record, &request);
                self.record = decision.store.unwrap_or(self.record);
                fence.on_reply(now, &self.config, &decision.reply);
            }
        }
        let role = fence.role();
        let due = fence.poll_at(&self.config);
        assert!(due > now, "{role} has nothing to do and does not sleep");
        while let Some(event) = fence.event() {
            if let Event::Changed { to, .. } = event {
                self.taken.push((self.ms, host, to));
            }
        }
    }

    fn cut(&mut self) {
        self.cut_at = Some(self.ms);
    }

    /// When `host` first asked this after the pair was whole.
    fn first(&self, host: usize, ask: Ask) -> Option<u64> {
        let mut asked = self.asked.iter();
        asked
            .find(|(_, by, what, _)| (*by, *what) == (host, ask))
            .map(|asked| asked.0)
    }
}

const fn own() -> Positions {
    Positions {
        head: HEAD,
        acked: HEAD,
    }
}

#[test]
fn a_primary_that_lost_its_service_nic_hands_over() {
    let mut pair = Pair::new(Config::default());
    let begun = pair.ms;
    pair.fences[0].on_carrier(true);
    pair.run(200);
    assert_eq!(pair.roles(), SWAPPED);
    assert!(
        pair.taken
            .contains(&(begun + 1, 0, Role::Primary(Mode::HandingOver)))
    );
    // The next primary loses it as well: neither is better, and nothing moves.
    pair.fences[1].on_carrier(true);
    pair.run(1_000);
    assert_eq!(pair.roles(), SWAPPED);
}

#[test]
fn a_backup_without_carrier_and_a_forbidden_hand_over_move_nothing() {
    let mut pair = Pair::new(Config::default());
    pair.fences[1].on_carrier(true);
    pair.run(1_000);
    assert_eq!(pair.roles(), PROTECTED);
    let mut pair = Pair::new(Config {
        auto_hand_over: false,
        ..Config::default()
    });
    pair.fences[0].on_carrier(true);
    pair.run(1_000);
    assert_eq!(pair.roles(), PROTECTED);
}

#[test]
fn a_primary_that_lost_the_arbiter_hands_over_and_both_losing_it_changes_nothing() {
    let config = Config::default();
    let mut pair = Pair::new(config);
    pair.arbiter[0] = false;
    let lost = config.arbiter_lost.0 / 1_000_000;
    pair.run(lost - config.probe.0 / 1_000_000 - 1);
    assert_eq!(pair.roles(), PROTECTED);
    pair.run(1_000);
    assert_eq!(pair.roles(), SWAPPED);

    let mut pair = Pair::new(config);
    pair.arbiter = [false; 2];
    pair.run(10_000);
    assert_eq!(pair.roles(), PROTECTED);
    assert!(!pair.fences[0].arbiter_reachable(&config, pair.now()));
}

#[test]
fn a_host_that_handed_over_to_a_dead_peer_claims_back() {
    let config = Config::default();
    let mut pair = Pair::new(config);
    let now = pair.now();
    assert_eq!(pair.fences[0].hand_over(now), Ok(()));
    // The guest stands still, the peer holds all; then the peer is gone.
    pair.tick(0);
    pair.cut();
    pair.arbiter[1] = false;
    let begun = pair.ms;
    pair.run(config.hand_over_wait.0 / 1_000_000 + 10);
    assert_eq!(pair.roles()[0], Role::Primary(Mode::Solo));
    let claimed = pair.first(0, Ask::Claim).expect("claimed") - begun;
    assert!(claimed >= 100, "after {claimed} ms");
}

#[test]
fn a_host_that_handed_over_to_a_peer_without_arbiter_claims_back() {
    let config = Config::default();
    let mut pair = Pair::new(config);
    pair.arbiter[1] = false;
    let (begun, now) = (pair.ms, pair.now());
    assert_eq!(pair.fences[0].hand_over(now), Ok(()));
    let wait = config.hand_over_wait.0 / 1_000_000;
    pair.run(wait);
    assert_eq!(pair.roles(), [Role::Joining, Role::Asking(Asker::Backup)]);
    pair.run(10);
    assert_eq!(pair.first(0, Ask::Claim), Some(begun + 1 + wait));
    assert_eq!(pair.roles()[0], Role::Primary(Mode::Solo));
    // The peer is answered at last, and joins again.
    pair.arbiter[1] = true;
    pair.run(200);
    assert_eq!(pair.roles(), PROTECTED);
}

#[test]
fn of_a_cut_link_the_primary_asks_at_once_and_the_backup_after_the_handicap() {
    let mut pair = Pair::new(Config::default());
    pair.cut();
    let begun = pair.ms;
    pair.run(300);
    assert_eq!(pair.first(0, Ask::Claim), Some(begun + 100));
    assert_eq!(pair.first(1, Ask::Claim), Some(begun + 150));
    assert_eq!(pair.roles(), [Role::Primary(Mode::Solo), Role::Joining]);

    let mut pair = Pair::new(Config {
        handicap: Duration::from_millis(80),
        ..Config::default()
    });
    pair.cut();
    let begun = pair.ms;
    // The primary is dead: the backup waits for its handicap all the same.
    pair.arbiter[0] = false;
    pair.run(300);
    assert_eq!(pair.first(1, Ask::Claim), Some(begun + 180));
    assert!(pair.taken.contains(&(begun + 180, 1, Role::Draining)));
    assert_eq!(pair.roles()[1], Role::Primary(Mode::Solo));
}

#[test]
fn a_request_is_repeated_unchanged_until_it_is_answered() {
    let mut pair = Pair::new(Config::default());
    pair.arbiter = [false; 2];
    pair.cut();
    let begun = pair.ms;
    pair.run(300);
    assert_eq!(
        pair.roles(),
        [Role::Asking(Asker::Primary), Role::Asking(Asker::Backup)]
    );
    for (host, first) in [(0, 100), (1, 150)] {
        let asked: Vec<_> = pair.asked.iter().filter(|asked| asked.1 == host).collect();
        let times: Vec<_> = asked.iter().map(|asked| asked.0 - begun).collect();
        let expected: Vec<_> = (first..=300).step_by(20).collect();
        assert_eq!(times, expected, "host {host}");
        assert!(
            asked
                .iter()
                .all(|one| one.3 == asked[0].3 && one.2 == Ask::Claim)
        );
    }
    // However late the answer comes, it binds; the backup's next try is the first to get one.
    pair.arbiter = [true; 2];
    pair.run(50);
    assert_eq!(pair.roles(), [Role::Fenced, Role::Primary(Mode::Solo)]);
}

#[test]
fn a_backup_whose_replay_differs_is_dropped_and_never_asks() {
    let mut pair = Pair::new(Config::default());
    let (now, config) = (pair.now(), pair.config);
    pair.fences[1].diverged(now, &config);
    pair.run(100);
    assert_eq!(pair.roles(), [Role::Primary(Mode::Solo), Role::Diverged]);
    pair.cut();
    pair.run(1_000);
    assert_eq!(pair.roles(), [Role::Primary(Mode::Solo), Role::Diverged]);
    assert_eq!(pair.first(1, Ask::Claim), None);
}

/// A backup asks, and finds while it waits that its replay differs.
fn diverged_while_asking(on_divergence: OnDivergence, denied: bool) -> Role {
    let mut pair = Pair::new(Config {
        on_divergence,
        ..Config::default()
    });
    pair.arbiter = [false; 2];
    pair.cut();
    pair.run(200);
    let (now, config) = (pair.now(), pair.config);
    pair.fences[1].diverged(now, &config);
    pair.run(50);
    // It is bound by what it has asked, and says so until the verdict.
    assert_eq!(pair.roles()[1], Role::Asking(Asker::Backup));
    pair.arbiter = [denied, true];
    pair.run(100);
    pair.roles()[1]
}

#[test]
fn a_divergence_found_while_asking_counts_after_the_verdict() {
    let stopped = diverged_while_asking(OnDivergence::Stop, false);
    assert_eq!(stopped, Role::Diverged);
    let went_on = diverged_while_asking(OnDivergence::Continue, false);
    assert_eq!(went_on, Role::Primary(Mode::Solo));
    for on_divergence in [OnDivergence::Stop, OnDivergence::Continue] {
        assert_eq!(diverged_while_asking(on_divergence, true), Role::Diverged);
    }
}

#[test]
fn a_cold_host_starts_with_a_stopped_peer_whichever_node_it_is() {
    for cold in 0..2 {
        let mut pair = Pair::new(Config::default());
        let now = pair.now();
        pair.fences[0].powered_off(now);
        pair.run(100);
        assert_eq!(pair.roles(), [Role::Stopped, Role::Stopped]);
        let me = Member {
            node: NODES[cold],
            boot: BootId(9),
        };
        pair.fences[cold] = Fence::new(me, NODES[1 - cold], pair.now());
        pair.run(1_000);
        assert_eq!(pair.roles()[cold], Role::Primary(Mode::Protected));
        assert_eq!(pair.roles()[1 - cold], Role::Backup);
    }
}
