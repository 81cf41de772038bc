//! One file per verb of `cargo xtask`.

pub mod bench;
pub mod build;
pub mod image;
pub mod run;
pub mod setup;
pub mod test;
