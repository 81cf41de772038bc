//! What `cargo xtask` and the emulator tests share: building, images, emulated machines.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod config;
pub mod debian;
pub mod emulator;
pub mod guests;
pub mod linux;
pub mod needs;
pub mod progress;
pub mod recording;
pub mod serial;
pub mod simd;
pub mod verbs;
pub mod wire;
pub mod workspace;
