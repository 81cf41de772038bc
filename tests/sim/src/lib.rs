//! Two replicas, one thread, one seed: the simulator of the replication protocol.
//!
//! Each host runs a toy deterministic machine behind a real [`ftlink::link::Link`]; the wires, the
//! clocks, the arbiter and everything that goes wrong are simulated from the seed, so a run repeats
//! exactly. Checks look after every step; a run that breaks one names the seed and shows its trace.

#![forbid(unsafe_code)]

pub mod checks;
pub mod host;
pub mod machine;
pub mod network;
pub mod plain;
pub mod plan;
pub mod random;
pub mod sweep;
pub mod world;

pub use checks::Violation;
pub use sweep::{Sweep, sweep};
pub use world::{Failure, Options, Outcome, run};

/// A defect put into a host or the arbiter, to show that a check catches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// Outputs leave without asking the gate.
    ReleasesUngated,
    /// A backup that suspects its primary acts without a verdict.
    ActsWithoutVerdict,
    /// A fenced host goes on releasing.
    ActsWhenFenced,
    /// A granted backup acts before it has replayed what it holds.
    SkipsDraining,
    /// A backup changes an input before it replays it.
    ReplaysWrongly,
    /// The arbiter grants a claim without recording it.
    ArbiterForgets,
    /// The arbiter grants whoever asks.
    ArbiterGrantsAnyone,
    /// A host never asks the arbiter.
    NeverAsks,
    /// A late output differs from what the survivor knows.
    ChangesLateOutputs,
    /// A host counts as held what is only appended.
    CountsUnheld,
    /// A host looks again and again without anything to do.
    NeverSleeps,
    /// A host sends each output hundreds of times.
    RepeatsOutputs,
    /// A backup that has asked reboots.
    GivesUp,
    /// A backup loses an entry between the link and its machine.
    DropsEntries,
    /// A fenced host begins anew without a reboot.
    Unfences,
    /// A backup that has asked makes the answer itself.
    ForgesVerdict,
}
