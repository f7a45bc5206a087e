//! The published ports of a container: connections from the host.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use skbudget_controller::{Budget, Instant};
use skbudget_stack::{Container, DatagramId, NotAccepted};

use super::{ContainerSlot, TurnCtx, unreported};
use crate::listener::Backlog;
use crate::types::{DaemonError, Ports};
use crate::{sys, token};

/// Connections accepted in one turn, over all published ports of a container.
const ACCEPTS_PER_TURN: usize = 16;

/// Pause of a listener after accept(2) failed, most likely for want of descriptors: a retry at once would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One published port.
#[derive(Debug)]
pub(super) struct Listener {
    /// Identifies it in the tokens of its events.
    id: u32,
    socket: TcpListener,
    guest_port: u16,
    /// Charge of its backlog, bytes (H6).
    charged: u64,
    /// Connections may be queued: edge-triggered, as `device_ready`.
    ready: bool,
    /// Accepts are paused until this time.
    pub(super) paused_until: Option<Instant>,
    /// An accepted connection that holds more received bytes than the container has room for. It is the next to be
    /// served.
    accepted: Option<(TcpStream, SocketAddr)>,
}

impl ContainerSlot {
    /// Listens on more published ports. After an error on none of them.
    pub(in crate::worker) fn listen(
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
    pub(in crate::worker) fn publish_datagrams(
        &mut self,
        budget: &mut Budget,
        turn: &mut TurnCtx<'_>,
        socket: UdpSocket,
        guest_port: u16,
    ) -> io::Result<bool> {
        let addr = socket.local_addr()?;
        let ipv6 = addr.is_ipv6();
        let published = self
            .with_stack(budget, turn, |stack, cx| stack.publish_datagrams(cx, ipv6, guest_port));
        let Some((id, caps)) = published else { return Ok(false) };
        if let Err(e) = self.host.adopt_datagram(id, socket, caps) {
            self.with_stack(budget, turn, |stack, cx| stack.unpublish_datagrams(cx, id));
            return Err(e);
        }
        self.datagram_ports.push((addr, id));
        // Datagrams may have arrived before the socket was watched.
        self.stack.on_datagram_ready(id);
        Ok(true)
    }

    /// Refuses UDP ports that are not published, by their addresses on the host.
    pub(in crate::worker) fn has_datagram_ports(
        &self,
        ports: &[SocketAddr],
    ) -> Result<(), DaemonError> {
        let is_open = |addr: &&SocketAddr| self.datagram_ports.iter().any(|(own, _)| own == *addr);
        match ports.iter().find(|addr| !is_open(addr)) {
            Some(addr) => Err(DaemonError::NoSuchPort(*addr)),
            None => Ok(()),
        }
    }

    /// Closes published UDP ports, by their addresses on the host, and uncharges them.
    pub(in crate::worker) fn close_datagram_ports(
        &mut self,
        budget: &mut Budget,
        turn: &mut TurnCtx<'_>,
        ports: &[SocketAddr],
    ) {
        let closing = |(own, _): &mut (SocketAddr, DatagramId)| ports.contains(own);
        let closed: Vec<_> = self.datagram_ports.extract_if(.., closing).collect();
        for (_, id) in closed {
            self.with_stack(budget, turn, |stack, cx| stack.unpublish_datagrams(cx, id));
        }
    }

    /// The smallest number that no listener has.
    fn free_listener_id(&self) -> u32 {
        let is_free = |id: &u32| self.listeners.iter().all(|listener| listener.id != *id);
        (0..).find(is_free).unwrap_or_default()
    }

    /// Number of published ports.
    pub(in crate::worker) fn ports(&self) -> usize {
        self.listeners.len()
    }

    /// Closes published ports, by their addresses on the host, all or none. Returns the charge of their backlogs.
    pub(in crate::worker) fn close_ports(
        &mut self,
        ports: &[SocketAddr],
    ) -> Result<u64, DaemonError> {
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

    /// Whether a published port may have a connection queued.
    pub(in crate::worker) fn has_listeners(&self) -> bool {
        self.listeners.iter().any(|listener| listener.ready)
    }

    pub(in crate::worker) fn on_listener_event(&mut self, id: u32) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.id == id) {
            listener.ready = true;
        }
    }

    /// Accepts connections of the published ports. True when the bound was reached.
    pub(super) fn accept(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
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
    pub(super) fn client_fits(&mut self, budget: &mut Budget, turn: &mut TurnCtx<'_>) -> bool {
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
                    tracing::warn!(
                        container = %self.name, "accept on a published port: {e}{}",
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
                tracing::debug!(
                    container = %self.name, "published port {guest_port}: no port for {peer}"
                );
                return;
            }
        };
        // From here on the flow exists: the socket joins it, or the flow is closed.
        if let Err(e) = self.host.adopt(flow, stream, peer, caps) {
            tracing::debug!(container = %self.name, "published port {guest_port}: {e}");
            // A flow without a socket would receive no event and stay open for ever.
            self.with_stack(budget, turn, |stack, cx| stack.accept_failed(cx, flow));
        }
    }
}

/// The connection failed before it was accepted. The listener works: the next accept follows at once.
fn failed_before_accept(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}
