//! Liveness: from a state, a fair schedule without further faults must lead to exactly one host that
//! goes on. A round lets every host send, hear, ask, be answered and look at its detector once.

use ftlink::role::Role;

use crate::world::{NOW, World, config};

/// A lasting condition while the world settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    None,
    /// This host lost power.
    Crash(usize),
    /// This host stands still, and later goes on.
    Stall(usize),
    /// Nothing crosses the link.
    Cut,
    /// Only packets to this host are lost.
    CutTo(usize),
    /// The arbiter does not answer.
    ArbiterDown,
    /// This host alone does not reach the arbiter.
    ArbiterCut(usize),
}

/// Every single fault.
pub const FAULTS: [Fault; 11] = [
    Fault::None,
    Fault::Crash(0),
    Fault::Crash(1),
    Fault::Stall(0),
    Fault::Stall(1),
    Fault::Cut,
    Fault::CutTo(0),
    Fault::CutTo(1),
    Fault::ArbiterDown,
    Fault::ArbiterCut(0),
    Fault::ArbiterCut(1),
];

/// Rounds after which the slowest takeover is over; measured 8, with room.
const ROUNDS: usize = 14;

/// One fair round under `fault`.
pub fn round(world: &mut World, fault: Fault) {
    for host in 0..2 {
        if fault == Fault::Stall(host) {
            world.silence(1 - host);
            continue;
        }
        arbiter(world, host, fault);
        replay(world, host);
        let peer = 1 - host;
        let cut = matches!(fault, Fault::Cut | Fault::Stall(_)) || fault == Fault::CutTo(peer);
        let packet = world.packet(host);
        match packet {
            Some(packet) if !cut => {
                world.deliver(peer, &packet);
                calm(world, peer);
            }
            _ if fault != Fault::Stall(peer) => world.silence(peer),
            _ => {}
        }
    }
}

fn calm(world: &mut World, host: usize) {
    if let Some(host) = &mut world.hosts[host] {
        host.fence.on_suspicion(NOW, &config(), None);
    }
}

fn arbiter(world: &mut World, host: usize, fault: Fault) {
    if fault == Fault::ArbiterDown || fault == Fault::ArbiterCut(host) {
        return;
    }
    let asked: Vec<_> = world.requests.iter().copied().collect();
    for request in asked {
        if crate::world::index(request.from.node) == host {
            world.arbitrate(&request);
        }
    }
    for reply in world.replies.clone() {
        if crate::world::index(reply.to.node) == host {
            world.reply(&reply);
        }
    }
}

fn replay(world: &mut World, host: usize) {
    if let Some(up) = &mut world.hosts[host]
        && up.fence.role() == Role::Draining
    {
        up.fence.drained(NOW);
        world.after(host);
    }
}

/// The host that runs the guest and can release what it produces, if exactly one does.
pub fn survivor(world: &World) -> Option<usize> {
    let mut found = None;
    for (index, host) in world.hosts.iter().enumerate() {
        if let Some(host) = host
            && host.fence.role().runs_guest()
        {
            let mut probe = world.clone();
            probe.append(index);
            for _ in 0..3 {
                round(&mut probe, Fault::None);
            }
            let after = probe.hosts[index].as_ref()?;
            if after.releasable() == after.log.len() && after.fence.role().runs_guest() {
                if found.is_some() {
                    return None;
                }
                found = Some(index);
            }
        }
    }
    found
}

/// Whether exactly one host goes on after `fault` strikes here.
pub fn one_goes_on(world: &World, fault: Fault) -> bool {
    let mut world = world.clone();
    world.link = [Vec::new(), Vec::new()];
    if let Fault::Crash(host) = fault {
        world.crash(host);
    }
    for _ in 0..ROUNDS {
        round(&mut world, fault);
    }
    if world.violation.is_some() {
        return false;
    }
    match fault {
        // The stalled host comes back and finds out; the other one is not disturbed.
        Fault::Stall(host) => {
            let alone = releases_alone(&world, 1 - host, fault);
            for _ in 0..ROUNDS {
                round(&mut world, Fault::None);
            }
            alone && survivor(&world).is_some() && world.violation.is_none()
        }
        Fault::Cut | Fault::CutTo(_) => {
            let [first, second] = [0, 1].map(|host| releases_alone(&world, host, fault));
            first != second
        }
        Fault::None | Fault::Crash(_) | Fault::ArbiterDown | Fault::ArbiterCut(_) => {
            survivor(&world).is_some()
        }
    }
}

/// Whether this host releases a new output while the fault lasts.
fn releases_alone(world: &World, index: usize, fault: Fault) -> bool {
    let mut world = world.clone();
    world.append(index);
    for _ in 0..3 {
        round(&mut world, fault);
    }
    world.hosts[index]
        .as_ref()
        .is_some_and(|host| host.fence.role().runs_guest() && host.releasable() == host.log.len())
}
