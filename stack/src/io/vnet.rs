//! The virtio-net header (12 bytes, little-endian) in front of every frame of a TAP with IFF_VNET_HDR.

/// virtio-net header v1 as a TAP uses it (virtio 1.2, section 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHdr {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], or what the device cuts a super-frame into.
    pub gso_type: u8,
    /// Length of all headers, bytes; a hint.
    pub hdr_len: u16,
    /// Payload of one segment, bytes, when `gso_type` is not NONE.
    pub gso_size: u16,
    /// Offset from the start of the frame from which the checksum is computed.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
}

/// Length of the header, bytes.
pub const VNET_HDR_LEN: usize = 12;
/// The checksum field holds the pseudo-header sum; the receiver has to add the rest.
pub const F_NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
pub const F_DATA_VALID: u8 = 2;
/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// TCP segments over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP segments over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Flag of the type: the first segment carries CWR, and the others must not.
pub const GSO_ECN: u8 = 0x80;

impl VnetHdr {
    /// The bytes that precede a frame.
    pub fn encode(&self) -> [u8; VNET_HDR_LEN] {
        let mut b = [0; VNET_HDR_LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        b[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        b[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        b[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        b[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        b
    }

    /// Parses the bytes that precede a frame.
    pub fn decode(b: &[u8; VNET_HDR_LEN]) -> Self {
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
        }
    }
}
