//! The 8254 as its data sheet draws it and as Linux uses it.

use super::spec::*;
use super::{CLOCK, GuestTime, Pit};

/// The first instant of a tick.
fn at(tick: u64) -> GuestTime {
    CLOCK.instant_of(tick).unwrap()
}

/// Writes a control word and a two-byte count to a counter at `tick`.
fn program(pit: &mut Pit, tick: u64, control: u8, count: u16) {
    let port = COUNTER_PORT + u16::from(control >> 6);
    pit.write(at(tick), CONTROL_PORT, control);
    for byte in count.to_le_bytes() {
        pit.write(at(tick), port, byte);
    }
}

fn latched(pit: &mut Pit, tick: u64, counter: u8) -> u16 {
    let port = COUNTER_PORT + u16::from(counter);
    pit.write(at(tick), CONTROL_PORT, counter << 6);
    let low = pit.read(at(tick + 500), port);
    u16::from_le_bytes([low, pit.read(at(tick + 500), port)])
}

/// The output of counter 0 over some ticks, as text.
fn wave(pit: &Pit, ticks: core::ops::Range<u64>) -> alloc::string::String {
    ticks
        .map(|t| {
            if pit.counters[0].output(t as i64) {
                'H'
            } else {
                'L'
            }
        })
        .collect()
}

#[test]
fn linux_calibrates_against_channel_2() {
    // quick_pit_calibrate() and pit_calibrate_tsc(): gate up, speaker off, mode 0, wait for OUT2.
    let mut pit = Pit::default();
    let start = at(1000);
    let control = pit.read_control_b(start) & !0x02 | GATE_2;
    pit.write_control_b(start, control);
    // 50 ms.
    let latch = 59_659;
    program(&mut pit, 1000, 0xb0, latch);
    let end = 1001 + u64::from(latch);
    assert_eq!(pit.read_control_b(at(end - 1)) & OUTPUT_2, 0);
    assert_eq!(pit.read_control_b(at(end)) & OUTPUT_2, OUTPUT_2);
    let measured = at(end).since(start);
    assert!((49_999_000..50_002_000).contains(&measured), "{measured}");
    // quick_pit_calibrate() reads the count without latching it.
    program(&mut pit, 100_000, 0xb0, 0xffff);
    let msb = |pit: &mut Pit, tick| {
        pit.read(at(tick), 0x42);
        pit.read(at(tick), 0x42)
    };
    assert_eq!(msb(&mut pit, 100_002), 0xff);
    assert_eq!(msb(&mut pit, 100_001 + 0x100), 0xfe);
    assert_eq!(msb(&mut pit, 100_001 + 0x2ff), 0xfd);
}

#[test]
fn mode_0_counts_once_and_the_gate_holds_it() {
    let mut pit = Pit::default();
    program(&mut pit, 10, 0x30, 4);
    // N + 1 clocks behind the write.
    assert_eq!(wave(&pit, 10..18), "LLLLLHHH");
    assert_eq!(pit.deadline(), Some(at(15)));
    assert!(!pit.advance(GuestTime(at(15).0 - 1)));
    assert!(pit.advance(at(15)));
    assert_eq!(pit.deadline(), None);
    assert_eq!(latched(&mut pit, 17, 0), 0xfffe);

    // Counter 2: the gate interrupts the count.
    pit.write_control_b(at(2000), GATE_2);
    program(&mut pit, 2000, 0xb0, 1000);
    pit.write_control_b(at(2101), 0);
    assert_eq!(latched(&mut pit, 2900, 2), 900);
    pit.write_control_b(at(4000), GATE_2);
    assert_eq!(pit.read_control_b(at(4899)) & OUTPUT_2, 0);
    assert_eq!(pit.read_control_b(at(4900)) & OUTPUT_2, OUTPUT_2);
}

#[test]
fn the_first_byte_stops_mode_0() {
    let mut pit = Pit::default();
    program(&mut pit, 10, 0x30, 4);
    pit.write(at(12), COUNTER_PORT, 9);
    assert_eq!(wave(&pit, 12..40), "L".repeat(28));
    assert_eq!(pit.deadline(), None);
    pit.write(at(40), COUNTER_PORT, 0);
    assert_eq!(pit.deadline(), Some(at(50)));
}

#[test]
fn mode_1_is_started_by_the_gate_again_and_again() {
    let mut pit = Pit::default();
    program(&mut pit, 10, 0xb2, 3);
    let out = |pit: &Pit, tick| pit.read_control_b(at(tick)) & OUTPUT_2 != 0;
    assert!(out(&pit, 100));
    pit.write_control_b(at(100), GATE_2);
    let wave: alloc::vec::Vec<bool> = (100..106).map(|t| out(&pit, t)).collect();
    assert_eq!(wave, [true, false, false, false, true, true]);
    // Retriggered before its end, it starts over.
    pit.write_control_b(at(200), 0);
    pit.write_control_b(at(200), GATE_2);
    pit.write_control_b(at(202), 0);
    pit.write_control_b(at(202), GATE_2);
    assert!(!out(&pit, 205) && out(&pit, 206));
}

#[test]
fn mode_2_divides_and_takes_a_new_count_at_the_periods_end() {
    let mut pit = Pit::default();
    program(&mut pit, 9, 0x34, 4);
    assert_eq!(wave(&pit, 9..22), "HHHHLHHHLHHHL");
    assert_eq!(pit.deadline(), Some(at(14)));
    assert!(!pit.advance(at(13)));
    assert!(pit.advance(at(14)));
    assert_eq!(pit.deadline(), Some(at(18)));
    let counts: alloc::vec::Vec<u16> = (20..26).map(|t| latched(&mut pit.clone(), t, 0)).collect();
    assert_eq!(counts, [2, 1, 4, 3, 2, 1]);
    // The new count comes into force at tick 30.
    assert!(pit.advance(at(28)));
    for byte in [6, 0] {
        pit.write(at(28), COUNTER_PORT, byte);
    }
    assert_eq!(pit.deadline(), Some(at(30)));
    assert!(pit.advance(at(30)));
    assert_eq!(pit.deadline(), Some(at(36)));
}

#[test]
fn a_slept_through_day_is_one_edge_and_keeps_the_phase() {
    let mut pit = Pit::default();
    program(&mut pit, 0, 0x34, 11_932);
    let day = 24 * 3600 * 1_193_182;
    assert!(pit.advance(at(day)));
    let rising = pit.deadline().unwrap();
    assert!(rising > at(day));
    assert_eq!((CLOCK.ticks_at(rising) - 1) % 11_932, 0);
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut pit = Pit::default();
    program(&mut pit, 9, 0x36, 4);
    assert_eq!(wave(&pit, 10..22), "HHLLHHLLHHLL");
    program(&mut pit, 99, 0x36, 5);
    assert_eq!(wave(&pit, 100..110), "HHHLLHHHLL");
    let counts: alloc::vec::Vec<u16> = (100..106)
        .map(|t| latched(&mut pit.clone(), t, 0))
        .collect();
    assert_eq!(counts, [4, 2, 0, 4, 2, 4]);
    // A new count in the high half takes over at its end.
    pit.advance(at(105));
    for byte in [8, 0] {
        pit.write(at(105), COUNTER_PORT, byte);
    }
    assert_eq!(pit.deadline(), Some(at(108)));
    assert!(!pit.advance(at(108)));
    assert_eq!(wave(&pit, 108..121), "LLLLHHHHLLLLH");
    assert_eq!(pit.deadline(), Some(at(112)));
}

#[test]
fn modes_4_and_5_strobe_once() {
    let mut pit = Pit::default();
    program(&mut pit, 9, 0x38, 3);
    assert_eq!(wave(&pit, 9..18), "HHHHLHHHH");
    assert_eq!(pit.deadline(), Some(at(14)));
    program(&mut pit, 20, 0xba, 3);
    pit.write_control_b(at(50), GATE_2);
    let low = |tick| pit.read_control_b(at(tick)) & OUTPUT_2 == 0;
    assert_eq!(
        (50..60).filter(|t| low(*t)).collect::<alloc::vec::Vec<_>>(),
        [54]
    );
}

#[test]
fn counts_can_be_decimal_and_single_bytes() {
    let mut pit = Pit::default();
    program(&mut pit, 9, 0x35, 0x1000);
    assert_eq!(latched(&mut pit, 11, 0), 0x0999);
    // Zero is the longest count: 10 000.
    program(&mut pit, 1000, 0x31, 0);
    assert_eq!(pit.deadline(), Some(at(11_001)));
    pit.write(at(2000), CONTROL_PORT, 0x14);
    pit.write(at(2000), COUNTER_PORT, 100);
    assert_eq!(pit.deadline(), Some(at(2101)));
    assert_eq!(pit.read(at(2011), COUNTER_PORT), 90);
    pit.write(at(3000), CONTROL_PORT, 0x24);
    pit.write(at(3000), COUNTER_PORT, 1);
    assert_eq!(pit.deadline(), Some(at(3257)));
}

#[test]
fn read_back_latches_status_and_count_once() {
    let mut pit = Pit::default();
    program(&mut pit, 9, 0x34, 100);
    pit.write(at(9), CONTROL_PORT, 0xe2);
    // Null count: not loaded before the next clock.
    assert_eq!(pit.read(at(9), COUNTER_PORT), 0xf4);
    pit.write(at(20), CONTROL_PORT, 0xc2);
    pit.write(at(30), CONTROL_PORT, 0xc2);
    assert_eq!(pit.read(at(40), COUNTER_PORT), 0xb4);
    assert_eq!(pit.read(at(40), COUNTER_PORT), 90);
    assert_eq!(pit.read(at(40), COUNTER_PORT), 0);
    // The latch is used up: the running count again.
    assert_eq!(pit.read(at(40), COUNTER_PORT), 70);
    assert_eq!(pit.read(at(0), CONTROL_PORT), 0xff);
}

#[test]
fn an_illegal_count_makes_no_interrupts() {
    for control in [0x34, 0x36] {
        let mut pit = Pit::default();
        program(&mut pit, 9, control, 1);
        assert_eq!(pit.deadline(), None);
        assert!(!pit.advance(at(1_000_000)));
        assert_eq!(wave(&pit, 1_000_000..1_000_002), "HH");
    }
}

#[test]
fn refresh_toggles_every_15_microseconds() {
    let pit = Pit::default();
    let toggles = (0..1_000_000u64)
        .step_by(1000)
        .map(|ns| pit.read_control_b(GuestTime(ns)) & REFRESH)
        .collect::<alloc::vec::Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count();
    assert_eq!(toggles, 66);
}
