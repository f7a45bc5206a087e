//! Containers of one daemon that reach each other, without a host socket between them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::support::{Netns, Running, echoed, text, until};

/// The addresses that a daemon gives to its first containers.
const FIRST: [&str; 2] = ["10.213.0.4", "fd00:0:0:213::4"];

/// Two containers of one worker.
struct Pair {
    daemon: Running,
    client: Netns,
    server: Netns,
}

impl Pair {
    fn new(options: &[&str]) -> Self {
        let daemon = Running::start(&["--workers", "1"]);
        let (server, client) = (Netns::new(), Netns::new());
        for (name, netns) in [("server", &server), ("client", &client)] {
            let path = netns.path();
            let args = ["attach", name, "--netns", &path];
            daemon.run(&[&args[..], options].concat());
        }
        Self { daemon, client, server }
    }

    fn connect(&self, to: &str, port: u16) -> io::Result<TcpStream> {
        let to: IpAddr = to.parse().unwrap();
        self.client.inside(|| TcpStream::connect(SocketAddr::new(to, port)))
    }

    /// Both are idle, and nothing is charged but their devices.
    fn assert_empty(&self) {
        for name in ["server", "client"] {
            until(|| self.daemon.stats(name)["flows"] == 0);
            let stats = self.daemon.stats(name);
            assert_eq!((&stats["rmem_bytes"], &stats["wmem_bytes"]), (&0.into(), &0.into()));
            assert!(stats["max_usage_bytes"].as_u64() <= stats["hard_bytes"].as_u64(), "{stats}");
            assert_eq!(stats["host_sockets"], 0, "no host socket");
            let counters = stats["counters"].as_object().unwrap();
            assert_eq!(counters["HostConnectFailed"], 0);
        }
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn siblings_have_names() {
    let pair = Pair::new(&[]);
    let dig = |args: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", pair.client.name(), "dig", "@10.213.0.3", "+short"]);
        let output = command.args(["+tries=1", "+time=5"]).args(args).output().unwrap();
        text(&output.stdout).trim().to_owned()
    };
    assert_eq!(dig(&["server", "A"]), FIRST[0]);
    assert_eq!(dig(&["SERVER.skbudget.internal", "AAAA"]), FIRST[1]);
    assert_eq!(dig(&["-x", FIRST[0]]), "server.skbudget.internal.");
    assert_eq!(dig(&["-x", FIRST[1]]), "server.skbudget.internal.");
    let status = |name: &str| dig(&["+noshort", "+comments", name, "A"]);
    assert!(status("none.skbudget.internal").contains("status: NXDOMAIN"));
    pair.daemon.run(&["detach", "server"]);
    assert!(status("server.skbudget.internal").contains("status: NXDOMAIN"));
    let stats = pair.daemon.stats("client");
    assert_eq!(
        (&stats["counters"]["DnsSiblings"], &stats["counters"]["DnsQuestions"]),
        (&6.into(), &0.into())
    );
    pair.daemon.end();
}

/// A server of both families in the container.
fn listen(netns: &Netns) -> TcpListener {
    netns.inside(|| TcpListener::bind("[::]:80").unwrap())
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn containers_exchange_streams_by_address() {
    let pair = Pair::new(&["--hard", "8MiB"]);
    let listener = listen(&pair.server);
    let serve = thread::spawn(move || {
        let streams: Vec<_> = (0..4)
            .map(|_| {
                let (mut stream, peer) = listener.accept().unwrap();
                let mut from = stream.try_clone().unwrap();
                let copy = move || {
                    let _ = io::copy(&mut from, &mut stream);
                    let _ = stream.shutdown(Shutdown::Write);
                };
                (peer, thread::spawn(copy))
            })
            .collect();
        streams.into_iter().map(|(peer, echo)| (peer, echo.join().unwrap()).0).collect::<Vec<_>>()
    });
    // Two at once of each family, with a half-close that is passed on.
    thread::scope(|scope| {
        for to in FIRST.iter().cycle().take(4) {
            scope.spawn(|| echoed(pair.connect(to, 80).unwrap(), 16 << 20));
        }
    });
    // The server sees the client's own address.
    for peer in serve.join().unwrap() {
        let ip = peer.ip().to_canonical().to_string();
        assert!(["10.213.0.5", "fd00:0:0:213::5"].contains(&ip.as_str()), "{ip}");
    }
    pair.assert_empty();
    pair.daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn refusals_and_resets_are_passed_on() {
    let pair = Pair::new(&[]);
    for to in FIRST {
        let refused = pair.connect(to, 81).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{to}: {refused}");
    }
    // No container has it.
    for to in ["10.213.0.77", "fd00:0:0:213::77"] {
        let unreachable = pair.connect(to, 80).unwrap_err();
        assert_eq!(unreachable.kind(), io::ErrorKind::HostUnreachable, "{to}: {unreachable}");
    }
    let counters = pair.daemon.stats("client")["counters"].clone();
    assert_eq!(counters["SiblingUnreachable"], 2, "{counters}");

    let listener = listen(&pair.server);
    let mut client = pair.connect(FIRST[0], 80).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"request").unwrap();
    let mut request = [0; 7];
    server.read_exact(&mut request).unwrap();
    // The server answers, and closes with unread data: a reset, after the answer.
    client.write_all(&[0; 100]).unwrap();
    server.write_all(b"answer").unwrap();
    until(|| server.peek(&mut [0; 100]).is_ok_and(|n| n == 100));
    drop(server);
    let mut answer = Vec::new();
    let error = client.read_to_end(&mut answer).unwrap_err();
    assert_eq!((answer, error.kind()), (b"answer".to_vec(), io::ErrorKind::ConnectionReset));
    until(|| pair.daemon.stats("server")["flows"] == 0);
    pair.daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_container_that_is_detached_resets_its_siblings_connections() {
    let pair = Pair::new(&[]);
    let listener = listen(&pair.server);
    let mut client = pair.connect(FIRST[0], 80).unwrap();
    let _server = listener.accept().unwrap();
    pair.daemon.run(&["detach", "server"]);
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    until(|| pair.daemon.stats("client")["flows"] == 0);
    // The address is free: nobody answers there.
    let gone = pair.connect(FIRST[0], 80).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::HostUnreachable);
    pair.daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn groups_do_not_see_each_other_unless_isolation_is_none() {
    let folder = std::env::temp_dir().join(crate::support::unique("config-"));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("skbudget.toml");
    for (isolation, visible) in [("group", false), ("none", true)] {
        let text = format!(
            "[daemon]\nworkers = 1\nisolation = '{isolation}'\n[[group]]\nname = 'web'\nhard = '1GiB'\n"
        );
        std::fs::write(&file, text).unwrap();
        let daemon = Running::start(&["--config", file.to_str().unwrap()]);
        let (server, client) = (Netns::new(), Netns::new());
        daemon.run(&["attach", "server", "--netns", &server.path(), "--group", "web"]);
        daemon.run(&["attach", "client", "--netns", &client.path()]);
        let listener = listen(&server);
        let connect = || client.inside(|| TcpStream::connect("10.213.0.4:80"));
        match connect() {
            Ok(_) => assert!(visible && listener.accept().is_ok()),
            Err(e) => assert!(!visible && e.kind() == io::ErrorKind::HostUnreachable, "{e}"),
        }
        daemon.run(&["set", "client", "group=web"]);
        connect().unwrap();
        daemon.end();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn iperf3_and_curl_run_between_containers_with_little_memory() {
    let pair = Pair::new(&["--hard", "2MiB", "--mtu", "1500"]);
    let path = std::env::temp_dir();
    let inside = |netns: &Netns, program: &str, args: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.name(), program]).args(args);
        command.current_dir(&path).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    for reversed in [&[][..], &["-R"]] {
        let server = inside(&pair.server, "iperf3", &["-s", "-1", "-p", "5201"]);
        let args = [&["-c", FIRST[0], "-n", "64M", "-P", "4", "-J"][..], reversed].concat();
        let mut result = Value::Null;
        // The server may not listen yet.
        until(|| {
            let output = inside(&pair.client, "iperf3", &args).wait_with_output().unwrap();
            result = serde_json::from_slice(&output.stdout).unwrap_or_default();
            // With an error it succeeds, too.
            output.status.success() && result["error"].is_null()
        });
        let received = result["end"]["sum_received"]["bytes"].as_u64();
        assert!(received.is_some_and(|bytes| bytes > 60 << 20), "{result}");
        assert!(server.wait_with_output().unwrap().status.success());
    }
    let mut web = inside(&pair.server, "python3", &["-m", "http.server", "-b", "::", "80"]);
    let url = format!("http://[{}]/", FIRST[1]);
    let args =
        ["-sS", "--fail", "--retry", "30", "--retry-connrefused", "--retry-delay", "1", &url];
    let page = inside(&pair.client, "curl", &args).wait_with_output().unwrap();
    assert!(text(&page.stdout).contains("Directory listing"), "{}", text(&page.stderr));
    web.kill().unwrap();
    web.wait().unwrap();
    for name in ["server", "client"] {
        let stats = pair.daemon.stats(name);
        assert!(stats["max_usage_bytes"].as_u64() <= stats["hard_bytes"].as_u64(), "{stats}");
    }
    pair.daemon.end();
}
