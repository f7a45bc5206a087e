//! One container of a worker: its stack, its device, its host sockets, its published ports.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use skbudget_controller::{Budget, Instant};
use skbudget_stack::schedule::DeviceBound;
use skbudget_stack::{ChunkPool, Container, Ctx, NotAccepted, Tap, Throttle, Undelivered};

use super::log_limit::LogLimit;
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::types::{DaemonError, Ports};
use crate::{sys, token};

/// Connections accepted in one turn, over all published ports of a container.
const ACCEPTS_PER_TURN: usize = 16;

/// Pause of a listener after accept(2) failed, most likely for want of descriptors: a retry at once would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    /// Failures of this process's own resources that may last, most likely because no descriptor is free.
    accepts_fail: LogLimit,
    connects_fail: LogLimit,
    /// The device may hold frames. The poll is edge-triggered, so this stays set until a read returns EAGAIN.
    device_ready: bool,
    /// CPU time that its turns took.
    pub(super) cpu_time: Duration,
    pub(super) turns: u64,
}

/// One published port.
#[derive(Debug)]
struct Listener {
    /// Identifies it in the tokens of its events.
    id: u32,
    socket: TcpListener,
    guest_port: u16,
    /// Charge of its backlog, bytes (H6).
    charged: u64,
    /// Connections may be queued: edge-triggered, as `device_ready`.
    ready: bool,
    /// Accepts are paused until this time.
    paused_until: Option<Instant>,
    /// An accepted connection that holds more received bytes than the container has room for. It is the next to be
    /// served.
    accepted: Option<(TcpStream, SocketAddr)>,
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

    /// Listens on more published ports. After an error on none of them.
    pub(super) fn listen(
        &mut self,
        registry: &Registry,
        slot: u16,
        listeners: Ports<TcpListener>,
        backlog: Backlog,
    ) -> io::Result<()> {
        let before = self.listeners.len();
        for (listener, guest_port) in listeners {
            let open = || {
                listener.set_nonblocking(true)?;
                backlog.listen(&listener)?;
                let id = self.free_listener_id();
                let fd = listener.as_raw_fd();
                let token = token::listener(slot, id);
                registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
                Ok(id)
            };
            match open() {
                Ok(id) => self.listeners.push(Listener {
                    id,
                    socket: listener,
                    guest_port,
                    charged: backlog.bytes(),
                    ready: false,
                    paused_until: None,
                    accepted: None,
                }),
                Err(e) => {
                    self.listeners.truncate(before);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Serves a published UDP port from now on. Returns false if the stack has no room for it.
    pub(super) fn publish_datagrams(
        &mut self,
        budget: &mut Budget,
        turn: &mut TurnCtx<'_>,
        socket: UdpSocket,
        guest_port: u16,
    ) -> io::Result<bool> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        let published = self
            .with_stack(budget, turn, |stack, cx| stack.publish_datagrams(cx, ipv6, guest_port));
        let Some((id, caps)) = published else { return Ok(false) };
        self.host.adopt_datagram(id, socket, caps)?;
        // Datagrams may have arrived before the socket was watched.
        self.stack.on_datagram_ready(id);
        Ok(true)
    }

    /// The smallest number that no listener has.
    fn free_listener_id(&self) -> u32 {
        let is_free = |id: &u32| self.listeners.iter().all(|listener| listener.id != *id);
        (0..).find(is_free).unwrap_or_default()
    }

    /// Number of published ports.
    pub(super) fn ports(&self) -> usize {
        self.listeners.len()
    }

    /// Closes published ports, by their addresses on the host, all or none. Returns the charge of their backlogs.
    pub(super) fn close_ports(&mut self, ports: &[SocketAddr]) -> Result<u64, DaemonError> {
        let is_at = |listener: &Listener, addr: &SocketAddr| {
            listener.socket.local_addr().is_ok_and(|own| own == *addr)
        };
        let is_open = |addr: &&SocketAddr| self.listeners.iter().any(|own| is_at(own, addr));
        if let Some(addr) = ports.iter().find(|addr| !is_open(addr)) {
            return Err(DaemonError::NoSuchPort(*addr));
        }
        // Closing a listener ends its registration, and resets the connections in its backlog.
        let closing = |own: &mut Listener| ports.iter().any(|addr| is_at(own, addr));
        Ok(self.listeners.extract_if(.., closing).map(|listener| listener.charged).sum())
    }

    /// Stops watching the device. Its descriptor may stay open after another container has taken this index.
    pub(super) fn unregister(&self, registry: &Registry) {
        let fd = self.tap.as_fd().as_raw_fd();
        // Fails for a device that was never registered, which has nothing to undo.
        let _ = registry.deregister(&mut SourceFd(&fd));
    }

    /// Whether a published port may have a connection queued.
    pub(super) fn has_listeners(&self) -> bool {
        self.listeners.iter().any(|listener| listener.ready)
    }

    pub(super) fn on_device_event(&mut self) {
        self.device_ready = true;
    }

    pub(super) fn on_listener_event(&mut self, id: u32) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.id == id) {
            listener.ready = true;
        }
    }

    /// Serves the device, the published ports and the stack, in this order, with a bound on each.
    pub(super) fn turn(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> TurnOutcome {
        self.turns += 1;
        self.tap.set_now(turn.now);
        // The device first: ACKs of the guest free send queues, which the stack then fills again.
        let frames_left = self.take_frames(budget, turn);
        let accepts_left = self.accept(budget, turn);
        let stack_left = self.stack_turn(budget, turn);
        // After the stack, which may have released memory.
        let fits = self.client_fits(budget, turn);
        match self.tap.gone() {
            true => TurnOutcome::DeviceGone,
            false if frames_left || accepts_left || stack_left || fits => TurnOutcome::MoreWork,
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
            log::warn!(
                "container {}: cannot open a connection: {why}{}",
                self.name,
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
        self.tap.flush_capture();
    }

    fn with_stack<T>(
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
                        log::debug!("device: {e}");
                    }
                }
            }
        }
        *device_ready
    }

    /// Accepts connections of the published ports. True when the bound was reached.
    fn accept(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
        let mut left = ACCEPTS_PER_TURN;
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.paused_until.is_some_and(|until| until <= turn.now) {
                listener.paused_until = None;
                listener.ready = true;
            }
            // While the container has no room, the connection stays in the kernel's backlog, charged as such (H6).
            while self.listeners[index].ready
                && left > 0
                && self.with_stack(budget, turn, Container::can_accept)
            {
                left -= 1;
                self.accept_one(index, budget, turn);
            }
        }
        left == 0
    }

    /// Whether a client that may be queued now fits: the next turn accepts it. Without room, the budget wakes the
    /// container when there is some.
    fn client_fits(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
        self.has_listeners()
            && self.with_stack(budget, turn, |stack, cx| {
                let fits = stack.can_accept(cx);
                if !fits {
                    stack.wait_to_accept(cx.budget);
                }
                fits
            })
    }

    /// Takes one connection, a held one before a new one, and serves it.
    fn accept_one(&mut self, index: usize, budget: &mut Budget, turn: &mut TurnCtx<'_>) {
        let listener = &mut self.listeners[index];
        let waited = listener.accepted.take().map(Ok);
        let (stream, peer) = match waited.unwrap_or_else(|| listener.socket.accept()) {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                listener.ready = false;
                return;
            }
            Err(e) if failed_before_accept(&e) => return,
            Err(e) => {
                if let Some(more) = self.accepts_fail.note(turn.now) {
                    log::warn!(
                        "container {}: accept on a published port: {e}{}",
                        self.name,
                        unreported(more)
                    );
                }
                listener.ready = false;
                listener.paused_until = Some(turn.now + ACCEPT_PAUSE);
                return;
            }
        };
        self.open_accepted(index, stream, peer, budget, turn);
    }

    /// Opens a flow for an accepted connection.
    fn open_accepted(
        &mut self,
        index: usize,
        stream: TcpStream,
        peer: SocketAddr,
        budget: &mut Budget,
        turn: &mut TurnCtx<'_>,
    ) {
        let guest_port = self.listeners[index].guest_port;
        let queued = sys::socket_queued_bytes(stream.as_fd()).map_or(0, |(_, received)| received);
        let opened = self
            .with_stack(budget, turn, |stack, cx| stack.on_accept(cx, guest_port, peer, queued));
        let (flow, caps) = match opened {
            Ok(opened) => opened,
            Err(NotAccepted::NoRoom) => {
                // The budget has room for a flow, but not for the bytes that its client has sent already. The backlog's
                // charge covers them until the retry.
                let listener = &mut self.listeners[index];
                listener.accepted = Some((stream, peer));
                listener.ready = false;
                listener.paused_until = Some(turn.now + ACCEPT_PAUSE);
                return;
            }
            Err(NotAccepted::NoPort) => {
                // The stream is dropped, and by the listener's SO_LINGER that resets the connection. The next client
                // does not wait behind it.
                log::debug!(
                    "container {}: published port {guest_port}: no port for {peer}",
                    self.name
                );
                return;
            }
        };
        // From here on the flow exists: the socket joins it, or the flow is closed.
        if let Err(e) = self.host.adopt(flow, stream, peer, caps) {
            log::debug!("container {}: published port {guest_port}: {e}", self.name);
            // A flow without a socket would receive no event and stay open for ever.
            self.with_stack(budget, turn, |stack, cx| stack.accept_failed(cx, flow));
        }
    }
}

/// Text for the occurrences not reported since the last report; empty when there are none.
fn unreported(left_out: u64) -> String {
    if left_out == 0 { String::new() } else { format!(" ({left_out} more since the last report)") }
}

/// The connection failed before it was accepted. The listener works: the next accept follows at once.
fn failed_before_accept(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}
