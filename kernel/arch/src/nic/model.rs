//! The cards that Duet drives, by their PCI ids.

/// Which driver a card takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// PCI gigabit cards (8254x): [`super::intel`].
    E1000,
    /// PCI Express gigabit cards with one queue used (82574): [`super::intel`].
    E1000e,
    /// PCI Express gigabit cards with advanced descriptors (82576, I210, I350): [`super::intel`].
    Igb,
    /// Paravirtual cards.
    Virtio,
}

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// PCI vendor and device.
    pub id: (u16, u16),
    /// What it is called.
    pub name: &'static str,
    /// Its driver.
    pub family: Family,
}

const INTEL: u16 = 0x8086;
const VIRTIO: u16 = 0x1af4;

const fn model(vendor: u16, device: u16, name: &'static str, family: Family) -> Model {
    Model {
        id: (vendor, device),
        name,
        family,
    }
}

/// All of them.
pub const MODELS: [Model; 8] = [
    model(INTEL, 0x100e, "82540EM", Family::E1000),
    model(INTEL, 0x100f, "82545EM", Family::E1000),
    model(INTEL, 0x10d3, "82574L", Family::E1000e),
    model(INTEL, 0x10c9, "82576", Family::Igb),
    model(INTEL, 0x1533, "I210", Family::Igb),
    model(INTEL, 0x1521, "I350", Family::Igb),
    // Virtio 1.2 4.1.2.1: 0x1040 + 1, and what it was before version 1.
    model(VIRTIO, 0x1041, "virtio-net", Family::Virtio),
    model(VIRTIO, 0x1000, "virtio-net (transitional)", Family::Virtio),
];

impl Model {
    /// The card with these PCI ids, if there is a driver for it.
    #[must_use]
    pub fn of(id: (u16, u16)) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_once() {
        assert_eq!(Model::of((0x8086, 0x100e)).map(|m| m.name), Some("82540EM"));
        assert_eq!(Model::of((0x8086, 0x100d)), None);
        for (index, model) in MODELS.iter().enumerate() {
            assert_eq!(MODELS.iter().position(|m| m.id == model.id), Some(index));
        }
    }
}
