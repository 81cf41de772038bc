//! What the peer says: its boots, its heartbeats, its joining and its hand-over.

use super::{Beat, Config, Fence, Notice, Peer, Positions};
use crate::arbiter::{Ask, Member};
use crate::ids::{Instant, LogPos};
use crate::role::{Asker, Gate, Input, Mode, Role};

impl Fence {
    /// A session with the peer begins. A boot other than the one known means that that one is dead.
    pub fn on_session(&mut self, now: Instant, member: Member) {
        if member.node != self.peer_node {
            self.counters.foreign += 1;
            return;
        }
        let known = self.peer.map(|peer| peer.member);
        if known == Some(member) {
            return;
        }
        self.peer = Some(Peer {
            member,
            role: None,
            health: super::Health::default(),
            cold_since: None,
        });
        if known.is_some() {
            self.suspected(now);
        }
    }

    /// A heartbeat of the peer. The link passes them in the order they were sent and leaves out
    /// those of a boot older than the session's.
    pub fn on_beat(&mut self, now: Instant, config: &Config, beat: &Beat, own: Positions) {
        if beat.from.node != self.peer_node {
            self.counters.foreign += 1;
            return;
        }
        self.on_session(now, beat.from);
        if beat.generation < self.generation {
            self.counters.old_generation += 1;
            return;
        }
        if beat.generation > self.generation {
            self.counters.newer_generation += 1;
            self.on_newer_generation(now, beat.generation);
            if beat.generation > self.generation {
                return;
            }
        }
        self.note_peer(now, beat);
        if beat.health.peer_lost && self.gate() == Gate::Acked {
            // It will not acknowledge what it does not get, and asks soon: ask first.
            self.suspected(now);
        }
        match beat.role {
            Role::Primary(_) => self.on_primary(now, beat),
            Role::Joining => self.on_joiner(now, config, beat, own),
            Role::Backup => {}
            Role::Cold => {
                if self.claim_first(now) {
                    return;
                }
                self.apply(now, Input::NoPrimary);
            }
            Role::Stopped => {
                self.apply(now, Input::PeerStopped);
            }
            // A backup in one of these backs up no more.
            Role::Asking(_) | Role::Waiting | Role::Diverged | Role::Fenced | Role::Draining => {
                if matches!(self.role, Role::Primary(_)) {
                    self.suspected(now);
                }
            }
        }
        self.poll_peer_holds(now, config, own);
    }

    fn note_peer(&mut self, now: Instant, beat: &Beat) {
        if let Some(peer) = &mut self.peer {
            peer.role = Some(beat.role);
            peer.health = beat.health;
            peer.cold_since = has_no_guest(beat.role).then(|| peer.cold_since.unwrap_or(now));
        }
    }

    /// A joining host whose primary died may be a member without knowing it: it asks before it
    /// gives up what it holds.
    fn claim_first(&mut self, now: Instant) -> bool {
        if self.role != Role::Joining {
            return false;
        }
        self.suspected(now);
        self.role != Role::Joining
    }

    fn on_primary(&mut self, now: Instant, beat: &Beat) {
        if self.role == Role::Waiting && self.follows != Some(beat.from) {
            // Another guest, or another boot's: its log may be short enough to take from the start.
            self.apply(now, Input::NoPrimary);
        }
        match self.role {
            Role::Cold | Role::Stopped => {
                self.forget_log();
                self.follows = Some(beat.from);
                self.apply(now, Input::PrimarySeen);
            }
            Role::Joining | Role::Waiting => {
                if self.follows != Some(beat.from) {
                    self.forget_log();
                    self.follows = Some(beat.from);
                }
                self.apply(now, Input::PrimarySeen);
                if beat.notice == Notice::Admitted && self.handed_over.is_none() {
                    self.admitted(now);
                }
            }
            _ => {
                self.apply(now, Input::PrimarySeen);
            }
        }
    }

    fn admitted(&mut self, now: Instant) {
        if self.role == Role::Joining {
            self.whole = true;
            self.denied_at = None;
            self.apply(now, Input::Admitted);
        }
    }

    fn on_joiner(&mut self, now: Instant, config: &Config, beat: &Beat, own: Positions) {
        match (self.role, beat.notice) {
            (Role::Backup, Notice::Claim(head)) if own.head >= head => {
                self.apply(now, Input::ToldToClaim);
            }
            // Who does not hear this host cannot keep up with it.
            (Role::Primary(Mode::Solo), _) if beat.health.peer_lost => {}
            (Role::Primary(Mode::Solo), _)
                if own.head.since(own.acked) <= config.admit_lag && self.asking.is_none() =>
            {
                self.gate_from = own.head;
                self.admit_asked = false;
                self.apply(now, Input::JoinerReady);
            }
            _ => {}
        }
    }

    /// Admission and hand-over go on when the peer has acknowledged enough.
    pub(super) fn poll_peer_holds(&mut self, now: Instant, config: &Config, own: Positions) {
        let Some(peer) = self.peer else { return };
        match self.role {
            Role::Primary(Mode::Admitting) => self.poll_admission(now, peer.member, own),
            Role::Primary(Mode::HandingOver) if own.acked >= own.head => {
                self.hand_over_to(now, config, peer.member, own.head);
            }
            _ => {}
        }
    }

    fn poll_admission(&mut self, now: Instant, peer: Member, own: Positions) {
        if self.asking.is_none() && own.acked >= self.gate_from {
            self.admit_asked = true;
            self.ask(now, Ask::Admit(peer));
        }
    }

    /// The guest stands still and the peer holds all of its log: from here on this host is a member
    /// like the peer, and claims back if the peer does not claim.
    fn hand_over_to(&mut self, now: Instant, config: &Config, peer: Member, head: LogPos) {
        self.apply(now, Input::PeerHoldsAll);
        self.follows = Some(peer);
        self.handed_over = Some(head);
        self.whole = true;
        self.claim_back_at = now.after(config.hand_over_wait);
    }
}

/// Whether a host in this role neither runs a guest nor follows one.
pub(super) const fn has_no_guest(role: Role) -> bool {
    matches!(role, Role::Cold | Role::Asking(Asker::Cold) | Role::Stopped)
}
