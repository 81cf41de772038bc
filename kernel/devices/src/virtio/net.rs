//! Network card (VIRTIO 5.1): one pair of queues and one for control.
//!
//! A frame to transmit leaves while its kick is handled, and its buffer is used up then: what becomes of the frame no
//! guest can see. A received frame finds buffers where it enters, or is dropped there.

mod checksum;
mod filter;

use alloc::vec;
use alloc::vec::Vec;

use arch::nic::Mac;

use super::pci::{Layout, Transport, spec as transport};
use super::queue::{Chain, Fault};
use super::{Memory, Output, Sink};
pub use filter::Filter;

/// Facts of the device, and its limits.
pub mod spec {
    /// Type of the device.
    pub const KIND: u16 = 1;
    /// Class: Ethernet controller.
    pub const CLASS: u32 = 0x02_0000;
    /// Queue of received frames.
    pub const RECEIVE: u16 = 0;
    /// Queue of frames to transmit.
    pub const TRANSMIT: u16 = 1;
    /// Queue of commands.
    pub const CONTROL: u16 = 2;

    /// Bytes of the header in front of a frame (5.1.6).
    pub const HEADER_BYTES: u32 = 12;
    /// Offset in it of the number of buffers.
    pub const NUM_BUFFERS: usize = 10;
    /// Header flag: the checksum is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// Device status: the link is up (5.1.4).
    pub const LINK_UP: u16 = 1;

    /// Smallest MTU: what every IPv4 link carries (RFC 791).
    pub const MIN_MTU: u16 = 68;
    /// Greatest MTU: jumbo frames.
    pub const MAX_MTU: u16 = 9000;
    /// Bytes of a frame's header.
    pub const ETHERNET_BYTES: u32 = 14;
    /// Bytes of a VLAN tag, which a frame may have besides.
    pub const VLAN_BYTES: u32 = 4;

    /// Command class: what is received (5.1.6.5.1).
    pub const CLASS_RX: u8 = 0;
    /// Its commands: everything, all that is for groups.
    pub const RX_COMMANDS: [u8; 2] = [0, 1];
    /// Command class: addresses (5.1.6.5.2).
    pub const CLASS_MAC: u8 = 1;
    /// Its commands: the tables, the card's own.
    pub const MAC_COMMANDS: [u8; 2] = [0, 1];
    /// Answers to commands: done, refused.
    pub const ACK: [u8; 2] = [0, 1];
}

/// Feature bits (5.1.3).
pub mod feature {
    /// The driver may leave checksums of transmitted frames to the device.
    pub const CSUM: u64 = 1 << 0;
    /// The configuration tells the MTU.
    pub const MTU: u64 = 1 << 3;
    /// The configuration tells the address.
    pub const MAC: u64 = 1 << 5;
    /// A received frame can lie in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration tells the link's state.
    pub const STATUS: u64 = 1 << 16;
    /// There is a queue of commands.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Commands say what is received.
    pub const CTRL_RX: u64 = 1 << 18;
    /// A command changes the address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// What the transport offers.
pub const LAYOUT: Layout = Layout {
    kind: spec::KIND,
    class: spec::CLASS,
    features: feature::CSUM
        | feature::MTU
        | feature::MAC
        | feature::MRG_RXBUF
        | feature::STATUS
        | feature::CTRL_VQ
        | feature::CTRL_RX
        | feature::CTRL_MAC_ADDR,
    requirements: &[
        (feature::CTRL_RX, feature::CTRL_VQ),
        (feature::CTRL_MAC_ADDR, feature::CTRL_VQ),
    ],
    queues: 3,
};

/// A network card at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Device number on the bus, 1 … 31.
    pub slot: u8,
    /// Address.
    pub mac: Mac,
    /// Greatest packet in bytes, without the frame's header.
    pub mtu: u16,
}

impl Config {
    /// Whether MTU and address are such: the address is one of a station.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        (spec::MIN_MTU..=spec::MAX_MTU).contains(&self.mtu) && self.mac.is_single()
    }

    /// Bytes of the longest frame.
    #[must_use]
    pub const fn frame_bytes(&self) -> u32 {
        self.mtu as u32 + spec::ETHERNET_BYTES + spec::VLAN_BYTES
    }
}

/// What became of frames since power-on. Nothing of it is visible to a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed out.
    pub transmitted: u64,
    /// To transmit, too short or too long for a frame, or with a header that asks for what was not offered.
    pub transmit_refused: u64,
    /// To transmit while the link was down.
    pub transmit_down: u64,
    /// Given to the driver.
    pub received: u64,
    /// Not for this card.
    pub receive_filtered: u64,
    /// Too short or too long for a frame.
    pub receive_refused: u64,
    /// Without enough buffers, or before the driver was ready.
    pub receive_no_buffer: u64,
    /// Received while the link was down.
    pub receive_down: u64,
    /// Commands carried out.
    pub commands: u64,
    /// Commands refused.
    pub commands_refused: u64,
}

fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    number: u8,
    config: Config,
    mac: Mac,
    link_up: bool,
    filter: Filter,
    counters: Counters,
    /// Places for a frame and for chains, so that nothing has to be allocated.
    frame: Vec<u8>,
    chain: Chain,
    first: Chain,
}

impl Net {
    /// Card `number` of the machine, with its link up.
    ///
    /// # Panics
    ///
    /// When the configuration is not valid: it is no guest's.
    #[must_use]
    pub fn new(number: u8, config: &Config) -> Self {
        assert!(config.is_valid(), "network card {number}");
        Self {
            number,
            config: *config,
            mac: config.mac,
            link_up: true,
            filter: Filter::default(),
            counters: Counters::default(),
            frame: vec![0; config.frame_bytes() as usize],
            chain: Chain::default(),
            first: Chain::default(),
        }
    }

    /// Its number in the machine.
    #[must_use]
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// What became of frames.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Its configuration.
    #[must_use]
    pub const fn configuration(&self) -> &Config {
        &self.config
    }

    /// Its address, which the driver may have changed.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether the link is up.
    #[must_use]
    pub const fn is_link_up(&self) -> bool {
        self.link_up
    }

    /// The link goes up or down. Returns whether that is a change.
    pub const fn set_link(&mut self, up: bool) -> bool {
        let changes = self.link_up != up;
        self.link_up = up;
        changes
    }

    /// The configuration as the driver reads it (5.1.4).
    #[must_use]
    pub fn config(&self) -> [u8; transport::DEVICE_BYTES] {
        let mut bytes = [0; transport::DEVICE_BYTES];
        let status = if self.link_up { spec::LINK_UP } else { 0 };
        let pairs = 1u16;
        bytes[..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.config.mtu.to_le_bytes());
        bytes
    }

    /// The driver resets the device.
    pub fn reset(&mut self) {
        self.mac = self.config.mac;
        self.filter = Filter::default();
    }

    /// A card of a machine that was reset: link and counters are as `before`.
    pub const fn keep_outside(&mut self, before: &Self) {
        self.link_up = before.link_up;
        self.counters = before.counters;
    }

    /// Does what a kick of queue `number` asks for.
    ///
    /// # Errors
    ///
    /// The queue is malformed.
    pub fn serve(
        &mut self,
        transport: &mut Transport,
        number: u16,
        memory: &mut impl Memory,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        match number {
            // Buffers are looked for when a frame needs them.
            spec::RECEIVE => match transport.queue(number) {
                Some(queue) => queue.ask_for_kicks(memory, false),
                None => Ok(()),
            },
            spec::TRANSMIT => self.transmit(transport, memory, out),
            _ => self.obey(transport, memory),
        }
    }

    // Transmit.

    fn transmit(
        &mut self,
        transport: &mut Transport,
        memory: &mut impl Memory,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        let checksums = transport.has(feature::CSUM);
        transport.drain(spec::TRANSMIT, memory, |memory, chain| {
            self.send(memory, chain, checksums, out)?;
            Ok(0)
        })
    }

    /// Hands out the frame in the chain, if it is one.
    fn send(
        &mut self,
        memory: &impl Memory,
        chain: &Chain,
        checksums: bool,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        if chain.writable() != 0 {
            return Err(Fault::Direction);
        }
        let mut header = [0; spec::HEADER_BYTES as usize];
        chain.read(memory, 0, &mut header)?;
        let bytes = chain.readable() - spec::HEADER_BYTES;
        if !self.is_frame(bytes) {
            count(&mut self.counters.transmit_refused);
            return Ok(());
        }
        let frame = self.frame.get_mut(..bytes as usize).ok_or(Fault::Short)?;
        chain.read(memory, spec::HEADER_BYTES, frame)?;
        if !complete(&header, frame, checksums) {
            count(&mut self.counters.transmit_refused);
        } else if !self.link_up {
            count(&mut self.counters.transmit_down);
        } else {
            count(&mut self.counters.transmitted);
            out(Output::Frame {
                nic: self.number,
                bytes: frame,
            });
        }
        Ok(())
    }

    fn is_frame(&self, bytes: u32) -> bool {
        (spec::ETHERNET_BYTES..=self.config.frame_bytes()).contains(&bytes)
    }

    // Receive.

    /// Whether a frame that came now would be given to the driver, if it has buffers: others need not enter.
    #[must_use]
    pub fn wants(&self, transport: &Transport, frame: &[u8]) -> bool {
        let filtered = transport.has(feature::CTRL_RX) && !self.filter.passes(self.mac, frame);
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.link_up
            && transport.status() & transport::DRIVER_OK != 0
            && self.is_frame(bytes)
            && !filtered
    }

    /// A frame comes.
    ///
    /// # Errors
    ///
    /// The receive queue is malformed.
    pub fn receive(
        &mut self,
        transport: &mut Transport,
        memory: &mut impl Memory,
        frame: &[u8],
        bus_master: bool,
    ) -> Result<(), Fault> {
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let counter = if !self.link_up {
            &mut self.counters.receive_down
        } else if !self.is_frame(bytes) {
            &mut self.counters.receive_refused
        } else if transport.has(feature::CTRL_RX) && !self.filter.passes(self.mac, frame) {
            &mut self.counters.receive_filtered
        } else if bus_master && self.deliver(transport, memory, frame)? {
            &mut self.counters.received
        } else {
            &mut self.counters.receive_no_buffer
        };
        count(counter);
        Ok(())
    }

    /// Puts a frame into as many buffers as it needs (5.1.6.3.2, 5.1.6.4). False: there are not so many; the driver
    /// sees nothing of it, since what was written lies in buffers that are still the device's.
    fn deliver(
        &mut self,
        transport: &mut Transport,
        memory: &mut impl Memory,
        frame: &[u8],
    ) -> Result<bool, Fault> {
        let mergeable = transport.has(feature::MRG_RXBUF);
        let Some(queue) = transport.queue(spec::RECEIVE) else {
            return Ok(false);
        };
        let available = queue.available(memory)?;
        let most = if mergeable {
            available
        } else {
            available.min(1)
        };
        let (mut left, mut used) = (frame, 0u16);
        while used == 0 || !left.is_empty() {
            if used == most {
                queue.put_back(used);
                return Ok(false);
            }
            let (chain, skip) = match used {
                0 => (&mut self.first, spec::HEADER_BYTES),
                _ => (&mut self.chain, 0),
            };
            queue.take(memory, chain)?;
            if chain.readable() != 0 {
                return Err(Fault::Direction);
            }
            let room = chain.writable().checked_sub(skip).ok_or(Fault::Short)?;
            let (piece, rest) = left.split_at(left.len().min(room as usize));
            chain.write(memory, skip, piece)?;
            queue.use_up(memory, chain, skip + piece.len() as u32)?;
            left = rest;
            used += 1;
        }
        // Now it is known how many there are.
        let mut header = [0; spec::HEADER_BYTES as usize];
        header[spec::NUM_BUFFERS..].copy_from_slice(&used.to_le_bytes());
        self.first.write(memory, 0, &header)?;
        queue.ask_for_kicks(memory, false)?;
        if queue.publish(memory)? {
            transport.raise(spec::RECEIVE);
        }
        Ok(true)
    }

    // Commands.

    fn obey(&mut self, transport: &mut Transport, memory: &mut impl Memory) -> Result<(), Fault> {
        let filters = transport.has(feature::CTRL_RX);
        let addresses = transport.has(feature::CTRL_MAC_ADDR);
        transport.drain(spec::CONTROL, memory, |memory, chain| {
            let done = self.command(memory, chain, filters, addresses)?;
            count(if done {
                &mut self.counters.commands
            } else {
                &mut self.counters.commands_refused
            });
            let answer = spec::ACK[usize::from(!done)];
            chain.write(memory, 0, &[answer])?;
            Ok(1)
        })
    }

    /// Carries out the command in the chain. False: it is none, or not allowed.
    fn command(
        &mut self,
        memory: &impl Memory,
        chain: &Chain,
        filters: bool,
        addresses: bool,
    ) -> Result<bool, Fault> {
        const HEADER: u32 = 2;
        const PROMISCUOUS: u8 = spec::RX_COMMANDS[0];
        const ALL_GROUPS: u8 = spec::RX_COMMANDS[1];
        const TABLES: u8 = spec::MAC_COMMANDS[0];
        const ADDRESS: u8 = spec::MAC_COMMANDS[1];
        let mut words = [0; HEADER as usize];
        chain.read(memory, 0, &mut words)?;
        let data = chain.readable() - HEADER;
        match words {
            [spec::CLASS_RX, command @ (PROMISCUOUS | ALL_GROUPS)] if filters && data >= 1 => {
                let mut on = [0];
                chain.read(memory, HEADER, &mut on)?;
                let on = on != [0];
                if command == PROMISCUOUS {
                    self.filter.promiscuous = on;
                } else {
                    self.filter.all_groups = on;
                }
                Ok(true)
            }
            [spec::CLASS_MAC, TABLES] if filters => self.filter.load(memory, chain, HEADER),
            [spec::CLASS_MAC, ADDRESS] if addresses && data >= 6 => {
                let mut mac = Mac([0; 6]);
                chain.read(memory, HEADER, &mut mac.0)?;
                let allowed = !mac.is_group();
                if allowed {
                    self.mac = mac;
                }
                Ok(allowed)
            }
            _ => Ok(false),
        }
    }
}

/// Does what the header in front of a frame to transmit asks for (5.1.6.2). False: it asks for what was not offered, or
/// makes no sense.
fn complete(header: &[u8; spec::HEADER_BYTES as usize], frame: &mut [u8], checksums: bool) -> bool {
    let [flags, segmentation, _, _, _, _, start @ .., _, _] = *header;
    let [start_low, start_high, offset_low, offset_high] = start;
    if segmentation != 0 {
        return false;
    }
    if flags & spec::NEEDS_CSUM == 0 {
        return true;
    }
    let start = u16::from_le_bytes([start_low, start_high]);
    let offset = u16::from_le_bytes([offset_low, offset_high]);
    checksums && checksum::complete(frame, start.into(), offset.into())
}

#[cfg(test)]
mod tests;
