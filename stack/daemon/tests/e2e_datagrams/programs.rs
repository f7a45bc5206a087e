//! Programs of others that use UDP, in a container: a time client, syslog, netcat, socat as client and as server.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::lacks;
use crate::network::Echo;
use crate::support::{Running, script, succeed};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn netcat_and_socat_are_echoed() {
    let echo = Echo::on("127.0.0.1:0");
    for (program, options) in [("socat", "-t 5 - UDP4:10.0.2.2:"), ("nc", "-u -w 5 10.0.2.2 ")] {
        if lacks(program) {
            continue;
        }
        // The programs end after their input and five idle seconds.
        let line = format!("echo line | timeout 30 {program} {options}{}", echo.port());
        assert_eq!(succeed(&script(&[], &line)), "line\n", "{program}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn socat_serves_a_published_port() {
    if lacks("socat") {
        return;
    }
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let publish = format!("{free}:5150/udp");
    let _server = Running::start(
        &["-p", &publish],
        "echo started; exec socat UDP4-LISTEN:5150,fork EXEC:cat",
    );
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = [0; 9];
    // Until the server listens its port is unreachable.
    let len = loop {
        let received = client.send_to(b"line", free).and_then(|_| client.recv(&mut answer));
        if let Ok(len) = received {
            break len;
        }
    };
    assert_eq!(&answer[..len], b"line");
}

/// Asks for the time; nothing sets a clock.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ntpdig_gets_the_time() {
    if lacks("ntpdig") {
        return;
    }
    // The client uses this port only. It is the test's own network namespace.
    let socket = UdpSocket::bind("127.0.0.1:123").unwrap();
    let server = thread::spawn(move || {
        let mut question = [0; 100];
        let (_, from) = socket.recv_from(&mut question).unwrap();
        // Seconds since 1900, with 32 bits of fraction (RFC 5905 section 6).
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let now = ((2_208_988_800 << 32) + (now << 32) / 1_000_000_000) as u64;
        let mut answer = vec![0x24, 2, 6, 0xec, 0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1];
        answer.extend(now.to_be_bytes());
        answer.extend(&question[40..48]);
        answer.extend(now.to_be_bytes());
        answer.extend(now.to_be_bytes());
        socket.send_to(&answer, from).unwrap();
    });
    let said = succeed(&script(&[], "ntpdig -t 20 10.0.2.2"));
    assert!(said.contains("10.0.2.2 s2"), "{said}");
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn syslog_leaves_the_container() {
    if lacks("logger") {
        return;
    }
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    succeed(&script(&[], &format!("logger -d -n 10.0.2.2 -P {port} --rfc3164 -t app message")));
    let mut line = [0; 999];
    let len = server.recv(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..len]);
    assert!(line.starts_with("<13>") && line.ends_with("app: message"), "{line}");
}
