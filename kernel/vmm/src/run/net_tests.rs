//! A guest on the network: its frames leave, those for it enter through the door, and a replay sees the same.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use devices::virtio::net::Net;
use devices::virtio::pci::spec::{self, common};
use devices::virtio::{self, console, net};

use super::pc_tests::{pc_of, pc_with};
use super::tests::at;
use super::*;
use crate::cpu::PortAccess;
use crate::machine::Operation;
use crate::nondet::{Door, Mode};
use crate::output::OutputQueue;
use crate::record::Recorder;
use crate::replay::{Difference, Replayer};
use crate::testing::{ScriptedVcpu, TestHost};
use arch::nic::Mac;
use arch::regs::{CpuState, Gpr};

const CODE: u32 = 0x4000;
const NIC: u8 = 0;
const NIC_SLOT: u8 = 3;
const CONSOLE_SLOT: u8 = 4;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Where the capability for access by configuration space is.
const ACCESS: u32 = 0x90;
/// Rings of 8, 4 KiB each, and buffers of 2 KiB for received frames and one to send.
const RINGS: u64 = 0x5000;
const SIZE: u16 = 8;
const BUFFERS: u64 = 0x8000;
const TO_SEND: u64 = 0xf000;

/// A guest that drives a virtio device by ports alone.
struct Guest {
    m: Machine<ScriptedVcpu>,
    host: TestHost,
    slot: u8,
    offered: [u16; 2],
}

impl Guest {
    fn new(mode: Mode) -> Self {
        let mut host = TestHost::default();
        let mut vcpu = ScriptedVcpu::new(CpuState::protected_mode(CODE), &[]);
        vcpu.free_running = true;
        let nic = net::Config {
            slot: NIC_SLOT,
            mac: MAC,
            mtu: 1500,
        };
        let config = virtio::Config {
            nics: [Some(nic), None, None, None],
            console: Some(console::Config {
                slot: CONSOLE_SLOT,
                columns: 80,
                rows: 25,
            }),
        };
        let door = Door::new(&mut host, mode);
        Self {
            m: pc_with(vcpu, door, config),
            host,
            slot: NIC_SLOT,
            offered: [0; 2],
        }
    }

    fn recorded() -> Self {
        let recorder = Recorder::new(&[], true);
        Self::new(Mode::Recording(Box::new(recorder)))
    }

    fn replayed(log: &[u8]) -> Self {
        let mut replayer = Replayer::new();
        assert_eq!(replayer.feed(log), log.len());
        replayer.close();
        Self::new(Mode::Replaying(Box::new(replayer)))
    }

    fn run(&mut self) -> Option<Stop> {
        self.m.run(&mut self.host, 1000)
    }

    fn exit(&mut self, port: u16, size: u8, write: bool) {
        self.m.vcpu.script.push_back(at(
            3,
            Exit::Port(PortAccess {
                port,
                size,
                write,
                string: false,
            }),
        ));
        self.run();
    }

    fn out(&mut self, port: u16, size: u8, value: u32) {
        self.m.vcpu.state.gprs[Gpr::Rax] = value.into();
        self.exit(port, size, true);
    }

    fn config_write(&mut self, offset: u32, size: u8, value: u32) {
        self.out(0xcf8, 4, 1 << 31 | u32::from(self.slot) << 11 | offset & !3);
        self.out(0xcfc + (offset & 3) as u16, size, value);
    }

    fn write(&mut self, register: u32, size: u8, value: u32) {
        self.config_write(ACCESS + 8, 4, register);
        self.config_write(ACCESS + 12, 4, size.into());
        self.config_write(ACCESS + 16, 4, value);
    }

    /// Reads the interrupt status: an exit that a guest's handler makes.
    fn interrupt_status(&mut self) -> u8 {
        self.config_write(ACCESS + 8, 4, spec::ISR);
        self.config_write(ACCESS + 12, 4, 1);
        self.out(
            0xcf8,
            4,
            1 << 31 | u32::from(self.slot) << 11 | (ACCESS + 16),
        );
        self.exit(0xcfc, 1, false);
        self.m.vcpu.state.gprs[Gpr::Rax] as u8
    }

    fn start(&mut self, slot: u8) {
        self.slot = slot;
        self.config_write(4, 2, 4);
        for status in [1, 3] {
            self.write(common::STATUS, 1, status);
        }
        self.write(common::DRIVER_FEATURE_SELECT, 4, 1);
        self.write(common::DRIVER_FEATURE, 4, 1);
        self.write(common::STATUS, 1, 0xb);
        for number in 0..2 {
            self.write(common::QUEUE_SELECT, 2, number);
            self.write(common::QUEUE_SIZE, 2, SIZE.into());
            let ring = RINGS as u32 + 0x1000 * number;
            for (area, offset) in [0, 0x400, 0x800].into_iter().enumerate() {
                self.write(common::QUEUE_AREAS + 8 * area as u32, 4, ring + offset);
            }
            self.write(common::QUEUE_ENABLE, 2, 1);
        }
        self.write(common::STATUS, 1, 0xf);
    }

    /// Makes one buffer available in queue `number`.
    fn offer(&mut self, number: usize, (address, bytes): (u64, u32), flags: u16) {
        let ring = RINGS + 0x1000 * number as u64;
        let slot = u64::from(self.offered[number] % SIZE);
        self.offered[number] = self.offered[number].wrapping_add(1);
        let ram = &mut self.m.memory;
        ram.put_u64(ring + 16 * slot, address);
        ram.put_u32(ring + 16 * slot + 8, bytes);
        ram.put_u32(ring + 16 * slot + 12, flags.into());
        ram.put(ring + 0x404 + 2 * slot, &(slot as u16).to_le_bytes());
        ram.put(ring + 0x402, &self.offered[number].to_le_bytes());
    }

    fn used(&self, number: u64) -> u16 {
        let at = (RINGS + 0x1000 * number + 0x802) as usize;
        let ram = &self.m.memory.0;
        u16::from_le_bytes([ram[at], ram[at + 1]])
    }

    fn send(&mut self, bytes: &[u8]) {
        self.m.memory.put(TO_SEND, &[0; 12]);
        self.m.memory.put(TO_SEND + 12, bytes);
        self.offer(1, (TO_SEND, 12 + bytes.len() as u32), 0);
        self.write(spec::NOTIFY + 4, 2, 1);
    }

    fn provide(&mut self) {
        let buffer = BUFFERS + 0x800 * u64::from(self.offered[0] % SIZE);
        self.offer(0, (buffer, 2048), 2);
    }

    /// A guest that sends a frame, mostly of `seed`, in each of some rounds and answers what it has received.
    fn live(&mut self, seed: u8, mut outside: impl FnMut(&mut Machine<ScriptedVcpu>, u8)) {
        self.start(NIC_SLOT);
        for _ in 0..SIZE {
            self.provide();
        }
        for round in 0..40 {
            outside(&mut self.m, round);
            if self.m.stopped().is_some() {
                return;
            }
            let status = self.interrupt_status();
            let received = self.used(0);
            while self.offered[0].wrapping_sub(received) < SIZE {
                self.provide();
            }
            self.send(&[
                seed,
                round,
                status,
                received as u8,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
        }
    }
}

fn frame(number: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![number; bytes];
    frame[..6].copy_from_slice(&MAC.0);
    frame
}

/// What the outside does in round `number`: frames, some for nobody, and a link that goes away for a while.
fn outside(m: &mut Machine<ScriptedVcpu>, number: u8) {
    for extra in 0..number % 4 {
        assert!(m.receive_frame(NIC, &frame(number, 60 + 400 * usize::from(extra))));
    }
    match number {
        10 | 20 => assert!(m.set_link(NIC, number == 20)),
        39 => assert!(m.operate(Operation::Stop)),
        _ => {}
    }
}

/// A run that was recorded, and its log.
fn record(seed: u8) -> (Guest, Vec<u8>) {
    let mut guest = Guest::recorded();
    guest.live(seed, outside);
    assert_eq!(guest.m.stopped(), Some(Stop::SwitchedOff));
    let recorder = guest.m.door.recorder().expect("it records");
    let mut log = vec![0; recorder.waiting()];
    recorder.take(&mut log);
    (guest, log)
}

#[test]
fn frames_leave_when_the_guest_kicks() {
    let mut guest = Guest::new(Mode::Live);
    guest.start(NIC_SLOT);
    guest.send(&[7; 60]);
    assert_eq!(guest.host.sent, [(NIC, vec![7; 60])]);
    assert_eq!((guest.used(1), guest.interrupt_status()), (1, 1));
    assert!(!guest.m.board.is_kicked());
}

#[test]
fn frames_enter_a_guest_without_a_log() {
    let mut guest = Guest::new(Mode::Live);
    assert!(guest.m.receive_frame(NIC, &frame(1, 60)), "nobody is there");
    guest.start(NIC_SLOT);
    guest.provide();
    assert!(guest.m.receive_frame(NIC, &frame(2, 60)));
    assert!(
        guest.m.receive_frame(NIC + 1, &frame(3, 60)),
        "no such card"
    );
    assert!(guest.m.receive_frame(NIC, &[0; 5000]), "too long");
    assert_eq!((guest.used(0), guest.m.door.unwanted()), (0, 3));
    guest.m.halted = true;
    assert_eq!(guest.m.idle_until(), None, "a frame ends the wait");
    guest.m.halted = false;
    guest.run();
    assert_eq!((guest.used(0), guest.interrupt_status()), (1, 1));
    let at = BUFFERS as usize + 12;
    assert_eq!(guest.m.memory.0[at..at + 60], frame(2, 60));
    assert!(guest.m.set_link(NIC, false));
    guest.run();
    assert!(!guest.m.nic(NIC).unwrap().is_link_up());
}

#[test]
fn what_waits_is_bounded() {
    let mut guest = Guest::new(Mode::Live);
    guest.start(NIC_SLOT);
    let taken = (0..1000)
        .take_while(|_| guest.m.receive_frame(NIC, &frame(0, 60)))
        .count();
    assert_eq!(taken, 64);
    assert!(!guest.m.set_link(NIC, false));
    guest.run();
    assert_eq!(guest.m.nic(NIC).unwrap().counters().receive_no_buffer, 64);
    assert!(guest.m.receive_frame(NIC, &frame(0, 60)));
}

#[test]
fn a_replay_receives_the_same_and_sends_nothing() {
    let (recorded, log) = record(1);
    let counters = *recorded.m.nic(NIC).unwrap().counters();
    assert!(counters.received > 30 && counters.transmitted > 20);
    assert!(counters.transmit_down > 5, "{counters:?}");
    let mut replayed = Guest::replayed(&log);
    replayed.live(1, |m, _| {
        let link_up = m.nic(NIC).is_some_and(Net::is_link_up);
        assert_ne!(
            m.receive_frame(NIC, &frame(9, 60)),
            link_up,
            "only the log speaks"
        );
    });
    replayed.run();
    assert_eq!(replayed.m.divergence(), None);
    assert_eq!(replayed.m.stopped(), Some(Stop::SwitchedOff));
    assert_eq!(replayed.m.nic(NIC).unwrap().counters(), &counters);
    assert!(replayed.m.memory.0 == recorded.m.memory.0);
    assert!(replayed.host.sent.is_empty());
}

#[test]
fn a_frame_that_is_another_is_a_divergence() {
    let (_, log) = record(1);
    let mut other = Guest::replayed(&log);
    other.live(2, |_, _| {});
    let difference = &other.m.divergence().expect("another frame").difference;
    assert!(
        matches!(difference, Difference::Output { .. }),
        "{difference}"
    );
}

#[test]
fn an_input_for_a_card_that_is_not_there_is_a_divergence() {
    let (_, log) = record(1);
    let mut other = Guest::replayed(&log);
    other.live(1, |m, round| {
        if round == 1 {
            let vcpu = ScriptedVcpu::new(CpuState::protected_mode(CODE), &[]);
            m.board = pc_of(vcpu, Door::default()).board;
        }
    });
    let difference = &other.m.divergence().expect("no card").difference;
    assert_eq!(*difference, Difference::NoDevice);
}

#[test]
fn a_gate_holds_what_a_guest_puts_out_until_the_log_is_held() {
    let mut guest = Guest::recorded();
    guest.start(NIC_SLOT);
    assert!(
        guest
            .m
            .door
            .set_gate(Some(Box::new(OutputQueue::default())))
            .is_none()
    );
    guest.send(&[1; 60]);
    let first = guest.m.door.recorder().unwrap().position();
    guest.out(0x3f8, 1, b'a'.into());
    guest.send(&[2; 60]);
    assert!(guest.host.sent.is_empty() && guest.host.said.is_empty());
    // The guest cannot tell.
    assert_eq!(guest.used(1), 2);
    assert_eq!(guest.m.door.gate().map(OutputQueue::len), Some(3));
    guest.m.door.release(&mut guest.host, "pc", 0);
    assert!(guest.host.sent.is_empty());
    guest.m.door.release(&mut guest.host, "pc", first);
    assert_eq!(guest.host.sent, [(NIC, vec![1; 60])]);
    let last = guest.m.door.recorder().unwrap().position();
    assert!(last > first);
    guest.m.door.release(&mut guest.host, "pc", last);
    assert_eq!(
        (guest.host.sent.len(), &guest.host.said[..]),
        (2, &b"a"[..])
    );
    // Without the gate everything leaves at once.
    assert!(
        guest
            .m
            .door
            .set_gate(None)
            .is_some_and(|gate| gate.is_empty())
    );
    guest.send(&[3; 60]);
    assert_eq!(guest.host.sent.len(), 3);
}

#[test]
fn the_virtio_console_takes_over_once_it_is_driven() {
    let mut guest = Guest::new(Mode::Live);
    guest.host.typed.extend(b"a");
    guest.run();
    guest.exit(0x3f8, 1, false);
    assert_eq!(guest.m.vcpu.state.gprs[Gpr::Rax] as u8, b'a');
    guest.start(CONSOLE_SLOT);
    guest.provide();
    guest.host.typed.extend(b"bc");
    guest.run();
    assert_eq!(guest.m.memory.0[BUFFERS as usize..][..2], *b"bc");
    guest.m.memory.put(TO_SEND, b"hello");
    guest.offer(1, (TO_SEND, 5), 0);
    guest.write(spec::NOTIFY + 4, 2, 1);
    assert_eq!(guest.host.said, b"hello");
}
