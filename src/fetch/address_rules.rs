//! Which addresses may be connected to. A TokenCache's author chooses the URL, and the controller's network reaches
//! what the author's may not: itself, its node, the cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// `--allow-cidr` and `--deny-cidr` over what is refused by default.
///
/// Of all networks given that contain an address, the one with the longest prefix decides; at equal length, deny does.
/// With none, loopback, link-local, unspecified and multicast addresses and the clouds' metadata services are refused,
/// and everything else, private ranges included, is permitted. An IPv6 address that stands for an IPv4 address must be
/// permitted in both forms.
#[derive(Clone, Debug, Default)]
pub struct AddressRules {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// What is refused unless `--allow-cidr` covers it: address, length of its prefix, and what it is.
const REFUSED: &[(IpAddr, u8, &str)] = &[
    (v4(0, 0, 0, 0), 8, "an unspecified address"),
    (v4(127, 0, 0, 0), 8, "a loopback address"),
    (v4(169, 254, 0, 0), 16, "a link-local address, as of a cloud's metadata service"),
    (v4(100, 100, 100, 200), 32, "Alibaba Cloud's metadata service"),
    (v4(168, 63, 129, 16), 32, "Azure's host service"),
    (v4(192, 0, 0, 192), 32, "Oracle Cloud's metadata service"),
    (v4(224, 0, 0, 0), 4, "a multicast address"),
    (v4(240, 0, 0, 0), 4, "a reserved or broadcast address"),
    (v6(0, 0, 0, 0), 128, "the unspecified address"),
    (v6(0, 0, 0, 1), 128, "the loopback address"),
    (v6(0xfe80, 0, 0, 0), 10, "a link-local address"),
    (v6(0xff00, 0, 0, 0), 8, "a multicast address"),
    (v6(0xfd00, 0x0ec2, 0, 0x0254), 128, "AWS's metadata service"),
    (v6(0xfd00, 0x0ec2, 0, 0x0023), 128, "AWS's credential service of pods"),
    (v6(0xfd20, 0x00ce, 0, 0x0254), 128, "Google Cloud's metadata service"),
    (v6(0xfd00, 0x00c1, 0xa9fe, 0xa9fe), 128, "Oracle Cloud's metadata service"),
    (v6(0xfd00, 0x0042, 0, 0x0042), 128, "Scaleway's metadata service"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// The first two and the last two groups; those between are zero.
const fn v6(a: u16, b: u16, y: u16, z: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, y, z))
}

impl AddressRules {
    /// Rules with these exceptions from the default.
    #[must_use]
    pub fn new(allow: Vec<IpNet>, deny: Vec<IpNet>) -> Self {
        Self { allow, deny }
    }

    /// Whether the address may be connected to.
    ///
    /// # Errors
    /// Why it may not, and which flag would allow it.
    pub fn permits(&self, ip: IpAddr) -> Result<(), String> {
        self.judge(ip)?;
        match embedded(ip) {
            Some(inner) => self.judge(IpAddr::V4(inner)).map_err(|why| format!("{ip} stands for {inner}: {why}")),
            None => Ok(()),
        }
    }

    fn judge(&self, ip: IpAddr) -> Result<(), String> {
        let longest =
            |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&ip)).max_by_key(|net| net.prefix_len()).copied();
        let whole = IpNet::from(ip);
        match (longest(&self.allow), longest(&self.deny)) {
            (Some(allow), Some(deny)) if allow.prefix_len() > deny.prefix_len() => Ok(()),
            (Some(_), None) => Ok(()),
            (_, Some(deny)) if deny == whole => Err(format!("{ip} is denied by --deny-cidr {deny}")),
            (_, Some(deny)) => {
                Err(format!("{ip} is denied by --deny-cidr {deny}; --allow-cidr {whole} would allow it"))
            }
            (None, None) => match REFUSED.iter().find(|(net, length, _)| covers(*net, *length, ip)) {
                Some((.., what)) => Err(format!("{ip} is {what}; --allow-cidr {whole} would allow it")),
                None => Ok(()),
            },
        }
    }
}

fn covers(net: IpAddr, length: u8, ip: IpAddr) -> bool {
    IpNet::new(net, length).is_ok_and(|net| net.contains(&ip))
}

/// The IPv4 address that packets to an IPv6 address end at: mapped and compatible (RFC 4291 §2.5.5), 6to4 (RFC 3056),
/// NAT64 (RFC 6052 and RFC 8215), Teredo (RFC 4380).
fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let pair = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        // :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => pair(high, low),
        [0x2001, 0, .., high, low] => pair(!high, !low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> AddressRules {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        AddressRules::new(nets(allow), nets(deny))
    }

    fn permitted(rules: &AddressRules, ip: &str) -> bool {
        rules.permits(ip.parse().unwrap()).is_ok()
    }

    #[test]
    fn by_default_public_and_private_addresses_are_permitted() {
        for ip in [
            "1.1.1.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.191",
            "168.63.129.15",
            "223.255.255.255",
            "2606:4700::1111",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::101:101",
            "2002:0a00:0001::1",
        ] {
            assert_eq!(AddressRules::default().permits(ip.parse().unwrap()), Ok(()), "{ip}");
        }
    }

    #[test]
    fn by_default_the_machine_itself_its_link_and_metadata_services_are_refused() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
        ] {
            assert!(!permitted(&AddressRules::default(), ip), "{ip}");
        }
    }

    #[test]
    fn an_ipv6_address_that_stands_for_a_refused_ipv4_address_is_refused() {
        for ip in [
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2001:0:1:2:3:4:5601:5601",
        ] {
            assert!(!permitted(&AddressRules::default(), ip), "{ip}");
        }
        assert!(!permitted(&rules(&[], &["10.0.0.0/8"]), "::ffff:10.0.0.1"));
        assert!(!permitted(&rules(&["::/0"], &[]), "::ffff:127.0.0.1"));
        assert!(permitted(&rules(&["127.0.0.0/8"], &[]), "::ffff:127.0.0.1"));
        assert!(!permitted(&rules(&["127.0.0.0/8"], &["::ffff:0:0/96"]), "::ffff:127.0.0.1"));
    }

    #[test]
    fn the_longest_prefix_decides_and_at_equal_length_deny_does() {
        for (allow, deny, ip, expected) in [
            (vec!["127.0.0.1/32"], vec![], "127.0.0.1", true),
            (vec!["127.0.0.1/32"], vec![], "127.0.0.2", false),
            (vec!["0.0.0.0/0"], vec![], "169.254.169.254", true),
            (vec!["0.0.0.0/0"], vec![], "::1", false),
            (vec![], vec!["10.0.0.0/8"], "10.0.0.1", false),
            (vec![], vec!["10.0.0.0/8"], "11.0.0.1", true),
            (vec!["10.1.0.0/16"], vec!["10.0.0.0/8"], "10.1.0.1", true),
            (vec!["10.0.0.0/8"], vec!["10.1.0.0/16"], "10.1.0.1", false),
            (vec!["10.0.0.0/8"], vec!["10.0.0.0/8"], "10.1.0.1", false),
            (vec!["10.0.0.0/8", "10.1.2.0/24"], vec!["10.1.0.0/16"], "10.1.2.3", true),
            (vec!["10.0.0.0/8"], vec!["0.0.0.0/0"], "1.1.1.1", false),
        ] {
            assert_eq!(permitted(&rules(&allow, &deny), ip), expected, "{allow:?} {deny:?} {ip}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_address_is_and_which_flag_would_allow_it() {
        let why = AddressRules::default().permits("169.254.169.254".parse().unwrap()).unwrap_err();
        assert!(why.contains("metadata") && why.contains("--allow-cidr 169.254.169.254/32"), "{why}");
        let why = rules(&[], &["10.0.0.0/8"]).permits("10.0.0.1".parse().unwrap()).unwrap_err();
        assert!(why.contains("--deny-cidr 10.0.0.0/8") && why.contains("--allow-cidr 10.0.0.1/32"), "{why}");
        let why = rules(&[], &["10.0.0.1/32"]).permits("10.0.0.1".parse().unwrap()).unwrap_err();
        assert!(!why.contains("allow"), "{why}");
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_never_permitted_where_the_address_itself_is_refused(bits: u32) {
            let inner = Ipv4Addr::from(bits);
            let rules = AddressRules::default();
            if rules.permits(inner.into()).is_err() {
                let [a, b, c, d] = inner.octets().map(u16::from);
                let (high, low) = (a << 8 | b, c << 8 | d);
                for outer in [
                    inner.to_ipv6_mapped(),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                ] {
                    prop_assert!(rules.permits(outer.into()).is_err(), "{}", outer);
                }
            }
        }

        #[test]
        fn the_flag_that_a_refusal_names_allows_the_address(high: u16, low: u32, net in 0_usize..7) {
            let ip = match net {
                0 => IpAddr::V4(low.into()),
                1 => IpAddr::V4(Ipv4Addr::from(0xa9fe_0000 | (low & 0xffff))),
                2 => IpAddr::V6(Ipv4Addr::from(low).to_ipv6_mapped()),
                3 => IpAddr::V6(Ipv6Addr::new(0xfe80 | (high & 0x3f), 0, 0, 0, 0, 0, 0, 1)),
                4 => IpAddr::V6(Ipv6Addr::new(0x2002, high, 0, 0, 0, 0, 0, 1)),
                5 => IpAddr::V6(Ipv6Addr::new(0xff02, high, 0, 0, 0, 0, 0, 1)),
                _ => IpAddr::V6(Ipv6Addr::from(u128::from(low & 0xf))),
            };
            if let Err(why) = AddressRules::default().permits(ip) {
                let flag = why.split_once("--allow-cidr ").and_then(|(_, rest)| rest.split_once(" would")).unwrap().0;
                prop_assert_eq!(rules(&[flag], &[]).permits(ip), Ok(()));
            }
        }
    }
}
