//! From whatever state a card is in to one that receives and sends (8254x chapter 14; 82574 4.6; 82576 4.5).

use super::super::{DESCRIPTORS, Family, Half, Mac, Registers, Ring, RingMemory, StartError};
use super::registers::{self as reg, Control, Status, TransmitControl};
use super::{ALL_ONES, Intel};

/// Time that a reset takes before the card may be asked (8254x 14.9: 1 µs; 82574 4.2: about 10 ms with its EEPROM).
const RESET_US: u32 = 10_000;
/// Longest wait for what the card says itself when it is over.
const LIMIT_US: u32 = 100_000;
/// Between two looks.
const STEP_US: u32 = 10;
/// Longest wait for a word of the EEPROM: 50 µs are usual.
const EEPROM_US: u32 = 2_000;

/// Keeps a card, in whatever state, from sending, receiving and interrupting.
pub fn silence<R: Registers>(card: &R) {
    card.write(reg::IMC, ALL_ONES);
    card.write(reg::RCTL, 0);
    card.write(reg::TCTL, reg::TCTL_MUTE);
}

impl<R: Registers, M: RingMemory> Intel<R, M> {
    /// Resets the card and starts it; what it had not sent is lost. A card that cannot be started sends and receives
    /// nothing.
    pub(super) fn start(&mut self) -> Result<(), StartError> {
        let started = self.try_start();
        if started.is_err() {
            silence(&self.registers);
        }
        started
    }

    fn try_start(&mut self) -> Result<(), StartError> {
        self.reset()?;
        self.mac = self.address()?;
        self.connect();
        self.filter();
        self.fill_rings();
        self.start_receiving()?;
        if self.power == super::Power::On {
            self.start_sending()?;
        }
        Ok(())
    }

    /// Looks until `over`; false if the limit passes first.
    fn wait(&self, limit_us: u32, over: impl Fn(&R) -> bool) -> bool {
        (0..limit_us / STEP_US).any(|_| {
            over(&self.registers) || {
                self.registers.pause_us(STEP_US);
                false
            }
        })
    }

    fn reset(&self) -> Result<(), StartError> {
        let card = &self.registers;
        if card.read(reg::STATUS) == ALL_ONES {
            return Err(StartError::Absent);
        }
        silence(card);
        let control = Control::from_bits_retain(card.read(reg::CTRL));
        if self.family != Family::E1000 {
            // 82574 4.2, 82576 5.2.3.3: a reset in the middle of a transfer can stop the bus.
            card.write(reg::CTRL, (control | Control::MASTER_DISABLE).bits());
            let idle = |card: &R| {
                !Status::from_bits_retain(card.read(reg::STATUS)).contains(Status::MASTER_ENABLED)
            };
            // A card that has never been a bus master may not say so: the reset is due all the same.
            self.wait(LIMIT_US, idle);
        }
        card.write(reg::CTRL, (control | Control::RESET).bits());
        card.pause_us(RESET_US);
        let over = |card: &R| {
            let word = card.read(reg::CTRL);
            word == ALL_ONES || !Control::from_bits_retain(word).contains(Control::RESET)
        };
        if !self.wait(LIMIT_US, over) {
            return Err(StartError::ResetNeverEnds(RESET_US + LIMIT_US));
        }
        if card.read(reg::STATUS) == ALL_ONES {
            return Err(StartError::Absent);
        }
        card.write(reg::IMC, ALL_ONES);
        // Reading the causes clears those of the reset.
        card.read(reg::ICR);
        Ok(())
    }

    /// The card's address: where the EEPROM's was put after the reset, else the EEPROM itself.
    fn address(&self) -> Result<Mac, StartError> {
        let (low, high) = (self.registers.read(reg::RAL), self.registers.read(reg::RAH));
        let [a, b, c, d] = low.to_le_bytes();
        let [e, f, ..] = high.to_le_bytes();
        let mac = Mac([a, b, c, d, e, f]);
        if high & reg::RAH_VALID != 0 && mac.is_single() {
            return Ok(mac);
        }
        let mut bytes = [0; 6];
        for (address, pair) in (0..).zip(bytes.chunks_exact_mut(2)) {
            let word = self.eeprom(address).ok_or(StartError::NoAddress)?;
            pair.copy_from_slice(&word.to_le_bytes());
        }
        Some(Mac(bytes))
            .filter(|mac| mac.is_single())
            .ok_or(StartError::NoAddress)
    }

    /// A word of the EEPROM (8254x 13.4.4; 82574 10.2.2, where address and "done" are elsewhere).
    fn eeprom(&self, address: u32) -> Option<u16> {
        let (done, shift) = match self.family {
            Family::E1000 => (1 << 4, 8),
            Family::E1000e | Family::Igb | Family::Virtio => (1 << 1, 2),
        };
        let start = 1;
        self.registers.write(reg::EERD, start | address << shift);
        let ready = |card: &R| card.read(reg::EERD) & done != 0;
        self.wait(EEPROM_US, ready)
            .then(|| (self.registers.read(reg::EERD) >> 16) as u16)
    }

    /// Lets the two ends of the wire agree on speed and duplex (8254x 14.3).
    fn connect(&self) {
        let mut control = Control::from_bits_retain(self.registers.read(reg::CTRL));
        control.insert(Control::SET_LINK_UP);
        control.remove(
            Control::LINK_RESET
                | Control::PHY_RESET
                | Control::INVERT_LOSS_OF_SIGNAL
                | Control::FORCE_SPEED
                | Control::FORCE_DUPLEX
                | Control::VLAN_MODE
                | Control::MASTER_DISABLE,
        );
        control.set(Control::AUTO_SPEED, self.family == Family::E1000);
        self.registers.write(reg::CTRL, control.bits());
    }

    /// Frames to the card's own address and to all, no groups (8254x 14.4).
    fn filter(&self) {
        let card = &self.registers;
        for word in 0..reg::MTA_WORDS {
            card.write(reg::MTA + 4 * word, 0);
        }
        let [a, b, c, d, e, f] = self.mac.0;
        card.write(reg::RAL, u32::from_le_bytes([a, b, c, d]));
        card.write(reg::RAH, u32::from_le_bytes([e, f, 0, 0]) | reg::RAH_VALID);
        for pair in 1..reg::RECEIVE_ADDRESSES {
            card.write(reg::RAL + 8 * pair, 0);
            card.write(reg::RAH + 8 * pair, 0);
        }
    }

    /// Every receive descriptor is the card's, every transmit descriptor ours.
    fn fill_rings(&mut self) {
        for index in 0..DESCRIPTORS {
            self.refill(index);
            self.memory.write(Ring::Transmit, index, Half::Low, 0);
            self.memory.write(Ring::Transmit, index, Half::High, 0);
        }
        self.receive_next = 0;
        self.receive_taken = 0;
        self.receive_rest = false;
        self.transmit_next = 0;
        self.transmit_done = 0;
        self.transmit_told = true;
        self.stuck_since = None;
    }

    fn place_ring(&self, at: reg::RingRegisters, ring: Ring) {
        let address = self.memory.ring_address(ring);
        let card = &self.registers;
        card.write(at.address_low, address as u32);
        card.write(at.address_high, (address >> 32) as u32);
        card.write(at.bytes, DESCRIPTORS as u32 * 16);
        card.write(at.head, 0);
        card.write(at.tail, 0);
    }

    /// Switches an `igb` queue on, which the card confirms.
    fn enable_queue(&self, at: reg::RingRegisters) -> Result<(), StartError> {
        let card = &self.registers;
        let control = card.read(at.control) | reg::QUEUE_ENABLE;
        card.write(at.control, control);
        let on = |card: &R| card.read(at.control) & reg::QUEUE_ENABLE != 0;
        if self.wait(LIMIT_US, on) {
            Ok(())
        } else {
            Err(StartError::QueueNeverStarts(LIMIT_US))
        }
    }

    fn start_receiving(&mut self) -> Result<(), StartError> {
        let (receive, _) = self.rings();
        self.place_ring(receive, Ring::Receive);
        let card = &self.registers;
        match self.family {
            Family::Igb => {
                card.write(reg::SRRCTL, reg::SRRCTL_ADVANCED_2K);
                self.enable_queue(receive)?;
            }
            Family::E1000e => card.write(reg::RFCTL, 0),
            Family::E1000 | Family::Virtio => {}
        }
        let control = self.receive_control();
        self.registers.write(reg::RCTL, control);
        self.give_back();
        Ok(())
    }

    fn start_sending(&mut self) -> Result<(), StartError> {
        let (_, transmit) = self.rings();
        self.place_ring(transmit, Ring::Transmit);
        let card = &self.registers;
        match self.family {
            Family::Igb => {}
            Family::E1000e => {
                let control = card.read(reg::TXDCTL_82574) | reg::TXDCTL_COUNT_DESCRIPTORS;
                card.write(reg::TXDCTL_82574, control);
            }
            Family::E1000 | Family::Virtio => card.write(reg::TIPG, reg::TIPG_COPPER),
        }
        let control = TransmitControl::ENABLE
            | TransmitControl::PAD
            | TransmitControl::COLLISIONS_15
            | TransmitControl::DISTANCE_64;
        card.write(reg::TCTL, control.bits());
        if self.family == Family::Igb {
            // 82576 4.5.10: a queue is switched on after the transmitter.
            self.enable_queue(transmit)?;
        }
        Ok(())
    }
}
