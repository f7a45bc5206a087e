//! One container's stack: the only module that knows the order of things.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use skbudget_controller::{FlowSizes, Instant, MemberId};

use crate::io::{Ctx, FlowId, Ready};
use crate::vnet::VnetHdr;

/// Everything that shapes a container's stack. Addresses default to slirp4netns' (design section 3).
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    pub guest_ip: Ipv4Addr,
    pub gateway_ip: Ipv4Addr,
    pub dns_ip: Ipv4Addr,
    /// Our MAC, as the gateway and every other address of the subnet.
    pub our_mac: [u8; 6],
    /// 68..=65521
    pub mtu: u16,
    /// vnet_hdr with checksum and segmentation offload on the device.
    pub offload: bool,
    /// The gateway address reaches the host's 127.0.0.1.
    pub host_loopback: bool,
    pub sizes: FlowSizes,
    /// Bytes the device queue holds: no window is larger (B12).
    pub dev_queue_bytes: u64,
    pub flows_max: u32,
    /// Key for initial sequence numbers (RFC 6528) and the flow hash.
    pub secret: [u64; 2],
    pub keepalive: Duration,
}

impl ContainerConfig {
    /// slirp4netns' addresses, the given MTU and offload; sizes and queue derived from `hard_bytes`
    /// (`None` = no limit) as pressure model B1, B12, K2 say.
    pub fn new(mtu: u16, offload: bool, hard_bytes: Option<u64>, secret: [u64; 2]) -> Self {
        let _ = (mtu, offload, hard_bytes, secret);
        todo!()
    }
    /// Device queue length in frames (`txqueuelen`) that `dev_queue_bytes` stands for.
    pub fn txqueuelen(&self) -> u32 {
        todo!()
    }
    /// The least `hard` that holds the device queue and one flow, bytes, whole pages.
    pub fn least_hard_bytes(mtu: u16, offload: bool) -> u64 {
        let _ = (mtu, offload);
        todo!()
    }
}

/// A flow or a parked SYN that waits for memory; what `Budget::poll_wake` hands back, with the member in it so that
/// the owner of a shared budget knows whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeKey(pub u64);

impl WakeKey {
    pub fn member(self) -> MemberId {
        MemberId((self.0 >> 48) as u16)
    }
}

/// One line of `skbudget flows`.
#[derive(Debug, Clone)]
pub struct FlowInfo {
    pub id: FlowId,
    pub guest: SocketAddrV4,
    pub host: SocketAddrV4,
    pub state: &'static str,
    pub rmem: u64,
    pub ofo: u64,
    pub credit: u64,
    pub wmem: u64,
    pub host_bytes: u64,
    pub bytes_from_guest: u64,
    pub bytes_to_guest: u64,
    pub cwnd: u32,
    pub ssthresh: u32,
    pub srtt_us: u64,
    pub rto_us: u64,
    pub retrans: u64,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub mss: u16,
}

/// Counters of the stack itself (memory counters are the budget's, by member).
#[derive(Debug, Clone, Default)]
pub struct ContainerStats {
    pub flows: u32,
    pub flows_total: u64,
    pub bytes_from_guest: u64,
    pub bytes_to_guest: u64,
    pub frames_from_guest: u64,
    pub frames_to_guest: u64,
    /// Name and value of every drop reason and protocol counter, in a fixed order.
    pub counters: Vec<(&'static str, u64)>,
}

/// Drain order of one turn: `on_frame` / `on_host_ready` / `on_accept` / `on_wake` in any number, then `turn` once,
/// then sleep until `next_deadline`. `turn` returns true when it stopped at a bound and wants another turn at once.
#[derive(Debug)]
pub struct Container {}

impl Container {
    pub fn new(_config: ContainerConfig, _member: MemberId) -> Self {
        todo!()
    }
    pub fn config(&self) -> &ContainerConfig {
        todo!()
    }
    pub fn member(&self) -> MemberId {
        todo!()
    }

    // ---- events ----

    /// A frame from the guest (Ethernet header first, vnet header apart). Anything malformed is counted and dropped.
    pub fn on_frame(&mut self, _cx: &mut Ctx<'_>, _vnet: &VnetHdr, _frame: &[u8]) {
        todo!()
    }
    /// Host socket of a flow became ready (edge).
    pub fn on_host_ready(&mut self, _flow: FlowId, _ready: Ready) {
        todo!()
    }
    /// A published port accepted a connection from `peer`: a flow towards `guest_port` of the guest begins (SYN goes out
    /// in the next turn). `None`: no room; keep the connection and ask again when `can_accept`.
    pub fn on_accept(
        &mut self,
        _cx: &mut Ctx<'_>,
        _guest_port: u16,
        _peer: SocketAddrV4,
    ) -> Option<FlowId> {
        todo!()
    }
    /// Is there room for one more accepted connection? The listener is polled only while this is true.
    pub fn can_accept(&self, _budget: &skbudget_controller::Budget) -> bool {
        todo!()
    }
    /// Memory came back for this waiter.
    pub fn on_wake(&mut self, _key: WakeKey) {
        todo!()
    }

    // ---- the turn ----

    /// Timers due at `cx.now`, then every flow with something to do: relay, windows, segments.
    pub fn turn(&mut self, _cx: &mut Ctx<'_>) -> bool {
        todo!()
    }
    /// When `turn` must run again if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        todo!()
    }
    /// The container is gone: every flow is aborted (host side reset), everything uncharged.
    pub fn abort_all(&mut self, _cx: &mut Ctx<'_>) {
        todo!()
    }

    // ---- getters ----

    pub fn stats(&self) -> ContainerStats {
        todo!()
    }
    pub fn flows(&self) -> Vec<FlowInfo> {
        todo!()
    }
}
