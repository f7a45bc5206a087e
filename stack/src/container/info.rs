//! Read-only views of a container: its counters and its flows.

use std::net::SocketAddr;

use super::Container;
use crate::flow::Flow;
use crate::io::FlowId;

/// One flow, as `Daemon::flows` in the package `skbudget` reports it.
#[derive(Debug, Clone)]
pub struct FlowInfo {
    /// The flow.
    pub id: FlowId,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The address that the host socket is connected to.
    pub host: SocketAddr,
    /// TCP state as `ss` names it, or `ORPHAN`.
    pub state: &'static str,
    /// Charge of received data that the host has not taken, bytes.
    pub rmem: u64,
    /// The part of it behind a hole, bytes.
    pub ofo: u64,
    /// Charge of the advertised window without data, bytes.
    pub credit: u64,
    /// Charge of the send queue towards the guest, bytes.
    pub wmem: u64,
    /// Charge of the host socket's buffers, bytes.
    pub host_bytes: u64,
    /// In-order bytes that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes read from the host for the guest.
    pub bytes_to_guest: u64,
    /// Congestion window, bytes.
    pub cwnd: u32,
    /// Slow start threshold, bytes (RFC 5681).
    pub ssthresh: u32,
    /// Smoothed round-trip time, microseconds; 0 without a sample (RFC 6298).
    pub srtt_us: u64,
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
        self.flows.iter().map(info).collect()
    }
}

fn info(flow: &Flow) -> FlowInfo {
    let tcb = flow.tcb.info();
    FlowInfo {
        id: flow.id,
        guest: flow.tuple.guest(),
        host: flow.host.to,
        state: if flow.orphan.is_some() { "ORPHAN" } else { flow.tcb.state.name() },
        rmem: flow.ledger.rmem(),
        ofo: flow.ledger.ofo(),
        credit: flow.ledger.credit(),
        wmem: flow.ledger.wmem(),
        host_bytes: flow.ledger.host(),
        bytes_from_guest: flow.tcb.received(),
        bytes_to_guest: flow.host.bytes_to_guest,
        cwnd: tcb.cwnd,
        ssthresh: tcb.ssthresh,
        srtt_us: tcb.srtt_us,
        rto_us: tcb.rto_us,
        retrans: tcb.retrans,
        snd_wnd: tcb.snd_wnd,
        rcv_wnd: tcb.rcv_wnd,
        mss: tcb.mss,
    }
}
