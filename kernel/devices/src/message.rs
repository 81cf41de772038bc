//! Interrupt messages, as the I/O APIC, a PCI function or a processor sends them to a local APIC.

/// Facts of the format (SDM 3 12.11, "Message Signalled Interrupts"; 12.6.1 for the delivery modes).
pub mod spec {
    /// Bits 31:20 of the address of every message.
    pub const ADDRESS: u64 = 0xfee0_0000;
    /// The bits of an address that say so.
    pub const ADDRESS_MASK: u64 = !0xf_ffff;
    /// Address bits 19:12: the destination.
    pub const DESTINATION_SHIFT: u32 = 12;
    /// Address: the destination is a logical one, if redirection is hinted at too.
    pub const LOGICAL: u64 = 1 << 2;
    /// Data: level-triggered.
    pub const LEVEL: u32 = 1 << 15;
}

/// How an interrupt is delivered: bits 10:8 of an LVT entry, of a redirection entry, of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryMode(u8);

impl DeliveryMode {
    /// The vector, to all processors named.
    pub const FIXED: Self = Self(0);
    /// The vector, to one of the processors named.
    pub const LOWEST_PRIORITY: Self = Self(1);
    /// System management interrupt.
    pub const SMI: Self = Self(2);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(4);
    /// Initialization.
    pub const INIT: Self = Self(5);
    /// Start of an application processor.
    pub const STARTUP: Self = Self(6);
    /// The vector comes from the 8259A.
    pub const EXTERNAL: Self = Self(7);

    /// From the register that has it in bits 10:8.
    #[must_use]
    pub const fn of(register: u32) -> Self {
        Self((register >> 8 & 7) as u8)
    }
}

/// One interrupt on its way to a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// IDT index, for the modes that have one.
    pub vector: u8,
    /// How it is delivered.
    pub mode: DeliveryMode,
    /// Whether the end of the interrupt has to be told to its source.
    pub level: bool,
    /// Which processors: an identifier, or a set if `logical`. All ones are all processors.
    pub destination: u32,
    /// How to read the destination.
    pub logical: bool,
}

/// A destination of eight bits, as buses without interrupt remapping have them.
#[must_use]
pub const fn wide_destination(narrow: u8) -> u32 {
    if narrow == u8::MAX {
        u32::MAX
    } else {
        narrow as u32
    }
}

impl Message {
    /// The message that a write of `data` to `address` is; `None` if the address is not one of messages.
    #[must_use]
    pub const fn from_write(address: u64, data: u32) -> Option<Self> {
        if address & spec::ADDRESS_MASK != spec::ADDRESS {
            return None;
        }
        Some(Self {
            vector: data as u8,
            mode: DeliveryMode::of(data),
            level: data & spec::LEVEL != 0,
            destination: wide_destination((address >> spec::DESTINATION_SHIFT) as u8),
            logical: address & spec::LOGICAL != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_linux_is_a_fixed_edge() {
        // Physical destination 0, vector 0x22.
        let want = Message {
            vector: 0x22,
            mode: DeliveryMode::FIXED,
            level: false,
            destination: 0,
            logical: false,
        };
        assert_eq!(Message::from_write(0xfee0_0000, 0x22), Some(want));
        let all = Message::from_write(0xfeef_f00c, 0x8422).unwrap();
        assert_eq!(all.destination, u32::MAX);
        assert_eq!(all.mode, DeliveryMode::NMI);
        assert!(all.level && all.logical);
        assert_eq!(Message::from_write(0xfed0_0000, 0x22), None);
        assert_eq!(Message::from_write(0x1_fee0_0000, 0x22), None);
    }
}
