//! The clock as its data sheet tells and as Linux reads and sets it.

use super::spec::*;
use super::{GuestTime, NS_PER_SECOND, Rtc};
use proptest::prelude::*;

/// 2026-11-22 06:49:20 UTC, a Sunday.
const BASE: u64 = 1_795_330_160;
const MS: u64 = 1_000_000;

fn clock() -> Rtc {
    Rtc::new(BASE, 0x8000_0000, 0x4000_0000)
}

fn read(rtc: &mut Rtc, now: u64, index: u8) -> u8 {
    rtc.write_index(index);
    rtc.read(GuestTime(now))
}

fn write(rtc: &mut Rtc, now: u64, index: u8, value: u8) {
    rtc.write_index(index);
    rtc.write(GuestTime(now), value);
}

/// Century, year, month, day, weekday, hour, minute, second.
fn show(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, now, index))
}

#[test]
fn linux_reads_the_time_outside_of_updates() {
    let mut rtc = clock();
    // mc146818_avoid_UIP(): seconds, update bit, time, update bit, seconds.
    let now = 300 * MS;
    assert_eq!(read(&mut rtc, now, REGISTER_A) & UPDATE_IN_PROGRESS, 0);
    assert_eq!(
        show(&mut rtc, now),
        [0x20, 0x26, 0x11, 0x22, 1, 0x06, 0x49, 0x20]
    );
    // An update begins 2228 µs before the second ends.
    let update = NS_PER_SECOND - UPDATE_NS;
    assert_eq!(read(&mut rtc, update - 1, REGISTER_A), 0x26);
    assert_eq!(read(&mut rtc, update, REGISTER_A), 0xa6);
    assert_eq!(read(&mut rtc, NS_PER_SECOND - 1, 0), 0x20);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, REGISTER_A), 0x26);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, 0), 0x21);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, REGISTER_D), 0x80);
}

#[test]
fn linux_sets_the_time() {
    let mut rtc = clock();
    // mc146818_set_time(): SET, divider reset, registers, then both back.
    let now = 10_400 * MS;
    write(&mut rtc, now, REGISTER_B, 0x82);
    write(&mut rtc, now, REGISTER_A, 0x76);
    for (index, value) in [
        (9, 0x28),
        (8, 0x02),
        (7, 0x28),
        (4, 0x23),
        (2, 0x59),
        (0, 0x59),
        (0x32, 0x20),
    ] {
        write(&mut rtc, now, index, value);
    }
    // It stands, and no update can disturb it.
    assert_eq!(show(&mut rtc, now + 5000 * MS)[5..], [0x23, 0x59, 0x59]);
    let start = now + 5000 * MS;
    write(&mut rtc, start, REGISTER_B, 0x02);
    assert_eq!(read(&mut rtc, start + 5000 * MS, 0), 0x59);
    let start = start + 5000 * MS;
    write(&mut rtc, start, REGISTER_A, 0x26);
    // The first update comes half a second later: the leap day begins.
    assert_eq!(
        show(&mut rtc, start + 500 * MS - 1)[..4],
        [0x20, 0x28, 0x02, 0x28]
    );
    let leap_day = [0x20, 0x28, 0x02, 0x29, 2, 0, 0, 0];
    assert_eq!(show(&mut rtc, start + 500 * MS), leap_day);
    assert_eq!(show(&mut rtc, start + 1500 * MS)[7], 1);
}

#[test]
fn formats_change_what_is_shown() {
    let mut rtc = Rtc::new(BASE + 7 * 3600, 0, 0);
    write(&mut rtc, 0, REGISTER_B, 0x06);
    assert_eq!(show(&mut rtc, 0), [20, 26, 11, 22, 1, 13, 49, 20]);
    write(&mut rtc, 0, REGISTER_B, 0x04);
    assert_eq!(read(&mut rtc, 0, 4), 0x81);
    write(&mut rtc, 0, REGISTER_B, 0x00);
    assert_eq!(read(&mut rtc, 0, 4), 0x81);
    // Midnight is 12 AM, noon 12 PM.
    for (hour, shown) in [(0, 0x12), (11, 0x11), (12, 0x92), (23, 0x91)] {
        write(&mut rtc, 0, REGISTER_B, 0x06);
        write(&mut rtc, 0, 4, hour);
        write(&mut rtc, 0, REGISTER_B, 0x00);
        assert_eq!(read(&mut rtc, 0, 4), shown);
        write(&mut rtc, 0, 4, shown);
        assert_eq!(read(&mut rtc, 0, 4), shown);
    }
}

#[test]
fn setting_keeps_the_phase_and_a_wrong_weekday() {
    let mut rtc = clock();
    let now = 300 * MS;
    write(&mut rtc, now, 6, 5);
    write(&mut rtc, now, 0, 0x58);
    assert_eq!(show(&mut rtc, 999 * MS)[4..], [5, 0x06, 0x49, 0x58]);
    assert_eq!(read(&mut rtc, 1000 * MS, 0), 0x59);
    assert_eq!(show(&mut rtc, 86_400_000 * MS)[4], 6);
}

#[test]
fn the_update_interrupt_comes_each_second() {
    let mut rtc = clock();
    write(&mut rtc, 100, REGISTER_B, 0x12);
    assert_eq!(rtc.deadline(), Some(GuestTime(NS_PER_SECOND)));
    rtc.advance(GuestTime(NS_PER_SECOND - 1));
    assert!(!rtc.interrupt());
    rtc.advance(GuestTime(NS_PER_SECOND));
    assert!(rtc.interrupt());
    // The line stays until register C is read.
    assert_eq!(rtc.deadline(), None);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, REGISTER_C) & 0x90, 0x90);
    assert!(!rtc.interrupt());
    assert_eq!(read(&mut rtc, NS_PER_SECOND, REGISTER_C), 0);
    assert_eq!(rtc.deadline(), Some(GuestTime(2 * NS_PER_SECOND)));
    // SET switches it off.
    write(&mut rtc, NS_PER_SECOND, REGISTER_B, 0x92);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, REGISTER_B), 0x82);
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn the_periodic_interrupt_has_the_chosen_rate() {
    let mut rtc = clock();
    for (rate, hz) in [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)] {
        write(&mut rtc, 0, REGISTER_A, 0x20 | rate);
        write(&mut rtc, 0, REGISTER_B, 0x42);
        let period = rtc.deadline().unwrap().0;
        assert_eq!(period, NS_PER_SECOND.div_ceil(hz));
    }
    rtc.advance(GuestTime(3600 * NS_PER_SECOND));
    assert!(rtc.interrupt());
    assert_eq!(read(&mut rtc, 3600 * NS_PER_SECOND, REGISTER_C), 0xd0);
    assert!(rtc.deadline().unwrap() > GuestTime(3600 * NS_PER_SECOND));
    write(&mut rtc, 3600 * NS_PER_SECOND, REGISTER_A, 0x20);
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn the_alarm_rings_at_its_time_and_every_time_it_matches() {
    let mut rtc = clock();
    for (index, value) in [(5, 0x06), (3, 0x50), (1, 0x05), (REGISTER_B, 0x22)] {
        write(&mut rtc, 0, index, value);
    }
    // 06:49:20 → 06:50:05.
    assert_eq!(rtc.deadline(), Some(GuestTime(45 * NS_PER_SECOND)));
    rtc.advance(GuestTime(45 * NS_PER_SECOND));
    assert!(rtc.interrupt());
    assert_eq!(read(&mut rtc, 45 * NS_PER_SECOND, REGISTER_C), 0xf0);
    let day = 24 * 3600;
    assert_eq!(rtc.deadline(), Some(GuestTime((45 + day) * NS_PER_SECOND)));
    // Every hour at 50:05, every minute at :05, every second.
    for (index, seconds) in [(5, 3600), (3, 60), (1, 1)] {
        write(&mut rtc, 45 * NS_PER_SECOND, index, 0xff);
        assert_eq!(
            rtc.deadline(),
            Some(GuestTime((45 + seconds) * NS_PER_SECOND))
        );
    }
    write(&mut rtc, 45 * NS_PER_SECOND, 5, 0x24);
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn memory_sizes_are_in_the_cmos() {
    let mut rtc = clock();
    let word = |rtc: &mut Rtc, at| u16::from_le_bytes([read(rtc, 0, at), read(rtc, 0, at + 1)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 0xffff);
    assert_eq!(word(&mut rtc, 0x30), 0xffff);
    assert_eq!(word(&mut rtc, 0x34), 0x7f00);
    assert_eq!(word(&mut rtc, 0x5b), 0x4000);
    let sum: u16 = (0x10..0x2e)
        .map(|at| u16::from(read(&mut rtc, 0, at)))
        .sum();
    assert_eq!(word(&mut rtc, 0x2e).swap_bytes(), sum);
    // 32 MiB: 31 744 KiB above the first, 256 blocks above the sixteenth.
    let mut small = Rtc::new(BASE, 32 << 20, 0);
    assert_eq!(word(&mut small, 0x17), 31_744);
    assert_eq!(word(&mut small, 0x34), 256);
}

#[test]
fn other_memory_keeps_what_is_written_and_a_reset_leaves_it() {
    let mut rtc = clock();
    write(&mut rtc, 0, SHUTDOWN, 0x0a);
    write(&mut rtc, 0, 0x7f, 0x5a);
    write(&mut rtc, 0, REGISTER_B, 0x72);
    rtc.write_index(0x80);
    assert!(!rtc.nmi_enabled());
    rtc.reset(GuestTime(NS_PER_SECOND));
    assert!(rtc.nmi_enabled() && !rtc.interrupt());
    assert_eq!(rtc.deadline(), None);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, SHUTDOWN), 0x0a);
    assert_eq!(read(&mut rtc, NS_PER_SECOND, 0xff), 0x5a);
    assert_eq!(show(&mut rtc, NS_PER_SECOND)[5..], [0x06, 0x49, 0x21]);
}

#[test]
fn known_dates() {
    for (second, want) in [
        (0, [0x19, 0x70, 1, 1, 5]),
        (951_782_400, [0x20, 0x00, 0x02, 0x29, 3]),
        (951_868_800, [0x20, 0x00, 0x03, 0x01, 4]),
        (4_102_444_800, [0x21, 0x00, 0x01, 0x01, 6]),
        (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2]),
        (253_402_300_799, [0x99, 0x99, 0x12, 0x31, 6]),
    ] {
        assert_eq!(show(&mut Rtc::new(second, 0, 0), 0)[..5], want);
    }
    // What cannot be shown is the last second of the year 9999.
    assert_eq!(show(&mut Rtc::new(u64::MAX, 0, 0), 0)[7], 0x59);
}

proptest! {
    #[test]
    fn a_set_time_is_the_time_read(second in 0..253_402_300_800u64, control in 0..4u8) {
        let mut shown = Rtc::new(second, 0, 0);
        write(&mut shown, 0, REGISTER_B, control << 1);
        let mut set = Rtc::new(0, 0, 0);
        write(&mut set, 0, REGISTER_B, 0x80 | control << 1);
        for index in [0x32, 9, 8, 7, 6, 4, 2, 0] {
            let value = read(&mut shown, 0, index);
            write(&mut set, 0, index, value);
        }
        write(&mut set, 0, REGISTER_B, control << 1);
        prop_assert_eq!((set.base, set.weekday_shift), (second as i64, 0));
    }

    #[test]
    fn an_alarm_is_the_first_match(
        after in 0..200_000i64, hour in 0..26u8, minute in 0..62u8, second in 0..62u8, any in 0..8u8,
    ) {
        use super::calendar::{Alarm, Format};
        let pick = |bit: u8, value: u8| if any & bit != 0 { 0xff } else { value };
        let bytes = [pick(1, hour), pick(2, minute), pick(4, second)];
        let alarm = Alarm::new(bytes, Format { binary: true, hours_24: true });
        let matches = |s: &i64| {
            let time = [s / 3600 % 24, s / 60 % 60, s % 60];
            time.iter().zip(bytes).all(|(t, b)| b == 0xff || *t == i64::from(b))
        };
        prop_assert_eq!(alarm.next_after(after), (after + 1..after + 86_402).find(matches));
    }
}
