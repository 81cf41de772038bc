//! The PCI transport (VIRTIO 4.1): registers in a BAR, capabilities that say where, interrupts.
//!
//! There is one BAR with everything in it. What happens in the device raises an interrupt, which becomes a message or
//! the level of a pin when [`Transport::settle`] looks at the function's configuration space.

use alloc::vec;
use alloc::vec::Vec;

use super::Memory;
use super::queue::{self, Chain, Fault, Queue};
use crate::pci::{BarKind, Function, Identity};

/// Facts of the transport, and this machine's choice of where things are.
pub mod spec {
    /// Vendor of all virtio devices (4.1.2).
    pub const VENDOR: u16 = 0x1af4;
    /// The device identifier is this plus the type of the device.
    pub const FIRST_DEVICE: u16 = 0x1040;
    /// Subsystem, which for devices that are not transitional is 0x40 or more.
    pub const SUBSYSTEM: u16 = 0x1100;
    /// Revision: 1 or more.
    pub const REVISION: u8 = 1;

    /// The BAR with all registers.
    pub const BAR: u8 = 0;
    /// Its size.
    pub const BAR_BYTES: u64 = 32 << 10;
    /// Bytes of each of the areas in it.
    pub const AREA_BYTES: u32 = 4 << 10;
    /// Offset of the common configuration.
    pub const COMMON: u32 = 0;
    /// Offset of the interrupt status.
    pub const ISR: u32 = AREA_BYTES;
    /// Offset of the device's own configuration.
    pub const DEVICE: u32 = 2 * AREA_BYTES;
    /// Offset of where the driver kicks.
    pub const NOTIFY: u32 = 3 * AREA_BYTES;
    /// Offset of the table of interrupt messages.
    pub const MSIX_TABLE: u32 = 4 * AREA_BYTES;
    /// Offset of the bits of pending messages.
    pub const MSIX_PENDING: u32 = 5 * AREA_BYTES;
    /// Bytes of the common configuration (4.1.4.3).
    pub const COMMON_BYTES: u32 = 56;
    /// Bytes between the places where two queues are kicked.
    pub const NOTIFY_MULTIPLIER: u32 = 4;
    /// Bytes of a device's own configuration at most.
    pub const DEVICE_BYTES: usize = 16;

    /// Identifier of a vendor's capability; virtio's are such (4.1.4).
    pub const VENDOR_CAPABILITY: u8 = 0x09;
    /// Types of them: common, notify, interrupt status, device, access by configuration space.
    pub const TYPES: [u8; 5] = [1, 2, 3, 4, 5];
    /// Identifier of the MSI-X capability (PCI 3.0, 6.8.2).
    pub const MSIX_CAPABILITY: u8 = 0x11;
    /// High byte of its message control: all messages wait.
    pub const MSIX_MASK: u8 = 1 << 6;
    /// High byte of its message control: on.
    pub const MSIX_ENABLE: u8 = 1 << 7;
    /// Bytes of an entry of the table.
    pub const MSIX_ENTRY_BYTES: usize = 16;
    /// No message (4.1.5.1.2).
    pub const NO_VECTOR: u16 = 0xffff;

    /// Interrupt status: a queue (4.1.4.5).
    pub const ISR_QUEUE: u8 = 1 << 0;
    /// Interrupt status: the configuration.
    pub const ISR_CONFIG: u8 = 1 << 1;

    /// Feature: indirect descriptors (6).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Feature: interrupts and kicks by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Feature: a device of this specification, not of drafts before.
    pub const VERSION_1: u64 = 1 << 32;

    /// Device status: the driver has seen it (2.1).
    pub const ACKNOWLEDGE: u8 = 1;
    /// Device status: the driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// Device status: the driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Device status: the features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// Device status: the device is broken until it is reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// Device status: the driver has given up.
    pub const FAILED: u8 = 0x80;

    /// Offsets in the common configuration.
    pub mod common {
        /// Which half of the device's features is shown.
        pub const DEVICE_FEATURE_SELECT: u32 = 0;
        /// That half.
        pub const DEVICE_FEATURE: u32 = 4;
        /// Which half of the driver's features is meant.
        pub const DRIVER_FEATURE_SELECT: u32 = 8;
        /// That half.
        pub const DRIVER_FEATURE: u32 = 12;
        /// Message for changes of the configuration.
        pub const CONFIG_VECTOR: u32 = 16;
        /// Number of queues.
        pub const NUM_QUEUES: u32 = 18;
        /// Device status.
        pub const STATUS: u32 = 20;
        /// Changes with the device's own configuration.
        pub const GENERATION: u32 = 21;
        /// Which queue is meant by what follows.
        pub const QUEUE_SELECT: u32 = 22;
        /// Its size.
        pub const QUEUE_SIZE: u32 = 24;
        /// Its message.
        pub const QUEUE_VECTOR: u32 = 26;
        /// Whether it is on.
        pub const QUEUE_ENABLE: u32 = 28;
        /// Where it is kicked.
        pub const QUEUE_NOTIFY: u32 = 30;
        /// First of its three areas.
        pub const QUEUE_AREAS: u32 = 32;
    }
}

use spec::common;

/// Bits of all features that concern the transport and the queues. All devices offer them.
const TRANSPORT_FEATURES: u64 = spec::INDIRECT_DESC | spec::EVENT_IDX | spec::VERSION_1;

/// What kind of device a transport is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Type (VIRTIO 5).
    pub kind: u16,
    /// PCI class, as in [`Identity::class`].
    pub class: u32,
    /// Features besides those of the transport.
    pub features: u64,
    /// Pairs of features of which the first cannot be had without the second.
    pub requirements: &'static [(u64, u64)],
    /// Queues, at most 16.
    pub queues: u16,
}

/// What the device has to do after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reaction {
    /// Nothing.
    None,
    /// Start over.
    Reset,
}

/// A virtio device's registers and queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    layout: Layout,
    status: u8,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    generation: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    /// Place for a chain, so that nothing has to be allocated.
    chain: Chain,
    /// Message of each queue, and of the configuration.
    queue_vectors: Vec<u16>,
    config_vector: u16,
    isr: u8,
    /// Queues with an interrupt that [`Transport::settle`] has not seen; the same for the configuration.
    raised: u16,
    raised_config: bool,
    /// Queues that the driver has kicked.
    kicked: u16,
    fault: Option<Fault>,
    /// Table of messages, one for each queue and one for the configuration, and bits of those that wait.
    messages: Vec<u8>,
    pending: u64,
    /// Where the two capabilities with state are.
    msix: u8,
    access: u8,
}

impl Transport {
    /// A device of this layout and its PCI function.
    #[must_use]
    pub fn new(layout: Layout) -> (Self, Function) {
        let mut function = Function::new(&Identity {
            vendor: spec::VENDOR,
            device: spec::FIRST_DEVICE + layout.kind,
            subsystem_vendor: spec::VENDOR,
            subsystem: spec::SUBSYSTEM,
            class: layout.class,
            revision: spec::REVISION,
        });
        function.add_bar(spec::BAR, BarKind::Memory32, spec::BAR_BYTES);
        function.set_interrupt_pin(1);
        let queues = usize::from(layout.queues);
        let msix = add_msix(&mut function, layout.queues);
        let access = add_capabilities(&mut function, layout.queues);
        // Vector control, the last four bytes of an entry: masked.
        let mut messages = vec![0; (queues + 1) * spec::MSIX_ENTRY_BYTES];
        for control in messages.iter_mut().skip(12).step_by(spec::MSIX_ENTRY_BYTES) {
            *control = 1;
        }
        let transport = Self {
            layout,
            status: 0,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            generation: 0,
            queue_select: 0,
            queues: vec![Queue::default(); queues],
            chain: Chain::default(),
            queue_vectors: vec![spec::NO_VECTOR; queues],
            config_vector: spec::NO_VECTOR,
            isr: 0,
            raised: 0,
            raised_config: false,
            kicked: 0,
            fault: None,
            messages,
            pending: 0,
            msix,
            access,
        };
        (transport, function)
    }

    // For the device.

    /// Whether driver and device agreed on all of `features`.
    #[must_use]
    pub const fn has(&self, features: u64) -> bool {
        self.accepted & features == features
    }

    /// The device status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        self.status
    }

    /// What broke the device.
    #[must_use]
    pub const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Queue `number`, if the driver is ready, the queue on and the device not broken (3.1.1: no buffers are consumed
    /// before DRIVER_OK).
    pub fn queue(&mut self, number: u16) -> Option<&mut Queue> {
        let running = self.is_running();
        let queue = self.queues.get_mut(usize::from(number))?;
        (running && queue.is_enabled()).then_some(queue)
    }

    /// Takes all chains that are available in queue `number` and lets `each` do with one what the device does, and say how
    /// many bytes it has written to it. The driver is told when all are used up.
    ///
    /// # Errors
    ///
    /// The queue is malformed, or what `each` finds.
    pub fn drain<M: Memory>(
        &mut self,
        number: u16,
        memory: &mut M,
        mut each: impl FnMut(&mut M, &Chain) -> Result<u32, Fault>,
    ) -> Result<(), Fault> {
        let running = self.is_running();
        let queue = self.queues.get_mut(usize::from(number));
        let Some(queue) = queue.filter(|queue| running && queue.is_enabled()) else {
            return Ok(());
        };
        for _ in 0..queue.available(memory)? {
            queue.take(memory, &mut self.chain)?;
            let written = each(memory, &self.chain)?;
            queue.use_up(memory, &self.chain, written)?;
        }
        queue.ask_for_kicks(memory, true)?;
        if queue.publish(memory)? {
            self.raise(number);
        }
        Ok(())
    }

    const fn is_running(&self) -> bool {
        self.status & (spec::DRIVER_OK | spec::NEEDS_RESET) == spec::DRIVER_OK
    }

    /// Whether a queue has been kicked.
    #[inline]
    #[must_use]
    pub const fn is_kicked(&self) -> bool {
        self.kicked != 0
    }

    /// Takes the kicks: bit n for queue n.
    pub const fn take_kicks(&mut self) -> u16 {
        core::mem::replace(&mut self.kicked, 0)
    }

    /// Interrupts for queue `number`.
    pub const fn raise(&mut self, number: u16) {
        self.raised |= 1 << number;
    }

    /// The device's own configuration has changed.
    pub const fn change_config(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.raise_config();
    }

    /// The driver made a mistake: the device is broken until it is reset, and says so (2.1.2).
    pub const fn break_down(&mut self, fault: Fault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
        }
        self.status |= spec::NEEDS_RESET;
        self.kicked = 0;
        self.raise_config();
    }

    const fn raise_config(&mut self) {
        if self.status & spec::DRIVER_OK != 0 {
            self.raised_config = true;
        }
    }

    // Interrupts.

    /// Turns what was raised into messages or a level, as the function is set up. Messages leave through `send`.
    pub fn settle(&mut self, function: &mut Function, send: &mut dyn FnMut(u64, u32)) {
        let control = function.read(u16::from(self.msix) + 3);
        let raised = core::mem::replace(&mut self.raised, 0);
        let config = core::mem::replace(&mut self.raised_config, false);
        if control & spec::MSIX_ENABLE == 0 {
            self.isr |= if raised != 0 { spec::ISR_QUEUE } else { 0 };
            self.isr |= if config { spec::ISR_CONFIG } else { 0 };
        } else {
            if config {
                self.pending |= bit(self.config_vector);
            }
            for (number, vector) in self.queue_vectors.iter().enumerate() {
                if raised >> number & 1 != 0 {
                    self.pending |= bit(*vector);
                }
            }
            if control & spec::MSIX_MASK == 0 && function.is_bus_master() {
                self.send_messages(send);
            }
        }
        let level = self.isr != 0 && control & spec::MSIX_ENABLE == 0;
        if function.interrupt() != level {
            function.set_interrupt(level);
        }
    }

    fn send_messages(&mut self, send: &mut dyn FnMut(u64, u32)) {
        if self.pending == 0 {
            return;
        }
        let (entries, _) = self.messages.as_chunks::<{ spec::MSIX_ENTRY_BYTES }>();
        for (number, entry) in entries.iter().enumerate() {
            let [address, data_and_control] = halves(entry);
            let masked = data_and_control >> 32 & 1 != 0;
            if self.pending >> number & 1 != 0 && !masked {
                self.pending &= !(1 << number);
                send(address, data_and_control as u32);
            }
        }
    }

    // Registers.

    /// Reads at an offset of the BAR. `config` is the device's own configuration.
    pub fn read(&mut self, offset: u64, size: u8, config: &[u8; spec::DEVICE_BYTES]) -> u64 {
        let Some((area, at)) = place(offset) else {
            return 0;
        };
        match area {
            spec::COMMON => slice(&self.common(), at, size),
            spec::ISR if at == 0 => core::mem::replace(&mut self.isr, 0).into(),
            spec::DEVICE => slice(config, at, size),
            spec::MSIX_TABLE => slice(&self.messages, at, size),
            spec::MSIX_PENDING => slice(&self.pending.to_le_bytes(), at, size),
            _ => 0,
        }
    }

    /// Writes at an offset of the BAR.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Reaction {
        match place(offset) {
            Some((spec::COMMON, at)) => return self.write_common(at, size, value),
            Some((spec::NOTIFY, at)) => self.kick(at / spec::NOTIFY_MULTIPLIER),
            Some((spec::MSIX_TABLE, at)) => self.write_messages(at, size, value),
            _ => {}
        }
        Reaction::None
    }

    fn kick(&mut self, number: u32) {
        let queue = self.queues.get(number as usize);
        if self.is_running() && queue.is_some_and(Queue::is_enabled) {
            self.kicked |= 1 << number;
        }
    }

    fn write_messages(&mut self, at: u32, size: u8, value: u64) {
        const CONTROL: usize = 12;
        let bytes = value.to_le_bytes();
        let places = self.messages.iter_mut().enumerate().skip(at as usize);
        for ((at, place), byte) in places.zip(bytes).take(size.into()) {
            // Of vector control only the mask exists.
            *place = match at % spec::MSIX_ENTRY_BYTES {
                CONTROL => byte & 1,
                13.. => 0,
                _ => byte,
            };
        }
    }

    /// The common configuration as the driver sees it.
    fn common(&self) -> [u8; spec::COMMON_BYTES as usize] {
        let mut bytes = [0; spec::COMMON_BYTES as usize];
        let mut put = |at: u32, value: &[u8]| {
            for (place, byte) in bytes.iter_mut().skip(at as usize).zip(value) {
                *place = *byte;
            }
        };
        let offered = half(self.offered(), self.device_feature_select);
        put(
            common::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(common::DEVICE_FEATURE, &offered.to_le_bytes());
        put(
            common::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        let accepted = half(self.accepted, self.driver_feature_select);
        put(common::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(common::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(common::NUM_QUEUES, &self.layout.queues.to_le_bytes());
        put(common::STATUS, &[self.status, self.generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (4.1.4.3.1).
        let selected = usize::from(self.queue_select);
        if let (Some(queue), Some(vector)) =
            (self.queues.get(selected), self.queue_vectors.get(selected))
        {
            put(common::QUEUE_SIZE, &queue.size().to_le_bytes());
            put(common::QUEUE_VECTOR, &vector.to_le_bytes());
            put(common::QUEUE_ENABLE, &[queue.is_enabled().into()]);
            put(common::QUEUE_NOTIFY, &self.queue_select.to_le_bytes());
            for (area, at) in queue.areas().iter().zip((common::QUEUE_AREAS..).step_by(8)) {
                put(at, &area.to_le_bytes());
            }
        }
        bytes
    }

    /// Fields are written whole, those of 64 bits also by halves (4.1.3.1); everything else changes nothing.
    fn write_common(&mut self, at: u32, size: u8, value: u64) -> Reaction {
        let selected = usize::from(self.queue_select);
        match (at, size) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (common::DRIVER_FEATURE, 4) => self.accept(value as u32),
            (common::CONFIG_VECTOR, 2) => self.config_vector = self.vector(value as u16),
            (common::STATUS, 1) => return self.set_status(value as u8),
            (common::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (common::QUEUE_SIZE, 2) => {
                if let Some(queue) = self.queues.get_mut(selected) {
                    queue.set_size(value as u16);
                }
            }
            (common::QUEUE_VECTOR, 2) => {
                let vector = self.vector(value as u16);
                if let Some(place) = self.queue_vectors.get_mut(selected) {
                    *place = vector;
                }
            }
            (common::QUEUE_ENABLE, 2) if value as u16 == 1 => self.enable(selected),
            (common::QUEUE_AREAS..spec::COMMON_BYTES, 4 | 8) => self.set_area(at, size, value),
            _ => {}
        }
        Reaction::None
    }

    fn set_area(&mut self, at: u32, size: u8, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        let offset = (at - common::QUEUE_AREAS) as usize;
        let area = offset / 8;
        let old = queue.areas().get(area).copied().unwrap_or(0);
        let new = match (offset % 8, size) {
            (0, 8) => value,
            (0, _) => old & !0xffff_ffff | value & 0xffff_ffff,
            (4, 4) => old & 0xffff_ffff | value << 32,
            _ => return,
        };
        queue.set_area(area, new);
    }

    fn enable(&mut self, selected: usize) {
        let (indirect, event_index) = (self.has(spec::INDIRECT_DESC), self.has(spec::EVENT_IDX));
        let agreed = self.status & spec::FEATURES_OK != 0;
        let enabled = match self.queues.get_mut(selected) {
            Some(queue) if agreed && !queue.is_enabled() => queue.enable(indirect, event_index),
            _ => Ok(()),
        };
        if let Err(fault) = enabled {
            self.break_down(fault);
        }
    }

    /// A message that does not exist is none (4.1.5.1.2.1).
    const fn vector(&self, number: u16) -> u16 {
        if number <= self.layout.queues {
            number
        } else {
            spec::NO_VECTOR
        }
    }

    const fn offered(&self) -> u64 {
        self.layout.features | TRANSPORT_FEATURES
    }

    /// The driver accepts features, until they are agreed upon.
    fn accept(&mut self, features: u32) {
        if self.status & spec::FEATURES_OK != 0 {
            return;
        }
        let features = u64::from(features);
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | features,
            1 => self.accepted = self.accepted & 0xffff_ffff | features << 32,
            _ => {}
        }
    }

    /// Whether the device can do with what the driver has accepted (2.2.2).
    fn agrees(&self) -> bool {
        let mut requirements = self.layout.requirements.iter();
        self.accepted & !self.offered() == 0
            && self.has(spec::VERSION_1)
            && requirements.all(|(feature, needed)| !self.has(*feature) || self.has(*needed))
    }

    /// A driver sets bits, and clears none but all (2.1.1).
    fn set_status(&mut self, value: u8) -> Reaction {
        if value == 0 {
            self.reset();
            return Reaction::Reset;
        }
        let added = value & !self.status;
        self.status |= added & (spec::ACKNOWLEDGE | spec::DRIVER | spec::FAILED);
        if added & spec::FEATURES_OK != 0 && self.agrees() {
            self.status |= spec::FEATURES_OK;
        }
        if added & self.status_allowed() & spec::DRIVER_OK != 0 {
            self.status |= spec::DRIVER_OK;
            if self.fault.is_some() {
                self.raise_config();
            }
            // What became available before, and was kicked for too early.
            for number in 0..u32::from(self.layout.queues) {
                self.kick(number);
            }
        }
        Reaction::None
    }

    const fn status_allowed(&self) -> u8 {
        if self.status & spec::FEATURES_OK != 0 {
            spec::DRIVER_OK
        } else {
            0
        }
    }

    /// Reset by the driver (2.4). The table of messages belongs to the function and stays.
    fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.queues.fill(Queue::default());
        self.queue_vectors.fill(spec::NO_VECTOR);
        self.config_vector = spec::NO_VECTOR;
        self.isr = 0;
        self.raised = 0;
        self.raised_config = false;
        self.kicked = 0;
        self.fault = None;
        self.pending = 0;
    }

    // Access by configuration space (4.1.4.9).

    /// Whether an access to `size` bytes at `offset` of the configuration space touches the data of the access
    /// capability, and which access to the BAR that is: its offset and size.
    #[must_use]
    pub fn window(&self, function: &Function, offset: u16, size: u8) -> Option<(u64, u8)> {
        const DATA: u16 = 16;
        const DATA_BYTES: u16 = 4;
        let capability = u16::from(self.access);
        let data = capability + DATA;
        if offset >= data + DATA_BYTES || offset + u16::from(size) <= data {
            return None;
        }
        let word =
            |at: u16| u32::from_le_bytes([0, 1, 2, 3].map(|i| function.read(capability + at + i)));
        let (bar, at, bytes) = (function.read(capability + 4), word(8), word(12));
        let allowed = bar == spec::BAR && matches!(bytes, 1 | 2 | 4);
        (allowed && at.is_multiple_of(bytes)).then_some((at.into(), bytes as u8))
    }

    /// Offset in configuration space of the data of that capability.
    #[must_use]
    pub fn window_data(&self) -> u16 {
        u16::from(self.access) + 16
    }
}

/// One bit for a message; none for the message that is none.
const fn bit(vector: u16) -> u64 {
    if vector < 64 { 1 << vector } else { 0 }
}

const fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Address, and data with vector control above, of a message's entry.
fn halves(entry: &[u8; spec::MSIX_ENTRY_BYTES]) -> [u64; 2] {
    let word = u128::from_le_bytes(*entry);
    [word as u64, (word >> 64) as u64]
}

/// The area of an offset in the BAR, and the offset in that.
fn place(offset: u64) -> Option<(u32, u32)> {
    let offset = u32::try_from(offset).ok()?;
    Some((
        offset & !(spec::AREA_BYTES - 1),
        offset & (spec::AREA_BYTES - 1),
    ))
}

/// `size` bytes of a register file; zeroes behind its end.
fn slice(bytes: &[u8], at: u32, size: u8) -> u64 {
    let mut value = [0; 8];
    let from = bytes.iter().skip(at as usize).take(size.into());
    for (place, byte) in value.iter_mut().zip(from) {
        *place = *byte;
    }
    u64::from_le_bytes(value)
}

fn add_msix(function: &mut Function, queues: u16) -> u8 {
    // As many as queues and one for the configuration; the field says one less.
    let [low, high] = queues.to_le_bytes();
    let mut body = vec![low, high];
    for offset in [spec::MSIX_TABLE, spec::MSIX_PENDING] {
        body.extend((offset | u32::from(spec::BAR)).to_le_bytes());
    }
    let mut writable = vec![0; body.len()];
    writable[1] = spec::MSIX_MASK | spec::MSIX_ENABLE;
    function.add_capability(spec::MSIX_CAPABILITY, &body, &writable)
}

/// The capabilities that say where the areas are. Returns where that for access by configuration space is.
fn add_capabilities(function: &mut Function, queues: u16) -> u8 {
    let notify_bytes = u32::from(queues) * spec::NOTIFY_MULTIPLIER;
    let device_bytes = spec::DEVICE_BYTES as u32;
    let [common, notify, isr, device, access] = spec::TYPES;
    for (kind, offset, bytes, more) in [
        (common, spec::COMMON, spec::COMMON_BYTES, None),
        (
            notify,
            spec::NOTIFY,
            notify_bytes,
            Some(spec::NOTIFY_MULTIPLIER),
        ),
        (isr, spec::ISR, 1, None),
        (device, spec::DEVICE, device_bytes, None),
    ] {
        let body = capability(kind, offset, bytes, more);
        function.add_capability(spec::VENDOR_CAPABILITY, &body, &vec![0; body.len()]);
    }
    // BAR, offset, length and data are the driver's.
    let body = capability(access, 0, 0, Some(0));
    let mut writable = vec![0xff; body.len()];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    function.add_capability(spec::VENDOR_CAPABILITY, &body, &writable)
}

/// A virtio capability without the two bytes that all capabilities begin with (4.1.4).
fn capability(kind: u8, offset: u32, bytes: u32, more: Option<u32>) -> Vec<u8> {
    let length = if more.is_some() { 20 } else { 16 };
    let mut body = vec![length, kind, spec::BAR, 0, 0, 0];
    for word in [Some(offset), Some(bytes), more].into_iter().flatten() {
        body.extend(word.to_le_bytes());
    }
    body
}

const _: () = assert!(queue::spec::MAX_SIZE.is_power_of_two());

#[cfg(test)]
mod tests;
