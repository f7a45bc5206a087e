//! Changes while a container runs: limits and published ports.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::support::{Netns, Running, exchange, free_port};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn limits_change_under_load_without_a_loss() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "16MiB"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = netns.connect(listener.local_addr().unwrap().port()).unwrap();
    let mut server = listener.accept().unwrap().0;
    let total = 64 << 20;
    thread::scope(|scope| {
        scope.spawn(|| {
            let bytes = vec![7; 1 << 20];
            (0..total >> 20).for_each(|_| client.write_all(&bytes).unwrap());
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let received = scope.spawn(|| {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            all.len()
        });
        for hard in ["4MiB", "3MiB", "64MiB", "2560KiB", "16MiB"] {
            daemon.run(&["set", "web", &format!("hard={hard}")]);
        }
        assert_eq!(received.join().unwrap(), total);
    });
    let stats = daemon.stats("web");
    assert_eq!(
        (&stats["hard_bytes"], &stats["soft_bytes"]),
        (&(16 << 20).into(), &11_182_080.into())
    );
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn limits_change_all_or_none() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "16MiB", "--soft", "8MiB"]);
    let limits = || {
        let stats = daemon.stats("web");
        ["low_bytes", "soft_bytes", "hard_bytes"].map(|key| stats[key].as_u64().unwrap() >> 10)
    };
    assert_eq!(limits(), [6 << 10, 8 << 10, 16 << 10]);
    daemon.run(&["set", "web", "hard=12MiB", "low=4MiB"]);
    assert_eq!(limits(), [4 << 10, 8 << 10, 12 << 10]);
    // A soft limit that was given does not follow the hard one.
    for (values, code, expected) in [
        (&["hard=8MiB"][..], 2, "soft: low 4MiB < soft 8MiB < hard 8MiB is needed"),
        (&["hard=20MiB", "soft=20MiB"], 2, "soft: low"),
        (&["hard=64KiB"], 2, "hard 64KiB is too small"),
        (&["hard=20MiB", "min=1MiB"], 1, "below a limit of the host"),
        (&["hard=20MiB", "weight=3"], 2, "allowed: hard, soft, low, min"),
    ] {
        let command: Vec<&str> = ["set", "web"].iter().chain(values).copied().collect();
        assert!(daemon.refuses(&command, code).contains(expected), "{values:?}");
        assert_eq!(limits(), [4 << 10, 8 << 10, 12 << 10]);
    }
    daemon.run(&["set", "web", "hard=6MiB", "soft=default", "low=default"]);
    assert_eq!(limits(), [3 << 10, 4 << 10, 6 << 10]);
    assert!(daemon.refuses(&["set", "other", "hard=6MiB"], 1).contains("no container"));
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ports_are_published_and_closed_while_the_container_runs() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    let (first, second) = (free_port(), free_port());
    daemon.run(&["attach", "web", "--netns", &netns.path(), "-p", &first.1]);
    let listen_bytes = || daemon.stats("web")["listen_bytes"].as_u64().unwrap();
    let one = listen_bytes();
    daemon.run(&["publish", "web", &second.1]);
    assert!(listen_bytes() > one);
    let inside = netns.listen(80);
    let mut open = Vec::new();
    for (addr, _) in [&first, &second] {
        let mut client = TcpStream::connect(addr).unwrap();
        let mut server = inside.accept().unwrap().0;
        exchange(&mut client, &mut server);
        open.push((client, server));
    }
    // A port in use refuses all of a request.
    let third = free_port();
    let message = daemon.refuses(&["publish", "web", &third.1, &second.1], 1);
    assert!(message.contains(&second.0.to_string()), "{message}");
    assert!(TcpStream::connect(third.0).is_err());
    let message = daemon.refuses(&["unpublish", "web", &first.1, &third.1], 1);
    assert!(message.contains("not published"), "{message}");
    assert!(daemon.run(&["ls"]).contains(&format!("{} {}", first.1, second.1)));

    daemon.run(&["unpublish", "web", &first.1]);
    assert!(TcpStream::connect(first.0).is_err());
    assert!(listen_bytes() < one + one);
    // Open connections stay, and so does the other port.
    open.iter_mut().for_each(|(client, server)| exchange(client, server));
    let mut client = TcpStream::connect(second.0).unwrap();
    exchange(&mut client, &mut inside.accept().unwrap().0);
    daemon.run(&["unpublish", "web", &second.1]);
    assert_eq!(listen_bytes(), 0);
    daemon.run(&["publish", "web", &first.1, &second.1]);
    daemon.end();
}

/// Sends a datagram to a published port; returns whether the server in the container received it.
fn passes(client: &UdpSocket, to: SocketAddr, server: &UdpSocket) -> bool {
    client.connect(to).unwrap();
    // A closed port fails the second send, or the first receive.
    let sent = client.send(b"question").and_then(|_| {
        let mut bytes = [0; 9];
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let (len, from) = server.recv_from(&mut bytes)?;
        server.send_to(&bytes[..len], from)?;
        client.recv(&mut bytes)
    });
    sent.is_ok_and(|len| len == 8)
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn udp_ports_and_ranges_are_published_and_closed_while_the_container_runs() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path()]);
    let any = (Ipv4Addr::UNSPECIFIED, 53);
    let (server, second) =
        netns.inside(|| (UdpSocket::bind(any).unwrap(), UdpSocket::bind((any.0, 54)).unwrap()));
    // The server has sent from its port before: the host has a socket for it.
    server.send_to(b"notify", (Ipv4Addr::new(192, 0, 2, 1), 7)).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let free = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    };
    // Two consecutive ports, free a moment ago.
    let port = (0..)
        .map(|_| free())
        .find(|port| *port < u16::MAX && UdpSocket::bind(("127.0.0.1", port + 1)).is_ok());
    let port = port.unwrap();
    let to = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let range = format!("127.0.0.1:{port}-{}:53-54/udp", port + 1);
    let udp_bytes = || daemon.stats("web")["udp_bytes"].as_u64().unwrap();
    assert!(daemon.run(&["publish", "web", &range]).is_empty());
    assert!(passes(&client, to(port), &server) && passes(&client, to(port + 1), &second));
    let both = udp_bytes();
    // Refused whole: the first leads to a port that is published already, or the second cannot be bound.
    let (other, taken) = (free(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for (refused, reason) in [
        (format!("127.0.0.1:{other}:53/udp"), "both lead to port 53"),
        (format!("{}:99/udp", taken.local_addr().unwrap()), "Address already in use"),
        (format!("127.0.0.1:{other}-{}:1-9000/udp", u32::from(other) + 8999), "allowed"),
    ] {
        let new = format!("127.0.0.1:{}:55/udp", free());
        let output = daemon.command(&["publish", "web", &new, &refused]);
        let message = crate::support::text(&output.stderr);
        assert!(!output.status.success() && message.contains(reason), "{refused}: {message}");
        assert_eq!(udp_bytes(), both, "{refused}");
    }
    assert!(
        daemon
            .refuses(&["unpublish", "web", &range.replace("/udp", "")], 1)
            .contains("not published")
    );
    daemon.run(&["unpublish", "web", &format!("127.0.0.1:{port}:53/udp")]);
    assert!(!passes(&client, to(port), &server));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(passes(&client, to(port + 1), &second));
    assert!(udp_bytes() < both);
    // TCP and UDP of one number, together.
    let (tcp, name) = free_port();

    daemon.run(&["publish", "web", &name, &format!("{tcp}:53/udp")]);
    assert!(passes(&client, tcp, &server));
    assert!(daemon.run(&["ls"]).contains(&format!("{tcp}:53/udp")));
    daemon.run(&["unpublish", "web", &name, &format!("{tcp}:53/udp")]);
    assert!(TcpStream::connect(tcp).is_err());
    daemon.end();
}
