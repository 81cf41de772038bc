//! A set of interrupt vectors, as the ISR, TMR and IRR hold it.

/// 256 bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet([u32; 8]);

impl VectorSet {
    /// The 32-bit register `index` of the eight.
    pub(super) fn word(&self, index: u8) -> u32 {
        self.0[usize::from(index & 7)]
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.word(vector >> 5) & 1 << (vector & 31) != 0
    }

    pub(super) fn set(&mut self, vector: u8, value: bool) {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        *word = if value { *word | bit } else { *word & !bit };
    }

    /// The vector of the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let top = (0..8u8).rev().find(|i| self.word(*i) != 0)?;
        let bit = 31 - self.word(top).leading_zeros() as u8;
        Some(top << 5 | bit)
    }
}
