//! Console (VIRTIO 5.3) with one port.

use alloc::vec;
use alloc::vec::Vec;

use super::pci::{Layout, Transport, spec as transport};
use super::queue::{Chain, Fault};
use super::{Memory, Output, Sink};
use crate::fifo::Fifo;

/// Facts of the device, and its limits.
pub mod spec {
    /// Type of the device.
    pub const KIND: u16 = 3;
    /// Class: communication controller of no other kind.
    pub const CLASS: u32 = 0x07_8000;
    /// Queue of what is typed.
    pub const RECEIVE: u16 = 0;
    /// Queue of what is said.
    pub const TRANSMIT: u16 = 1;
    /// Typed bytes that wait for buffers; more are dropped.
    pub const INPUT_BYTES: usize = 1024;
    /// Bytes of one chain that are put out; the rest is dropped.
    pub const CHAIN_BYTES: u32 = 64 << 10;
    /// Bytes that are put out at once.
    pub const PIECE_BYTES: usize = 1024;
    /// Feature: the configuration tells the size of the screen.
    pub const SIZE: u64 = 1 << 0;
}

/// What the transport offers.
pub const LAYOUT: Layout = Layout {
    kind: spec::KIND,
    class: spec::CLASS,
    features: spec::SIZE,
    requirements: &[],
    queues: 2,
};

/// A console at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Device number on the bus, 1 … 31.
    pub slot: u8,
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    config: Config,
    input: Fifo<{ spec::INPUT_BYTES }>,
    /// Bytes put out and dropped since power-on.
    said: u64,
    dropped: u64,
    piece: Vec<u8>,
    chain: Chain,
}

impl Console {
    /// A console on which nothing was typed.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            config: *config,
            input: Fifo::default(),
            said: 0,
            dropped: 0,
            piece: vec![0; spec::PIECE_BYTES],
            chain: Chain::default(),
        }
    }

    /// Bytes put out since power-on.
    #[must_use]
    pub const fn said(&self) -> u64 {
        self.said
    }

    /// Bytes of output dropped since power-on, because there were more in a chain than a console can say.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The configuration as the driver reads it (5.3.4).
    #[must_use]
    pub fn config(&self) -> [u8; transport::DEVICE_BYTES] {
        let mut bytes = [0; transport::DEVICE_BYTES];
        bytes[..2].copy_from_slice(&self.config.columns.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.config.rows.to_le_bytes());
        // One port.
        bytes[4] = 1;
        bytes
    }

    /// The driver resets the device.
    pub fn reset(&mut self) {
        self.input.clear();
    }

    /// A console of a machine that was reset: it counts on.
    pub const fn keep_outside(&mut self, before: &Self) {
        self.said = before.said;
        self.dropped = before.dropped;
    }

    /// Does what a kick of queue `number` asks for.
    ///
    /// # Errors
    ///
    /// The queue is malformed.
    pub fn serve(
        &mut self,
        transport: &mut Transport,
        number: u16,
        memory: &mut impl Memory,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        match number {
            spec::RECEIVE => self.fill(transport, memory),
            _ => self.empty(transport, memory, out),
        }
    }

    /// Bytes are typed. Returns how many there was room for.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        bytes
            .iter()
            .take_while(|byte| self.input.push(**byte))
            .count()
    }

    /// Gives the driver what was typed, as far as there are buffers.
    ///
    /// # Errors
    ///
    /// The receive queue is malformed.
    pub fn fill(
        &mut self,
        transport: &mut Transport,
        memory: &mut impl Memory,
    ) -> Result<(), Fault> {
        let Some(queue) = transport.queue(spec::RECEIVE) else {
            return Ok(());
        };
        for _ in 0..queue.available(memory)? {
            if self.input.is_empty() {
                break;
            }
            queue.take(memory, &mut self.chain)?;
            if self.chain.readable() != 0 {
                return Err(Fault::Direction);
            }
            let room = (self.chain.writable() as usize).min(self.piece.len());
            let mut bytes = 0;
            for (place, byte) in self
                .piece
                .iter_mut()
                .take(room)
                .zip(core::iter::from_fn(|| self.input.pop()))
            {
                *place = byte;
                bytes += 1;
            }
            let piece = self.piece.get(..bytes).unwrap_or(&[]);
            self.chain.write(memory, 0, piece)?;
            queue.use_up(memory, &self.chain, bytes as u32)?;
        }
        // New buffers matter only while bytes wait for them.
        queue.ask_for_kicks(memory, !self.input.is_empty())?;
        if queue.publish(memory)? {
            transport.raise(spec::RECEIVE);
        }
        Ok(())
    }

    fn empty(
        &mut self,
        transport: &mut Transport,
        memory: &mut impl Memory,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        transport.drain(spec::TRANSMIT, memory, |memory, chain| {
            self.say(memory, chain, out)?;
            Ok(0)
        })
    }

    /// Puts out what is in the chain.
    fn say(
        &mut self,
        memory: &impl Memory,
        chain: &Chain,
        out: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        if chain.writable() != 0 {
            return Err(Fault::Direction);
        }
        let end = chain.readable().min(spec::CHAIN_BYTES);
        for at in (0..end).step_by(spec::PIECE_BYTES) {
            let bytes = (end - at).min(spec::PIECE_BYTES as u32);
            let piece = self.piece.get_mut(..bytes as usize).unwrap_or_default();
            chain.read(memory, at, piece)?;
            out(Output::Console(piece));
        }
        self.said = self.said.wrapping_add(end.into());
        let rest = chain.readable() - end;
        self.dropped = self.dropped.wrapping_add(rest.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
