//! The inside of a simulated container: an independent, complete TCP/IP stack (smoltcp) and the applications on it.

mod device;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use skbudget_controller::Instant;
use skbudget_stack::{ContainerConfig, Ipv6Net};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::app::{App, Next};
use crate::frame::{Frame, FramePool};
use crate::guest::device::GuestDevice;

/// The far end of a link: a whole guest, or a test that builds frames itself.
pub trait Guest: std::fmt::Debug {
    /// Takes a frame from the stack; the next `poll` processes it.
    fn on_frame(&mut self, now: Instant, frame: Frame);
    /// Does all work that is possible now. At most `room` frames may be sent; they are appended to `out`.
    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>);
    /// When to poll again if no frame arrives.
    fn next_deadline(&self) -> Option<Instant>;
    /// True if the last `poll` stopped for lack of room.
    fn is_blocked(&self) -> bool;
    /// For callers that need the concrete type.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

/// Addresses and link of a guest.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Address of the guest.
    pub ip: Ipv4Addr,
    /// Length of its network's prefix, bits.
    pub prefix_len: u8,
    /// Address of the stack.
    pub gateway: Ipv4Addr,
    /// Address, prefix length, gateway; `None` if the MTU is too small for IPv6.
    pub ipv6: Option<(Ipv6Addr, u8, Ipv6Addr)>,
    /// Hardware address of the guest.
    pub mac: [u8; 6],
    /// IP MTU, bytes.
    pub mtu: u16,
    /// Leaves checksums to the device and accepts super-frames, as a kernel on a TAP with vnet_hdr.
    pub offload: bool,
    /// Seed of smoltcp's random numbers.
    pub seed: u64,
}

impl GuestConfig {
    /// The addresses of [`ContainerConfig::new`] and the given link.
    pub fn new(mtu: u16, offload: bool, seed: u64) -> Self {
        Self {
            ip: Ipv4Addr::new(10, 0, 2, 100),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            ipv6: ContainerConfig::has_ipv6(mtu).then(|| {
                let net = Ipv6Net::default();
                (net.guest, net.prefix_len, net.gateway)
            }),
            mac: [0x02, 0x67, 0x75, 0x65, 0x73, 0x74],
            mtu,
            offload,
            seed,
        }
    }
}

/// Receive and send buffer of one guest socket, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Receive buffer.
    pub rx: usize,
    /// Send buffer.
    pub tx: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { rx: 65_535, tx: 65_536 }
    }
}

/// How a connection of a guest is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To this address.
    Connect(SocketAddr),
    /// At this port.
    Listen(u16),
}

/// Names a connection of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnId(usize);

#[derive(Debug)]
struct Conn {
    open: Open,
    buffers: Buffers,
    handle: Option<SocketHandle>,
    app: Box<dyn App>,
    /// Next poll, unless its socket changes earlier.
    wake: Option<Instant>,
    finished: bool,
}

/// A guest that runs smoltcp.
pub struct SmolGuest {
    iface: Interface,
    sockets: SocketSet<'static>,
    device: GuestDevice,
    conns: Vec<Conn>,
    next_port: u16,
    deadline: Option<Instant>,
}

impl std::fmt::Debug for SmolGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmolGuest").field("conns", &self.conns.len()).finish_non_exhaustive()
    }
}

/// smoltcp and the applications run in turn until both are idle. More rounds than this in one instant are a livelock.
const ROUNDS_MAX: usize = 10_000;

impl SmolGuest {
    /// A guest without connections.
    pub fn new(config: &GuestConfig) -> Self {
        let mut device = GuestDevice::new(config);
        let mac = HardwareAddress::Ethernet(EthernetAddress(config.mac));
        let mut smol = Config::new(mac);
        smol.random_seed = config.seed;
        let mut iface = Interface::new(smol, &mut device, SmolInstant::ZERO);
        let cidr = IpCidr::new(IpAddress::Ipv4(config.ip), config.prefix_len);
        iface.update_ip_addrs(|addrs| addrs.push(cidr).unwrap_or(()));
        let _ = iface.routes_mut().add_default_ipv4_route(config.gateway);
        if let Some((ip, prefix_len, gateway)) = config.ipv6 {
            let cidr = IpCidr::new(IpAddress::Ipv6(ip), prefix_len);
            iface.update_ip_addrs(|addrs| addrs.push(cidr).unwrap_or(()));
            let _ = iface.routes_mut().add_default_ipv6_route(gateway);
        }
        Self {
            iface,
            sockets: SocketSet::new(Vec::new()),
            device,
            conns: Vec::new(),
            next_port: 49_152,
            deadline: None,
        }
    }

    /// Adds a connection that is opened at `at`.
    pub fn open(&mut self, at: Instant, open: Open, buffers: Buffers, app: Box<dyn App>) -> ConnId {
        let id = ConnId(self.conns.len());
        self.conns.push(Conn { open, buffers, handle: None, app, wake: Some(at), finished: false });
        self.deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
        id
    }

    /// The socket of a connection that is open.
    pub fn socket(&self, id: ConnId) -> Option<&tcp::Socket<'static>> {
        self.conns.get(id.0)?.handle.map(|h| self.sockets.get(h))
    }
    /// The application of a connection, open or not.
    pub fn app(&mut self, id: ConnId) -> Option<&mut dyn App> {
        Some(self.conns.get_mut(id.0)?.app.as_mut())
    }
    /// Number of connections in this state.
    pub fn count(&self, state: tcp::State) -> usize {
        let of = |c: &Conn| c.handle.map(|h| self.sockets.get::<tcp::Socket<'_>>(h).state());
        self.conns.iter().filter(|c| of(c) == Some(state)).count()
    }

    /// Creates the socket of a connection that is due.
    fn begin(&mut self, i: usize) {
        let conn = &mut self.conns[i];
        let rx = tcp::SocketBuffer::new(vec![0; conn.buffers.rx]);
        let tx = tcp::SocketBuffer::new(vec![0; conn.buffers.tx]);
        let mut socket = tcp::Socket::new(rx, tx);
        conn.app.configure(&mut socket);
        match conn.open {
            Open::Connect(to) => {
                let local = self.next_port;
                self.next_port = local.checked_add(1).unwrap_or(49_152);
                socket.connect(self.iface.context(), to, local).expect("a fresh socket connects");
            }
            Open::Listen(port) => socket.listen(port).expect("a fresh socket listens"),
        }
        conn.handle = Some(self.sockets.add(socket));
        conn.wake = None;
    }

    /// Polls the applications that are due, or all if sockets may have changed. Returns true if any did something.
    fn run_apps(&mut self, now: Instant, all: bool) -> bool {
        let mut busy = false;
        for i in 0..self.conns.len() {
            // A connection that was never opened has only its wake time.
            let due = self.conns[i].wake.is_some_and(|w| w <= now);
            if self.conns[i].finished || !(due || (all && self.conns[i].handle.is_some())) {
                continue;
            }
            if self.conns[i].handle.is_none() {
                self.begin(i);
                busy = true;
            }
            let conn = &mut self.conns[i];
            let Some(handle) = conn.handle else { continue };
            match conn.app.poll(now, self.sockets.get_mut(handle)) {
                Next::Wait { wake, busy: b } => {
                    conn.wake = wake;
                    busy |= b;
                }
                Next::Again { at } => {
                    self.sockets.remove(handle);
                    conn.handle = None;
                    conn.wake = Some(at);
                    busy = true;
                }
                Next::Finished => {
                    self.sockets.remove(handle);
                    conn.handle = None;
                    conn.wake = None;
                    conn.finished = true;
                }
            }
        }
        busy
    }

    /// Computes the next deadline.
    fn plan(&mut self, now: Instant) {
        let smol = if self.device.exhausted {
            // smoltcp's output waits for room; the world polls the guest when the link has some.
            None
        } else {
            self.iface.poll_at(smol(now), &self.sockets).map(|t| {
                let at = Instant(u64::try_from(t.total_micros()).unwrap_or(0) * 1000);
                // smoltcp counts microseconds: a rounded deadline must not be now.
                at.max(Instant(now.0 + 1000))
            })
        };
        let apps = self.conns.iter().filter_map(|c| c.wake).min();
        self.deadline = [smol, apps].into_iter().flatten().min();
    }
}

fn smol(t: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(t.0 / 1000).unwrap_or(i64::MAX))
}

impl Guest for SmolGuest {
    fn on_frame(&mut self, _now: Instant, frame: Frame) {
        self.device.rx.push_back(frame);
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        self.device.room = room;
        self.device.exhausted = false;
        // smoltcp's tokens borrow from the device alone, so the device holds the pool during the poll.
        std::mem::swap(&mut self.device.frames, frames);
        let mut all = false;
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "guest and applications never come to rest at {now:?}");
            let changed = self.iface.poll(smol(now), &mut self.device, &mut self.sockets);
            all |= changed == smoltcp::iface::PollResult::SocketStateChanged;
            if !self.run_apps(now, all || round == 0) {
                break;
            }
            all = false;
        }
        std::mem::swap(&mut self.device.frames, frames);
        out.append(&mut self.device.tx);
        self.plan(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_blocked(&self) -> bool {
        self.device.exhausted
    }
    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
