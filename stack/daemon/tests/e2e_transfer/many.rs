//! Many short connections, and nothing of them remains.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use skbudget::{Daemon, attach};

use crate::guest::{GATEWAY, LONG};
use crate::hard::{connect, container, report};
use crate::support::until;
use skbudget_testbed::streams::Streams;

const IN_SEQUENCE: u64 = 10_000;
const AT_ONCE: usize = 1000;
const HARD: u64 = 64 << 20;

/// The side that closes first. If it is the server, our stack closes first towards the guest: the TIME-WAIT entries
/// are then ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Container,
    Server,
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One connection after the other, with a byte in each direction.
fn in_sequence(netns: &OwnedFd, n: u64, first: First) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    let other = |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(b"y").unwrap();
        match first {
            First::Container => assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0),
            First::Server => {}
        }
    };
    thread::scope(|scope| {
        let server = scope.spawn(|| (0..n).for_each(|_| other(listener.accept().unwrap().0)));
        let client = || {
            for _ in 0..n {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0; 1]).unwrap();
                if first == First::Server {
                    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
                }
            }
        };
        attach::run_in(netns.as_fd(), client).unwrap();
        server.join().unwrap();
    });
}

/// After TIME-WAIT everything is as before the connections: flows, sockets, memory, descriptors, timers.
fn nothing_stays(daemon: &Daemon, before: &skbudget::stats::ContainerReport, fds: usize) -> u64 {
    let started = Instant::now();
    let rest = || {
        let now = report(daemon, true);
        now.flows == 0 && now.host_sockets == 0 && now.categories == before.categories
    };
    while !rest() && started.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(20));
    }
    let now = report(daemon, true);
    assert_eq!((now.flows, now.host_sockets, now.host_meminfo_bytes), (0, 0, Some(0)));
    assert_eq!(now.categories, before.categories);
    assert_eq!(now.meter.usage_bytes, before.meter.usage_bytes);
    assert_eq!(descriptors(), fds);
    // No timer is armed: only the guest wakes the container, and it sends nothing for a while.
    let quiet = || {
        let turns = report(daemon, false).turns;
        thread::sleep(Duration::from_millis(500));
        report(daemon, false).turns == turns
    };
    until(quiet);
    now.flows_total
}

fn warm(netns: &OwnedFd, daemon: &Daemon) -> (skbudget::stats::ContainerReport, usize) {
    in_sequence(netns, 1, First::Container);
    until(|| report(daemon, false).flows == 0);
    (report(daemon, true), descriptors())
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ten_thousand_in_sequence_leave_nothing() {
    for first in [First::Container, First::Server] {
        let (netns, daemon) = container(HARD, 1500);
        let (before, fds) = warm(&netns, &daemon);
        let started = Instant::now();
        in_sequence(&netns, IN_SEQUENCE, first);
        let seconds = started.elapsed().as_secs_f64();
        let total = nothing_stays(&daemon, &before, fds);
        println!(
            "many: in_sequence={IN_SEQUENCE} ends_first={first:?} seconds={seconds:.1} per_second={:.0} flows_total={total} \
             flows_left=0 bytes_left=0 descriptors_left=0",
            IN_SEQUENCE as f64 / seconds
        );
        assert_eq!(total, IN_SEQUENCE + 1);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_thousand_at_once_leave_nothing() {
    let (netns, daemon) = container(HARD, 1500);
    let (before, fds) = warm(&netns, &daemon);
    for (inside, outside) in [
        ((1000, Duration::ZERO), (1000, Duration::ZERO)),
        ((8, Duration::from_millis(1)), (1000, Duration::ZERO)),
        ((1000, Duration::ZERO), (8, Duration::from_millis(1))),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut servers = Streams::accept(listener, AT_ONCE, outside.0, outside.1);
        let server = thread::spawn(move || servers.run(LONG));
        let mut clients = connect(&netns, port, AT_ONCE, inside.0, inside.1);
        let started = Instant::now();
        let client = clients.run(LONG);
        let open = clients.all_open_after().unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let server = server.join().unwrap();
        drop(clients);
        for tally in [&client, &server] {
            assert_eq!((tally.complete, tally.wrong), (AT_ONCE, 0), "{tally:?}");
        }
        nothing_stays(&daemon, &before, fds);
        println!(
            "many: at_once={AT_ONCE} open_ms={} seconds={seconds:.1} complete={}/{} flows_left=0 bytes_left=0 \
             descriptors_left=0",
            open.as_millis(),
            client.complete,
            server.complete
        );
    }
}
