//! One container of a worker: its stack, its device, its host sockets, its published ports.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use skbudget_controller::{Budget, Instant};
use skbudget_stack::{ChunkPool, Container, Ctx, NotAccepted, Tap, Throttle, Undelivered};

use super::quiet::Quiet;
use super::rest::Recent;
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::types::Publish;
use crate::{sys, token};

/// Bytes taken from one device in one turn, for the reasons that bound the frames (`Throttle::frames_per_turn`).
const BYTES_PER_TURN: usize = 512 << 10;

/// Connections accepted in one turn, over all published ports of a container.
const ACCEPTS_PER_TURN: usize = 16;

/// Pause of a listener after accept(2) failed, most likely for want of descriptors: a retry at once would fail again.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Least interval between two reports of a failure that lasts.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Time and buffers that the parts of a turn share.
pub(super) struct Shared<'a> {
    pub(super) now: Instant,
    pub(super) pool: &'a mut ChunkPool,
    /// Receives one frame, with its header.
    pub(super) scratch: &'a mut [u8],
}

#[derive(Debug)]
pub(super) struct Seat {
    pub(super) name: String,
    /// Index of its budget in the worker.
    pub(super) budget: usize,
    pub(super) stack: Container,
    pub(super) host: HostSockets,
    pub(super) tap: Tap,
    listeners: Vec<Listener>,
    /// Failures of this process's own resources that may last, most likely because no descriptor is free.
    accepts_fail: Quiet,
    connects_fail: Quiet,
    /// The device may hold frames. The poll is edge-triggered, so this stays set until a read returns EAGAIN.
    device_ready: bool,
    /// It is in the worker's `active` list.
    pub(super) active: bool,
    /// Its entry in the worker's `deadlines`.
    pub(super) deadline: Option<Instant>,
    /// The CPU throttle pauses the container until this time.
    pub(super) rest_until: Option<Instant>,
    /// CPU time that its turns took.
    pub(super) cpu_ns: u64,
    pub(super) turns: u64,
}

/// One published port.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    guest_port: u16,
    /// Connections may be queued: edge-triggered, as `device_ready`.
    ready: bool,
    /// Accepts are paused until this time.
    rest_until: Option<Instant>,
    /// An accepted connection that holds more received bytes than the container has room for. It is the next to be
    /// served.
    accepted: Option<(TcpStream, SocketAddr)>,
}

/// The state of a container after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// There is no work before the next event or deadline.
    Idle,
    /// It stopped at a bound: more work is ready.
    Again,
    /// The device was closed or deleted.
    Gone,
}

impl Seat {
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
            accepts_fail: Quiet::every(REPORT_EVERY),
            connects_fail: Quiet::every(REPORT_EVERY),
            // Frames may have arrived before the device was watched, and they cause no edge.
            device_ready: true,
            active: false,
            deadline: None,
            rest_until: None,
            cpu_ns: 0,
            turns: 0,
        }
    }

    /// Watches the device and listens on the published ports.
    pub(super) fn register(
        &mut self,
        registry: &Registry,
        seat: u16,
        publish: Vec<Publish>,
        backlog: Backlog,
    ) -> io::Result<()> {
        let fd = self.tap.as_fd().as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&fd), token::device(seat), interest)?;
        for (index, Publish { listener, guest_port }) in publish.into_iter().enumerate() {
            listener.set_nonblocking(true)?;
            backlog.listen(&listener)?;
            let token = token::listener(seat, index as u32);
            let fd = listener.as_raw_fd();
            registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
            self.listeners.push(Listener {
                socket: listener,
                guest_port,
                ready: false,
                rest_until: None,
                accepted: None,
            });
        }
        Ok(())
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

    pub(super) fn on_listener_event(&mut self, index: u32) {
        if let Some(listener) = self.listeners.get_mut(index as usize) {
            listener.ready = true;
        }
    }

    /// Serves the device, the published ports and the stack, in this order, with a bound on each.
    pub(super) fn turn(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> After {
        self.turns += 1;
        self.tap.set_now(shared.now);
        // The device first: ACKs of the guest free send queues, which the stack then fills again.
        let frames_left = self.take_frames(budget, shared);
        let accepts_left = self.accept(budget, shared);
        let stack_left = self.stack_turn(budget, shared);
        // After the stack, which may have released memory.
        let fits = self.client_fits(budget, shared);
        match self.tap.gone() {
            true => After::Gone,
            false if frames_left || accepts_left || stack_left || fits => After::Again,
            false => After::Idle,
        }
    }

    /// Runs timers and flows. True when the stack stopped at a bound.
    pub(super) fn stack_turn(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let left = self.with_stack(budget, shared, |stack, cx| stack.turn(cx));
        if let Some(errno) = self.host.take_lack()
            && let Some(more) = self.connects_fail.note(shared.now)
        {
            // The guest's kernel retransmits its SYN: the connection is opened once the resource is free.
            let why = errno.desc();
            log::warn!("container {}: cannot open a connection: {why}{}", self.name, since(more));
        }
        left
    }

    /// Pauses admissions after a turn that opened connections, if another container is active.
    pub(super) fn hold_admissions(&mut self, recent: &Recent, index: u16, now: Instant) {
        let begun = self.host.take_begun();
        if let Some(rest) = recent.rest_of_connects(index, begun, now) {
            self.stack.hold_admissions(now + rest);
        }
    }

    /// Whether the CPU throttle pauses the container. Its events stay recorded until the pause ends.
    pub(super) fn rests(&mut self, now: Instant) -> bool {
        self.rest_until = self.rest_until.filter(|&until| until > now);
        self.rest_until.is_some()
    }

    /// The next time at which the container must run without an event.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        // All other deadlines wait for the end of the pause.
        if self.rest_until.is_some() {
            return self.rest_until;
        }
        let rests = self.listeners.iter().filter_map(|l| l.rest_until);
        rests.chain(self.stack.next_deadline()).min()
    }

    /// Bytes acknowledged to the guest that are not delivered yet.
    pub(super) fn undelivered(&mut self) -> Undelivered {
        self.stack.undelivered(&mut self.host)
    }

    /// Resets every flow, towards the guest and towards the hosts, and uncharges all.
    pub(super) fn abort(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) {
        self.with_stack(budget, shared, |stack, cx| stack.abort_all(cx));
        self.tap.flush_capture();
    }

    fn with_stack<T>(
        &mut self,
        budget: &mut Budget,
        shared: &mut Shared<'_>,
        work: impl FnOnce(&mut Container, &mut Ctx<'_>) -> T,
    ) -> T {
        let Self { stack, host, tap, .. } = self;
        let Shared { now, pool, .. } = shared;
        work(stack, &mut Ctx { now: *now, budget, pool, host, device: tap })
    }

    /// Passes received frames to the stack. True when the device may hold more.
    fn take_frames(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let Self { stack, host, tap, device_ready, .. } = self;
        let mut bytes = 0;
        for _ in 0..Throttle::of(budget).frames_per_turn {
            if !*device_ready || bytes >= BYTES_PER_TURN {
                break;
            }
            match tap.recv(shared.scratch) {
                Ok((vnet, range)) => {
                    bytes += range.len();
                    let (now, pool) = (shared.now, &mut *shared.pool);
                    let mut cx = Ctx { now, budget: &mut *budget, pool, host, device: tap };
                    stack.on_frame(&mut cx, &vnet, &shared.scratch[range]);
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
    fn accept(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let mut left = ACCEPTS_PER_TURN;
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.rest_until.is_some_and(|until| until <= shared.now) {
                listener.rest_until = None;
                listener.ready = true;
            }
            // While the container has no room, the connection stays in the kernel's backlog, charged as such (H6).
            while self.listeners[index].ready
                && left > 0
                && self.with_stack(budget, shared, Container::can_accept)
            {
                left -= 1;
                self.accept_one(index, budget, shared);
            }
        }
        left == 0
    }

    /// Whether a client that may be queued now fits: the next turn accepts it. Without room, the budget wakes the
    /// container when there is some.
    fn client_fits(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        self.has_listeners()
            && self.with_stack(budget, shared, |stack, cx| {
                let fits = stack.can_accept(cx);
                if !fits {
                    stack.wait_to_accept(cx.budget);
                }
                fits
            })
    }

    /// Takes one connection, a held one before a new one, and serves it.
    fn accept_one(&mut self, index: usize, budget: &mut Budget, shared: &mut Shared<'_>) {
        let listener = &mut self.listeners[index];
        let waited = listener.accepted.take().map(Ok);
        let (stream, peer) = match waited.unwrap_or_else(|| listener.socket.accept()) {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                listener.ready = false;
                return;
            }
            Err(e) if is_peers_doing(&e) => return,
            Err(e) => {
                if let Some(more) = self.accepts_fail.note(shared.now) {
                    log::warn!(
                        "container {}: accept on a published port: {e}{}",
                        self.name,
                        since(more)
                    );
                }
                listener.ready = false;
                listener.rest_until = Some(shared.now + ACCEPT_REST);
                return;
            }
        };
        self.begin(index, stream, peer, budget, shared);
    }

    /// Opens a flow for an accepted connection.
    fn begin(
        &mut self,
        index: usize,
        stream: TcpStream,
        peer: SocketAddr,
        budget: &mut Budget,
        shared: &mut Shared<'_>,
    ) {
        let guest_port = self.listeners[index].guest_port;
        let queued = sys::socket_queued_bytes(stream.as_fd()).map_or(0, |(_, received)| received);
        let begun = self
            .with_stack(budget, shared, |stack, cx| stack.on_accept(cx, guest_port, peer, queued));
        let (flow, caps) = match begun {
            Ok(begun) => begun,
            Err(NotAccepted::NoRoom) => {
                // The budget has room for a flow, but not for the bytes that its client has sent already. The backlog's
                // charge covers them until the retry.
                let listener = &mut self.listeners[index];
                listener.accepted = Some((stream, peer));
                listener.ready = false;
                listener.rest_until = Some(shared.now + ACCEPT_REST);
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
            self.with_stack(budget, shared, |stack, cx| stack.accept_failed(cx, flow));
        }
    }
}

/// Text for the occurrences not reported since the last report; empty when there are none.
fn since(left_out: u64) -> String {
    if left_out == 0 { String::new() } else { format!(" ({left_out} more since the last report)") }
}

/// The connection failed before it was accepted. The listener works: the next accept follows at once.
fn is_peers_doing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}
