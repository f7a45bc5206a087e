//! Bytes through the device: up, down, both at once, through published ports, with both MTUs, with and without offload.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::support::{
    Running, echo, fetch, free_port, pattern, script, serve, sha256, succeed, text, until,
};
use crate::{BULK, LINKS};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn echo_through_the_hosts_loopback() {
    for link in LINKS {
        let (port, server) = serve(1, echo);
        let output = script(
            &link,
            &format!("exec 3<>/dev/tcp/10.0.2.2/{port}; echo hello >&3; head -n1 <&3; exec 3>&-"),
        );
        assert_eq!(succeed(&output), "hello\n");
        assert_eq!(server.join().unwrap(), [6]);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn bulk_down_arrives_whole() {
    let expected = sha256(&pattern(BULK));
    for link in LINKS {
        let (port, server) = serve(1, |mut stream: TcpStream| {
            stream.write_all(&pattern(BULK)).unwrap();
        });
        let output = script(&link, &format!("exec 3<>/dev/tcp/10.0.2.2/{port}; sha256sum <&3"));
        assert_eq!(succeed(&output).split_whitespace().next(), Some(&*expected), "{link:?}");
        server.join().unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn bulk_up_arrives_whole_though_the_command_ends_at_once() {
    let bytes = pattern(BULK);
    let file = crate::support::TempFile::new("upload");
    std::fs::write(&file.0, &bytes).unwrap();
    for link in LINKS {
        let (port, server) = serve(1, |mut stream: TcpStream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let line = format!("exec 3<>/dev/tcp/10.0.2.2/{port}; cat {} >&3", file.path());
        succeed(&script(&link, &line));
        assert!(server.join().unwrap()[0] == bytes, "{link:?}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways_at_once_under_a_small_budget() {
    let file = crate::support::TempFile::new("both");
    std::fs::write(&file.0, pattern(BULK)).unwrap();
    let expected = sha256(&pattern(BULK));
    let (port, server) = serve(1, echo);
    let line = format!(
        "exec 3<>/dev/tcp/10.0.2.2/{port}; cat {} >&3 & exec 3<>/dev/null; wait",
        file.path()
    );
    // The shell cannot half-close, so the reader stops after a number of bytes.
    let line =
        line.replace("exec 3<>/dev/null; wait", &format!("head -c {BULK} <&3 | sha256sum; wait"));
    let output = script(&["--hard", "1MiB"], &line);
    assert_eq!(succeed(&output).split_whitespace().next(), Some(&*expected));
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn many_flows_at_once() {
    let (port, server) = serve(50, echo);
    let line = format!(
        "for i in $(seq 50); do (exec 3<>/dev/tcp/10.0.2.2/{port}; echo $i >&3; head -n1 <&3) & done; wait"
    );
    let said = succeed(&script(&["--hard", "16MiB"], &line));
    let sum: u32 = said.lines().map(|line| line.parse::<u32>().unwrap()).sum();
    assert_eq!(sum, 50 * 51 / 2);
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_refused_connection_is_refused() {
    let port = free_port();
    let line = format!("exec 3<>/dev/tcp/10.0.2.2/{port}");
    let output = script(&[], &line);
    assert!(text(&output.stderr).contains("Connection refused"), "{}", text(&output.stderr));
    let (port, server) = serve(1, echo);
    let line = format!("exec 3<>/dev/tcp/10.0.2.2/{port}");
    let output = script(&["--no-host-loopback"], &line);
    assert!(text(&output.stderr).contains("Connection refused"), "{}", text(&output.stderr));
    TcpStream::connect(("127.0.0.1", port)).unwrap().shutdown(Shutdown::Both).unwrap();
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_published_port_is_reached_from_the_host() {
    const SERVER: &str = "
import socket, sys
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
for _ in range(3):
    c, peer = s.accept()
    c.sendall(b'from inside' * 100000)
    c.close()
";
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    let mut command = crate::support::skbudget(&["-p", &publish]);
    let mut running = Running::spawn(command.args(["python3", "-c", SERVER]));
    assert_eq!(running.line, "ready");
    for _ in 0..3 {
        let bytes = fetch(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert_eq!(bytes, "from inside".repeat(100_000).into_bytes());
    }
    assert!(running.wait().success());
    until(|| TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_end_of_a_container_resets_what_it_had_open() {
    let (port, server) = serve(1, |mut stream: TcpStream| {
        stream.write_all(b"hello\n").unwrap();
        stream.read(&mut [0; 1]).map_err(|e| e.kind())
    });
    let line = format!("exec 3<>/dev/tcp/10.0.2.2/{port}; head -n1 <&3; exec sleep 1000");
    let mut running = Running::start(&[], &line);
    assert_eq!(running.line, "hello");
    running.signal("KILL");
    running.wait();
    // The server must see an end of any kind, and soon.
    let _ = server.join().unwrap();
}
