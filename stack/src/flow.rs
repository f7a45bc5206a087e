//! A flow: TCP towards the guest, a host socket, and the ledger of what both hold.

use std::net::SocketAddr;

use skbudget_controller::{Instant, Ledger};

use crate::container::GuestProbes;
use crate::io::{FlowId, HostCaps, HostError, Ready};
use crate::orphan::Orphan;
use crate::segment::Tuple;
use crate::seq::Seq;
use crate::tcp::Tcb;

/// Charged for a flow object, its places in tables and queues (pressure model A1: `sock`). The assertion below keeps it
/// honest.
pub(crate) const FLOW_BYTES: u32 = 1536;
const _: () = assert!(
    size_of::<Flow>() + 256 <= FLOW_BYTES as usize,
    "a flow and its table entries must fit what is charged for them"
);

/// The host's end.
#[derive(Debug)]
pub(crate) struct HostSide {
    pub(crate) to: SocketAddr,
    /// connect(2) is done.
    pub(crate) open: bool,
    pub(crate) ready: Ready,
    /// The socket reported an error (EPOLLERR). Nothing is written any more: a write would be given the error that the
    /// reads are to end with.
    pub(crate) broken: bool,
    /// The first error of the socket: later ones only follow from it.
    pub(crate) error: Option<HostError>,
    /// All that the host sent was read.
    pub(crate) eof: bool,
    /// We ended ours.
    pub(crate) shut: bool,
    /// The caps were raised to what a flow begins with, or there was no plenty to do so.
    pub(crate) begun: bool,
    /// What is charged as `host`.
    pub(crate) caps: HostCaps,
    /// Bytes moved since each cap was raised: a cap is raised for a flow that proved fast.
    pub(crate) to_host_since: u64,
    pub(crate) from_host_since: u64,
    /// When the receive cap was last raised, or the flow found too slow for that.
    pub(crate) from_host_at: Instant,
    /// Caps that could not be lowered are not tried again before.
    pub(crate) relax_from: Instant,
    /// Chunks the next read asks for.
    pub(crate) read_hint: usize,
    /// Bytes read from the host for the guest.
    pub(crate) bytes_to_guest: u64,
}

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    pub(crate) tuple: Tuple,
    pub(crate) tcb: Tcb,
    pub(crate) host: HostSide,
    pub(crate) ledger: Ledger,
    /// TCP with the guest is over; what it sent may still be on its way to the host.
    pub(crate) orphan: Option<Orphan>,
    /// Earliest entry in the container's timer queue.
    pub(crate) timer_at: Option<Instant>,
    /// Linux rules: when to ask for send memory again (L4).
    pub(crate) retry_at: Option<Instant>,
    /// On the budget's list of waiters.
    pub(crate) waiting: bool,
    pub(crate) last_data: Instant,
    pub(crate) idle: bool,
    /// On the container's queue of flows that may become idle.
    pub(crate) watched: bool,
    /// On that queue since it was opened, whatever it did since.
    pub(crate) fresh: bool,
    pub(crate) probes: GuestProbes,
}

impl HostSide {
    /// Nothing can be sent to the host any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken || self.error.is_some()
    }

    pub(crate) fn new(to: SocketAddr, caps: HostCaps, open: bool) -> Self {
        Self {
            to,
            open,
            ready: Ready::default(),
            broken: false,
            error: None,
            eof: false,
            shut: false,
            begun: false,
            caps,
            to_host_since: 0,
            from_host_since: 0,
            from_host_at: Instant::default(),
            relax_from: Instant::default(),
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
            fresh: false,
            probes: GuestProbes::default(),
        })
    }

    /// The guest says that a segment of ours, beginning at `seq`, did not fit a path of `mtu` bytes. True: it was in
    /// flight and the segments are smaller from now on.
    pub(crate) fn path_mtu(&mut self, mtu: u32, seq: Seq) -> bool {
        self.tcb.on_path_mtu(mtu, self.tuple.is_ipv6(), seq)
    }

    /// When this flow must be looked at if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if let Some(orphan) = &self.orphan {
            return Some(orphan.look_at());
        }
        [self.tcb.deadline(), self.retry_at, self.probes.deadline()].iter().filter_map(|t| *t).min()
    }
}
