//! Round trips of every entry, the sizes that matter, and bytes that are no log.

use super::super::{Encoder, MAX_ENTRY};
use super::*;
use alloc::vec;
use proptest::prelude::*;

fn any_input() -> impl Strategy<Value = Input> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        any::<u64>().prop_map(|late| Input::Time { late }),
        bytes().prop_map(Input::Console),
        (any::<u8>(), bytes()).prop_map(|(device, frame)| Input::Rx { device, frame }),
        (any::<u8>(), any::<bool>()).prop_map(|(device, up)| Input::LinkState { device, up }),
        prop::sample::select(OPERATIONS.to_vec()).prop_map(Input::Control),
    ]
}

fn any_what() -> impl Strategy<Value = What> {
    let snapshot = any::<([u64; 19], [u64; 7])>().prop_map(|(words, parts)| {
        let [icount, rip, rflags, gprs @ ..] = words;
        Box::new(Snapshot {
            parts: Parts(parts),
            registers: Registers {
                icount,
                rip,
                rflags,
                gprs: Gprs(gprs),
            },
        })
    });
    let memory = any::<[u64; 3]>().prop_map(|[first, pages, digest]| MemoryPart {
        first,
        pages,
        digest,
    });
    prop_oneof![
        (any::<u16>(), any_input()).prop_map(|(check, input)| What::Input { check, input }),
        any::<(bool, u32, u64, u64)>().prop_map(|(frames, length, digest, check)| What::Output {
            kind: if frames {
                OutputKind::Network
            } else {
                OutputKind::Console
            },
            length,
            digest,
            check,
        }),
        (
            any::<u64>(),
            prop::option::of(snapshot),
            prop::option::of(memory)
        )
            .prop_map(|(digest, snapshot, memory)| What::Check {
                digest,
                snapshot,
                memory,
            }),
        any::<[u64; 4]>().prop_map(|[digest, stop, state, memory]| What::End {
            digest,
            end: End {
                stop,
                state,
                memory,
            },
        }),
    ]
}

fn any_entry() -> impl Strategy<Value = (u64, Entry)> {
    let numbers = || prop_oneof![0..20u64, 0..100_000u64, any::<u64>()];
    let answer = prop_oneof![
        numbers().prop_map(Answer::Clock),
        numbers().prop_map(Answer::Random),
        numbers().prop_map(Answer::WallClock),
    ];
    prop_oneof![
        answer.prop_map(|answer| (0, Entry::Answer(answer))),
        (0..1000u64, numbers(), any_what()).prop_map(|(exits, after, what)| {
            (exits, Entry::Placed(Point { exits: 0, after }, what))
        }),
    ]
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    for entry in entries {
        let before = bytes.len();
        match entry {
            Entry::Answer(answer) => encoder.answer(&mut bytes, *answer),
            Entry::Placed(point, what) => encoder.placed(&mut bytes, *point, what),
        }
        assert!(bytes.len() - before <= MAX_ENTRY);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let mut decoder = Decoder::default();
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (entry, length) = decoder.next(bytes)?;
        entries.push(entry);
        bytes = &bytes[length..];
    }
    Ok(entries)
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(parts in prop::collection::vec(any_entry(), 0..40)) {
        let mut exits = 0;
        let entries: Vec<_> = parts.into_iter().map(|(delta, mut entry)| {
            exits += delta;
            if let Entry::Placed(point, _) = &mut entry {
                point.exits = exits;
            }
            entry
        }).collect();
        let bytes = encode(&entries);
        prop_assert_eq!(decode(&bytes), Ok(entries));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_have_one_encoding(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        let mut decoder = Decoder::default();
        let mut read = Vec::new();
        let mut rest = bytes.as_slice();
        while let Ok((entry, length)) = decoder.next(rest) {
            prop_assert!(length > 0 && length <= rest.len());
            read.push(entry);
            rest = &rest[length..];
        }
        prop_assert_eq!(encode(&read), &bytes[..bytes.len() - rest.len()]);
    }

    #[test]
    fn a_part_of_an_entry_is_incomplete_and_changes_nothing((exits, entry) in any_entry()) {
        let entry = match entry {
            Entry::Placed(point, what) => Entry::Placed(Point { exits, ..point }, what),
            answer => answer,
        };
        let bytes = encode(core::slice::from_ref(&entry));
        let mut decoder = Decoder::default();
        for end in 0..bytes.len() {
            prop_assert_eq!(decoder.next(&bytes[..end]), Err(DecodeError::Incomplete));
        }
        prop_assert_eq!(decoder.next(&bytes), Ok((entry, bytes.len())));
    }
}

#[test]
fn common_entries_are_short() {
    let clock = |delta| encode(&[Entry::Answer(Answer::Clock(delta))]).len();
    assert_eq!((clock(15), clock(2047), clock(262_143)), (1, 2, 3));
    let tick = |exits, after| {
        let input = Input::Time { late: 0 };
        let what = What::Input { check: 1, input };
        encode(&[Entry::Placed(Point { exits, after }, what)]).len()
    };
    assert_eq!((tick(10, 0), tick(10, 1_000_000)), (5, 7));
    assert!(tick(500, 200_000_000) <= 9);
}

#[test]
fn what_does_not_exist_is_refused() {
    assert_eq!(decode(&[7]), Err(DecodeError::Unknown(7)));
    assert_eq!(
        decode(&[kind::ANSWER | 2 << 3, 0]),
        Err(DecodeError::Unknown(0x11))
    );
    assert_eq!(
        decode(&[kind::INPUT | 4 << 3]),
        Err(DecodeError::Unknown(0x23))
    );
    // A Control entry with operation 4.
    let control = [kind::INPUT | 3 << 3, 0, 0, 0, 0, 4];
    assert_eq!(decode(&control), Err(DecodeError::Unknown(4)));
    let long = [kind::INPUT, 0, 0, 0, 0, 0x81, 0x48];
    assert_eq!(decode(&long), Err(DecodeError::TooLong(9217)));
}

#[test]
fn a_number_has_one_encoding_and_64_bits() {
    // More, and nothing more.
    assert_eq!(decode(&[kind::CLOCK | MORE, 0]), Err(DecodeError::Number));
    assert_eq!(
        decode(&[kind::CLOCK | MORE, 0x81, 0]),
        Err(DecodeError::Number)
    );
    let mut widest = vec![kind::CLOCK | 0xf << 3 | MORE];
    widest.extend([0xff; 8]);
    widest.push(0xf);
    assert_eq!(
        decode(&widest),
        Ok(vec![Entry::Answer(Answer::Clock(u64::MAX))])
    );
    *widest.last_mut().unwrap() = 0x1f;
    assert_eq!(decode(&widest), Err(DecodeError::Number));
}

#[test]
fn points_do_not_wrap() {
    let far = Entry::Placed(
        Point {
            exits: u64::MAX,
            after: 0,
        },
        What::Check {
            digest: 0,
            snapshot: None,
            memory: None,
        },
    );
    let mut bytes = encode(&[far]);
    bytes.extend(encode(&[Entry::Placed(
        Point { exits: 1, after: 0 },
        What::Check {
            digest: 0,
            snapshot: None,
            memory: None,
        },
    )]));
    assert_eq!(decode(&bytes), Err(DecodeError::Number));
}

#[test]
fn points_are_read_as_they_are_written() {
    let point = Point {
        exits: 812,
        after: 40,
    };
    assert_eq!(alloc::format!("{point}").parse(), Ok(point));
    for text in ["", "812", "+", "1+x", "-1+2", "1+2+3"] {
        assert_eq!(text.parse::<Point>(), Err(super::super::NoPoint), "{text}");
    }
}

#[test]
fn a_part_of_memory_ends_with_the_memory() {
    let part = |first, pages| MemoryPart {
        first,
        pages,
        digest: 0,
    };
    assert_eq!(part(1, 2).range(100 << 20), 2 << 20..6 << 20);
    assert_eq!(
        part(1, 2).range((4 << 20) + 4096),
        2 << 20..(4 << 20) + 4096
    );
    assert_eq!(part(3, 1).range(4 << 20), 4 << 20..4 << 20);
    assert_eq!(part(u64::MAX, u64::MAX).range(4 << 20), 4 << 20..4 << 20);
}
