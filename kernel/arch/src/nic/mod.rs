//! Network cards of the host: what every driver offers, and the drivers' logic.
//!
//! A driver reaches its card through [`Registers`] and its own memory through [`RingMemory`], so that all of it is
//! tested on the development host against a card that misbehaves. Nothing a card writes is used as an address or an
//! index, and a length is checked before it is believed.

mod counters;
#[cfg(test)]
mod fake;
pub mod intel;
mod mac;
mod model;

pub use counters::Counters;
pub use mac::{Mac, MacError};
pub use model::{Family, MODELS, Model};

use core::fmt;
use core::ops::DerefMut;

/// Bytes of the largest frame that is sent or received, without its check sequence: 1500 bytes of payload and a VLAN
/// tag (IEEE 802.3 3.2.7, 802.1Q 9).
pub const FRAME_MAX: usize = 1518;
/// Bytes of an Ethernet header: a frame is not shorter.
pub const FRAME_MIN: usize = 14;
/// Bytes that a frame is filled up to before it is sent, without its check sequence (IEEE 802.3 4A.4.2).
pub const FRAME_PADDED: usize = 60;
/// Bytes of a buffer that holds one frame.
pub const BUFFER_BYTES: usize = 2048;

/// A card's registers: 32 bits each, at byte offsets from its first one.
pub trait Registers {
    /// Reads one.
    fn read(&self, offset: u32) -> u32;
    /// Writes one; everything written to memory before is visible to the card first.
    fn write(&self, offset: u32, value: u32);
    /// Lets so many microseconds go by.
    fn pause_us(&self, microseconds: u32);
}

/// Which of a card's two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Frames from the wire.
    Receive,
    /// Frames to the wire.
    Transmit,
}

/// Which half of a descriptor of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bytes 0 … 7.
    Low,
    /// Bytes 8 … 15.
    High,
}

/// Descriptors of each ring.
pub const DESCRIPTORS: usize = 256;

/// The memory a driver shares with its card: two rings of [`DESCRIPTORS`] descriptors, and a buffer of
/// [`BUFFER_BYTES`] for each descriptor. An `index` is below [`DESCRIPTORS`].
pub trait RingMemory {
    /// The ring's first byte, as the card addresses it.
    fn ring_address(&self, ring: Ring) -> u64;
    /// A buffer's first byte, as the card addresses it.
    fn buffer_address(&self, ring: Ring, index: usize) -> u64;
    /// Reads half a descriptor, before anything that is read later.
    fn read(&self, ring: Ring, index: usize, half: Half) -> u64;
    /// Writes half a descriptor, after everything that was written before.
    fn write(&mut self, ring: Ring, index: usize, half: Half, value: u64);
    /// Copies a received frame out of its buffer; at most [`BUFFER_BYTES`].
    fn copy_out(&self, index: usize, into: &mut [u8]);
    /// Copies a frame to be sent into its buffer, and zeros behind it up to `padded` bytes; both at most [`BUFFER_BYTES`].
    fn copy_in(&mut self, index: usize, from: &[u8], padded: usize);
}

/// Whether there is a partner on the wire, and how fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Nobody there.
    #[default]
    Down,
    /// Up.
    Up {
        /// Mbit/s; 0 if the card does not say.
        speed_mbit: u32,
        /// Both sides may send at once.
        full_duplex: bool,
    },
}

impl Link {
    /// Whether frames can be sent.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Link::Up { .. })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Link::Down => f.write_str("link down"),
            Link::Up { speed_mbit: 0, .. } => f.write_str("link up"),
            Link::Up {
                speed_mbit,
                full_duplex,
            } => {
                let duplex = if full_duplex { "full" } else { "half" };
                write!(f, "link up, {speed_mbit} Mbit/s {duplex} duplex")
            }
        }
    }
}

/// What looking for a received frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// None there.
    Nothing,
    /// One was there that is no good; it was counted.
    Dropped,
    /// A frame of so many bytes, [`FRAME_MIN`] … [`FRAME_MAX`].
    Frame(usize),
}

/// Why a frame was not sent. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The card still has [`DESCRIPTORS`] − 1 frames to send.
    Full,
    /// Shorter than [`FRAME_MIN`] or longer than [`FRAME_MAX`].
    Length,
    /// Nobody on the wire.
    LinkDown,
    /// The transmitter is off for good, or the card is.
    Off,
}

/// What a look at a card found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link came, went or changed its speed.
    Link(Link),
    /// Frames were not sent for [`HUNG_NS`]; the card was started again, and they are lost.
    Restarted,
    /// The card answers no more, or could not be started again.
    Gone(StartError),
}

/// A card with frames to send and a link that sends none of them in this time hangs, in nanoseconds.
pub const HUNG_NS: u64 = 2_000_000_000;

/// Why a card cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Its registers read as ones: it is gone or has no power.
    Absent,
    /// It was still busy so many microseconds after its reset.
    ResetNeverEnds(u32),
    /// It was still busy with a queue so many microseconds after that was switched on.
    QueueNeverStarts(u32),
    /// Neither its registers nor its EEPROM hold the address of a single card.
    NoAddress,
    /// It refused what it was told, in its driver's words.
    Refused(&'static str),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            StartError::Absent => f.write_str("does not answer"),
            StartError::ResetNeverEnds(us) => write!(f, "its reset is not over after {us} µs"),
            StartError::QueueNeverStarts(us) => {
                write!(f, "a queue has not started after {us} µs")
            }
            StartError::NoAddress => f.write_str("has no MAC address"),
            StartError::Refused(what) => f.write_str(what),
        }
    }
}

/// A started network card.
pub trait Nic {
    /// Its address.
    fn mac(&self) -> Mac;

    /// Its link at the last [`check`](Self::check).
    fn link(&self) -> Link;

    /// Takes the next received frame, looking at one descriptor.
    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received;

    /// Gives the card a frame without its check sequence.
    ///
    /// # Errors
    ///
    /// It is not sent, for this reason.
    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent>;

    /// Tells the card what was taken and given since the last call: at the end of a poll.
    fn flush(&mut self);

    /// Looks after the card: link, hanging transmitter, errors that it counts. `now` in nanoseconds; every few
    /// milliseconds is often enough. A card that hangs is started again, which takes tens of milliseconds.
    fn check(&mut self, now: u64) -> Option<Event>;

    /// Takes every frame on the wire, not only those to this card and to all.
    fn set_promiscuous(&mut self, on: bool);

    /// Switches the transmitter off for good.
    fn mute(&mut self);

    /// Switches the card off for good: it neither sends nor receives, nor writes memory.
    fn stop(&mut self);

    /// What went through so far.
    fn counters(&self) -> &Counters;
}

/// A card behind a pointer is a card.
impl<P> Nic for P
where
    P: DerefMut,
    P::Target: Nic,
{
    fn mac(&self) -> Mac {
        self.deref().mac()
    }

    fn link(&self) -> Link {
        self.deref().link()
    }

    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received {
        self.deref_mut().receive(into)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent> {
        self.deref_mut().transmit(frame)
    }

    fn flush(&mut self) {
        self.deref_mut().flush();
    }

    fn check(&mut self, now: u64) -> Option<Event> {
        self.deref_mut().check(now)
    }

    fn set_promiscuous(&mut self, on: bool) {
        self.deref_mut().set_promiscuous(on);
    }

    fn mute(&mut self) {
        self.deref_mut().mute();
    }

    fn stop(&mut self) {
        self.deref_mut().stop();
    }

    fn counters(&self) -> &Counters {
        self.deref().counters()
    }
}
