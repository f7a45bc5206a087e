//! `skbudget top` on a terminal.

use std::net::TcpListener;

use skbudget_testbed::pty::Session;

use crate::support::{BINARY, Netns, Running, client, exchange, text};

/// Shows the cursor and leaves the alternate screen.
const RESTORED: &str = "\x1b[?25h\x1b[?1049l";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn top_shows_containers_and_flows_and_restores_the_terminal() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "16MiB"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut inside = netns.connect(listener.local_addr().unwrap().port()).unwrap();
    let mut server = listener.accept().unwrap().0;
    exchange(&mut inside, &mut server);

    let socket = daemon.socket.clone();
    let start = || Session::start(&[BINARY, "top", "--socket", socket.to_str().unwrap()], &[]);
    let mut session = start();
    // Single words: blanks that the screen has already are not written.
    for expected in ["containers", "NAME", "web", "16.0M", "quit"] {
        session.expect(expected);
    }
    session.type_in("\r");
    session.expect("ESTAB");
    session.expect(&inside.local_addr().unwrap().to_string());
    session.type_in("q");
    session.expect(RESTORED);
    assert_eq!(session.wait().code(), Some(0));

    // A daemon that ends is reported, and found again.
    let mut session = start();
    session.expect("web");
    daemon.end();
    session.expect("CURRENT");
    let again = Running::on(socket.clone(), &[]);
    let other = Netns::new();
    again.run(&["attach", "other", "--netns", &other.path()]);
    session.expect("other");
    session.type_in("\x03");
    session.expect(RESTORED);
    assert_eq!(session.wait().code(), Some(128 + 2), "ended by SIGINT");
    again.end();

    // Nothing to show, and nowhere to show it.
    let mut session = start();
    session.expect("no daemon serves this socket");
    assert_eq!(session.wait().code(), Some(1));
    let output = client(&socket, &["top"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("skbudget stats"));
}
