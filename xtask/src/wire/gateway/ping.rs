//! Echo requests from the gateway, until one is answered or the time is over.

use std::net::Ipv4Addr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};

/// Which echo requests are the gateway's.
pub(super) const IDENT: u16 = 0xd0e7;
/// How often one is sent.
const INTERVAL: Duration = Duration::from_millis(500);

/// Somebody waits for an answer of `address`.
pub(super) struct Ping {
    address: Ipv4Addr,
    until: Instant,
    next: Instant,
    /// The sequence numbers of its requests: an answer may be to somebody else's.
    requests: Vec<u16>,
    answer: Sender<bool>,
}

impl Ping {
    pub(super) fn new(address: Ipv4Addr, timeout: Duration, answer: Sender<bool>) -> Self {
        let now = super::super::now();
        Self {
            address,
            until: now + timeout,
            next: now,
            requests: Vec::new(),
            answer,
        }
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Instant {
        self.next.min(self.until)
    }

    /// Sends what is due, with the number behind `sequence`; whether the waiting goes on.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        socket: &mut icmp::Socket<'_>,
        sequence: &mut u16,
    ) -> bool {
        if now >= self.until {
            return self.finish(false);
        }
        if now >= self.next {
            self.next = now + INTERVAL;
            *sequence = sequence.wrapping_add(1);
            self.requests.push(*sequence);
            let echo = Icmpv4Repr::EchoRequest {
                ident: IDENT,
                seq_no: *sequence,
                data: b"duet",
            };
            // Without room now, there is some at the next interval.
            if let Ok(buffer) = socket.send(echo.buffer_len(), IpAddress::Ipv4(self.address)) {
                let mut packet = Icmpv4Packet::new_unchecked(buffer);
                echo.emit(&mut packet, &ChecksumCapabilities::default());
            }
        }
        true
    }

    /// `from` has answered the request of this number; whether the waiting goes on.
    pub(super) fn answered(&self, from: IpAddress, sequence: u16) -> bool {
        let ours = from == IpAddress::Ipv4(self.address) && self.requests.contains(&sequence);
        !ours || self.finish(true)
    }

    /// Says the result; who asked may be gone.
    fn finish(&self, answered: bool) -> bool {
        self.answer.send(answered).ok();
        false
    }
}

/// The number of the echo request that `packet` answers.
pub(super) fn answered(packet: &[u8]) -> Option<u16> {
    let packet = Icmpv4Packet::new_checked(packet).ok()?;
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()) {
        Ok(Icmpv4Repr::EchoReply { seq_no, .. }) => Some(seq_no),
        _ => None,
    }
}
