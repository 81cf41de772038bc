//! A virtio device at its place on the bus: transport and what is behind it.

use alloc::boxed::Box;

use super::console::{self, Console};
use super::net::{self, Net};
use super::pci::{Reaction, Transport, spec};
use super::queue::Fault;
use super::{Memory, Sink};
use crate::pci::Function;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A network card.
    Net(Box<Net>),
    /// A console.
    Console(Box<Console>),
}

impl Model {
    fn config(&self) -> [u8; spec::DEVICE_BYTES] {
        match self {
            Self::Net(net) => net.config(),
            Self::Console(console) => console.config(),
        }
    }

    fn reset(&mut self) {
        match self {
            Self::Net(net) => net.reset(),
            Self::Console(console) => console.reset(),
        }
    }

    /// Does what can be done with queue `number`, which was kicked.
    fn serve(
        &mut self,
        transport: &mut Transport,
        number: u16,
        memory: &mut impl Memory,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        match self {
            Self::Net(net) => net.serve(transport, number, memory, out),
            Self::Console(console) => console.serve(transport, number, memory, out),
        }
    }
}

/// A virtio device on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    slot: u8,
    transport: Transport,
    model: Model,
}

impl Device {
    /// Network card `number`, and its function.
    ///
    /// # Panics
    ///
    /// When the configuration is not [valid](net::Config::is_valid).
    #[must_use]
    pub fn net(number: u8, config: &net::Config) -> (Self, Function) {
        let model = Model::Net(Box::new(Net::new(number, config)));
        Self::new(config.slot, Transport::new(net::LAYOUT), model)
    }

    /// A console, and its function.
    #[must_use]
    pub fn console(config: &console::Config) -> (Self, Function) {
        let model = Model::Console(Box::new(Console::new(config)));
        Self::new(config.slot, Transport::new(console::LAYOUT), model)
    }

    fn new(
        slot: u8,
        (transport, function): (Transport, Function),
        model: Model,
    ) -> (Self, Function) {
        let device = Self {
            slot,
            transport,
            model,
        };
        (device, function)
    }

    /// Its number on the bus.
    #[must_use]
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// What it is.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Its registers.
    #[must_use]
    pub const fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Whether it has to look at its queues.
    #[inline]
    #[must_use]
    pub const fn is_kicked(&self) -> bool {
        self.transport.is_kicked()
    }

    /// Reads at an offset of the BAR.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        self.transport.read(offset, size, &self.model.config())
    }

    /// Writes at an offset of the BAR.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        match self.transport.write(offset, size, value) {
            Reaction::None => {}
            Reaction::Reset => self.model.reset(),
        }
    }

    /// The driver is about to read `size` bytes of configuration space at `offset`.
    pub fn before_config_read(&mut self, function: &mut Function, offset: u16, size: u8) {
        if let Some((at, bytes)) = self.transport.window(function, offset, size) {
            let value = self.read(at, bytes).to_le_bytes();
            for (place, byte) in (self.transport.window_data()..)
                .zip(value)
                .take(bytes.into())
            {
                function.write(place, byte);
            }
        }
    }

    /// The driver has written `size` bytes of configuration space at `offset`.
    pub fn after_config_write(&mut self, function: &Function, offset: u16, size: u8) {
        if let Some((at, bytes)) = self.transport.window(function, offset, size) {
            let data = self.transport.window_data();
            let value = u32::from_le_bytes([0, 1, 2, 3].map(|i| function.read(data + i)));
            self.write(at, bytes, u64::from(value) & crate::all_ones(bytes));
        }
    }

    /// Looks at the queues that were kicked. A device that may not master the bus looks at none.
    pub fn serve(&mut self, function: &Function, memory: &mut impl Memory, out: &mut Sink<'_>) {
        let kicked = self.transport.take_kicks();
        if !function.is_bus_master() {
            return;
        }
        for number in 0..u16::BITS as u16 {
            if kicked >> number & 1 == 0 {
                continue;
            }
            let served = self.model.serve(&mut self.transport, number, memory, out);
            if let Err(fault) = served {
                return self.transport.break_down(fault);
            }
        }
    }

    /// A frame comes for a network card. Where it cannot be handed to the driver it is dropped and counted.
    pub fn receive_frame(&mut self, function: &Function, memory: &mut impl Memory, frame: &[u8]) {
        if let Model::Net(net) = &mut self.model {
            let transport = &mut self.transport;
            let received = net.receive(transport, memory, frame, function.is_bus_master());
            if let Err(fault) = received {
                transport.break_down(fault);
            }
        }
    }

    /// The link of a network card goes up or down.
    pub fn set_link(&mut self, up: bool) {
        if let Model::Net(net) = &mut self.model
            && net.set_link(up)
            && self.transport.has(net::feature::STATUS)
        {
            self.transport.change_config();
        }
    }

    /// A device of a machine that was reset: the link stays as it is, what was counted stays counted.
    pub fn keep_outside(&mut self, before: &Self) {
        match (&mut self.model, &before.model) {
            (Model::Net(net), Model::Net(before)) => net.keep_outside(before),
            (Model::Console(console), Model::Console(before)) => console.keep_outside(before),
            _ => {}
        }
    }

    /// Bytes are typed on a console. Returns how many it has taken.
    pub fn receive_bytes(
        &mut self,
        function: &Function,
        memory: &mut impl Memory,
        bytes: &[u8],
    ) -> usize {
        let Model::Console(console) = &mut self.model else {
            return 0;
        };
        let taken = console.push(bytes);
        if function.is_bus_master()
            && let Err(fault) = console.fill(&mut self.transport, memory)
        {
            self.transport.break_down(fault);
        }
        taken
    }

    /// Turns what was raised into messages, which leave through `send`, or the function's level.
    pub fn settle(&mut self, function: &mut Function, send: &mut dyn FnMut(u64, u32)) {
        self.transport.settle(function, send);
    }
}
