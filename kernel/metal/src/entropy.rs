//! Randomness of this host: the processor's RDSEED, the per-start seed beside the guest files, or both.

use core::fmt;

use vmm::container::{SEED_BYTES, Seed};

use crate::x86;

/// RDSEED may have nothing ready; the processor refills within this many attempts unless it is broken.
const ATTEMPTS: u32 = 10_000;

/// 256 bits from which keys and identifiers may be derived. Never printed.
pub struct Entropy(pub [u8; SEED_BYTES]);

/// Where they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// RDSEED, its repeat test passed.
    Rdseed,
    /// The per-start seed.
    Seed,
    /// Both, combined so that the result is as good as the better one.
    Both,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Rdseed => "RDSEED",
            Source::Seed => "the per-start seed",
            Source::Both => "RDSEED and the per-start seed",
        })
    }
}

/// There is no source of randomness: a pair must refuse to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEntropy;

fn word() -> Option<u64> {
    (0..ATTEMPTS).find_map(|_| x86::rdseed())
}

/// 256 bits of RDSEED, if the processor has it and no two words in a row are equal (SP 800-90B 4.4.1 with a
/// cutoff of 2: a false alarm has probability 2⁻⁶² per start).
fn rdseed() -> Option<[u8; SEED_BYTES]> {
    if x86::cpuid_max(0) < 7 || x86::cpuid(7, 0).ebx & 1 << 18 == 0 {
        return None;
    }
    let mut bytes = [0; SEED_BYTES];
    let mut last = word()?;
    for to in bytes.chunks_exact_mut(8) {
        let next = word()?;
        if next == last {
            log::warn!("entropy: RDSEED repeats itself and is not used");
            return None;
        }
        to.copy_from_slice(&next.to_le_bytes());
        last = next;
    }
    Some(bytes)
}

/// Gathers what there is.
///
/// # Errors
///
/// There is nothing.
pub fn gather(seed: Option<&Seed>) -> Result<(Entropy, Source), NoEntropy> {
    match (rdseed(), seed) {
        (Some(mut bytes), Some(seed)) => {
            // The two are independent, so their sum is at least as hard to guess as either.
            for (to, from) in bytes.iter_mut().zip(seed.0) {
                *to ^= from;
            }
            Ok((Entropy(bytes), Source::Both))
        }
        (Some(bytes), None) => Ok((Entropy(bytes), Source::Rdseed)),
        (None, Some(seed)) => Ok((Entropy(seed.0), Source::Seed)),
        (None, None) => Err(NoEntropy),
    }
}
