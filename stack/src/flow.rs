//! A flow: TCP with the guest, a host socket, and the ledger of both; and the tables of a container's flows.

pub(crate) mod orphan;
pub(crate) mod syn_backlog;
pub(crate) mod table;
pub(crate) mod time_wait;

use std::net::SocketAddr;

use skbudget_controller::{Instant, Ledger};

use crate::flow::orphan::Orphan;
use crate::io::{FlowId, HostCaps, HostError, Ready};
use crate::sizes::FLOW_BYTES;
use crate::tcp::Tcb;
use crate::wire::addresses::Tuple;
use crate::wire::seq::Seq;

const _: () = assert!(
    size_of::<Flow>() + 256 <= FLOW_BYTES as usize,
    "a flow and its table entries must fit what is charged for them"
);

/// Keep-alive state of one guest flow.
#[derive(Debug, Default)]
pub(crate) struct GuestProbes {
    /// Time of the guest's latest probe.
    pub(crate) at: Option<Instant>,
    /// The latest probe is not answered yet.
    pub(crate) open: bool,
    /// The host socket's keep-alive interval, seconds; 0: off.
    pub(crate) every: u32,
    /// Time of the next poll for the peer's answer.
    pub(crate) look_at: Option<Instant>,
}

impl GuestProbes {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }
}

/// A flow of a container of the same loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SiblingFlow {
    /// Index of the container in the loop.
    pub(crate) container: u32,
    pub(crate) flow: FlowId,
}

/// The other end of a flow between two containers, in place of a host socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sibling {
    /// `None`: not open yet, or over.
    pub(crate) other: Option<SiblingFlow>,
    /// On the container's list of flows with an event for siblings.
    pub(crate) due: bool,
    /// The budget refused memory for data of the other end.
    pub(crate) refused: bool,
    /// The guest did not answer the SYN.
    pub(crate) silent: bool,
}

/// The other end of a flow.
#[derive(Debug)]
pub(crate) enum Far {
    /// A host socket, and the address to which it is connected.
    Host(SocketAddr),
    /// A flow of another container.
    Sibling(Sibling),
}

/// The host side of a flow.
#[derive(Debug)]
pub(crate) struct HostSide {
    pub(crate) far: Far,
    /// connect(2) has completed.
    pub(crate) open: bool,
    /// Readiness of the socket, as last reported.
    pub(crate) ready: Ready,
    /// The socket reported an error (EPOLLERR). Nothing is written any more: a write would consume the error that a
    /// read is to return.
    pub(crate) broken: bool,
    /// The first error of the socket; later ones only follow from it.
    pub(crate) error: Option<HostError>,
    /// Everything that the host sent was read.
    pub(crate) eof: bool,
    /// This side shut down its stream.
    pub(crate) shut: bool,
    /// The caps were raised to those of a new flow, or the budget had no room for that.
    pub(crate) caps_raised: bool,
    /// Caps of the socket, which are charged as `host`.
    pub(crate) caps: HostCaps,
    /// Bytes moved since the cap of each direction was raised: only a fast flow gets a larger cap.
    pub(crate) to_host_since: u64,
    pub(crate) from_host_since: u64,
    /// When the receive cap was last raised, or last found sufficient.
    pub(crate) from_host_at: Instant,
    /// Caps that could not be lowered are not tried again before this time.
    pub(crate) lower_again_at: Instant,
    /// Chunks that the next read requests.
    pub(crate) read_hint: usize,
    /// Bytes read from the host for the guest.
    pub(crate) bytes_to_guest: u64,
}

/// One connection of the guest.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    pub(crate) tuple: Tuple,
    pub(crate) tcb: Tcb,
    pub(crate) host: HostSide,
    pub(crate) ledger: Ledger,
    /// TCP with the guest is over; its data may still be on the way to the host.
    pub(crate) orphan: Option<Orphan>,
    /// Time of the earliest entry of this flow in the container's timer queue.
    pub(crate) timer_at: Option<Instant>,
    /// Linux rules: when to request send memory again (L4).
    pub(crate) retry_at: Option<Instant>,
    /// On the budget's list of waiters.
    pub(crate) waiting: bool,
    /// When data last moved.
    pub(crate) last_data: Instant,
    /// No data moved for the idle time; the flow may be demoted (H3).
    pub(crate) idle: bool,
    /// On the container's queue of flows that may become idle.
    pub(crate) watched: bool,
    /// On that queue since the flow opened, whatever it did since then.
    pub(crate) newly_opened: bool,
    pub(crate) probes: GuestProbes,
}

impl HostSide {
    /// Nothing can be sent to the host any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken || self.error.is_some()
    }

    /// The other end, if it is a flow of another container.
    pub(crate) fn sibling(&self) -> Option<Sibling> {
        if let Far::Sibling(sibling) = self.far { Some(sibling) } else { None }
    }

    /// As [`Self::sibling`], mutable.
    pub(crate) fn sibling_mut(&mut self) -> Option<&mut Sibling> {
        if let Far::Sibling(sibling) = &mut self.far { Some(sibling) } else { None }
    }

    pub(crate) fn new(far: Far, caps: HostCaps, open: bool) -> Self {
        Self {
            far,
            open,
            ready: Ready::default(),
            broken: false,
            error: None,
            eof: false,
            shut: false,
            caps_raised: false,
            caps,
            to_host_since: 0,
            from_host_since: 0,
            from_host_at: Instant::default(),
            lower_again_at: Instant::default(),
            read_hint: 1,
            bytes_to_guest: 0,
        }
    }
}

impl Flow {
    pub(crate) fn new(
        id: FlowId,
        tuple: Tuple,
        tcb: Tcb,
        host: HostSide,
        ledger: Ledger,
        now: Instant,
    ) -> Box<Self> {
        Box::new(Self {
            id,
            tuple,
            tcb,
            host,
            ledger,
            orphan: None,
            timer_at: None,
            retry_at: None,
            waiting: false,
            last_data: now,
            idle: false,
            watched: false,
            newly_opened: false,
            probes: GuestProbes::default(),
        })
    }

    /// The guest reports by ICMP that our segment at `seq` did not fit a path of `mtu` bytes. Returns true if it was in
    /// flight and the segments are smaller from now on.
    pub(crate) fn path_mtu(&mut self, mtu: u32, seq: Seq) -> bool {
        self.tcb.on_path_mtu(mtu, self.tuple.is_ipv6(), seq)
    }

    /// When to serve this flow if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if let Some(orphan) = &self.orphan {
            return Some(orphan.look_at());
        }
        [self.tcb.deadline(), self.retry_at, self.probes.deadline()].iter().filter_map(|t| *t).min()
    }
}
