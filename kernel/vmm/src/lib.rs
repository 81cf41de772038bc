//! The guest machine: what a guest sees, as a deterministic function of what enters through one door.
//!
//! Three traits are all this crate knows of the world: [`cpu::Vcpu`], [`memory::GuestMemory`] and
//! [`host::Host`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod board;
pub mod code;
pub mod config;
pub mod container;
pub mod cpu;
pub mod decoded;
pub mod digest;
pub mod emulate;
pub mod host;
pub mod load;
pub mod log;
pub mod machine;
pub mod memory;
pub mod net;
pub mod nondet;
pub mod output;
pub mod partition;
pub mod pmu;
pub mod profile;
pub mod random;
pub mod random_state;
pub mod record;
pub mod replay;
pub mod report;
pub mod selftest;
pub mod stats;
pub mod tables;
pub mod walk;

mod exits;
mod place;
mod run;

#[cfg(test)]
mod testing;
