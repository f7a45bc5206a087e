//! The fields of a frame that a filter compares, read from its first bytes. A frame that ends early, or is malformed,
//! has the fields before that place only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a frame that are read: Ethernet, IPv6, extension headers and ports.
pub(super) const HEAD_BYTES: usize = 256;

/// Ethernet types.
pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;

/// Most extension headers that are skipped.
const EXTENSIONS_MAX: usize = 8;

/// The fields, as far as the frame has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packet {
    /// Ethernet type.
    pub(super) link: Option<u16>,
    /// Protocol of the payload of IP.
    pub(super) protocol: Option<u8>,
    /// Source and destination.
    pub(super) addresses: Option<[IpAddr; 2]>,
    /// Source and destination; fragments other than the first have none.
    pub(super) ports: Option<[u16; 2]>,
}

impl Packet {
    /// Reads what the frame has, from its Ethernet header on.
    pub(super) fn parse(frame: &[u8]) -> Self {
        let mut packet = Self { link: u16_at(frame, 12), ..Self::default() };
        let rest = frame.get(14..).unwrap_or_default();
        // A missing field ends the parse; the fields before it are set.
        let _ = match packet.link {
            Some(IPV4) => packet.ipv4(rest),
            Some(IPV6) => packet.ipv6(rest),
            Some(ARP) => packet.arp(rest),
            _ => None,
        };
        packet
    }

    /// Addresses, protocol, and the ports of a first fragment.
    fn ipv4(&mut self, header: &[u8]) -> Option<()> {
        let source = Ipv4Addr::from(*header.get(12..)?.first_chunk::<4>()?);
        let destination = Ipv4Addr::from(*header.get(16..)?.first_chunk::<4>()?);
        self.addresses = Some([source.into(), destination.into()]);
        self.protocol = Some(header[9]);
        // The offset of a fragment, without the flags.
        let is_first = u16_at(header, 6)? & 0x1fff == 0;
        // In units of 4 bytes; options are skipped.
        let length = usize::from(header[0] & 15) * 4;
        if is_first { self.transport(header.get(length..)?) } else { None }
    }

    /// As for IPv4, behind the extension headers.
    fn ipv6(&mut self, header: &[u8]) -> Option<()> {
        let source = Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?);
        let destination = Ipv6Addr::from(*header.get(24..)?.first_chunk::<16>()?);
        self.addresses = Some([source.into(), destination.into()]);
        let (mut next, mut rest) = (header[6], header.get(40..)?);
        for _ in 0..EXTENSIONS_MAX {
            self.protocol = Some(next);
            let skip = match next {
                // Hop-by-hop options, routing, destination options: lengths in units of 8 bytes, less one.
                0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
                // Fragment header: only the first fragment has a header behind it.
                44 if u16_at(rest, 2)? & 0xfff8 != 0 => {
                    self.protocol = Some(*rest.first()?);
                    return None;
                }
                44 => 8,
                _ => return self.transport(rest),
            };
            next = *rest.first()?;
            rest = rest.get(skip..)?;
        }
        None
    }

    /// Sender and target of a request or a reply.
    fn arp(&mut self, packet: &[u8]) -> Option<()> {
        let source = Ipv4Addr::from(*packet.get(14..)?.first_chunk::<4>()?);
        let destination = Ipv4Addr::from(*packet.get(24..)?.first_chunk::<4>()?);
        self.addresses = Some([source.into(), destination.into()]);
        Some(())
    }

    /// The ports of TCP and UDP.
    fn transport(&mut self, header: &[u8]) -> Option<()> {
        if !matches!(self.protocol, Some(6 | 17)) {
            return None;
        }
        self.ports = Some([u16_at(header, 0)?, u16_at(header, 2)?]);
        Some(())
    }
}

/// A number in network byte order.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|two| u16::from_be_bytes(*two))
}
