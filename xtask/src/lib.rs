//! What `cargo xtask` and the emulator tests share: building, images, emulated machines.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod emulator;
pub mod verbs;
pub mod workspace;
