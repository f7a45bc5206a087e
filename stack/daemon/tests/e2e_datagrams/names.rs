//! Names: programs in a container resolve through the forwarder.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lacks;
use crate::support::{script, succeed, text};

/// A name server on a loopback address, over UDP and TCP. Every A record is 192.0.2.77; names that start with `long`
/// are truncated over UDP.
struct Server {
    port: u16,
    questions: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The answer to a question; over UDP it may be cut.
fn answer(question: &[u8], udp: bool) -> Vec<u8> {
    let mut answer = question.to_vec();
    // Without the options behind the question: name, type, class.
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
    answer.truncate(end);
    let is_a = answer[end - 3] == 1;
    let long = question[13..].starts_with(b"long");
    (answer[2], answer[3]) = (0x81, 0x80);
    answer[6..12].fill(0);
    if long && udp {
        answer[2] |= 2;
        return answer;
    }
    let copies = if long { 100 } else { 1 };
    for n in 0..if is_a { copies } else { 0 } {
        answer[7] += 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77 + n]);
    }
    answer
}

impl Server {
    fn new() -> Self {
        Self::on("127.0.0.1:0")
    }

    fn on(addr: &str) -> Self {
        let udp = UdpSocket::bind(addr).unwrap();
        let addr = udp.local_addr().unwrap();
        let port = addr.port();
        let tcp = TcpListener::bind(addr).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (questions, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&questions), Arc::clone(&stop));
        let over_udp = move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = udp.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = udp.send_to(&answer(&buffer[..len], true), from);
                }
            }
        };
        let stopped = Arc::clone(&stop);
        let over_tcp = move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = tcp.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let mut len = [0; 2];
                if stream.read_exact(&mut len).is_ok() {
                    let mut question = vec![0; u16::from_be_bytes(len).into()];
                    stream.read_exact(&mut question).unwrap();
                    let answer = answer(&question, false);
                    stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            }
        };
        let threads = vec![thread::spawn(over_udp), thread::spawn(over_tcp)];
        Self { port, questions, stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn programs_resolve_names_through_the_forwarder() {
    let server = Server::new();
    let dns = format!("127.0.0.1:{}", server.port);
    // A server that is not there comes first.
    let options = ["--dns", "127.0.0.1:1", "--dns", &dns, "--no-host-loopback"];
    let said = succeed(&script(&options, "cat /etc/resolv.conf; getent ahostsv4 name.example"));
    assert!(said.starts_with("nameserver 10.0.2.3\nnameserver fd00::3\n"), "{said}");
    assert!(said.contains("192.0.2.77"), "{said}");
    // Truncated over UDP, whole over TCP.
    let said = succeed(&script(&options, "getent ahostsv4 long.example"));
    assert!(said.contains("192.0.2.176"), "{said}");
    if !lacks("busybox") {
        let said = succeed(&script(&options, "busybox nslookup -type=a name.example 10.0.2.3"));
        assert!(said.contains("Address: 192.0.2.77"), "{said}");
    }
    if lacks("dig") {
        return;
    }
    let line = "for by in @10.0.2.3 @fd00::3; do for how in +notcp +tcp +dnssec +bufsize=1232; do \
                dig +short +time=5 $by $how name.example || exit 1; done; done";
    let said = succeed(&script(&options, line));
    assert_eq!(said, "192.0.2.77\n".repeat(8));
    // Its resolv.conf is the container's alone.
    assert!(!std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default().contains("10.0.2.3"));
}

/// The relay may not read the file: its parent does.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_change_of_the_hosts_servers_is_followed() {
    let _server = Server::on("127.0.0.5:53");
    let file = crate::support::TempFile::new("resolv");
    // No server is there: the question is refused at once.
    std::fs::write(&file.0, "nameserver 127.0.0.6\n").unwrap();
    let line = format!(
        "mount --bind {} /etc/resolv.conf && exec {} run -- bash -c 'echo ready; \
         until getent ahostsv4 name.example | grep -q 192.0.2.77; do sleep 0.1; done'",
        file.path(),
        crate::support::BINARY
    );
    let mut command = std::process::Command::new("unshare");
    let mut running =
        crate::support::Running::spawn(command.args(["--mount", "bash", "-c", &line]));
    assert_eq!(running.line, "ready");
    std::fs::write(&file.0, "nameserver 127.0.0.5\n").unwrap();
    assert!(running.wait().success());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_a_server_names_fail_soon() {
    let output = script(&["--dns", "127.0.0.1:1"], "time timeout 60 getent hosts name.example");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_flood_of_questions_is_answered_or_refused() {
    let server = Server::new();
    let dns = format!("127.0.0.1:{}", server.port);
    let program = "
import socket, struct
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
for s in socks: s.settimeout(0.001)
tail = b'\\4name\\0\\0\\1\\0\\1'
got = 0
for n in range(10000):
    question = struct.pack('>6H', n, 0x100, 1, 0, 0, 0) + tail
    socks[n % 100].sendto(question, ('10.0.2.3', 53))
    if n % 50 == 49:
        for s in socks:
            try:
                while True: s.recv(999); got += 1
            except TimeoutError: pass
print(got)
";
    let file = crate::support::TempFile::new("flood");
    std::fs::write(&file.0, program).unwrap();
    let options = ["--dns", &dns, "--hard", "16MiB"];
    let got: usize = succeed(&script(&options, &format!("exec python3 {}", file.path())))
        .trim()
        .parse()
        .unwrap();
    let asked = server.questions.load(Ordering::Relaxed);
    println!("{got} of 10000 questions answered, {asked} forwarded");
    assert!(got > 9000, "{got} answered");
}
