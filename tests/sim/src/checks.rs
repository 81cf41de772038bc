//! What must hold after every step, whatever goes wrong. The checks know both hosts and the arbiter,
//! as nobody in a real pair does.

use std::collections::BTreeMap;
use std::fmt;

use ftlink::arbiter::{Ask, Member, Record, Request, Verdict};
use ftlink::ids::{BootId, Generation};
use ftlink::role::Role;

use crate::host::{Host, Release};

/// Late outputs an outvoted host may release before it learns the verdict: what its peer held when it
/// was last heard.
pub const MAX_LATE_OUTPUTS: u64 = 512;

/// What was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two hosts released outputs in one generation.
    TwoActors(Generation, Member, Member),
    /// An output left while the releasing host's gate was shut.
    ReleasedWhileMute(Member, Role),
    /// An output left that a member which may have to go on does not hold.
    ReleasedUnheld {
        /// Who released it.
        by: Member,
        /// Who lacks it.
        lacks: Member,
        /// Its position.
        position: u64,
    },
    /// A host began to act without knowing an output the world has seen.
    SurvivorLacks {
        /// Who.
        survivor: Member,
        /// Its position.
        position: u64,
    },
    /// Two different outputs left at one position.
    OutputsDiffer(u64),
    /// An outvoted host released more than it may.
    TooManyLate(Member),
    /// A fenced host left its role.
    UnfencedItself(Member, Role),
    /// A generation was granted twice.
    GrantedTwice(Generation),
    /// Somebody outside the members was granted.
    GrantedStranger(Member),
    /// A replay differed from its log.
    ReplayDiffers {
        /// Who replayed.
        by: Member,
        /// Where.
        position: u64,
    },
    /// An entry arrived that is not what was appended, or not where.
    WrongEntry {
        /// Who got it.
        by: Member,
        /// Where.
        position: u64,
    },
    /// A host counts as acknowledged what its peer does not hold.
    AckedUnheld {
        /// Who counts.
        by: Member,
        /// What it counts as held.
        acked: u64,
        /// What is held.
        held: u64,
    },
    /// One fault ended the guest.
    GuestLost,
    /// The pair did not become whole again after everything was healed.
    NotHealed([Option<Role>; 2]),
    /// A host is awake all the time without anything to do.
    Spins,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What the world has seen.
#[derive(Default)]
pub struct Checks {
    /// Of the present guest: position → output.
    released: BTreeMap<u64, u64>,
    actors: BTreeMap<Generation, Member>,
    granted: BTreeMap<Generation, Member>,
    late: BTreeMap<BootId, u64>,
    fenced: BTreeMap<BootId, Member>,
    /// Outputs released so far.
    pub releases: u64,
    /// Of them, by a host that was outvoted and did not know it yet.
    pub late_releases: u64,
    /// Guests started from power-on.
    pub incarnations: u64,
}

impl Checks {
    /// The guest is started from power-on: what an earlier one did counts no more.
    pub fn on_power_on(&mut self) {
        self.released.clear();
        self.incarnations += 1;
    }

    /// `by` has released an output.
    ///
    /// # Errors
    ///
    /// What that breaks.
    pub fn on_release(
        &mut self,
        by: &Host,
        peer: &Host,
        record: &Record,
        release: Release,
    ) -> Result<(), Violation> {
        let me = by.member();
        let Release {
            position,
            output,
            role,
            generation,
        } = release;
        if !matches!(role, Role::Primary(_)) {
            return Err(Violation::ReleasedWhileMute(me, role));
        }
        let actor = *self.actors.entry(generation).or_insert(me);
        if actor != me {
            return Err(Violation::TwoActors(generation, actor, me));
        }
        self.releases += 1;
        if *self.released.entry(position).or_insert(output) != output {
            return Err(Violation::OutputsDiffer(position));
        }
        if generation < record.generation {
            let late = self.late.entry(me.boot).or_default();
            *late += 1;
            self.late_releases += 1;
            if *late > MAX_LATE_OUTPUTS {
                return Err(Violation::TooManyLate(me));
            }
        }
        let may_go_on = record.is_member(peer.member()) && peer.link().is_some();
        if may_go_on && !peer.holds(position, output) {
            return Err(Violation::ReleasedUnheld {
                by: me,
                lacks: peer.member(),
                position,
            });
        }
        Ok(())
    }

    /// `survivor` begins to act on what it holds.
    ///
    /// # Errors
    ///
    /// An output the world has seen and it does not know.
    pub fn on_takeover(&self, survivor: &Host) -> Result<(), Violation> {
        for (&position, &output) in &self.released {
            if survivor.output_at(position) != Some(output) {
                return Err(Violation::SurvivorLacks {
                    survivor: survivor.member(),
                    position,
                });
            }
        }
        Ok(())
    }

    /// The arbiter has answered.
    ///
    /// # Errors
    ///
    /// What it should not have granted.
    pub fn on_verdict(
        &mut self,
        before: &Record,
        request: &Request,
        verdict: Verdict,
    ) -> Result<(), Violation> {
        let Verdict::Granted(generation) = verdict else {
            return Ok(());
        };
        if !matches!(request.ask, Ask::Claim | Ask::Start { .. }) {
            return Ok(());
        }
        let again = self.granted.insert(generation, request.from);
        match again {
            Some(holder) if holder == request.from => Ok(()),
            Some(_) => Err(Violation::GrantedTwice(generation)),
            None if request.ask == Ask::Claim && !before.is_member(request.from) => {
                Err(Violation::GrantedStranger(request.from))
            }
            None => Ok(()),
        }
    }

    /// Looks at a host and its peer.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn on_step(&mut self, host: &Host, peer: &Host) -> Result<(), Violation> {
        let Some(link) = host.link() else {
            return Ok(());
        };
        let me = host.member();
        let role = link.fence().role();
        if role == Role::Fenced {
            self.fenced.insert(me.boot, me);
        } else if self.fenced.contains_key(&me.boot) {
            return Err(Violation::UnfencedItself(me, role));
        }
        if let Some(peer_link) = peer.link() {
            let follows = peer_link.fence().follows() == Some(me)
                && peer_link.fence().role().accepts_entries()
                && link.fence().peer() == Some(peer.member());
            let (acked, held) = (host.counted_as_held().0, peer_link.held().0);
            if follows && matches!(role, Role::Primary(_)) && acked > held {
                return Err(Violation::AckedUnheld {
                    by: me,
                    acked,
                    held,
                });
            }
        }
        Ok(())
    }
}
