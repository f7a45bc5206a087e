//! A TCP segment as values: parsed from the guest, or to be sent to it.

use smoltcp::wire::{TcpOption, TcpPacket};

use crate::wire::seq::Seq;

/// Control bits (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
    pub psh: bool,
    /// RFC 3168 section 6.1.
    pub ece: bool,
    pub cwr: bool,
}

impl Flags {
    const NONE: Self =
        Self { syn: false, ack: false, fin: false, rst: false, psh: false, ece: false, cwr: false };
    pub(crate) const ACK: Self = Self { ack: true, ..Self::NONE };
    pub(crate) const SYN: Self = Self { syn: true, ..Self::NONE };
    pub(crate) const SYN_ACK: Self = Self { ack: true, ..Self::SYN };
    pub(crate) const RST: Self = Self { rst: true, ..Self::NONE };
    pub(crate) const RST_ACK: Self = Self { ack: true, ..Self::RST };
}

/// A segment from the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub seq: Seq,
    /// SEG.ACK; valid only with the ACK bit.
    pub ack: Seq,
    pub flags: Flags,
    /// Window field as sent, not scaled.
    pub wnd: u16,
    pub options: Options,
    /// ECN field of the packet, or of the reassembled datagram.
    pub ecn: u8,
    pub payload: &'a [u8],
}

/// Codepoints of the ECN field (RFC 3168 section 5).
pub(crate) const NOT_ECT: u8 = 0;
pub(crate) const ECT_0: u8 = 2;
pub(crate) const CE: u8 = 3;

/// Options of a segment, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Options {
    /// Maximum segment size, bytes.
    pub mss: Option<u16>,
    /// Window scale.
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    /// SACK blocks, [start, end).
    pub sack: [Option<(u32, u32)>; 3],
    /// TSval and TSecr.
    pub ts: Option<(u32, u32)>,
}

impl Segment<'_> {
    /// Sequence numbers that the segment occupies: payload, SYN and FIN.
    pub(crate) fn seq_len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags.syn) + u32::from(self.flags.fin)
    }
}

impl Options {
    /// Parses options as the kernel does (`tcp_parse_options`): an option with a wrong length for its kind is skipped,
    /// an invalid length ends the list, and the options before it are valid.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while !bytes.is_empty() {
            let Ok((rest, option)) = TcpOption::parse(bytes) else {
                // Skips by the length field, at least 2; anything shorter or beyond the header cannot be skipped.
                match *bytes {
                    [_, len, ..] if len >= 2 && usize::from(len) <= bytes.len() => {
                        bytes = &bytes[usize::from(len)..];
                        continue;
                    }
                    _ => break,
                }
            };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
                // RFC 7323 section 2.3: a shift above 14 counts as 14.
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

    /// Writes the options, padded to a multiple of four bytes; returns their length (at most 40).
    pub(crate) fn emit(&self, out: &mut [u8; 40]) -> usize {
        let len = self.len();
        let mut rest: &mut [u8] = &mut out[..len];
        if let Some(mss) = self.mss {
            rest = TcpOption::MaxSegmentSize(mss).emit(rest);
        }
        if let Some(shift) = self.wscale {
            // Padding follows each option, so that every one ends on a multiple of four.
            rest = TcpOption::WindowScale(shift).emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
        }
        if self.sack_permitted {
            rest = TcpOption::SackPermitted.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
        }
        // RFC 7323 appendix A: two NOPs before the timestamps align their values.
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

    /// Length of the options with padding, bytes.
    pub(crate) fn len(&self) -> usize {
        let sacks = self.sack.iter().flatten().count();
        self.mss.map_or(0, |_| 4)
            + self.wscale.map_or(0, |_| 4)
            + if self.sack_permitted { 4 } else { 0 }
            + self.ts.map_or(0, |_| 12)
            + if sacks > 0 { 4 + 8 * sacks } else { 0 }
    }
}

/// Takes the header and payload of a packet with a valid checksum. The caller sets `ecn`.
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
            ece: packet.ece(),
            cwr: packet.cwr(),
        },
        wnd: packet.window_len(),
        options: if header > 20 { Options::parse(packet.options()) } else { Options::default() },
        // From the IP header, which is not at hand here.
        ecn: 0,
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
    /// Segment size if the payload is larger than one segment (GSO); otherwise at least the payload's length.
    pub mss: u16,
    /// The packet is sent as ECT(0), so the network may mark it.
    pub ect: bool,
}

impl Outgoing {
    /// The RST that answers a segment without a flow (RFC 9293 section 3.10.7.1); `None` for an RST.
    pub(crate) fn reset_for(seg: &Segment<'_>) -> Option<Self> {
        if seg.flags.rst {
            return None;
        }
        // With ACK the guest names the acceptable number; without, the RST acknowledges the whole segment.
        let (seq, ack, flags) = if seg.flags.ack {
            (seg.ack, Seq(0), Flags::RST)
        } else {
            (Seq(0), seg.seq + seg.seq_len(), Flags::RST_ACK)
        };
        Some(Self { seq, ack, flags, wnd: 0, options: Options::default(), mss: 0, ect: false })
    }
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

    #[test]
    fn an_option_of_a_wrong_length_is_passed_over() {
        for bad in [&[2u8, 3, 0][..], &[2, 6, 0, 0, 0, 0], &[4, 3, 0], &[3, 4, 0, 0], &[8, 2]] {
            let bytes = [bad, &[3, 3, 5]].concat();
            let options = Options::parse(&bytes);
            assert_eq!(options, Options { wscale: Some(5), ..Options::default() }, "{bad:?}");
        }
    }
}
