//! The routes of the host, as the kernel lists them in /proc/net.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::Net;

/// Lines read of each file: a router with the full table of the internet has about a million routes.
const LINES_MAX: usize = 4 << 20;

/// A network and the device of its route. An IPv4 address is the last 32 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    first: u128,
    /// Bits of the prefix and of the family's addresses.
    prefix_len: u8,
    bits: u8,
    device: String,
}

impl Route {
    /// Whether one contains the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        // The shorter prefix decides: both networks are within it, or only one.
        let shift = self.bits - self.prefix_len.min(other.prefix_len).min(self.bits);
        let prefix = |route: &Self| route.first.checked_shr(shift.into()).unwrap_or(0);
        self.bits == other.bits && prefix(self) == prefix(other)
    }

    /// A default route, or a half of one, as VPNs add: each network is within it.
    fn is_default(&self) -> bool {
        self.prefix_len <= 1
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            32 => write!(f, "{}", Ipv4Addr::from_bits(self.first as u32))?,
            _ => write!(f, "{}", Ipv6Addr::from_bits(self.first))?,
        }
        write!(f, "/{}", self.prefix_len)?;
        if self.device.is_empty() { Ok(()) } else { write!(f, " (device {})", self.device) }
    }
}

impl From<Net<Ipv4Addr>> for Route {
    fn from(net: Net<Ipv4Addr>) -> Self {
        let first = net.first.to_bits().into();
        Self { first, prefix_len: net.prefix_len, bits: 32, device: String::new() }
    }
}

impl From<Net<Ipv6Addr>> for Route {
    fn from(net: Net<Ipv6Addr>) -> Self {
        let first = net.first.to_bits();
        Self { first, prefix_len: net.prefix_len, bits: 128, device: String::new() }
    }
}

/// The host's IPv4 routes, but the default ones. None where the kernel does not list them.
pub(super) fn ipv4() -> Vec<Route> {
    list("/proc/net/route", ipv4_route)
}

/// The host's IPv6 routes, but the default ones.
pub(super) fn ipv6() -> Vec<Route> {
    list("/proc/net/ipv6_route", ipv6_route)
}

fn list(path: &str, parse: fn(&str) -> Option<Route>) -> Vec<Route> {
    // A kernel without IPv6 has no such file, and no such routes.
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().take(LINES_MAX).map_while(Result::ok);
    lines.filter_map(|line| parse(&line)).filter(|route| !route.is_default()).collect()
}

/// One line of /proc/net/route: the address and the mask are in the byte order of the network, read as a number of
/// this machine.
fn ipv4_route(line: &str) -> Option<Route> {
    let mut fields = line.split_whitespace();
    // The header has no number in the second field.
    let device = fields.next()?.to_owned();
    let number = |field: &str| u32::from_str_radix(field, 16).ok();
    // The kernel prints the bytes as one number of this machine.
    let first = u32::from_be(number(fields.next()?)?);
    let mask = number(fields.nth(5)?)?;
    Some(Route { first: first.into(), prefix_len: mask.count_ones() as u8, bits: 32, device })
}

/// One line of /proc/net/ipv6_route.
fn ipv6_route(line: &str) -> Option<Route> {
    let mut fields = line.split_whitespace();
    let first = u128::from_str_radix(fields.next()?, 16).ok()?;
    let prefix_len = u8::from_str_radix(fields.next()?, 16).ok()?;
    // Between them: source, gateway, metric, counters and flags.
    let device = fields.last()?.to_owned();
    Some(Route { first, prefix_len, bits: 128, device })
}

#[cfg(test)]
mod tests {
    use super::super::Subnet;
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_routes() {
        let header =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        assert_eq!(ipv4_route(header), None);
        let line = "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        assert_eq!(ipv4_route(line).unwrap().to_string(), "172.17.0.0/16 (device docker0)");
        let line = "fd000000000002130000000000000000 40 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0";
        assert_eq!(ipv6_route(line).unwrap().to_string(), "fd00:0:0:213::/64 (device eth0)");
        let default = ipv4_route("eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0");
        assert!(default.unwrap().is_default());
    }

    #[test]
    fn networks_overlap_when_one_contains_the_other() {
        let own = Route::from(Subnet::default().v4);
        let other = |first: [u8; 4], prefix_len| {
            Route::from(Net { first: Ipv4Addr::from(first), prefix_len })
        };
        for (route, overlaps) in [
            (other([10, 0, 0, 0], 8), true),
            (other([10, 213, 0, 0], 16), true),
            (other([10, 213, 7, 9], 32), true),
            (other([10, 212, 0, 0], 15), true),
            (other([10, 214, 0, 0], 16), false),
            (other([192, 168, 0, 0], 16), false),
        ] {
            assert_eq!(
                (route.overlaps(&own), own.overlaps(&route)),
                (overlaps, overlaps),
                "{route}"
            );
        }
        assert!(!own.overlaps(&Route::from(Subnet::default().v6)));
    }
}
