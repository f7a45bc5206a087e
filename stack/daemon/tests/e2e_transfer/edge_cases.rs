//! Starts and ends of connections: refused, unreachable, unanswered, half-closed, reset, kept alive.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::guest::{self, answers};
use crate::support::{BINARY, free_port, serve};
use skbudget_testbed::streams::{receive_all, send_all};

const AFTER_FIN: u64 = 100 << 20;

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn much_is_sent_after_the_container_ended_its_half() {
    let (port, server) = serve(1, |mut stream: TcpStream| {
        let checker = receive_all(&mut stream).unwrap();
        send_all(&mut stream, 2, AFTER_FIN).unwrap();
        (checker.got, checker.wrong)
    });
    let said = answers(&guest::run(&["--mtu", "1500"], &format!("end-first {port} 1000")));
    println!("half_close: first=container heard_after=\"{}\"", said[0]);
    assert_eq!(said, [format!("{AFTER_FIN} 0")]);
    assert_eq!(server.join().unwrap(), [(1000, 0)]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn much_is_sent_after_the_server_ended_its_half() {
    let (port, server) = serve(1, |mut stream: TcpStream| {
        send_all(&mut stream, 2, 1000).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let checker = receive_all(&mut stream).unwrap();
        (checker.got, checker.wrong)
    });
    let said = answers(&guest::run(&["--mtu", "1500"], &format!("end-last {port} {AFTER_FIN}")));
    let heard = server.join().unwrap();
    println!("half_close: first=server heard_after={} wrong={}", heard[0].0, heard[0].1);
    assert_eq!(said, ["1000 0"]);
    assert_eq!(heard, [(AFTER_FIN, 0)]);
}

/// The error of a connect, and the time until it, ms.
fn attempt(before: &[&str], options: &[&str], to: &str) -> (i32, u64) {
    let mut command = Command::new(before.first().unwrap_or(&BINARY));
    command.args(before.get(1..).unwrap_or(&[]));
    if !before.is_empty() {
        command.arg(BINARY);
    }
    command.arg("run").args(options).arg("--").args(guest::command(&format!("connect {to}")));
    let said = answers(&command.output().unwrap()).remove(0);
    let (code, millis) = said.split_once(' ').unwrap();
    (code.parse().unwrap(), millis.parse().unwrap())
}

/// Runs the arguments that follow in a network namespace of their own, which the script configures.
fn namespace(script: &str) -> Vec<String> {
    let line = format!("set -e; {script}; exec \"$@\"");
    ["unshare", "-n", "bash", "-c", &line, "-"].map(str::to_owned).to_vec()
}

/// Name, command before the binary, options, destination, expected error.
type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], String, Errno);

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn failures_keep_their_names() {
    let port = free_port();
    // One route for each kind of refusal.
    let routes = "ip link set lo up; ip addr add 192.0.2.1/24 dev lo; \
         ip route add unreachable 198.51.100.0/25; ip route add prohibit 198.51.100.128/25";
    let private = namespace(routes);
    let private: Vec<&str> = private.iter().map(String::as_str).collect();
    let cases: [Case<'_>; 7] = [
        ("refused", &[], &[], format!("10.0.2.2 {port}"), Errno::ECONNREFUSED),
        (
            "forbidden",
            &[],
            &["--no-host-loopback"],
            format!("10.0.2.2 {port}"),
            Errno::ECONNREFUSED,
        ),
        ("nobody_there", &[], &[], "10.0.2.77 80".to_owned(), Errno::EHOSTUNREACH),
        ("no_route", &private, &[], "203.0.113.1 80".to_owned(), Errno::ENETUNREACH),
        ("unreachable", &private, &[], "198.51.100.1 80".to_owned(), Errno::EHOSTUNREACH),
        ("prohibited", &private, &[], "198.51.100.200 80".to_owned(), Errno::ENETUNREACH),
        ("refused_elsewhere", &private, &[], "192.0.2.1 80".to_owned(), Errno::ECONNREFUSED),
    ];
    for (what, before, options, to, expected) in cases {
        let (code, millis) = attempt(before, options, &to);
        let errno = Errno::from_raw(code);
        println!("connect: case={what} errno={errno:?} ms={millis}");
        assert_eq!(errno, expected, "{what}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn silence_stays_silence() {
    // A neighbour with a hardware address that no device has. Both kernels give up after two attempts, our stack a
    // little earlier.
    let silent = "ip link add name va type veth peer name vb; ip link set va up; ip link set vb up; \
         ip addr add 192.0.2.1/24 dev va; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va; \
         echo 1 > /proc/sys/net/ipv4/tcp_syn_retries";
    let private = namespace(silent);
    let inner = guest::command("connect 192.0.2.9 80");
    let quoted: Vec<_> = inner.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("echo 2 > /proc/sys/net/ipv4/tcp_syn_retries; exec {}", quoted.join(" "));
    let mut command = Command::new(&private[0]);
    command.args(&private[1..]).args([BINARY, "run", "--", "bash", "-c", &line]);
    let said = answers(&command.output().unwrap()).remove(0);
    println!("connect: case=silent errno_ms=\"{said}\"");
    assert_eq!(said.split_once(' ').unwrap().0, libc::ETIMEDOUT.to_string());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn resets_reach_the_other_side() {
    let (port, server) = serve(1, |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &now).unwrap();
    });
    answers(&guest::run(&[], &format!("expect-reset {port}")));
    server.join().unwrap();
    let (port, server) = serve(1, |mut stream: TcpStream| {
        stream.write_all(b"x").unwrap();
        stream.read_to_end(&mut Vec::new()).map_err(|e| e.kind())
    });
    answers(&guest::run(&[], &format!("reset {port}")));
    assert_eq!(server.join().unwrap(), [Err(ErrorKind::ConnectionReset)]);
    println!("reset: to_container=ECONNRESET to_server=ECONNRESET");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_idle_connection_is_probed_and_stays() {
    let (netns, daemon) = crate::hard::container_with(16 << 20, 1500, |config| {
        // Short, but the kernel answers only two probes a second.
        config.keepalive = Duration::from_millis(600);
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = || TcpStream::connect((guest::GATEWAY, port)).unwrap();
    let netns_fd = std::os::fd::AsFd::as_fd(&netns);
    let mut client = skbudget::attach::run_in(netns_fd, connect).unwrap();
    let mut server = listener.accept().unwrap().0;
    let started = Instant::now();
    let probes = || crate::hard::report(&daemon, false).counters["TCPKeepAlive"];
    crate::support::until(|| probes() >= 3);
    println!("keep_alive: probes={} seconds={:.1}", probes(), started.elapsed().as_secs_f64());
    client.write_all(b"up").unwrap();
    server.write_all(b"down").unwrap();
    let (mut up, mut down) = ([0; 2], [0; 4]);
    server.read_exact(&mut up).unwrap();
    client.read_exact(&mut down).unwrap();
    assert_eq!((&up, &down), (b"up", b"down"));
}
