//! `[[nic]]` and `[[vm.nic]]`: which cards the host uses for what, and which cards guests have.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;
use core::ops::Range;
use core::str::FromStr;

use arch::nic::Mac;
use serde::Deserialize;
use toml::Spanned;

use super::{Checker, ConfigError};
use crate::net::{MAX_GUEST_NICS, MAX_NICS};

/// Least bytes of an IP packet that a card is set to: every host takes as many (RFC 791).
pub const MTU_MIN: u16 = 576;
/// Most, which is the default.
pub const MTU_MAX: u16 = 1500;
/// Cards for the link between the two hosts.
pub const MAX_LINKS: usize = 2;

/// An IPv4 address and the bits of it that its network has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The host's address.
    pub ip: Ipv4Addr,
    /// 1 … 32.
    pub prefix: u8,
}

impl Address {
    const fn mask(self) -> u32 {
        match 32_u32.checked_sub(self.prefix as u32) {
            Some(host_bits) if host_bits < 32 => u32::MAX << host_bits,
            _ => 0,
        }
    }

    /// Whether an address is in its network.
    #[must_use]
    pub fn reaches(self, other: Ipv4Addr) -> bool {
        (self.ip.to_bits() ^ other.to_bits()) & self.mask() == 0
    }

    /// Whether one host can have it.
    fn is_a_hosts(self) -> bool {
        let ip = self.ip;
        let host = ip.to_bits() & !self.mask();
        let ends = self.prefix < 31 && (host == 0 || host == !self.mask());
        (1..=32).contains(&self.prefix)
            && !ends
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !ip.is_loopback()
            && ip.octets()[0] < 240
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, prefix) = text.split_once('/').ok_or(())?;
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let address = Self {
            ip: ip.parse().map_err(|_| ())?,
            prefix: prefix.parse().map_err(|_| ())?,
        };
        (digits && address.is_a_hosts())
            .then_some(address)
            .ok_or(())
    }
}

/// How the host gets its address on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// From a DHCP server.
    Dhcp,
    /// By the configuration.
    Static {
        /// The address.
        address: Address,
        /// The way to other networks.
        gateway: Option<Ipv4Addr>,
    },
}

/// What a card is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Replication to the other host.
    Link,
    /// Guests, management and witness.
    Service,
    /// One guest's alone.
    Guest,
}

/// A function on a PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciPlace {
    /// Bus.
    pub bus: u8,
    /// Device, 0 … 31.
    pub device: u8,
    /// Function, 0 … 7.
    pub function: u8,
}

impl fmt::Display for PciPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bus,
            device,
            function,
        } = self;
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for PciPlace {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (bus, rest) = text.split_once(':').ok_or(())?;
        let (device, function) = rest.split_once('.').ok_or(())?;
        let number = |text: &str, digits: usize, below: u8| {
            let good = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            let value = u8::from_str_radix(text, 16).map_err(|_| ())?;
            (good && value <= below).then_some(value).ok_or(())
        };
        Ok(Self {
            bus: number(bus, 2, 0xff)?,
            device: number(device, 2, 31)?,
            function: number(function, 1, 7)?,
        })
    }
}

/// Which card is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one at this place.
    Pci(PciPlace),
    /// The one with this address.
    Mac(Mac),
    /// The one found so many others later, in the order of PCI places, of those that Duet drives.
    Order(usize),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Pci(place) => write!(f, "pci = \"{place}\""),
            Which::Mac(mac) => write!(f, "mac = \"{mac}\""),
            Which::Order(order) => write!(f, "order = {order}"),
        }
    }
}

/// A card of the host that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Unique name: 1 … 32 of `a-z 0-9 -`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Which card it is.
    pub which: Which,
    /// The host's address on it, if it has one there.
    pub addressing: Option<Addressing>,
    /// Bytes of the largest IP packet, [`MTU_MIN`] … [`MTU_MAX`].
    pub mtu: u16,
}

/// A guest's network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNic {
    /// Its address.
    pub mac: Mac,
    /// Bytes of the largest IP packet, which the guest is told.
    pub mtu: u16,
    /// The [`Nic`] it is connected to.
    pub nic: String,
}

/// `[[nic]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NicTable {
    name: Spanned<String>,
    role: Spanned<Role>,
    pci: Option<Spanned<String>>,
    mac: Option<Spanned<String>>,
    order: Option<Spanned<usize>>,
    ip: Option<Spanned<String>>,
    dhcp: Option<Spanned<bool>>,
    gateway: Option<Spanned<String>>,
    mtu: Option<Spanned<u64>>,
}

/// `[[vm.nic]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestNicTable {
    mac: Spanned<String>,
    nic: Spanned<String>,
    mtu: Option<Spanned<u64>>,
}

fn mac(check: &Checker<'_>, key: &str, text: &Spanned<String>) -> Result<Mac, ConfigError> {
    let parsed = text.get_ref().parse().ok();
    parsed.filter(|mac: &Mac| mac.is_single()).ok_or_else(|| {
        let message = format!(
            "{key}: {:?} is not the address of one card, like 52:54:00:12:34:56",
            text.get_ref()
        );
        check.error(text.span(), message)
    })
}

fn mtu(check: &Checker<'_>, key: &str, value: Option<&Spanned<u64>>) -> Result<u16, ConfigError> {
    let Some(value) = value else {
        return Ok(MTU_MAX);
    };
    u16::try_from(*value.get_ref())
        .ok()
        .filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu))
        .ok_or_else(|| {
            let message = format!("{key}: {} is not {MTU_MIN} to {MTU_MAX}", value.get_ref());
            check.error(value.span(), message)
        })
}

fn which(check: &Checker<'_>, table: &NicTable) -> Result<Which, ConfigError> {
    match (&table.pci, &table.mac, &table.order) {
        (Some(text), None, None) => text.get_ref().parse().map(Which::Pci).map_err(|()| {
            let message = format!(
                "nic.pci: {:?} is not bus:device.function, like 00:03.0",
                text.get_ref()
            );
            check.error(text.span(), message)
        }),
        (None, Some(text), None) => Ok(Which::Mac(mac(check, "nic.mac", text)?)),
        (None, None, Some(order)) => Ok(Which::Order(*order.get_ref())),
        _ => {
            let message = "nic: say with one of pci, mac and order which card it is";
            Err(check.error(table.name.span(), message))
        }
    }
}

fn gateway_of(
    check: &Checker<'_>,
    address: Address,
    text: &Spanned<String>,
) -> Result<Ipv4Addr, ConfigError> {
    let parsed = text.get_ref().parse().ok();
    let good = |ip: &Ipv4Addr| {
        let gateway = Address {
            ip: *ip,
            prefix: address.prefix,
        };
        address.reaches(*ip) && *ip != address.ip && gateway.is_a_hosts()
    };
    parsed.filter(good).ok_or_else(|| {
        let message = format!(
            "nic.gateway: {:?} is not another host in the network of {address}",
            text.get_ref()
        );
        check.error(text.span(), message)
    })
}

fn addressing(check: &Checker<'_>, table: &NicTable) -> Result<Option<Addressing>, ConfigError> {
    let dhcp = table.dhcp.as_ref().is_some_and(|dhcp| *dhcp.get_ref());
    let addressing = match (&table.ip, dhcp) {
        (Some(ip), true) => {
            let message = "nic.ip: the address comes by dhcp already";
            return Err(check.error(ip.span(), message));
        }
        (Some(ip), false) => {
            let address = ip.get_ref().parse().map_err(|()| {
                let message = format!(
                    "nic.ip: {:?} is not a host's address and prefix, like 10.0.0.1/24",
                    ip.get_ref()
                );
                check.error(ip.span(), message)
            })?;
            let gateway = table.gateway.as_ref();
            Some(Addressing::Static {
                address,
                gateway: gateway.map(|g| gateway_of(check, address, g)).transpose()?,
            })
        }
        (None, true) => Some(Addressing::Dhcp),
        (None, false) => None,
    };
    if let Some(gateway) = &table.gateway
        && table.ip.is_none()
    {
        let message = "nic.gateway: only with nic.ip";
        return Err(check.error(gateway.span(), message));
    }
    let role = &table.role;
    match (role.get_ref(), &addressing) {
        (Role::Link, None) => {
            let message = "nic.role: a link needs nic.ip or nic.dhcp";
            Err(check.error(role.span(), message))
        }
        (Role::Guest, Some(_)) => {
            let message = "nic.role: the host has no address on a guest's own card";
            Err(check.error(role.span(), message))
        }
        _ => Ok(addressing),
    }
}

/// Refuses a card that another one before it contradicts.
fn against(
    check: &Checker<'_>,
    table: &NicTable,
    nic: &Nic,
    before: &[Nic],
) -> Result<(), ConfigError> {
    let error = |span: Range<usize>, message: String| Err(check.error(span, message));
    if before.iter().any(|other| other.name == nic.name) {
        let message = format!("nic.name: {:?} is used twice", nic.name);
        return error(table.name.span(), message);
    }
    if let Some(other) = before.iter().find(|other| other.which == nic.which) {
        let message = format!("nic: {} is {:?} already", nic.which, other.name);
        return error(table.name.span(), message);
    }
    let most = match nic.role {
        Role::Link => MAX_LINKS,
        Role::Service => 1,
        Role::Guest => MAX_NICS,
    };
    if before.iter().filter(|other| other.role == nic.role).count() >= most {
        let message = format!("nic.role: more than {most} of this role");
        return error(table.role.span(), message);
    }
    if let Some(Addressing::Static { address, .. }) = nic.addressing {
        let overlaps = |other: &&Nic| match other.addressing {
            Some(Addressing::Static { address: other, .. }) => {
                other.reaches(address.ip) || address.reaches(other.ip)
            }
            _ => false,
        };
        if let Some(other) = before.iter().find(overlaps) {
            let span = table.ip.as_ref().map_or(0..0, Spanned::span);
            let message = format!("nic.ip: {address} is in the network of {:?}", other.name);
            return error(span, message);
        }
    }
    Ok(())
}

/// Checks the host's cards.
pub(super) fn nics(check: &Checker<'_>, tables: &[NicTable]) -> Result<Vec<Nic>, ConfigError> {
    let mut nics = Vec::new();
    for table in tables {
        if nics.len() == MAX_NICS {
            let message = format!("nic: more than {MAX_NICS} cards");
            return Err(check.error(table.name.span(), message));
        }
        let nic = Nic {
            name: check.name("nic.name", &table.name)?,
            role: *table.role.get_ref(),
            which: which(check, table)?,
            addressing: addressing(check, table)?,
            mtu: mtu(check, "nic.mtu", table.mtu.as_ref())?,
        };
        against(check, table, &nic, &nics)?;
        nics.push(nic);
    }
    Ok(nics)
}

/// Checks the cards of one guest against the host's and those of the guests before it.
pub(super) fn guest_nics(
    check: &Checker<'_>,
    tables: &[GuestNicTable],
    host: &[Nic],
    before: &[&GuestNic],
) -> Result<Vec<GuestNic>, ConfigError> {
    let mut nics: Vec<GuestNic> = Vec::new();
    for table in tables {
        let error = |key: &Spanned<String>, message| Err(check.error(key.span(), message));
        let mac = mac(check, "vm.nic.mac", &table.mac)?;
        let others = || before.iter().copied().chain(&nics);
        if others().any(|other| other.mac == mac) {
            let message = format!("vm.nic.mac: {mac} is used twice");
            return error(&table.mac, message);
        }
        let name = table.nic.get_ref();
        let Some(nic) = host.iter().find(|nic| nic.name == *name) else {
            let message = format!("vm.nic.nic: there is no [[nic]] named {name:?}");
            return error(&table.nic, message);
        };
        if nic.role == Role::Link {
            let message = format!("vm.nic.nic: {name:?} is a link of the two hosts");
            return error(&table.nic, message);
        }
        if nic.role == Role::Guest && others().any(|other| other.nic == *name) {
            let message = format!("vm.nic.nic: {name:?} is another guest's alone");
            return error(&table.nic, message);
        }
        if nic.which == Which::Mac(mac) && nic.addressing.is_some() {
            let message = format!("vm.nic.mac: {mac} is the host's own on {name:?}");
            return error(&table.mac, message);
        }
        if nics.len() == MAX_GUEST_NICS {
            let message = format!("vm.nic: more than {MAX_GUEST_NICS} cards");
            return error(&table.mac, message);
        }
        let mtu_of_guest = match &table.mtu {
            None => nic.mtu,
            value => mtu(check, "vm.nic.mtu", value.as_ref())?,
        };
        if mtu_of_guest > nic.mtu {
            let span = table.mtu.as_ref().map_or(0..0, Spanned::span);
            let message = format!(
                "vm.nic.mtu: {mtu_of_guest} is more than {name:?} has, {}",
                nic.mtu
            );
            return Err(check.error(span, message));
        }
        nics.push(GuestNic {
            mac,
            mtu: mtu_of_guest,
            nic: name.clone(),
        });
    }
    Ok(nics)
}

#[cfg(test)]
mod tests;
