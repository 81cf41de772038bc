//! What the emulator tests are made of: a laboratory with everything compiled, runs of hosts in emulators, and
//! verdicts on what they said.

#![forbid(unsafe_code)]

mod bad;
mod diverged;
mod fault;
mod lab;
mod linux;
mod network;
mod replay_file;
mod run;

pub use bad::{BAD_STARTS, BadStart};
pub use diverged::{DIVERGING, Diverging};
pub use fault::{FAULTS, Fault};
pub use lab::Lab;
pub use linux::judge_linux;
pub use network::judge_network;
pub use replay_file::judge_replay_file;
pub use run::{HostRun, Judged};
