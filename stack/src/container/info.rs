//! Read-only views of a container: its counters and its flows.

use std::net::SocketAddr;

use skbudget_controller::Instant;

use super::Container;
use crate::flow::{Far, Flow};
use crate::io::datagram::{DatagramId, DatagramKind};
use crate::io::{FlowId, HostCaps};
use crate::udp::Mapping;

/// One flow, as `Daemon::flows` in the package `skbudget` returns it.
#[derive(Debug, Clone)]
pub struct FlowInfo {
    /// The flow.
    pub id: FlowId,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The address that the host socket is connected to, or that of a sibling's end.
    pub host: SocketAddr,
    /// A published port accepted it.
    pub published: bool,
    /// TCP state as `ss` names it, or `ORPHAN`.
    pub state: &'static str,
    /// Charge of received in-order data that the host has not taken, bytes.
    pub rmem: u64,
    /// Charge of received data behind a hole, bytes.
    pub ofo: u64,
    /// Charge of the advertised window without data, bytes.
    pub credit: u64,
    /// Charge of the send queue towards the guest, bytes.
    pub wmem: u64,
    /// Charge of the host socket's buffers, bytes.
    pub host_bytes: u64,
    /// Charge of the flow object, bytes.
    pub sock_bytes: u64,
    /// Strict rules: all that is charged for the flow, bytes.
    pub held: u64,
    /// Linux rules: charged and used by no queue, bytes.
    pub fwd: u64,
    /// Linux rules: cap of the receive queue, bytes.
    pub rcvbuf: u64,
    /// Linux rules: cap of the send queue, bytes.
    pub sndbuf: u64,
    /// Strict rules: window that the flow is to have open, bytes.
    pub rcv_target: u64,
    /// Strict rules: bytes that may be queued for the guest.
    pub snd_target: u64,
    /// Received in-order bytes that the host has not taken.
    pub recv_queue: u64,
    /// Bytes for the guest that it has not acknowledged, sent or not.
    pub send_queue: u64,
    /// The part of them that was sent.
    pub unacked: u32,
    /// Segments dropped, at least in part, for want of memory.
    pub drops: u32,
    /// When data last moved.
    pub last_data: Instant,
    /// In-order bytes that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes read from the host for the guest.
    pub bytes_to_guest: u64,
    /// Congestion window, bytes.
    pub cwnd: u32,
    /// Slow start threshold, bytes (RFC 5681); `u32::MAX` before the first loss.
    pub ssthresh: u32,
    /// Smoothed round-trip time, microseconds; 0 without a sample (RFC 6298).
    pub srtt_us: u64,
    /// Variation of the round-trip time, microseconds (RFC 6298).
    pub rttvar_us: u64,
    /// Retransmission timeout, microseconds (RFC 6298).
    pub rto_us: u64,
    /// Segments retransmitted.
    pub retrans: u64,
    /// Window that the guest advertises, bytes.
    pub snd_wnd: u32,
    /// Window advertised to the guest, bytes.
    pub rcv_wnd: u32,
    /// Payload of a segment to the guest, bytes, at most.
    pub mss: u16,
}

/// One UDP mapping, or one of echo requests.
#[derive(Debug, Clone)]
pub struct MappingInfo {
    /// The mapping.
    pub id: DatagramId,
    /// What it carries.
    pub kind: DatagramKind,
    /// Address of the guest, with its port or identifier.
    pub guest: SocketAddr,
    /// Destination of the guest's last datagram.
    pub last_to: Option<SocketAddr>,
    /// It is a published port.
    pub published: bool,
    /// Caps of the host socket.
    pub caps: HostCaps,
    /// All that is charged for it, bytes.
    pub charged: u64,
    /// Payload of the guest's datagrams, bytes.
    pub bytes_from_guest: u64,
    /// Payload passed to the guest, bytes.
    pub bytes_to_guest: u64,
    /// When the guest last sent.
    pub last_sent: Instant,
}

/// Counters of the stack itself. Memory counters are the budget's, by member.
#[derive(Debug, Clone, Default)]
pub struct ContainerStats {
    /// Flows now, orphans included.
    pub flows: u32,
    /// Flows opened so far.
    pub flows_total: u64,
    /// SYNs in the queue.
    pub syn_backlog: u32,
    /// Entries in TIME-WAIT.
    pub time_wait: u32,
    /// UDP mappings.
    pub mappings: u32,
    /// Entries on the container's lists, stale ones included. The number is bounded by the number of flows.
    pub list_entries: u32,
    /// In-order bytes that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes read from the host for the guest.
    pub bytes_to_guest: u64,
    /// Frames received from the guest, dropped ones included.
    pub frames_from_guest: u64,
    /// Frames sent to the guest.
    pub frames_to_guest: u64,
    /// Name and value of every drop reason and protocol counter, in a fixed order.
    pub counters: Vec<(&'static str, u64)>,
}

/// Sums since the container started.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) flows: u64,
    pub(super) bytes_from_guest: u64,
    pub(super) bytes_to_guest: u64,
    pub(super) bytes_to_host: u64,
    pub(super) frames_from_guest: u64,
}

impl Totals {
    /// Bytes that turns relayed, in both directions.
    pub(super) fn bytes_moved(&self) -> u64 {
        self.bytes_to_guest + self.bytes_to_host
    }
}

impl Container {
    /// A copy of all counters.
    pub fn stats(&self) -> ContainerStats {
        ContainerStats {
            flows: self.flows.len(),
            flows_total: self.totals.flows,
            syn_backlog: self.admission.backlog.len() as u32,
            time_wait: self.time_wait.len() as u32,
            mappings: self.mappings.len() as u32,
            list_entries: self.list_entries() as u32,
            bytes_from_guest: self.totals.bytes_from_guest,
            bytes_to_guest: self.totals.bytes_to_guest,
            frames_from_guest: self.totals.frames_from_guest,
            frames_to_guest: self.egress.frames,
            counters: self.stats.named().collect(),
        }
    }

    fn list_entries(&self) -> usize {
        // The first two hold stale entries until they are pruned; the others hold a flow or SYN at most once.
        self.timers.len() + self.idle.len() + self.ready.len() + self.admission.len()
    }

    /// A description of each flow, in the order of the table.
    pub fn flows(&self) -> Vec<FlowInfo> {
        self.flows.iter().map(|flow| self.info(flow)).collect()
    }

    /// A description of each flow in `slots` places of the table from place `from` on, and the next place; `None`: the
    /// table ends. A flow stays in its place, so a caller that takes part after part gets every flow that is open
    /// meanwhile exactly once.
    pub fn flows_from(&self, from: u32, slots: u32) -> (Vec<FlowInfo>, Option<u32>) {
        let (flows, next) = self.flows.part(from, slots);
        (flows.map(|flow| self.info(flow)).collect(), next)
    }

    /// The same of the mappings.
    pub fn mappings_from(&self, from: u32, slots: u32) -> (Vec<MappingInfo>, Option<u32>) {
        let (mappings, next) = self.mappings.part(from, slots);
        (mappings.map(mapping_info).collect(), next)
    }

    fn info(&self, flow: &Flow) -> FlowInfo {
        let tcb = flow.tcb.info();
        FlowInfo {
            id: flow.id,
            guest: flow.tuple.guest(),
            host: match flow.host.far {
                Far::Host(to) => to,
                Far::Sibling(_) => flow.tuple.remote(),
            },
            published: tcb.active && flow.host.sibling().is_none(),
            state: if flow.orphan.is_some() { "ORPHAN" } else { flow.tcb.state.name() },
            rmem: flow.ledger.rmem(),
            ofo: flow.ledger.ofo(),
            credit: flow.ledger.credit(),
            wmem: flow.ledger.wmem(),
            host_bytes: flow.ledger.host(),
            sock_bytes: u64::from(self.config.sizes.sock),
            held: flow.ledger.held(),
            fwd: flow.ledger.fwd(),
            rcvbuf: u64::from(flow.ledger.rcvbuf()),
            sndbuf: u64::from(flow.ledger.sndbuf()),
            rcv_target: tcb.rcv_target,
            snd_target: tcb.snd_target,
            recv_queue: flow.tcb.unread(),
            send_queue: flow.tcb.queued(),
            unacked: tcb.unacked,
            drops: tcb.drops,
            last_data: flow.last_data,
            bytes_from_guest: flow.tcb.received(),
            bytes_to_guest: flow.host.bytes_to_guest,
            cwnd: tcb.cwnd,
            ssthresh: tcb.ssthresh,
            srtt_us: tcb.srtt_us,
            rttvar_us: tcb.rttvar_us,
            rto_us: tcb.rto_us,
            retrans: tcb.retrans,
            snd_wnd: tcb.snd_wnd,
            rcv_wnd: tcb.rcv_wnd,
            mss: tcb.mss,
        }
    }
}

fn mapping_info(mapping: &Mapping) -> MappingInfo {
    MappingInfo {
        id: mapping.id,
        kind: mapping.kind,
        guest: mapping.guest,
        last_to: mapping.last_to,
        published: mapping.is_published(),
        caps: mapping.caps,
        charged: mapping.charged,
        bytes_from_guest: mapping.bytes_from_guest,
        bytes_to_guest: mapping.bytes_to_guest,
        last_sent: mapping.last_sent,
    }
}
