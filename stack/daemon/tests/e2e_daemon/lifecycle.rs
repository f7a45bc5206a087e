//! Attach, serve, detach, and the ends of containers and of the daemon.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    BINARY, Netns, Process, Running, client, echo_server, echoed, exchange, free_port, serve, text,
    unique, until,
};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn containers_are_attached_served_and_detached() {
    let daemon = Running::start(&["--workers", "2"]);
    let (web, process) = (Netns::new(), Process::start());
    let (outside, spec) = free_port();
    daemon.run(&["attach", "web", "--netns", &web.path(), "--hard", "16MiB", "-p", &spec]);
    daemon.run(&["attach", "db", "--pid", &process.pid(), "--ifname", "tap7", "--mtu", "1500"]);
    assert_eq!(daemon.names(), ["db", "web"]);
    assert_eq!(web.devices(), ["lo", "eth0"]);
    let list = daemon.run(&["ls"]);
    assert!(list.contains("eth0    16.0M") && list.contains("tap7    256M"), "{list}");
    assert!(list.contains(&spec) && list.contains(&process.pid()), "{list}");

    let (port, server) = echo_server(1);
    echoed(web.connect(port).unwrap(), 8 << 20);
    server.join().unwrap();
    let inside = web.listen(80);
    let mut remote = TcpStream::connect(outside).unwrap();
    exchange(&mut remote, &mut inside.accept().unwrap().0);

    let stats = daemon.stats("web");
    assert_eq!(stats["hard_bytes"], 16 << 20);
    assert_eq!(stats["flows_total"], 2);
    assert!(stats["bytes_from_guest"].as_u64().unwrap() > 8 << 20, "{stats}");
    assert!(stats["max_usage_bytes"].as_u64().unwrap() <= 16 << 20, "{stats}");
    let table = daemon.run(&["stats"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[1].starts_with("db "), "{table}");
    assert!(lines[2].contains("16.0M") && lines.iter().all(|line| line.len() < 80), "{table}");

    daemon.run(&["detach", "web"]);
    assert_eq!(web.devices(), ["lo"]);
    assert_eq!(daemon.names(), ["db"]);
    assert!(TcpStream::connect(outside).is_err());
    // The namespace and the name are free again.
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    daemon.end();
    assert_eq!(web.devices(), ["lo"]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_container_that_ends_leaves_nothing_in_the_daemon() {
    let daemon = Running::start(&[]);
    let (netns, mut process) = (Netns::new(), Process::start());
    daemon.run(&["attach", "one", "--netns", &netns.path()]);
    daemon.run(&["attach", "two", "--pid", &process.pid()]);
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    until(|| daemon.names() == ["one"]);
    drop(netns);
    until(|| daemon.names().is_empty());
    assert!(daemon.refuses(&["stats", "one"], 1).contains("no container"));
    assert!(daemon.refuses(&["detach", "one"], 1).contains("no container"));
    let other = Netns::new();
    daemon.run(&["attach", "one", "--netns", &other.path()]);
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_socket_has_one_daemon_and_that_of_a_killed_one_is_taken_over() {
    let mut daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path()]);
    let socket = daemon.socket.clone();
    let second = serve(&["--socket", socket.to_str().unwrap()]);
    let pid = format!("process id {}\n", daemon.child.id());
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).ends_with(&pid), "{}", text(&second.stderr));
    assert_eq!(daemon.names(), ["web"]);

    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    // The kernel removes the device with the last descriptor.
    until(|| netns.devices() == ["lo"]);
    // The relay ends with its parent, a moment later.
    let said = || text(&client(&socket, &["ls"]).stderr);
    until(|| said().contains("no daemon"));
    assert_eq!(client(&socket, &["ls"]).status.code(), Some(1));
    let message = said();
    assert!(message.contains(socket.to_str().unwrap()), "{message}");
    let next = Running::on(socket, &[]);
    assert_eq!(next.names(), ["web"]);
    next.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_was_sent_is_delivered_before_the_daemon_ends() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path()]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = netns.connect(listener.local_addr().unwrap().port()).unwrap();
    let mut server = listener.accept().unwrap().0;
    // The receiver has read nothing, and the daemon has everything.
    let sent = vec![7; 100_000];
    std::io::Write::write_all(&mut client, &sent).unwrap();
    until(|| daemon.stats("web")["bytes_from_guest"].as_u64() == Some(100_000));
    daemon.signal("TERM");
    let mut received = Vec::new();
    // The flow is reset at the end, after its data.
    let _ = std::io::Read::read_to_end(&mut server, &mut received);
    assert_eq!(received.len(), sent.len());
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn events_and_metrics_show_what_happens() {
    let daemon = Running::start(&[]);
    let mut events = daemon.follow();
    let netns = Netns::new();
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "16MiB"]);
    daemon.run(&["set", "web", "hard=8MiB"]);
    let metrics = daemon.get("/metrics");
    let hard = format!("skbudget_container_hard_bytes{{container=\"web\"}} {}", 8 << 20);
    assert!(metrics.lines().any(|line| line == hard), "{metrics}");
    drop(netns);
    until(|| daemon.names().is_empty());
    assert!(!daemon.get("/metrics").contains("\"web\""));
    let types: Vec<String> = (0..3).map(|_| events.next_type()).collect();
    assert_eq!(types, ["attached", "limits_changed", "container_ended"]);
    daemon.end();
    // The stream ends with the daemon.
    assert!(events.ended());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn messages_are_json_with_the_container_as_a_field_if_requested() {
    let web = Netns::new();
    let folder = std::env::temp_dir().join(unique("log-"));
    let socket = folder.join("skbudget.sock");
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--socket").arg(&socket).args(["-v", "--log-format", "json"]);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| client(&socket, &["ls"]).status.success());
    assert!(client(&socket, &["attach", "web", "--netns", &web.path()]).status.success());
    assert!(client(&socket, &["detach", "web"]).status.success());
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    std::fs::remove_dir(folder).unwrap();
    let lines: Vec<Value> =
        text(&output.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap();
    for message in ["attached", "detached"] {
        let line = of(message);
        assert_eq!((&line["container"], &line["level"]), (&"web".into(), &"info".into()), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    }
    assert_eq!(of("ending")["container"], Value::Null);
}
