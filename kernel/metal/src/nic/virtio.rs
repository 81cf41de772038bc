//! Paravirtual cards: virtio-net over PCI, version 1 (Virtio 1.2 chapters 4.1, 5.1), by crate `virtio-drivers`.
//!
//! The crate reads what the card writes into its rings; a token that names no buffer of ours ends the card here,
//! before the crate uses it.

use core::ptr::{self, NonNull};

use arch::addr::Hpa;
use arch::nic::{
    BUFFER_BYTES, Counters, Event, FRAME_MAX, FRAME_MIN, FRAME_PADDED, HUNG_NS, Link, Mac, Nic,
    NotSent, Received, StartError,
};
use pci_types::{Bar, PciAddress};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::mute;
use crate::mem::{frames, paging, physmap};
use crate::pci::{self, Function};
use crate::power;

/// Buffers each way.
const BUFFERS: usize = 128;
/// Frames of the buffers of one way, as a power of two.
const BUFFERS_ORDER: u32 = 6;
const _: () = assert!(BUFFERS * BUFFER_BYTES == 4096 << BUFFERS_ORDER);
/// Bytes of the header in front of a frame (Virtio 1.2 5.1.6).
const HEADER: usize = 12;

/// The crate's way to memory and registers.
struct Metal;

// SAFETY: memory comes from the frame allocator, is mapped at one offset and never given back; cards address physical
// memory; device registers have a window of their own.
unsafe impl Hal for Metal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let order = pages.next_power_of_two().trailing_zeros();
        let Some((run, at)) =
            frames::alloc_run(order).and_then(|run| Some((run, NonNull::new(physmap::ptr(run))?)))
        else {
            // What the crate takes for "no memory".
            return (0, NonNull::dangling());
        };
        // SAFETY: the run was just allocated, and has at least so many pages.
        unsafe { ptr::write_bytes(at.as_ptr(), 0, pages * PAGE_SIZE) };
        (run.0, at)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // A card that could not be stopped may write there for ever.
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        let mapped = paging::map_mmio(Hpa(address), size as u64).ok();
        mapped
            .and_then(NonNull::new)
            .unwrap_or_else(|| power::fail(format_args!("virtio: {address:#x} cannot be mapped")))
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        physmap::hpa_of(buffer.cast::<u8>().as_ptr()).0
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Configuration space of the functions on all buses.
struct Configuration;

fn address(at: DeviceFunction) -> PciAddress {
    PciAddress::new(0, at.bus, at.device, at.function)
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, at: DeviceFunction, offset: u8) -> u32 {
        pci::read_config(address(at), offset.into())
    }

    fn write_word(&mut self, at: DeviceFunction, offset: u8, value: u32) {
        // SAFETY: the crate sizes base address registers and puts them back.
        unsafe { pci::write_config(address(at), offset.into(), value) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Where a structure of the card's registers is (Virtio 1.2 4.1.4).
fn structure(function: &Function, kind: u8, bytes: u64) -> Option<*mut u8> {
    const STATUS: u16 = 0x04;
    const HAS_CAPABILITIES: u32 = 1 << 20;
    const FIRST: u16 = 0x34;
    const VENDOR: u32 = 0x09;
    let read = |offset| pci::read_config(function.address, offset);
    if read(STATUS) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = read(FIRST) as u16 & 0xfc;
    // A list is no longer than its space.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let head = read(at);
        if head & 0xff == VENDOR && (head >> 24) as u8 == kind {
            let slot = read(at + 4) as u8;
            let offset = u64::from(read(at + 8));
            let range = function.bars.iter().find(|range| range.slot == slot)?;
            let (base, size) = match range.bar {
                Bar::Memory32 { address, size, .. } => (u64::from(address), u64::from(size)),
                Bar::Memory64 { address, size, .. } => (address, size),
                Bar::Io { .. } => return None,
            };
            if base == 0 || offset.checked_add(bytes)? > size {
                return None;
            }
            return paging::map_mmio(Hpa(base.checked_add(offset)?), bytes).ok();
        }
        at = (head >> 8) as u16 & 0xfc;
    }
    None
}

/// The registers that the crate does not show.
struct Extra {
    /// `device_status` (4.1.4.3): 0 resets the card.
    status: *mut u8,
    /// `status` of the network card (5.1.4), if it has one.
    link: Option<*const u16>,
}

// SAFETY: the registers are mapped for good, and a card has one driver.
unsafe impl Send for Extra {}

impl Extra {
    fn find(function: &Function) -> Option<Self> {
        const COMMON: u8 = 1;
        const DEVICE: u8 = 4;
        const DEVICE_STATUS: usize = 0x14;
        const FEATURE_STATUS: u32 = 1 << 16;
        let common = structure(function, COMMON, 0x38)?;
        // SAFETY: `device_feature_select` and `device_feature` are the first two words; reading features changes
        // nothing.
        let features = unsafe {
            common.cast::<u32>().write_volatile(0);
            common.cast::<u32>().wrapping_add(1).read_volatile()
        };
        let link = (features & FEATURE_STATUS != 0)
            .then(|| structure(function, DEVICE, 8))
            .flatten()
            .map(|config| config.wrapping_add(6).cast::<u16>().cast_const());
        Some(Self {
            status: common.wrapping_add(DEVICE_STATUS),
            link,
        })
    }

    fn read_link(&self) -> Link {
        // SAFETY: a register of the card, mapped for good.
        let up = self
            .link
            .is_none_or(|at| unsafe { at.read_volatile() } & 1 != 0);
        if up {
            Link::Up {
                speed_mbit: 0,
                full_duplex: true,
            }
        } else {
            Link::Down
        }
    }

    fn is_gone(&self) -> bool {
        // SAFETY: likewise.
        unsafe { self.status.read_volatile() == 0xff }
    }

    fn reset(&self) {
        // SAFETY: likewise; after it the card neither reads nor writes memory.
        unsafe { self.status.write_volatile(0) };
    }
}

/// Buffers of one way, and which of them the card has, by the crate's token.
struct Buffers {
    first: *mut u8,
    held: [Option<u8>; BUFFERS],
    free: [u8; BUFFERS],
    free_count: usize,
}

// SAFETY: the memory belongs to the card's one driver, and is never freed.
unsafe impl Send for Buffers {}

impl Buffers {
    fn allocate() -> Option<Self> {
        let run = frames::alloc_run(BUFFERS_ORDER)?;
        let first = physmap::ptr(run);
        // SAFETY: the run was just allocated.
        unsafe { ptr::write_bytes(first, 0, BUFFERS * BUFFER_BYTES) };
        Some(Self {
            first,
            held: [None; BUFFERS],
            free: core::array::from_fn(|at| at as u8),
            free_count: BUFFERS,
        })
    }

    fn take_free(&mut self) -> Option<u8> {
        self.free_count = self.free_count.checked_sub(1)?;
        Some(self.free[self.free_count])
    }

    fn put_free(&mut self, buffer: u8) {
        self.free[self.free_count] = buffer;
        self.free_count += 1;
    }

    /// Takes back the buffer behind a token that the card has written.
    fn take_back(&mut self, token: u16) -> Option<u8> {
        self.held.get_mut(usize::from(token))?.take()
    }

    /// The bytes of a buffer.
    ///
    /// # Safety
    ///
    /// The card does not have it, or gets it by this call; no other reference to it is alive.
    unsafe fn bytes(&mut self, buffer: u8) -> &'static mut [u8] {
        let at = self.first.wrapping_add(usize::from(buffer) * BUFFER_BYTES);
        // SAFETY: one of the buffers, which live for ever; the caller vouches for the rest.
        unsafe { core::slice::from_raw_parts_mut(at, BUFFER_BYTES) }
    }
}

/// A started card.
pub struct VirtioNic {
    card: VirtIONetRaw<Metal, PciTransport, BUFFERS>,
    extra: Extra,
    incoming: Buffers,
    outgoing: Buffers,
    link: Link,
    on: bool,
    /// The card broke the protocol, which nobody was told of yet.
    broken: bool,
    /// Frames sent, and since when there have been as many.
    stuck_since: Option<(u64, u64)>,
    /// Frames that the card has said to be sent.
    done: u64,
    counters: Counters,
}

/// Starts a card.
///
/// # Errors
///
/// It is older than version 1, has no address, or there is no memory.
pub fn start(function: &Function) -> Result<VirtioNic, StartError> {
    let extra = Extra::find(function).ok_or(StartError::Refused(
        "is older than virtio 1, or has no registers",
    ))?;
    mute::register_byte(extra.status)?;
    extra.reset();
    pci::enable_dma(function.address);
    let at = DeviceFunction {
        bus: function.address.bus(),
        device: function.address.device(),
        function: function.address.function(),
    };
    let transport = PciTransport::new::<Metal, _>(&mut PciRoot::new(Configuration), at)
        .map_err(|_| StartError::Refused("does not describe itself as virtio 1 has it"))?;
    let card = VirtIONetRaw::new(transport)
        .map_err(|_| StartError::Refused("does not take its queues"))?;
    if !Mac(card.mac_address()).is_single() {
        extra.reset();
        return Err(StartError::NoAddress);
    }
    let none = StartError::Refused("gets no memory");
    let mut nic = VirtioNic {
        link: extra.read_link(),
        card,
        extra,
        incoming: Buffers::allocate().ok_or(none)?,
        outgoing: Buffers::allocate().ok_or(none)?,
        on: true,
        broken: false,
        stuck_since: None,
        done: 0,
        counters: Counters::default(),
    };
    nic.card.disable_interrupts();
    while let Some(buffer) = nic.incoming.take_free() {
        nic.give(buffer);
    }
    Ok(nic)
}

impl VirtioNic {
    /// Gives the card a buffer to receive into.
    fn give(&mut self, buffer: u8) {
        // SAFETY: the card does not have it, and gets it now; nobody looks at it until it comes back.
        let token = unsafe {
            let bytes = self.incoming.bytes(buffer);
            self.card.receive_begin(bytes)
        };
        match token {
            Ok(token) => self.incoming.held[usize::from(token)] = Some(buffer),
            Err(_) => self.incoming.put_free(buffer),
        }
    }

    /// The card has written what is not possible: it is reset, and that is the end of it.
    fn on_broken(&mut self) {
        self.broken = true;
        self.switch_off();
    }

    fn switch_off(&mut self) {
        self.on = false;
        self.link = Link::Down;
        self.extra.reset();
    }

    /// Takes back the buffers of frames that were sent.
    fn reap(&mut self) {
        while let Some(token) = self.card.poll_transmit() {
            let Some(buffer) = self.outgoing.take_back(token) else {
                self.on_broken();
                return;
            };
            // SAFETY: `buffer` is the one that was given with this token; its length is not looked at again.
            let completed = unsafe {
                let bytes = self.outgoing.bytes(buffer);
                self.card.transmit_complete(token, bytes)
            };
            self.outgoing.put_free(buffer);
            self.done += 1;
            if completed.is_err() {
                self.on_broken();
                return;
            }
        }
    }

    fn transmit_fault(&mut self, bytes: usize) -> Option<NotSent> {
        let counters = &mut self.counters;
        if !self.on {
            counters.transmit_off += 1;
            Some(NotSent::Off)
        } else if !(FRAME_MIN..=FRAME_MAX).contains(&bytes) {
            counters.transmit_length += 1;
            Some(NotSent::Length)
        } else if !self.link.is_up() {
            counters.transmit_link_down += 1;
            Some(NotSent::LinkDown)
        } else {
            None
        }
    }
}

impl Nic for VirtioNic {
    fn mac(&self) -> Mac {
        Mac(self.card.mac_address())
    }

    fn link(&self) -> Link {
        self.link
    }

    fn receive(&mut self, into: &mut [u8; BUFFER_BYTES]) -> Received {
        if !self.on {
            return Received::Nothing;
        }
        let Some(token) = self.card.poll_receive() else {
            return Received::Nothing;
        };
        let Some(buffer) = self.incoming.take_back(token) else {
            self.on_broken();
            return Received::Nothing;
        };
        // SAFETY: `buffer` is the one that was given with this token, and the card is done with it.
        let bytes = unsafe { self.incoming.bytes(buffer) };
        // SAFETY: likewise.
        let completed = unsafe { self.card.receive_complete(token, bytes) };
        let length = match completed {
            Ok((HEADER, length)) if length > FRAME_MAX => {
                self.counters.oversize += 1;
                None
            }
            Ok((HEADER, length)) if length < FRAME_MIN => {
                self.counters.runts += 1;
                None
            }
            Ok((HEADER, length)) => {
                into[..length].copy_from_slice(&bytes[HEADER..HEADER + length]);
                self.counters.received_frames += 1;
                self.counters.received_bytes += length as u64;
                Some(length)
            }
            Ok(_) | Err(_) => {
                self.counters.receive_errors += 1;
                None
            }
        };
        self.give(buffer);
        length.map_or(Received::Dropped, Received::Frame)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), NotSent> {
        if let Some(fault) = self.transmit_fault(frame.len()) {
            return Err(fault);
        }
        if self.outgoing.free_count == 0 {
            self.reap();
        }
        let Some(buffer) = self.outgoing.take_free() else {
            self.counters.transmit_full += 1;
            return Err(NotSent::Full);
        };
        let padded = frame.len().max(FRAME_PADDED);
        // SAFETY: the buffer was free, so the card does not have it.
        let bytes = unsafe { self.outgoing.bytes(buffer) };
        bytes[..HEADER].fill(0);
        bytes[HEADER..][..frame.len()].copy_from_slice(frame);
        bytes[HEADER + frame.len()..HEADER + padded].fill(0);
        // SAFETY: nobody looks at it until it comes back.
        match unsafe { self.card.transmit_begin(&bytes[..HEADER + padded]) } {
            Ok(token) => self.outgoing.held[usize::from(token)] = Some(buffer),
            Err(_) => {
                self.outgoing.put_free(buffer);
                self.counters.transmit_full += 1;
                return Err(NotSent::Full);
            }
        }
        self.counters.sent_frames += 1;
        self.counters.sent_bytes += frame.len() as u64;
        Ok(())
    }

    fn flush(&mut self) {
        // The card is told of each buffer when it gets it, unless it has said that it looks by itself.
    }

    fn check(&mut self, now: u64) -> Option<Event> {
        if self.on {
            self.reap();
        }
        if core::mem::take(&mut self.broken) {
            return Some(Event::Gone(StartError::Refused(
                "names buffers it does not have",
            )));
        }
        if !self.on {
            return None;
        }
        if self.extra.is_gone() {
            self.switch_off();
            return Some(Event::Gone(StartError::Absent));
        }
        let link = self.extra.read_link();
        if link != self.link {
            self.link = link;
            self.counters.link_changes += 1;
            return Some(Event::Link(link));
        }
        if self.outgoing.free_count == BUFFERS || !link.is_up() {
            self.stuck_since = None;
            return None;
        }
        match self.stuck_since {
            Some((since, done)) if done == self.done => {
                if now.saturating_sub(since) < HUNG_NS {
                    return None;
                }
                self.switch_off();
                Some(Event::Gone(StartError::Refused("sends nothing any more")))
            }
            _ => {
                self.stuck_since = Some((now, self.done));
                None
            }
        }
    }

    fn set_promiscuous(&mut self, _: bool) {
        // Without the control queue a card takes every frame (Virtio 1.2 5.1.6.5.1).
    }

    fn mute(&mut self) {
        self.switch_off();
    }

    fn stop(&mut self) {
        self.switch_off();
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
