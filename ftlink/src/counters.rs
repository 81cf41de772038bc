//! What was dropped, late, repeated, retransmitted or refused, counted. Counters only ever rise.

/// The secure channel's counters, in datagrams unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// Not a datagram of this protocol and version.
    pub malformed: u64,
    /// Sealed under no session we have.
    pub unknown_session: u64,
    /// Already accepted, or older than the replay window.
    pub replayed: u64,
    /// The seal did not verify.
    pub forged: u64,
    /// First handshake messages written.
    pub handshakes_begun: u64,
    /// First handshake messages of the peer answered.
    pub handshakes_answered: u64,
    /// Handshake messages that failed, were not meant for us, or came again.
    pub handshakes_refused: u64,
    /// Handshakes that could not be written.
    pub handshakes_failed: u64,
    /// Sessions confirmed.
    pub sessions: u64,
}

/// One stream's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    /// Entries appended.
    pub entries_appended: u64,
    /// Entries handed to the reader.
    pub entries_delivered: u64,
    /// Data datagrams sent for the first time.
    pub data_sent: u64,
    /// Stream bytes sent for the first time.
    pub bytes_sent: u64,
    /// Data datagrams sent again.
    pub data_retransmitted: u64,
    /// Stream bytes sent again.
    pub bytes_retransmitted: u64,
    /// Data datagrams accepted that brought something new.
    pub data_accepted: u64,
    /// Data datagrams that came out of order.
    pub data_out_of_order: u64,
    /// Data datagrams that brought nothing new.
    pub data_duplicate: u64,
    /// Data datagrams beyond the ring: the sender ignored the limit, or it is an old stream's.
    pub data_beyond_limit: u64,
    /// Data datagrams that would have opened one hole too many.
    pub data_too_scattered: u64,
    /// Data datagrams while not attached to a stream.
    pub data_unattached: u64,
    /// Entries refused because the ring was full.
    pub append_full: u64,
    /// Streams given up because their framing was invalid.
    pub framing_broken: u64,
}

/// The link's own counters, in datagrams unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Datagrams given to `ingress`.
    pub received: u64,
    /// Bytes given to `ingress`.
    pub bytes_received: u64,
    /// Datagrams taken from `egress`.
    pub sent: u64,
    /// Bytes taken from `egress`.
    pub bytes_sent: u64,
    /// Authenticated, but of an older generation.
    pub old_generation: u64,
    /// Authenticated and of a newer generation.
    pub newer_generation: u64,
    /// Authenticated, but the body made no sense.
    pub malformed_body: u64,
    /// Log data refused because this host is asking the arbiter.
    pub refused_while_asking: u64,
    /// Log data refused because this host's role takes none.
    pub refused_by_role: u64,
    /// Refused because the peer cannot replay this host's guest.
    pub refused_incompatible: u64,
    /// Acknowledgements sent.
    pub acks_sent: u64,
    /// Heartbeats sent.
    pub heartbeats_sent: u64,
    /// Reports that acknowledged something never sent.
    pub impossible_reports: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Datagrams taken for lost by later ones having arrived.
    pub lost: u64,
    /// Times the data changed from one path to the other.
    pub path_changes: u64,
    /// Times the datagram size fell because large ones did not arrive.
    pub mtu_reductions: u64,
    /// Streams the peer resumed where it had stopped.
    pub resumptions: u64,
    /// Times the peer wanted to resume below the ring.
    pub resumptions_impossible: u64,
    /// Changes of the peer's boot.
    pub peer_boots: u64,
}
