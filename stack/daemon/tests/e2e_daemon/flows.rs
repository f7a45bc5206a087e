//! `skbudget flows`.

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::Value;

use crate::support::{GATEWAY, Netns, Running, exchange, free_port, until};

fn flows(daemon: &Running, args: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["flows", "--json"].iter().chain(args).copied().collect();
    let list: Value = serde_json::from_str(&daemon.run(&args)).unwrap();
    assert_eq!(list["schema"], "skbudget.flows/1");
    list["flows"].as_array().unwrap().clone()
}

fn number(flow: &Value, key: &str) -> u64 {
    flow[key].as_u64().unwrap_or_else(|| panic!("{key} of {flow}"))
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn flows_show_both_ends_and_their_memory() {
    let daemon = Running::start(&[]);
    let netns = Netns::new();
    let (published, port) = free_port();
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "16MiB", "-p", &port]);
    assert_eq!(daemon.run(&["flows", "web"]).lines().count(), 1, "the head");
    assert!(flows(&daemon, &[]).is_empty());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = listener.local_addr().unwrap().port();
    let mut client = netns.connect(host_port).unwrap();
    let mut server = listener.accept().unwrap().0;
    exchange(&mut client, &mut server);
    let inside = netns.listen(80);
    let outside = TcpStream::connect(published).unwrap();
    let accepted = inside.accept().unwrap();

    let all = flows(&daemon, &["web"]);
    assert_eq!(all.len(), 2, "{all:?}");
    let [out, into] = [&all[0], &all[1]];
    let ends = [client.local_addr().unwrap(), server.local_addr().unwrap()].map(|a| a.to_string());
    assert_eq!([&out["guest"], &out["peer"]], [&Value::from(&*ends[0]), &Value::from(&*ends[1])]);
    assert_eq!((&out["state"], &out["published"]), (&"ESTAB".into(), &false.into()));
    assert_eq!(into["peer"], outside.local_addr().unwrap().to_string());
    assert_eq!(
        (&into["guest"], &into["published"]),
        (&accepted.0.local_addr().unwrap().to_string().into(), &true.into())
    );
    let bytes = ["bytes_from_guest", "bytes_to_guest"].map(|key| number(out, key));
    assert_eq!(bytes, [5, 5]);
    assert!(number(&out["tcp"], "rtt_us") > 0 && number(&out["tcp"], "rto_us") >= 200_000);
    assert!(out["tcp"]["ssthresh_bytes"].is_null());

    // The parts add up, and the flows are all that is charged besides what belongs to the container.
    let parts = ["rmem", "ofo", "wmem", "fwd", "sock", "host"];
    for flow in &all {
        let sum: u64 = parts.iter().map(|part| number(flow, &format!("{part}_bytes"))).sum();
        assert_eq!(number(flow, "charged_bytes"), sum, "{flow}");
    }
    let stats = daemon.stats("web");
    let total: u64 = all.iter().map(|flow| number(flow, "host_bytes")).sum();
    assert_eq!(total, number(&stats, "host_bytes") - number(&stats, "listen_bytes"));

    let text = daemon.run(&["flows", "web"]);
    let line = text.lines().nth(1).unwrap();
    for expected in [&ends[0], &ends[1], "ESTAB", "skmem:(r0,rb", " rto:2", " rtt:", " host:"] {
        assert!(line.contains(expected), "{expected} in {line}");
    }
    // A host that reads nothing.
    client.set_nonblocking(true).unwrap();
    while client.write(&[7; 65_536]).is_ok() {}
    until(|| number(&flows(&daemon, &["web"])[0], "recv_queue_bytes") > 0);
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn flows_are_selected_and_listed_in_parts() {
    const FLOWS: usize = 300;
    let daemon = Running::start(&[]);
    let [netns, other] = [Netns::new(), Netns::new()];
    daemon.run(&["attach", "web", "--netns", &netns.path(), "--hard", "64MiB"]);
    daemon.run(&["attach", "other", "--netns", &other.path(), "--hard", "64MiB"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pair = || (netns.connect(port).unwrap(), listener.accept().unwrap().0);
    let open: Vec<_> = (0..FLOWS).map(|_| pair()).collect();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = (GATEWAY, server.local_addr().unwrap().port());
    let socket = netns.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.send_to(b"question", to).unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    server.send_to(b"answer", from).unwrap();
    socket.recv_from(&mut [0; 64]).unwrap();

    // In parts: each of them once.
    let (mut seen, mut after, mut answers) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/v1/containers/web/flows?limit=128{after}");
        let list: Value = serde_json::from_str(&daemon.get(&path)).unwrap();
        let part = list["flows"].as_array().unwrap();
        seen.extend(part.iter().map(|flow| flow["guest"].to_string()));
        answers += 1;
        let Some(next) = list["next"].as_str() else { break };
        assert_eq!(part.len(), 128);
        after = format!("&after={next}");
    }
    assert_eq!((seen.len(), answers), (FLOWS + 1, 3));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), FLOWS + 1);

    let udp = flows(&daemon, &["--protocol", "udp"]);
    assert_eq!((udp.len(), &udp[0]["container"]), (1, &"web".into()));
    let bytes = ["bytes_from_guest", "bytes_to_guest"].map(|key| number(&udp[0], key));
    assert_eq!((bytes, &udp[0]["state"]), ([8, 6], &"UNCONN".into()));
    let one = open[FLOWS / 2].0.local_addr().unwrap().port().to_string();
    assert_eq!(flows(&daemon, &["web", "--port", &one]).len(), 1);
    assert_eq!(
        flows(&daemon, &["web", "--addr", "127.0.0.1", "--state", "established"]).len(),
        FLOWS
    );
    assert!(flows(&daemon, &["other"]).is_empty());
    let several = daemon.run(&["flows", "--port", &one]);
    assert!(
        several.starts_with("CONTAINER") && several.lines().nth(1).unwrap().starts_with("web ")
    );

    for (args, code, expected) in
        [(&["none"][..], 1, "no container is named \"none\""), (&["a/b"], 2, "a/b")]
    {
        let args: Vec<&str> = ["flows"].iter().chain(args).copied().collect();
        assert!(daemon.refuses(&args, code).contains(expected), "{args:?}");
    }
    daemon.end();
}
