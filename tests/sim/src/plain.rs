//! Links as they are configured where nothing is special about them, for measurements.

use ftlink::channel::ChannelConfig;
use ftlink::detector;
use ftlink::fence;
use ftlink::ids::{BootId, Duration, Instant, NodeId, PairId};
use ftlink::link::{DEFAULT_BULK_RING_BYTES, DEFAULT_LOG_RING_BYTES, Link, LinkConfig};
use ftlink::wire::ETHERNET_MTU_BYTES;

use crate::host::IDENTITY;

/// The pair of [`link`].
pub const PAIR: PairId = PairId(1);

/// The link of node 1 or 2 to the other one, with everything at its default.
#[must_use]
pub fn link(node: u64, paths: u8) -> Link {
    let config = LinkConfig {
        channel: ChannelConfig {
            pair: PAIR,
            node: NodeId(node),
            peer: NodeId(3 - node),
            boot: BootId(u128::from(node)),
            secret: [1; 32],
            seed: [node as u8; 32],
            rekey_after: Duration::from_secs(600),
            paths,
        },
        mtu_bytes: ETHERNET_MTU_BYTES,
        log_ring_bytes: DEFAULT_LOG_RING_BYTES,
        bulk_ring_bytes: DEFAULT_BULK_RING_BYTES,
        detector: detector::Config::emulator(),
        fence: fence::Config::default(),
    };
    Link::new(config, IDENTITY, Instant(0))
}
