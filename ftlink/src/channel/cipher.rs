//! Sealing one datagram: ChaCha20-Poly1305 (RFC 8439) in place, with the header as associated data
//! and its sequence as the nonce. The null cipher exists for measurements, behind a cargo feature
//! that no product enables; no configuration reaches it.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use crate::wire::{HEADER_BYTES, SEAL_BYTES, TAG_BYTES};

/// Bytes of a session key.
pub const KEY_BYTES: usize = 32;

/// The datagram is not the sender's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

/// One direction's key.
pub struct DatagramCipher {
    suite: Suite,
}

enum Suite {
    ChaCha20Poly1305(ChaCha20Poly1305),
    #[cfg(any(test, feature = "null-cipher"))]
    Null,
}

impl DatagramCipher {
    /// A cipher with this key.
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self {
            suite: Suite::ChaCha20Poly1305(ChaCha20Poly1305::new(key.into())),
        }
    }

    /// Seals nothing: what the rest of the path costs.
    #[cfg(any(test, feature = "null-cipher"))]
    #[must_use]
    pub fn null() -> Self {
        Self { suite: Suite::Null }
    }

    /// Seals `datagram` (header, body, room for the tag) in place.
    ///
    /// # Panics
    ///
    /// The buffer is shorter than header and tag: the caller sized it wrong.
    pub fn seal(&self, sequence: u64, datagram: &mut [u8]) {
        assert!(datagram.len() >= SEAL_BYTES);
        let (header, rest) = datagram.split_at_mut(HEADER_BYTES);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        match &self.suite {
            Suite::ChaCha20Poly1305(cipher) => {
                let sealed = cipher.encrypt_inout_detached(&nonce(sequence), header, body.into());
                let Ok(computed) = sealed else {
                    panic!("a datagram is below the cipher's limit");
                };
                tag.copy_from_slice(&computed);
            }
            #[cfg(any(test, feature = "null-cipher"))]
            Suite::Null => tag.fill(0),
        }
    }

    /// Opens `datagram` (header, body, tag) in place; returns the body.
    ///
    /// # Errors
    ///
    /// [`Forged`] when the tag is not that of this key, sequence, header and body; the body is then
    /// as it was.
    pub fn open<'a>(&self, sequence: u64, datagram: &'a mut [u8]) -> Result<&'a [u8], Forged> {
        if datagram.len() < SEAL_BYTES {
            return Err(Forged);
        }
        let (header, rest) = datagram.split_at_mut(HEADER_BYTES);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        match &self.suite {
            Suite::ChaCha20Poly1305(cipher) => {
                let mut expected = Tag::default();
                expected.copy_from_slice(tag);
                cipher
                    .decrypt_inout_detached(
                        &nonce(sequence),
                        header,
                        (&mut *body).into(),
                        &expected,
                    )
                    .map_err(|_| Forged)?;
            }
            #[cfg(any(test, feature = "null-cipher"))]
            Suite::Null => {
                if tag.iter().any(|&byte| byte != 0) {
                    return Err(Forged);
                }
            }
        }
        Ok(body)
    }
}

/// Noise's nonce for this cipher: four zero bytes, then the number little endian (Noise 12.3).
fn nonce(sequence: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&sequence.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> [u8; SEAL_BYTES + 5] {
        let mut datagram = [7; SEAL_BYTES + 5];
        datagram[HEADER_BYTES..HEADER_BYTES + 5].copy_from_slice(b"hello");
        DatagramCipher::new(&[9; 32]).seal(1, &mut datagram);
        datagram
    }

    #[test]
    fn opens_what_was_sealed() {
        let mut datagram = sealed();
        assert_ne!(&datagram[HEADER_BYTES..HEADER_BYTES + 5], b"hello");
        let cipher = DatagramCipher::new(&[9; 32]);
        assert_eq!(cipher.open(1, &mut datagram), Ok(&b"hello"[..]));
    }

    #[test]
    fn any_flipped_bit_another_number_or_another_key_is_forged() {
        let cipher = DatagramCipher::new(&[9; 32]);
        for bit in 0..sealed().len() * 8 {
            let mut datagram = sealed();
            datagram[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(cipher.open(1, &mut datagram), Err(Forged), "bit {bit}");
        }
        assert_eq!(cipher.open(2, &mut sealed()), Err(Forged));
        assert_eq!(
            DatagramCipher::new(&[8; 32]).open(1, &mut sealed()),
            Err(Forged)
        );
        assert_eq!(cipher.open(1, &mut [0; SEAL_BYTES - 1]), Err(Forged));
    }

    #[test]
    fn null_cipher_leaves_the_body_readable() {
        let mut datagram = [7; SEAL_BYTES + 1];
        DatagramCipher::null().seal(1, &mut datagram);
        assert_eq!(DatagramCipher::null().open(1, &mut datagram), Ok(&[7][..]));
    }
}
