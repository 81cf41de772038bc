//! Each family's driver against its card, which misbehaves too.

use std::vec::Vec;

use super::super::fake::{Card, Faults, Handle, MAC};
use super::registers as reg;
use super::*;

const FAMILIES: [Family; 3] = [Family::E1000, Family::E1000e, Family::Igb];

type Driver = Intel<Handle, Handle>;

fn try_start(family: Family, faults: Faults) -> (Result<Driver, StartError>, Handle) {
    let card = Card::insert(family, MAC);
    card.0.borrow_mut().faults = faults;
    (Intel::new(family, card.clone(), card.clone()), card)
}

fn started(family: Family) -> (Driver, Handle) {
    let (driver, card) = try_start(family, Faults::default());
    (driver.expect("it starts"), card)
}

/// A frame to `to` that says its number.
fn frame(to: Mac, number: usize, bytes: usize) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.extend((0..bytes - frame.len()).map(|at| (at ^ number) as u8));
    frame
}

fn receive(driver: &mut Driver) -> Option<Vec<u8>> {
    let mut buffer = [0; BUFFER_BYTES];
    match driver.receive(&mut buffer) {
        Received::Frame(length) => Some(buffer[..length].to_vec()),
        _ => None,
    }
}

#[test]
fn a_start_leaves_the_card_as_it_has_to_be() {
    for family in FAMILIES {
        let (driver, card) = started(family);
        assert_eq!(driver.mac(), MAC);
        let gigabit = Link::Up {
            speed_mbit: 1000,
            full_duplex: true,
        };
        assert_eq!(driver.link(), gigabit);
        let card = card.0.borrow();
        assert_eq!(card.get(reg::IMS), 0, "polled");
        assert_eq!(card.get(reg::MTA + 4), 0, "no groups");
        assert_eq!(card.get(reg::RAL + 8), 0, "no address of firmware");
        assert_eq!(card.get(reg::RCTL), 0x0400_8002, "{family:?}");
        assert_eq!(card.get(reg::TCTL) & 2, 2);
        assert_eq!(card.get(reg::CTRL) & 1 << 6, 1 << 6, "link up");
        assert!(!card.interrupts());
    }
}

#[test]
fn frames_pass_both_ways_in_order() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        for number in 0..1000 {
            let bytes = 60 + number % (FRAME_MAX - 59);
            let sent = frame(Mac::BROADCAST, number, bytes);
            assert!(card.0.borrow_mut().deliver(&sent), "{family:?} {number}");
            assert_eq!(
                receive(&mut driver),
                Some(sent.clone()),
                "{family:?} {number}"
            );
            assert_eq!(receive(&mut driver), None);
            assert_eq!(driver.transmit(&sent), Ok(()));
            driver.flush();
            assert_eq!(card.0.borrow_mut().wire.pop(), Some(sent));
        }
        let counters = driver.counters();
        assert_eq!(
            (counters.received_frames, counters.sent_frames),
            (1000, 1000)
        );
        assert_eq!(counters.received_bytes, counters.sent_bytes);
        assert_eq!(
            (counters.receive_drops(), counters.transmit_drops()),
            (0, 0)
        );
    }
}

#[test]
fn short_frames_are_filled_up_with_zeros() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        // The buffer held something longer before.
        for _ in 0..DESCRIPTORS {
            driver.transmit(&frame(MAC, 1, 200)).expect("is sent");
            driver.flush();
        }
        driver.transmit(&frame(MAC, 1, 20)).expect("is sent");
        driver.flush();
        let wire = card.0.borrow().wire.last().cloned().expect("left");
        assert_eq!(wire[..20], frame(MAC, 1, 20));
        assert_eq!(wire[20..], [0; 40]);
        for wrong in [0, FRAME_MIN - 1, FRAME_MAX + 1, 70_000] {
            assert_eq!(driver.transmit(&std::vec![0; wrong]), Err(NotSent::Length));
        }
        assert_eq!(driver.counters().transmit_length, 4);
    }
}

#[test]
fn frames_that_come_too_fast_are_missed_and_counted() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        let taken = (0..300)
            .filter(|n| card.0.borrow_mut().deliver(&frame(MAC, *n, 60)))
            .count();
        assert_eq!(taken, DESCRIPTORS - 1);
        // A few that were taken make room when the card is told of them.
        for number in 0..10 {
            assert_eq!(receive(&mut driver), Some(frame(MAC, number, 60)));
        }
        assert!(!card.0.borrow_mut().deliver(&frame(MAC, 300, 60)));
        driver.flush();
        assert!(card.0.borrow_mut().deliver(&frame(MAC, taken, 60)));
        for number in 10..=taken {
            assert_eq!(receive(&mut driver), Some(frame(MAC, number, 60)));
        }
        assert_eq!(driver.check(0), None);
        assert_eq!(driver.counters().missed, 301 - taken as u64);
        driver.flush();
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 7, 60)));
        assert_eq!(receive(&mut driver), Some(frame(MAC, 7, 60)));
    }
}

#[test]
fn a_bridge_takes_frames_to_others() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        let others = [
            frame(Mac([2, 0, 0, 0, 0, 7]), 0, 60),
            frame(Mac([1, 0, 0x5e, 0, 0, 1]), 0, 60),
        ];
        let taken = |_: &Driver| {
            others
                .iter()
                .filter(|frame| card.0.borrow_mut().deliver(frame))
                .count()
        };
        assert_eq!(taken(&driver), 0);
        driver.set_promiscuous(true);
        assert_eq!(taken(&driver), 2);
        driver.set_promiscuous(false);
        assert_eq!(taken(&driver), 0);
    }
}

#[test]
fn a_length_is_not_believed() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        for length in [0, 1, FRAME_MIN - 1, FRAME_MAX + 1, BUFFER_BYTES + 1, 0xffff] {
            assert!(card.0.borrow_mut().write_back(&[1; 60], length, true, 0));
            let mut buffer = [0xee; BUFFER_BYTES];
            assert_eq!(driver.receive(&mut buffer), Received::Dropped, "{length}");
            assert_eq!(buffer, [0xee; BUFFER_BYTES]);
        }
        assert_eq!(
            (driver.counters().runts, driver.counters().oversize),
            (3, 3)
        );
        assert_eq!(driver.counters().received_frames, 0);
    }
}

#[test]
fn a_frame_in_pieces_is_dropped_once() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        for last in [false, false, true] {
            assert!(card.0.borrow_mut().write_back(&[1; 500], 500, last, 0));
        }
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 3, 99)));
        let mut buffer = [0; BUFFER_BYTES];
        for _ in 0..3 {
            assert_eq!(driver.receive(&mut buffer), Received::Dropped);
        }
        assert_eq!(driver.counters().oversize, 1);
        assert_eq!(receive(&mut driver), Some(frame(MAC, 3, 99)));
    }
}

#[test]
fn frames_with_errors_are_counted_by_their_reason() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        for errors in [0x01, 0x81, 0x02, 0x04, 0x10, 0x80] {
            assert!(card.0.borrow_mut().write_back(&[1; 60], 60, true, errors));
            assert_eq!(receive(&mut driver), None);
        }
        let counters = *driver.counters();
        let expected = if family == Family::Igb {
            (0, 6)
        } else {
            (2, 4)
        };
        assert_eq!((counters.bad_crc, counters.receive_errors), expected);
        // Only advice on checksums, which their owner checks himself.
        if family != Family::Igb {
            assert!(card.0.borrow_mut().write_back(&[1; 60], 60, true, 0x60));
            assert!(receive(&mut driver).is_some());
        }
        for (register, count) in [
            (reg::CRCERRS, 5),
            (reg::RUC, 6),
            (reg::ROC, 7),
            (reg::RLEC, 8),
        ] {
            card.0.borrow_mut().set(register, count);
        }
        assert_eq!(driver.check(0), None);
        assert_eq!(driver.check(0), None, "reading clears them");
        let after = driver.counters();
        assert_eq!(after.bad_crc - counters.bad_crc, 5);
        assert_eq!((after.runts, after.oversize), (6, 7));
        assert_eq!(after.receive_errors - counters.receive_errors, 8);
    }
}

#[test]
fn a_transmitter_that_hangs_is_started_again() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        card.0.borrow_mut().faults.never_done = true;
        for number in 0..DESCRIPTORS - 1 {
            assert_eq!(driver.transmit(&frame(MAC, number, 60)), Ok(()));
        }
        assert_eq!(driver.transmit(&frame(MAC, 0, 60)), Err(NotSent::Full));
        driver.flush();
        assert_eq!(card.0.borrow().wire.len(), DESCRIPTORS - 1);
        assert_eq!(driver.transmit(&frame(MAC, 0, 60)), Err(NotSent::Full));
        assert_eq!(driver.counters().transmit_full, 2);

        assert_eq!(driver.check(5), None);
        assert_eq!(driver.check(4 + HUNG_NS), None);
        card.0.borrow_mut().faults.never_done = false;
        assert_eq!(driver.check(5 + HUNG_NS), Some(Event::Restarted));
        assert_eq!(driver.counters().restarts, 1);
        card.0.borrow_mut().wire.clear();
        driver.transmit(&frame(MAC, 7, 60)).expect("is sent");
        driver.flush();
        assert_eq!(card.0.borrow().wire, [frame(MAC, 7, 60)]);
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 8, 60)));
        assert_eq!(receive(&mut driver), Some(frame(MAC, 8, 60)));
        assert_eq!(driver.check(6 + 2 * HUNG_NS), None);
    }
}

#[test]
fn a_transmitter_that_is_only_slow_goes_on() {
    let (mut driver, card) = started(Family::E1000);
    card.0.borrow_mut().faults.never_done = true;
    for number in 0..10 {
        driver.transmit(&frame(MAC, number, 60)).expect("is sent");
        driver.flush();
        // One descriptor per check is written late.
        assert_eq!(driver.check(number as u64 * (HUNG_NS - 1)), None);
        card.0
            .borrow_mut()
            .scribble(Ring::Transmit, number, 1 << 32);
    }
    assert_eq!(driver.counters().restarts, 0);
}

#[test]
fn a_card_that_stays_hung_is_given_up() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        card.0.borrow_mut().faults.never_done = true;
        driver.transmit(&frame(MAC, 1, 60)).expect("is sent");
        driver.flush();
        assert_eq!(driver.check(0), None);
        card.0.borrow_mut().faults.reset_sticks = true;
        let Some(Event::Gone(StartError::ResetNeverEnds(_))) = driver.check(HUNG_NS) else {
            panic!("{family:?} is given up");
        };
        assert_eq!(card.0.borrow().get(reg::TCTL), 0);
        assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::Off));
        assert_eq!(receive(&mut driver), None);
        assert_eq!(driver.check(2 * HUNG_NS), None);
    }
}

#[test]
fn link_changes_are_told_and_nothing_is_sent_without() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        for round in 0..5_u64 {
            card.0.borrow_mut().set_link(false);
            assert_eq!(driver.check(round), Some(Event::Link(Link::Down)));
            assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::LinkDown));
            card.0.borrow_mut().set_link(true);
            let Some(Event::Link(link)) = driver.check(round) else {
                panic!("the link is back");
            };
            assert!(link.is_up());
        }
        assert_eq!(driver.counters().link_changes, 10);
        assert_eq!(driver.counters().transmit_link_down, 5);
        let slow = [(0, 10), (1 << 6, 100), (2 << 6, 1000), (3 << 6, 1000)];
        for (bits, speed) in slow {
            card.0.borrow_mut().set(reg::STATUS, 0x2 | bits);
            driver.check(0);
            let expected = Link::Up {
                speed_mbit: speed,
                full_duplex: false,
            };
            assert_eq!(driver.link(), expected);
        }
    }
}

#[test]
fn frames_that_wait_for_the_link_are_no_hang() {
    let (mut driver, card) = started(Family::E1000);
    card.0.borrow_mut().set_link(false);
    driver.transmit(&frame(MAC, 1, 60)).expect("is sent");
    driver.flush();
    assert_eq!(driver.check(0), Some(Event::Link(Link::Down)));
    assert_eq!(driver.check(10 * HUNG_NS), None);
    assert_eq!(driver.check(20 * HUNG_NS), None);
    assert_eq!(driver.counters().restarts, 0);
}

#[test]
fn cards_that_cannot_be_started_say_why() {
    for family in FAMILIES {
        let error = |faults| {
            let (driver, card) = try_start(family, faults);
            assert!(card.0.borrow().paused_us < 1_000_000, "bounded");
            if !faults.gone {
                assert_eq!(card.0.borrow().get(reg::TCTL), 0, "{faults:?}");
                assert_eq!(card.0.borrow().get(reg::RCTL), 0, "{faults:?}");
            }
            driver.err()
        };
        let fault = Faults::default();
        let gone = Faults {
            gone: true,
            ..fault
        };
        assert_eq!(error(gone), Some(StartError::Absent));
        let reset_sticks = Faults {
            reset_sticks: true,
            ..fault
        };
        assert_eq!(
            error(reset_sticks),
            Some(StartError::ResetNeverEnds(110_000))
        );
        let no_address = Faults {
            no_autoload: true,
            eeprom_dead: true,
            ..fault
        };
        assert_eq!(error(no_address), Some(StartError::NoAddress));
        if family == Family::Igb {
            let queue_sticks = Faults {
                queue_sticks: true,
                ..fault
            };
            assert_eq!(
                error(queue_sticks),
                Some(StartError::QueueNeverStarts(100_000))
            );
        }
        // What only hardware in a bad way does is waited for, and no more.
        let busy = Faults {
            master_sticks: true,
            ..fault
        };
        assert!(try_start(family, busy).0.is_ok());
    }
}

#[test]
fn the_address_comes_from_the_eeprom_if_it_must() {
    for family in FAMILIES {
        let faults = Faults {
            no_autoload: true,
            ..Faults::default()
        };
        let (driver, card) = try_start(family, faults);
        assert_eq!(driver.expect("it starts").mac(), MAC);
        // It is programmed, so the card knows it now.
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 1, 60)));
        let group = Card::insert(family, Mac([0x53, 1, 2, 3, 4, 5]));
        let started = Intel::new(family, group.clone(), group);
        assert_eq!(started.err(), Some(StartError::NoAddress));
    }
}

#[test]
fn a_card_that_disappears_is_noticed() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        card.0.borrow_mut().faults.counts_gone = true;
        assert_eq!(driver.check(0), None);
        card.0.borrow_mut().faults.gone = true;
        assert!(driver.take_causes().is_empty());
        assert_eq!(driver.check(0), Some(Event::Gone(StartError::Absent)));
        assert_eq!(driver.check(0), None);
        assert_eq!(driver.link(), Link::Down);
        assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::Off));
        assert_eq!(driver.counters().receive_drops(), 0);
        assert_eq!(receive(&mut driver), None);
        driver.flush();
    }
}

#[test]
fn a_muted_card_sends_nothing_ever_again() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        driver.transmit(&frame(MAC, 1, 60)).expect("is taken");
        driver.mute();
        driver.flush();
        assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::Off));
        driver.set_promiscuous(true);
        assert_eq!(driver.check(0), None);
        assert_eq!(driver.check(10 * HUNG_NS), None);
        driver.start().expect("it starts");
        driver.flush();
        assert_eq!(card.0.borrow().wire.len(), 0);
        assert_eq!(card.0.borrow().get(reg::TCTL), 0);
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 8, 60)));
        assert_eq!(receive(&mut driver), Some(frame(MAC, 8, 60)), "it receives");
    }
}

#[test]
fn a_card_that_was_muted_past_its_driver_stays_so() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        card.0.borrow_mut().set(reg::TCTL, reg::TCTL_MUTE);
        driver.transmit(&frame(MAC, 1, 60)).expect("is taken");
        driver.flush();
        assert_eq!(driver.check(0), None);
        assert_eq!(driver.check(HUNG_NS), None);
        assert_eq!(card.0.borrow().get(reg::TCTL), reg::TCTL_MUTE);
        assert_eq!(driver.counters().restarts, 0);
        assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::Off));
        assert_eq!(card.0.borrow().wire.len(), 0);
    }
}

#[test]
fn a_stopped_card_does_nothing() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        driver.transmit(&frame(MAC, 1, 60)).expect("is taken");
        driver.stop();
        driver.set_promiscuous(true);
        driver.flush();
        assert_eq!(driver.transmit(&frame(MAC, 1, 60)), Err(NotSent::Off));
        assert!(!card.0.borrow_mut().deliver(&frame(MAC, 8, 60)));
        assert_eq!(card.0.borrow().wire.len(), 0);
        assert_eq!((driver.check(0), driver.link()), (None, Link::Down));
    }
}

#[test]
fn causes_are_taken_once_and_masked() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        assert!(card.0.borrow_mut().deliver(&frame(MAC, 1, 60)));
        assert!(!card.0.borrow().interrupts(), "masked");
        driver.set_interrupts(true);
        assert!(card.0.borrow().interrupts());
        assert_eq!(driver.take_causes(), Causes::RECEIVED);
        assert!(!card.0.borrow().interrupts());
        assert!(driver.take_causes().is_empty());
        card.0.borrow_mut().set_link(false);
        assert_eq!(driver.take_causes(), Causes::LINK);
        driver.set_interrupts(false);
        card.0.borrow_mut().set_link(true);
        assert!(!card.0.borrow().interrupts());
    }
}

/// xorshift64, of which only variety is wanted.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn nothing_that_a_card_writes_leads_astray() {
    for family in FAMILIES {
        let (mut driver, card) = started(family);
        card.0.borrow_mut().faults.head = Some(0xdead_beef);
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut seen = [0_u32; 3];
        for round in 0..20_000 {
            let garbage = next(&mut state);
            let at = next(&mut state) as usize % DESCRIPTORS;
            card.0.borrow_mut().scribble(Ring::Receive, at, garbage);
            // Anything, or a whole frame of any length without an error, as the family writes it.
            let plausible = match family {
                Family::Igb => garbage & 0x0fff_0000_0000 | 0b11,
                _ => garbage & 0x0fff | 0b11 << 32,
            };
            let high = if garbage >> 63 == 0 {
                next(&mut state)
            } else {
                plausible
            };
            let here = driver.receive_next;
            card.0.borrow_mut().scribble(Ring::Receive, here, high);
            card.0.borrow_mut().scribble(Ring::Transmit, at, garbage);
            // The card is not told of these, since it would send what was scribbled.
            let sent = driver.transmit(&frame(MAC, 1, 60));
            assert!(matches!(sent, Ok(()) | Err(NotSent::Full)));
            let mut buffer = [0; BUFFER_BYTES];
            match driver.receive(&mut buffer) {
                Received::Nothing => seen[0] += 1,
                Received::Dropped => seen[1] += 1,
                Received::Frame(length) => {
                    assert!((FRAME_MIN..=FRAME_MAX).contains(&length));
                    seen[2] += 1;
                }
            }
            if round % 64 == 0 {
                driver.check(round);
                driver.receive_rest = false;
            }
            assert!(driver.receive_next < DESCRIPTORS && driver.transmit_done < DESCRIPTORS);
        }
        assert!(seen.iter().all(|count| *count > 50), "{family:?} {seen:?}");
    }
}
