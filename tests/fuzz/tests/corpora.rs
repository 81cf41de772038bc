//! Every target over its corpus, and over random bytes from fixed seeds.

use std::fs;
use std::path::Path;

use fuzz::TARGETS;

#[test]
fn corpora_pass() {
    for (name, target) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let files: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
        assert!(files.len() >= 4, "{} is thin", directory.display());
        for file in files {
            target(&fs::read(file.path()).unwrap());
        }
    }
}

#[test]
fn random_bytes_pass() {
    for (index, (_, target)) in TARGETS.into_iter().enumerate() {
        let mut state = index as u64 + 1;
        let mut draw = move || {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..300 {
            let length = draw() % 700;
            let bytes: Vec<u8> = (0..length).map(|_| draw() as u8).collect();
            target(&bytes);
        }
    }
}
