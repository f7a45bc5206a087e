//! Published ports: the address that a server in the container sees.

use crate::network::{HOST, Path};
use crate::support::{Running, free_port, skbudget, succeed};

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
    let near = std::process::Command::new("python3").args(["-c", &client("127.0.0.1")]).output();
    assert_eq!(succeed(&near.unwrap()).trim(), "10.0.2.2");
}
