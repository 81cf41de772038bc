//! Network cards of this host: found by their PCI ids, started, joined to one network, polled between guests' turns.
//!
//! The logic is in `arch::nic` and `vmm::net`; here are registers, memory that cards write, and the choice of drivers.

mod mute;
mod ring;
mod virtio;

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec::Vec;

use arch::nic::intel::{self, Intel};
use arch::nic::{Event, Family, Model, Nic, StartError};
use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use pci_types::device_type::DeviceType;
use spin::Mutex;
use vmm::config::Config;
use vmm::config::net::{GuestNic, PciPlace};
use vmm::net::network::{GuestPort, Network, News};
use vmm::net::select::{Found, SelectError, State, select};
use vmm::net::stack::AddressChange;

use crate::entropy::Entropy;
use crate::pci::{self, Function};
use crate::{time, x86};
pub use mute::mute_all;
use ring::{Block, RingPages};

/// Frames that one poll moves each way for each card: about a millisecond of a gigabit wire.
const BUDGET: usize = 96;

type Card = Box<dyn Nic + Send>;

/// The host's network, once it is started. Only the processor that runs guests uses it.
static NETWORK: Mutex<Option<Network<Card>>> = Mutex::new(None);

/// TSC ticks while there is a network, for what a frame costs.
static TIME: Mutex<Time> = Mutex::new(Time {
    start: None,
    rest: None,
    waited: 0,
});

struct Time {
    /// At the first poll.
    start: Option<u64>,
    /// When the processor was about to wait for a guest or the next poll.
    rest: Option<u64>,
    /// In which no guest ran and the host had nothing to do.
    waited: u64,
}

impl Time {
    fn poll(&mut self) {
        let now = x86::rdtsc();
        self.start.get_or_insert(now);
        if let Some(rest) = self.rest.take() {
            self.waited = self.waited.wrapping_add(now.wrapping_sub(rest));
        }
    }
}

fn place(function: &Function) -> PciPlace {
    PciPlace {
        bus: function.address.bus(),
        device: function.address.device(),
        function: function.address.function(),
    }
}

fn is_network(function: &Function) -> bool {
    let (base, sub, _) = function.class;
    DeviceType::from((base, sub)) == DeviceType::EthernetController
        || Model::of(function.id).is_some()
}

/// Starts one card, or says why it cannot be.
fn start_card(function: &Function, model: &Model) -> Result<Card, StartError> {
    pci::enable_registers(function.address);
    let card: Card = match model.family {
        Family::Virtio => Box::new(virtio::start(function)?),
        family => {
            let registers = Block::map(function)?;
            let memory = RingPages::allocate()?;
            mute::register_word(registers.mute_address())?;
            // Firmware may have left it receiving into memory that is another's now.
            intel::silence(&registers);
            pci::enable_dma(function.address);
            Box::new(Intel::new(family, registers, memory)?)
        }
    };
    Ok(card)
}

/// Looks at every network function; starts those there is a driver for. In the order of PCI places.
fn find(functions: &[Function]) -> Vec<(Found, Option<Card>)> {
    let mut found: Vec<_> = functions
        .iter()
        .filter(|function| is_network(function))
        .map(|function| {
            let (state, card) = match Model::of(function.id) {
                None => (State::Unknown, None),
                Some(model) => match start_card(function, model) {
                    Ok(card) => (State::Ready(card.mac()), Some(card)),
                    Err(error) => {
                        pci::disable_dma(function.address);
                        (State::Broken(error.to_string()), None)
                    }
                },
            };
            let found = Found {
                place: place(function),
                id: function.id,
                state,
            };
            (found, card)
        })
        .collect();
    found.sort_by_key(|(found, _)| found.place);
    found
}

/// A line of the log for each network function.
fn report(found: &[(Found, Option<Card>)]) {
    for (function, card) in found {
        match (Model::of(function.id), card) {
            (Some(model), Some(card)) => {
                log::info!("nic {function}: {}, {}", model.name, card.link());
            }
            (Some(model), None) => log::warn!("nic {function}: {}, not used", model.name),
            (None, _) => log::warn!("nic {function}: not used"),
        }
    }
}

/// Random numbers for what is better not guessed from outside, apart from those of guests.
fn random(entropy: Option<&Entropy>) -> impl FnMut() -> u64 {
    /// Of the streams that one seed gives, the one for the network.
    const STREAM: u64 = 1;
    let mut random = entropy.map(|entropy| {
        let mut random = ChaCha20Rng::from_seed(entropy.0);
        random.set_stream(STREAM);
        random
    });
    move || random.as_mut().map_or_else(x86::rdtsc, Rng::next_u64)
}

/// Finds the host's cards, and makes the network of those that the configuration names.
///
/// # Errors
///
/// A card of the configuration cannot be had.
pub fn start(
    functions: &[Function],
    config: &Config,
    entropy: Option<&Entropy>,
) -> Result<(), SelectError> {
    let mut found = find(functions);
    report(&found);
    let guests = config.guests.iter().flat_map(|guest| &guest.nics);
    let facts: Vec<_> = found.iter().map(|(found, _)| found.clone()).collect();
    let chosen = select(&config.nics, guests, &facts)?;
    let mut cards = Vec::new();
    for (nic, at) in config.nics.iter().zip(chosen) {
        let (function, card) = &mut found[at];
        // `select` gives cards that are ready, each once.
        if let Some(card) = card.take() {
            log::info!("nic {}: {}", nic.name, function.place);
            if !card.link().is_up() {
                log::warn!("nic {}: nobody is on the wire yet", nic.name);
            }
            cards.push((nic.clone(), card));
        }
    }
    for card in found.iter_mut().filter_map(|(_, card)| card.as_mut()) {
        card.stop();
    }
    *NETWORK.lock() = Some(Network::new(cards, random(entropy), time::now_ns()));
    Ok(())
}

/// Does something with the host's network, if there is one.
pub fn with<T>(act: impl FnOnce(&mut Network<Card>) -> T) -> Option<T> {
    NETWORK.lock().as_mut().map(act)
}

/// A port for a guest's card. `None` if there is no such card of the host, or a guest with this address.
pub fn connect(nic: &GuestNic) -> Option<GuestPort> {
    with(|network| network.connect(&nic.nic, nic.mac)).flatten()
}

/// Moves what waits, as much as a poll may; true if more may wait.
pub fn poll() -> bool {
    with(|network| {
        if network.is_empty() {
            return false;
        }
        TIME.lock().poll();
        let now = time::now_ns();
        network.poll(now, BUDGET, tell).more
    })
    .unwrap_or(false)
}

/// Longest time until the next [`poll`], in nanoseconds, and at most `otherwise`. `idle`: no guest runs meanwhile.
pub fn until_poll(otherwise: u64, idle: bool) -> u64 {
    if idle {
        TIME.lock().rest = Some(x86::rdtsc());
    }
    let within = with(|network| network.poll_within(time::now_ns(), idle)).flatten();
    within.map_or(otherwise, |within| within.min(otherwise))
}

fn tell(nic: &str, news: News) {
    match news {
        News::Card(Event::Link(link)) => log::info!("nic {nic}: {link}"),
        News::Card(Event::Restarted) => log::warn!("nic {nic}: hung, started again"),
        News::Card(Event::Gone(why)) => log::error!("nic {nic}: given up: it {why}"),
        News::Address(AddressChange::Given { address, gateway }) => match gateway {
            Some(gateway) => log::info!("nic {nic}: address {address}, gateway {gateway}"),
            None => log::info!("nic {nic}: address {address}"),
        },
        News::Address(AddressChange::Lost) => log::warn!("nic {nic}: its address's lease is over"),
    }
}

/// What went through each card, at the end, and how long there was a network: for a guest, for the host, for nothing.
pub fn report_counters() {
    with(|network| {
        let time = TIME.lock();
        if let Some(start) = time.start {
            log::info!(
                "network| ticks={} waited={}",
                x86::rdtsc().wrapping_sub(start),
                time.waited
            );
        }
        for (name, card) in network.cards() {
            let counters = card.counters();
            log::info!(
                "nic| {name} received={} sent={} receive_drops={} transmit_drops={}",
                counters.received_frames,
                counters.sent_frames,
                counters.receive_drops(),
                counters.transmit_drops()
            );
        }
    });
}
