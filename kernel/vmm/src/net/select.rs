//! Which of the cards that were found are the ones the configuration means.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use arch::nic::Mac;

use crate::config::net::{GuestNic, Nic, PciPlace, Which};

/// A network function of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub place: PciPlace,
    /// PCI vendor and device.
    pub id: (u16, u16),
    /// What became of it.
    pub state: State,
}

/// What became of a network function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was started, and has this address.
    Ready(Mac),
    /// There is no driver for it.
    Unknown,
    /// It could not be started.
    Broken(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vendor, device) = self.id;
        write!(f, "{} {vendor:04x}:{device:04x} ", self.place)?;
        match &self.state {
            State::Ready(mac) => write!(f, "{mac}"),
            State::Unknown => f.write_str("unknown model"),
            State::Broken(why) => write!(f, "{why}"),
        }
    }
}

/// Why the configuration's cards cannot be had. Each names the card by its name in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectError {
    /// None of those found is meant.
    NoMatch {
        /// Name.
        nic: String,
        /// How it is looked for.
        which: Which,
        /// All that were found.
        found: Vec<String>,
    },
    /// Several are meant.
    Several {
        /// Name.
        nic: String,
        /// How it is looked for.
        which: Which,
        /// Those.
        found: Vec<String>,
    },
    /// The one that is meant cannot be used.
    Unusable {
        /// Name.
        nic: String,
        /// It, and why.
        found: String,
    },
    /// It is another one already.
    Taken {
        /// Name.
        nic: String,
        /// The other name.
        other: String,
        /// It.
        place: PciPlace,
    },
    /// Two cards in use, or a guest's and the host's, have one address.
    DuplicateMac {
        /// Name of one of them.
        nic: String,
        /// The address.
        mac: Mac,
    },
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SelectError::NoMatch { nic, which, found } if found.is_empty() => {
                write!(f, "nic {nic:?}: no card with {which}: this host has none")
            }
            SelectError::NoMatch { nic, which, found } => {
                let found = List(found);
                write!(f, "nic {nic:?}: no card with {which}; found: {found}")
            }
            SelectError::Several { nic, which, found } => {
                let found = List(found);
                write!(f, "nic {nic:?}: several cards with {which}: {found}")
            }
            SelectError::Unusable { nic, found } => write!(f, "nic {nic:?}: {found}"),
            SelectError::Taken { nic, other, place } => {
                write!(f, "nic {nic:?}: the card {place} is {other:?} already")
            }
            SelectError::DuplicateMac { nic, mac } => {
                write!(f, "nic {nic:?}: {mac} is the address of two cards")
            }
        }
    }
}

impl core::error::Error for SelectError {}

fn texts<'a>(found: impl IntoIterator<Item = &'a Found>) -> Vec<String> {
    found.into_iter().map(Found::to_string).collect()
}

/// The card that `nic` means, by its number in `found`, which is in the order of PCI places.
fn find(nic: &Nic, found: &[Found]) -> Result<usize, SelectError> {
    let ready = |f: &Found| matches!(f.state, State::Ready(_));
    let matching: Vec<usize> = match nic.which {
        Which::Pci(place) => (0..found.len())
            .filter(|at| found[*at].place == place)
            .collect(),
        Which::Mac(mac) => (0..found.len())
            .filter(|at| found[*at].state == State::Ready(mac))
            .collect(),
        Which::Order(order) => (0..found.len())
            .filter(|at| found[*at].state != State::Unknown)
            .skip(order)
            .take(1)
            .collect(),
    };
    match matching[..] {
        [] => Err(SelectError::NoMatch {
            nic: nic.name.clone(),
            which: nic.which,
            found: texts(found),
        }),
        [at] if ready(&found[at]) => Ok(at),
        [at] => Err(SelectError::Unusable {
            nic: nic.name.clone(),
            found: found[at].to_string(),
        }),
        _ => Err(SelectError::Several {
            nic: nic.name.clone(),
            which: nic.which,
            found: texts(matching.iter().map(|at| &found[*at])),
        }),
    }
}

fn mac(found: &Found) -> Option<Mac> {
    match found.state {
        State::Ready(mac) => Some(mac),
        State::Unknown | State::Broken(_) => None,
    }
}

/// Finds each of the configuration's cards; gives their numbers in `found`, in the order of `nics`.
///
/// # Errors
///
/// The first card that cannot be had, and why.
pub fn select<'a>(
    nics: &[Nic],
    guests: impl IntoIterator<Item = &'a GuestNic>,
    found: &[Found],
) -> Result<Vec<usize>, SelectError> {
    let mut chosen: Vec<usize> = Vec::new();
    for nic in nics {
        let at = find(nic, found)?;
        if let Some(earlier) = chosen.iter().position(|other| *other == at) {
            return Err(SelectError::Taken {
                nic: nic.name.clone(),
                other: nics[earlier].name.clone(),
                place: found[at].place,
            });
        }
        let address = mac(&found[at]);
        if let Some(mac) = address.filter(|_| chosen.iter().any(|c| mac(&found[*c]) == address)) {
            return Err(SelectError::DuplicateMac {
                nic: nic.name.clone(),
                mac,
            });
        }
        chosen.push(at);
    }
    for guest in guests {
        let hosts = nics.iter().zip(&chosen).find(|(nic, at)| {
            // A card without an address of the host is only a wire to the guest.
            nic.addressing.is_some() && mac(&found[**at]) == Some(guest.mac)
        });
        if let Some((nic, _)) = hosts {
            return Err(SelectError::DuplicateMac {
                nic: nic.name.clone(),
                mac: guest.mac,
            });
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::net::{Address, Addressing, Role};
    use alloc::vec;

    fn place(device: u8) -> PciPlace {
        PciPlace {
            bus: 0,
            device,
            function: 0,
        }
    }

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn found() -> Vec<Found> {
        let card = |device, state| Found {
            place: place(device),
            id: (0x8086, 0x100e),
            state,
        };
        vec![
            card(3, State::Ready(A)),
            card(4, State::Unknown),
            card(5, State::Broken("does not answer".into())),
            card(6, State::Ready(B)),
        ]
    }

    fn nic(name: &str, which: Which) -> Nic {
        let address = Address {
            ip: [10, 0, 0, 1].into(),
            prefix: 24,
        };
        Nic {
            name: name.into(),
            role: Role::Service,
            which,
            addressing: Some(Addressing::Static {
                address,
                gateway: None,
            }),
            mtu: 1500,
        }
    }

    fn choose(nics: &[Nic], found: &[Found]) -> Result<Vec<usize>, String> {
        select(nics, &[], found).map_err(|error| error.to_string())
    }

    #[test]
    fn each_way_finds_its_card() {
        for (which, expected) in [
            (Which::Pci(place(6)), 3),
            (Which::Mac(A), 0),
            (Which::Order(0), 0),
            (Which::Order(2), 3),
        ] {
            assert_eq!(choose(&[nic("x", which)], &found()), Ok(vec![expected]));
        }
    }

    #[test]
    fn each_error_names_the_card_and_what_there_is() {
        for (which, expected) in [
            (
                Which::Pci(place(7)),
                "nic \"x\": no card with pci = \"00:07.0\"; found: 00:03.0 8086:100e 02:00:00:00:00:01; \
                 00:04.0 8086:100e unknown model; 00:05.0 8086:100e does not answer; \
                 00:06.0 8086:100e 02:00:00:00:00:02",
            ),
            (
                Which::Mac(Mac([2; 6])),
                "nic \"x\": no card with mac = \"02:02:02:02:02:02\"; found: ",
            ),
            (
                Which::Order(3),
                "nic \"x\": no card with order = 3; found: ",
            ),
            (
                Which::Pci(place(4)),
                "nic \"x\": 00:04.0 8086:100e unknown model",
            ),
            (
                Which::Order(1),
                "nic \"x\": 00:05.0 8086:100e does not answer",
            ),
        ] {
            let error = choose(&[nic("x", which)], &found()).expect_err("is wrong");
            assert!(error.starts_with(expected), "{error}");
        }
        let error = choose(&[nic("x", Which::Order(0))], &[]).expect_err("is wrong");
        assert_eq!(
            error,
            "nic \"x\": no card with order = 0: this host has none"
        );
    }

    #[test]
    fn a_card_is_used_once_and_an_address_too() {
        let twice = [nic("x", Which::Mac(A)), nic("y", Which::Pci(place(3)))];
        let error = choose(&twice, &found()).expect_err("is wrong");
        assert_eq!(error, "nic \"y\": the card 00:03.0 is \"x\" already");
        let mut same = found();
        same[3].state = State::Ready(A);
        let error = choose(&[nic("x", Which::Mac(A))], &same).expect_err("is wrong");
        assert_eq!(
            error,
            "nic \"x\": several cards with mac = \"02:00:00:00:00:01\": \
             00:03.0 8086:100e 02:00:00:00:00:01; 00:06.0 8086:100e 02:00:00:00:00:01"
        );
        let both = [
            nic("x", Which::Pci(place(3))),
            nic("y", Which::Pci(place(6))),
        ];
        let error = choose(&both, &same).expect_err("is wrong");
        assert_eq!(
            error,
            "nic \"y\": 02:00:00:00:00:01 is the address of two cards"
        );
    }

    #[test]
    fn a_guest_has_the_address_only_of_a_card_that_the_host_has_none_on() {
        let guest = GuestNic {
            mac: A,
            mtu: 1500,
            nic: "x".into(),
        };
        let mut nics = [nic("x", Which::Mac(A))];
        let error = select(&nics, [&guest], &found()).expect_err("is wrong");
        let nic = "x".into();
        assert_eq!(error, SelectError::DuplicateMac { nic, mac: A });
        nics[0].addressing = None;
        assert_eq!(select(&nics, [&guest], &found()), Ok(vec![0]));
    }
}
