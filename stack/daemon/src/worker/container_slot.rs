//! One container of a worker: its stack, its device, its host sockets, its published ports.

mod ports;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use skbudget_controller::{Budget, Instant};
use skbudget_stack::schedule::DeviceBound;
use skbudget_stack::{ChunkPool, Container, Ctx, DatagramId, Tap, Throttle, Undelivered};

use super::log_limit::LogLimit;
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::token;
use crate::types::Ports;
use ports::Listener;

/// Least interval between two reports of a failure that lasts.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Time and buffers that the parts of a turn share.
pub(super) struct TurnCtx<'a> {
    pub(super) now: Instant,
    pub(super) pool: &'a mut ChunkPool,
    /// Receives one frame, with its header.
    pub(super) scratch: &'a mut [u8],
}

#[derive(Debug)]
pub(super) struct ContainerSlot {
    pub(super) name: String,
    /// Index of its budget in the worker.
    pub(super) budget: usize,
    pub(super) stack: Container,
    pub(super) host: HostSockets,
    pub(super) tap: Tap,
    listeners: Vec<Listener>,
    /// Published UDP ports: their addresses on the host, and their mappings.
    datagram_ports: Vec<(SocketAddr, DatagramId)>,
    /// Failures of this process's own resources that may last, most likely because no descriptor is free.
    accepts_fail: LogLimit,
    connects_fail: LogLimit,
    /// The device may hold frames. The poll is edge-triggered, so this stays set until a read returns EAGAIN.
    device_ready: bool,
    /// CPU time that its turns took.
    pub(super) cpu_time: Duration,
    pub(super) turns: u64,
}

/// The state of a container after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnOutcome {
    /// There is no work before the next event or deadline.
    Idle,
    /// It stopped at a bound: more work is ready.
    MoreWork,
    /// The device was closed or deleted.
    DeviceGone,
}

impl ContainerSlot {
    pub(super) fn new(
        name: String,
        budget: usize,
        stack: Container,
        host: HostSockets,
        tap: Tap,
    ) -> Self {
        Self {
            name,
            budget,
            stack,
            host,
            tap,
            listeners: Vec::new(),
            datagram_ports: Vec::new(),
            accepts_fail: LogLimit::every(REPORT_EVERY),
            connects_fail: LogLimit::every(REPORT_EVERY),
            // Frames may have arrived before the device was watched, and they cause no edge.
            device_ready: true,
            cpu_time: Duration::ZERO,
            turns: 0,
        }
    }

    /// Watches the device and listens on the published ports.
    pub(super) fn register(
        &mut self,
        registry: &Registry,
        slot: u16,
        listeners: Ports<TcpListener>,
        backlog: Backlog,
    ) -> io::Result<()> {
        let fd = self.tap.as_fd().as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&fd), token::device(slot), interest)?;
        self.listen(registry, slot, listeners, backlog)
    }

    /// Stops watching the device. Its descriptor may stay open after another container has taken this index.
    pub(super) fn unregister(&self, registry: &Registry) {
        let fd = self.tap.as_fd().as_raw_fd();
        // Fails for a device that was never registered, which has nothing to undo.
        let _ = registry.deregister(&mut SourceFd(&fd));
    }

    pub(super) fn on_device_event(&mut self) {
        self.device_ready = true;
    }

    /// Serves the device and the published ports, in this order, with a bound on each. True when work is left.
    pub(super) fn take_input(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
        self.turns += 1;
        self.tap.set_now(turn.now);
        // The device first: ACKs of the guest free send queues, which the stack then fills again.
        let frames_left = self.take_frames(budget, turn);
        let accepts_left = self.accept(budget, turn);
        frames_left || accepts_left
    }

    /// Runs the stack after the input.
    pub(super) fn turn(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> TurnOutcome {
        let stack_left = self.stack_turn(budget, turn);
        // After the stack, which may have released memory.
        let fits = self.client_fits(budget, turn);
        match self.tap.gone() {
            true => TurnOutcome::DeviceGone,
            false if stack_left || fits => TurnOutcome::MoreWork,
            false => TurnOutcome::Idle,
        }
    }

    /// Runs timers and flows. True when the stack stopped at a bound.
    pub(super) fn stack_turn(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
        let left = self.with_stack(budget, turn, |stack, cx| stack.turn(cx));
        if let Some(errno) = self.host.take_lack()
            && let Some(more) = self.connects_fail.note(turn.now)
        {
            // The guest's kernel retransmits its SYN: the connection is opened once the resource is free.
            let why = errno.desc();
            tracing::warn!(
                container = %self.name, "cannot open a connection: {why}{}",
                unreported(more)
            );
        }
        left
    }

    /// The next time at which the container must run without an event.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let paused = self.listeners.iter().filter_map(|l| l.paused_until);
        paused.chain(self.stack.next_deadline()).min()
    }

    /// Bytes acknowledged to the guest that are not delivered yet.
    pub(super) fn undelivered(&mut self) -> Undelivered {
        self.stack.undelivered(&mut self.host)
    }

    /// Resets every flow, towards the guest and towards the hosts, and uncharges all.
    pub(super) fn abort(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) {
        self.with_stack(budget, turn, |stack, cx| stack.abort_all(cx));
        self.tap.flush_captures();
    }

    pub(super) fn with_stack<T>(
        &mut self,
        budget: &mut Budget,
        turn: &mut TurnCtx<'_>,
        work: impl FnOnce(&mut Container, &mut Ctx<'_>) -> T,
    ) -> T {
        let Self { stack, host, tap, .. } = self;
        let TurnCtx { now, pool, .. } = turn;
        work(stack, &mut Ctx { now: *now, budget, pool, host, device: tap })
    }

    /// Passes received frames to the stack. True when the device may hold more.
    fn take_frames(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
        let Self { stack, host, tap, device_ready, .. } = self;
        let mut bound = DeviceBound::new(Throttle::of(budget));
        while *device_ready && bound.has_room() {
            match tap.recv(turn.scratch) {
                Ok((vnet, range)) => {
                    bound.count(range.len());
                    let (now, pool) = (turn.now, &mut *turn.pool);
                    let mut cx = Ctx { now, budget: &mut *budget, pool, host, device: tap };
                    stack.on_frame(&mut cx, &vnet, &turn.scratch[range]);
                }
                Err(e) => {
                    *device_ready = false;
                    // `tap.gone()` detects a closed device. A device that is down returns EIO until it is up again.
                    if e.kind() != io::ErrorKind::WouldBlock && !tap.gone() {
                        tracing::debug!("device: {e}");
                    }
                }
            }
        }
        *device_ready
    }
}

/// Text for the occurrences not reported since the last report; empty when there are none.
fn unreported(left_out: u64) -> String {
    if left_out == 0 { String::new() } else { format!(" ({left_out} more since the last report)") }
}
