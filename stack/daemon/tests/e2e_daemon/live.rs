//! Changes while a container runs: limits and published ports.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

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
