//! Addresses of a flow and of a packet, of either family.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses and ports of a flow, of either family, in 36 bytes: the guest's, and those of the remote as the guest sees
/// it.
///
/// An IPv4 address is stored as IPv4-mapped (RFC 4291 section 2.5.5.2), an address that no packet may carry itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    guest_ip: [u8; 16],
    remote_ip: [u8; 16],
    guest_port: u16,
    remote_port: u16,
}

impl Tuple {
    /// Both addresses must be of one family.
    pub(crate) fn new(guest: SocketAddr, remote: SocketAddr) -> Self {
        debug_assert_eq!(guest.is_ipv4(), remote.is_ipv4());
        Self {
            guest_ip: mapped(guest.ip()),
            remote_ip: mapped(remote.ip()),
            guest_port: guest.port(),
            remote_port: remote.port(),
        }
    }

    /// Address and port of the guest.
    pub(crate) fn guest(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.guest_ip).to_canonical(), self.guest_port)
    }

    /// Address and port of the remote, as the guest sees them.
    pub(crate) fn remote(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.remote_ip).to_canonical(), self.remote_port)
    }

    /// Source and destination of a packet for the guest.
    pub(crate) fn to_guest(self) -> Addrs {
        if self.is_ipv6() {
            return Addrs::V6 { src: self.remote_ip.into(), dst: self.guest_ip.into() };
        }
        let v4 = |ip: &[u8; 16]| Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
        Addrs::V4 { src: v4(&self.remote_ip), dst: v4(&self.guest_ip) }
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.remote_ip[..12] != MAPPED
    }

    pub(crate) fn guest_port(&self) -> u16 {
        self.guest_port
    }

    pub(crate) fn remote_port(&self) -> u16 {
        self.remote_port
    }
}

impl std::fmt::Debug for Tuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.guest(), self.remote())
    }
}

/// Hashes two words for IPv4, five for IPv6.
impl Hash for Tuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(u32::from(self.guest_port) << 16 | u32::from(self.remote_port));
        if self.is_ipv6() {
            state.write(&self.guest_ip);
            state.write(&self.remote_ip);
        } else {
            let mut both = [0; 8];
            both[..4].copy_from_slice(&self.guest_ip[12..]);
            both[4..].copy_from_slice(&self.remote_ip[12..]);
            state.write(&both);
        }
    }
}

/// Prefix of IPv4-mapped IPv6 addresses.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Source and destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addrs {
    V4 { src: Ipv4Addr, dst: Ipv4Addr },
    V6 { src: Ipv6Addr, dst: Ipv6Addr },
}

impl Addrs {
    /// True if the destination is an IPv6 multicast group.
    pub(crate) fn to_multicast(self) -> bool {
        matches!(self, Self::V6 { dst, .. } if dst.is_multicast())
    }

    /// Source and destination, as either family.
    pub(crate) fn ips(self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4 { src, dst } => (src.into(), dst.into()),
            Self::V6 { src, dst } => (src.into(), dst.into()),
        }
    }

    /// Source and destination exchanged, for an answer.
    pub(crate) fn reversed(self) -> Self {
        match self {
            Self::V4 { src, dst } => Self::V4 { src: dst, dst: src },
            Self::V6 { src, dst } => Self::V6 { src: dst, dst: src },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::{Addrs, Tuple};
    use crate::flow::table::Keyed;

    #[test]
    fn a_tuple_holds_either_family() {
        let v4 = Tuple::new("10.0.2.100:5".parse().unwrap(), "192.0.2.9:80".parse().unwrap());
        let v6 = Tuple::new("[fd00::100]:5".parse().unwrap(), "[2001:db8::9]:80".parse().unwrap());
        assert_eq!(size_of::<Tuple>(), 36);
        assert_eq!((v4.is_ipv6(), v6.is_ipv6()), (false, true));
        assert_eq!(v4.guest().to_string(), "10.0.2.100:5");
        assert_eq!(v6.remote().to_string(), "[2001:db8::9]:80");
        assert!(matches!(v4.to_guest(), Addrs::V4 { src, .. } if src.to_string() == "192.0.2.9"));
        assert!(matches!(v6.to_guest(), Addrs::V6 { dst, .. } if dst.to_string() == "fd00::100"));
    }

    #[test]
    fn every_part_of_a_tuple_is_in_its_hash() {
        let keyed = Keyed([3, 5]);
        let hash = |guest: &str, remote: &str| {
            keyed.hash_one(Tuple::new(guest.parse().unwrap(), remote.parse().unwrap()))
        };
        let base = hash("[fd00::100]:5", "[2001:db8::9]:80");
        for (guest, remote) in [
            ("[fd00::101]:5", "[2001:db8::9]:80"),
            ("[fd01::100]:5", "[2001:db8::9]:80"),
            ("[fd00::100]:6", "[2001:db8::9]:80"),
            ("[fd00::100]:5", "[2001:db8::8]:80"),
            ("[fd00::100]:5", "[2001:db9::9]:80"),
            ("[fd00::100]:5", "[2001:db8::9]:81"),
        ] {
            assert_ne!(hash(guest, remote), base, "{guest} {remote}");
        }
        let base = hash("10.0.2.100:5", "192.0.2.9:80");
        for (guest, remote) in [
            ("10.0.2.101:5", "192.0.2.9:80"),
            ("10.0.2.100:6", "192.0.2.9:80"),
            ("10.0.2.100:5", "192.0.2.8:80"),
            ("10.0.2.100:5", "192.0.2.9:81"),
        ] {
            assert_ne!(hash(guest, remote), base, "{guest} {remote}");
        }
    }
}
