//! The host's network: cards, the switches between them, guests and the host's own addresses.
//!
//! A frame is copied once out of a card's memory or a guest's into a buffer of one [`pool`], and its buffer is what
//! moves. Everything has a limit, and what is over it is dropped and counted; nothing is allocated per frame. Time and
//! randomness are arguments.
//!
//! ```text
//!   card ── switch ── guests         one switch for each card; a card for links has only the host behind it
//!              └───── stack          the host's own addresses
//! ```

pub mod network;
pub mod pool;
pub mod queue;
pub mod select;
pub mod stack;
pub mod switch;

/// Cards that one host can be given.
pub const MAX_NICS: usize = 8;
/// Network cards that one guest can be given.
pub const MAX_GUEST_NICS: usize = 4;
/// Frames that wait for one taker: a guest, the host, a card.
pub const QUEUE_FRAMES: usize = 128;
