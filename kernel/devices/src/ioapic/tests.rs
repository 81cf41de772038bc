//! The I/O APIC as its data sheet tells and as Linux uses it.

use super::IoApic;
use super::spec::*;
use crate::message::{DeliveryMode, Message};
use alloc::vec::Vec;

/// The chip and what it has sent.
#[derive(Default)]
struct Bench {
    chip: IoApic,
    sent: Vec<Message>,
    refuse: bool,
}

impl Bench {
    fn read(&mut self, register: u8) -> u32 {
        self.chip.write(SELECT, register.into(), &mut |_| true);
        self.chip.read(WINDOW, 4) as u32
    }

    fn write(&mut self, register: u8, value: u32) {
        self.access(SELECT, register.into());
        self.access(WINDOW, value);
    }

    fn access(&mut self, offset: u64, value: u32) {
        let Self { chip, sent, refuse } = self;
        chip.write(offset, value.into(), &mut |m| {
            sent.push(*m);
            !*refuse
        });
    }

    fn lines(&mut self, lines: u32) {
        let Self { chip, sent, refuse } = self;
        chip.set_lines(lines, &mut |m| {
            sent.push(*m);
            !*refuse
        });
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        let Self { chip, sent, .. } = self;
        chip.end_of_interrupt(vector, &mut |m| {
            sent.push(*m);
            true
        });
    }

    /// Vectors sent since the last time.
    fn vectors(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|m| m.vector).collect()
    }
}

/// Register of a pin's low half.
const fn low(pin: u8) -> u8 {
    REDIRECTION + 2 * pin
}

#[test]
fn linux_finds_24_masked_pins() {
    let mut bench = Bench::default();
    assert_eq!(bench.read(VERSION), 0x0017_0020);
    bench.write(ID, 0x0f00_0000);
    assert_eq!(bench.read(ID), 0x0f00_0000);
    assert_eq!(bench.read(ARBITRATION), 0x0f00_0000);
    for pin in 0..24 {
        assert_eq!(bench.read(low(pin)), 0x0001_0000);
        assert_eq!(bench.read(low(pin) + 1), 0);
    }
    assert_eq!(bench.read(low(24)), 0);
    bench.write(low(24), u32::MAX);
    bench.lines(u32::MAX);
    assert_eq!(bench.vectors(), []);
}

#[test]
fn read_only_bits_stay() {
    let mut bench = Bench::default();
    bench.write(low(5), u32::MAX);
    bench.write(low(5) + 1, u32::MAX);
    assert_eq!(bench.read(low(5)), 0x0001_afff);
    assert_eq!(bench.read(low(5) + 1), 0xff00_0000);
    bench.write(VERSION, u32::MAX);
    assert_eq!(bench.read(VERSION), 0x0017_0020);
}

#[test]
fn the_timer_works_through_pin_2() {
    // timer_irq_works(): edge, active high, fixed.
    let mut bench = Bench::default();
    bench.write(low(2) + 1, 0x0300_0000);
    bench.write(low(2), 0x0830);
    for _ in 0..5 {
        bench.lines(1 << 2);
        bench.lines(0);
    }
    assert_eq!(bench.sent.len(), 5);
    let want = Message {
        vector: 0x30,
        mode: DeliveryMode::FIXED,
        level: false,
        destination: 3,
        logical: true,
    };
    assert!(bench.sent.iter().all(|m| *m == want));
}

#[test]
fn a_masked_edge_is_lost() {
    let mut bench = Bench::default();
    bench.write(low(4), 0x1_0034);
    bench.lines(1 << 4);
    bench.write(low(4), 0x0034);
    assert_eq!(bench.vectors(), []);
    bench.lines(0);
    bench.lines(1 << 4);
    assert_eq!(bench.vectors(), [0x34]);
}

#[test]
fn a_level_is_sent_again_after_its_end() {
    let mut bench = Bench::default();
    // Pin 17 is a PCI wire: level, active low.
    bench.write(low(17), 0xa051);
    assert_eq!(bench.vectors(), []);
    bench.lines(1 << 17);
    assert_eq!(bench.vectors(), [0x51]);
    assert_eq!(bench.read(low(17)), 0xe051);
    bench.end_of_interrupt(0x50);
    assert_eq!(bench.vectors(), []);
    bench.end_of_interrupt(0x51);
    assert_eq!(bench.vectors(), [0x51]);
    bench.lines(0);
    // The register of version 0x20 does the same.
    bench.access(END_OF_INTERRUPT, 0x51);
    assert_eq!(bench.vectors(), []);
    assert_eq!(bench.read(low(17)), 0xa051);
}

#[test]
fn unmasking_a_level_sends_it() {
    let mut bench = Bench::default();
    bench.lines(1 << 9);
    bench.write(low(9), 0x1_8039);
    assert_eq!(bench.vectors(), []);
    bench.write(low(9), 0x8039);
    assert_eq!(bench.vectors(), [0x39]);
    // Linux's __eoi_ioapic_pin(): through edge and back clears remote IRR.
    bench.write(low(9), 0x1_0039);
    bench.write(low(9), 0x1_8039);
    assert_eq!(bench.read(low(9)), 0x1_8039);
}

#[test]
fn a_refused_level_is_tried_again() {
    let mut bench = Bench {
        refuse: true,
        ..Bench::default()
    };
    bench.write(low(9), 0x8039);
    bench.lines(1 << 9);
    assert_eq!(bench.read(low(9)), 0x8039);
    bench.refuse = false;
    bench.sent.clear();
    bench.lines(1 << 9);
    assert_eq!(bench.vectors(), [0x39]);
    bench.lines(1 << 9);
    assert_eq!(bench.vectors(), []);
}

#[test]
fn polarity_turns_the_pin_around() {
    let mut bench = Bench::default();
    // An ISA wire as active low: it rests active, and its fall is the edge.
    bench.write(low(4), 0x2034);
    bench.lines(1 << 4);
    assert_eq!(bench.vectors(), []);
    bench.lines(0);
    assert_eq!(bench.vectors(), [0x34]);
}

#[test]
fn nmi_and_external_entries() {
    let mut bench = Bench::default();
    // Level is ignored for an NMI.
    bench.write(low(3), 0x8400);
    bench.lines(1 << 3);
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.sent[0].mode, DeliveryMode::NMI);
    assert_eq!(bench.read(low(3)), 0x8400);
    assert!(!bench.chip.passes_external());
    bench.write(low(0), 0x0700);
    assert!(bench.chip.passes_external());
    bench.write(low(0), 0x1_0700);
    assert!(!bench.chip.passes_external());
}

#[test]
fn accesses_of_other_sizes() {
    let mut bench = Bench::default();
    bench.write(low(5), 0x1_0735);
    assert_eq!(bench.chip.read(WINDOW, 1), 0x35);
    assert_eq!(bench.chip.read(WINDOW + 1, 1), 0x07);
    assert_eq!(bench.chip.read(SELECT, 4), u64::from(low(5)));
    assert_eq!(bench.chip.read(0x20, 4), 0);
}
