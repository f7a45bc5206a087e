//! The daemon as a library: several containers, own and shared budgets, a level above them, and their end. A container
//! is a namespace that threads of the test enter: `cargo test -p skbudget --test library -- --ignored`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use skbudget::attach::{self, GuestNet};
use skbudget::stats::ContainerReport;
use skbudget::{BudgetRef, ContainerSpec, Daemon, DaemonConfig, DaemonError, DaemonEvent, Publish};
use skbudget_controller::{BudgetConfig, LevelConfig, Limits, Rules, SockLimits};
use skbudget_stack::ContainerConfig;

const HARD: u64 = 4 << 20;

fn budget(hard: u64) -> BudgetConfig {
    BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(hard, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 100,
    }
}

/// A network namespace, and the specification with which a daemon serves it.
fn container(name: &str, budget: BudgetRef) -> (OwnedFd, ContainerSpec) {
    let config = ContainerConfig::new(1500, true, Some(HARD), [1, 2]);
    let netns = attach::create_netns().unwrap();
    let tap = attach::tap_into(netns.as_fd(), &GuestNet::from(&config)).unwrap();
    let name = name.to_owned();
    let spec =
        ContainerSpec { name, tap, config, budget, publish: Vec::new(), outbound_addr: None };
    (netns, spec)
}

/// Opens `n` connections from the namespace to the host's loopback.
fn connect(netns: &OwnedFd, port: u16, n: usize) -> Vec<TcpStream> {
    let gateway = SocketAddr::from((Ipv4Addr::new(10, 0, 2, 2), port));
    let connect = || (0..n).map(|_| TcpStream::connect(gateway).unwrap()).collect();
    attach::run_in(netns.as_fd(), connect).unwrap()
}

fn report(daemon: &Daemon, name: &str) -> ContainerReport {
    let all = daemon.stats(true).unwrap().containers;
    all.into_iter().find(|container| container.name == name).unwrap()
}

/// A listener on the host's loopback, and its port.
fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[track_caller]
fn echoes(client: &mut TcpStream, server: &mut TcpStream) {
    let mut bytes = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut bytes).unwrap();
    server.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn containers_with_budgets_of_their_own_and_shared() {
    let host = LevelConfig { low: 4096, soft: 6144, hard: 8192 };
    let config = DaemonConfig { workers: 2, host: Some(host), ..DaemonConfig::default() };
    let daemon = Daemon::new(config).unwrap();
    let pool = daemon.add_budget("pool", budget(2 * HARD)).unwrap();
    let (listener, port) = listener();
    let mut all = Vec::new();
    for (name, budget) in [
        ("a", BudgetRef::Own(budget(HARD))),
        ("b", BudgetRef::Shared(pool)),
        ("c", BudgetRef::Shared(pool)),
    ] {
        let (netns, spec) = container(name, budget);
        daemon.add_container(spec).unwrap();
        let mut client = connect(&netns, port, 1).remove(0);
        let mut server = listener.accept().unwrap().0;
        echoes(&mut client, &mut server);
        all.push((netns, client, server));
    }
    let stats = daemon.stats(false).unwrap();
    let budgets: Vec<_> = stats.containers.iter().map(|c| c.budget.as_str()).collect();
    assert_eq!(budgets, ["a", "pool", "pool"]);
    assert!(stats.containers.iter().all(|c| c.flows == 1 && c.bytes_from_guest >= 5));
    assert_eq!(stats.host.hard_bytes, Some(8192 * 4096));
    let usage = stats.containers[0].meter.usage_bytes + stats.containers[1].meter.usage_bytes;
    assert_eq!(stats.host.usage_bytes, usage);
    // One container is removed: the other member of its pool does not notice, and its memory is uncharged.
    daemon.remove("b").unwrap();
    let (_, client, server) = &mut all[2];
    echoes(client, server);
    let left = daemon.stats(false).unwrap();
    assert!(left.host.usage_bytes < usage, "{left:?}");
    assert_eq!(left.containers.len(), 2);
    daemon.shutdown().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_name_is_taken_until_its_container_ends_by_itself() {
    let (events, happened) = mpsc::sync_channel(16);
    let config = DaemonConfig { events: Some(events), ..DaemonConfig::default() };
    let daemon = Daemon::new(config).unwrap();
    let own = || BudgetRef::Own(budget(HARD));
    let (netns, spec) = container("one", own());
    daemon.add_container(spec).unwrap();
    let (_other, spec) = container("one", own());
    assert!(matches!(daemon.add_container(spec), Err(DaemonError::NameInUse(_))));
    assert!(matches!(daemon.remove("two"), Err(DaemonError::NoSuchContainer(_))));

    let (listener, port) = listener();
    let client = connect(&netns, port, 1);
    let mut server = listener.accept().unwrap().0;
    // The test's last reference to the namespace: sockets hold it, too.
    drop((client, netns));
    assert_eq!(happened.recv().unwrap(), DaemonEvent::ContainerEnded { name: "one".to_owned() });
    let _ = server.read(&mut [0; 1]);
    let stats = daemon.stats(false).unwrap();
    assert!(stats.containers.is_empty());
    assert_eq!(stats.host.usage_bytes, 0);
    // Its last report is kept until the name is used again.
    let last = daemon.ended("one").unwrap().unwrap();
    assert_eq!((last.report.flows, last.report.flows_total, last.lost_bytes), (0, 1, 0));
    assert_eq!(last.report.meter.usage_bytes, last.report.categories.dev_bytes);
    let (_netns, spec) = container("one", own());
    daemon.add_container(spec).unwrap();
    assert!(daemon.ended("one").unwrap().is_none());
    daemon.remove("one").unwrap();
    assert!(daemon.ended("one").is_err());
}

/// The device of the first container still exists then: the container that takes the name must keep it.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_name_is_free_as_soon_as_its_container_is_forgotten() {
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let own = || BudgetRef::Own(budget(HARD));
    let (_first, spec) = container("one", own());
    daemon.add_container(spec).unwrap();
    let (_second, spec) = container("one", own());
    thread::scope(|scope| {
        let removed = scope.spawn(|| daemon.remove("one"));
        while daemon.flows("one").is_ok() {
            thread::yield_now();
        }
        daemon.add_container(spec).unwrap();
        removed.join().unwrap().unwrap();
    });
    assert_eq!(daemon.stats(false).unwrap().containers.len(), 1);
    daemon.remove("one").unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn hard_is_hard_and_covers_what_the_kernel_holds() {
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let (netns, spec) = container("hog", BudgetRef::Own(budget(HARD)));
    daemon.add_container(spec).unwrap();
    let (listener, port) = listener();
    // No server reads, so every buffer on the path fills.
    let clients = connect(&netns, port, 40);
    let servers: Vec<_> = (0..40).map(|_| listener.accept().unwrap().0).collect();
    let writers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let chunk = vec![7; 1 << 20];
                let n = (0..2).map(|_| client.write(&chunk).unwrap()).sum::<usize>();
                client.shutdown(Shutdown::Write).unwrap();
                n
            })
        })
        .collect();
    for _ in 0..100 {
        let hog = report(&daemon, "hog");
        assert!(hog.meter.max_usage_bytes <= HARD, "{hog:?}");
        let (held, charged) = (hog.host_meminfo_bytes.unwrap(), hog.categories.host_bytes);
        assert!(held <= charged, "held {held}, charged {charged}");
        thread::sleep(Duration::from_millis(2));
    }
    let read =
        |mut server: TcpStream| thread::spawn(move || server.read_to_end(&mut Vec::new()).unwrap());
    let readers: Vec<_> = servers.into_iter().map(read).collect();
    let sent: usize = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    let received: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    assert_eq!(sent, received);
    let hog = report(&daemon, "hog");
    assert_eq!(hog.counters["AdmissionDenied"], 0);
    assert!(hog.meter.max_usage_bytes <= HARD);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn limits_change_live_and_published_ports_wait_for_room() {
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let (netns, mut spec) = container("web", BudgetRef::Own(budget(HARD)));
    let publish = Publish::bind("127.0.0.1:0".parse().unwrap(), 80).unwrap();
    let outside = publish.local_addr().unwrap();
    spec.publish.push(publish);
    let (queue, least) =
        (spec.config.dev_queue_bytes, ContainerConfig::least_hard_bytes(1500, true));
    daemon.add_container(spec).unwrap();
    let inside =
        attach::run_in(netns.as_fd(), || TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();

    let mut client = TcpStream::connect(outside).unwrap();
    let mut server = inside.accept().unwrap().0;
    echoes(&mut client, &mut server);
    // Room for this flow only: the next client waits in the host's backlog.
    let limits = Limits::from_bytes(queue + least / 4, None, None).unwrap();
    daemon.set_limits("web", limits).unwrap();
    let mut waiting = TcpStream::connect(outside).unwrap();
    echoes(&mut client, &mut server);
    assert_eq!(report(&daemon, "web").flows_total, 1);
    daemon.set_limits("web", budget(HARD).limits).unwrap();
    let mut second = inside.accept().unwrap().0;
    echoes(&mut waiting, &mut second);
}

/// Whether the server's first byte arrives within this time.
fn served(client: &mut TcpStream, within_ms: u64) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(within_ms))).unwrap();
    client.read(&mut [0; 1]).is_ok_and(|n| n == 1)
}

/// Clients of `to` until one of them waits: idle flows have given up by then what they can.
fn clients_until_one_waits(to: SocketAddr) -> (Vec<TcpStream>, TcpStream) {
    let mut all = Vec::new();
    loop {
        let mut client = TcpStream::connect(to).unwrap();
        if !served(&mut client, 2500) {
            return (all, client);
        }
        all.push(client);
    }
}

/// Closes each with a RST.
fn reset(streams: impl IntoIterator<Item = TcpStream>) {
    use nix::sys::socket::{setsockopt, sockopt};
    for stream in streams {
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_client_that_waits_is_served_when_any_member_of_the_budget_makes_room() {
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let pool = daemon.add_budget("pool", budget(HARD)).unwrap();
    let (web, mut spec) = container("web", BudgetRef::Shared(pool));
    spec.publish.push(Publish::bind("127.0.0.1:0".parse().unwrap(), 80).unwrap());
    let outside = spec.publish[0].local_addr().unwrap();
    daemon.add_container(spec).unwrap();
    let (other, spec) = container("other", BudgetRef::Shared(pool));
    daemon.add_container(spec).unwrap();
    let (listener, port) = listener();
    let others = connect(&other, port, 8);
    let _servers: Vec<_> = (0..8).map(|_| listener.accept().unwrap().0).collect();
    let inside = attach::run_in(web.as_fd(), || TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    thread::spawn(move || {
        let mut held = Vec::new();
        for mut server in inside.incoming().map_while(Result::ok) {
            let _ = server.write_all(b"x");
            held.push(server);
        }
    });
    // Another container makes room.
    let (mut clients, mut waiting) = clients_until_one_waits(outside);
    reset(others);
    assert!(served(&mut waiting, 1000), "{} clients before", clients.len());
    clients.push(waiting);
    // Its own flow does.
    let (more, mut waiting) = clients_until_one_waits(outside);
    reset(clients.pop());
    assert!(served(&mut waiting, 1000), "{} and {} clients before", clients.len(), more.len());
}

/// The lines of `ss` for the connections of this namespace with this local port, memory and options included.
fn sockets(port: u16) -> Vec<String> {
    let mut ss = Command::new("ss");
    let out = ss.args(["-HtmniO", "state", "established", &format!("sport = :{port}")]).output();
    let out = String::from_utf8(out.unwrap().stdout).unwrap();
    out.lines().map(str::to_owned).collect()
}

/// The number after `key` in a line of `ss`.
fn number(line: &str, key: &str) -> u64 {
    let after = line.split_once(key).unwrap_or_else(|| panic!("{key} in {line}")).1;
    after[..after.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn backlogs_hold_no_more_than_is_charged_for_them() {
    // Small and large buffers. Writes of one byte use the most memory for their payload.
    for (hard, ports, write) in [(1 << 20, 3, 4000), (2 << 20, 1, 1), (64 << 20, 2, 65_536)] {
        let daemon = Daemon::new(DaemonConfig::default()).unwrap();
        let (_netns, mut spec) = container("web", BudgetRef::Own(budget(hard)));
        spec.config = ContainerConfig::new(1500, true, Some(hard), [1, 2]);
        let bind = || Publish::bind("127.0.0.1:0".parse().unwrap(), 80).unwrap();
        spec.publish = (0..ports).map(|_| bind()).collect();
        let outside: Vec<SocketAddr> =
            spec.publish.iter().map(|publish| publish.local_addr().unwrap()).collect();
        daemon.add_container(spec).unwrap();
        let charged = report(&daemon, "web");
        assert!(charged.categories.listen_bytes > 0);
        assert_eq!(charged.categories.listen_bytes, charged.categories.host_bytes);
        assert!(charged.meter.max_usage_bytes >= charged.categories.listen_bytes);
        // From now on no flow has room: every client waits in a backlog.
        daemon.set_limits("web", Limits::from_bytes(64 << 10, None, None).unwrap()).unwrap();
        let mut clients: Vec<TcpStream> =
            outside.iter().flat_map(|to| (0..40).map(|_| begin_connect(*to))).collect();
        let bytes = vec![7; write];
        for _ in 0..300 {
            for client in &mut clients {
                while client.write(&bytes).is_ok_and(|n| n == bytes.len()) && write > 1 {}
            }
            thread::sleep(Duration::from_millis(1));
        }
        let waiting: Vec<String> = outside.iter().flat_map(|to| sockets(to.port())).collect();
        // Adds the socket and its request, which `ss` does not count.
        let held: u64 =
            waiting.iter().map(|line| number(line, "(r") + number(line, ",f") + 2800).sum();
        let listen = charged.categories.listen_bytes;
        println!(
            "{ports} ports, --hard {hard}: {} wait and hold {held}, {listen} charged",
            waiting.len()
        );
        assert!(waiting.len() >= 3 * ports, "{} connections wait", waiting.len());
        assert!(waiting.len() <= 33 * ports, "{} connections wait", waiting.len());
        assert!(held <= listen, "{held} held, {listen} charged");
        assert_eq!(report(&daemon, "web").flows, 0);
    }
}

/// A client with a connect in progress.
fn begin_connect(to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true).unwrap();
    stream
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn accepted_connections_have_a_window_scale() {
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let (netns, mut spec) = container("web", BudgetRef::Own(budget(64 << 20)));
    spec.publish.push(Publish::bind("127.0.0.1:0".parse().unwrap(), 80).unwrap());
    let outside = spec.publish[0].local_addr().unwrap();
    daemon.add_container(spec).unwrap();
    let inside =
        attach::run_in(netns.as_fd(), || TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    let mut client = TcpStream::connect(outside).unwrap();
    // More than the floor of a host socket, before the guest reads.
    client.write_all(&[7; 100_000]).unwrap();
    let mut server = inside.accept().unwrap().0;
    let line = sockets(outside.port()).pop().expect("the accepted socket");
    let scale = line.split_once("wscale:").unwrap().1.split_once(',').unwrap().1;
    assert!(scale.starts_with(|c: char| ('2'..='9').contains(&c)), "{line}");
    let web = report(&daemon, "web");
    assert!(web.host_meminfo_bytes.unwrap() <= web.categories.host_bytes, "{web:?}");
    server.read_exact(&mut vec![0; 100_000]).unwrap();
    echoes(&mut client, &mut server);
}
