//! UDP of programs in a container.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::network::{Echo, HOST, NARROW, Path, ROUTER};
use crate::support::{TempFile, free_port, script, succeed, text};
use crate::{LINKS, lacks};

/// Runs a Python program in a container; returns what it printed.
#[track_caller]
fn python(options: &[&str], program: &str) -> String {
    let file = TempFile::new("program");
    std::fs::write(&file.0, program).unwrap();
    succeed(&script(options, &format!("exec python3 {}", file.path())))
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn datagrams_of_every_size_are_echoed() {
    for (server, gateway, most) in
        [("127.0.0.1:0", "10.0.2.2", 65_507), ("[::1]:0", "fd00::2", 65_487)]
    {
        let echo = Echo::on(server);
        for link in LINKS {
            let program = format!(
                "import socket, os\n\
                 s = socket.socket(socket.{}, socket.SOCK_DGRAM)\n\
                 s.settimeout(10)\n\
                 s.connect(('{gateway}', {}))\n\
                 for size in [0, 1, 2, 1200, 1452, 1472, 1473, 9000, 30001, {most}]:\n\
                 \x20   data = os.urandom(size)\n\
                 \x20   s.send(data)\n\
                 \x20   assert s.recv(70000) == data, size\n\
                 print('all')",
                if gateway.contains(':') { "AF_INET6" } else { "AF_INET" },
                echo.port()
            );
            assert_eq!(python(&link, &program), "all\n", "{link:?} {gateway}");
        }
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_closed_port_and_a_shut_loopback_refuse() {
    let port = free_port();
    let program = |gateway: &str, family: &str| {
        format!(
            "import socket\n\
             s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
             s.settimeout(10)\n\
             s.connect(('{gateway}', {port}))\n\
             s.send(b'x')\n\
             try: s.recv(9)\n\
             except ConnectionRefusedError: print('refused')"
        )
    };
    for (gateway, family) in [("10.0.2.2", "AF_INET"), ("fd00::2", "AF_INET6")] {
        assert_eq!(python(&[], &program(gateway, family)), "refused\n");
        // With a server there, too.
        let any = if family == "AF_INET" { "127.0.0.1" } else { "::1" };
        let _server = UdpSocket::bind((any, port)).unwrap();
        assert_eq!(python(&["--no-host-loopback"], &program(gateway, family)), "refused\n");
    }
}

/// RFC 4787 REQ-8, and servers that answer from a port of their own.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn another_port_may_answer_and_another_address_may_not() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answer = std::thread::spawn(move || {
        let (_, from) = server.recv_from(&mut [0; 99]).unwrap();
        UdpSocket::bind("127.0.0.2:0").unwrap().send_to(b"stranger", from).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"other port", from).unwrap();
    });
    let program = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.settimeout(10)\n\
         s.sendto(b'x', ('10.0.2.2', {port}))\n\
         data, addr = s.recvfrom(99)\n\
         print(data.decode(), addr[0], addr[1] != {port})"
    );
    assert_eq!(python(&[], &program), "other port 10.0.2.2 True\n");
    answer.join().unwrap();
}

/// A run of iperf3 in a container: lost datagrams and all of them.
fn iperf(options: &[&str], args: &str) -> (f64, f64) {
    let port = free_port().to_string();
    let server = ["-s", "-1", "-B", "127.0.0.1", "-p", &port];
    let mut server = Command::new("iperf3").args(server).stdout(Stdio::null()).spawn().unwrap();
    let line = format!(
        "for i in $(seq 50); do iperf3 -u -c 10.0.2.2 -p {port} -l 1200 -t 2 -J {args} && break; sleep 0.05; done"
    );
    let output = succeed(&script(options, &line));
    // A failed try prints an object of its own before.
    let last = output.rfind("\n{").map_or(0, |at| at + 1);
    let json: serde_json::Value = serde_json::from_str(&output[last..]).unwrap();
    let sum = &json["end"]["sum"];
    let _ = server.wait();
    (sum["lost_packets"].as_f64().unwrap(), sum["packets"].as_f64().unwrap())
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn iperf_loses_little_in_both_directions() {
    for args in ["-b 50M", "-b 50M -R"] {
        let (lost, all) = iperf(&["--mtu", "1500"], args);
        println!("{args}: {lost} of {all} datagrams lost");
        // The rate is a fraction of what the relay carries; a busy machine may still delay a burst.
        assert!(all > 5000.0 && lost < all / 20.0, "{lost} of {all} lost");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn traceroute_finds_the_routers() {
    if lacks("traceroute") {
        return;
    }
    let _path = Path::new();
    let line = format!("traceroute -n -q 1 -w 2 -m 5 {HOST}");
    let output = succeed(&script(&[], &line));
    let hops: Vec<&str> =
        output.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["10.0.2.2", ROUTER, HOST], "{output}");
}

/// Path MTU discovery as QUIC does it: datagrams with DF, and the error that names the MTU.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_mtu_of_the_path_is_reported() {
    let path = Path::new();
    let serve = "import socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 s.bind(('0.0.0.0', 4433))\n\
                 print('ready', flush=True)\n\
                 while True:\n\
                 \x20   data, addr = s.recvfrom(70000)\n\
                 \x20   s.sendto(b'%d' % len(data), addr)";
    let mut server = path.on_host("python3");
    let mut server = server.args(["-c", serve]).stdout(Stdio::piped()).spawn().unwrap();
    server.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let program = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.settimeout(10)\n\
         s.setsockopt(0, 10, 2)\n\
         s.connect(('{HOST}', 4433))\n\
         s.send(b'a' * 1300)\n\
         print(s.recv(99).decode())\n\
         sizes = []\n\
         while not sizes or sizes[-1] > 1400:\n\
         \x20   try:\n\
         \x20       s.send(b'a' * 1440)\n\
         \x20       s.recv(99)\n\
         \x20   except OSError: pass\n\
         \x20   sizes.append(s.getsockopt(0, 14))\n\
         print(sizes[-1])\n\
         s.setsockopt(0, 10, 0)\n\
         s.send(b'a' * 8000)\n\
         print(s.recv(99).decode())"
    );
    let output = python(&[], &program);
    let _ = server.kill();
    let _ = server.wait();
    assert_eq!(output, format!("1300\n{NARROW}\n8000\n"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_flood_of_datagrams_stays_within_the_budget_beside_a_transfer() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = sink.local_addr().unwrap().port();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap().port();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let stats = TempFile::new("stats");
    let program = format!(
        "import socket, threading\n\
         def flood(n):\n\
         \x20   for i in range(20000):\n\
         \x20       if i % 200 == 0: s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         \x20       s.sendto(b'a' * 1200, ('10.0.2.2', {port}))\n\
         threads = [threading.Thread(target=flood, args=(n,)) for n in range(2)]\n\
         [t.start() for t in threads]\n\
         c = socket.create_connection(('10.0.2.2', {tcp}))\n\
         c.sendall(b'a' * (16 << 20))\n\
         c.close()\n\
         [t.join() for t in threads]"
    );
    python(&["--hard", "2MiB", "--stats-file", stats.path()], &program);
    assert_eq!(reader.join().unwrap(), 16 << 20);
    let stats: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&stats.0).unwrap()).unwrap();
    let container = &stats["containers"][0];
    let n = |key: &str| container[key].as_u64().unwrap_or_else(|| panic!("{key}: {container}"));
    assert!(n("max_usage_bytes") <= 2 << 20);
    let counter = |key: &str| container["counters"][key].as_u64().unwrap();
    println!(
        "{} sent, {} lost, {} mappings, {} evicted",
        counter("UdpOutDatagrams"),
        counter("UdpSndbufErrors"),
        counter("UdpMappingsOpened"),
        counter("UdpMappingsEvicted")
    );
    assert!(counter("UdpMappingsEvicted") > 100 && n("udp_mappings") <= 2);
    // The guest's kernel drops what its device's queue has no room for.
    assert!(counter("UdpOutDatagrams") + counter("UdpSndbufErrors") >= 5000);
    // What remains is charged to the mappings that are still open.
    assert!(n("udp_bytes") <= (2 << 20) / 8);
    drop(sink);
}

/// Multicast and broadcast do not leave the container.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_is_sent_to_many_does_not_leak() {
    let socket = UdpSocket::bind("0.0.0.0:5353").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.join_multicast_v4(&[224, 0, 0, 251].into(), &[127, 0, 0, 1].into()).unwrap();
    let line = "for to in 224.0.0.251 255.255.255.255 10.0.2.255; do echo x > /dev/udp/$to/5353; done; exit 0";
    let output = script(&[], line);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(socket.recv_from(&mut [0; 99]).is_err(), "nothing arrives");
}
