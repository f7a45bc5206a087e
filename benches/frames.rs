//! Frames that a guest sends and receives, built by hand: a bench must not include the cost of a second TCP.

use std::io::IoSlice;

use skbudget_sim::packet::{SYN, Segment};
use skbudget_stack::VnetHdr;
use skbudget_stack::vnet::{F_NEEDS_CSUM, GSO_TCPV4};

const ETH: usize = 14;
const IP: usize = 20;
/// TCP header with the timestamp option, as in every segment after the handshake.
const TCP: usize = 32;
const HEADERS: usize = ETH + IP + TCP;

const GUEST_PORT: u16 = 40_000;
const HOST_PORT: u16 = 5201;
/// MSS 1460, SACK permitted, timestamp (not filled in), window scale 7: the options that Linux sends.
const SYN_OPTIONS: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];

/// The fields that change from segment to segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// TCP flags.
    pub flags: u8,
    /// The field as sent, not scaled.
    pub window: u16,
    /// The sender's timestamp (RFC 7323).
    pub tsval: u32,
    /// The echoed timestamp.
    pub tsecr: u32,
}

/// A frame with headers and a constant payload; the fields are overwritten for each segment.
#[derive(Debug, Clone)]
pub struct FrameBuf {
    bytes: Vec<u8>,
    vnet: VnetHdr,
}

impl FrameBuf {
    /// A data segment or, without payload, an ACK. More than `mss` bytes make a super-frame.
    pub fn segment(payload: usize, mss: u16) -> Self {
        let mut options = [0; TCP - 20];
        // NOP, NOP, then the timestamp option of 10 bytes.
        options[..4].copy_from_slice(&[1, 1, 8, 10]);
        Self::build(&options, payload, mss)
    }

    /// A SYN with Linux' options.
    pub fn syn() -> Self {
        Self::build(&SYN_OPTIONS, 0, 1460)
    }

    fn build(options: &[u8], payload: usize, mss: u16) -> Self {
        let segment = Segment {
            options: options.to_vec(),
            data: vec![0x5a; payload],
            ..Segment::new(GUEST_PORT, HOST_PORT, 0)
        };
        let (bytes, tcp) = (segment.frame(), 20 + options.len());
        let gso = payload > usize::from(mss);
        // Partial checksum, as the guest's kernel sends it with offload.
        let vnet = VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: if gso { GSO_TCPV4 } else { 0 },
            hdr_len: (ETH + IP + tcp) as u16,
            gso_size: if gso { mss } else { 0 },
            csum_start: (ETH + IP) as u16,
            csum_offset: 16,
        };
        Self { bytes, vnet }
    }

    /// The frame with these fields; a SYN keeps its timestamp.
    pub fn with(&mut self, fields: &Fields) -> (&VnetHdr, &[u8]) {
        let tcp = &mut self.bytes[ETH + IP..];
        tcp[4..8].copy_from_slice(&fields.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&fields.ack.to_be_bytes());
        tcp[13] = fields.flags;
        tcp[14..16].copy_from_slice(&fields.window.to_be_bytes());
        // In a SYN the timestamp is at another offset.
        if fields.flags & SYN == 0 {
            tcp[24..28].copy_from_slice(&fields.tsval.to_be_bytes());
            tcp[28..32].copy_from_slice(&fields.tsecr.to_be_bytes());
        }
        (&self.vnet, &self.bytes)
    }
}

/// The fields of a received frame that the guest needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// TCP flags.
    pub flags: u8,
    /// Length of the payload, bytes.
    pub payload: u32,
    /// The sender's timestamp (RFC 7323).
    pub tsval: u32,
}

/// Decodes the headers, which are the first part of every frame that the stack sends. `None`: not TCP.
pub fn receive(parts: &[IoSlice<'_>]) -> Option<Received> {
    let headers: &[u8] = parts.first()?;
    // ARP and ICMP frames carry nothing that the bench needs.
    if headers.len() < ETH + IP + 20 || headers[ETH + 9] != 6 {
        return None;
    }
    let tcp = &headers[ETH + IP..];
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let all: usize = parts.iter().map(|part| part.len()).sum();
    // After the handshake the timestamp is the last and only option of a segment.
    let stamped = headers.len() == HEADERS && tcp[12] >> 4 == 8;
    Some(Received {
        seq: word(4),
        ack: word(8),
        flags: tcp[13],
        payload: (all - headers.len()) as u32,
        tsval: if stamped { word(24) } else { 0 },
    })
}
