//! Intel's gigabit cards: e1000 (8254x), e1000e (82574) and igb (82576, I210, I350), one queue each way.
//!
//! The families differ in three things: how a card is reset, where its rings' registers are, and how descriptors
//! look. The driver never reads a ring's head: a descriptor says itself when the card is done with it.

mod descriptor;
pub mod registers;
mod start;

pub use start::silence;

use super::{
    BUFFER_BYTES, Counters, DESCRIPTORS, Event, FRAME_MAX, FRAME_MIN, FRAME_PADDED, Family,
    HUNG_NS, Half, Link, Mac, Nic, NotSent, Received, Registers, Ring, RingMemory, StartError,
};
use descriptor::Fault;
use registers::{Causes, ReceiveControl, RingRegisters, Status, TransmitControl};

/// Received descriptors that are given back to the card at once: the register is worth a frame's time.
const GIVE_BACK: usize = 32;

/// What a register of a card that is gone reads as.
const ALL_ONES: u32 = u32::MAX;

/// What the card may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// It receives, and sends nothing ever again.
    Muted,
    Off,
}

/// A started card.
pub struct Intel<R, M> {
    family: Family,
    registers: R,
    memory: M,
    mac: Mac,
    power: Power,
    link: Link,
    promiscuous: bool,
    /// Next descriptor to look at for a received frame.
    receive_next: usize,
    /// Looked at and not given back to the card.
    receive_taken: usize,
    /// The rest of a frame that was too long for its buffer follows.
    receive_rest: bool,
    /// Next descriptor to fill.
    transmit_next: usize,
    /// First descriptor that the card has not said to be sent.
    transmit_done: usize,
    /// The card has not been told of all that was filled.
    transmit_told: bool,
    /// Since when `transmit_done` stands still with frames to send.
    stuck_since: Option<(u64, usize)>,
    counters: Counters,
}

const fn following(index: usize) -> usize {
    (index + 1) % DESCRIPTORS
}

impl<R: Registers, M: RingMemory> Intel<R, M> {
    /// Resets the card and starts it, polled: every interrupt is masked.
    ///
    /// # Errors
    ///
    /// It is not there, does not come out of its reset, or has no address. Its transmitter is off then.
    pub fn new(family: Family, registers: R, memory: M) -> Result<Self, StartError> {
        let mut card = Self {
            family,
            registers,
            memory,
            mac: Mac([0; 6]),
            power: Power::On,
            link: Link::Down,
            promiscuous: false,
            receive_next: 0,
            receive_taken: 0,
            receive_rest: false,
            transmit_next: 0,
            transmit_done: 0,
            transmit_told: true,
            stuck_since: None,
            counters: Counters::default(),
        };
        card.start()?;
        card.link = card.read_link().unwrap_or_default();
        Ok(card)
    }

    fn rings(&self) -> (RingRegisters, RingRegisters) {
        if self.family == Family::Igb {
            (registers::RECEIVE_IGB, registers::TRANSMIT_IGB)
        } else {
            (registers::RECEIVE, registers::TRANSMIT)
        }
    }

    /// The link now; `None` if the card is gone.
    fn read_link(&self) -> Option<Link> {
        let word = self.registers.read(registers::STATUS);
        if word == ALL_ONES {
            return None;
        }
        let status = Status::from_bits_retain(word);
        if !status.contains(Status::LINK_UP) {
            return Some(Link::Down);
        }
        let speed_mbit = if status.contains(Status::SPEED_1000) {
            1000
        } else if status.contains(Status::SPEED_100) {
            100
        } else {
            10
        };
        Some(Link::Up {
            speed_mbit,
            full_duplex: status.contains(Status::FULL_DUPLEX),
        })
    }

    fn receive_control(&self) -> u32 {
        let mut control =
            ReceiveControl::ENABLE | ReceiveControl::BROADCAST | ReceiveControl::STRIP_CRC;
        if self.promiscuous {
            control |= ReceiveControl::UNICAST_PROMISCUOUS | ReceiveControl::MULTICAST_PROMISCUOUS;
        }
        control.bits()
    }

    /// Makes a receive descriptor the card's again.
    fn refill(&mut self, index: usize) {
        let address = self.memory.buffer_address(Ring::Receive, index);
        self.memory.write(Ring::Receive, index, Half::Low, address);
        self.memory.write(Ring::Receive, index, Half::High, 0);
    }

    /// Tells the card of the receive descriptors given back: it may use all up to the one before the next.
    fn give_back(&mut self) {
        let last = (self.receive_next + DESCRIPTORS - 1) % DESCRIPTORS;
        self.registers.write(self.rings().0.tail, last as u32);
        self.receive_taken = 0;
    }

    /// Judges a frame that the card says it has received; gives its length if it is good.
    fn judge(&mut self, written: descriptor::Written) -> Option<usize> {
        let rest = core::mem::replace(&mut self.receive_rest, !written.last);
        if rest {
            // Its beginning was counted.
            return None;
        }
        let counters = &mut self.counters;
        if !written.last || written.length > FRAME_MAX {
            counters.oversize += 1;
        } else if let Some(fault) = written.fault {
            match fault {
                Fault::Crc => counters.bad_crc += 1,
                Fault::Other => counters.receive_errors += 1,
            }
        } else if written.length < FRAME_MIN {
            counters.runts += 1;
        } else {
            counters.received_frames += 1;
            counters.received_bytes += written.length as u64;
            return Some(written.length);
        }
        None
    }

    /// Frees the descriptors that the card has sent.
    fn reap(&mut self) {
        while self.transmit_done != self.transmit_next {
            let high = self
                .memory
                .read(Ring::Transmit, self.transmit_done, Half::High);
            if !descriptor::sent(high) {
                break;
            }
            self.transmit_done = following(self.transmit_done);
        }
    }

    fn transmit_fault(&mut self, frame: &[u8]) -> Option<NotSent> {
        if self.power != Power::On {
            self.counters.transmit_off += 1;
            return Some(NotSent::Off);
        }
        if !(FRAME_MIN..=FRAME_MAX).contains(&frame.len()) {
            self.counters.transmit_length += 1;
            return Some(NotSent::Length);
        }
        if !self.link.is_up() {
            self.counters.transmit_link_down += 1;
            return Some(NotSent::LinkDown);
        }
        if following(self.transmit_next) == self.transmit_done {
            self.reap();
        }
        if following(self.transmit_next) == self.transmit_done {
            self.counters.transmit_full += 1;
            return Some(NotSent::Full);
        }
        None
    }

    /// Adds what the card itself counted since the last time.
    fn count_errors(&mut self) {
        // A card that disappears meanwhile has not counted four billion errors.
        let read = |offset| match self.registers.read(offset) {
            ALL_ONES => 0,
            count => u64::from(count),
        };
        // A frame that is too short or too long and wrong besides is counted as wrong.
        let (bad_crc, runts, oversize) = (
            read(registers::CRCERRS),
            read(registers::RUC) + read(registers::RFC),
            read(registers::ROC),
        );
        let errors = read(registers::RXERRC) + read(registers::RLEC);
        let missed = read(registers::MPC);
        let counters = &mut self.counters;
        counters.bad_crc += bad_crc;
        counters.runts += runts;
        counters.oversize += oversize;
        counters.receive_errors += errors;
        counters.missed += missed;
    }

    /// Whether frames to send have stood still for too long on a link that is up.
    fn hangs(&mut self, now: u64) -> bool {
        self.reap();
        if self.transmit_done == self.transmit_next || !self.link.is_up() {
            self.stuck_since = None;
            return false;
        }
        match self.stuck_since {
            Some((since, at)) if at == self.transmit_done => now.saturating_sub(since) >= HUNG_NS,
            _ => {
                self.stuck_since = Some((now, self.transmit_done));
                false
            }
        }
    }

    fn gone(&mut self, why: StartError) -> Option<Event> {
        self.power = Power::Off;
        self.link = Link::Down;
        Some(Event::Gone(why))
    }

    /// Lets the card interrupt when a frame comes or the link changes, or masks everything.
    pub fn set_interrupts(&mut self, on: bool) {
        let causes =
            Causes::RECEIVED | Causes::RECEIVE_FEW_LEFT | Causes::RECEIVE_OVERRUN | Causes::LINK;
        if on {
            self.registers.write(registers::IMS, causes.bits());
        } else {
            self.registers.write(registers::IMC, ALL_ONES);
        }
    }

    /// What the card interrupted for, which it forgets: none if it is gone.
    pub fn take_causes(&mut self) -> Causes {
        let word = self.registers.read(registers::ICR);
        if word == ALL_ONES {
            return Causes::empty();
        }
        Causes::from_bits_retain(word)
    }
}

impl<R: Registers, M: RingMemory> Nic for Intel<R, M> {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn link(&self) -> Link {
        self.link
    }

    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received {
        if self.power == Power::Off {
            return Received::Nothing;
        }
        let index = self.receive_next;
        let high = self.memory.read(Ring::Receive, index, Half::High);
        let Some(written) = descriptor::received(self.family, high) else {
            return Received::Nothing;
        };
        let length = self.judge(written);
        if let Some(frame) = length.and_then(|length| into.get_mut(..length)) {
            self.memory.copy_out(index, frame);
        }
        self.refill(index);
        self.receive_next = following(index);
        self.receive_taken += 1;
        if self.receive_taken >= GIVE_BACK {
            self.give_back();
        }
        length.map_or(Received::Dropped, Received::Frame)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent> {
        if let Some(fault) = self.transmit_fault(frame) {
            return Err(fault);
        }
        let index = self.transmit_next;
        let padded = frame.len().max(FRAME_PADDED);
        self.memory.copy_in(index, frame, padded);
        let address = self.memory.buffer_address(Ring::Transmit, index);
        self.memory.write(Ring::Transmit, index, Half::Low, address);
        let high = descriptor::to_send(self.family, padded);
        self.memory.write(Ring::Transmit, index, Half::High, high);
        self.transmit_next = following(index);
        self.transmit_told = false;
        self.counters.sent_frames += 1;
        self.counters.sent_bytes += frame.len() as u64;
        Ok(())
    }

    fn flush(&mut self) {
        if self.power == Power::Off {
            return;
        }
        if self.receive_taken > 0 {
            self.give_back();
        }
        if !self.transmit_told {
            self.transmit_told = true;
            let tail = self.rings().1.tail;
            self.registers.write(tail, self.transmit_next as u32);
        }
    }

    fn check(&mut self, now: u64) -> Option<Event> {
        if self.power == Power::Off {
            return None;
        }
        let Some(link) = self.read_link() else {
            return self.gone(StartError::Absent);
        };
        self.count_errors();
        if link != self.link {
            self.link = link;
            self.counters.link_changes += 1;
            return Some(Event::Link(link));
        }
        if self.power == Power::Muted || !self.hangs(now) {
            return None;
        }
        let control = TransmitControl::from_bits_retain(self.registers.read(registers::TCTL));
        if !control.contains(TransmitControl::ENABLE) {
            // Muted past the driver, for good.
            self.power = Power::Muted;
            return None;
        }
        self.counters.restarts += 1;
        match self.start() {
            Ok(()) => Some(Event::Restarted),
            Err(error) => self.gone(error),
        }
    }

    fn set_promiscuous(&mut self, on: bool) {
        self.promiscuous = on;
        if self.power != Power::Off {
            let control = self.receive_control();
            self.registers.write(registers::RCTL, control);
        }
    }

    fn mute(&mut self) {
        if self.power == Power::On {
            self.power = Power::Muted;
        }
        self.registers.write(registers::TCTL, registers::TCTL_MUTE);
    }

    fn stop(&mut self) {
        self.power = Power::Off;
        self.link = Link::Down;
        silence(&self.registers);
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
