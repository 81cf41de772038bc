//! Which frames a network card receives (VIRTIO 5.1.6.5.1 and 5.1.6.5.2).

use arch::nic::Mac;

use crate::virtio::Memory;
use crate::virtio::queue::{Chain, Fault};

/// Addresses that a table holds. With more, the card receives every frame of their kind, as the specification allows.
const MAX_ADDRESSES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    addresses: [Mac; MAX_ADDRESSES],
    count: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            addresses: [Mac([0; 6]); MAX_ADDRESSES],
            count: 0,
        }
    }
}

impl Table {
    fn has(&self, mac: Mac) -> bool {
        match self.addresses.get(..self.count) {
            Some(addresses) => addresses.contains(&mac),
            None => true,
        }
    }

    /// Reads a table at byte `at` of the chain. Returns where it ends; `None` if it is longer than the chain.
    fn load(&mut self, memory: &impl Memory, chain: &Chain, at: u32) -> Result<Option<u32>, Fault> {
        const COUNT_BYTES: u64 = 4;
        const MAC_BYTES: u64 = 6;
        let first = u64::from(at) + COUNT_BYTES;
        if first > chain.readable().into() {
            return Ok(None);
        }
        let mut count = [0; COUNT_BYTES as usize];
        chain.read(memory, at, &mut count)?;
        let end = first + MAC_BYTES * u64::from(u32::from_le_bytes(count));
        if end > chain.readable().into() {
            return Ok(None);
        }
        // Below the chain's length.
        self.count = u32::from_le_bytes(count) as usize;
        if self.count <= MAX_ADDRESSES {
            let places = (first as u32..end as u32).step_by(MAC_BYTES as usize);
            for (mac, at) in self.addresses.iter_mut().zip(places) {
                chain.read(memory, at, &mut mac.0)?;
            }
        }
        Ok(Some(end as u32))
    }
}

/// What a card receives besides what is for its own address and for all stations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Everything.
    pub promiscuous: bool,
    /// Everything that is for several stations.
    pub all_groups: bool,
    /// Addresses of stations, and of groups.
    stations: Table,
    groups: Table,
}

impl Filter {
    /// Whether a card with the address `own` receives `frame`.
    #[must_use]
    pub fn passes(&self, own: Mac, frame: &[u8]) -> bool {
        let Some(to) = Mac::first_of(frame) else {
            return false;
        };
        if self.promiscuous || to == own || to == Mac::BROADCAST {
            return true;
        }
        if to.is_group() {
            self.all_groups || self.groups.has(to)
        } else {
            self.stations.has(to)
        }
    }

    /// Reads both tables from byte `at` of a command on. False: they are not in it, and nothing has changed.
    ///
    /// # Errors
    ///
    /// The chain is not in RAM.
    pub fn load(&mut self, memory: &impl Memory, chain: &Chain, at: u32) -> Result<bool, Fault> {
        let (mut stations, mut groups) = (Table::default(), Table::default());
        let Some(second) = stations.load(memory, chain, at)? else {
            return Ok(false);
        };
        if groups.load(memory, chain, second)?.is_none() {
            return Ok(false);
        }
        (self.stations, self.groups) = (stations, groups);
        Ok(true)
    }
}
