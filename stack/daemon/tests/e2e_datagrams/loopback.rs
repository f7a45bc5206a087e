//! Ways to the host's loopback: with `--no-host-loopback` none of them leads there.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{TempFile, script, succeed};

/// Servers on the host's loopback, of both families and protocols, with one port. They count what arrives.
struct Loopback {
    port: u16,
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Loopback {
    fn new() -> Self {
        // A port that is free in all four.
        let (port, tcp, udp) = (0..)
            .find_map(|_| {
                let first = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = first.local_addr().unwrap().port();
                let second = TcpListener::bind(("::1", port)).ok()?;
                let udp = ["127.0.0.1", "::1"].map(|ip| UdpSocket::bind((ip, port)).ok());
                let [Some(a), Some(b)] = udp else { return None };
                Some((port, [first, second], [a, b]))
            })
            .unwrap();
        let (seen, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for listener in tcp {
            listener.set_nonblocking(true).unwrap();
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((mut stream, _)) = listener.accept() {
                        seen.fetch_add(1, Ordering::Relaxed);
                        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                        let _ = stream.read(&mut [0; 99]);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            }));
        }
        for socket in udp {
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut [0; 99]) {
                        seen.fetch_add(1, Ordering::Relaxed);
                        let _ = socket.send_to(b"answer", from);
                    }
                }
            }));
        }
        Self { port, seen, stop, threads }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Destinations as frames carry them: the container's kernel would keep some of them to itself.
const V4: &[&str] = &[
    "10.0.2.2",
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.53",
    "127.1.2.3",
    "127.255.255.254",
    "127.255.255.255",
    "127.0.0.0",
    "0.0.0.0",
    "0.0.0.1",
    "0.127.0.1",
    "0.255.255.255",
    "10.0.2.3",
    "10.0.2.0",
    "10.0.2.1",
    "10.0.2.100",
    "10.0.2.255",
    "255.255.255.255",
    "224.0.0.1",
    "239.255.255.250",
    "224.0.0.251",
];
const V6: &[&str] = &[
    "fd00::2",
    "::1",
    "::",
    "::2",
    "::ffff:127.0.0.1",
    "::ffff:127.0.0.2",
    "::ffff:0.0.0.0",
    "::ffff:10.0.2.2",
    "::127.0.0.1",
    "::0.0.0.1",
    "::10.0.2.2",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::127.0.0.1",
    "2002:7f00:1::",
    "2002:7f00:1::1",
    "fd00::3",
    "fd00::",
    "fd00::1",
    "fd00::100",
    "fe80::2",
    "fe80::1",
    "fec0::1",
    "ff01::1",
    "ff02::1",
    "ff02::2",
    "ff05::1",
    "ff02::fb",
];

/// Sends frames of TCP, UDP, in fragments, with a source route and with a routing header to every address, and lets the
/// container's kernel try as well.
const PROGRAM: &str = r#"
import fcntl, ipaddress, os, socket, struct, sys
port, v4, v6 = int(sys.argv[1]), sys.argv[2].split(','), sys.argv[3].split(',')
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(('tap0', 0))
own = open('/sys/class/net/tap0/address').read().strip().replace(':', '')
own, gateway = bytes.fromhex(own), bytes.fromhex('52550a000202')
def sum16(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def upper(kind, src, dst, sport):
    if kind == 6: body, at = struct.pack('>HHIIBBHHH', sport, port, 7, 0, 0x50, 2, 9999, 0, 0), 16
    else: body, at = struct.pack('>HHHH', sport, port, 12, 0) + b'ping', 6
    rest = struct.pack('>BBH', 0, kind, len(body))
    if len(src) == 16: rest = struct.pack('>IHBB', len(body), 0, 0, kind)
    pseudo = src + dst + rest
    return body[:at] + struct.pack('>H', sum16(pseudo + body)) + body[at + 2:]
def ip4(kind, src, dst, body, flags=0, options=b''):
    words, length = 5 + len(options) // 4, 20 + len(options) + len(body)
    head = struct.pack('>BBHHHBBH', 0x40 + words, 0, length, 77, flags, 64, kind, 0) + src + dst + options
    return b'\x08\0' + head[:10] + struct.pack('>H', sum16(head)) + head[12:] + body
def ip6(kind, src, dst, body):
    return b'\x86\xdd' + struct.pack('>IHBB', 6 << 28, len(body), kind, 64) + src + dst + body
def send(packet):
    raw.send(gateway + own + packet)
sport, ways = 20000, 0
me4, me6 = socket.inet_aton('10.0.2.100'), socket.inet_pton(socket.AF_INET6, 'fd00::100')
for to in v4:
    dst = socket.inet_aton(to)
    for kind in 6, 17:
        for src in me4, dst:
            sport, ways = sport + 1, ways + 1
            send(ip4(kind, src, dst, upper(kind, src, dst, sport)))
        body = upper(kind, me4, dst, sport + 1)
        send(ip4(kind, me4, dst, body[:8], 0x2000)); send(ip4(kind, me4, dst, body[8:], 1))
        # Loose source route: through the gateway to the address.
        via, option = socket.inet_aton('10.0.2.2'), b'\x83\x07\x04' + dst + b'\0'
        send(ip4(kind, me4, via, upper(kind, me4, dst, sport + 2), 0, option))
        sport, ways = sport + 2, ways + 2
for to in v6:
    dst = socket.inet_pton(socket.AF_INET6, to)
    for kind in 6, 17:
        for src in me6, dst:
            sport, ways = sport + 1, ways + 1
            send(ip6(kind, src, dst, upper(kind, src, dst, sport)))
        body = upper(kind, me6, dst, sport + 1)
        head = lambda offset: struct.pack('>BBHI', kind, 0, offset, 99)
        send(ip6(44, me6, dst, head(1) + body[:8])); send(ip6(44, me6, dst, head(8) + body[8:]))
        # A routing header with one segment left, of types 0 and 2.
        for type in 0, 2:
            route = struct.pack('>BBBBI', kind, 2, type, 1, 0) + dst
            via = socket.inet_pton(socket.AF_INET6, '2001:db8::1')
            send(ip6(43, me6, via, route + upper(kind, me6, dst, sport + 2)))
        sport, ways = sport + 2, ways + 3
# The kernel of the container, with routes for all.
for route in ('route add local 0.0.0.0/8', '-6 route add ::/96', '-6 route add 64:ff9b::/96'):
    os.system('ip %s dev tap0 2>/dev/null' % route)
for to in v4 + v6:
    family = socket.AF_INET6 if ':' in to else socket.AF_INET
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.settimeout(0.2)
        ways += 1
        try:
            s.connect((to, port)); s.send(b'ping')
        except OSError: pass
# Names for it: a name server may answer with any address.
for name in 'localhost', 'ip6-localhost', '127.1', '0', '0x7f000001', '2130706433', '017700000001':
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        ways += 1
        try:
            for family, _, _, _, addr in socket.getaddrinfo(name, port, type=kind):
                s = socket.socket(family, kind); s.settimeout(0.2); s.connect(addr); s.send(b'ping')
        except OSError: pass
print(ways)
"#;

/// Tries all ways in a container; returns their number.
fn try_all(options: &[&str], port: u16) -> usize {
    let file = TempFile::new("ways");
    std::fs::write(&file.0, PROGRAM).unwrap();
    let line = format!("exec python3 {} {port} {} {}", file.path(), V4.join(","), V6.join(","));
    let options = [&["--privileged"], options].concat();
    succeed(&script(&options, &line)).trim().parse().unwrap()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn no_way_leads_to_a_loopback_that_is_shut() {
    let loopback = Loopback::new();
    let seen = || loopback.seen.load(Ordering::Relaxed);
    // The same servers are reached at the gateway without the option, so these ways do arrive.
    let ways = try_all(&[], loopback.port);
    thread::sleep(Duration::from_millis(200));
    let open = seen();
    assert!(ways > 400 && open >= 8, "{open} of {ways} ways arrived at an open loopback");
    for offload in ["on", "off"] {
        try_all(&["--no-host-loopback", "--offload", offload], loopback.port);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(seen(), open, "{} ways led there", seen() - open);
    }
    // The rules shut it as well.
    let rules = ["--deny", "127.0.0.0/8", "--deny", "::1"];
    try_all(&rules, loopback.port);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(seen(), open, "{} ways led there", seen() - open);
}
