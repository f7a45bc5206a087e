//! `--allow` and `--deny`, as programs of a container notice them.

use std::net::TcpListener;

use crate::network::Echo;
use crate::support::{script, skbudget, succeed, text};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_program_is_refused_at_once_and_reaches_what_is_allowed() {
    let echo = Echo::on("127.0.0.1:0");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = tcp.local_addr().unwrap().port();
    let program = format!(
        "python3 - <<'END'
import errno, socket
def attempt(kind, port):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(30)
    try:
        s.connect(('10.0.2.2', port)); s.send(b'echo')
        return 'open' if kind == socket.SOCK_STREAM else s.recv(9).decode()
    except OSError as e: return errno.errorcode[e.errno]
print(*[attempt(kind, port) for kind, port in [(1, {tcp}), (2, {}), (1, 9), (2, 9)]])
END
grep -q . /etc/resolv.conf; ping -c 1 -W 5 192.0.2.1 | grep -o 'Packet filtered\\|prohibited' || true",
        echo.port()
    );
    let (allow_tcp, allow_udp) =
        (format!("127.0.0.1:{tcp}"), format!("127.0.0.1/32:{}", echo.port()));
    let refused = "ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED\n";
    let nothing = ["--deny", "0.0.0.0/0", "--deny", "::/0"];
    let said = succeed(&script(&nothing, &program));
    assert!(said.starts_with(refused), "{said}");
    assert!(said.contains("filtered") || said.contains("prohibited"), "{said}");
    let some = [&["--allow", &allow_tcp, "--allow", &allow_udp], &nothing[..]].concat();
    let said = succeed(&script(&some, &program));
    assert!(said.starts_with("open echo ECONNREFUSED ECONNREFUSED\n"), "{said}");
    // The first that matches decides.
    let late = [&nothing[..], &["--allow", &allow_tcp]].concat();
    assert!(succeed(&script(&late, &program)).starts_with(refused));
    let output = skbudget(&["--deny", "10.0.0.1/8"]).arg("true").output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("--deny") && message.contains("10.0.0.0/8 is the network"),
        "{message}"
    );
}
