//! `cargo xtask bench link`: what the link costs, on this machine's clock and on a simulated wire.

#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "measures time on the development host"
)]

use std::hint::black_box;
use std::time::Instant as HostInstant;

use ftlink::arbiter::{Record, decide};
use ftlink::channel::cipher::DatagramCipher;
use ftlink::counters::StreamCounters;
use ftlink::ids::{Duration, Generation, Instant, LogPos, NodeId};
use ftlink::link::{DEFAULT_LOG_RING_BYTES, EgressBuffer, Link};
use ftlink::role::{Mode, Role};
use ftlink::stream::{Receiver, Sender};
use ftlink::wire::messages::{DATA_BYTES, Data};
use ftlink::wire::{
    ETHERNET_MTU_BYTES, HEADER_BYTES, HeaderRepr, Kind, MAX_DATAGRAM_BYTES, SEAL_BYTES, TAG_BYTES,
};
use sim::plain::{PAIR, link};
use sim::random::Random;
use zerocopy::IntoBytes;

/// Nanoseconds a byte of UDP payload takes at 1 Gbit/s; what is around it is not counted.
const BYTE_NS: u64 = 8;
/// One way.
const WIRE_DELAY: Duration = Duration::from_micros(50);

fn main() {
    println!("| figure | measured | aim |\n|---|---|---|");
    for (name, cipher) in [
        ("ChaCha20-Poly1305", DatagramCipher::new(&[7; 32])),
        ("null cipher", DatagramCipher::null()),
    ] {
        for bytes in [64, 1_400] {
            let (rate, each) = codec(&cipher, bytes);
            println!(
                "| encode, seal, open, decode, {name}, {bytes} bytes | {rate:.0} MB/s, {each:.0} ns each | |"
            );
        }
    }
    println!(
        "| one 16-byte entry, without crypto | {:.0} ns | 150 ns |",
        small_entries()
    );
    for (loss, aim) in [(0, 95), (10, 90), (100, 70)] {
        let result = goodput(loss);
        let percent = loss as f64 / 100.0;
        println!(
            "| goodput over 1 Gbit/s, {percent} % loss | {:.1} % | {aim} % |",
            result.percent
        );
        if loss == 0 {
            println!(
                "| wire bytes per entry byte, 1 400-byte entries | {:.3} | 1.05 |",
                result.expansion
            );
        }
    }
    println!(
        "| memory per link | {:.1} MiB | |",
        link(1, 1).memory_bytes() as f64 / f64::from(1 << 20)
    );
}

/// Megabytes of entry a second, and nanoseconds an entry.
fn codec(cipher: &DatagramCipher, bytes: usize) -> (f64, f64) {
    const ROUNDS: u64 = 200_000;
    let entry = vec![0x5a; bytes];
    let total = SEAL_BYTES + DATA_BYTES + bytes;
    let mut datagram = [0; MAX_DATAGRAM_BYTES];
    let begun = HostInstant::now();
    for sequence in 0..ROUNDS {
        let header = HeaderRepr {
            kind: Kind::LOG_DATA,
            path: 0,
            flags: 0,
            session: 1,
            generation: Generation(1),
            sequence,
        };
        datagram[..HEADER_BYTES].copy_from_slice(header.header().as_bytes());
        let start = HEADER_BYTES + DATA_BYTES;
        datagram[HEADER_BYTES..start].copy_from_slice(Data::new(sequence).as_bytes());
        datagram[start..start + bytes].copy_from_slice(&entry);
        let datagram = &mut datagram[..total];
        cipher.seal(sequence, datagram);
        let parsed = HeaderRepr::parse(black_box(datagram)).map(|(header, _)| header);
        assert_eq!(parsed, Ok(header));
        let opened = cipher.open(sequence, datagram).map(Data::parse);
        assert!(matches!(opened, Ok(Ok((offset, _))) if offset == sequence));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let rounds = ROUNDS as f64;
    (
        rounds * bytes as f64 / seconds / 1e6,
        seconds / rounds * 1e9,
    )
}

/// Nanoseconds to append a small entry, put it into datagrams, take it out and read it.
fn small_entries() -> f64 {
    const ROUNDS: u64 = 2_000_000;
    let mut sender = Sender::new(DEFAULT_LOG_RING_BYTES);
    let mut receiver = Receiver::new(DEFAULT_LOG_RING_BYTES);
    let mut counters = StreamCounters::default();
    sender.begin(LogPos(0));
    let offer = sender.offer();
    assert!(receiver.attach(offer.epoch, offer.position, offer.offset));
    sender.on_report(Instant(0), receiver.report(), LogPos(0), LogPos(0));
    let mut payload = [0; ETHERNET_MTU_BYTES - SEAL_BYTES - DATA_BYTES];
    let entry = [0x77; 16];
    let mut read = 0;
    let begun = HostInstant::now();
    for round in 0..ROUNDS {
        let appended = sender.append(Instant(round), black_box(&entry), &mut counters);
        assert!(appended.is_ok());
        if round % 512 == 511 {
            sender.flush(Instant(round));
            while let Some(segment) = sender.emit(Instant(round), &mut payload, &mut counters) {
                let bytes = segment.range.bytes() as usize;
                receiver.accept(segment.range.start, &payload[..bytes], &mut counters);
            }
            while let Some((_, entry)) = receiver.next_entry(&mut counters) {
                read += black_box(entry).len();
            }
            let (report, held) = (receiver.report(), receiver.held());
            sender.on_report(Instant(round), report, held, held);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(read as u64 >= (ROUNDS - 512) * 16);
    seconds / ROUNDS as f64 * 1e9
}

struct Goodput {
    /// Of the wire's bytes, how many were entries, in percent.
    percent: f64,
    /// UDP payload bytes sent per entry byte delivered.
    expansion: f64,
}

/// Saturates a simulated gigabit wire for a second; `loss` in parts of 10 000.
fn goodput(loss: u64) -> Goodput {
    let mut wire = Wire {
        links: [link(1, 1), link(2, 1)],
        free_at: [Instant(0); 2],
        under_way: [const { std::collections::VecDeque::new() }; 2],
        record: Record::empty(PAIR, [NodeId(1), NodeId(2)]),
        random: Random::new(1),
        loss: 0,
    };
    let mut now = Instant(0);
    while wire.links[0].fence().role() != Role::Primary(Mode::Protected) {
        now = now.after(Duration::from_micros(10));
        wire.step(now);
    }
    wire.loss = loss;
    let entry = vec![0x42; 1_400];
    let begun = now;
    let sent_before = wire.links[0].counters().bytes_sent;
    let end = begun.after(Duration::from_secs(1));
    let mut delivered = 0u64;
    while now < end {
        now = now.after(Duration::from_micros(5));
        while wire.links[0].append(now, &entry).is_ok() {}
        wire.step(now);
        while let Some((position, entry)) = wire.links[1].next_entry() {
            delivered += entry.len() as u64;
            wire.links[1].set_verified(position.next());
        }
    }
    let sent = wire.links[0].counters().bytes_sent - sent_before;
    Goodput {
        percent: delivered as f64 * BYTE_NS as f64 / end.since(begun).0 as f64 * 100.0,
        expansion: sent as f64 / delivered as f64,
    }
}

struct Wire {
    links: [Link; 2],
    /// When the sender's wire can take the next datagram.
    free_at: [Instant; 2],
    /// By receiver.
    under_way: [std::collections::VecDeque<(Instant, Vec<u8>)>; 2],
    record: Record,
    random: Random,
    loss: u64,
}

impl Wire {
    fn step(&mut self, now: Instant) {
        for to in 0..2 {
            while let Some((_, mut datagram)) =
                self.under_way[to].pop_front_if(|(at, _)| *at <= now)
            {
                self.links[to].ingress(now, 0, &mut datagram);
            }
        }
        for from in 0..2 {
            self.links[from].poll(now);
            let mut buffer: EgressBuffer = [0; MAX_DATAGRAM_BYTES];
            while self.free_at[from] <= now
                && let Some(length) = self.links[from].egress(now, 0, &mut buffer)
            {
                let time = Duration(length as u64 * BYTE_NS);
                let begins = self.free_at[from].max(Instant(now.0.saturating_sub(5_000)));
                self.free_at[from] = begins.after(time);
                if !self.random.chance(self.loss) {
                    let arrives = self.free_at[from].after(WIRE_DELAY);
                    self.under_way[1 - from].push_back((arrives, buffer[..length].to_vec()));
                }
            }
            while let Some(request) = self.links[from].request(now) {
                let decision = decide(&self.record, &request);
                self.record = decision.store.unwrap_or(self.record);
                self.links[from].verdict(now, &decision.reply);
            }
        }
    }
}

const _: () = assert!(HEADER_BYTES + TAG_BYTES == SEAL_BYTES);
