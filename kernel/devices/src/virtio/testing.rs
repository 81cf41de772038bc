//! A driver for tests: RAM in a vector, rings that it fills as drivers do or as none should.

use alloc::vec;
use alloc::vec::Vec;

use arch::nic::Mac;

use super::pci::spec::{self, common};
use super::queue::spec as ring;
use super::{Config, Memory, NotRam, Output, console, net};
use crate::chipset::{self, Chipset, Effect};
use crate::pci::spec as bus;
use crate::time::GuestTime;

/// RAM from address 0 up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram(pub Vec<u8>);

impl Ram {
    pub fn new() -> Self {
        Self(vec![0; 256 << 10])
    }

    fn range(&self, at: u64, bytes: usize) -> Result<core::ops::Range<usize>, NotRam> {
        let start = usize::try_from(at).map_err(|_| NotRam)?;
        let end = start.checked_add(bytes).ok_or(NotRam)?;
        (end <= self.0.len()).then_some(start..end).ok_or(NotRam)
    }

    pub fn bytes(&self, at: u64, count: usize) -> &[u8] {
        &self.0[at as usize..][..count]
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.write(at, bytes).unwrap();
    }

    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(*self.bytes(at, 2).first_chunk().unwrap())
    }

    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(*self.bytes(at, 4).first_chunk().unwrap())
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

/// The driver's side of a queue: three areas of 4 KiB each from `base` on.
#[derive(Clone, Debug)]
pub struct Ring {
    pub base: u64,
    pub size: u16,
    /// The available ring's index.
    pub index: u16,
}

impl Ring {
    pub const BYTES: u64 = 0x3000;

    pub fn new(base: u64, size: u16) -> Self {
        Self {
            base,
            size,
            index: 0,
        }
    }

    pub fn areas(&self) -> [u64; 3] {
        [self.base, self.base + 0x1000, self.base + 0x2000]
    }

    pub fn describe(&self, ram: &mut Ram, index: u16, descriptor: (u64, u32, u16, u16)) {
        put_descriptor(ram, self.base + 16 * u64::from(index), descriptor);
    }

    /// A chain of these buffers from descriptor `head` on: address, bytes, flags without NEXT.
    pub fn chain(&self, ram: &mut Ram, head: u16, buffers: &[(u64, u32, u16)]) {
        for (i, (address, bytes, flags)) in (0u16..).zip(buffers) {
            let last = usize::from(i) + 1 == buffers.len();
            let flags = flags | if last { 0 } else { ring::NEXT };
            self.describe(ram, head + i, (*address, *bytes, flags, head + i + 1));
        }
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, ram: &mut Ram, head: u16) {
        let slot = u64::from(self.index % self.size);
        ram.put(self.base + 0x1004 + 2 * slot, &head.to_le_bytes());
        self.index = self.index.wrapping_add(1);
        ram.put(self.base + 0x1002, &self.index.to_le_bytes());
    }

    /// The used ring's index.
    pub fn used(&self, ram: &Ram) -> u16 {
        ram.u16(self.base + 0x2002)
    }

    /// Entry `slot` of the used ring: head and bytes.
    pub fn used_entry(&self, ram: &Ram, slot: u16) -> (u32, u32) {
        let at = self.base + 0x2004 + 8 * u64::from(slot);
        (ram.u32(at), ram.u32(at + 4))
    }

    /// Where the driver says at which used index it wants to be interrupted, and the device at which available index
    /// it wants to be kicked.
    pub fn events(&self) -> (u64, u64) {
        let size = u64::from(self.size);
        (self.base + 0x1004 + 2 * size, self.base + 0x2004 + 8 * size)
    }

    pub fn set_flags(&self, ram: &mut Ram, flags: u16) {
        ram.put(self.base + 0x1000, &flags.to_le_bytes());
    }
}

pub fn put_descriptor(ram: &mut Ram, at: u64, (address, bytes, flags, next): (u64, u32, u16, u16)) {
    ram.put(at, &address.to_le_bytes());
    ram.put(at + 8, &bytes.to_le_bytes());
    ram.put(at + 12, &flags.to_le_bytes());
    ram.put(at + 14, &next.to_le_bytes());
}

pub const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
pub const NIC_SLOT: u8 = 3;
pub const CONSOLE_SLOT: u8 = 5;
/// Where BARs are put.
const BARS: u64 = 0xf000_0000;
/// First byte of the rings, and of what tests put into buffers.
pub const RINGS: u64 = 0x1_0000;
pub const BUFFERS: u64 = 0x2_0000;

/// A machine with a network card and a console.
pub const CONFIG: chipset::Config = chipset::Config {
    virtio: Config {
        nics: [
            None,
            Some(net::Config {
                slot: NIC_SLOT,
                mac: MAC,
                mtu: 1500,
            }),
            None,
            None,
        ],
        console: Some(console::Config {
            slot: CONSOLE_SLOT,
            columns: 80,
            rows: 25,
        }),
    },
    ..chipset::tests::CONFIG
};
/// The number of the card in that.
pub const NIC: u8 = 1;

/// A driver of one device of a machine.
#[derive(Clone, Debug)]
pub struct Driver {
    pub chips: Chipset,
    pub ram: Ram,
    pub slot: u8,
    pub now: GuestTime,
    pub rings: Vec<Ring>,
    /// What came out.
    pub frames: Vec<Vec<u8>>,
    pub said: Vec<u8>,
}

impl Driver {
    /// A device whose BAR is placed and decodes, and that may master the bus.
    pub fn plugged(slot: u8) -> Self {
        let mut driver = Self {
            chips: Chipset::new(&CONFIG),
            ram: Ram::new(),
            slot,
            now: GuestTime(0),
            rings: Vec::new(),
            frames: Vec::new(),
            said: Vec::new(),
        };
        let bar = driver.bar();
        driver.config_write(0x10, 4, bar as u32);
        driver.config_write(0x04, 2, 0x6);
        driver
    }

    /// One that is driven with `features` besides VERSION_1 and queues of `size`.
    pub fn started(slot: u8, features: u64, size: u16) -> Self {
        let mut driver = Self::plugged(slot);
        assert!(driver.negotiate(features | spec::VERSION_1));
        let queues = driver.read(common::NUM_QUEUES, 2) as u16;
        for number in 0..queues {
            let ring = Ring::new(RINGS + u64::from(number) * Ring::BYTES, size);
            driver.add_queue(number, ring);
        }
        driver.write(common::STATUS, 1, 0xf);
        driver.serve();
        driver
    }

    pub fn bar(&self) -> u64 {
        BARS + u64::from(self.slot) * spec::BAR_BYTES
    }

    pub fn config_address(&self, offset: u16) -> u64 {
        bus::ECAM + (u64::from(self.slot) << 15) + u64::from(offset)
    }

    pub fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        let address = self.config_address(offset);
        self.chips.read_memory(self.now, address, size).unwrap() as u32
    }

    pub fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        let address = self.config_address(offset);
        let effect = self
            .chips
            .write_memory(self.now, address, size, value.into());
        assert_eq!(effect, Some(Effect::None));
    }

    pub fn read(&mut self, offset: u32, size: u8) -> u64 {
        let address = self.bar() + u64::from(offset);
        self.chips.read_memory(self.now, address, size).unwrap()
    }

    pub fn write(&mut self, offset: u32, size: u8, value: u64) {
        let address = self.bar() + u64::from(offset);
        let effect = self.chips.write_memory(self.now, address, size, value);
        assert_eq!(effect, Some(Effect::None));
    }

    pub fn status(&mut self) -> u8 {
        self.read(common::STATUS, 1) as u8
    }

    pub fn is_broken(&mut self) -> bool {
        self.status() & spec::NEEDS_RESET != 0
    }

    /// Offers to do with `features`. Returns whether the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(common::STATUS, 1, 0);
        self.write(common::STATUS, 1, 1);
        self.write(common::STATUS, 1, 3);
        for half in 0..2 {
            self.write(common::DRIVER_FEATURE_SELECT, 4, half);
            self.write(
                common::DRIVER_FEATURE,
                4,
                features >> (32 * half) & 0xffff_ffff,
            );
        }
        self.write(common::STATUS, 1, 0xb);
        self.status() & spec::FEATURES_OK != 0
    }

    pub fn add_queue(&mut self, number: u16, ring: Ring) {
        self.write(common::QUEUE_SELECT, 2, number.into());
        self.write(common::QUEUE_SIZE, 2, ring.size.into());
        for (at, area) in (common::QUEUE_AREAS..).step_by(8).zip(ring.areas()) {
            self.write(at, 4, area & 0xffff_ffff);
            self.write(at + 4, 4, area >> 32);
        }
        self.write(common::QUEUE_ENABLE, 2, 1);
        self.rings.push(ring);
    }

    /// Switches MSI-X on with message n at vector 0x40 + n, for queue n; the configuration's is the last.
    pub fn use_messages(&mut self) {
        let queues = self.rings.len() as u16;
        for message in 0..=queues {
            let at = spec::MSIX_TABLE + 16 * u32::from(message);
            self.write(at, 8, 0xfee0_0000);
            self.write(at + 8, 8, 0x40 + u64::from(message));
            if message < queues {
                self.write(common::QUEUE_SELECT, 2, message.into());
                self.write(common::QUEUE_VECTOR, 2, message.into());
            }
        }
        self.write(common::CONFIG_VECTOR, 2, queues.into());
        self.set_messages(spec::MSIX_ENABLE);
    }

    pub fn set_messages(&mut self, control: u8) {
        let at = self.capability(|driver, at| driver.config_read(at, 1) == 0x11);
        self.config_write(at + 3, 1, control.into());
    }

    /// Offset of the first capability of which `is_it` says so.
    pub fn capability(&mut self, is_it: impl Fn(&mut Self, u16) -> bool) -> u16 {
        let mut at = self.config_read(0x34, 1) as u16;
        for _ in 0..16 {
            assert_ne!(at, 0, "no such capability");
            if is_it(self, at) {
                return at;
            }
            at = self.config_read(at + 1, 1) as u16;
        }
        panic!("a circle of capabilities");
    }

    /// Makes a chain of `buffers` available in queue `number`, at descriptor `head`.
    pub fn offer(&mut self, number: usize, head: u16, buffers: &[(u64, u32, u16)]) {
        let ring = &mut self.rings[number];
        ring.chain(&mut self.ram, head, buffers);
        ring.offer(&mut self.ram, head);
    }

    pub fn kick(&mut self, number: u16) {
        let at = spec::NOTIFY + spec::NOTIFY_MULTIPLIER * u32::from(number);
        self.write(at, 2, number.into());
        self.serve();
    }

    /// What the machine does behind every access.
    pub fn serve(&mut self) {
        if self.chips.is_kicked() {
            let (frames, said) = (&mut self.frames, &mut self.said);
            let out = &mut |output: Output<'_>| match output {
                Output::Frame { nic, bytes } => {
                    assert_eq!(nic, NIC);
                    frames.push(bytes.to_vec());
                }
                Output::Console(bytes) => said.extend(bytes),
            };
            self.chips.serve(self.now, &mut self.ram, out);
            assert!(!self.chips.is_kicked());
        }
    }

    pub fn receive(&mut self, frame: &[u8]) {
        let there = self
            .chips
            .receive_frame(self.now, NIC, frame, &mut self.ram);
        assert!(there);
    }

    pub fn used(&self, number: usize) -> u16 {
        self.rings[number].used(&self.ram)
    }

    /// The vectors that the processor takes now.
    pub fn interrupts(&mut self) -> Vec<u8> {
        let mut taken = Vec::new();
        while let Some(vector) = self.chips.acknowledge() {
            taken.push(vector);
            let end = self.chips.write_memory(self.now, 0xfee0_00b0, 4, 0);
            assert_eq!(end, Some(Effect::None));
        }
        taken
    }
}

/// A frame for `to` of so many bytes.
pub fn frame(to: Mac, bytes: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
    let to = to.0.iter().zip(&mut frame);
    to.for_each(|(from, place)| *place = *from);
    frame
}
