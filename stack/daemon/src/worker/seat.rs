//! One container in a worker: its stack, its device, its host sockets, its published ports.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use skbudget_controller::{Budget, Instant};
use skbudget_stack::{ChunkPool, Container, Ctx, Tap, Undelivered};

use super::quiet::Quiet;
use super::rest::Recent;
use crate::daemon::Publish;
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::{sys, token};

/// Frames and bytes taken from one device in one turn: small enough that what was read is still in the cache when it
/// is relayed, and that no other container waits long; large enough that the turn's fixed cost does not show.
const FRAMES_PER_TURN: usize = 32;
const BYTES_PER_TURN: usize = 512 << 10;
/// Under pressure they are small and many, each with an answer of its own.
const FRAMES_PER_PRESSED_TURN: usize = 8;

const ACCEPTS_PER_TURN: usize = 16;

/// After a failed accept (no descriptors left, most likely) the listener rests: asking at once would fail again.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What the parts of a turn share.
pub(super) struct Shared<'a> {
    pub(super) now: Instant,
    pub(super) pool: &'a mut ChunkPool,
    pub(super) scratch: &'a mut [u8],
}

#[derive(Debug)]
pub(super) struct Seat {
    pub(super) name: String,
    pub(super) budget: usize,
    pub(super) stack: Container,
    pub(super) host: HostSockets,
    pub(super) tap: Tap,
    listeners: Vec<Listener>,
    /// Failures of this process's own that may go on for long: no descriptor is left, most likely.
    accepts_fail: Quiet,
    connects_fail: Quiet,
    /// The device may hold frames: edge-triggered, so remembered until it said that it holds none.
    device_ready: bool,
    /// In the worker's list of what runs next.
    pub(super) active: bool,
    /// As it stands in the worker's list of deadlines.
    pub(super) deadline: Option<Instant>,
    /// It leaves the thread to its neighbours until then.
    pub(super) rest_until: Option<Instant>,
    pub(super) cpu_ns: u64,
    pub(super) turns: u64,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    guest_port: u16,
    /// Connections may wait.
    ready: bool,
    rest_until: Option<Instant>,
    /// A connection that holds more than the container has room for: the next to begin.
    accepted: Option<(TcpStream, SocketAddr)>,
}

/// What a turn of a seat leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing to do before the next event or deadline.
    Idle,
    /// It stopped at a bound.
    Again,
    /// The device is gone.
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
            accepts_fail: Quiet::default(),
            connects_fail: Quiet::default(),
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

    /// Its device may be closed later than its place is given to another.
    pub(super) fn unregister(&self, registry: &Registry) {
        let fd = self.tap.as_fd().as_raw_fd();
        // One that was never registered has nothing to undo.
        let _ = registry.deregister(&mut SourceFd(&fd));
    }

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

    /// Device, published ports, stack: in this order, with a bound on each.
    pub(super) fn turn(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> After {
        self.turns += 1;
        self.tap.set_now(shared.now);
        let frames_left = self.take_frames(budget, shared);
        let accepts_left = self.accept(budget, shared);
        let stack_left = self.stack_turn(budget, shared);
        match self.tap.gone() {
            true => After::Gone,
            false if frames_left || accepts_left || stack_left => After::Again,
            false => After::Idle,
        }
    }

    /// Timers and flows.
    pub(super) fn stack_turn(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let left = self.with_stack(budget, shared, |stack, cx| stack.turn(cx));
        if let Some(errno) = self.host.take_lack()
            && let Some(more) = self.connects_fail.note(shared.now)
        {
            // The container's kernel sends its SYN again: the connection begins once there is what it lacks.
            let why = errno.desc();
            log::warn!("container {}: no connection could begin: {why}{}", self.name, since(more));
        }
        left
    }

    /// After a turn that began connections.
    pub(super) fn hold_admissions(&mut self, recent: &Recent, index: u16, now: Instant) {
        let begun = self.host.take_begun();
        if let Some(rest) = recent.rest_of_connects(index, begun, now) {
            self.stack.hold_admissions(now + rest);
        }
    }

    /// It runs when its rest is over; what happens until then is remembered.
    pub(super) fn rests(&mut self, now: Instant) -> bool {
        self.rest_until = self.rest_until.filter(|&until| until > now);
        self.rest_until.is_some()
    }

    /// The next moment something has to be done here though nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.rest_until.is_some() {
            return self.rest_until;
        }
        let rests = self.listeners.iter().filter_map(|l| l.rest_until);
        rests.chain(self.stack.next_deadline()).min()
    }

    pub(super) fn undelivered(&mut self) -> Undelivered {
        self.stack.undelivered(&mut self.host)
    }

    /// Everything the container held goes back; its peers see a reset.
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

    /// True when the device may hold more.
    fn take_frames(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let Self { stack, host, tap, device_ready, .. } = self;
        let frames =
            if budget.under_pressure() { FRAMES_PER_PRESSED_TURN } else { FRAMES_PER_TURN };
        let mut bytes = 0;
        for _ in 0..frames {
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
                    // A device that is gone says so by itself, one that is down answers EIO until it comes up.
                    if e.kind() != io::ErrorKind::WouldBlock && !tap.gone() {
                        log::debug!("device: {e}");
                    }
                }
            }
        }
        *device_ready
    }

    fn accept(&mut self, budget: &mut Budget, shared: &mut Shared<'_>) -> bool {
        let mut left = ACCEPTS_PER_TURN;
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.rest_until.is_some_and(|until| until <= shared.now) {
                listener.rest_until = None;
                listener.ready = true;
            }
            // While the container has no room, the host's backlog holds the client.
            while self.listeners[index].ready && left > 0 && self.stack.can_accept(budget) {
                left -= 1;
                self.accept_one(index, budget, shared);
            }
        }
        left == 0
    }

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
        let Some((flow, caps)) = begun else {
            // There is room for a flow, but not for what its client has sent already. It is charged where it is.
            let listener = &mut self.listeners[index];
            listener.accepted = Some((stream, peer));
            listener.ready = false;
            listener.rest_until = Some(shared.now + ACCEPT_REST);
            return;
        };
        if let Err(e) = self.host.adopt(flow, stream, peer, caps) {
            log::debug!("container {}: published port {guest_port}: {e}", self.name);
            // No event would ever tell a flow without a socket.
            self.with_stack(budget, shared, |stack, cx| stack.accept_failed(cx, flow));
        }
    }
}

/// How often a failure was not reported.
fn since(left_out: u64) -> String {
    if left_out == 0 {
        String::new()
    } else {
        format!(" ({left_out} times more since the last report)")
    }
}

/// The connection failed before it was accepted: the listener is well.
fn is_peers_doing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}
