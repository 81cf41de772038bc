//! A host with a card of its own, a guest's and a neighbour's, on a wire that the test plays.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::RefCell;

use arch::nic::{BUFFER_BYTES, Link, StartError};

use super::*;
use crate::config::net::{Address, Addressing, PciPlace, Role, Which};

/// What a card sees and does.
#[derive(Default)]
struct Wire {
    /// Comes next; an empty one is one that the card finds bad.
    coming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    full: bool,
    promiscuous: bool,
    muted: bool,
    flushes: usize,
    checks: usize,
    event: Option<Event>,
}

#[derive(Clone, Default)]
struct Card(Rc<RefCell<Wire>>, Counters);

const CARD: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 9]);

impl Nic for Card {
    fn mac(&self) -> Mac {
        CARD
    }

    fn link(&self) -> Link {
        Link::Up {
            speed_mbit: 0,
            full_duplex: true,
        }
    }

    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received {
        match self.0.borrow_mut().coming.pop_front() {
            None => Received::Nothing,
            Some(frame) if frame.is_empty() => Received::Dropped,
            Some(frame) => {
                into[..frame.len()].copy_from_slice(&frame);
                Received::Frame(frame.len())
            }
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent> {
        let mut wire = self.0.borrow_mut();
        if wire.full {
            return Err(NotSent::Full);
        }
        wire.sent.push(frame.to_vec());
        Ok(())
    }

    fn flush(&mut self) {
        self.0.borrow_mut().flushes += 1;
    }

    fn check(&mut self, _: u64) -> Option<Event> {
        let mut wire = self.0.borrow_mut();
        wire.checks += 1;
        wire.event.take()
    }

    fn set_promiscuous(&mut self, on: bool) {
        self.0.borrow_mut().promiscuous = on;
    }

    fn mute(&mut self) {
        self.0.borrow_mut().muted = true;
    }

    fn stop(&mut self) {}

    fn counters(&self) -> &Counters {
        &self.1
    }
}

fn config(name: &str, role: Role, ip: Option<[u8; 4]>) -> config::Nic {
    let place = PciPlace {
        bus: 0,
        device: 3,
        function: 0,
    };
    config::Nic {
        name: name.into(),
        role,
        which: Which::Pci(place),
        addressing: ip.map(|ip| Addressing::Static {
            address: Address {
                ip: ip.into(),
                prefix: 24,
            },
            gateway: None,
        }),
        mtu: 1500,
    }
}

/// A network of one service card, and the card.
fn lab() -> (Network<Card>, Card) {
    let card = Card::default();
    let lan = config("lan", Role::Service, Some([10, 0, 0, 1]));
    (Network::new([(lan, card.clone())], || 7, 0), card)
}

fn frame(to: Mac, from: Mac, bytes: usize) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(bytes, 0x5a);
    frame
}

fn take(network: &mut Network<Card>, guest: GuestPort) -> Option<Vec<u8>> {
    let frame = network.guest_front(guest).map(<[u8]>::to_vec);
    network.guest_pop(guest);
    frame
}

fn quiet(_: &str, news: News) {
    panic!("{news:?}");
}

#[test]
fn a_guest_speaks_with_the_outside_and_its_neighbour() {
    let (mut network, card) = lab();
    assert!(!card.0.borrow().promiscuous);
    let guest = network.connect("lan", GUEST).expect("a port");
    let other = network.connect("lan", OTHER).expect("a port");
    assert!(card.0.borrow().promiscuous);
    assert!(network.guest_transmit(guest, &frame(FAR, GUEST, 100), 0));
    assert!(network.guest_transmit(guest, &frame(OTHER, GUEST, 200), 0));
    let coming = [frame(GUEST, FAR, 300), vec![], frame(OTHER, FAR, 400)];
    card.0.borrow_mut().coming.extend(coming);
    let polled = network.poll(0, 64, quiet);
    assert_eq!((polled.frames, polled.more), (3, false));
    assert_eq!(card.0.borrow().sent, [frame(FAR, GUEST, 100)]);
    assert_eq!(take(&mut network, guest), Some(frame(GUEST, FAR, 300)));
    assert_eq!(take(&mut network, guest), None);
    assert_eq!(take(&mut network, other), Some(frame(OTHER, GUEST, 200)));
    assert_eq!(take(&mut network, other), Some(frame(OTHER, FAR, 400)));
    assert!(network.guest_link(guest));
    assert_eq!(network.connect("wan", GUEST), None);
    assert_eq!(network.connect("lan", OTHER), None, "an address twice");
    assert_eq!(network.connect("lan", CARD), None, "the host's own");
}

/// An ARP question for 10.0.0.1.
fn question(from: Mac) -> Vec<u8> {
    let mut bytes = [Mac::BROADCAST.0, from.0].concat();
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(from.0);
    bytes.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    bytes
}

#[test]
fn the_host_answers_outside_and_inside() {
    let (mut network, card) = lab();
    let guest = network.connect("lan", GUEST).expect("a port");
    card.0.borrow_mut().coming.push_back(question(FAR));
    network.poll(1_000_000, 64, quiet);
    let sent = core::mem::take(&mut card.0.borrow_mut().sent);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(
        (&sent[0][..12], &sent[0][12..14]),
        (&[FAR.0, CARD.0].concat()[..], &[8, 6][..])
    );
    assert_eq!(
        take(&mut network, guest),
        Some(question(FAR)),
        "all hear it"
    );

    assert!(network.guest_transmit(guest, &question(GUEST), 2_000_000));
    network.poll(2_000_000, 64, quiet);
    let answer = take(&mut network, guest).expect("an answer");
    assert_eq!(answer[..12], [GUEST.0, CARD.0].concat());
    assert_eq!(card.0.borrow().sent, [question(GUEST)]);
}

#[test]
fn a_poll_is_bounded_and_says_what_is_left() {
    let (mut network, card) = lab();
    let guest = network.connect("lan", GUEST).expect("a port");
    let coming = (0..100).map(|_| frame(GUEST, FAR, 60));
    card.0.borrow_mut().coming.extend(coming);
    let polled = network.poll(0, 30, quiet);
    assert_eq!((polled.frames, polled.more), (30, true));
    assert_eq!(card.0.borrow().coming.len(), 70);
    card.0.borrow_mut().full = true;
    for _ in 0..100 {
        assert!(network.guest_transmit(guest, &frame(FAR, GUEST, 60), 0));
    }
    card.0.borrow_mut().full = false;
    network.poll(0, 30, quiet);
    assert_eq!(card.0.borrow().sent.len(), 30);
    assert_eq!(card.0.borrow().flushes, 2);
    // What a guest sends does not wait for a poll.
    assert!(network.guest_transmit(guest, &frame(FAR, GUEST, 60), 0));
    assert_eq!(
        (card.0.borrow().sent.len(), card.0.borrow().flushes),
        (101, 3)
    );
}

#[test]
fn floods_are_dropped_and_no_buffer_is_lost() {
    let (mut network, card) = lab();
    let guest = network.connect("lan", GUEST).expect("a port");
    let quiet_one = network.connect("lan", OTHER).expect("a port");
    let free = network.pool.free();
    card.0.borrow_mut().full = true;
    for round in 0..50_u64 {
        for to in [GUEST, CARD, Mac::BROADCAST, FAR] {
            let coming = (0..50).map(|_| frame(to, FAR, 60));
            card.0.borrow_mut().coming.extend(coming);
            for _ in 0..50 {
                assert!(network.guest_transmit(guest, &frame(FAR, GUEST, 60), round));
            }
        }
        network.poll(round, 1000, quiet);
        while take(&mut network, quiet_one).is_some() {}
    }
    assert_eq!(network.guest_counters(quiet_one).full, 0);
    assert!(network.guest_counters(guest).full > 4000);
    // The card takes what waits as soon as it can, and the guest what is left for it.
    card.0.borrow_mut().full = false;
    network.poll(50, 1000, quiet);
    assert_eq!(card.0.borrow().sent.len(), QUEUE_FRAMES);
    while take(&mut network, guest).is_some() {}
    assert_eq!(network.pool.free(), free, "a buffer is lost");
}

#[test]
fn a_guest_that_is_switched_off_is_not_there() {
    let (mut network, card) = lab();
    let guest = network.connect("lan", GUEST).expect("a port");
    network.set_guest_active(guest, false);
    card.0.borrow_mut().coming.push_back(frame(GUEST, FAR, 60));
    assert!(network.guest_transmit(guest, &frame(FAR, GUEST, 60), 0));
    network.poll(0, 64, quiet);
    assert_eq!(take(&mut network, guest), None);
    assert_eq!(card.0.borrow().sent.len(), 0);
    assert_eq!(network.connect("lan", GUEST), Some(guest), "its old port");
    card.0.borrow_mut().coming.push_back(frame(GUEST, FAR, 60));
    network.poll(0, 64, quiet);
    assert!(take(&mut network, guest).is_some());
}

#[test]
fn cards_are_polled_more_often_after_a_frame() {
    let (mut network, card) = lab();
    let within = |network: &Network<Card>, now| {
        (
            network.poll_within(now, true),
            network.poll_within(now, false),
        )
    };
    network.poll(0, 64, quiet);
    let silence = 60_000_000_000;
    assert_eq!(
        within(&network, silence),
        (Some(1_000_000), Some(2_000_000))
    );
    card.0.borrow_mut().coming.push_back(frame(CARD, FAR, 60));
    network.poll(silence, 64, quiet);
    assert_eq!(within(&network, silence), (Some(50_000), Some(250_000)));
    let later = silence + 2_000_000;
    assert_eq!(within(&network, later), (Some(500_000), Some(500_000)));
    // An answer follows what a guest sends too.
    let guest = network.connect("lan", GUEST).expect("a port");
    assert!(network.guest_transmit(guest, &frame(CARD, GUEST, 60), later));
    assert_eq!(within(&network, later), (Some(50_000), Some(250_000)));
    let none: [(config::Nic, Card); 0] = [];
    assert_eq!(within(&Network::new(none, || 7, 0), 0), (None, None));
}

#[test]
fn a_guest_that_comes_is_announced() {
    let (mut network, card) = lab();
    let guest = network.connect("lan", GUEST).expect("a port");
    network.announce(guest, 0);
    network.poll(0, 64, quiet);
    let sent = card.0.borrow().sent.clone();
    assert_eq!(sent.len(), 1);
    assert_eq!(
        sent[0][..14],
        [&Mac::BROADCAST.0[..], &GUEST.0, &[0x80, 0x35]].concat()
    );
    assert_eq!(
        (&sent[0][20..28], &sent[0][32..38]),
        (&[&[0, 3][..], &GUEST.0].concat()[..], &GUEST.0[..])
    );
    assert_eq!(sent[0].len(), 60);
    // A guest that is switched off is not there.
    network.set_guest_active(guest, false);
    network.announce(guest, 0);
    network.poll(0, 64, quiet);
    assert_eq!(card.0.borrow().sent.len(), 1);
}

#[test]
fn cards_are_looked_after_now_and_then() {
    let (mut network, card) = lab();
    let mut heard = vec![];
    for event in [Event::Link(Link::Down), Event::Gone(StartError::Absent)] {
        card.0.borrow_mut().event = Some(event);
        let now = heard.len() as u64 * CHECK_NS;
        network.poll(now, 1, |nic, news| heard.push((String::from(nic), news)));
        network.poll(now + 1, 1, quiet);
        assert_eq!(heard.last(), Some(&("lan".into(), News::Card(event))));
    }
    assert_eq!(card.0.borrow().checks, 2);
    network.mute();
    assert!(card.0.borrow().muted);
}

#[test]
fn each_card_is_a_network_of_its_own() {
    let (link, own) = (Card::default(), Card::default());
    let cards = [
        (
            config("link", Role::Link, Some([10, 0, 0, 1])),
            link.clone(),
        ),
        (config("own", Role::Guest, None), own.clone()),
    ];
    let mut network = Network::new(cards, || 7, 0);
    // The card's own address is the guest's, since the host has none there.
    let guest = network.connect("own", CARD).expect("a port");
    link.0.borrow_mut().coming.push_back(frame(CARD, FAR, 60));
    own.0.borrow_mut().coming.push_back(frame(CARD, FAR, 61));
    network.poll(0, 64, quiet);
    assert_eq!(take(&mut network, guest), Some(frame(CARD, FAR, 61)));
    assert_eq!(take(&mut network, guest), None);
    assert!(network.guest_transmit(guest, &frame(Mac::BROADCAST, CARD, 60), 0));
    network.poll(0, 64, quiet);
    assert_eq!(
        (own.0.borrow().sent.len(), link.0.borrow().sent.len()),
        (1, 0)
    );
    assert!(network.stack("own").is_none());
    assert_eq!(network.cards().count(), 2);
}

#[test]
fn what_the_host_sends_leaves_with_the_next_poll() {
    let (mut network, card) = lab();
    network.poll(0, 64, quiet);
    let stack = network.stack("lan").expect("an address");
    let socket = stack.open_udp(5, 4, 1000).expect("opens");
    let to = "10.0.0.9:7".parse().expect("is one");
    stack.send_udp(socket, to, b"x").expect("room");
    network.poll(1000, 64, quiet);
    let sent = card.0.borrow().sent.clone();
    assert_eq!(
        sent[0][..14],
        [&Mac::BROADCAST.0[..], &CARD.0, &[8, 6]].concat()
    );
}
