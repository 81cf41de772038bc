//! The 8259A as its data sheet tells and as Linux uses it.

use super::Pic;

const TIMER: u16 = 1 << 0;
const SERIAL: u16 = 1 << 4;
const CLOCK: u16 = 1 << 8;
const DISK: u16 = 1 << 14;

/// Linux's init_8259A(): vectors 0x30 and 0x38, then everything unmasked.
fn linux(auto_eoi: bool) -> Pic {
    let mut pic = Pic::new(0);
    let mode = if auto_eoi { 0x03 } else { 0x01 };
    for (port, value) in [
        (0x21, 0xff),
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, mode),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0x00),
        (0xa1, 0x00),
    ] {
        assert!(pic.write(port, value));
    }
    pic
}

fn raise(pic: &mut Pic, lines: u16) {
    pic.set_lines(0);
    pic.set_lines(lines);
}

#[test]
fn a_line_high_from_the_start_makes_no_request() {
    let mut pic = Pic::new(TIMER | CLOCK);
    pic.write(0x21, 0x00);
    pic.set_lines(TIMER | CLOCK);
    assert_eq!(pic.read(0x20), Some(0x00));
    raise(&mut pic, TIMER);
    assert_eq!(pic.acknowledge(), 0x08);
}

#[test]
fn linux_finds_the_chips() {
    // probe_8259A(): the mask register keeps what is written, initialized or not.
    let mut pic = Pic::new(0);
    pic.write(0xa1, 0xff);
    pic.write(0x21, 0xfb);
    assert_eq!(pic.read(0x21), Some(0xfb));
    assert_eq!(pic.read(0xa1), Some(0xff));
    assert_eq!(pic.read(0x22), None);
    assert_eq!(pic.read(0x4d2), None);
    assert!(!pic.write(0x4d2, 0) && !pic.write(0xa2, 0));
}

#[test]
fn interrupts_nest_by_priority() {
    let mut pic = linux(false);
    assert!(!pic.interrupt());
    pic.set_lines(SERIAL);
    assert!(pic.interrupt());
    assert_eq!(pic.acknowledge(), 0x34);
    // The edge is used up, and its own level blocks it until the end of interrupt.
    assert!(!pic.interrupt());
    pic.set_lines(SERIAL | TIMER);
    assert_eq!(pic.acknowledge(), 0x30);
    // i8259A_irq_real(): the in-service register.
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), Some(0x11));
    pic.write(0x20, 0x0a);
    assert_eq!(pic.read(0x20), Some(0x00));
    // A lower one waits for both.
    pic.set_lines(SERIAL | TIMER | 1 << 7);
    assert!(!pic.interrupt());
    pic.write(0x20, 0x60);
    assert!(!pic.interrupt());
    pic.write(0x20, 0x64);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn the_second_chip_comes_through_the_first() {
    let mut pic = linux(false);
    pic.set_lines(DISK);
    assert_eq!(pic.acknowledge(), 0x3e);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), Some(0x04));
    // While it is in service a more urgent one of the second chip waits for the first chip's end of interrupt.
    pic.set_lines(DISK | CLOCK);
    assert!(!pic.interrupt());
    pic.write(0x20, 0x62);
    assert_eq!(pic.acknowledge(), 0x38);
    for (port, value) in [(0xa0, 0x60), (0xa0, 0x66), (0x20, 0x62)] {
        pic.write(port, value);
    }
    assert!(!pic.interrupt());
    raise(&mut pic, DISK);
    assert!(pic.interrupt());
}

#[test]
fn a_second_request_of_the_second_chip_is_not_lost() {
    let mut pic = linux(false);
    pic.set_lines(DISK | CLOCK);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x3e);
}

#[test]
fn the_second_chips_output_falls_with_each_acknowledgement() {
    let mut pic = linux(false);
    // With automatic end of interrupt more can be pending at once.
    for (port, value) in [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 0x02), (0xa1, 0x03)] {
        pic.write(port, value);
    }
    pic.set_lines(DISK | CLOCK);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.write(0x20, 0x62);
    assert_eq!(pic.acknowledge(), 0x3e);
}

#[test]
fn special_fully_nested_lets_the_second_chip_interrupt_itself() {
    let mut pic = linux(false);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x11)] {
        pic.write(port, value);
    }
    pic.set_lines(DISK);
    assert_eq!(pic.acknowledge(), 0x3e);
    pic.set_lines(DISK | CLOCK);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn masked_requests_wait() {
    let mut pic = linux(false);
    pic.write(0x21, 0xff);
    pic.set_lines(TIMER);
    assert!(!pic.interrupt());
    assert_eq!(pic.read(0x20), Some(0x01));
    pic.write(0x21, 0xfe);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn a_request_that_went_is_spurious() {
    let mut pic = linux(false);
    raise(&mut pic, SERIAL);
    pic.set_lines(0);
    assert!(!pic.interrupt());
    assert_eq!(pic.acknowledge(), 0x37);
    // Nothing is in service, so no end of interrupt is due.
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), Some(0x00));
}

#[test]
fn a_cascaded_request_that_went_is_spurious_on_the_second_chip() {
    let mut pic = linux(false);
    // The cascade input itself is level-triggered nowhere, so a withdrawn request must be forced.
    pic.set_lines(DISK);
    pic.slave.requests = 0;
    assert_eq!(pic.acknowledge(), 0x3f);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), Some(0x04));
}

#[test]
fn levels_request_until_they_fall() {
    let mut pic = linux(false);
    pic.write(0x4d0, 0xff);
    pic.write(0x4d1, 0xff);
    // Those that cannot be levels stay edges.
    assert_eq!(pic.read(0x4d0), Some(0xf8));
    assert_eq!(pic.read(0x4d1), Some(0xde));
    // Right at the acknowledgement it requests again.
    pic.set_lines(1 << 5);
    assert_eq!(pic.acknowledge(), 0x35);
    assert_eq!(pic.read(0x20), Some(0x20));
    pic.write(0x20, 0x20);
    pic.set_lines(1 << 9);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x39);
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
    }
    assert!(pic.interrupt());
    pic.set_lines(0);
    assert!(!pic.interrupt());
}

#[test]
fn automatic_end_of_interrupt_and_its_rotation() {
    let mut pic = linux(true);
    raise(&mut pic, SERIAL | 1 << 5);
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(pic.acknowledge(), 0x35);
    // With rotation the served input becomes the least urgent.
    pic.write(0x20, 0x80);
    raise(&mut pic, SERIAL | 1 << 5);
    assert_eq!(pic.acknowledge(), 0x34);
    raise(&mut pic, SERIAL | 1 << 5);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn priorities_rotate() {
    let mut pic = linux(false);
    // Input 4 lowest: 5 is highest.
    pic.write(0x20, 0xc4);
    raise(&mut pic, TIMER | 1 << 5);
    assert_eq!(pic.acknowledge(), 0x35);
    // Rotate on non-specific end of interrupt: now 5 is lowest, 6 highest.
    pic.write(0x20, 0xa0);
    raise(&mut pic, 1 << 5 | 1 << 6);
    assert_eq!(pic.acknowledge(), 0x36);
    // Rotate on specific end of interrupt.
    pic.write(0x20, 0xe6);
    raise(&mut pic, 1 << 6 | 1 << 7);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn special_mask_mode_lets_less_urgent_ones_through() {
    let mut pic = linux(false);
    raise(&mut pic, TIMER);
    assert_eq!(pic.acknowledge(), 0x30);
    pic.set_lines(SERIAL);
    assert!(!pic.interrupt());
    pic.write(0x21, 0x01);
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x34);
    // A non-specific end of interrupt passes over the masked one.
    pic.write(0x20, 0x20);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), Some(0x01));
}

#[test]
fn polling_acknowledges() {
    let mut pic = linux(false);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), Some(0x00));
    pic.set_lines(SERIAL | CLOCK);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), Some(0x82));
    pic.write(0xa0, 0x0c);
    assert_eq!(pic.read(0xa0), Some(0x80));
    // The poll is over: the request register again.
    assert_eq!(pic.read(0x20), Some(0x10));
}

#[test]
fn initialization_forgets_edges_and_can_be_short() {
    let mut pic = linux(false);
    pic.set_lines(SERIAL);
    for (port, value) in [(0x20, 0x12), (0x21, 0x50), (0x21, 0xef)] {
        pic.write(port, value);
    }
    assert_eq!(pic.read(0x21), Some(0xef));
    assert!(!pic.interrupt());
    raise(&mut pic, SERIAL);
    assert_eq!(pic.acknowledge(), 0x54);
}
