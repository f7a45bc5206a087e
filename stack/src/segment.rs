//! A TCP segment as values: what was parsed from the guest, what is to be sent to it.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{TcpOption, TcpPacket};

use crate::seq::Seq;

/// Control bits (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
    pub psh: bool,
}

impl Flags {
    pub(crate) const ACK: Self = Self { syn: false, ack: true, fin: false, rst: false, psh: false };
    pub(crate) const SYN: Self = Self { syn: true, ack: false, fin: false, rst: false, psh: false };
    pub(crate) const SYN_ACK: Self = Self { ack: true, ..Self::SYN };
    pub(crate) const RST: Self = Self { syn: false, ack: false, fin: false, rst: true, psh: false };
    pub(crate) const RST_ACK: Self = Self { ack: true, ..Self::RST };
}

/// Who talks to whom: the guest's address and the address it believes to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub guest: SocketAddrV4,
    pub remote: SocketAddrV4,
}

/// A segment from the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub seq: Seq,
    /// Meaningful with the ACK bit.
    pub ack: Seq,
    pub flags: Flags,
    /// Window field as sent, not scaled.
    pub wnd: u16,
    pub options: Options,
    pub payload: &'a [u8],
}

/// Options of a segment, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Options {
    pub mss: Option<u16>,
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    pub sack: [Option<(u32, u32)>; 3],
    pub ts: Option<(u32, u32)>,
}

impl Segment<'_> {
    /// Sequence space the segment occupies: payload, SYN and FIN.
    pub(crate) fn seq_len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags.syn) + u32::from(self.flags.fin)
    }
}

impl Options {
    /// Options of a parsed packet. A malformed option ends the list, as the kernel does: what came before holds.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while !bytes.is_empty() {
            let Ok((rest, option)) = TcpOption::parse(bytes) else { break };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
                // RFC 7323 section 2.3: a shift above 14 is 14.
                TcpOption::WindowScale(shift) => options.wscale = Some(shift.min(14)),
                TcpOption::SackPermitted => options.sack_permitted = true,
                TcpOption::SackRange(ranges) => options.sack = ranges,
                TcpOption::TimeStamp { tsval, tsecr } => options.ts = Some((tsval, tsecr)),
                TcpOption::NoOperation | TcpOption::Unknown { .. } => {}
            }
            bytes = rest;
        }
        options
    }

    /// Writes the options, padded to a multiple of four, and returns their length (at most 40).
    pub(crate) fn emit(&self, out: &mut [u8; 40]) -> usize {
        let len = self.len();
        let mut rest: &mut [u8] = &mut out[..len];
        if let Some(mss) = self.mss {
            rest = TcpOption::MaxSegmentSize(mss).emit(rest);
        }
        if let Some(shift) = self.wscale {
            rest = TcpOption::WindowScale(shift).emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
        }
        if self.sack_permitted {
            rest = TcpOption::SackPermitted.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
        }
        if let Some((tsval, tsecr)) = self.ts {
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::TimeStamp { tsval, tsecr }.emit(rest);
        }
        if self.sack[0].is_some() {
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::SackRange(self.sack).emit(rest);
        }
        debug_assert!(rest.is_empty());
        len
    }

    pub(crate) fn len(&self) -> usize {
        let sacks = self.sack.iter().flatten().count();
        self.mss.map_or(0, |_| 4)
            + self.wscale.map_or(0, |_| 4)
            + if self.sack_permitted { 4 } else { 0 }
            + self.ts.map_or(0, |_| 12)
            + if sacks > 0 { 4 + 8 * sacks } else { 0 }
    }
}

pub(crate) fn parse<'a>(packet: &TcpPacket<&'a [u8]>) -> Segment<'a> {
    let header = usize::from(packet.header_len());
    Segment {
        seq: Seq(packet.seq_number().0.cast_unsigned()),
        ack: Seq(packet.ack_number().0.cast_unsigned()),
        flags: Flags {
            syn: packet.syn(),
            ack: packet.ack(),
            fin: packet.fin(),
            rst: packet.rst(),
            psh: packet.psh(),
        },
        wnd: packet.window_len(),
        options: if header > 20 { Options::parse(packet.options()) } else { Options::default() },
        payload: packet.payload(),
    }
}

/// A segment for the guest; its payload is a range of the flow's send queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    pub wnd: u16,
    pub options: Options,
    /// Segment size when the payload is larger than one (GSO); otherwise at least the payload's length.
    pub mss: u16,
}

impl Outgoing {
    /// The RST that answers a segment for which there is no flow (RFC 9293 section 3.10.7.1); none answers an RST.
    pub(crate) fn reset_for(seg: &Segment<'_>) -> Option<Self> {
        if seg.flags.rst {
            return None;
        }
        let (seq, ack, flags) = if seg.flags.ack {
            (seg.ack, Seq(0), Flags::RST)
        } else {
            (Seq(0), seg.seq + seg.seq_len(), Flags::RST_ACK)
        };
        Some(Self { seq, ack, flags, wnd: 0, options: Options::default(), mss: 0 })
    }
}

/// True for addresses no relay can reach: multicast, broadcast, this network, loopback.
pub(crate) fn unroutable(ip: Ipv4Addr) -> bool {
    ip.is_multicast() || ip.is_broadcast() || ip.is_loopback() || ip.octets()[0] == 0
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn options_round_trip() {
        let all = Options {
            mss: Some(1460),
            wscale: Some(7),
            sack_permitted: true,
            ts: Some((1, 2)),
            ..Options::default()
        };
        let acks = Options {
            ts: Some((9, 8)),
            sack: [Some((1, 2)), Some((5, 9)), Some((u32::MAX, 3))],
            ..Options::default()
        };
        for options in [all, acks, Options::default()] {
            let mut bytes = [0; 40];
            let len = options.emit(&mut bytes);
            assert_eq!(len % 4, 0);
            assert_eq!(Options::parse(&bytes[..len]), options);
        }
    }

    #[test]
    fn a_malformed_option_ends_the_list() {
        for bad in [&[2u8, 3, 0][..], &[3, 0], &[8], &[5, 9, 0, 0, 0, 0, 0, 0, 0], &[254, 1]] {
            let mut bytes = vec![2, 4, 5, 180];
            bytes.extend_from_slice(bad);
            assert_eq!(Options::parse(&bytes).mss, Some(1460), "{bad:?}");
        }
    }
}
