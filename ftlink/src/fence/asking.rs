//! What the fence asks the arbiter, and what answers do to it. One binding request is outstanding at
//! a time and is repeated unchanged until its verdict; a query beside it shows that the arbiter lives.

use super::{Config, Fence, Outstanding, Positions};
use crate::arbiter::{
    Ask, Member, Outcome, RecordState, Refusal, Reply, Request, Summary, Verdict,
};
use crate::ids::{Generation, Instant, RequestId};
use crate::role::{Asker, Input, Mode, Role};

impl Fence {
    /// The request to send now, if one is due. Call until it returns `None`.
    pub fn request(&mut self, now: Instant, config: &Config) -> Option<Request> {
        for slot in [&mut self.asking, &mut self.probe] {
            if let Some(outstanding) = slot
                && outstanding.due <= now
            {
                outstanding.due = now.after(config.retry);
                self.counters.requests += 1;
                return Some(outstanding.request);
            }
        }
        None
    }

    /// The binding request that waits for its verdict.
    #[must_use]
    pub fn asking(&self) -> Option<Request> {
        self.asking.map(|outstanding| outstanding.request)
    }

    /// Whether an answer to request `id` of `member` would be heeded now.
    #[must_use]
    pub fn awaits(&self, member: Member, id: RequestId) -> bool {
        let is = |slot: &Option<Outstanding>| slot.is_some_and(|slot| slot.request.id == id);
        member == self.me && (is(&self.asking) || is(&self.probe))
    }

    /// Time passes: starts, admissions, hand-overs and queries that are due. Called after what has
    /// arrived was processed, at least at [`poll_at`](Self::poll_at).
    pub fn poll(&mut self, now: Instant, config: &Config, own: Positions) {
        self.poll_probe(now, config);
        match self.role {
            Role::Cold => self.poll_cold(now, config),
            Role::Joining if self.handed_over.is_some() && now >= self.claim_back_at => {
                self.suspected(now);
            }
            Role::Primary(Mode::Protected) => self.poll_health(now, config),
            Role::Primary(_) => self.poll_peer_holds(now, config, own),
            _ => {}
        }
        if self.asking.is_none() {
            self.ask_next(now);
        }
    }

    /// When [`poll`](Self::poll) or [`request`](Self::request) next has something to do.
    #[must_use]
    pub fn poll_at(&self, config: &Config) -> Instant {
        let due = |slot: &Option<Outstanding>| slot.map_or(Instant::NEVER, |slot| slot.due);
        let probe = match self.probe {
            Some(_) => due(&self.probe),
            None => self
                .arbiter_heard
                .map_or(Instant(0), |heard| heard.after(config.probe)),
        };
        let handicap = match self.suspected_since {
            Some(since) if self.would_ask() => since.after(config.handicap),
            _ => Instant::NEVER,
        };
        let claim_back = match (self.role, self.handed_over) {
            (Role::Joining, Some(_)) => self.claim_back_at,
            _ => Instant::NEVER,
        };
        due(&self.asking)
            .min(probe)
            .min(self.start_due(config).unwrap_or(Instant::NEVER))
            .min(handicap)
            .min(claim_back)
    }

    fn take_id(&mut self) -> RequestId {
        let id = self.next_id;
        self.next_id = RequestId(id.0.saturating_add(1));
        id
    }

    pub(super) fn ask(&mut self, now: Instant, ask: Ask) {
        let request = Request {
            id: self.take_id(),
            from: self.me,
            generation: self.generation,
            ask,
        };
        self.asking = Some(Outstanding { request, due: now });
    }

    /// The request that an asking role waits for.
    pub(super) fn ask_for_verdict(&mut self, now: Instant, asker: Asker) {
        let ask = match asker {
            Asker::Cold => Ask::Start {
                peer: self.cold_peer().map(|peer| peer.member),
            },
            Asker::Primary if self.raise_pending => Ask::Raise,
            Asker::Backup | Asker::Primary => Ask::Claim,
        };
        self.ask(now, ask);
    }

    /// What is still to be recorded when nothing is outstanding.
    pub(super) fn ask_next(&mut self, now: Instant) {
        let ask = if self.raise_pending {
            Ask::Raise
        } else if self.stop_pending {
            Ask::Stop
        } else if self.must_adopt() {
            Ask::Adopt {
                backup: self.backup(),
            }
        } else {
            return;
        };
        self.ask(now, ask);
    }

    /// The member beside this owner, if it has one.
    fn backup(&self) -> Option<Member> {
        match self.role {
            Role::Primary(Mode::Protected | Mode::HandingOver) => self.peer(),
            _ => None,
        }
    }

    fn must_adopt(&self) -> bool {
        let restored = self.record.is_some_and(|record| {
            record.state == RecordState::Restored && record.generation == self.generation
        });
        restored && matches!(self.role, Role::Primary(_))
    }

    fn poll_probe(&mut self, now: Instant, config: &Config) {
        let due = match self.arbiter_heard {
            Some(heard) => now >= heard.after(config.probe),
            None => true,
        };
        if due && self.probe.is_none() {
            let request = Request {
                id: self.take_id(),
                from: self.me,
                generation: self.generation,
                ask: Ask::Query,
            };
            self.probe = Some(Outstanding { request, due: now });
        }
    }

    /// Two cold hosts start together: the lower node asks, the other one after the handicap. A lone
    /// one asks after a wait. Neither asks before the record, as last heard, allows it.
    fn poll_cold(&mut self, now: Instant, config: &Config) {
        if self.start_due(config).is_some_and(|due| due <= now) {
            self.apply(now, Input::MayStart);
        }
    }

    /// From when on a cold host may ask to start the guest.
    fn start_due(&self, config: &Config) -> Option<Instant> {
        let peer = self.cold_peer();
        let allowed = self
            .record
            .is_some_and(|record| record.may_start(self.me, peer.map(|peer| peer.member)));
        if self.role != Role::Cold || self.asking.is_some() || !allowed {
            return None;
        }
        Some(match peer {
            Some(_) if self.me.node < self.peer_node => self.cold_since,
            Some(peer) => peer
                .cold_since
                .map_or(Instant::NEVER, |since| since.max(self.cold_since))
                .after(config.handicap),
            None => self.cold_since.after(config.cold_wait),
        })
    }

    fn poll_health(&mut self, now: Instant, config: &Config) {
        let Some(peer) = self.peer else { return };
        let own = self.health(config, now);
        let worse = |own: bool, peer: bool| own && !peer;
        let wanted = worse(own.carrier_lost, peer.health.carrier_lost)
            || worse(own.arbiter_lost, peer.health.arbiter_lost);
        let better = worse(peer.health.carrier_lost, own.carrier_lost)
            || worse(peer.health.arbiter_lost, own.arbiter_lost);
        if config.auto_hand_over && wanted && !better && peer.role == Some(Role::Backup) {
            self.apply(now, Input::HandOver);
        }
    }

    /// A reply from the arbiter.
    pub fn on_reply(&mut self, now: Instant, config: &Config, reply: &Reply) {
        if reply.to != self.me {
            self.counters.late_replies += 1;
            return;
        }
        let is = |slot: &Option<Outstanding>| slot.is_some_and(|o| o.request.id == reply.id);
        if is(&self.probe) {
            self.probe = None;
            self.answered(now, reply);
        } else if let Some(outstanding) = self.asking
            && outstanding.request.id == reply.id
        {
            self.answered(now, reply);
            if let Outcome::Verdict(verdict) = reply.outcome {
                self.asking = None;
                self.on_verdict(now, config, &outstanding.request, verdict);
            }
        } else {
            self.counters.late_replies += 1;
            return;
        }
        if let Some(record) = reply.record {
            self.learn(now, record);
        }
    }

    fn answered(&mut self, now: Instant, reply: &Reply) {
        self.arbiter_heard = Some(now);
        self.refusal = match reply.outcome {
            Outcome::Refused(refusal) => {
                self.counters.refusals += 1;
                Some(refusal)
            }
            Outcome::Verdict(_) | Outcome::Known => None,
        };
        // A restored record has no members to admit to: the owner fills it in first.
        if self.refusal == Some(Refusal::NoMembers)
            && self.role == Role::Primary(Mode::Admitting)
            && self
                .asking
                .is_some_and(|asking| matches!(asking.request.ask, Ask::Admit(_)))
        {
            self.ask(now, Ask::Adopt { backup: None });
        }
    }

    /// What any reply shows of the record.
    fn learn(&mut self, now: Instant, record: Summary) {
        if self
            .record
            .is_none_or(|known| known.generation <= record.generation)
        {
            self.record = Some(record);
        }
        if record.generation > self.generation {
            self.on_newer_generation(now, record.generation);
        }
    }

    fn on_verdict(&mut self, now: Instant, config: &Config, request: &Request, verdict: Verdict) {
        match (request.ask, verdict) {
            (Ask::Claim | Ask::Start { .. }, Verdict::Granted(generation)) => {
                self.generation = generation;
                self.denied_at = None;
                self.apply(now, Input::Granted);
            }
            (Ask::Claim | Ask::Start { .. }, Verdict::Denied(_)) => {
                self.denied_at = Some(request.generation);
                self.whole = false;
                self.handed_over = None;
                self.apply(now, Input::Denied);
            }
            (Ask::Admit(_), Verdict::Granted(_)) => {
                self.apply(now, Input::Granted);
            }
            (Ask::Admit(_), Verdict::Denied(_)) => {
                self.apply(now, Input::Denied);
            }
            (Ask::Raise, Verdict::Granted(_)) => {
                self.raise_pending = false;
                let input = match self.role {
                    Role::Asking(_) => Input::Granted,
                    _ => Input::Raised,
                };
                self.apply(now, input);
            }
            (Ask::Raise, Verdict::Denied(_)) => {
                // Somebody else's word went further: this host acts no more.
                self.raise_pending = false;
                let input = match self.role {
                    Role::Draining => Input::NewerGeneration,
                    _ => Input::Denied,
                };
                self.apply(now, input);
            }
            (Ask::Stop, _) => self.stop_pending = false,
            (Ask::Adopt { .. } | Ask::Query, _) => {}
        }
        self.settle_divergence(now, config);
        self.after_verdict(now);
    }

    /// A divergence found while asking counts once the verdict is in: a denied host has diverged,
    /// a granted one does what the configuration says.
    fn settle_divergence(&mut self, now: Instant, config: &Config) {
        if core::mem::take(&mut self.divergence) {
            self.diverged(now, config);
        }
    }

    pub(super) fn after_verdict(&mut self, now: Instant) {
        if self.power_off && self.role != Role::Asking(Asker::Primary) {
            self.power_off = false;
            self.apply(now, Input::PowerOff);
        }
        if self.asking.is_none() {
            self.ask_next(now);
        }
    }

    /// A frame, or the arbiter, shows that `generation` exists. A host that acts, or may take over,
    /// is mute from here until the arbiter has spoken; the others go along.
    pub fn on_newer_generation(&mut self, now: Instant, generation: Generation) {
        if generation <= self.generation {
            return;
        }
        match self.role {
            Role::Cold | Role::Joining | Role::Waiting | Role::Diverged | Role::Stopped => {
                self.generation = generation;
                self.denied_at = None;
                self.whole = false;
                self.handed_over = None;
            }
            Role::Backup | Role::Draining | Role::Primary(_) => {
                self.apply(now, Input::NewerGeneration);
            }
            Role::Asking(_) | Role::Fenced => {}
        }
    }
}
