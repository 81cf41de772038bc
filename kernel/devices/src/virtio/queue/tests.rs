//! Rings that are well formed, and each way in which one is not.

use super::*;
use crate::virtio::testing::{BUFFERS, RINGS, Ram, Ring, put_descriptor};
use alloc::vec;
use alloc::vec::Vec;

const SIZE: u16 = 8;
const TABLE: u64 = 0x1_a000;

/// A queue, its driver and RAM.
struct Bench {
    queue: Queue,
    ring: Ring,
    ram: Ram,
    chain: Chain,
}

impl Bench {
    fn new(indirect: bool, event_index: bool) -> Self {
        let ring = Ring::new(RINGS, SIZE);
        let mut queue = Queue::default();
        queue.set_size(SIZE);
        for (area, address) in ring.areas().into_iter().enumerate() {
            queue.set_area(area, address);
        }
        queue.enable(indirect, event_index).unwrap();
        Self {
            queue,
            ring,
            ram: Ram::new(),
            chain: Chain::default(),
        }
    }

    fn offer(&mut self, head: u16, buffers: &[(u64, u32, u16)]) {
        self.ring.chain(&mut self.ram, head, buffers);
        self.ring.offer(&mut self.ram, head);
    }

    fn take(&mut self) -> Result<(), Fault> {
        assert_ne!(self.queue.available(&self.ram)?, 0);
        self.queue.take(&self.ram, &mut self.chain)
    }

    /// What taking a chain with these descriptors, at 0, 1, …, leads to.
    fn taken(descriptors: &[(u64, u32, u16, u16)]) -> Result<(), Fault> {
        let mut bench = Self::new(true, false);
        for (index, descriptor) in (0..).zip(descriptors) {
            bench.ring.describe(&mut bench.ram, index, *descriptor);
        }
        bench.ring.offer(&mut bench.ram, 0);
        bench.take()
    }

    /// The same with an indirect table of these.
    fn taken_indirect(
        flags: u16,
        bytes: u32,
        table: &[(u64, u32, u16, u16)],
    ) -> Result<Chain, Fault> {
        let mut bench = Self::new(true, false);
        for (index, descriptor) in (0..).zip(table) {
            put_descriptor(&mut bench.ram, TABLE + 16 * index, *descriptor);
        }
        bench
            .ring
            .describe(&mut bench.ram, 0, (TABLE, bytes, spec::INDIRECT | flags, 0));
        bench.ring.offer(&mut bench.ram, 0);
        bench.take().map(|()| bench.chain)
    }
}

#[test]
fn buffers_are_read_and_written_across_their_borders() {
    let mut bench = Bench::new(false, false);
    bench.ram.put(BUFFERS, b"abcdefgh");
    bench.offer(
        2,
        &[
            (BUFFERS, 3, 0),
            (BUFFERS + 5, 3, 0),
            (BUFFERS + 0x100, 2, spec::WRITE),
            (BUFFERS + 0x200, 4, spec::WRITE),
        ],
    );
    bench.take().unwrap();
    let Bench { chain, ram, .. } = &mut bench;
    assert_eq!((chain.readable(), chain.writable()), (6, 6));
    let mut bytes = [0; 6];
    chain.read(ram, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcfgh");
    chain.read(ram, 4, &mut bytes[..2]).unwrap();
    assert_eq!(&bytes[..2], b"gh");
    assert_eq!(chain.read(ram, 1, &mut bytes), Err(Fault::Short));
    chain.write(ram, 1, b"WXYZ").unwrap();
    assert_eq!(ram.bytes(BUFFERS + 0x100, 3), b"\0W\0");
    assert_eq!(ram.bytes(BUFFERS + 0x200, 4), b"XYZ\0");
    assert_eq!(chain.write(ram, 3, b"WXYZ"), Err(Fault::Short));
    assert_eq!(chain.write(ram, 6, b""), Ok(()));
}

#[test]
fn used_chains_come_in_order_around_the_end() {
    let mut bench = Bench::new(false, false);
    for round in 0..3 * u32::from(SIZE) {
        let head = (round * 3) as u16 % SIZE;
        bench.offer(head, &[(BUFFERS, 1, 0)]);
        assert_eq!(bench.queue.available(&bench.ram), Ok(1));
        bench.take().unwrap();
        bench
            .queue
            .use_up(&mut bench.ram, &bench.chain, round)
            .unwrap();
        assert_eq!(u32::from(bench.ring.used(&bench.ram)), round);
        assert_eq!(bench.queue.publish(&mut bench.ram), Ok(true));
        assert_eq!(u32::from(bench.ring.used(&bench.ram)), round + 1);
        let entry = bench.ring.used_entry(&bench.ram, round as u16 % SIZE);
        assert_eq!(entry, (head.into(), round));
        assert_eq!(bench.queue.publish(&mut bench.ram), Ok(false));
    }
}

#[test]
fn chains_put_back_are_taken_again() {
    let mut bench = Bench::new(false, false);
    bench.offer(0, &[(BUFFERS, 1, 0)]);
    bench.offer(1, &[(BUFFERS, 2, 0)]);
    for _ in 0..2 {
        assert_eq!(bench.queue.available(&bench.ram), Ok(2));
        for bytes in [1, 2] {
            bench.take().unwrap();
            bench.queue.use_up(&mut bench.ram, &bench.chain, 0).unwrap();
            assert_eq!(bench.chain.readable(), bytes);
        }
        bench.queue.put_back(2);
        assert_eq!(bench.queue.publish(&mut bench.ram), Ok(false));
    }
}

#[test]
fn flags_hold_interrupts_and_kicks_back() {
    let mut bench = Bench::new(false, false);
    bench.queue.ask_for_kicks(&mut bench.ram, false).unwrap();
    assert_eq!(bench.ram.u16(bench.ring.base + 0x2000), spec::NO_NOTIFY);
    bench.queue.ask_for_kicks(&mut bench.ram, true).unwrap();
    assert_eq!(bench.ram.u16(bench.ring.base + 0x2000), 0);
    for (flags, wanted) in [(0, true), (spec::NO_INTERRUPT, false), (2, true)] {
        bench.ring.set_flags(&mut bench.ram, flags);
        bench.offer(0, &[(BUFFERS, 1, 0)]);
        bench.take().unwrap();
        bench.queue.use_up(&mut bench.ram, &bench.chain, 0).unwrap();
        assert_eq!(bench.queue.publish(&mut bench.ram), Ok(wanted), "{flags}");
    }
}

#[test]
fn with_event_indices_one_in_four_interrupts() {
    let mut bench = Bench::new(false, true);
    let (used_event, available_event) = bench.ring.events();
    // The flags mean nothing then.
    bench.ring.set_flags(&mut bench.ram, spec::NO_INTERRUPT);
    let mut interrupts = Vec::new();
    for round in 0..40u16 {
        bench.offer(0, &[(BUFFERS, 1, 0)]);
        bench.take().unwrap();
        bench.queue.use_up(&mut bench.ram, &bench.chain, 0).unwrap();
        if bench.queue.publish(&mut bench.ram).unwrap() {
            interrupts.push(round);
            let next = bench.ring.used(&bench.ram) + 3;
            bench.ram.put(used_event, &next.to_le_bytes());
        }
        bench
            .queue
            .ask_for_kicks(&mut bench.ram, round % 2 == 0)
            .unwrap();
        let event = bench.ram.u16(available_event);
        let index = bench.ring.index;
        assert_eq!(event, if round % 2 == 0 { index } else { index - 1 });
    }
    let want: Vec<u16> = (0..40).step_by(4).collect();
    assert_eq!(interrupts, want);
}

#[test]
fn one_look_publishes_several_with_one_interrupt() {
    let mut bench = Bench::new(false, true);
    let (used_event, _) = bench.ring.events();
    bench.ram.put(used_event, &2u16.to_le_bytes());
    for head in 0..5 {
        bench.offer(head, &[(BUFFERS, 1, 0)]);
    }
    for (count, wanted) in [(2, false), (3, true)] {
        for _ in 0..count {
            bench.take().unwrap();
            bench.queue.use_up(&mut bench.ram, &bench.chain, 0).unwrap();
        }
        assert_eq!(bench.queue.publish(&mut bench.ram), Ok(wanted));
    }
}

#[test]
fn indirect_tables_are_chains() {
    let table = [
        (BUFFERS, 5, spec::NEXT, 2),
        (0, 0, 0, 0),
        (BUFFERS, 7, spec::WRITE, 9),
    ];
    let chain = Bench::taken_indirect(spec::WRITE, 48, &table).unwrap();
    assert_eq!((chain.readable(), chain.writable()), (5, 7));
    // As the last of a chain, too.
    let mut bench = Bench::new(true, false);
    put_descriptor(&mut bench.ram, TABLE, (BUFFERS, 7, 0, 0));
    bench.offer(3, &[(BUFFERS, 5, 0), (TABLE, 16, spec::INDIRECT)]);
    bench.take().unwrap();
    assert_eq!(bench.chain.readable(), 12);
    // As long as any.
    let longest: Vec<_> = (1..=spec::MAX_CHAIN)
        .map(|i| {
            (
                BUFFERS,
                1,
                if i < spec::MAX_CHAIN { spec::NEXT } else { 0 },
                i,
            )
        })
        .collect();
    let chain = Bench::taken_indirect(0, 16 * 256, &longest).unwrap();
    assert_eq!(chain.readable(), 256);
}

// Malformed queues.

#[test]
fn a_size_that_is_no_power_of_two_or_too_great() {
    for size in [0, 3, 255, 257, 512, 0x8000, u16::MAX] {
        let mut queue = Queue::default();
        queue.set_size(size);
        assert_eq!(queue.enable(true, true), Err(Fault::Size), "{size}");
        assert!(!queue.is_enabled());
    }
}

#[test]
fn areas_that_are_misaligned_or_beyond_all_addresses() {
    for (area, address) in [(0, 8), (1, 1), (2, 2), (0, !15), (1, !1), (2, !3)] {
        let mut queue = Queue::default();
        queue.set_area(area, address);
        assert_eq!(
            queue.enable(true, true),
            Err(Fault::Area),
            "{area} {address:#x}"
        );
    }
}

#[test]
fn a_queue_that_is_on_does_not_change() {
    let mut bench = Bench::new(false, false);
    bench.queue.set_size(4);
    bench.queue.set_area(0, 0);
    assert_eq!(bench.queue.size(), SIZE);
    assert_eq!(bench.queue.areas(), &bench.ring.areas());
}

#[test]
fn rings_outside_of_ram() {
    for area in 0..3 {
        let ring = Ring::new(RINGS, SIZE);
        let mut queue = Queue::default();
        queue.set_size(SIZE);
        for (number, address) in ring.areas().into_iter().enumerate() {
            queue.set_area(number, if number == area { 1 << 40 } else { address });
        }
        queue.enable(false, false).unwrap();
        let mut bench = Bench {
            queue,
            ..Bench::new(false, false)
        };
        bench.offer(0, &[(BUFFERS, 1, 0)]);
        let mut run = || {
            bench.queue.available(&bench.ram)?;
            bench.queue.take(&bench.ram, &mut bench.chain)?;
            bench.queue.use_up(&mut bench.ram, &bench.chain, 0)?;
            bench.queue.publish(&mut bench.ram)
        };
        assert_eq!(run(), Err(Fault::NotRam), "{area}");
        if area == 2 {
            assert_eq!(
                bench.queue.ask_for_kicks(&mut bench.ram, true),
                Err(Fault::NotRam)
            );
        }
    }
}

#[test]
fn an_available_index_that_jumps() {
    let mut bench = Bench::new(false, false);
    for (index, available) in [
        (0, Ok(0)),
        (SIZE, Ok(SIZE)),
        (SIZE + 1, Err(Fault::Available)),
        (0x8000, Err(Fault::Available)),
        (u16::MAX, Err(Fault::Available)),
    ] {
        bench
            .ram
            .put(bench.ring.base + 0x1002, &index.to_le_bytes());
        assert_eq!(bench.queue.available(&bench.ram), available);
    }
}

#[test]
fn a_head_or_a_successor_beyond_the_table() {
    let mut bench = Bench::new(false, false);
    bench.ring.offer(&mut bench.ram, SIZE);
    assert_eq!(bench.take(), Err(Fault::Descriptor));
    let next = (BUFFERS, 1, spec::NEXT, SIZE);
    assert_eq!(Bench::taken(&[next]), Err(Fault::Descriptor));
    let table = [(BUFFERS, 1, spec::NEXT, 2), (BUFFERS, 1, 0, 0)];
    assert_eq!(Bench::taken_indirect(0, 32, &table), Err(Fault::Descriptor));
}

#[test]
fn a_circle_of_descriptors() {
    let circle = [(BUFFERS, 1, spec::NEXT, 1), (BUFFERS, 1, spec::NEXT, 0)];
    assert_eq!(Bench::taken(&circle), Err(Fault::Chain));
    let itself = [(BUFFERS, 1, spec::NEXT, 0)];
    assert_eq!(Bench::taken(&itself), Err(Fault::Chain));
    assert_eq!(Bench::taken_indirect(0, 16, &itself), Err(Fault::Chain));
}

#[test]
fn a_chain_with_more_descriptors_than_a_queue_can_have() {
    // Seven in the queue and 250 in the table that the eighth means.
    let mut bench = Bench::new(true, false);
    let mut buffers = vec![(BUFFERS, 1, 0); 7];
    buffers.push((TABLE, 16 * 250, spec::INDIRECT));
    for i in 0..250u16 {
        let flags = if i < 249 { spec::NEXT } else { 0 };
        put_descriptor(
            &mut bench.ram,
            TABLE + 16 * u64::from(i),
            (BUFFERS, 1, flags, i + 1),
        );
    }
    bench.offer(0, &buffers);
    assert_eq!(bench.take(), Err(Fault::Chain));
}

#[test]
fn more_bytes_than_a_length_can_tell() {
    let half = (0, 1 << 31, spec::NEXT, 1);
    assert_eq!(Bench::taken(&[half, (0, 1 << 31, 0, 0)]), Err(Fault::Chain));
    assert_eq!(Bench::taken(&[half, (0, (1 << 31) - 1, 0, 0)]), Ok(()));
}

#[test]
fn a_buffer_without_bytes() {
    assert_eq!(Bench::taken(&[(BUFFERS, 0, 0, 0)]), Err(Fault::Empty));
    let second = [(BUFFERS, 1, spec::NEXT, 1), (BUFFERS, 0, spec::WRITE, 0)];
    assert_eq!(Bench::taken(&second), Err(Fault::Empty));
}

#[test]
fn a_buffer_that_ends_beyond_all_addresses() {
    assert_eq!(Bench::taken(&[(u64::MAX, 2, 0, 0)]), Err(Fault::NotRam));
    let mut bench = Bench::new(false, false);
    bench.offer(0, &[(1 << 40, 4, 0)]);
    bench.take().unwrap();
    assert_eq!(
        bench.chain.read(&bench.ram, 0, &mut [0; 4]),
        Err(Fault::NotRam)
    );
}

#[test]
fn a_buffer_to_read_behind_one_to_write() {
    let chain = [
        (BUFFERS, 1, spec::WRITE | spec::NEXT, 1),
        (BUFFERS, 1, 0, 0),
    ];
    assert_eq!(Bench::taken(&chain), Err(Fault::Order));
}

#[test]
fn indirect_tables_that_are_none() {
    let inner = (BUFFERS, 1, 0, 0);
    for bytes in [0, 8, 15, 17, 16 * 257, !15] {
        assert_eq!(
            Bench::taken_indirect(0, bytes, &[inner]),
            Err(Fault::Indirect),
            "{bytes}"
        );
    }
    assert_eq!(
        Bench::taken_indirect(spec::NEXT, 16, &[inner]),
        Err(Fault::Indirect)
    );
    let nested = (TABLE, 16, spec::INDIRECT, 0);
    assert_eq!(
        Bench::taken_indirect(0, 16, &[nested]),
        Err(Fault::Indirect)
    );
    // Without the feature.
    let mut bench = Bench::new(false, false);
    put_descriptor(&mut bench.ram, TABLE, inner);
    bench.offer(0, &[(TABLE, 16, spec::INDIRECT)]);
    assert_eq!(bench.take(), Err(Fault::Indirect));
    // Not in RAM.
    assert_eq!(
        Bench::taken(&[(1 << 40, 16, spec::INDIRECT, 0)]),
        Err(Fault::NotRam)
    );
    assert_eq!(
        Bench::taken(&[(u64::MAX - 7, 32, spec::INDIRECT, 0)]),
        Err(Fault::NotRam)
    );
}
