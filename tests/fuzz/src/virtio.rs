//! A guest's virtio devices: rings and registers as the bytes say.
//!
//! The bytes are a program for a driver. The first chooses the device (bit 0), whether it has MSI-X (bit 1), indirect
//! descriptors (bit 2) and event indices (bit 3), mergeable buffers and checksums (bit 4), and commands (bit 5). Then steps: a byte for
//! what, and its arguments, see [`Step`]. The device begins with queues of 16 at 0x1000, 0x2000 and 0x3000, each with its
//! available ring at 0x400 and its used ring at 0x800 from there.

use arch::nic::Mac;
use devices::acpi_pm::TimerWidth;
use devices::chipset::{self, Chipset};
use devices::pci::spec as bus;
use devices::time::GuestTime;
use devices::virtio::pci::spec::{self, common};
use devices::virtio::{Config, MAX_NICS, Memory, NotRam, Output, console, net, queue};

const RAM_BYTES: usize = 64 << 10;
const SIZE: u16 = 16;
const MTU: u16 = 1500;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BAR: u64 = bus::MEMORY;
const NOW: GuestTime = GuestTime(0);

struct Ram(Vec<u8>);

impl Ram {
    fn range(&self, at: u64, bytes: usize) -> Result<std::ops::Range<usize>, NotRam> {
        let first = usize::try_from(at).map_err(|_| NotRam)?;
        let end = first.checked_add(bytes).filter(|end| *end <= RAM_BYTES);
        Ok(first..end.ok_or(NotRam)?)
    }
}

impl Memory for Ram {
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), NotRam> {
        to.copy_from_slice(&self.0[self.range(from, to.len())?]);
        Ok(())
    }

    fn write(&mut self, to: u64, from: &[u8]) -> Result<(), NotRam> {
        let range = self.range(to, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }
}

/// What a driver, or the outside, does. The number is the byte for it, modulo eight.
enum Step {
    /// 0: address (2 bytes), count (1), the bytes.
    Fill(u64, Vec<u8>),
    /// 1: offset (2), logarithm of the size (1), value (8).
    Write(u64, u8, u64),
    /// 2: offset (2), logarithm of the size (1).
    Read(u64, u8),
    /// 3: offset (1), logarithm of the size (1), value (4).
    Configure(u64, u8, u64),
    /// 4: queue (1).
    Kick(u8),
    /// 5: bytes (2), what they are (1): an odd one is for a group.
    Receive(usize, u8),
    /// 6: bytes (1).
    Type(u8),
    /// 7: the link is down (0) or up (1), the driver starts again (2), the machine does (3).
    Change(u8),
}

/// Reads numbers; zeroes behind the end.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (piece, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        let value = piece.iter().rev();
        value.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    fn step(&mut self) -> Option<Step> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.byte() % 8 {
            0 => {
                let (address, count) = (self.number(2), self.number(1) as usize);
                let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
                self.0 = rest;
                Step::Fill(address, bytes.to_vec())
            }
            1 => Step::Write(self.number(2), 1 << (self.byte() % 4), self.number(8)),
            2 => Step::Read(self.number(2), 1 << (self.byte() % 4)),
            3 => Step::Configure(self.number(1), 1 << (self.byte() % 3), self.number(4)),
            4 => Step::Kick(self.byte()),
            5 => Step::Receive(self.number(2) as usize, self.byte()),
            6 => Step::Type(self.byte()),
            _ => Step::Change(self.byte() % 4),
        })
    }
}

struct Driver {
    choice: u8,
    chips: Chipset,
    ram: Ram,
    /// What the guest saw, and what came out.
    seen: Vec<u64>,
    frames: Vec<Vec<u8>>,
    said: usize,
}

impl Driver {
    fn new(choice: u8) -> Self {
        let nic = net::Config {
            slot: 1,
            mac: MAC,
            mtu: MTU,
        };
        let mut nics = [None; MAX_NICS];
        nics[0] = Some(nic);
        let chips = Chipset::new(&chipset::Config {
            low_memory: RAM_BYTES as u64,
            high_memory: 0,
            clock_base: 0,
            serial: [true; 2],
            physical_address_bits: 36,
            timer_width: TimerWidth::Bits32,
            virtio: Config {
                nics,
                console: Some(console::Config {
                    slot: 2,
                    columns: 80,
                    rows: 25,
                }),
            },
        });
        let mut driver = Self {
            choice,
            chips,
            ram: Ram(vec![0; RAM_BYTES]),
            seen: Vec::new(),
            frames: Vec::new(),
            said: 0,
        };
        driver.start();
        driver
    }

    fn has(&self, bit: u8) -> bool {
        self.choice >> bit & 1 != 0
    }

    fn config(&self, offset: u64) -> u64 {
        let slot = if self.has(0) { 2 } else { 1 };
        bus::ECAM + (slot << 15) + offset
    }

    fn write(&mut self, offset: u32, size: u8, value: u64) {
        self.chips
            .write_memory(NOW, BAR + u64::from(offset), size, value);
    }

    fn read(&mut self, offset: u32, size: u8) -> u64 {
        let value = self.chips.read_memory(NOW, BAR + u64::from(offset), size);
        value.unwrap_or(u64::MAX)
    }

    /// Sets the device up as a driver does.
    fn start(&mut self) {
        for (offset, size, value) in [(0x10, 4, BAR), (4, 2, 6)] {
            let at = self.config(offset);
            self.chips.write_memory(NOW, at, size, value);
        }
        let wanted = [
            (2, spec::INDIRECT_DESC),
            (3, spec::EVENT_IDX),
            (4, net::feature::MRG_RXBUF | net::feature::CSUM),
            (
                5,
                net::feature::CTRL_VQ | net::feature::CTRL_RX | net::feature::CTRL_MAC_ADDR,
            ),
        ];
        let wanted = wanted.into_iter().filter(|(bit, _)| self.has(*bit));
        let ours = if self.has(0) { 0 } else { net::LAYOUT.features };
        let ours = ours | spec::INDIRECT_DESC | spec::EVENT_IDX;
        let features = wanted.fold(spec::VERSION_1, |all, (_, feature)| all | feature & ours);
        for status in [0, 1, 3] {
            self.write(common::STATUS, 1, status);
        }
        for half in 0..2 {
            self.write(common::DRIVER_FEATURE_SELECT, 4, half);
            self.write(
                common::DRIVER_FEATURE,
                4,
                features >> (32 * half) & 0xffff_ffff,
            );
        }
        self.write(common::STATUS, 1, 0xb);
        for queue in 0..3 {
            self.write(common::QUEUE_SELECT, 2, queue);
            self.write(common::QUEUE_SIZE, 2, SIZE.into());
            self.write(common::QUEUE_VECTOR, 2, queue);
            for (at, area) in (common::QUEUE_AREAS..).step_by(8).zip([0, 0x400, 0x800]) {
                self.write(at, 8, 0x1000 * (queue + 1) + area);
            }
            self.write(common::QUEUE_ENABLE, 2, 1);
            let message = spec::MSIX_TABLE + 16 * queue as u32;
            self.write(message, 8, 0xfee0_0000);
            self.write(message + 8, 8, 0x40 + queue);
        }
        if self.has(1) {
            // The first of the capabilities.
            let at = self.config(0x43);
            self.chips
                .write_memory(NOW, at, 1, spec::MSIX_ENABLE.into());
        }
        self.write(common::STATUS, 1, 0xf);
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::Fill(address, bytes) => {
                // What does not fit is not written.
                let written = self.ram.write(*address, bytes);
                self.seen.push(written.is_ok().into());
            }
            Step::Write(offset, size, value) => {
                self.chips.write_memory(NOW, BAR + offset, *size, *value);
            }
            Step::Read(offset, size) => {
                let value = self.chips.read_memory(NOW, BAR + offset, *size);
                self.seen.push(value.unwrap_or(u64::MAX));
            }
            Step::Configure(offset, size, value) => {
                let at = self.config(*offset);
                self.chips.write_memory(NOW, at, *size, *value);
            }
            Step::Kick(queue) => {
                let at = spec::NOTIFY + spec::NOTIFY_MULTIPLIER * u32::from(*queue);
                self.write(at, 2, 0);
            }
            Step::Receive(bytes, what) => {
                let mut frame = vec![*what; (*bytes).min(9216)];
                let to = frame.iter_mut().zip(MAC.0).filter(|_| what % 2 == 0);
                to.for_each(|(place, byte)| *place = byte);
                let there = self.chips.receive_frame(NOW, 0, &frame, &mut self.ram);
                assert!(there);
            }
            Step::Type(count) => {
                let bytes = vec![b'x'; usize::from(*count)];
                let taken = self.chips.receive_virtio(NOW, &bytes, &mut self.ram);
                self.seen.push(taken as u64);
            }
            Step::Change(3) => self.chips.reset(NOW),
            Step::Change(2) => self.start(),
            Step::Change(up) => assert!(self.chips.set_link(NOW, 0, *up == 1)),
        }
        self.serve();
        self.seen.extend(self.chips.acknowledge().map(u64::from));
    }

    /// What is put out is bounded, and made of whole frames.
    fn serve(&mut self) {
        let (mut frames, mut said) = (Vec::new(), 0);
        let out = &mut |output: Output<'_>| match output {
            Output::Frame { nic, bytes } => {
                assert_eq!(nic, 0);
                assert!((14..=usize::from(MTU) + 18).contains(&bytes.len()));
                frames.push(bytes.to_vec());
            }
            Output::Console(bytes) => said += bytes.len(),
        };
        self.chips.serve(NOW, &mut self.ram, out);
        assert!(!self.chips.is_kicked());
        let most = usize::from(queue::spec::MAX_SIZE);
        assert!(frames.len() <= most && said <= most * console::spec::CHAIN_BYTES as usize);
        self.frames.extend(frames);
        self.said += said;
    }

    /// However broken the device is, a reset makes it work.
    fn starts_again(&mut self) {
        self.chips.reset(NOW);
        self.ram.0.fill(0);
        self.chips.set_link(NOW, 0, true);
        self.start();
        self.serve();
        assert_eq!(self.read(common::STATUS, 1), 0xf);
        // One chain to send, of 40 bytes.
        let (before, said) = (self.frames.len(), self.said);
        for (address, value) in [(0x2000, 0x8000), (0x2008, 40), (0x2402, 1)] {
            let written = self.ram.write(address, &u32::to_le_bytes(value));
            assert!(written.is_ok());
        }
        self.perform(&Step::Kick(1));
        let sent = self.frames.len() - before + self.said - said;
        assert_eq!(sent, if self.has(0) { 40 } else { 1 });
    }
}

/// Virtio devices: rings and registers.
pub fn virtio(bytes: &[u8]) {
    let Some((choice, program)) = bytes.split_first() else {
        return;
    };
    let run = || {
        let mut driver = Driver::new(*choice);
        let mut reader = Reader(program);
        while let Some(step) = reader.step() {
            driver.perform(&step);
        }
        driver
    };
    let (mut one, two) = (run(), run());
    assert!(one.chips == two.chips && one.ram.0 == two.ram.0);
    assert!(one.seen == two.seen && one.frames == two.frames && one.said == two.said);
    one.starts_again();
}
