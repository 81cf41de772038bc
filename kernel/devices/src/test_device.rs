//! What test guests need of the outside: a way to end, interrupts at exact points, a page of registers.
//!
//! Its only clock is the number of instructions the guest has retired, so everything it does is a
//! function of the guest's own execution.

use alloc::boxed::Box;

use arch::event::Event;

/// Ports and addresses.
pub mod spec {
    /// OUT of any size ends the guest with the value as its status; 0 is success. The port of QEMU's
    /// isa-debug-exit.
    pub const EXIT_PORT: u16 = 0xf4;
    /// OUT (32 bit) raises an event: bits 7:0 are the vector, bit 8 makes it an NMI. IN returns how many
    /// events have been delivered.
    pub const EVENT_PORT: u16 = 0xf0;
    /// OUT (32 bit) sets the delay of the next event, in instructions behind the OUT to the event port.
    pub const DELAY_PORT: u16 = 0xf8;
    /// Bit of the event port that selects an NMI.
    pub const EVENT_NMI: u32 = 1 << 8;
    /// Guest physical address of a page that behaves as memory, access by access through the device.
    pub const SCRATCH: u64 = 0xd000_0000;
    /// Its bytes.
    pub const SCRATCH_BYTES: usize = 4096;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raised {
    event: Event,
    due: u64,
}

/// The device.
#[derive(Clone, Debug)]
pub struct TestDevice {
    delay: u64,
    raised: Option<Raised>,
    delivered: u32,
    scratch: Box<[u8; spec::SCRATCH_BYTES]>,
}

impl Default for TestDevice {
    fn default() -> Self {
        let scratch = Box::new([0; spec::SCRATCH_BYTES]);
        Self {
            delay: 0,
            raised: None,
            delivered: 0,
            scratch,
        }
    }
}

impl TestDevice {
    /// An OUT whose instruction retires as number `now`. Whether a port of the device is there.
    pub fn write_port(&mut self, now: u64, port: u16, value: u32) -> bool {
        match port {
            spec::DELAY_PORT => self.delay = u64::from(value),
            spec::EVENT_PORT => {
                let event = if value & spec::EVENT_NMI != 0 {
                    Event::nmi()
                } else {
                    Event::interrupt(value as u8)
                };
                self.raised = Some(Raised {
                    event,
                    due: now.saturating_add(self.delay),
                });
            }
            _ => return false,
        }
        true
    }

    /// An IN.
    #[must_use]
    pub fn read_port(&self, port: u16) -> Option<u32> {
        (port == spec::EVENT_PORT).then_some(self.delivered)
    }

    /// The point at which a raised event becomes pending.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.raised.map(|r| r.due)
    }

    /// The event that is pending at `now`.
    #[must_use]
    pub fn pending(&self, now: u64) -> Option<Event> {
        self.raised.filter(|r| r.due <= now).map(|r| r.event)
    }

    /// The pending event was given to the processor.
    pub fn delivered(&mut self) {
        self.raised = None;
        self.delivered = self.delivered.wrapping_add(1);
    }

    /// The guest waits for an event: one that is only delayed becomes due. Returns whether there is any.
    pub fn wait(&mut self, now: u64) -> bool {
        if let Some(raised) = &mut self.raised {
            raised.due = raised.due.min(now);
        }
        self.raised.is_some()
    }

    /// Reads the scratch page at `offset`, `size` bytes (1 … 8) little endian; bytes behind its end read
    /// as ones.
    #[must_use]
    pub fn read_scratch(&self, offset: u64, size: u8) -> u64 {
        let byte = |i: u8| {
            let at = usize::try_from(offset.saturating_add(u64::from(i))).unwrap_or(usize::MAX);
            u64::from(self.scratch.get(at).copied().unwrap_or(0xff)) << (8 * u32::from(i))
        };
        (0..size.min(8)).map(byte).sum()
    }

    /// Writes the scratch page.
    pub fn write_scratch(&mut self, offset: u64, size: u8, value: u64) {
        for (i, byte) in value
            .to_le_bytes()
            .iter()
            .take(usize::from(size))
            .enumerate()
        {
            let at = usize::try_from(offset.saturating_add(i as u64)).unwrap_or(usize::MAX);
            if let Some(place) = self.scratch.get_mut(at) {
                *place = *byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_pending_from_its_point_on() {
        let mut device = TestDevice::default();
        assert!(device.write_port(9, spec::DELAY_PORT, 5));
        assert!(device.write_port(10, spec::EVENT_PORT, 0x40));
        assert_eq!(device.due(), Some(15));
        assert_eq!(device.pending(14), None);
        assert_eq!(device.pending(15), Some(Event::interrupt(0x40)));
        device.delivered();
        assert_eq!(device.pending(16), None);
        assert_eq!(device.read_port(spec::EVENT_PORT), Some(1));
    }

    #[test]
    fn waiting_makes_a_delayed_event_due() {
        let mut device = TestDevice::default();
        assert!(!device.wait(3));
        device.write_port(3, spec::DELAY_PORT, 1000);
        device.write_port(4, spec::EVENT_PORT, spec::EVENT_NMI);
        assert!(device.wait(5));
        assert_eq!(device.pending(5), Some(Event::nmi()));
    }

    #[test]
    fn scratch_is_memory_and_ends_where_it_ends() {
        let mut device = TestDevice::default();
        device.write_scratch(8, 8, 0x1122_3344_5566_7788);
        assert_eq!(device.read_scratch(9, 2), 0x6677);
        device.write_scratch(4094, 4, 0xaabb_ccdd);
        assert_eq!(device.read_scratch(4094, 4), 0xffff_ccdd);
        assert_eq!(device.read_scratch(u64::MAX, 2), 0xffff);
    }

    #[test]
    fn other_ports_are_nobodys() {
        let mut device = TestDevice::default();
        assert!(!device.write_port(0, 0x80, 1));
        assert_eq!(device.read_port(0x80), None);
    }
}
