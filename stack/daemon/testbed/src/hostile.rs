//! A container that attacks: it builds its segments by hand and sends them through a packet socket in its namespace, at
//! the rate of its script. The attackers are those of the stack's own tests (`stack/tests/floods`), here against the
//! daemon, the kernel's devices and real time.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use nix::ifaddrs::getifaddrs;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use skbudget::attach;
use skbudget_sim::flood::{NEVER_READS, PUSHER, SILENT, SINK, Script};
use skbudget_sim::packet::{GUEST, Segment};
use skbudget_stack::controller::Instant;

use crate::network::Network;

/// Address of the kernel beside an attacker. It differs from the attacker's, so that the kernel does not answer for
/// connections that it does not know.
pub const KERNEL_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);

/// Longest pause between two checks for due segments.
const EVERY: Duration = Duration::from_millis(1);
/// Longest delay that is caught up after the thread did not run.
const CATCH_UP: Duration = Duration::from_millis(5);
/// Maximum number of frames received, and of segments sent, in one check.
const BATCH: usize = 256;

/// The result of an attack.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub frames: u64,
    /// Frames that did not fit the device's queue.
    pub lost: u64,
    pub took: Duration,
}

/// Executes a script in the namespace, until the script ends or `stop` is set.
pub fn attack(netns: BorrowedFd<'_>, script: &mut (impl Script + Send), stop: &AtomicBool) -> Sent {
    attach::run_in(netns, || carry_out(script, stop)).unwrap()
}

/// Gives the attacker's thread the lowest priority: the daemon cannot limit the CPU time of the attacker's own program.
fn yields_to_all() {
    let tid = nix::unistd::gettid().to_string();
    // Without `renice` the thread keeps its priority.
    let _ = Command::new("renice").args(["-n", "19", "-p", &tid]).stdout(Stdio::null()).status();
}

fn carry_out(script: &mut impl Script, stop: &AtomicBool) -> Sent {
    yields_to_all();
    let device = device();
    let (start, mut sent) = (Clock::now(), Sent::default());
    let (mut out, mut frame) = (Vec::new(), vec![0; 65_600]);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant(start.elapsed().as_nanos() as u64);
        for _ in 0..BATCH {
            let Ok(n) = recv(device.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) else { break };
            if let Some(seg) = to_guest(&frame[..n]) {
                script.on_segment(now, &seg, &mut out);
            }
        }
        let earliest = Instant(now.0.saturating_sub(CATCH_UP.as_nanos() as u64));
        while let Some(due) = script.next_deadline().filter(|due| *due <= now && out.len() < BATCH)
        {
            script.send_due(due.max(earliest), BATCH, &mut out);
        }
        for seg in out.drain(..) {
            match send(device.as_raw_fd(), &seg.frame(), MsgFlags::MSG_DONTWAIT) {
                Ok(_) => sent.frames += 1,
                Err(_) => sent.lost += 1,
            }
        }
        let Some(due) = script.next_deadline() else { break };
        thread::sleep(due.since(Instant(start.elapsed().as_nanos() as u64)).min(EVERY));
    }
    sent.took = start.elapsed();
    sent
}

/// Parses a frame for the guest; `None` for one that the namespace's kernel sent or for another address.
fn to_guest(frame: &[u8]) -> Option<Segment> {
    Segment::parse(frame).filter(|seg| seg.dst == GUEST)
}

/// Opens a packet socket on the namespace's device.
fn device() -> OwnedFd {
    let of_device = |i: nix::ifaddrs::InterfaceAddress| {
        let own = i.interface_name == attach::DEVICE_NAME;
        own.then_some(i.address?).and_then(|a| a.as_link_addr().copied())
    };
    let addr = getifaddrs().unwrap().find_map(of_device).expect("the container's device");
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
    bind(fd.as_raw_fd(), &addr).unwrap();
    fd
}

/// The servers that the attackers connect to: one thread for all connections.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// A listener with a full queue: further connections get no answer.
    _silent: (TcpListener, TcpStream),
}

impl Servers {
    pub fn start(network: &Network) -> Self {
        let listeners = [SINK, PUSHER, NEVER_READS].map(|port| (port, network.listen(port, 2048)));
        let silent = network.listen(SILENT, 0);
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, SILENT);
        let first = network.within(|| TcpStream::connect(to).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || serve(listeners.into(), &flag));
        Self { stop, thread: Some(thread), _silent: (silent, first) }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listeners: Vec<(u16, TcpListener)>, stop: &AtomicBool) {
    yields_to_all();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let watch = |fd: BorrowedFd<'_>, flags| {
        epoll.add(fd, EpollEvent::new(flags, fd.as_raw_fd() as u64)).unwrap();
    };
    for (_, listener) in &listeners {
        listener.set_nonblocking(true).unwrap();
        watch(listener.as_fd(), EpollFlags::EPOLLIN);
    }
    let mut streams: BTreeMap<u64, (u16, TcpStream)> = BTreeMap::new();
    let mut bytes = vec![0x5a; 64 << 10];
    let mut events = [EpollEvent::empty(); 64];
    while !stop.load(Ordering::Relaxed) {
        let n = epoll.wait(&mut events, EpollTimeout::from(50u16)).unwrap_or(0);
        for event in &events[..n] {
            let key = event.data();
            if let Some((port, stream)) = streams.get_mut(&key) {
                if !goes_on(*port, stream, &mut bytes) {
                    streams.remove(&key);
                }
                continue;
            }
            let Some((port, listener)) =
                listeners.iter().find(|(_, l)| l.as_raw_fd() as u64 == key)
            else {
                continue;
            };
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                watch(
                    stream.as_fd(),
                    match *port {
                        SINK => EpollFlags::EPOLLIN,
                        PUSHER => EpollFlags::EPOLLOUT,
                        _ => EpollFlags::empty(),
                    },
                );
                streams.insert(stream.as_raw_fd() as u64, (*port, stream));
            }
        }
    }
}

/// Serves a connection once. False when it is closed.
fn goes_on(port: u16, stream: &mut TcpStream, bytes: &mut [u8]) -> bool {
    let moved = match port {
        SINK => stream.read(bytes),
        PUSHER => stream.write(bytes),
        // An event of this port can only be the end.
        _ => return false,
    };
    match moved {
        Ok(n) => n > 0,
        Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
