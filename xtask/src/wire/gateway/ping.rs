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
    sequence: u16,
    answer: Sender<bool>,
}

impl Ping {
    pub(super) fn new(address: Ipv4Addr, timeout: Duration, answer: Sender<bool>) -> Self {
        let now = super::super::now();
        Self {
            address,
            until: now + timeout,
            next: now,
            sequence: 0,
            answer,
        }
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Instant {
        self.next.min(self.until)
    }

    /// Sends what is due; whether the waiting goes on.
    pub(super) fn poll(&mut self, now: Instant, socket: &mut icmp::Socket<'_>) -> bool {
        if now >= self.until {
            return self.finish(false);
        }
        if now >= self.next {
            self.next = now + INTERVAL;
            self.sequence = self.sequence.wrapping_add(1);
            let echo = Icmpv4Repr::EchoRequest {
                ident: IDENT,
                seq_no: self.sequence,
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

    /// `from` has answered something of ours; whether the waiting goes on.
    pub(super) fn answered(&self, from: IpAddress) -> bool {
        from != IpAddress::Ipv4(self.address) || self.finish(true)
    }

    /// Says the result; who asked may be gone.
    fn finish(&self, answered: bool) -> bool {
        self.answer.send(answered).ok();
        false
    }
}

/// Whether `packet` answers an echo request.
pub(super) fn is_reply(packet: &[u8]) -> bool {
    Icmpv4Packet::new_checked(packet)
        .and_then(|packet| Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()))
        .is_ok_and(|repr| matches!(repr, Icmpv4Repr::EchoReply { ident: IDENT, .. }))
}
