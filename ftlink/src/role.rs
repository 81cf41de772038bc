//! The role table: states × inputs, no empty cell. Which input has happened, and what it has to be
//! told, is for [`crate::fence`]; here is only where it leads.

use core::fmt;

/// What a host is to its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Booted, without a guest; no primary was heard yet.
    Cold,
    /// Takes the log of a running primary, without being a member.
    Joining,
    /// Holds too little to take the log; waits for state transfer.
    Waiting,
    /// A member: holds the log, acknowledges, may ask to take over.
    Backup,
    /// Has asked the arbiter; accepts and acknowledges nothing, and is mute, until the verdict.
    Asking(Asker),
    /// Granted; replays what it holds before it acts.
    Draining,
    /// Runs the guest.
    Primary(Mode),
    /// Its replay differed; takes no part until it gets new state.
    Diverged,
    /// Outvoted; mute until it reboots.
    Fenced,
    /// The guest powered off cleanly.
    Stopped,
}

/// What an asking host was, which is what a denial makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asker {
    /// Asks to start the guest.
    Cold,
    /// Asks to take over.
    Backup,
    /// Asks to go on alone.
    Primary,
}

/// How a primary releases outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// When the backup holds them.
    Protected,
    /// When the joining host holds them; it is not a member yet.
    Admitting,
    /// At once: this host holds the generation alone.
    Solo,
    /// At once, on the operator's word, which no arbiter has recorded yet.
    Unprotected,
    /// When the backup holds them; the guest stands still and the backup is to take over.
    HandingOver,
}

/// What can happen to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// The peer is suspected, or known to have died.
    Suspected,
    /// A frame or the arbiter shows a newer generation.
    NewerGeneration,
    /// The arbiter granted what was asked.
    Granted,
    /// The arbiter denied what was asked.
    Denied,
    /// The operator asserts that the peer is off and stays off.
    Confirmed,
    /// Everything held is replayed.
    Drained,
    /// Everything held is replayed, and the generation is the operator's word.
    DrainedOnWord,
    /// The replay differed from the log.
    Divergence,
    /// The peer acts as primary in this host's generation.
    PrimarySeen,
    /// The primary no longer has what this host needs next.
    OutOfRing,
    /// State transfer is complete.
    Transferred,
    /// The owner says this host is its backup.
    Admitted,
    /// A joining peer is close behind.
    JoinerReady,
    /// The joining peer is gone, and its admission was never asked.
    JoinerLost,
    /// The operator, or a lost service NIC, wants the peer to run the guest.
    HandOver,
    /// The peer holds the whole log of a guest that stands still.
    PeerHoldsAll,
    /// The peer has handed over.
    ToldToClaim,
    /// The guest powered off.
    PowerOff,
    /// The peer says the guest powered off.
    PeerStopped,
    /// A cold host may ask to start the guest.
    MayStart,
    /// The peer has no guest either.
    NoPrimary,
    /// The arbiter has recorded the operator's word.
    Raised,
}

/// What an input does to a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Changes it.
    Go(Role),
    /// Is expected, and changes nothing.
    Keep,
    /// Is late or meaningless here; counted.
    Drop,
    /// A command that cannot be obeyed here; the operator is told.
    Refuse,
}

/// When outputs may leave the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// Never.
    Shut,
    /// When the peer holds everything below them.
    Acked,
    /// At once.
    Open,
}

impl Role {
    /// Every role, in the order of the table.
    pub const ALL: [Role; 16] = [
        Role::Cold,
        Role::Joining,
        Role::Waiting,
        Role::Backup,
        Role::Asking(Asker::Cold),
        Role::Asking(Asker::Backup),
        Role::Asking(Asker::Primary),
        Role::Draining,
        Role::Primary(Mode::Protected),
        Role::Primary(Mode::Admitting),
        Role::Primary(Mode::Solo),
        Role::Primary(Mode::Unprotected),
        Role::Primary(Mode::HandingOver),
        Role::Diverged,
        Role::Fenced,
        Role::Stopped,
    ];

    /// Its row in the table, and its number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Role::Cold => 0,
            Role::Joining => 1,
            Role::Waiting => 2,
            Role::Backup => 3,
            Role::Asking(Asker::Cold) => 4,
            Role::Asking(Asker::Backup) => 5,
            Role::Asking(Asker::Primary) => 6,
            Role::Draining => 7,
            Role::Primary(Mode::Protected) => 8,
            Role::Primary(Mode::Admitting) => 9,
            Role::Primary(Mode::Solo) => 10,
            Role::Primary(Mode::Unprotected) => 11,
            Role::Primary(Mode::HandingOver) => 12,
            Role::Diverged => 13,
            Role::Fenced => 14,
            Role::Stopped => 15,
        }
    }

    /// The role with this number on the wire.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Role> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// When outputs may leave a host in this role.
    #[must_use]
    pub const fn gate(self) -> Gate {
        match self {
            Role::Primary(Mode::Protected | Mode::Admitting | Mode::HandingOver) => Gate::Acked,
            Role::Primary(Mode::Solo | Mode::Unprotected) => Gate::Open,
            Role::Cold
            | Role::Joining
            | Role::Waiting
            | Role::Backup
            | Role::Asking(_)
            | Role::Draining
            | Role::Diverged
            | Role::Fenced
            | Role::Stopped => Gate::Shut,
        }
    }

    /// Whether log entries are accepted and acknowledged.
    #[must_use]
    pub const fn accepts_entries(self) -> bool {
        matches!(self, Role::Joining | Role::Backup)
    }

    /// Whether the guest takes new inputs here.
    #[must_use]
    pub const fn runs_guest(self) -> bool {
        matches!(
            self,
            Role::Primary(Mode::Protected | Mode::Admitting | Mode::Solo | Mode::Unprotected)
                | Role::Asking(Asker::Primary)
        )
    }

    /// Whether the peer should follow this host's log.
    #[must_use]
    pub const fn offers_log(self) -> bool {
        matches!(self, Role::Primary(_))
    }

    /// What `input` does to this role.
    #[must_use]
    pub const fn on(self, input: Input) -> Cell {
        TABLE[self.code() as usize][input as usize]
    }
}

impl Input {
    /// Every input, in the order of the table.
    pub const ALL: [Input; 22] = [
        Input::Suspected,
        Input::NewerGeneration,
        Input::Granted,
        Input::Denied,
        Input::Confirmed,
        Input::Drained,
        Input::DrainedOnWord,
        Input::Divergence,
        Input::PrimarySeen,
        Input::OutOfRing,
        Input::Transferred,
        Input::Admitted,
        Input::JoinerReady,
        Input::JoinerLost,
        Input::HandOver,
        Input::PeerHoldsAll,
        Input::ToldToClaim,
        Input::PowerOff,
        Input::PeerStopped,
        Input::MayStart,
        Input::NoPrimary,
        Input::Raised,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Cold => "cold",
            Role::Joining => "joining",
            Role::Waiting => "waiting",
            Role::Backup => "backup",
            Role::Asking(Asker::Cold) => "asking/cold",
            Role::Asking(Asker::Backup) => "asking/backup",
            Role::Asking(Asker::Primary) => "asking/primary",
            Role::Draining => "draining",
            Role::Primary(Mode::Protected) => "primary/protected",
            Role::Primary(Mode::Admitting) => "primary/admitting",
            Role::Primary(Mode::Solo) => "primary/solo",
            Role::Primary(Mode::Unprotected) => "primary/unprotected",
            Role::Primary(Mode::HandingOver) => "primary/handing-over",
            Role::Diverged => "diverged",
            Role::Fenced => "fenced",
            Role::Stopped => "stopped",
        })
    }
}

type Row = [Cell; Input::ALL.len()];

/// The table. Rows in the order of [`Role::ALL`], columns in the order of [`Input::ALL`].
#[rustfmt::skip]
const TABLE: [Row; Role::ALL.len()] = {
    use Cell::{Drop, Keep, Refuse};
    const COLD: Cell = Cell::Go(Role::Cold);
    const JOIN: Cell = Cell::Go(Role::Joining);
    const WAIT: Cell = Cell::Go(Role::Waiting);
    const BACK: Cell = Cell::Go(Role::Backup);
    const ASKC: Cell = Cell::Go(Role::Asking(Asker::Cold));
    const ASKB: Cell = Cell::Go(Role::Asking(Asker::Backup));
    const ASKP: Cell = Cell::Go(Role::Asking(Asker::Primary));
    const DRAI: Cell = Cell::Go(Role::Draining);
    const PROT: Cell = Cell::Go(Role::Primary(Mode::Protected));
    const ADMI: Cell = Cell::Go(Role::Primary(Mode::Admitting));
    const SOLO: Cell = Cell::Go(Role::Primary(Mode::Solo));
    const WORD: Cell = Cell::Go(Role::Primary(Mode::Unprotected));
    const HAND: Cell = Cell::Go(Role::Primary(Mode::HandingOver));
    const DIVE: Cell = Cell::Go(Role::Diverged);
    const FENC: Cell = Cell::Go(Role::Fenced);
    const STOP: Cell = Cell::Go(Role::Stopped);
    [
        // Suspected, NewerGeneration, Granted, Denied, Confirmed, Drained, DrainedOnWord, Divergence, PrimarySeen, OutOfRing, Transferred,
        // Admitted, JoinerReady, JoinerLost, HandOver, PeerHoldsAll, ToldToClaim, PowerOff, PeerStopped, MayStart, NoPrimary, Raised
        /* cold */
        [Keep, Keep, Drop, Drop, WORD, Drop, Drop, Drop, JOIN, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, Drop, Keep, ASKC, Keep, Drop],
        /* joining */
        [ASKB, Keep, Drop, Drop, Refuse, Drop, Drop, DIVE, Keep, WAIT, Drop,
         BACK, Drop, Drop, Refuse, Drop, Drop, Keep, STOP, Drop, COLD, Drop],
        /* waiting */
        [Keep, Keep, Drop, Drop, Refuse, Drop, Drop, Drop, Keep, Keep, JOIN,
         Drop, Drop, Drop, Refuse, Drop, Drop, Drop, STOP, Drop, COLD, Drop],
        /* backup */
        [ASKB, ASKB, Drop, Drop, Refuse, Drop, Drop, DIVE, Keep, WAIT, Drop,
         Keep, Drop, Drop, Refuse, Drop, ASKB, Keep, STOP, Drop, ASKB, Drop],
        /* asking/cold */
        [Keep, Keep, SOLO, COLD, WORD, Drop, Drop, Drop, Keep, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, Drop, Keep, Keep, Keep, Drop],
        /* asking/backup: a divergence found now waits for the verdict */
        [Keep, Keep, DRAI, JOIN, DRAI, Keep, Keep, Keep, Keep, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Keep, Keep, Keep, Drop, Keep, Drop],
        /* asking/primary: a power-off waits for the verdict */
        [Keep, Keep, SOLO, FENC, WORD, Drop, Drop, Drop, Keep, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, Keep, Keep, Drop, Keep, Drop],
        /* draining */
        [Keep, ASKP, Drop, Drop, Refuse, SOLO, WORD, DIVE, FENC, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, STOP, Keep, Drop, Keep, Drop],
        /* primary/protected */
        [ASKP, ASKP, Drop, Drop, Refuse, Drop, Drop, Drop, FENC, Drop, Drop,
         Drop, Keep, Drop, HAND, Drop, Drop, STOP, ASKP, Drop, ASKP, Drop],
        /* primary/admitting: outvoted or seat taken, only a claim tells */
        [ASKP, ASKP, PROT, ASKP, Refuse, Drop, Drop, Drop, FENC, Drop, Drop,
         Drop, Keep, SOLO, Refuse, Drop, Drop, STOP, ASKP, Drop, ASKP, Drop],
        /* primary/solo */
        [Keep, ASKP, Drop, Drop, Refuse, Drop, Drop, Drop, FENC, Drop, Drop,
         Drop, ADMI, Drop, Refuse, Drop, Drop, STOP, Keep, Drop, Keep, Drop],
        /* primary/unprotected: no joiner before the word is recorded */
        [Keep, ASKP, Drop, FENC, Refuse, Drop, Drop, Drop, FENC, Drop, Drop,
         Drop, Keep, Drop, Refuse, Drop, Drop, STOP, Keep, Drop, Keep, SOLO],
        /* primary/handing-over */
        [ASKP, ASKP, Drop, Drop, Refuse, Drop, Drop, Drop, FENC, Drop, Drop,
         Drop, Keep, Drop, Keep, JOIN, Drop, Drop, ASKP, Drop, ASKP, Drop],
        /* diverged */
        [Keep, Keep, Drop, Drop, Refuse, Drop, Drop, Keep, Keep, Keep, JOIN,
         Drop, Drop, Drop, Refuse, Drop, Drop, Drop, Keep, Drop, Keep, Drop],
        /* fenced */
        [Drop, Drop, Drop, Drop, Refuse, Drop, Drop, Drop, Drop, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, Drop, Drop, Drop, Drop, Drop],
        /* stopped: starting again takes a reboot, so that one boot starts at most one guest */
        [Keep, Keep, Drop, Drop, Refuse, Drop, Drop, Drop, JOIN, Drop, Drop,
         Drop, Drop, Drop, Refuse, Drop, Drop, Keep, Keep, Refuse, Keep, Drop],
    ]
};
