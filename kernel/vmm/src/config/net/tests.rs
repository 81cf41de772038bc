//! Which cards are accepted, and how each error names line and key.

use alloc::string::ToString;

use super::*;
use crate::config::Config;

const GOOD: &str = r#"[node]
name = "a"
[[nic]]
name = "link"
role = "link"
pci = "00:03.0"
ip = "10.0.0.1/24"
[[nic]]
name = "lan"
role = "service"
mac = "52:54:00:12:34:56"
ip = "192.168.7.2/28"
gateway = "192.168.7.1"
mtu = 1400
[[nic]]
name = "own"
role = "guest"
order = 2
[[vm]]
name = "x"
memory_mib = 16
kernel = "k"
format = "linux"
[[vm.nic]]
mac = "02:00:00:00:00:01"
nic = "lan"
[[vm.nic]]
mac = "02:00:00:00:00:02"
nic = "own"
mtu = 1000
"#;

fn parse(from: &str, to: &str) -> Result<Config, ConfigError> {
    assert!(GOOD.contains(from), "{from}");
    Config::parse(&GOOD.replacen(from, to, 1))
}

fn error(from: &str, to: &str) -> String {
    parse(from, to).expect_err("is wrong").to_string()
}

#[test]
fn cards_are_what_the_file_says() {
    let config = Config::parse(GOOD).expect("is good");
    let [link, lan, own] = &config.nics[..] else {
        panic!("three cards");
    };
    let address = |ip: [u8; 4], prefix| Address {
        ip: ip.into(),
        prefix,
    };
    let place = PciPlace {
        bus: 0,
        device: 3,
        function: 0,
    };
    assert_eq!((link.role, link.which), (Role::Link, Which::Pci(place)));
    assert_eq!(link.mtu, 1500);
    let addressing = Addressing::Static {
        address: address([192, 168, 7, 2], 28),
        gateway: Some([192, 168, 7, 1].into()),
    };
    assert_eq!(lan.addressing, Some(addressing));
    assert_eq!((own.which, own.addressing), (Which::Order(2), None));
    let nics = &config.guests[0].nics;
    assert_eq!(
        (nics[0].mtu, nics[1].mtu),
        (1400, 1000),
        "by default its card's"
    );
    assert_eq!(nics[1].nic, "own");
    let dhcp = parse("ip = \"10.0.0.1/24\"", "dhcp = true").expect("is good");
    assert_eq!(dhcp.nics[0].addressing, Some(Addressing::Dhcp));
    let neither = parse(
        "ip = \"192.168.7.2/28\"\ngateway = \"192.168.7.1\"",
        "dhcp = false",
    );
    assert_eq!(neither.expect("is good").nics[1].addressing, None);
}

#[test]
fn every_error_names_line_and_key() {
    for (from, to, expected) in [
        (
            "name = \"lan\"",
            "name = \"link\"",
            "line 9: nic.name: \"link\" is used twice",
        ),
        ("name = \"lan\"", "name = \"L\"", "line 9: nic.name: "),
        ("role = \"service\"", "role = \"lan\"", "line 10: "),
        (
            "00:03.0",
            "0:3.0",
            "line 6: nic.pci: \"0:3.0\" is not bus:device.function",
        ),
        ("00:03.0", "00:20.0", "line 6: nic.pci: "),
        ("00:03.0", "00:03.8", "line 6: nic.pci: "),
        ("00:03.0", "00:+3.0", "line 6: nic.pci: "),
        (
            "52:54:00:12:34:56",
            "53:54:00:12:34:56",
            "line 11: nic.mac: ",
        ),
        (
            "order = 2",
            "",
            "line 16: nic: say with one of pci, mac and order",
        ),
        (
            "order = 2",
            "order = 2\npci = \"00:04.0\"",
            "line 16: nic: say with one",
        ),
        (
            "order = 2",
            "mac = \"52:54:00:12:34:56\"",
            "line 16: nic: mac = \"52:54:00:12:34:56\" is \"lan\" already",
        ),
        (
            "10.0.0.1/24",
            "10.0.0.1",
            "line 7: nic.ip: \"10.0.0.1\" is not a host's address",
        ),
        ("10.0.0.1/24", "10.0.0.0/24", "line 7: nic.ip: "),
        ("10.0.0.1/24", "10.0.0.255/24", "line 7: nic.ip: "),
        ("10.0.0.1/24", "10.0.0.1/33", "line 7: nic.ip: "),
        ("10.0.0.1/24", "10.0.0.1/0", "line 7: nic.ip: "),
        ("10.0.0.1/24", "10.0.0.1/+24", "line 7: nic.ip: "),
        ("10.0.0.1/24", "224.0.0.1/24", "line 7: nic.ip: "),
        ("10.0.0.1/24", "127.0.0.1/8", "line 7: nic.ip: "),
        (
            "ip = \"192.168.7.2/28\"\ngateway = \"192.168.7.1\"",
            "ip = \"10.0.9.1/16\"",
            "line 12: nic.ip: 10.0.9.1/16 is in the network of \"link\"",
        ),
        (
            "10.0.0.1/24",
            "192.168.0.1/16",
            "line 12: nic.ip: 192.168.7.2/28 is in the network of \"link\"",
        ),
        (
            "192.168.7.1",
            "192.168.7.17",
            "line 13: nic.gateway: \"192.168.7.17\" is not another host in the network of 192.168.7.2/28",
        ),
        ("192.168.7.1", "192.168.7.2", "line 13: nic.gateway: "),
        ("192.168.7.1", "192.168.7.15", "line 13: nic.gateway: "),
        (
            "ip = \"192.168.7.2/28\"",
            "",
            "line 13: nic.gateway: only with nic.ip",
        ),
        ("ip = \"10.0.0.1/24\"", "", "line 5: nic.role: a link needs"),
        (
            "ip = \"10.0.0.1/24\"",
            "ip = \"10.0.0.1/24\"\ndhcp = true",
            "line 7: nic.ip: the address comes by dhcp",
        ),
        (
            "order = 2",
            "order = 2\ndhcp = true",
            "line 17: nic.role: the host has no address",
        ),
        (
            "role = \"link\"",
            "role = \"service\"",
            "line 10: nic.role: more than 1",
        ),
        (
            "mtu = 1400",
            "mtu = 575",
            "line 14: nic.mtu: 575 is not 576 to 1500",
        ),
        ("mtu = 1400", "mtu = 1501", "line 14: nic.mtu: "),
        ("mtu = 1400", "speed = 1", "line 14: "),
        (
            "02:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "line 25: vm.nic.mac: ",
        ),
        (
            "02:00:00:00:00:02",
            "02:00:00:00:00:01",
            "line 28: vm.nic.mac: 02:00:00:00:00:01 is used twice",
        ),
        (
            "02:00:00:00:00:01",
            "52:54:00:12:34:56",
            "line 25: vm.nic.mac: 52:54:00:12:34:56 is the host's own on \"lan\"",
        ),
        (
            "nic = \"lan\"",
            "nic = \"wan\"",
            "line 26: vm.nic.nic: there is no [[nic]] named \"wan\"",
        ),
        (
            "nic = \"lan\"",
            "nic = \"link\"",
            "line 26: vm.nic.nic: \"link\" is a link",
        ),
        (
            "nic = \"lan\"",
            "nic = \"own\"",
            "line 29: vm.nic.nic: \"own\" is another guest's alone",
        ),
        ("mtu = 1000", "mtu = 100", "line 30: vm.nic.mtu: 100 is not"),
        (
            "nic = \"own\"\nmtu = 1000",
            "nic = \"lan\"\nmtu = 1500",
            "line 30: vm.nic.mtu: 1500 is more than \"lan\" has, 1400",
        ),
        (
            "format = \"linux\"",
            "format = \"linux\"\ntest_devices = true",
            "vm.nic: a guest with test devices has none",
        ),
    ] {
        let error = error(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn there_are_only_so_many() {
    let mut text = GOOD.to_string();
    for number in 3..6 {
        let nic = format!("[[vm.nic]]\nmac = \"02:00:00:00:00:0{number}\"\nnic = \"lan\"\n");
        text.push_str(&nic);
    }
    let error = |text: &str| Config::parse(text).expect_err("too many").to_string();
    assert!(
        error(&text).contains("line 38: vm.nic: more than 4 cards"),
        "{}",
        error(&text)
    );
    let nic =
        |number| format!("[[nic]]\nname = \"n{number}\"\nrole = \"guest\"\norder = {number}\n");
    let nics: String = (10..16).map(nic).collect();
    let text = GOOD.replacen("[[vm]]", &[&nics, "[[vm]]"].concat(), 1);
    assert!(
        error(&text).contains("nic: more than 8 cards"),
        "{}",
        error(&text)
    );
    let link = |net| {
        format!(
            "[[nic]]\nname = \"n{net}\"\nrole = \"link\"\norder = {net}\nip = \"10.{net}.0.1/16\"\n"
        )
    };
    let links: String = (11..13).map(link).collect();
    let text = GOOD.replacen("[[vm]]", &[&links, "[[vm]]"].concat(), 1);
    assert!(
        error(&text).contains("nic.role: more than 2"),
        "{}",
        error(&text)
    );
}

#[test]
fn a_network_is_its_prefix() {
    let address = |text: &str| text.parse::<Address>().expect("is one");
    assert!(address("10.1.2.3/8").reaches([10, 9, 9, 9].into()));
    assert!(!address("10.1.2.3/8").reaches([11, 1, 2, 3].into()));
    assert!(!address("10.1.2.3/32").reaches([10, 1, 2, 2].into()));
    assert!(address("10.1.2.2/31").reaches([10, 1, 2, 3].into()));
}
