//! Where frames go, what is dropped, and that no buffer is lost.

use alloc::vec;

use super::*;

const OUTSIDE: usize = 0;
const HOST: usize = 1;
const ONE: usize = 2;
const TWO: usize = 3;

/// A card, the host and two guests.
struct Lab {
    switch: Switch,
    pool: Pool,
    now: u64,
}

fn mac(number: usize) -> Mac {
    Mac([2, 0, 0, 0, (number >> 8) as u8, number as u8])
}

impl Lab {
    fn new() -> Self {
        let mut switch = Switch::new();
        assert_eq!(switch.add(Side::Outside), Some(PortId(OUTSIDE)));
        for port in [HOST, ONE, TWO] {
            assert_eq!(switch.add(Side::Inside(mac(port))), Some(PortId(port)));
        }
        let mut pool = Pool::new();
        pool.grow_to(1024);
        Self {
            switch,
            pool,
            now: 0,
        }
    }

    fn send_bytes(&mut self, from: usize, bytes: &[u8]) {
        let frame = self.pool.copy(bytes).expect("a buffer");
        self.switch
            .forward(PortId(from), frame, &mut self.pool, self.now);
    }

    fn send(&mut self, from: usize, destination: Mac, source: Mac) {
        let mut bytes = [destination.0, source.0].concat();
        bytes.extend([0x88, 0xb5, 1]);
        self.send_bytes(from, &bytes);
    }

    /// The ports that got something, each once for each frame; they are emptied.
    fn arrived(&mut self) -> Vec<usize> {
        let mut ports = vec![];
        for port in [OUTSIDE, HOST, ONE, TWO] {
            while let Some(frame) = self.switch.pop(PortId(port)) {
                assert!((15..=60).contains(&self.pool.bytes(&frame).len()));
                self.pool.give_back(frame);
                ports.push(port);
            }
        }
        assert_eq!(self.pool.free(), 1024, "a buffer is lost");
        ports
    }

    fn counters(&self, port: usize) -> PortCounters {
        *self.switch.counters(PortId(port))
    }
}

/// Somebody outside.
const FAR: usize = 900;

#[test]
fn frames_go_where_their_address_is() {
    let mut lab = Lab::new();
    for (from, to, expected) in [
        (ONE, mac(TWO), vec![TWO]),
        (ONE, mac(HOST), vec![HOST]),
        (ONE, mac(FAR), vec![OUTSIDE]),
        (ONE, Mac::BROADCAST, vec![OUTSIDE, HOST, TWO]),
        (ONE, Mac([1, 0, 0x5e, 0, 0, 1]), vec![OUTSIDE, HOST, TWO]),
        (ONE, mac(ONE), vec![]),
        (HOST, mac(ONE), vec![ONE]),
    ] {
        lab.send(from, to, mac(from));
        assert_eq!(lab.arrived(), expected, "{from} to {to}");
    }
    for (to, expected) in [
        (mac(TWO), vec![TWO]),
        (mac(FAR + 1), vec![]),
        (Mac::BROADCAST, vec![HOST, ONE, TWO]),
    ] {
        lab.send(OUTSIDE, to, mac(FAR));
        assert_eq!(lab.arrived(), expected, "from outside to {to}");
    }
    assert_eq!(lab.counters(OUTSIDE).nowhere, 1);
    assert_eq!(lab.counters(ONE).nowhere, 1);
}

#[test]
fn nobody_takes_another_ports_address() {
    let mut lab = Lab::new();
    for from in [OUTSIDE, HOST, TWO] {
        lab.send(from, Mac::BROADCAST, mac(ONE));
        assert_eq!(lab.arrived(), vec![]);
        assert_eq!(lab.counters(from).foreign_source, 1);
    }
    lab.send(OUTSIDE, mac(ONE), mac(FAR));
    assert_eq!(lab.arrived(), vec![ONE]);
}

#[test]
fn addresses_behind_a_guest_are_learned_and_forgotten() {
    let mut lab = Lab::new();
    lab.send(ONE, mac(FAR), mac(50));
    assert_eq!(lab.arrived(), vec![OUTSIDE]);
    lab.send(OUTSIDE, mac(50), mac(FAR));
    assert_eq!(lab.arrived(), vec![ONE]);
    lab.now = AGE_NS - 1;
    lab.send(TWO, mac(50), mac(TWO));
    assert_eq!(lab.arrived(), vec![ONE]);
    lab.now = AGE_NS;
    lab.send(HOST, mac(50), mac(HOST));
    assert_eq!(lab.arrived(), vec![OUTSIDE]);
    lab.send(OUTSIDE, mac(50), mac(FAR));
    assert_eq!(lab.arrived(), vec![]);
    assert_eq!(lab.switch.learned(), 0);
    // It speaks again, elsewhere.
    lab.send(TWO, mac(FAR), mac(50));
    lab.send(HOST, mac(50), mac(HOST));
    assert_eq!(lab.arrived(), vec![OUTSIDE, TWO]);
    // And moves out.
    lab.send(OUTSIDE, mac(HOST), mac(50));
    lab.send(HOST, mac(50), mac(HOST));
    assert_eq!(lab.arrived(), vec![OUTSIDE, HOST]);
    assert_eq!(lab.switch.learned(), 0);
}

#[test]
fn nobody_fills_the_table() {
    let mut lab = Lab::new();
    let room = lab.switch.learned.capacity();
    lab.send(TWO, mac(FAR), mac(60));
    for number in 1000..3000 {
        lab.now += 1;
        lab.send(OUTSIDE, mac(ONE), mac(number));
        lab.send(ONE, mac(FAR), mac(number + 5000));
        lab.arrived();
    }
    assert_eq!(lab.switch.learned(), LEARNED_PER_PORT + 1);
    // The last ones are known, and the quiet neighbour too.
    lab.send(OUTSIDE, mac(2999 + 5000 - LEARNED_PER_PORT + 1), mac(FAR));
    lab.send(OUTSIDE, mac(60), mac(FAR));
    assert_eq!(lab.arrived(), vec![ONE, TWO]);
    assert_eq!(lab.switch.learned.capacity(), room, "nothing is allocated");
}

#[test]
fn what_is_no_frame_goes_nowhere() {
    let mut lab = Lab::new();
    lab.send_bytes(ONE, &[]);
    lab.send_bytes(ONE, &[2; FRAME_MIN - 1]);
    lab.send_bytes(ONE, &[2; FRAME_MAX + 1]);
    lab.send(ONE, mac(TWO), Mac::BROADCAST);
    lab.send(ONE, mac(TWO), Mac([0; 6]));
    assert_eq!(lab.arrived(), vec![]);
    assert_eq!(lab.counters(ONE).malformed, 5);
    assert_eq!(lab.counters(ONE).received, 0);
}

#[test]
fn a_flood_harms_only_its_target() {
    let mut lab = Lab::new();
    for _ in 0..QUEUE_FRAMES + 50 {
        lab.send(OUTSIDE, mac(ONE), mac(FAR));
    }
    lab.send(OUTSIDE, mac(TWO), mac(FAR));
    lab.send(OUTSIDE, Mac::BROADCAST, mac(FAR));
    let arrived = lab.arrived();
    let of = |port| arrived.iter().filter(|p| **p == port).count();
    assert_eq!((of(ONE), of(TWO), of(HOST)), (QUEUE_FRAMES, 2, 1));
    assert_eq!(lab.counters(ONE).full, 51);
    assert_eq!(lab.counters(TWO).full, 0);
}

#[test]
fn a_port_that_is_off_is_not_there() {
    let mut lab = Lab::new();
    lab.send(OUTSIDE, mac(ONE), mac(FAR));
    lab.send(ONE, mac(FAR), mac(70));
    lab.switch.set_active(PortId(ONE), false, &mut lab.pool);
    assert_eq!(lab.arrived(), vec![OUTSIDE]);
    assert_eq!(lab.switch.learned(), 0);
    lab.send(ONE, Mac::BROADCAST, mac(ONE));
    lab.send(OUTSIDE, mac(ONE), mac(FAR));
    assert_eq!(lab.arrived(), vec![]);
    lab.send(OUTSIDE, Mac::BROADCAST, mac(FAR));
    assert_eq!(lab.arrived(), vec![HOST, TWO]);
    // Its address can be outside now: with its twin.
    lab.send(OUTSIDE, mac(TWO), mac(ONE));
    lab.send(TWO, mac(ONE), mac(TWO));
    assert_eq!(lab.arrived(), vec![OUTSIDE, TWO]);
    assert_eq!(lab.switch.add(Side::Inside(mac(ONE))), Some(PortId(ONE)));
    assert_eq!(lab.switch.add(Side::Inside(mac(ONE))), None, "twice");
    lab.send(OUTSIDE, mac(ONE), mac(FAR));
    assert_eq!(lab.arrived(), vec![ONE]);
}

#[test]
fn a_switch_without_a_card_joins_its_guests() {
    let mut switch = Switch::new();
    let mut pool = Pool::new();
    pool.grow_to(4);
    let one = switch.add(Side::Inside(mac(1))).expect("a port");
    let two = switch.add(Side::Inside(mac(2))).expect("a port");
    assert_eq!(switch.add(Side::Inside(mac(2))), None, "an address twice");
    let bytes = [mac(2).0, mac(1).0, [8, 0, 0, 0, 0, 0]].concat();
    let frame = pool.copy(&bytes).expect("a buffer");
    switch.forward(one, frame, &mut pool, 0);
    let frame = switch.pop(two).expect("arrives");
    assert_eq!(pool.bytes(&frame), bytes);
    pool.give_back(frame);
    let lost = pool.copy(&[mac(9).0, mac(1).0, [8, 0, 0, 0, 0, 0]].concat());
    switch.forward(one, lost.expect("a buffer"), &mut pool, 0);
    assert_eq!((switch.counters(one).nowhere, pool.free()), (1, 4));
}
