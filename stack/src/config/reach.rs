//! Where connections and datagrams of a guest may go: rules in their order, the first that matches decides.

use std::net::{IpAddr, SocketAddr};

/// A rule. Destinations that match no rule are allowed.
///
/// It applies to addresses of the host's network: the gateway's is the host's loopback, 127.0.0.1 or ::1. The DNS
/// forwarder is reached in any case, and so are clients of published ports by their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReachRule {
    /// Whether matching destinations are allowed.
    pub allow: bool,
    /// The network's first address.
    pub first: IpAddr,
    /// Length of its prefix, bits.
    pub prefix_len: u8,
    /// The port of TCP or UDP that it is limited to; echo requests have none.
    pub port: Option<u16>,
}

impl ReachRule {
    /// Bits of an address of this family.
    pub fn bits(ip: IpAddr) -> u8 {
        if ip.is_ipv4() { 32 } else { 128 }
    }

    /// The first address of the network that `ip` is in, with this prefix.
    pub fn masked(ip: IpAddr, prefix_len: u8) -> IpAddr {
        // A prefix of no bits would shift by the full width.
        let shift = u32::from(Self::bits(ip).saturating_sub(prefix_len));
        match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                std::net::Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                std::net::Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        }
    }

    fn matches(&self, to: SocketAddr) -> bool {
        let ip = to.ip();
        ip.is_ipv4() == self.first.is_ipv4()
            && Self::masked(ip, self.prefix_len) == self.first
            && self.port.is_none_or(|port| port == to.port())
    }
}

/// True if the rules allow a destination of the host's network. The port of an echo request is 0.
pub(super) fn allows(rules: &[ReachRule], to: SocketAddr) -> bool {
    rules.iter().find(|rule| rule.matches(to)).is_none_or(|rule| rule.allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, first: &str, prefix_len: u8, port: Option<u16>) -> ReachRule {
        ReachRule { allow, first: first.parse().unwrap(), prefix_len, port }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = [
            rule(true, "192.0.2.0", 28, Some(443)),
            rule(false, "192.0.2.0", 24, None),
            rule(false, "2001:db8::", 32, Some(25)),
            rule(true, "127.0.0.1", 32, None),
            rule(false, "127.0.0.0", 8, None),
        ];
        for (to, expected) in [
            ("192.0.2.15:443", true),
            ("192.0.2.15:80", false),
            ("192.0.2.15:0", false),
            ("192.0.2.16:443", false),
            ("192.0.3.1:80", true),
            ("[2001:db8::1]:25", false),
            ("[2001:db8::1]:26", true),
            ("[2001:db9::1]:25", true),
            ("[::]:25", true),
            ("127.0.0.1:80", true),
            ("127.1.2.3:80", false),
        ] {
            assert_eq!(allows(&rules, to.parse().unwrap()), expected, "{to}");
        }
        assert!(allows(&[], "192.0.2.1:1".parse().unwrap()));
        let nothing = [rule(false, "0.0.0.0", 0, None), rule(false, "::", 0, None)];
        for to in ["192.0.2.1:1", "255.0.0.1:1", "[2001:db8::1]:1", "[::1]:1"] {
            assert!(!allows(&nothing, to.parse().unwrap()), "{to}");
        }
    }
}
