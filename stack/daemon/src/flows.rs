//! Flows as users see them: what is reported of each, in which order, and which of them are selected.

mod query;
mod text;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skbudget_controller::{Instant, Rules};
use skbudget_stack::datagram::DatagramKind;
use skbudget_stack::{FlowInfo, MappingInfo};

pub use query::FlowState;
pub(crate) use query::{FlowQuery, LIMIT_MAX, QUERY_KEYS, parse_protocol, parse_state};
pub(crate) use text::{HEAD, row};

/// Value of the `schema` field.
pub(crate) const SCHEMA: &str = "skbudget.flows/1";

/// State of a socket without a connection, as `ss` names it.
const UNCONNECTED: &str = "UNCONN";

/// A place in the order of a container's flows: TCP first, then UDP and echo requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// A place in the table of TCP flows.
    Flows(u32),
    /// A place in the table of mappings.
    Mappings(u32),
}

/// What a worker returns at a time.
#[derive(Debug)]
pub(crate) struct FlowPart {
    /// Those of the part, if it is one of TCP flows.
    pub(crate) flows: Vec<FlowInfo>,
    /// Those of the part, if it is one of mappings.
    pub(crate) mappings: Vec<MappingInfo>,
    /// Where the next part starts; `None`: there is none.
    pub(crate) next: Option<Cursor>,
    /// Those of the container's budget.
    pub(crate) rules: Rules,
    /// Time of the worker.
    pub(crate) now: Instant,
}

/// `GET /v1/containers/{name}/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowList {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// Name of the container.
    pub(crate) container: String,
    /// In the order of the daemon's tables.
    pub(crate) flows: Vec<FlowReport>,
    /// The `after` that continues the list; null at its end.
    pub(crate) next: Option<Cursor>,
}

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// A connection.
    Tcp,
    /// A port of the container.
    Udp,
    /// Echo requests.
    Icmp,
}

/// One TCP flow, or the mapping of one UDP port or echo identifier. A later version only adds fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowReport {
    /// What it carries.
    pub(crate) protocol: FlowProtocol,
    /// As `ss` names it; besides CONNECTING, the connection of the host's side, and ORPHAN: the guest's end is closed.
    pub(crate) state: String,
    /// The container's end.
    pub(crate) guest: SocketAddr,
    /// The other end, as the host sees it. That of a mapping is the destination of its last datagram.
    pub(crate) peer: Option<SocketAddr>,
    /// It belongs to a published port.
    pub(crate) published: bool,
    /// In-order payload of the guest that the host has not taken.
    pub(crate) recv_queue_bytes: u64,
    /// Payload for the guest that it has not acknowledged.
    pub(crate) send_queue_bytes: u64,
    /// All that is charged: the next six together.
    pub(crate) charged_bytes: u64,
    /// Received in order and not taken by the host.
    pub(crate) rmem_bytes: u64,
    /// Behind a hole.
    pub(crate) ofo_bytes: u64,
    /// Queued for the guest, sent or not.
    pub(crate) wmem_bytes: u64,
    /// Charged and empty: open window and unused reserve.
    pub(crate) fwd_bytes: u64,
    /// The flow object with its places in tables.
    pub(crate) sock_bytes: u64,
    /// Buffers of the host socket.
    pub(crate) host_bytes: u64,
    /// What the receive queue may hold now.
    pub(crate) rcvbuf_bytes: u64,
    /// What the send queue may hold now.
    pub(crate) sndbuf_bytes: u64,
    /// Segments dropped for want of memory.
    pub(crate) drops: u32,
    /// Payload received from the guest.
    pub(crate) bytes_from_guest: u64,
    /// Payload for the guest.
    pub(crate) bytes_to_guest: u64,
    /// Time since data last moved.
    pub(crate) idle_ms: u64,
    /// The connection with the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp: Option<TcpReport>,
}

/// One TCP connection with a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcpReport {
    /// Smoothed round-trip time; 0 before the first sample.
    pub(crate) rtt_us: u64,
    /// Variation of the round-trip time.
    pub(crate) rttvar_us: u64,
    /// Retransmission timeout.
    pub(crate) rto_us: u64,
    /// Payload of a segment to the guest, at most.
    pub(crate) mss_bytes: u16,
    /// Congestion window.
    pub(crate) cwnd_bytes: u32,
    /// Null before the first loss.
    pub(crate) ssthresh_bytes: Option<u32>,
    /// Sent and not acknowledged.
    pub(crate) unacked_bytes: u32,
    /// Segments sent again.
    pub(crate) retransmits: u64,
    /// That the guest advertises.
    pub(crate) snd_wnd_bytes: u32,
    /// That the guest may fill.
    pub(crate) rcv_wnd_bytes: u32,
}

impl Cursor {
    pub(crate) const START: Self = Self::Flows(0);
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One letter and digits: nothing in it needs an escape in a path.
        match self {
            Self::Flows(place) => write!(f, "t{place}"),
            Self::Mappings(place) => write!(f, "u{place}"),
        }
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `split_at_checked`: the first character may be longer than a byte.
        let number = |digits: &str| digits.parse().ok();
        let cursor = match text.split_at_checked(1) {
            Some(("t", digits)) => number(digits).map(Self::Flows),
            Some(("u", digits)) => number(digits).map(Self::Mappings),
            _ => None,
        };
        cursor.ok_or_else(|| "the `next` of an earlier answer is allowed".to_owned())
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FlowPart {
    /// The flows and mappings of the part, each with the place behind it.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (FlowReport, Cursor)> + '_ {
        let flows = self.flows.iter().map(|flow| {
            (FlowReport::of_flow(flow, self.rules, self.now), Cursor::Flows(flow.id.index + 1))
        });
        let mappings = self.mappings.iter().map(|mapping| {
            (FlowReport::of_mapping(mapping, self.now), Cursor::Mappings(mapping.id.index + 1))
        });
        flows.chain(mappings)
    }
}

impl FlowReport {
    fn of_flow(flow: &FlowInfo, rules: Rules, now: Instant) -> Self {
        let FlowInfo { rmem, ofo, wmem, .. } = *flow;
        let queues = rmem + ofo + wmem;
        // The kernel's rules charge queues and what is kept for them, ours the object and the host socket, too.
        let (sock, host, fwd) = match rules {
            Rules::Strict => {
                let (sock, host) = (flow.sock_bytes, flow.host_bytes);
                (sock, host, flow.held.saturating_sub(queues + sock + host))
            }
            Rules::Linux => (0, 0, flow.fwd),
        };
        // What bounds the queues now: our rules move targets, the kernel's move socket buffers.
        let (rcvbuf_bytes, sndbuf_bytes) = match rules {
            Rules::Strict => (flow.rcv_target, flow.snd_target),
            Rules::Linux => (flow.rcvbuf, flow.sndbuf),
        };
        Self {
            protocol: FlowProtocol::Tcp,
            state: flow.state.to_owned(),
            guest: flow.guest,
            peer: Some(flow.host),
            published: flow.published,
            recv_queue_bytes: flow.recv_queue,
            send_queue_bytes: flow.send_queue,
            charged_bytes: queues + sock + host + fwd,
            rmem_bytes: rmem,
            ofo_bytes: ofo,
            wmem_bytes: wmem,
            fwd_bytes: fwd,
            sock_bytes: sock,
            host_bytes: host,
            rcvbuf_bytes,
            sndbuf_bytes,
            drops: flow.drops,
            bytes_from_guest: flow.bytes_from_guest,
            bytes_to_guest: flow.bytes_to_guest,
            idle_ms: since(flow.last_data, now),
            tcp: Some(TcpReport {
                rtt_us: flow.srtt_us,
                rttvar_us: flow.rttvar_us,
                rto_us: flow.rto_us,
                mss_bytes: flow.mss,
                cwnd_bytes: flow.cwnd,
                // The initial value is a mark, not a size.
                ssthresh_bytes: (flow.ssthresh != u32::MAX).then_some(flow.ssthresh),
                unacked_bytes: flow.unacked,
                retransmits: flow.retrans,
                snd_wnd_bytes: flow.snd_wnd,
                rcv_wnd_bytes: flow.rcv_wnd,
            }),
        }
    }

    fn of_mapping(mapping: &MappingInfo, now: Instant) -> Self {
        let [sndbuf, rcvbuf] = [mapping.caps.sndbuf, mapping.caps.rcvbuf].map(u64::from);
        // The charge also covers what a receive buffer may hold beyond its cap: that counts as the mapping's own.
        let host = (sndbuf + rcvbuf).min(mapping.charged);
        Self {
            protocol: match mapping.kind {
                DatagramKind::Udp => FlowProtocol::Udp,
                DatagramKind::Echo => FlowProtocol::Icmp,
            },
            state: UNCONNECTED.to_owned(),
            guest: mapping.guest,
            // An address that was sent to. A mapping has no connection.
            peer: mapping.last_to,
            published: mapping.published,
            // Datagrams pass without a queue of ours: the host socket's buffers are all.
            recv_queue_bytes: 0,
            send_queue_bytes: 0,
            charged_bytes: mapping.charged,
            rmem_bytes: 0,
            ofo_bytes: 0,
            wmem_bytes: 0,
            fwd_bytes: 0,
            sock_bytes: mapping.charged - host,
            host_bytes: host,
            rcvbuf_bytes: rcvbuf,
            sndbuf_bytes: sndbuf,
            drops: 0,
            bytes_from_guest: mapping.bytes_from_guest,
            bytes_to_guest: mapping.bytes_to_guest,
            idle_ms: since(mapping.last_sent, now),
            tcp: None,
        }
    }
}

/// Milliseconds from `then` to `now`.
fn since(then: Instant, now: Instant) -> u64 {
    let passed: Duration = now.since(then);
    passed.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_the_same_after_a_round_trip() {
        for cursor in [Cursor::START, Cursor::Flows(u32::MAX), Cursor::Mappings(7)] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for text in ["", "t", "x1", "t-1", "t4294967296", "u1 ", "é1"] {
            assert!(text.parse::<Cursor>().unwrap_err().contains("allowed"), "{text:?}");
        }
    }
}
