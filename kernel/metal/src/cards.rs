//! Guests' network cards and the ports of the host's switches that they lead to.

use alloc::string::String;
use alloc::vec::Vec;

use devices::virtio;
use vmm::config::Guest;
use vmm::cpu::Vcpu;
use vmm::machine::Machine;
use vmm::net::network::GuestPort;

use crate::{nic, time};

/// Slot on the PCI bus of a guest's first network card; the others follow.
const FIRST_SLOT: u8 = 3;

/// The virtio devices of a guest.
pub fn of(guest: &Guest) -> virtio::Config {
    let mut config = virtio::Config::default();
    for ((place, nic), slot) in config.nics.iter_mut().zip(&guest.nics).zip(FIRST_SLOT..) {
        *place = Some(virtio::net::Config {
            slot,
            mac: nic.mac,
            mtu: nic.mtu,
        });
    }
    config
}

struct Card {
    guest: String,
    /// Its number in the guest.
    number: u8,
    port: GuestPort,
    /// What the guest was told of its link.
    link: Option<bool>,
}

/// All cards of guests.
#[derive(Default)]
pub struct Cards(Vec<Card>);

impl Cards {
    /// Connects the cards of a guest that is started now.
    pub fn connect(&mut self, guest: &Guest) {
        for (nic, number) in guest.nics.iter().zip(0..) {
            match nic::connect(nic) {
                Some(port) => self.0.push(Card {
                    guest: guest.name.clone(),
                    number,
                    port,
                    link: None,
                }),
                None => log::error!(
                    "vm {}: its card {} is not connected to nic {}",
                    guest.name,
                    nic.mac,
                    nic.nic
                ),
            }
        }
    }

    /// A guest has stopped: nothing is kept for it any more.
    pub fn disconnect(&mut self, guest: &str) {
        for card in self.0.extract_if(.., |card| card.guest == guest) {
            nic::with(|network| network.set_guest_active(card.port, false));
        }
    }

    /// Gives a guest what has come for it: as much as it takes.
    pub fn deliver<V: Vcpu>(&mut self, guest: &str, machine: &mut Machine<V>) {
        for card in self.0.iter_mut().filter(|card| card.guest == guest) {
            nic::with(|network| {
                let up = network.guest_link(card.port);
                if card.link != Some(up) && machine.set_link(card.number, up) {
                    card.link = Some(up);
                }
                while let Some(frame) = network.guest_front(card.port)
                    && machine.receive_frame(card.number, frame)
                {
                    network.guest_pop(card.port);
                }
            });
        }
    }

    /// Puts a frame of a guest on the wire.
    pub fn transmit(&self, guest: &str, number: u8, frame: &[u8]) {
        let mut cards = self.0.iter();
        if let Some(card) = cards.find(|card| card.number == number && card.guest == guest) {
            nic::with(|network| network.guest_transmit(card.port, frame, time::now_ns()));
        }
    }
}
