//! IPv6 with the kernel's stack in the container: streams, published ports, errors, pings and fragments.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use crate::support::{
    BINARY, Running, TempFile, fetch, free_port, pattern, script, sha256, skbudget, succeed, text,
    until,
};
use crate::{BULK, LINKS};

/// Serves this number of HTTP requests on ::1, each with the same body.
fn http(requests: usize, body: Vec<u8>) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        for _ in 0..requests {
            let mut stream = listener.accept().unwrap().0;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        }
    };
    (port, thread::spawn(serve))
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_device_has_an_address_and_a_route_at_once() {
    let said = succeed(&script(&[], "ip -6 addr show dev tap0; ip -6 route show default"));
    let line = said.lines().find(|l| l.contains("fd00::100/64")).expect("an address");
    assert!(!line.contains("tentative"), "{line}");
    assert!(said.contains("default via fd00::2 dev tap0"), "{said}");
    let said = succeed(&script(&["--ipv6", "off"], "ip -6 addr show dev tap0 scope global"));
    assert_eq!(said, "");
    // IPv6 requires an MTU of 1280.
    let said = succeed(&script(&["--mtu", "1279"], "ip -6 addr show dev tap0; ip addr show tap0"));
    assert!(!said.contains("fd00") && said.contains("10.0.2.100"), "{said}");
    let output = script(&["--mtu", "1279", "--ipv6", "on"], "true");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn curl_gets_what_is_there() {
    let expected = sha256(&pattern(BULK));
    let (port, server) = http(LINKS.len(), pattern(BULK));
    for link in LINKS {
        let line = format!("curl -sSg 'http://[fd00::2]:{port}/' | sha256sum");
        let said = succeed(&script(&link, &line));
        assert_eq!(said.split_whitespace().next(), Some(&*expected), "{link:?}");
    }
    server.join().unwrap();
}

/// A process that is killed at the end of the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn iperf3_up_and_down() {
    if Command::new("iperf3").arg("-v").stdout(Stdio::null()).status().is_err() {
        println!("iperf: left out: no iperf3 here");
        return;
    }
    for link in LINKS {
        for mode in [&[][..], &["-R"], &["--bidir"]] {
            let port = free_port();
            let mut command = Command::new("iperf3");
            command.args(["-s", "-1", "-B", "::1", "-p", &port.to_string()]);
            let mut server = Server(command.stdout(Stdio::null()).spawn().unwrap());
            let listens = format!("00000000000000000000000001000000:{port:04X} ");
            until(|| std::fs::read_to_string("/proc/net/tcp6").unwrap().contains(&listens));
            let port = port.to_string();
            let line = ["iperf3", "-6", "-c", "fd00::2", "-p", &port, "-t", "2", "-J"];
            let output = skbudget(&link).args(line).args(mode).output().unwrap();
            let said = succeed(&output);
            assert!(server.0.wait().unwrap().success());
            let report: serde_json::Value = serde_json::from_str(&said).unwrap();
            let received = &report["end"]["sum_received"];
            let bytes = received["bytes"].as_u64().unwrap();
            println!(
                "iperf: mode={} mtu={} offload={} gbit_s={:.2}",
                mode.concat(),
                link[1],
                link[3],
                received["bits_per_second"].as_f64().unwrap() / 1e9
            );
            assert!(bytes > 10 << 20, "{link:?} {mode:?}: {bytes} bytes");
        }
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn published_ports_lead_to_the_address_of_their_family() {
    const SERVER: &str = "
import socket, threading
def serve(family, address, word):
    s = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 80))
    s.listen()
    def run():
        while True:
            c, peer = s.accept()
            c.sendall(word * 100000)
            c.close()
    threading.Thread(target=run, daemon=True).start()
serve(socket.AF_INET6, '::', b'from six')
serve(socket.AF_INET, '0.0.0.0', b'from four')
print('ready', flush=True)
threading.Event().wait()
";
    let port = free_port();
    let (six, four) = (format!("[::]:{port}:80"), format!("{port}:80"));
    let mut command = skbudget(&["-p", &six, "-p", &four]);
    let running = Running::spawn(command.args(["python3", "-c", SERVER]));
    assert_eq!(running.line, "ready");
    for _ in 0..3 {
        let bytes = fetch(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).unwrap();
        assert!(bytes == "from six".repeat(100_000).into_bytes());
        let bytes = fetch(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert!(bytes == "from four".repeat(100_000).into_bytes());
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_unreachable_destination_is_reported() {
    let port = free_port();
    let output = script(&[], &format!("exec 3<>/dev/tcp/fd00::2/{port}"));
    assert!(text(&output.stderr).contains("Connection refused"), "{}", text(&output.stderr));
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = script(&["--no-host-loopback"], &format!("exec 3<>/dev/tcp/fd00::2/{port}"));
    assert!(text(&output.stderr).contains("Connection refused"), "{}", text(&output.stderr));
    const UDP: &str = "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(('fd00::2', 4000))
s.send(b'anybody?')
try:
    s.recv(100)
except ConnectionRefusedError:
    print('refused')
";
    let output = skbudget(&[]).args(["python3", "-c", UDP]).output().unwrap();
    assert_eq!(succeed(&output), "refused\n");
}

/// A `ping` with a payload of any size. Arguments: family, address, bytes. Prints whether the reply is equal.
const PING: &str = "
import socket, struct, sys
six, to, size = sys.argv[1] == '6', sys.argv[2], int(sys.argv[3])
data = bytes(i * 7 % 251 for i in range(size))
if six:
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    kind, reply, at = 128, 129, 0
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    kind, reply, at = 8, 0, 20
s.settimeout(5)
def message(checksum):
    return struct.pack('!BBHHH', kind, 0, checksum, 77, 1) + data
total = message(0) + b'\\0' * (size % 2)
total = sum(struct.unpack('!%dH' % (len(total) // 2), total))
while total >> 16:
    total = (total & 0xffff) + (total >> 16)
s.sendto(message(0xffff ^ total), (to, 0))
while True:
    answer = s.recv(70000)[at:]
    if answer[0] == reply:
        print(answer[8:] == data)
        break
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn pings_of_any_size_are_answered() {
    for link in LINKS {
        for (family, to) in [("6", "fd00::2"), ("4", "10.0.2.2")] {
            for size in ["56", "4000", "60000"] {
                let options = [&link[..], &["--cap-add", "NET_RAW"]].concat();
                let mut command = skbudget(&options);
                let output = command.args(["python3", "-c", PING, family, to, size]).output();
                assert_eq!(succeed(&output.unwrap()), "True\n", "{link:?} {to} {size}");
            }
        }
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn fragments_are_in_the_stats() {
    let file = TempFile::new("stats");
    let options = ["--mtu", "1500", "--cap-add", "NET_RAW", "--stats-file", file.path()];
    let mut command = skbudget(&options);
    succeed(&command.args(["python3", "-c", PING, "6", "fd00::2", "4000"]).output().unwrap());
    let stats: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file.0).unwrap()).unwrap();
    let counters = &stats["containers"][0]["counters"];
    assert_eq!((&counters["ReasmOKs"], &counters["IcmpEchoAnswered"]), (&1.into(), &1.into()));
    assert_eq!(stats["containers"][0]["frag_bytes"], 0);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_guest_that_configures_itself_gets_an_address_and_a_route() {
    let (port, server) = http(1, b"found".to_vec());
    let line = format!(
        "
ip -6 addr flush dev tap0 scope global
ip -6 route flush default 2>/dev/null
ip link set tap0 down
echo 1 > /proc/sys/net/ipv6/conf/tap0/accept_ra
ip link set tap0 up
for i in $(seq 100); do
    ip -6 addr show dev tap0 scope global -tentative | grep -q 'inet6 fd00' && break
    sleep 0.1
done
ip -6 route show default
curl -sSg --max-time 5 'http://[fd00::2]:{port}/'
"
    );
    let said = succeed(&script(&["--cap-add", "NET_ADMIN"], &line));
    assert!(said.contains("default via fe80::2 dev tap0 proto ra"), "{said}");
    assert!(said.ends_with("found"), "{said}");
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_ordinary_user_has_ipv6_too() {
    let (port, server) = http(1, b"found".to_vec());
    let (node, binary) = (TempFile::new("tun-node"), TempFile::new("skbudget-copy"));
    // That user may have no access to the build folder.
    std::fs::copy(BINARY, &binary.0).unwrap();
    let line = format!(
        "set -e; mknod -m 666 {node} c 10 200; mount --bind {node} /dev/net/tun; \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups {binary} run --ipv6 on -- \
         curl -sSg 'http://[fd00::2]:{port}/'",
        node = node.path(),
        binary = binary.path(),
    );
    let mut command = Command::new("unshare");
    let output = command.args(["-m", "bash", "-c", &line]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(succeed(&output), "found");
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_upload_arrives_whole() {
    let bytes = pattern(BULK);
    let file = TempFile::new("upload");
    std::fs::write(&file.0, &bytes).unwrap();
    for link in LINKS {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let mut stream: TcpStream = listener.accept().unwrap().0;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        succeed(&script(
            &link,
            &format!("exec 3<>/dev/tcp/fd00::2/{port}; cat {} >&3", file.path()),
        ));
        assert!(server.join().unwrap() == bytes, "{link:?}");
    }
}
