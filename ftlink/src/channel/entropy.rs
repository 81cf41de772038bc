//! Random bytes from one seed, for handshake keys: a generator that replaces its key at each draw
//! ("fast-key-erasure", D. J. Bernstein, 2017), so that a later look at memory tells nothing of
//! earlier draws. The seed is the only randomness; who starts the host provides it.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

use alloc::boxed::Box;

/// Bytes of one draw.
pub const DRAW_BYTES: usize = 32;

/// The generator.
pub struct Entropy {
    key: Key,
}

impl Entropy {
    /// A generator of `seed`'s sequence. Two hosts, or two boots, must not share a seed.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: seed.into() }
    }

    /// The next 32 bytes.
    pub fn draw(&mut self) -> [u8; DRAW_BYTES] {
        let (key, drawn) = self.step();
        self.key = key.into();
        drawn
    }

    /// What the next draw gives, without drawing it.
    #[must_use]
    pub fn peek(&self) -> [u8; DRAW_BYTES] {
        self.step().1
    }

    /// The next key and the bytes drawn with it.
    fn step(&self) -> ([u8; DRAW_BYTES], [u8; DRAW_BYTES]) {
        let mut block = [0; 2 * DRAW_BYTES];
        // A fixed nonce is right here: each key encrypts exactly once.
        let sealed = ChaCha20Poly1305::new(&self.key).encrypt_inout_detached(
            &Nonce::default(),
            &[],
            block.as_mut_slice().into(),
        );
        assert!(sealed.is_ok(), "64 bytes are below the cipher's limit");
        let (mut key, mut drawn) = ([0; DRAW_BYTES], [0; DRAW_BYTES]);
        key.copy_from_slice(&block[..DRAW_BYTES]);
        drawn.copy_from_slice(&block[DRAW_BYTES..]);
        (key, drawn)
    }
}

/// Gives snow its own primitives, but our randomness.
pub(super) struct SeededResolver {
    /// Seeds the ephemeral key of one handshake.
    pub seed: [u8; DRAW_BYTES],
}

impl CryptoResolver for SeededResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Draws(Entropy::new(self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Draws(Entropy);

impl Random for Draws {
    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), snow::Error> {
        for chunk in destination.chunks_mut(DRAW_BYTES) {
            let drawn = self.0.draw();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_from_each_other_and_between_seeds_and_repeat_per_seed() {
        let mut first = Entropy::new([1; 32]);
        let mut second = Entropy::new([2; 32]);
        let mut again = Entropy::new([1; 32]);
        assert_eq!(first.peek(), first.peek());
        let peeked = first.peek();
        let (a, b, c) = (first.draw(), first.draw(), second.draw());
        assert_eq!(a, peeked);
        assert_ne!(a, b);
        assert_ne!(a, c);
        assert_eq!((a, b), (again.draw(), again.draw()));
    }
}
