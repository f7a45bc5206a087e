//! Many honest connections are served and leave nothing behind, beside destinations that never answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use skbudget::{Daemon, attach};

use crate::descriptors;
use skbudget_sim::packet::GATEWAY;
use skbudget_testbed::network::{Network, container, report};

/// Bytes guaranteed to a flow (README, "How large --hard should be"), those of the SYN queue, and the largest device
/// queue.
const FLOW: u64 = 22_528;
const LIST: u64 = 32 << 10;
const QUEUE: u64 = 4 << 20;

const AT_ONCE: usize = 5000;
/// Each connection takes three descriptors of this process: the container's, the daemon's, the server's.
const ENDS: usize = 3;
const SPARE: usize = 200;

/// Caps and windows of an active host socket, bytes.
const AT_WORK: u64 = 256 << 10;

const LIVE: usize = 100;
const DEAD: usize = 200;
const REQUEST: usize = 100;
const EVERY: Duration = Duration::from_millis(20);
const LENGTH: Duration = Duration::from_secs(4);

/// The smallest limit for `flows` flows, plus `room` for the data that they move.
fn hard(flows: usize, room: u64) -> u64 {
    (flows as u64 * FLOW + LIST + QUEUE + room).next_multiple_of(4096)
}

fn most_descriptors() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    most as usize
}

/// Flows, sockets, bytes and descriptors are as before, and no timer wakes the container.
fn nothing_stays(daemon: &Daemon, before: &skbudget::stats::ContainerReport, fds: usize) {
    let rest = || {
        let now = report(daemon, "crowd");
        now.flows == 0 && now.host_sockets == 0 && now.categories == before.categories
    };
    crate::until(rest);
    let now = report(daemon, "crowd");
    assert_eq!((now.flows, now.host_sockets, now.host_meminfo_bytes), (0, 0, Some(0)));
    assert_eq!(now.categories, before.categories);
    assert_eq!(now.meter.usage_bytes, before.meter.usage_bytes);
    assert_eq!(descriptors(), fds);
    // No timer is armed: only the guest wakes the container, and it sends nothing for a while.
    crate::until(|| {
        let turns = report(daemon, "crowd").turns;
        thread::sleep(Duration::from_millis(500));
        report(daemon, "crowd").turns == turns
    });
}

fn connect_all(netns: &OwnedFd, port: u16, n: usize) -> Vec<TcpStream> {
    let to = SocketAddrV4::new(GATEWAY, port);
    let connect = || (0..n).map(|_| TcpStream::connect(to).unwrap()).collect();
    attach::run_in(netns.as_fd(), connect).unwrap()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn five_thousand_at_once_leave_nothing() {
    let n = AT_ONCE.min((most_descriptors() - descriptors() - SPARE) / ENDS);
    let hard = hard(n, 1 << 20);
    let world = Network::create();
    let daemon = world.daemon(2 * hard);
    let netns = container(&daemon, "crowd", hard, None, true);
    let listener = world.listen(80, 4096);
    let (before, fds) = (report(&daemon, "crowd"), descriptors());
    let started = Instant::now();
    let server = thread::spawn(move || {
        let all: Vec<TcpStream> = (0..n).map(|_| listener.accept().unwrap().0).collect();
        for mut stream in &all {
            let mut word = [0; 8];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        }
        for mut stream in &all {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
        listener
    });
    let all = connect_all(&netns, 80, n);
    let open = started.elapsed();
    let most = report(&daemon, "crowd");
    for (i, mut stream) in all.iter().enumerate() {
        stream.write_all(&(i as u64).to_le_bytes()).unwrap();
    }
    for (i, mut stream) in all.iter().enumerate() {
        let mut word = [0; 8];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), i as u64);
    }
    drop(all);
    let listener = server.join().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    nothing_stays(&daemon, &before, fds);
    println!(
        "crowd: at_once={n} hard={hard} open_ms={} seconds={seconds:.1} flows={} peak={} denied={} flows_left=0 \
         bytes_left=0 descriptors_left=0",
        open.as_millis(),
        most.flows,
        report(&daemon, "crowd").meter.max_usage_bytes,
        most.counters["AdmissionDenied"],
    );
    assert_eq!(most.flows as usize, n, "all at once");
    assert!(most.meter.max_usage_bytes <= hard);
    drop(listener);
    daemon.shutdown().unwrap();
}

/// Starts connections to many addresses that never answer, without waiting.
fn dead(netns: &OwnedFd) -> Vec<OwnedFd> {
    let begin = |i: usize| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1 + (i % 250) as u8), 80);
        assert_eq!(connect(fd.as_raw_fd(), &SockaddrIn::from(to)), Err(Errno::EINPROGRESS));
        fd
    };
    attach::run_in(netns.as_fd(), || (0..DEAD).map(begin).collect()).unwrap()
}

/// The p99 of the requests of all flows, from the time at which each was due.
fn ask(live: &[TcpStream], servers: &[TcpStream]) -> Duration {
    let took = thread::scope(|scope| {
        // One thread on each side serves all flows in turn: the path is measured, not the scheduling of a hundred
        // threads.
        scope.spawn(|| {
            let rounds = LENGTH.as_nanos() / EVERY.as_nanos();
            for mut server in (0..rounds).flat_map(|_| servers) {
                let mut bytes = [0; REQUEST];
                server.read_exact(&mut bytes).unwrap();
                server.write_all(&bytes).unwrap();
            }
        });
        let (began, mut took) = (Instant::now(), Vec::new());
        let rounds = (LENGTH.as_nanos() / EVERY.as_nanos()) as u32;
        let gap = EVERY / live.len() as u32;
        for (i, mut client) in (0..rounds).flat_map(|_| live).enumerate() {
            let due = gap * i as u32;
            let late = began.elapsed() >= due;
            thread::sleep(due.saturating_sub(began.elapsed()));
            let from = if late { due } else { began.elapsed() };
            client.write_all(&[i as u8; REQUEST]).unwrap();
            let mut bytes = [0; REQUEST];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, [i as u8; REQUEST]);
            took.push(began.elapsed() - from);
        }
        took
    });
    let mut took = took;
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn two_hundred_dead_destinations_beside_a_hundred_live_flows() {
    most_descriptors();
    // The guarantee of every flow, and the initial buffers of each active one.
    let hard = hard(LIVE + DEAD, LIVE as u64 * AT_WORK);
    let world = Network::create();
    let daemon = world.daemon(2 * hard);
    let fds = descriptors();
    let netns = container(&daemon, "crowd", hard, None, true);
    let listener = world.listen(80, 4096);
    let live = connect_all(&netns, 80, LIVE);
    let servers: Vec<_> = (0..LIVE).map(|_| listener.accept().unwrap().0).collect();
    let alone = ask(&live, &servers);
    let silent = dead(&netns);
    let beside = ask(&live, &servers);
    let during = report(&daemon, "crowd");
    println!(
        "dead: hard={hard} live={LIVE} dead={DEAD} flows={} p99_alone={alone:?} p99_beside={beside:?} ratio={:.2}",
        during.flows,
        beside.div_duration_f64(alone),
    );
    assert_eq!(during.flows as usize, LIVE + DEAD, "all of them are being connected to");
    assert_eq!(during.counters["HostConnectFailed"], 0);
    assert!(during.meter.max_usage_bytes <= hard);
    // Served flows are closed. The others end when the host gives up, or with their container.
    drop((silent, live, servers));
    crate::until(|| report(&daemon, "crowd").flows as usize == DEAD);
    daemon.remove("crowd").unwrap();
    assert_eq!(daemon.stats(false).unwrap().host.usage_bytes, 0);
    drop((listener, netns));
    assert_eq!(descriptors(), fds);
    daemon.shutdown().unwrap();
}
