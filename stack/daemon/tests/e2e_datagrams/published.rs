//! Published ports: the address that a server in the container sees.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use crate::network::{HOST, Path};
use crate::support::{Running, free_port, skbudget, succeed, until};

/// Prints the address of each client.
const SERVER: &str = "
import socket
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
for _ in range(2):
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_server_sees_its_clients_address_and_loopback_clients_as_the_gateway() {
    let path = Path::new();
    let port = free_port();
    let publish = format!("{port}:80");
    let mut command = skbudget(&["-p", &publish]);
    let running = Running::spawn(command.args(["python3", "-c", SERVER]));
    assert_eq!(running.line, "ready");
    let client = |to: &str| {
        format!(
            "import socket; print(socket.create_connection(('{to}', {port}), 5).recv(99).decode())"
        )
    };
    let far = path.on_host("python3").args(["-c", &client("198.51.100.1")]).output().unwrap();
    assert_eq!(succeed(&far).trim(), HOST);
    let near = Command::new("python3").args(["-c", &client("127.0.0.1")]).output();
    assert_eq!(succeed(&near.unwrap()).trim(), "10.0.2.2");
}

/// Answers each datagram with the address of its client.
const DATAGRAMS: &str = "
import socket, threading
def serve(family, address, port):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port))
    def run():
        while True:
            data, peer = s.recvfrom(70000)
            s.sendto(peer[0].encode() + b' ' + data, peer)
    threading.Thread(target=run, daemon=True).start()
for port in (53, 54, 55):
    serve(socket.AF_INET, '0.0.0.0', port)
serve(socket.AF_INET6, '::', 53)
print('ready', flush=True)
threading.Event().wait()
";

/// Sends to a published port; returns the answer.
fn answer(from: &str, to: &str) -> String {
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"question", to).unwrap();
    let mut buffer = [0; 99];
    let (len, by) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(by.to_string(), to);
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn udp_ports_and_ranges_of_them_are_published_over_both_families() {
    let path = Path::new();
    let port = 20_000 + free_port() % 20_000;
    let (range, six) = (format!("{port}-{}:53-55/udp", port + 2), format!("[::]:{port}:53/udp"));
    // The gateway is shut for the container, but loopback clients of its ports are not.
    for options in
        [&["-p", &range, "-p", &six][..], &["-p", &range, "-p", &six, "--no-host-loopback"]]
    {
        // The relay of the container before, which was killed, may still have the ports for a moment.
        for port in port..port + 3 {
            until(|| UdpSocket::bind(("::", port)).is_ok());
        }
        let mut command = skbudget(options);
        let running = Running::spawn(command.args(["python3", "-c", DATAGRAMS]));
        assert_eq!(running.line, "ready");
        for port in port..port + 3 {
            assert_eq!(answer("127.0.0.1:0", &format!("127.0.0.1:{port}")), "10.0.2.2 question");
        }
        assert_eq!(answer("[::1]:0", &format!("[::1]:{port}")), "fd00::2 question");
        let client = format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.settimeout(10)\n\
             s.sendto(b'far', ('198.51.100.1', {port}))\n\
             print(s.recv(99).decode())"
        );
        let far = path.on_host("python3").args(["-c", &client]).output().unwrap();
        assert_eq!(succeed(&far).trim(), format!("{HOST} far"));
    }
}
