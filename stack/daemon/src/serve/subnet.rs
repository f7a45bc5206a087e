//! The subnet of the daemon: one for all containers, with the gateway and the DNS forwarder in it.
//!
//! A container is the same number of both prefixes: the second container of the default subnets is 10.213.0.5 and
//! fd00:0:0:213::5.

mod routes;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use skbudget_stack::{ContainerConfig, Ipv6Net};

/// Numbers of the gateway and of the DNS forwarder, as in the subnet of `run`, and of the first container.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
const FIRST: u32 = 4;

/// Allowed lengths of the IPv4 prefix, bits: the shortest is that of the largest private network; the longest has room
/// for three containers.
const PREFIX_LENS: RangeInclusive<u8> = 8..=29;
/// Allowed lengths of the IPv6 prefix, bits: the longest has room for as many numbers as the shortest IPv4 prefix.
const PREFIX_LENS_V6: RangeInclusive<u8> = 16..=104;

/// A network: its first address and the length of its prefix, bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Net<A> {
    first: A,
    prefix_len: u8,
}

/// The networks of the daemon, of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    v4: Net<Ipv4Addr>,
    v6: Net<Ipv6Addr>,
}

impl Default for Subnet {
    fn default() -> Self {
        Self {
            v4: Net { first: Ipv4Addr::new(10, 213, 0, 0), prefix_len: 16 },
            v6: Net { first: Ipv6Addr::new(0xfd00, 0, 0, 0x213, 0, 0, 0, 0), prefix_len: 64 },
        }
    }
}

impl Subnet {
    /// Sets the IPv4 network from a text such as `10.213.0.0/16`.
    pub(crate) fn set_v4(&mut self, text: &str) -> Result<(), String> {
        let (first, prefix_len) = split::<Ipv4Addr>(text, &PREFIX_LENS)?;
        let masked = Ipv4Addr::from_bits(first.to_bits() & mask_v4(prefix_len));
        if masked != first {
            return Err(beyond(text, masked.into(), prefix_len));
        }
        // The kernel refuses addresses of these networks, or does not send packets to them.
        if first.octets()[0] == 0 || first.is_loopback() || !is_unicast_v4(first) {
            return Err(format!("{text}: no container can have an address of this network"));
        }
        self.v4 = Net { first, prefix_len };
        Ok(())
    }

    /// Sets the IPv6 network from a text such as `fd00:0:0:213::/64`.
    pub(crate) fn set_v6(&mut self, text: &str) -> Result<(), String> {
        let (first, prefix_len) = split::<Ipv6Addr>(text, &PREFIX_LENS_V6)?;
        let masked = Ipv6Addr::from_bits(first.to_bits() & mask_v6(prefix_len));
        if masked != first {
            return Err(beyond(text, masked.into(), prefix_len));
        }
        if first.is_multicast() || first.is_unicast_link_local() || first.segments()[0] == 0 {
            return Err(format!("{text}: no container can have an address of this network"));
        }
        self.v6 = Net { first, prefix_len };
        Ok(())
    }

    /// The number of a container's IPv4 address.
    pub(crate) fn number(&self, address: Ipv4Addr) -> Result<u32, String> {
        let (numbers, first) = (self.numbers(), self.v4.first.to_bits());
        // An address below the network has no number, either.
        let number = address.to_bits().checked_sub(first).filter(|n| numbers.contains(n));
        number.ok_or_else(|| {
            let at = |number: &u32| Ipv4Addr::from_bits(first + number);
            format!(
                "address {address}: not one of the daemon's subnet: {} to {} are allowed",
                at(numbers.start()),
                at(numbers.end())
            )
        })
    }

    /// The next number after `last` that no container has, in turns: an address is given to another container as late
    /// as possible. `None`: all are in use.
    pub(crate) fn free(&self, last: u32, used: &BTreeSet<u32>) -> Option<u32> {
        let numbers = self.numbers();
        // One beyond the last number starts again at the first.
        let after = (last + 1).clamp(*numbers.start(), numbers.end() + 1);
        (after..=*numbers.end()).chain(*numbers.start()..after).find(|n| !used.contains(n))
    }

    /// Gives a container's stack the addresses of that number, and those of its gateway and forwarder.
    pub(crate) fn apply(&self, number: u32, config: &mut ContainerConfig) {
        let v4 = |number| Ipv4Addr::from_bits(self.v4.first.to_bits() + number);
        let v6 = |number| Ipv6Addr::from_bits(self.v6.first.to_bits() + u128::from(number));
        config.guest_ip = v4(number);
        (config.gateway_ip, config.dns_ip) = (v4(GATEWAY), v4(DNS));
        // The whole subnet is on the container's link: its kernel sends packets for siblings without the gateway.
        config.prefix_len = self.v4.prefix_len;
        config.siblings = true;
        // Without IPv6 the container stays without.
        if let Some(net) = &mut config.ipv6 {
            *net = Ipv6Net {
                guest: v6(number),
                gateway: v6(GATEWAY),
                dns: v6(DNS),
                prefix_len: self.v6.prefix_len,
                ..*net
            };
        }
    }

    /// Refuses a subnet that overlaps a route of the host: containers could not reach the hosts behind it.
    pub(crate) fn check_routes(&self) -> Result<(), String> {
        for (key, own, route) in [
            ("subnet", routes::Route::from(self.v4), routes::ipv4()),
            ("subnet6", routes::Route::from(self.v6), routes::ipv6()),
        ] {
            if let Some(other) = route.into_iter().find(|route| route.overlaps(&own)) {
                return Err(format!(
                    "{key} {own} overlaps the host's route {other}: set {key} in [daemon] of the config to a network \
                     that the host does not use"
                ));
            }
        }
        Ok(())
    }

    /// Numbers that containers may have: neither the gateway's, nor the forwarder's, nor the broadcast address.
    fn numbers(&self) -> RangeInclusive<u32> {
        FIRST..=!mask_v4(self.v4.prefix_len) - 1
    }
}

/// The address and the prefix length of a text.
fn split<A: std::str::FromStr>(text: &str, lens: &RangeInclusive<u8>) -> Result<(A, u8), String> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(ip, len)| Some((ip.parse().ok()?, len.parse::<u8>().ok()?)));
    parsed.filter(|(_, len)| lens.contains(len)).ok_or_else(|| {
        format!(
            "{text:?}: a network is needed, ADDRESS/LENGTH with a length of {} to {}",
            lens.start(),
            lens.end()
        )
    })
}

/// The message about an address with bits beyond its prefix.
fn beyond(text: &str, masked: IpAddr, prefix_len: u8) -> String {
    format!("{text}: has bits beyond its prefix; the network is {masked}/{prefix_len}")
}

fn is_unicast_v4(ip: Ipv4Addr) -> bool {
    // Class E is above the multicast groups.
    ip.octets()[0] < 224 && !ip.is_link_local()
}

fn mask_v4(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0)
}

fn mask_v6(prefix_len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_len.min(128))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_same_number_in_both_networks() {
        let subnet = Subnet::default();
        let mut config = ContainerConfig::new(1500, true, None, [1, 2]);
        let number = subnet.number(Ipv4Addr::new(10, 213, 1, 7)).unwrap();
        subnet.apply(number, &mut config);
        let net = config.ipv6.unwrap();
        let shown = [config.guest_ip, config.gateway_ip, config.dns_ip].map(|ip| ip.to_string());
        assert_eq!(shown, ["10.213.1.7", "10.213.0.2", "10.213.0.3"]);
        let shown = [net.guest, net.gateway, net.dns].map(|ip| ip.to_string());
        assert_eq!(shown, ["fd00:0:0:213::107", "fd00:0:0:213::2", "fd00:0:0:213::3"]);
        assert_eq!((config.prefix_len, net.prefix_len), (16, 64));
    }

    #[test]
    fn addresses_are_given_in_turns_until_all_are_in_use() {
        let mut subnet = Subnet::default();
        subnet.set_v4("192.168.7.8/29").unwrap();
        let mut used = BTreeSet::new();
        assert_eq!(subnet.free(0, &used), Some(4));
        assert_eq!(subnet.free(4, &used), Some(5));
        used.extend([4, 6]);
        assert_eq!(subnet.free(5, &used), Some(5), "6 is in use, 7 is the broadcast address");
        used.insert(5);
        assert_eq!(subnet.free(5, &used), None);
    }

    #[test]
    fn addresses_that_containers_cannot_have_are_refused() {
        let subnet = Subnet::default();
        for bad in
            ["10.213.0.0", "10.213.0.2", "10.213.0.3", "10.213.255.255", "10.214.0.4", "1.2.3.4"]
        {
            let message = subnet.number(bad.parse().unwrap()).unwrap_err();
            assert!(message.ends_with("10.213.0.4 to 10.213.255.254 are allowed"), "{message}");
        }
    }

    #[test]
    fn networks_that_cannot_be_used_are_refused() {
        let mut subnet = Subnet::default();
        for (text, expected) in [
            ("10.213.0.0", "ADDRESS/LENGTH with a length of 8 to 29"),
            ("10.213.0.0/30", "8 to 29"),
            ("10.213.0.0/x", "8 to 29"),
            ("10.213.0.1/16", "the network is 10.213.0.0/16"),
            ("127.0.0.0/8", "no container"),
            ("224.0.0.0/8", "no container"),
            ("0.0.0.0/8", "no container"),
            ("169.254.0.0/16", "no container"),
            ("fd00::/64", "8 to 29"),
        ] {
            let message = subnet.set_v4(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        for (text, expected) in [
            ("fd00::1/64", "the network is fd00::/64"),
            ("fd00::/112", "16 to 104"),
            ("fe80::/64", "no container"),
            ("ff02::/64", "no container"),
            ("::/64", "no container"),
        ] {
            let message = subnet.set_v6(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert_eq!(subnet, Subnet::default());
        assert!(subnet.set_v4("172.16.0.0/12").is_ok() && subnet.set_v6("fd12:3456::/64").is_ok());
    }
}
