//! One file per verb of `cargo xtask`.

pub mod bench;
mod bench_boot;
pub mod bench_link;
mod bench_net;
mod bench_replay;
pub mod build;
pub mod image;
pub mod replay;
pub mod run;
pub mod setup;
pub mod sim;
pub mod test;
