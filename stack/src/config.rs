//! Configuration of a container's stack, and the sizes that follow from its hard limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use skbudget_controller::{CHUNK_SIZE, FlowSizes, PAGE_SIZE};

use crate::queue::chunk::PAYLOAD;
use crate::sizes::{FLOW_BYTES, HOST_FLOOR, SYN_BACKLOG_BYTES};

mod reach;

pub use reach::ReachRule;

/// Largest frame with segmentation offload, bytes.
const SUPER_FRAME: u64 = 64 << 10;
/// MSS advertised with offload at any MTU: small windows stay usable, and super-frames make a larger MSS needless (B8).
pub(crate) const OFFLOAD_MSS: u16 = 1460;
/// Bounds of the device queue's charge, bytes: 128 KiB to 4 MiB (B12).
const QUEUE_BYTES_MIN: u64 = 2 * SUPER_FRAME;
const QUEUE_BYTES_MAX: u64 = 64 * SUPER_FRAME;
/// Frames of the device queue. Hundreds of flows may send hundreds of small segments at once (SYNs, ACKs, short
/// writes), and a frame that finds the queue full costs the guest a retransmission timeout.
const QUEUE_FRAMES: u32 = 512;

/// Port of name servers.
const DNS_PORT: u16 = 53;

/// Configuration of one container's stack. Addresses default to those of slirp4netns.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Address of the guest. Packets from another source are dropped.
    pub guest_ip: Ipv4Addr,
    /// Address of the stack. Flows to it connect to the host's loopback.
    pub gateway_ip: Ipv4Addr,
    /// Address of the name server in the guest's network.
    pub dns_ip: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix_len: u8,
    /// `None`: IPv6 frames are dropped.
    pub ipv6: Option<Ipv6Net>,
    /// Hardware address of the gateway and of every other address of the subnet.
    pub our_mac: [u8; 6],
    /// IP MTU of the link, 68..=65521 bytes.
    pub mtu: u16,
    /// The device uses vnet_hdr, with checksum and segmentation offload.
    pub offload: bool,
    /// Name that DHCP gives the guest; `None`: none.
    pub host_name: Option<String>,
    /// Search domains of the guest's resolver, in DHCP and router advertisements.
    pub search: Vec<String>,
    /// The other addresses of the subnet are those of other containers.
    pub siblings: bool,
    /// The gateway's addresses reach the host's 127.0.0.1 and ::1.
    pub host_loopback: bool,
    /// Where the guest may connect to, beside that.
    pub reach: Vec<ReachRule>,
    /// The name servers that the forwarder at `dns_ip` uses; `None`: those of the host.
    pub name_servers: Option<Vec<SocketAddr>>,
    /// The name server that connections to the forwarder are relayed to; it follows the answers to questions.
    pub(crate) name_server: Option<SocketAddr>,
    /// Charges of each flow's reservation (B1).
    pub sizes: FlowSizes,
    /// Bytes charged for the device queue as `dev`; no window is larger (B12).
    pub dev_queue_bytes: u64,
    /// Largest number of flows; further SYNs wait.
    pub flows_max: u32,
    /// Key for initial sequence numbers (RFC 6528), timestamp offsets and hash tables.
    pub secret: [u64; 2],
    /// Silence after which the stack probes an established flow (keep-alive towards the guest).
    pub keepalive: Duration,
    /// Time without an answer after which a flow is given up (RFC 9293 section 3.9.1; R2 of RFC 1122).
    pub user_timeout: Duration,
    /// Congestion control towards the guest.
    pub congestion: Algorithm,
}

/// Congestion control of data sent to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// RFC 9438, with HyStart++ (RFC 9406) in the first slow start.
    #[default]
    Cubic,
    /// NewReno (RFC 5681), with the same slow start.
    Reno,
}

/// The link's IPv6 addresses. The default is fd00::/64: the guest at fd00::100, the gateway at fd00::2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Net {
    /// Address of the guest.
    pub guest: Ipv6Addr,
    /// Address of the stack.
    pub gateway: Ipv6Addr,
    /// Address of the name server in the guest's network.
    pub dns: Ipv6Addr,
    /// Link-local address of the gateway: router advertisements have it as their source.
    pub router: Ipv6Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix_len: u8,
}

/// Smallest MTU that IPv6 can use (RFC 8200 section 5).
const IPV6_MTU_MIN: u16 = 1280;

impl Default for Ipv6Net {
    fn default() -> Self {
        Self {
            guest: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
            gateway: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
            dns: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3),
            router: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            prefix_len: 64,
        }
    }
}

impl Ipv6Net {
    /// Addresses for which the stack answers.
    pub(crate) fn ours(&self) -> [Ipv6Addr; 3] {
        [self.gateway, self.dns, self.router]
    }

    pub(crate) fn is_ours(&self, ip: Ipv6Addr) -> bool {
        self.ours().contains(&ip)
    }

    /// The subnet's first address, which identifies the prefix (and is the subnet-router anycast address).
    pub(crate) fn prefix(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.guest.to_bits() & self.mask())
    }

    pub(crate) fn contains(&self, ip: Ipv6Addr) -> bool {
        ip.to_bits() & self.mask() == self.prefix().to_bits()
    }

    fn mask(&self) -> u128 {
        // A prefix of 0 bits would shift by the full width.
        u128::MAX.checked_shl(128 - u32::from(self.prefix_len.min(128))).unwrap_or(0)
    }
}

/// Reason why a destination is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// Answered with RST: no port is open there.
    Refused,
    /// Answered with ICMP host unreachable.
    Unreachable,
    /// Another container's address: no host socket leads there.
    Sibling,
    /// A rule refuses it: answered as if no port were open there.
    Denied(SocketAddr),
}

impl ContainerConfig {
    /// Addresses of slirp4netns, the given MTU and offload. Sizes and device queue follow from `hard_bytes` (`None`: no
    /// limit) by the rules B1, B12 and K2.
    pub fn new(mtu: u16, offload: bool, hard_bytes: Option<u64>, secret: [u64; 2]) -> Self {
        Self {
            guest_ip: Ipv4Addr::new(10, 0, 2, 100),
            gateway_ip: Ipv4Addr::new(10, 0, 2, 2),
            dns_ip: Ipv4Addr::new(10, 0, 2, 3),
            prefix_len: 24,
            // RFC 8200 section 5: a smaller link must fragment below IPv6, which a TAP does not.
            ipv6: Self::has_ipv6(mtu).then(Ipv6Net::default),
            our_mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
            mtu,
            offload,
            host_name: None,
            search: Vec::new(),
            siblings: false,
            host_loopback: true,
            reach: Vec::new(),
            name_servers: None,
            name_server: None,
            sizes: flow_sizes(mtu, offload),
            dev_queue_bytes: Self::dev_queue_bytes(hard_bytes),
            flows_max: 65_536,
            secret,
            keepalive: Duration::from_secs(7200),
            user_timeout: Duration::from_secs(900),
            congestion: Algorithm::default(),
        }
    }

    /// Bytes charged for the device queue of a container with this hard limit: an eighth of it, within bounds (B12).
    pub fn dev_queue_bytes(hard_bytes: Option<u64>) -> u64 {
        (hard_bytes.unwrap_or(u64::MAX) / 8)
            .clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX)
            .next_multiple_of(PAGE_SIZE)
    }

    /// Bytes charged for the SYN queue and one flow.
    pub fn list_and_flow_bytes(&self) -> u64 {
        SYN_BACKLOG_BYTES + self.sizes.total()
    }

    /// True if a link of this MTU can carry IPv6.
    pub fn has_ipv6(mtu: u16) -> bool {
        mtu >= IPV6_MTU_MIN
    }

    /// Length of the device queue, frames (`txqueuelen`).
    ///
    /// Queued TCP data is inside an advertised window and was charged when the window was; `dev_queue_bytes` covers the
    /// other frames. A guest that ignores its windows can pin a frame of the largest size in each place until the next
    /// turn, 32 MiB of kernel memory with offload: the one exception to `hard` (K10).
    pub fn txqueuelen(&self) -> u32 {
        QUEUE_FRAMES
    }

    /// Smallest `hard` that holds the device queue, the SYN queue and one flow, in bytes, rounded up to whole pages.
    pub fn least_hard_bytes(mtu: u16, offload: bool) -> u64 {
        let fixed = SYN_BACKLOG_BYTES + flow_sizes(mtu, offload).total();
        (fixed + QUEUE_BYTES_MIN).next_multiple_of(PAGE_SIZE)
    }

    /// Mask of the guest's subnet.
    pub(crate) fn netmask(&self) -> Ipv4Addr {
        // A prefix of no bits would shift by all 32, which overflows: it contains every address.
        let bits = 32 - u32::from(self.prefix_len.min(32));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(bits).unwrap_or(0))
    }

    pub(crate) fn in_subnet(&self, ip: Ipv4Addr) -> bool {
        let mask = self.netmask().to_bits();
        ip.to_bits() & mask == self.guest_ip.to_bits() & mask
    }

    /// True for the broadcast address of the guest's subnet.
    pub(crate) fn is_broadcast(&self, ip: IpAddr) -> bool {
        // A subnet of one or two addresses has none (RFC 3021).
        let host_bits = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
        matches!(ip, IpAddr::V4(ip) if host_bits > 1
            && self.in_subnet(ip)
            && ip.to_bits() & host_bits == host_bits)
    }

    /// Maps a destination of the guest to a destination of the host, if the rules allow that one. Only the gateway
    /// leads to the host's loopback.
    pub(crate) fn route(&self, to: SocketAddr) -> Result<SocketAddr, NoRoute> {
        let route = self.route_of_any(to);
        let found = match route {
            Ok(found) => found,
            // A container has one address, for itself and for its siblings.
            Err(NoRoute::Sibling) => to,
            Err(_) => return route,
        };
        // The guest does not choose the name server.
        if self.is_forwarder(to) || reach::allows(&self.reach, found) {
            route
        } else {
            Err(NoRoute::Denied(found))
        }
    }

    /// True if an address and port of the guest's network are those of the DNS forwarder.
    pub(crate) fn is_forwarder(&self, to: SocketAddr) -> bool {
        let is_ours = match to.ip() {
            IpAddr::V4(ip) => ip == self.dns_ip,
            IpAddr::V6(ip) => self.ipv6.is_some_and(|net| net.dns == ip),
        };
        is_ours && to.port() == DNS_PORT
    }

    fn route_of_any(&self, to: SocketAddr) -> Result<SocketAddr, NoRoute> {
        match to.ip() {
            ip if Some(ip) == self.gateway_of(ip) => match self.host_loopback {
                true => Ok(SocketAddr::new(loopback_of(ip), to.port())),
                false => Err(NoRoute::Refused),
            },
            // Only the forwarder answers there, and the address is ours: refused, not unreachable.
            IpAddr::V4(ip) if ip == self.dns_ip => self.route_to_name_server(to.port()),
            // Another host of the subnet does not exist, unless it is a container.
            IpAddr::V4(ip) if self.in_subnet(ip) => Err(self.within_subnet(ip == self.guest_ip)),
            IpAddr::V4(_) => Ok(to),
            IpAddr::V6(ip) => match &self.ipv6 {
                Some(net) if net.dns == ip => self.route_to_name_server(to.port()),
                Some(net) if net.is_ours(ip) => Err(NoRoute::Refused),
                Some(net) if net.contains(ip) => Err(self.within_subnet(ip == net.guest)),
                Some(_) if !ip.is_unicast_link_local() => Ok(to),
                _ => Err(NoRoute::Unreachable),
            },
        }
    }

    /// The answer for an address of the subnet that is not ours. `own`: it is the guest's.
    fn within_subnet(&self, own: bool) -> NoRoute {
        if self.siblings && !own { NoRoute::Sibling } else { NoRoute::Unreachable }
    }

    fn route_to_name_server(&self, port: u16) -> Result<SocketAddr, NoRoute> {
        self.name_server.filter(|_| port == DNS_PORT).ok_or(NoRoute::Refused)
    }

    /// The address under which the guest sees a client of a published port: the client's own, or the gateway's if an
    /// answer to it would not leave the guest's link, or the guest lacks its family.
    pub(crate) fn client_address(&self, client: IpAddr) -> IpAddr {
        match client {
            IpAddr::V4(ip) => {
                let here = ip.is_loopback() || ip.is_link_local() || self.in_subnet(ip);
                let nobody = ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast();
                if here || nobody { self.gateway_ip.into() } else { client }
            }
            IpAddr::V6(ip) => {
                let Some(net) = &self.ipv6 else { return self.gateway_ip.into() };
                let here = ip.is_loopback() || ip.is_unicast_link_local() || net.contains(ip);
                // Mapped and compatible IPv4 addresses include the unspecified one.
                let nobody = ip.is_multicast() || ip.to_ipv4().is_some();
                if here || nobody { net.gateway.into() } else { client }
            }
        }
    }

    /// The gateway's address in the family of `ip`.
    pub(crate) fn gateway_of(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => Some(self.gateway_ip.into()),
            IpAddr::V6(_) => self.ipv6.map(|net| net.gateway.into()),
        }
    }

    /// Bytes that all open windows together may have so that the device queue drops nothing. Half of its capacity: the
    /// guest seldom fills its frames, and its ACKs use the same queue (B12).
    pub(crate) fn queue_window(&self) -> u64 {
        let frames = u64::from(QUEUE_FRAMES) * u64::from(self.mtu.saturating_sub(40).max(1));
        // Without offload, 512 frames of one MTU may hold less than the charge.
        if self.offload { self.dev_queue_bytes / 2 } else { frames.min(self.dev_queue_bytes) / 2 }
    }
}

/// 127.0.0.1 or ::1, in the family of `ip`.
fn loopback_of(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Sizes of a flow's reservation. Without offload the guest sends segments of the MTU's size, so the receive reserve
/// holds one of them at its true size: otherwise a flow that has only its reserve could not receive at all (K2).
fn flow_sizes(mtu: u16, offload: bool) -> FlowSizes {
    let mss = if offload { OFFLOAD_MSS } else { mtu.saturating_sub(40) };
    let chunks = u64::from(mss).div_ceil(PAYLOAD as u64).max(1);
    FlowSizes {
        sock: FLOW_BYTES,
        rmem_min: (chunks * CHUNK_SIZE) as u32,
        wmem_min: CHUNK_SIZE as u32,
        host_floor: HOST_FLOOR.sndbuf + HOST_FLOOR.rcvbuf,
    }
}
