//! A reliable, ordered stream of entries over datagrams that get lost, repeated and reordered.
//!
//! Entries are framed into a byte stream; a data datagram carries any piece of it, so small entries
//! share datagrams and large ones spread over several. The receiver's ring bounds the sender. Nothing
//! in the log depends on anything but the hole-free `held`; selective acknowledgement serves
//! retransmission only.

pub mod flight;
pub mod framing;
pub mod ranges;
pub mod receiver;
pub mod ring;
pub mod rtt;
pub mod sender;

pub use framing::MAX_ENTRY_BYTES;
pub use receiver::{Arrival, Receiver};
pub use sender::{AppendError, ReportOutcome, Retain, Segment, Sender};

#[cfg(test)]
mod tests;
