//! What went through a card, and what did not.

/// Counted since the card was started; starting it again does not clear them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received and handed on.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames given to the card.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Received frames with a wrong check sequence.
    pub bad_crc: u64,
    /// Received frames shorter than the wire allows.
    pub runts: u64,
    /// Received frames longer than [`FRAME_MAX`](super::FRAME_MAX).
    pub oversize: u64,
    /// Received frames that the card found another fault with.
    pub receive_errors: u64,
    /// Frames that the card had no buffer for: they came faster than they were taken.
    pub missed: u64,
    /// Frames not sent because the ring was full.
    pub transmit_full: u64,
    /// Frames not sent because of their length.
    pub transmit_length: u64,
    /// Frames not sent because nobody was on the wire.
    pub transmit_link_down: u64,
    /// Frames not sent because the transmitter or the card is off.
    pub transmit_off: u64,
    /// Changes of the link.
    pub link_changes: u64,
    /// Starts after a hang.
    pub restarts: u64,
}

impl Counters {
    /// Received frames that were not handed on.
    #[must_use]
    pub fn receive_drops(&self) -> u64 {
        let drops = [
            self.bad_crc,
            self.runts,
            self.oversize,
            self.receive_errors,
            self.missed,
        ];
        drops.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Frames that were not sent.
    #[must_use]
    pub fn transmit_drops(&self) -> u64 {
        let drops = [
            self.transmit_full,
            self.transmit_length,
            self.transmit_link_down,
            self.transmit_off,
        ];
        drops.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }
}
