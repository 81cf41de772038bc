//! Gives every guest its linker script: `flat.ld` for those loaded at 0x7c00 in real mode,
//! `multiboot.ld` for all others.

use std::path::PathBuf;
use std::{env, fs, io};

/// Guests that are loaded as flat binaries.
const FLAT: &[&str] = &["real", "random-real", "boot-sector"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/bin");
    println!("cargo:rerun-if-changed=multiboot.ld");
    println!("cargo:rerun-if-changed=flat.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return Ok(());
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    for entry in fs::read_dir(root.join("src/bin"))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        let script = if FLAT.contains(&name) {
            "flat.ld"
        } else {
            "multiboot.ld"
        };
        println!(
            "cargo:rustc-link-arg-bin={name}=-T{}",
            root.join(script).display()
        );
        println!("cargo:rustc-link-arg-bin={name}=--no-pie");
        println!("cargo:rustc-link-arg-bin={name}=--build-id=none");
    }
    Ok(())
}
