//! The model check: every reachable state of two real fences and the real arbiter within bounds, with
//! the invariants of the replication protocol, and a seeded mistake for each to show that it bites.
//!
//! `DUET_MODEL_FULL=1` raises the bounds: minutes instead of seconds.

mod settle;
mod world;

use ftlink::arbiter::Ask;
use ftlink::fence::CommandError;
use ftlink::role::{Mode, Role};
use stateright::{Checker, HasDiscoveries, Model, Property};

use settle::{FAULTS, Fault, one_goes_on};
use world::{Budget, Bug, NOW, QUIET, Violation, World};

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Send { from: usize, slot: usize },
    Deliver { to: usize, slot: usize },
    Append(usize),
    Arbitrate(usize),
    Reply(usize),
    Drained(usize),
    Suspect(usize),
    Crash(usize),
    Boot(usize),
    ArbiterRestart,
    HandOver(usize),
    PowerOff(usize),
    Confirm(usize),
    Restore,
}

/// A scenario: where it begins and how much the link keeps.
struct Scenario {
    start: World,
    /// Packets kept in each direction.
    slots: usize,
    /// Check liveness in every state too.
    live: bool,
    /// The faults that liveness is asked about.
    faults: Vec<Fault>,
}

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violation.is_some() {
            return;
        }
        let budget = &world.budget;
        for host in 0..2 {
            for slot in 0..world.link[host].len() {
                actions.push(Action::Deliver { to: host, slot });
            }
            match &world.hosts[host] {
                Some(up) => {
                    for slot in 0..self.slots {
                        actions.push(Action::Send { from: host, slot });
                    }
                    let role = up.fence.role();
                    if role == Role::Draining {
                        actions.push(Action::Drained(host));
                    }
                    if role.runs_guest() && budget.appends > 0 {
                        actions.push(Action::Append(host));
                    }
                    if role.runs_guest() && budget.power_offs > 0 {
                        actions.push(Action::PowerOff(host));
                    }
                    if budget.suspicions > 0 {
                        actions.push(Action::Suspect(host));
                    }
                    if budget.crashes > 0 {
                        actions.push(Action::Crash(host));
                    }
                    if role == Role::Fenced && budget.reboots > 0 {
                        actions.push(Action::Boot(host));
                    }
                    if role == Role::Primary(Mode::Protected) && budget.hand_overs > 0 {
                        actions.push(Action::HandOver(host));
                    }
                    // The operator's word: the peer is off, and did not go on alone before.
                    if budget.confirms > 0 && world.may_confirm(host) {
                        actions.push(Action::Confirm(host));
                    }
                }
                None if budget.reboots > 0 => actions.push(Action::Boot(host)),
                None => {}
            }
        }
        actions.extend((0..world.requests.len()).map(Action::Arbitrate));
        actions.extend((0..world.replies.len()).map(Action::Reply));
        if budget.arbiter_restarts > 0 {
            actions.push(Action::ArbiterRestart);
        }
        if budget.restores > 0 {
            actions.push(Action::Restore);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        step(&mut world, self.slots, action)?;
        world.prune();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one releases in a generation", |_, world: &World| {
                world.violation != Some(Violation::TwoReleasers)
            }),
            Property::always("what was released is held", |_, world: &World| {
                world.violation != Some(Violation::NotHeld)
            }),
            Property::always("a fenced host stays fenced", |_, world: &World| {
                world.violation != Some(Violation::FencedActs)
            }),
            Property::always("no generation granted twice", |_, world: &World| {
                world.violation != Some(Violation::GrantedTwice)
            }),
            Property::always("only members are granted", |_, world: &World| {
                world.violation != Some(Violation::NonMember)
            }),
            Property::always("one goes on", |scenario: &Scenario, world: &World| {
                !scenario.live || world.violation.is_some() || failing(scenario, world).is_empty()
            }),
        ]
    }
}

fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

fn step(world: &mut World, slots: usize, action: Action) -> Option<()> {
    match action {
        Action::Send { from, slot } => {
            let packet = world.packet(from)?;
            let lane = &mut world.link[1 - from];
            if lane.contains(&packet) {
                return None;
            }
            if lane.len() < slots {
                (slot == lane.len()).then(|| lane.push(packet))?;
            } else {
                lane[slot] = packet;
            }
            lane.sort();
        }
        Action::Deliver { to, slot } => {
            let packet = world.link[to][slot].clone();
            world.deliver(to, &packet);
        }
        Action::Append(host) => {
            spend(&mut world.budget.appends)?;
            world.append(host);
        }
        Action::Arbitrate(nth) => {
            let request = *world.requests.iter().nth(nth)?;
            world.arbitrate(&request);
        }
        Action::Reply(nth) => {
            let reply = *world.replies.get(nth)?;
            world.reply(&reply);
        }
        Action::Drained(host) => {
            world.hosts[host].as_mut()?.fence.drained(NOW);
            world.after(host);
        }
        Action::Suspect(host) => {
            spend(&mut world.budget.suspicions)?;
            world.suspect(host);
        }
        Action::Crash(host) => {
            spend(&mut world.budget.crashes)?;
            world.crash(host);
        }
        Action::Boot(host) => {
            spend(&mut world.budget.reboots)?;
            world.boot(host);
        }
        Action::ArbiterRestart => {
            spend(&mut world.budget.arbiter_restarts)?;
            world.record = world.before;
        }
        Action::HandOver(host) => {
            spend(&mut world.budget.hand_overs)?;
            let done = world.hosts[host].as_mut()?.fence.hand_over(NOW);
            if done == Err(CommandError::NoBackup) {
                return None;
            }
            world.after(host);
        }
        Action::PowerOff(host) => {
            spend(&mut world.budget.power_offs)?;
            world.hosts[host].as_mut()?.fence.powered_off(NOW);
            world.after(host);
        }
        Action::Confirm(host) => {
            spend(&mut world.budget.confirms)?;
            let fence = &mut world.hosts[host].as_mut()?.fence;
            fence.confirm(NOW, None).ok()?;
            world.after(host);
        }
        Action::Restore => {
            spend(&mut world.budget.restores)?;
            world.restore();
        }
    }
    Some(())
}

/// The faults after which it is not true that exactly one host goes on. While the record names no
/// backup, losing the owner is losing the guest; so is losing a host whose claim is on its way, which
/// makes it the owner. While the guest is between two hosts, nobody can take it up without the
/// arbiter; that the old owner claims back when the new one does not is a matter of time, which stands
/// still here (`a_host_that_handed_over_to_a_dead_peer_claims_back` in `tests/fence.rs`). Those faults
/// are not asked about. What changes no role (the service NIC's carrier, a restarted arbiter) or is
/// answered by the operator (a lost record, a divergence) is left to the safety scenarios and to
/// `tests/fence.rs`.
fn failing(scenario: &Scenario, world: &World) -> Vec<Fault> {
    let owner = world.record.owner.map(|owner| world::index(owner.node));
    let alone = world.record.backup.is_none();
    let claims = |host: usize| {
        let host = world.hosts[host].as_ref();
        let asking = host.and_then(|host| host.fence.asking());
        asking.is_some_and(|request| request.ask == Ask::Claim)
    };
    let runs = world.hosts.iter().flatten().any(|host| {
        let role = host.fence.role();
        role.offers_log() && role.runs_guest()
    });
    let mut faults = scenario.faults.clone();
    faults.retain(|fault| match *fault {
        Fault::Crash(host) | Fault::Stall(host) => !claims(host) && (!alone || owner != Some(host)),
        Fault::ArbiterCut(host) => !claims(host) && runs,
        Fault::ArbiterDown => runs,
        Fault::None | Fault::Cut | Fault::CutTo(_) => true,
    });
    faults.retain(|fault| !one_goes_on(world, *fault));
    faults
}

/// Whether the bounds are the large ones.
fn full() -> bool {
    std::env::var_os("DUET_MODEL_FULL").is_some()
}

/// Explores a scenario to its end and prints what it took.
fn explore(name: &str, scenario: Scenario) {
    let checker = scenario.checker().threads(2).spawn_bfs().join();
    println!(
        "model {name}: {} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let last = path.last_state().clone();
        let faults = failing(checker.model(), &last);
        let actions = path.into_actions();
        panic!("{name}: \"{property}\" fails after {actions:?}, {faults:?}\nin {last:#?}");
    }
}

/// Explores a scenario with a mistake in it until an invariant notices.
fn notices(bug: Bug, property: &'static str, mut scenario: Scenario) {
    scenario.start.bug = Some(bug);
    let checker = scenario
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf([property].into()))
        .spawn_bfs()
        .join();
    let path = checker.discovery(property);
    println!(
        "model {bug:?}: noticed by \"{property}\" after {} unique states, in {} steps",
        checker.unique_state_count(),
        path.as_ref()
            .map_or(0, |path| path.clone().into_actions().len()),
    );
    assert!(path.is_some(), "{bug:?} is not noticed by \"{property}\"");
}

fn protected(budget: Budget) -> Scenario {
    Scenario {
        start: World::protected(budget, None),
        slots: 1,
        live: false,
        faults: Vec::new(),
    }
}

fn cold(budget: Budget) -> Scenario {
    Scenario {
        start: World::cold(budget, None),
        ..protected(QUIET)
    }
}

/// `value`, or `more` with the large bounds.
fn bound(value: u8, more: u8) -> u8 {
    if full() { more } else { value }
}

#[test]
fn suspicions_right_or_wrong_break_nothing() {
    explore(
        "suspicions",
        protected(Budget {
            suspicions: bound(2, 3),
            appends: bound(1, 2),
            ..QUIET
        }),
    );
}

#[test]
fn packets_far_out_of_order_break_nothing() {
    explore(
        "reordering",
        Scenario {
            slots: 2,
            ..protected(Budget {
                suspicions: 1,
                appends: bound(0, 1),
                ..QUIET
            })
        },
    );
}

#[test]
fn crashes_and_reboots_break_nothing() {
    explore(
        "crash and reboot",
        protected(Budget {
            crashes: 1,
            reboots: 1,
            appends: bound(1, 3),
            ..QUIET
        }),
    );
}

#[test]
fn a_crash_among_suspicions_breaks_nothing() {
    explore(
        "crash among suspicions",
        protected(Budget {
            suspicions: bound(1, 2),
            crashes: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn a_cold_start_breaks_nothing() {
    explore(
        "cold start",
        cold(Budget {
            appends: bound(1, 2),
            ..QUIET
        }),
    );
}

#[test]
fn a_crash_in_a_cold_start_breaks_nothing() {
    explore(
        "cold start with a crash",
        cold(Budget {
            crashes: 1,
            appends: bound(0, 1),
            ..QUIET
        }),
    );
}

#[test]
fn both_hosts_losing_power_breaks_nothing() {
    let mut scenario = protected(Budget {
        reboots: bound(2, 3),
        appends: 1,
        ..QUIET
    });
    scenario.start.crash(0);
    scenario.start.crash(1);
    explore("both lose power", scenario);
}

#[test]
fn a_hand_over_breaks_nothing() {
    explore(
        "hand-over",
        protected(Budget {
            suspicions: 1,
            hand_overs: bound(1, 2),
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn a_power_off_and_a_new_start_break_nothing() {
    explore(
        "power-off",
        protected(Budget {
            crashes: 1,
            reboots: 1,
            power_offs: 1,
            appends: bound(0, 1),
            ..QUIET
        }),
    );
}

#[test]
fn a_restarting_arbiter_breaks_nothing() {
    explore(
        "arbiter restart",
        protected(Budget {
            suspicions: bound(1, 2),
            arbiter_restarts: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn a_restored_arbiter_breaks_nothing() {
    explore(
        "arbiter restored",
        protected(Budget {
            crashes: 1,
            reboots: 1,
            restores: 1,
            appends: bound(0, 1),
            ..QUIET
        }),
    );
}

#[test]
fn the_operators_word_breaks_nothing() {
    explore(
        "operator",
        protected(Budget {
            suspicions: 1,
            crashes: 1,
            confirms: 1,
            appends: bound(1, 2),
            ..QUIET
        }),
    );
}

/// From every state that a healthy pair reaches, hand-over included, every single fault.
#[test]
fn after_any_single_fault_exactly_one_host_goes_on() {
    explore(
        "liveness, one fault",
        Scenario {
            live: true,
            faults: FAULTS.to_vec(),
            ..protected(Budget {
                hand_overs: 1,
                appends: 1,
                ..QUIET
            })
        },
    );
}

/// A suspicion, right or wrong, is the fault; the rest of the schedule is arbitrary for a while and
/// then fair.
#[test]
fn after_a_suspicion_exactly_one_host_goes_on() {
    explore(
        "liveness, suspicion",
        Scenario {
            live: true,
            faults: vec![Fault::None],
            ..protected(Budget {
                suspicions: 1,
                appends: 1,
                ..QUIET
            })
        },
    );
}

/// Two cold hosts come to a protected pair from every state of their start.
#[test]
fn a_cold_start_leads_to_one_primary() {
    explore(
        "liveness, cold start",
        Scenario {
            live: true,
            faults: vec![Fault::None],
            ..cold(QUIET)
        },
    );
}

#[test]
fn a_takeover_without_a_verdict_is_noticed() {
    notices(
        Bug::TakeoverWithoutVerdict,
        "one releases in a generation",
        protected(Budget {
            suspicions: 2,
            ..QUIET
        }),
    );
}

#[test]
fn acknowledging_before_holding_is_noticed() {
    notices(
        Bug::AcknowledgeBeforeHolding,
        "what was released is held",
        protected(Budget {
            suspicions: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn granting_a_non_member_is_noticed() {
    notices(
        Bug::GrantNonMember,
        "only members are granted",
        protected(Budget {
            suspicions: 1,
            crashes: 1,
            reboots: 1,
            ..QUIET
        }),
    );
}

#[test]
fn accepting_entries_while_asking_is_noticed() {
    notices(
        Bug::AcceptWhileAsking,
        "what was released is held",
        protected(Budget {
            suspicions: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn admitting_before_the_peer_holds_what_was_released_is_noticed() {
    notices(
        Bug::AdmitBeforeHeld,
        "what was released is held",
        protected(Budget {
            suspicions: 2,
            appends: 1,
            ..QUIET
        }),
    );
}

#[test]
fn answering_before_the_record_is_stored_is_noticed() {
    notices(
        Bug::AnswerBeforeStored,
        "no generation granted twice",
        protected(Budget {
            suspicions: 2,
            arbiter_restarts: 1,
            ..QUIET
        }),
    );
}

#[test]
fn a_boot_id_used_twice_is_noticed() {
    notices(
        Bug::SameBootAfterReboot,
        "a fenced host stays fenced",
        protected(Budget {
            suspicions: 1,
            reboots: 1,
            ..QUIET
        }),
    );
}

#[test]
fn a_restored_record_taken_for_an_empty_one_is_noticed() {
    notices(
        Bug::RestoredAsEmpty,
        "what was released is held",
        protected(Budget {
            suspicions: 1,
            crashes: 1,
            reboots: 1,
            restores: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

/// A backup that waits for its verdict cannot know that the primary was granted and went on alone; the
/// operator has to look.
#[test]
fn the_operators_word_after_the_peer_went_on_alone_is_noticed() {
    notices(
        Bug::ConfirmWithoutLooking,
        "what was released is held",
        protected(Budget {
            suspicions: 1,
            crashes: 1,
            confirms: 1,
            appends: 1,
            ..QUIET
        }),
    );
}

/// Liveness has teeth too: with the arbiter down and a host dead, nobody may go on, and the check
/// says so.
#[test]
fn a_second_fault_is_noticed() {
    let mut world = World::protected(QUIET, None);
    world.crash(0);
    assert!(!one_goes_on(&world, Fault::ArbiterDown));
    assert!(one_goes_on(&world, Fault::None));
}
