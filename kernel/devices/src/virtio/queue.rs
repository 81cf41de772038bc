//! Split virtqueues (VIRTIO 2.7), as the device reads them.
//!
//! Everything in a ring is the guest's to write, so everything is checked where it is used. What is wrong is a [`Fault`],
//! after which the device does nothing until it is reset. The work of one look at a queue is bounded: at most
//! [`spec::MAX_SIZE`] chains of at most [`spec::MAX_CHAIN`] descriptors.

use alloc::vec::Vec;

use super::{Memory, NotRam};

/// Facts of the format.
pub mod spec {
    /// Descriptors of a queue at most, a power of two. Drivers may use fewer.
    pub const MAX_SIZE: u16 = 256;
    /// Descriptors of a chain at most, those of an indirect table included: as many as a queue can have (2.7.5.3.1).
    pub const MAX_CHAIN: u16 = MAX_SIZE;

    /// Bytes of a descriptor (2.7.5).
    pub const DESCRIPTOR_BYTES: u32 = 16;
    /// Descriptor flag: the chain goes on.
    pub const NEXT: u16 = 1 << 0;
    /// Descriptor flag: the device writes the buffer; else it reads it.
    pub const WRITE: u16 = 1 << 1;
    /// Descriptor flag: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 1 << 2;

    /// Alignment of the three areas: descriptors, driver (available ring), device (used ring) (2.7).
    pub const ALIGNMENT: [u64; 3] = [16, 2, 4];
    /// Flag of the available ring: no interrupts (2.7.6).
    pub const NO_INTERRUPT: u16 = 1 << 0;
    /// Flag of the used ring: no kicks (2.7.8).
    pub const NO_NOTIFY: u16 = 1 << 0;
    /// Offset of the index in both rings, and of the entries behind it.
    pub const INDEX: u64 = 2;
    /// Offset of the entries.
    pub const ENTRIES: u64 = 4;
    /// Bytes of an entry of the used ring.
    pub const USED_BYTES: u64 = 8;
}

/// What is wrong with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its size is no power of two up to the greatest.
    Size,
    /// One of its areas is not where such an area may begin, or does not fit below 2⁶⁴.
    Area,
    /// A ring or a buffer is not in RAM.
    NotRam,
    /// More chains became available than the queue has descriptors.
    Available,
    /// A descriptor's number is beyond its table.
    Descriptor,
    /// A chain is too long, or a circle, or its buffers have more than 2³² - 1 bytes.
    Chain,
    /// A buffer has no bytes.
    Empty,
    /// A buffer to read stands behind one to write.
    Order,
    /// A buffer to write where the device reads, or the other way round.
    Direction,
    /// An indirect table without the feature, in another, with a successor, or of a size that is no table's.
    Indirect,
    /// The buffers are too small for what has to be in them.
    Short,
}

impl From<NotRam> for Fault {
    fn from(_: NotRam) -> Self {
        Self::NotRam
    }
}

/// A buffer in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    bytes: u32,
}

/// The buffers of one chain: those that the device reads, then those that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of them the device reads.
    readable: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Default for Chain {
    /// An empty one, with room for any.
    fn default() -> Self {
        Self {
            head: 0,
            segments: Vec::with_capacity(usize::from(spec::MAX_CHAIN) + 1),
            readable: 0,
            readable_bytes: 0,
            writable_bytes: 0,
        }
    }
}

impl Chain {
    /// Bytes that the device can read.
    #[must_use]
    pub const fn readable(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes that the device can write.
    #[must_use]
    pub const fn writable(&self) -> u32 {
        self.writable_bytes
    }

    /// Fills `to` with what the driver put into the chain from byte `skip` on.
    ///
    /// # Errors
    ///
    /// The chain is shorter, or not in RAM.
    pub fn read(&self, memory: &impl Memory, skip: u32, to: &mut [u8]) -> Result<(), Fault> {
        let mut left = to;
        let readable = self.segments.get(..self.readable).unwrap_or(&[]);
        for (address, bytes) in pieces(readable, skip, left.len()) {
            let (piece, rest) = left.split_at_mut_checked(bytes).ok_or(Fault::Short)?;
            memory.read(address, piece)?;
            left = rest;
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(Fault::Short)
        }
    }

    /// Writes `from` to the chain from byte `skip` of its writable ones on.
    ///
    /// # Errors
    ///
    /// The chain is shorter, or not in RAM; a part may have been written.
    pub fn write(&self, memory: &mut impl Memory, skip: u32, from: &[u8]) -> Result<(), Fault> {
        let mut left = from;
        let writable = self.segments.get(self.readable..).unwrap_or(&[]);
        for (address, bytes) in pieces(writable, skip, left.len()) {
            let (piece, rest) = left.split_at_checked(bytes).ok_or(Fault::Short)?;
            memory.write(address, piece)?;
            left = rest;
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(Fault::Short)
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), Fault> {
        let writable = descriptor.flags & spec::WRITE != 0;
        if descriptor.bytes == 0 {
            return Err(Fault::Empty);
        }
        let end = descriptor.address.checked_add(descriptor.bytes.into());
        end.ok_or(Fault::NotRam)?;
        if !writable && self.segments.len() > self.readable {
            return Err(Fault::Order);
        }
        let total = if writable {
            &mut self.writable_bytes
        } else {
            self.readable += 1;
            &mut self.readable_bytes
        };
        *total = total.checked_add(descriptor.bytes).ok_or(Fault::Chain)?;
        self.segments.push(Segment {
            address: descriptor.address,
            bytes: descriptor.bytes,
        });
        Ok(())
    }
}

/// Where `count` bytes behind the first `skip` of `segments` lie.
fn pieces(segments: &[Segment], skip: u32, count: usize) -> impl Iterator<Item = (u64, usize)> {
    let (mut skip, mut left) = (skip, count);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.bytes);
        skip -= skipped;
        let bytes = left.min((segment.bytes - skipped) as usize);
        left -= bytes;
        // Below the end of the buffer, which is below 2⁶⁴.
        let address = segment.address.wrapping_add(skipped.into());
        (bytes != 0).then_some((address, bytes))
    })
}

struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors.
struct Table {
    address: u64,
    entries: u32,
}

impl Table {
    fn read(&self, memory: &impl Memory, index: u16) -> Result<Descriptor, Fault> {
        if u32::from(index) >= self.entries {
            return Err(Fault::Descriptor);
        }
        let offset = u64::from(index) * u64::from(spec::DESCRIPTOR_BYTES);
        let address = self.address.checked_add(offset).ok_or(Fault::NotRam)?;
        let mut bytes = [0; 16];
        memory.read(address, &mut bytes)?;
        let word = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            address: word as u64,
            bytes: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        })
    }
}

/// A virtqueue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    size: u16,
    /// Where the areas for descriptors, driver and device are.
    areas: [u64; 3],
    enabled: bool,
    /// The driver may use indirect tables.
    indirect: bool,
    /// Interrupts and kicks are asked for by index, not by flags.
    event_index: bool,
    /// Index of the next chain to take from the available ring.
    next_available: u16,
    /// Index of the next entry to write in the used ring …
    next_used: u16,
    /// … and what the driver was told it is.
    published: u16,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            size: spec::MAX_SIZE,
            areas: [0; 3],
            enabled: false,
            indirect: false,
            event_index: false,
            next_available: 0,
            next_used: 0,
            published: 0,
        }
    }
}

impl Queue {
    // What the transport sets.

    /// Descriptors.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Where the areas are: descriptors, driver, device.
    #[must_use]
    pub const fn areas(&self) -> &[u64; 3] {
        &self.areas
    }

    /// Whether the driver has switched it on.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The driver chooses a size. A queue that is on does not change.
    pub const fn set_size(&mut self, size: u16) {
        if !self.enabled {
            self.size = size;
        }
    }

    /// The driver places one of the areas. A queue that is on does not change.
    pub fn set_area(&mut self, area: usize, address: u64) {
        if let Some(place) = self.areas.get_mut(area).filter(|_| !self.enabled) {
            *place = address;
        }
    }

    /// The driver switches it on.
    ///
    /// # Errors
    ///
    /// Its size or the place of an area is not allowed.
    pub fn enable(&mut self, indirect: bool, event_index: bool) -> Result<(), Fault> {
        if !self.size.is_power_of_two() || self.size > spec::MAX_SIZE {
            return Err(Fault::Size);
        }
        for (area, alignment) in self.areas.iter().zip(spec::ALIGNMENT) {
            // No area is longer than the descriptors.
            let bytes = u64::from(self.size) * u64::from(spec::DESCRIPTOR_BYTES);
            if !area.is_multiple_of(alignment) || area.checked_add(bytes).is_none() {
                return Err(Fault::Area);
            }
        }
        self.enabled = true;
        self.indirect = indirect;
        self.event_index = event_index;
        Ok(())
    }

    // What a device does.

    /// How many chains the driver has made available.
    ///
    /// # Errors
    ///
    /// The ring is not in RAM, or says that there are more than there can be.
    pub fn available(&self, memory: &impl Memory) -> Result<u16, Fault> {
        let index = read_u16(memory, self.driver(spec::INDEX))?;
        let count = index.wrapping_sub(self.next_available);
        if count > self.size {
            return Err(Fault::Available);
        }
        Ok(count)
    }

    /// Takes the next chain: to be called for as many as are available.
    ///
    /// # Errors
    ///
    /// The ring is not in RAM, or the chain is not well formed.
    pub fn take(&mut self, memory: &impl Memory, chain: &mut Chain) -> Result<(), Fault> {
        let slot = u64::from(self.slot(self.next_available));
        let head = read_u16(memory, self.driver(spec::ENTRIES + 2 * slot))?;
        self.next_available = self.next_available.wrapping_add(1);
        self.walk(memory, head, chain)
    }

    /// Gives back the last `count` chains taken, as if they had not been looked at, and forgets what was used of them.
    pub const fn put_back(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
        self.next_used = self.published;
    }

    /// The device is done with a chain, into which it has written so many bytes. The driver sees it when it is
    /// [published](Self::publish).
    ///
    /// # Errors
    ///
    /// The ring is not in RAM.
    pub fn use_up(
        &mut self,
        memory: &mut impl Memory,
        chain: &Chain,
        bytes: u32,
    ) -> Result<(), Fault> {
        let slot = u64::from(self.slot(self.next_used));
        let entry = u64::from(bytes) << 32 | u64::from(chain.head);
        let address = self.device(spec::ENTRIES + spec::USED_BYTES * slot);
        memory.write(address, &entry.to_le_bytes())?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was used up. Returns whether it wants to be interrupted for that (2.7.7).
    ///
    /// # Errors
    ///
    /// A ring is not in RAM.
    pub fn publish(&mut self, memory: &mut impl Memory) -> Result<bool, Fault> {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Ok(false);
        }
        memory.write(self.device(spec::INDEX), &new.to_le_bytes())?;
        self.published = new;
        if self.event_index {
            let behind = spec::ENTRIES + 2 * u64::from(self.size);
            let event = read_u16(memory, self.driver(behind))?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        let flags = read_u16(memory, self.driver(0))?;
        Ok(flags & spec::NO_INTERRUPT == 0)
    }

    /// Asks the driver to kick with the next chain, or not to (2.7.10).
    ///
    /// # Errors
    ///
    /// The ring is not in RAM.
    pub fn ask_for_kicks(&self, memory: &mut impl Memory, wanted: bool) -> Result<(), Fault> {
        let (offset, value) = if self.event_index {
            // An index that the driver has passed is not passed again before 2¹⁶ chains.
            let event = self.next_available.wrapping_sub(u16::from(!wanted));
            let behind = spec::ENTRIES + spec::USED_BYTES * u64::from(self.size);
            (behind, event)
        } else {
            (0, if wanted { 0 } else { spec::NO_NOTIFY })
        };
        memory.write(self.device(offset), &value.to_le_bytes())?;
        Ok(())
    }

    fn walk(&self, memory: &impl Memory, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        chain.clear(head);
        let [descriptors, ..] = self.areas;
        let mut table = Table {
            address: descriptors,
            entries: self.size.into(),
        };
        let (mut index, mut in_table) = (head, false);
        // One more, for the descriptor of an indirect table. Without one as many are a circle.
        for _ in 0..=spec::MAX_CHAIN {
            let descriptor = table.read(memory, index)?;
            if descriptor.flags & spec::INDIRECT != 0 {
                if in_table || !self.indirect {
                    return Err(Fault::Indirect);
                }
                table = indirect(&descriptor)?;
                (index, in_table) = (0, true);
                continue;
            }
            chain.add(&descriptor)?;
            if descriptor.flags & spec::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Fault::Chain)
    }

    /// The place of an index in the rings: their size is a power of two.
    const fn slot(&self, index: u16) -> u16 {
        index & self.size.wrapping_sub(1)
    }

    const fn driver(&self, offset: u64) -> u64 {
        self.areas[1].wrapping_add(offset)
    }

    const fn device(&self, offset: u64) -> u64 {
        self.areas[2].wrapping_add(offset)
    }
}

/// The table that an indirect descriptor means (2.7.5.3).
fn indirect(descriptor: &Descriptor) -> Result<Table, Fault> {
    let entries = descriptor.bytes / spec::DESCRIPTOR_BYTES;
    let whole = descriptor.bytes.is_multiple_of(spec::DESCRIPTOR_BYTES);
    let fits = whole && (1..=spec::MAX_CHAIN.into()).contains(&entries);
    if !fits || descriptor.flags & spec::NEXT != 0 {
        return Err(Fault::Indirect);
    }
    Ok(Table {
        address: descriptor.address,
        entries,
    })
}

fn read_u16(memory: &impl Memory, at: u64) -> Result<u16, Fault> {
    let mut bytes = [0; 2];
    memory.read(at, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
