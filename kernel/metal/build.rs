//! Link flags of the kernel.

fn main() {
    // Segments of different protection share no page of the file, and so no frame: the boot loader maps
    // the file's own frames.
    println!("cargo::rustc-link-arg-bins=-zseparate-loadable-segments");
    println!("cargo::rerun-if-changed=build.rs");
}
