//! A DHCP server (RFC 2131) for one small network: each card keeps its address for as long as the gateway runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use arch::nic::Mac;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use super::{ADDRESS, FIRST_LEASE};

/// The last octet of the last address that is leased.
const LAST: u8 = 254;
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Longer than any test.
const LEASE_SECONDS: u32 = 86_400;

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<Mac, Ipv4Addr>);

impl Leases {
    /// The address of a card, which is the next one if it has none; `None` if all are given away.
    pub(super) fn of(&mut self, mac: Mac) -> Option<Ipv4Addr> {
        if let Some(address) = self.known(mac) {
            return Some(address);
        }
        let [a, b, c, first] = FIRST_LEASE.octets();
        let last = u8::try_from(self.0.len())
            .ok()
            .and_then(|given| first.checked_add(given))
            .filter(|&last| last <= LAST)?;
        let address = Ipv4Addr::new(a, b, c, last);
        self.0.insert(mac, address);
        Some(address)
    }

    /// The address that a card has.
    pub(super) fn known(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.0.get(&mac).copied()
    }

    /// The answer to a message from a client, to be broadcast; `None` if there is none.
    pub(super) fn answer(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        // Another server was chosen.
        if request.server_identifier.is_some_and(|id| id != ADDRESS) {
            return None;
        }
        let mac = Mac(request.client_hardware_address.0);
        let kind = match request.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => {
                // A client that renews says it in another field than one that has just been offered it.
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                if self.known(mac) == Some(wanted) {
                    DhcpMessageType::Ack
                } else {
                    DhcpMessageType::Nak
                }
            }
            _ => return None,
        };
        let address = match kind {
            DhcpMessageType::Nak => None,
            _ => Some(self.of(mac)?),
        };
        encode(&request, kind, address)
    }
}

fn encode(
    request: &DhcpRepr<'_>,
    message_type: DhcpMessageType,
    address: Option<Ipv4Addr>,
) -> Option<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let reply = DhcpRepr {
        message_type,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: none,
        your_ip: address.unwrap_or(none),
        server_ip: none,
        router: address.map(|_| ADDRESS),
        subnet_mask: address.map(|_| NETMASK),
        relay_agent_ip: none,
        broadcast: true,
        requested_ip: None,
        client_identifier: None::<EthernetAddress>,
        server_identifier: Some(ADDRESS),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: address.map(|_| LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes))
        .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn message(kind: DhcpMessageType, mac: Mac, wanted: Option<Ipv4Addr>) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let repr = DhcpRepr {
            message_type: kind,
            transaction_id: 0x1234,
            secs: 1,
            client_hardware_address: EthernetAddress(mac.0),
            client_ip: none,
            your_ip: none,
            server_ip: none,
            router: None,
            subnet_mask: None,
            relay_agent_ip: none,
            broadcast: false,
            requested_ip: wanted,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes))
            .unwrap();
        bytes
    }

    fn parsed(bytes: &[u8]) -> (DhcpMessageType, Ipv4Addr) {
        let packet = DhcpPacket::new_checked(bytes).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(repr.transaction_id, 0x1234);
        (repr.message_type, repr.your_ip)
    }

    #[test]
    fn cards_have_addresses_of_their_own_and_keep_them() {
        let mut leases = Leases::default();
        assert_eq!(leases.of(mac(1)), Some(FIRST_LEASE));
        assert_eq!(leases.of(mac(2)), Some(Ipv4Addr::new(10, 0, 2, 16)));
        assert_eq!(leases.of(mac(1)), Some(FIRST_LEASE));
        assert_eq!(leases.known(mac(3)), None);
    }

    #[test]
    fn addresses_come_to_an_end() {
        let mut leases = Leases::default();
        let given: Vec<_> = (0..=255).filter_map(|last| leases.of(mac(last))).collect();
        assert_eq!(given.last(), Some(&Ipv4Addr::new(10, 0, 2, LAST)));
        assert_eq!(given.len(), 240);
        assert_eq!(
            leases.answer(&message(DhcpMessageType::Discover, mac(255), None)),
            None
        );
    }

    #[test]
    fn an_address_that_is_not_the_cards_is_refused() {
        let mut leases = Leases::default();
        let mut ask =
            |kind, wanted| parsed(&leases.answer(&message(kind, mac(1), wanted)).unwrap());
        let offer = ask(DhcpMessageType::Discover, None);
        assert_eq!(offer, (DhcpMessageType::Offer, FIRST_LEASE));
        let other = Some(Ipv4Addr::new(10, 0, 2, 77));
        assert_eq!(ask(DhcpMessageType::Request, other).0, DhcpMessageType::Nak);
        let ack = ask(DhcpMessageType::Request, Some(FIRST_LEASE));
        assert_eq!(ack, (DhcpMessageType::Ack, FIRST_LEASE));
    }

    #[test]
    fn what_is_no_request_is_not_answered() {
        let mut leases = Leases::default();
        assert_eq!(leases.answer(b"anything"), None);
        assert_eq!(
            leases.answer(&message(DhcpMessageType::Offer, mac(1), None)),
            None
        );
        assert_eq!(
            leases.answer(&message(DhcpMessageType::Release, mac(1), None)),
            None
        );
    }
}
