//! A toy deterministic machine: its state is a function of the inputs it was given, and so are its
//! outputs. It stands for the guest.

use crate::random::mix;

/// What an entry of the machine's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Something nondeterministic that entered.
    Input(&'a [u8]),
    /// The machine produced an output here, with this digest.
    Output(u64),
}

const INPUT: u8 = 1;
const OUTPUT: u8 = 2;

impl<'a> Entry<'a> {
    /// Writes it as log bytes.
    pub fn write(self, target: &mut Vec<u8>) {
        target.clear();
        match self {
            Self::Input(bytes) => {
                target.push(INPUT);
                target.extend_from_slice(bytes);
            }
            Self::Output(digest) => {
                target.push(OUTPUT);
                target.extend_from_slice(&digest.to_le_bytes());
            }
        }
    }

    /// Reads log bytes.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        match kind {
            INPUT => Some(Self::Input(rest)),
            OUTPUT => Some(Self::Output(u64::from_le_bytes(rest.try_into().ok()?))),
            _ => None,
        }
    }
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    state: u64,
    inputs: u64,
}

impl Machine {
    /// An input enters. Says whether the machine produces an output now.
    pub fn input(&mut self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.state = mix(self.state ^ u64::from_le_bytes(word));
        }
        self.inputs += 1;
        self.state = mix(self.state.wrapping_add(self.inputs));
        self.state.is_multiple_of(3)
    }

    /// The output it produces in its present state, as a digest: equal digests are equal bytes here.
    #[must_use]
    pub fn output(&self) -> u64 {
        mix(self.state ^ 0x6f75_7470_7574)
    }
}

/// The digest of an entry, for comparing logs.
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |digest, &byte| {
        mix(digest ^ u64::from(byte))
    })
}
