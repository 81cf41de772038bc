//! The virtio devices among the chips: how accesses, frames and typed bytes reach them, and their interrupts the others.

use alloc::vec::Vec;

use super::{Chipset, sender};
use crate::message::Message;
use crate::pci::{Bus, Function, Hit};
use crate::time::GuestTime;
use crate::virtio::net::Net;
use crate::virtio::pci::spec;
use crate::virtio::{Config, Device, Memory, Model, Sink};

/// The devices of a configuration, plugged into `bus`.
///
/// # Panics
///
/// When two have the same slot, or one has that of something else: which devices there are is no guest's choice.
pub(super) fn plug(config: &Config, bus: &mut Bus) -> Vec<Device> {
    let nics = (0..).zip(&config.nics);
    let nics = nics.filter_map(|(number, nic)| Some(Device::net(number, nic.as_ref()?)));
    let console = config.console.as_ref().map(Device::console);
    nics.chain(console)
        .map(|(device, function)| {
            let free = bus.function(device.slot()).is_none();
            assert!(free, "slot {} is taken", device.slot());
            bus.plug(device.slot(), function);
            device
        })
        .collect()
}

impl Chipset {
    /// A machine that was reset keeps what is outside of it, as `before` had it.
    pub(super) fn keep_outside(&mut self, before: &[Device]) {
        for (device, before) in self.virtio.iter_mut().zip(before) {
            device.keep_outside(before);
        }
    }

    // What comes and goes.

    /// Whether a virtio device has to look at the guest's memory: [`Chipset::serve`] is to be called before the guest
    /// runs on.
    #[inline]
    #[must_use]
    pub const fn is_kicked(&self) -> bool {
        self.kicked
    }

    /// Lets the devices that were kicked do their work. What the guest puts out goes to `out`.
    pub fn serve(&mut self, now: GuestTime, memory: &mut impl Memory, out: &mut Sink<'_>) {
        self.advance(now);
        self.kicked = false;
        for index in 0..self.virtio.len() {
            self.with_virtio(index, |device, function| {
                if device.is_kicked() {
                    device.serve(function, memory, out);
                }
            });
        }
    }

    /// A frame comes for network card `nic`. Whether the driver gets it or not is decided here. False: there is no such
    /// card.
    pub fn receive_frame(
        &mut self,
        now: GuestTime,
        nic: u8,
        frame: &[u8],
        memory: &mut impl Memory,
    ) -> bool {
        self.advance(now);
        self.nic_index(nic).is_some_and(|index| {
            self.with_virtio(index, |device, function| {
                device.receive_frame(function, memory, frame);
            })
        })
    }

    /// Whether network card `nic` would take a frame that came now if it has buffers: one that it would not need not
    /// enter.
    #[must_use]
    pub fn wants_frame(&self, nic: u8, frame: &[u8]) -> bool {
        let device = self.nic_index(nic).and_then(|index| self.virtio.get(index));
        device.is_some_and(|device| match device.model() {
            Model::Net(net) => net.wants(device.transport(), frame),
            Model::Console(_) => false,
        })
    }

    /// The link of network card `nic` goes up or down. False: there is no such card.
    pub fn set_link(&mut self, now: GuestTime, nic: u8, up: bool) -> bool {
        self.advance(now);
        self.nic_index(nic)
            .is_some_and(|index| self.with_virtio(index, |device, _| device.set_link(up)))
    }

    /// Bytes for the virtio console. Returns how many it took; without one, none.
    pub fn receive_virtio(
        &mut self,
        now: GuestTime,
        bytes: &[u8],
        memory: &mut impl Memory,
    ) -> usize {
        self.advance(now);
        let is_console = |device: &Device| matches!(device.model(), Model::Console(_));
        let Some(index) = self.virtio.iter().position(is_console) else {
            return 0;
        };
        let mut taken = 0;
        self.with_virtio(index, |device, function| {
            taken = device.receive_bytes(function, memory, bytes);
        });
        taken
    }

    /// Whether a driver uses a virtio console.
    #[must_use]
    pub fn has_virtio_console(&self) -> bool {
        let is_used = |device: &Device| {
            let ready = device.transport().status() & spec::DRIVER_OK != 0;
            ready && matches!(device.model(), Model::Console(_))
        };
        self.virtio.iter().any(is_used)
    }

    /// The virtio devices.
    #[must_use]
    pub fn virtio(&self) -> &[Device] {
        &self.virtio
    }

    /// Network card `nic`.
    #[must_use]
    pub fn nic(&self, nic: u8) -> Option<&Net> {
        match self.virtio.get(self.nic_index(nic)?)?.model() {
            Model::Net(net) => Some(net),
            Model::Console(_) => None,
        }
    }

    fn nic_index(&self, nic: u8) -> Option<usize> {
        let is_it =
            |device: &Device| matches!(device.model(), Model::Net(net) if net.number() == nic);
        self.virtio.iter().position(is_it)
    }

    // Wires.

    /// Which virtio device's registers are at an address, and the offset in them.
    pub(super) fn virtio_at(&self, address: u64) -> Option<(usize, u64)> {
        (0..).zip(&self.virtio).find_map(|(index, device)| {
            let function = self.pci.function(device.slot())?;
            let Hit { offset, .. } = function.find_memory(address)?;
            Some((index, offset))
        })
    }

    pub(super) fn read_virtio(&mut self, index: usize, offset: u64, size: u8) -> u64 {
        let mut value = 0;
        self.with_virtio(index, |device, _| value = device.read(offset, size));
        value
    }

    pub(super) fn write_virtio(&mut self, index: usize, offset: u64, size: u8, value: u64) {
        self.with_virtio(index, |device, _| device.write(offset, size, value));
    }

    /// Configuration space of a slot is about to be read.
    pub(super) fn before_config_read(&mut self, target: Option<(u8, u16)>, size: u8) {
        if let Some((index, offset)) = self.virtio_in(target) {
            self.with_virtio(index, |device, function| {
                device.before_config_read(function, offset, size);
            });
        }
    }

    /// Configuration space of a slot has been written: messages may go, levels change.
    pub(super) fn after_config_write(&mut self, target: Option<(u8, u16)>, size: u8) {
        if let Some((index, offset)) = self.virtio_in(target) {
            self.with_virtio(index, |device, function| {
                device.after_config_write(function, offset, size);
            });
        }
    }

    fn virtio_in(&self, target: Option<(u8, u16)>) -> Option<(usize, u16)> {
        let (slot, offset) = target?;
        let index = self
            .virtio
            .iter()
            .position(|device| device.slot() == slot)?;
        Some((index, offset))
    }

    /// Does something with a device and carries its interrupts on.
    fn with_virtio(&mut self, index: usize, act: impl FnOnce(&mut Device, &mut Function)) -> bool {
        let Some(device) = self.virtio.get_mut(index) else {
            return false;
        };
        let Some(function) = self.pci.function_mut(device.slot()) else {
            return false;
        };
        let before = function.asserted_pin();
        act(device, function);
        self.kicked |= device.is_kicked();
        let mut send = sender(&mut self.lapic);
        device.settle(function, &mut |address, data| {
            // A device writes its message and hears nothing of what becomes of it.
            if let Some(message) = Message::from_write(address, data) {
                send(&message);
            }
        });
        let changed = function.asserted_pin() != before;
        drop(send);
        if changed {
            self.settle();
        }
        true
    }
}
