//! The replication protocol between the two hosts of a pair, sans-IO: datagrams and time in,
//! datagrams and verdicts out. It knows neither clocks nor network cards nor what a log entry means.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arbiter;
pub mod bulk;
pub mod channel;
pub mod counters;
pub mod detector;
pub mod fence;
pub mod handshake;
pub mod histogram;
pub mod ids;
pub mod link;
pub mod role;
pub mod stream;
pub mod wire;
