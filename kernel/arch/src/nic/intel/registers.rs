//! Registers of Intel's gigabit cards, where each family has them.
//!
//! Manuals: "8254x" is the PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual, 317453-006,
//! chapter 13; "82574" is the 82574 Family Datasheet, 317694-027, chapter 10; "82576" is the 82576EB Datasheet,
//! 320961-025, chapter 8. The I210 (333016) and the I350 (333171) have the 82576's registers at the same places.

#![allow(missing_docs)] // the names are the manuals'

use bitflags::bitflags;

pub const CTRL: u32 = 0x0000;
pub const STATUS: u32 = 0x0008;
pub const EERD: u32 = 0x0014;
/// 8254x 13.4.17; 82576 8.8: reading it clears it.
pub const ICR: u32 = 0x00c0;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const RCTL: u32 = 0x0100;
pub const TCTL: u32 = 0x0400;
pub const TIPG: u32 = 0x0410;
/// Receive filter control: 0 leaves the 82574 with legacy descriptors (82574 10.2.5).
pub const RFCTL: u32 = 0x5008;
/// 82574 10.2.6.
pub const TXDCTL_82574: u32 = 0x3828;
/// Multicast table, 128 words (8254x 13.5.1).
pub const MTA: u32 = 0x5200;
pub const MTA_WORDS: u32 = 128;
/// Receive addresses, pairs of words (8254x 13.5.2).
pub const RAL: u32 = 0x5400;
pub const RAH: u32 = 0x5404;
/// Pairs that every card has.
pub const RECEIVE_ADDRESSES: u32 = 15;
pub const RAH_VALID: u32 = 1 << 31;

/// Errors that the card counts, cleared by reading (8254x 13.7).
pub const CRCERRS: u32 = 0x4000;
pub const RXERRC: u32 = 0x400c;
pub const MPC: u32 = 0x4010;
pub const RLEC: u32 = 0x4040;
pub const RUC: u32 = 0x40a4;
pub const RFC: u32 = 0x40a8;
pub const ROC: u32 = 0x40ac;

/// Bytes of the register block that is used.
pub const BLOCK_BYTES: u64 = 0x1_0000;

/// A ring's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRegisters {
    pub address_low: u32,
    pub address_high: u32,
    pub bytes: u32,
    pub head: u32,
    pub tail: u32,
    pub control: u32,
}

const fn ring(base: u32) -> RingRegisters {
    RingRegisters {
        address_low: base,
        address_high: base + 0x04,
        bytes: base + 0x08,
        head: base + 0x10,
        tail: base + 0x18,
        control: base + 0x28,
    }
}

/// 8254x 13.4.25 and on; 82574 10.2.5 and 10.2.6.
pub const RECEIVE: RingRegisters = ring(0x2800);
pub const TRANSMIT: RingRegisters = ring(0x3800);
/// Queue 0: 82576 8.10, 8.12.
pub const RECEIVE_IGB: RingRegisters = ring(0xc000);
pub const TRANSMIT_IGB: RingRegisters = ring(0xe000);
/// How the queue's descriptors look (82576 8.10).
pub const SRRCTL: u32 = 0xc00c;
/// Advanced descriptors with one buffer, of 2 KiB.
pub const SRRCTL_ADVANCED_2K: u32 = 1 << 25 | 2;
/// RXDCTL and TXDCTL: the queue is on (82576 8.10, 8.12).
pub const QUEUE_ENABLE: u32 = 1 << 25;
/// TXDCTL of the 82574: to be 1 (82574 10.2.6).
pub const TXDCTL_COUNT_DESCRIPTORS: u32 = 1 << 22;

bitflags! {
    /// Device control (8254x 13.4.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u32 {
        const FULL_DUPLEX = 1 << 0;
        /// PCI Express cards: no new requests as a bus master (82574 10.2.2.1).
        const MASTER_DISABLE = 1 << 2;
        const LINK_RESET = 1 << 3;
        const AUTO_SPEED = 1 << 5;
        const SET_LINK_UP = 1 << 6;
        const INVERT_LOSS_OF_SIGNAL = 1 << 7;
        const FORCE_SPEED = 1 << 11;
        const FORCE_DUPLEX = 1 << 12;
        const RESET = 1 << 26;
        const VLAN_MODE = 1 << 30;
        const PHY_RESET = 1 << 31;
        const _ = !0;
    }

    /// Device status (8254x 13.4.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        const FULL_DUPLEX = 1 << 0;
        const LINK_UP = 1 << 1;
        const SPEED_100 = 1 << 6;
        const SPEED_1000 = 1 << 7;
        /// PCI Express cards: requests as a bus master are under way (82574 10.2.2.2).
        const MASTER_ENABLED = 1 << 19;
        const _ = !0;
    }

    /// Receive control (8254x 13.4.22). Buffers of 2 KiB are the value 0 of their size.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReceiveControl: u32 {
        const ENABLE = 1 << 1;
        const UNICAST_PROMISCUOUS = 1 << 3;
        const MULTICAST_PROMISCUOUS = 1 << 4;
        const BROADCAST = 1 << 15;
        const STRIP_CRC = 1 << 26;
    }

    /// Transmit control (8254x 13.4.33).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmitControl: u32 {
        const ENABLE = 1 << 1;
        const PAD = 1 << 3;
        /// Attempts after collisions: 15, as the wire has it.
        const COLLISIONS_15 = 15 << 4;
        /// How far a collision reaches in full duplex: 64 bytes.
        const DISTANCE_64 = 64 << 12;
    }

    /// Causes of an interrupt (8254x 13.4.17).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Causes: u32 {
        const TRANSMITTED = 1 << 0;
        const LINK = 1 << 2;
        const RECEIVE_FEW_LEFT = 1 << 4;
        const RECEIVE_OVERRUN = 1 << 6;
        const RECEIVED = 1 << 7;
        const _ = !0;
    }
}

/// Time between frames on copper in full duplex (8254x 13.4.34).
pub const TIPG_COPPER: u32 = 10 | 8 << 10 | 6 << 20;

/// Writing this to [`TCTL`] lets no further frame leave, whatever state the card is in.
pub const TCTL_MUTE: u32 = 0;
