//! What comes from the wire: descriptors and registers that a card writes, and frames that it delivers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use arch::nic::intel::Intel;
use arch::nic::intel::registers::{RAH, RAH_VALID, RAL};
use arch::nic::{
    BUFFER_BYTES, Counters, DESCRIPTORS, Event, FRAME_MAX, FRAME_MIN, Family, Half, Link, Mac, Nic,
    NotSent, Received, Registers, Ring, RingMemory,
};
use vmm::config::net::{Addressing, Nic as NicConfig, PciPlace, Role, Which};
use vmm::net::network::Network;

const CARD: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// A card whose registers and descriptors are what the bytes say, once it has started.
struct Liar<'a> {
    bytes: Cell<&'a [u8]>,
    started: Cell<bool>,
}

impl Liar<'_> {
    fn word(&self) -> u64 {
        let (mut word, bytes) = ([0; 8], self.bytes.get());
        let (now, later) = bytes.split_at(bytes.len().min(8));
        word[..now.len()].copy_from_slice(now);
        self.bytes.set(later);
        u64::from_le_bytes(word)
    }
}

impl Registers for &Liar<'_> {
    fn read(&self, offset: u32) -> u32 {
        if self.started.get() {
            return self.word() as u32;
        }
        let [a, b, c, d, e, f] = CARD.0;
        match offset {
            RAL => u32::from_le_bytes([a, b, c, d]),
            RAH => u32::from_le_bytes([e, f, 0, 0]) | RAH_VALID,
            // Queues are on, no reset is under way, the link is up.
            _ => 1 << 25 | 1 << 1,
        }
    }

    fn write(&self, _: u32, _: u32) {}

    fn pause_us(&self, _: u32) {}
}

impl RingMemory for &Liar<'_> {
    fn ring_address(&self, _: Ring) -> u64 {
        0x1000
    }

    fn buffer_address(&self, _: Ring, index: usize) -> u64 {
        assert!(index < DESCRIPTORS);
        0x10_0000 + (index * BUFFER_BYTES) as u64
    }

    fn read(&self, _: Ring, index: usize, _: Half) -> u64 {
        assert!(index < DESCRIPTORS);
        self.word()
    }

    fn write(&mut self, ring: Ring, index: usize, half: Half, value: u64) {
        assert!(index < DESCRIPTORS);
        if half == Half::Low && value != 0 {
            assert_eq!(value, self.buffer_address(ring, index));
        }
    }

    fn copy_out(&self, index: usize, into: &mut [u8]) {
        assert!(index < DESCRIPTORS && into.len() <= BUFFER_BYTES);
    }

    fn copy_in(&mut self, index: usize, from: &[u8], padded: usize) {
        assert!(index < DESCRIPTORS && from.len() <= padded && padded <= BUFFER_BYTES);
    }
}

/// The first byte chooses the family; the rest is all that the card says. It reaches no memory but its own, and nothing
/// that it says is believed.
pub fn nic(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let family = [Family::E1000, Family::E1000e, Family::Igb][usize::from(*first) % 3];
    let liar = Liar {
        bytes: Cell::new(rest),
        started: Cell::new(false),
    };
    let mut card = Intel::new(family, &liar, &liar).expect("a card that does as it should starts");
    liar.started.set(true);
    let mut now = 0;
    while !liar.bytes.get().is_empty() {
        let mut buffer = [0; BUFFER_BYTES];
        if let Received::Frame(length) = card.receive(&mut buffer) {
            assert!((FRAME_MIN..=FRAME_MAX).contains(&length));
        }
        // What comes of these is the card's to say.
        if card.transmit(&buffer[..60]) == Err(NotSent::Length) {
            panic!("60 bytes are a frame");
        }
        card.flush();
        now += 700_000_000;
        if let Some(Event::Gone(_)) = card.check(now) {
            return;
        }
    }
}

/// A card that delivers what it is given.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<VecDeque<Vec<u8>>>>, Counters);

impl Nic for Wire {
    fn mac(&self) -> Mac {
        CARD
    }

    fn link(&self) -> Link {
        Link::Up {
            speed_mbit: 1000,
            full_duplex: true,
        }
    }

    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received {
        let Some(frame) = self.0.borrow_mut().pop_front() else {
            return Received::Nothing;
        };
        into[..frame.len()].copy_from_slice(&frame);
        Received::Frame(frame.len())
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent> {
        assert!((FRAME_MIN..=FRAME_MAX).contains(&frame.len()));
        Ok(())
    }

    fn flush(&mut self) {}

    fn check(&mut self, _: u64) -> Option<Event> {
        None
    }

    fn set_promiscuous(&mut self, _: bool) {}

    fn mute(&mut self) {}

    fn stop(&mut self) {}

    fn counters(&self) -> &Counters {
        &self.1
    }
}

fn card(role: Role, addressing: Addressing) -> NicConfig {
    let place = PciPlace {
        bus: 0,
        device: 0,
        function: 0,
    };
    NicConfig {
        name: "lan".to_owned(),
        role,
        which: Which::Pci(place),
        addressing: Some(addressing),
        mtu: 1500,
    }
}

/// Frames from outside and from a guest, each behind a byte that says whose it is and two with its length: switch and
/// stack survive them, and the guest only gets what is for it. With an odd first byte the host asks for its address.
pub fn network(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else {
        return;
    };
    let addressing = if first & 1 == 0 {
        Addressing::Static {
            address: "10.0.0.1/24".parse().expect("is an address"),
            gateway: None,
        }
    } else {
        Addressing::Dhcp
    };
    let wire = Wire::default();
    let cards = [(card(Role::Service, addressing), wire.clone())];
    let mut network = Network::new(cards, || 7, 0);
    let guest = network.connect("lan", GUEST).expect("a port");
    let mut now = 0;
    while let [whose, low, high, after @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (frame, later) = after.split_at(length);
        rest = later;
        now += u64::from(*whose) * 10_000_000;
        if whose & 1 == 0 {
            let frame = frame[..length.min(BUFFER_BYTES)].to_vec();
            wire.0.borrow_mut().push_back(frame);
        } else {
            network.guest_transmit(guest, frame, now);
        }
        network.poll(now, 16, |_, _| ());
        while let Some(frame) = network.guest_front(guest) {
            let to = Mac::first_of(frame).expect("a frame has an address");
            assert!(to == GUEST || to.is_group(), "{to} is not the guest's");
            network.guest_pop(guest);
        }
    }
}
