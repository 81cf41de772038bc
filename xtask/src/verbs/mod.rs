//! One file per verb of `cargo xtask`.

pub mod image;
pub mod run;
