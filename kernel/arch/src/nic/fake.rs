//! A card of each family as its driver sees it: registers, and the other side of the rings. It can misbehave.
//!
//! It reaches memory by bus address, as a card does, and an address that is not the driver's fails the test.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use super::intel::registers::{
    self as reg, Causes, Control, ReceiveControl, RingRegisters, Status, TransmitControl,
};
use super::{BUFFER_BYTES, DESCRIPTORS, Family, Half, Mac, Registers, Ring, RingMemory};

/// The card's address.
pub(super) const MAC: Mac = Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);

const RECEIVE_RING: u64 = 0x1_1000_0000;
const TRANSMIT_RING: u64 = 0x1_2000_0000;
const RECEIVE_BUFFERS: u64 = 0x3000_0000;
const TRANSMIT_BUFFERS: u64 = 0x4000_0000;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// Every register reads as ones.
    pub gone: bool,
    /// What it counts reads as ones.
    pub counts_gone: bool,
    /// The reset bit stays set.
    pub reset_sticks: bool,
    /// The address registers are empty after a reset.
    pub no_autoload: bool,
    /// The EEPROM never answers.
    pub eeprom_dead: bool,
    /// Frames are sent, and their descriptors not written.
    pub never_done: bool,
    /// The queue for sending is never switched on.
    pub queue_sticks: bool,
    /// The bus is never idle.
    pub master_sticks: bool,
    /// Heads read as this.
    pub head: Option<u32>,
}

/// Memory shared by the two sides.
struct Memory {
    /// By the ring's and the buffers' first address.
    areas: BTreeMap<u64, Vec<u8>>,
}

impl Memory {
    fn at(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        let (start, area) = self
            .areas
            .range_mut(..=address)
            .next_back()
            .unwrap_or_else(|| panic!("DMA at {address:#x}"));
        let offset = (address - start) as usize;
        area.get_mut(offset..offset + bytes)
            .unwrap_or_else(|| panic!("DMA at {address:#x}, {bytes} bytes"))
    }

    fn word(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.at(address, 8).try_into().unwrap())
    }

    fn set_word(&mut self, address: u64, value: u64) {
        self.at(address, 8).copy_from_slice(&value.to_le_bytes());
    }
}

/// The card.
pub(super) struct Card {
    family: Family,
    registers: BTreeMap<u32, u32>,
    memory: Memory,
    eeprom: Mac,
    pub faults: Faults,
    /// What left.
    pub wire: Vec<Vec<u8>>,
    pub paused_us: u64,
}

/// The driver's handle on the card.
#[derive(Clone)]
pub(super) struct Handle(pub Rc<RefCell<Card>>);

impl Card {
    pub fn insert(family: Family, eeprom: Mac) -> Handle {
        let ring = std::vec![0xa5; DESCRIPTORS * 16];
        let buffers = std::vec![0xa5; DESCRIPTORS * BUFFER_BYTES];
        let areas = BTreeMap::from([
            (RECEIVE_RING, ring.clone()),
            (TRANSMIT_RING, ring),
            (RECEIVE_BUFFERS, buffers.clone()),
            (TRANSMIT_BUFFERS, buffers),
        ]);
        let mut card = Self {
            family,
            registers: BTreeMap::new(),
            memory: Memory { areas },
            eeprom,
            faults: Faults::default(),
            wire: Vec::new(),
            paused_us: 0,
        };
        // As firmware may have left it: receiving into memory that is not ours any more.
        card.registers.insert(reg::RCTL, 2);
        card.registers.insert(reg::RAL + 8, 0x1234);
        card.registers.insert(reg::MTA + 4, u32::MAX);
        card.set_link(true);
        Handle(Rc::new(RefCell::new(card)))
    }

    pub fn get(&self, offset: u32) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    pub fn set(&mut self, offset: u32, value: u32) {
        self.registers.insert(offset, value);
    }

    pub fn set_link(&mut self, up: bool) {
        let mut status = Status::from_bits_retain(self.get(reg::STATUS));
        status.set(Status::LINK_UP, up);
        status.insert(Status::FULL_DUPLEX | Status::SPEED_1000);
        self.set(reg::STATUS, status.bits());
        self.cause(Causes::LINK);
    }

    fn cause(&mut self, causes: Causes) {
        self.set(reg::ICR, self.get(reg::ICR) | causes.bits());
    }

    /// Whether it asks for an interrupt.
    pub fn interrupts(&self) -> bool {
        self.get(reg::ICR) & self.get(reg::IMS) != 0
    }

    fn rings(&self) -> (RingRegisters, RingRegisters) {
        match self.family {
            Family::Igb => (reg::RECEIVE_IGB, reg::TRANSMIT_IGB),
            _ => (reg::RECEIVE, reg::TRANSMIT),
        }
    }

    fn queue_on(&self, ring: RingRegisters) -> bool {
        self.family != Family::Igb || self.get(ring.control) & reg::QUEUE_ENABLE != 0
    }

    fn descriptor(&self, ring: RingRegisters, index: u32) -> u64 {
        let base =
            u64::from(self.get(ring.address_high)) << 32 | u64::from(self.get(ring.address_low));
        assert!(index * 16 < self.get(ring.bytes), "index {index}");
        base + u64::from(index) * 16
    }

    fn reset(&mut self) {
        // Its tables of addresses are memory, which keeps what it held.
        self.registers
            .retain(|at, _| *at == reg::STATUS || (reg::MTA..reg::RAL + 0x100).contains(at));
        self.cause(Causes::LINK);
        if self.faults.no_autoload {
            self.set(reg::RAL, 0x0000_0002);
            self.set(reg::RAH, 0x0000_0300);
        } else {
            let [a, b, c, d, e, f] = self.eeprom.0;
            self.set(reg::RAL, u32::from_le_bytes([a, b, c, d]));
            self.set(reg::RAH, u32::from_le_bytes([e, f, 0, 0x80]));
        }
    }

    fn read_eeprom(&mut self, command: u32) {
        let (done, shift) = match self.family {
            Family::E1000 => (1 << 4, 8),
            _ => (1 << 1, 2),
        };
        if !self.faults.eeprom_dead {
            let at = (command >> shift) as usize * 2;
            let word = u16::from_le_bytes([self.eeprom.0[at], self.eeprom.0[at + 1]]);
            self.set(reg::EERD, u32::from(word) << 16 | done);
        }
    }

    fn send(&mut self) {
        let (_, ring) = self.rings();
        let control = TransmitControl::from_bits_retain(self.get(reg::TCTL));
        let up = Status::from_bits_retain(self.get(reg::STATUS)).contains(Status::LINK_UP);
        if !control.contains(TransmitControl::ENABLE) || !up || !self.queue_on(ring) {
            return;
        }
        while self.get(ring.head) != self.get(ring.tail) {
            let head = self.get(ring.head);
            let at = self.descriptor(ring, head);
            let (low, high) = (self.memory.word(at), self.memory.word(at + 8));
            // EOP, IFCS and RS are in both formats.
            assert_eq!(high >> 24 & 0xb, 0xb, "command");
            let length = high & 0xffff;
            if self.family == Family::Igb {
                assert_eq!((high >> 20 & 0xf, high >> 29 & 1), (3, 1), "advanced data");
                assert_eq!(high >> 46, length, "payload");
            }
            let frame = self.memory.at(low, length as usize).to_vec();
            self.wire.push(frame);
            if !self.faults.never_done {
                self.memory.set_word(at + 8, high | 1 << 32);
            }
            self.set(ring.head, (head + 1) % DESCRIPTORS as u32);
            self.cause(Causes::TRANSMITTED);
        }
    }

    fn wants(&self, frame: &[u8]) -> bool {
        let control = ReceiveControl::from_bits_retain(self.get(reg::RCTL));
        let own = [
            self.get(reg::RAL).to_le_bytes(),
            self.get(reg::RAH).to_le_bytes(),
        ]
        .concat();
        match frame.first_chunk::<6>() {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => {
                control.contains(ReceiveControl::BROADCAST)
            }
            Some(to) if to[0] & 1 != 0 => control.contains(ReceiveControl::MULTICAST_PROMISCUOUS),
            Some(to) => {
                control.contains(ReceiveControl::UNICAST_PROMISCUOUS) || own.starts_with(to)
            }
            None => true,
        }
    }

    /// A frame comes; false if nobody takes it.
    pub fn deliver(&mut self, frame: &[u8]) -> bool {
        self.wants(frame) && self.write_back(frame, frame.len(), true, 0)
    }

    /// Uses up a receive descriptor: `length` is what it claims, `errors` are bits of the legacy format.
    pub fn write_back(&mut self, bytes: &[u8], length: usize, last: bool, errors: u64) -> bool {
        let (ring, _) = self.rings();
        let on =
            ReceiveControl::from_bits_retain(self.get(reg::RCTL)).contains(ReceiveControl::ENABLE);
        let (head, tail) = (self.get(ring.head), self.get(ring.tail));
        if !on || !self.queue_on(ring) {
            return false;
        }
        if head == tail {
            self.set(reg::MPC, self.get(reg::MPC) + 1);
            self.cause(Causes::RECEIVE_OVERRUN);
            return false;
        }
        let at = self.descriptor(ring, head);
        let buffer = self.memory.word(at);
        self.memory.at(buffer, bytes.len()).copy_from_slice(bytes);
        let (length, last) = (length as u64, u64::from(last));
        if self.family == Family::Igb {
            assert_eq!(self.get(reg::SRRCTL), reg::SRRCTL_ADVANCED_2K);
            let error = u64::from(errors != 0) << 31;
            // The lower half holds a hash now, not an address.
            self.memory.set_word(at, 0xdead_beef_dead_beef);
            self.memory
                .set_word(at + 8, length << 32 | error | last << 1 | 1);
        } else {
            self.memory
                .set_word(at + 8, errors << 40 | last << 33 | 1 << 32 | length);
        }
        self.set(ring.head, (head + 1) % DESCRIPTORS as u32);
        self.cause(Causes::RECEIVED);
        true
    }

    /// Writes anything into the upper half of a descriptor.
    pub fn scribble(&mut self, ring: Ring, index: usize, high: u64) {
        let base = match ring {
            Ring::Receive => RECEIVE_RING,
            Ring::Transmit => TRANSMIT_RING,
        };
        self.memory.set_word(base + index as u64 * 16 + 8, high);
    }

    fn on_write(&mut self, offset: u32, value: u32) {
        let (_, transmit) = self.rings();
        match offset {
            reg::CTRL => {
                let control = Control::from_bits_retain(value);
                self.set(offset, value);
                if control.contains(Control::RESET) && !self.faults.reset_sticks {
                    self.reset();
                }
            }
            reg::EERD => {
                self.set(offset, value);
                self.read_eeprom(value);
            }
            reg::IMS => self.set(offset, self.get(offset) | value),
            reg::IMC => self.set(reg::IMS, self.get(reg::IMS) & !value),
            0xe028 if self.faults.queue_sticks => {}
            _ => {
                self.set(offset, value);
                if offset == transmit.tail {
                    self.send();
                }
            }
        }
    }

    fn on_read(&mut self, offset: u32) -> u32 {
        let (receive, transmit) = self.rings();
        let value = self.get(offset);
        match offset {
            _ if self.faults.gone => u32::MAX,
            reg::CRCERRS..=reg::ROC if self.faults.counts_gone => u32::MAX,
            reg::ICR | reg::CRCERRS..=reg::ROC => {
                self.set(offset, 0);
                value
            }
            reg::STATUS if self.faults.master_sticks => value | Status::MASTER_ENABLED.bits(),
            at if at == receive.head || at == transmit.head => self.faults.head.unwrap_or(value),
            _ => value,
        }
    }
}

impl Registers for Handle {
    fn read(&self, offset: u32) -> u32 {
        self.0.borrow_mut().on_read(offset)
    }

    fn write(&self, offset: u32, value: u32) {
        self.0.borrow_mut().on_write(offset, value);
    }

    fn pause_us(&self, microseconds: u32) {
        self.0.borrow_mut().paused_us += u64::from(microseconds);
    }
}

const fn offset_of(half: Half) -> u64 {
    match half {
        Half::Low => 0,
        Half::High => 8,
    }
}

impl RingMemory for Handle {
    fn ring_address(&self, ring: Ring) -> u64 {
        match ring {
            Ring::Receive => RECEIVE_RING,
            Ring::Transmit => TRANSMIT_RING,
        }
    }

    fn buffer_address(&self, ring: Ring, index: usize) -> u64 {
        let base = match ring {
            Ring::Receive => RECEIVE_BUFFERS,
            Ring::Transmit => TRANSMIT_BUFFERS,
        };
        base + (index * BUFFER_BYTES) as u64
    }

    fn read(&self, ring: Ring, index: usize, half: Half) -> u64 {
        let at = self.ring_address(ring) + index as u64 * 16 + offset_of(half);
        self.0.borrow_mut().memory.word(at)
    }

    fn write(&mut self, ring: Ring, index: usize, half: Half, value: u64) {
        let at = self.ring_address(ring) + index as u64 * 16 + offset_of(half);
        self.0.borrow_mut().memory.set_word(at, value);
    }

    fn copy_out(&self, index: usize, into: &mut [u8]) {
        assert!(into.len() <= BUFFER_BYTES);
        let at = self.buffer_address(Ring::Receive, index);
        into.copy_from_slice(self.0.borrow_mut().memory.at(at, into.len()));
    }

    fn copy_in(&mut self, index: usize, from: &[u8], padded: usize) {
        let at = self.buffer_address(Ring::Transmit, index);
        let mut card = self.0.borrow_mut();
        let (frame, rest) = card.memory.at(at, BUFFER_BYTES).split_at_mut(from.len());
        frame.copy_from_slice(from);
        rest[..padded - from.len()].fill(0);
    }
}
