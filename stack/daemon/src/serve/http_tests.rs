//! The server with clients that are wrong, slow, gone or many. No container is attached: that needs privileges.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use super::config::ServeConfig;
use super::control::Control;
use super::http::{BODY_BYTES_MAX, Server};
use super::privileged::Privileged;
use crate::daemon::{Daemon, DaemonConfig};

/// A server on a socket of its own.
struct Rig {
    path: PathBuf,
    server: Option<Server>,
}

impl Rig {
    fn start() -> Self {
        Self::with("")
    }

    /// With this configuration.
    fn with(config: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skbudget-api-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let config = ServeConfig::parse("test", config).unwrap();
        let (host, groups) = (config.host, config.groups.clone());
        let daemon = Daemon::new(DaemonConfig { host, groups, ..DaemonConfig::default() }).unwrap();
        let control = Arc::new(Control::new(daemon, config, Privileged::Here(Mutex::default()), 0));
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, server: Some(Server::start(listener, control).unwrap()) }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Sends one request. Returns status, headers and body.
    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String, Value) {
        let mut stream = self.connect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // A server that refuses a large body does not read it.
        let _ = stream.write_all(request.as_bytes());
        answer(stream)
    }

    /// The error code of a request that is refused with this status.
    #[track_caller]
    fn refuses(&self, method: &str, path: &str, body: &str, status: u16) -> (String, Value) {
        let (found, _, answer) = self.request(method, path, body);
        assert_eq!(found, status, "{method} {path} {body:.100}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
        (answer["code"].as_str().unwrap().to_owned(), answer["key"].clone())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.take().unwrap().stop();
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// Reads an answer up to the end of the connection.
fn answer(mut stream: UnixStream) -> (u16, String, Value) {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn what_is_there_is_answered() {
    let rig = Rig::start();
    assert_eq!(rig.request("GET", "/healthz", "").0, 200);
    let (status, head, list) = rig.request("GET", "/v1/containers", "");
    assert_eq!((status, &list["containers"]), (200, &Value::Array(Vec::new())));
    assert!(head.contains("content-type: application/json"), "{head}");
    let (status, _, stats) = rig.request("GET", "/v1/stats", "");
    assert_eq!((status, stats["schema"].as_str()), (200, Some("skbudget.stats/1")));
}

#[test]
fn what_is_wrong_is_refused_with_code_message_and_key() {
    let rig = Rig::start();
    let code = |method, path: &str, body: &str, status| rig.refuses(method, path, body, status).0;
    assert_eq!(code("GET", "/", "", 404), "no_such_path");
    assert_eq!(code("GET", "/v1/containers/", "", 404), "no_such_path");
    assert_eq!(code("GET", "/v1/containers/a/b/c", "", 404), "no_such_path");
    for name in ["web", "%2e%2e", "%ff", &"x".repeat(300)] {
        let path = format!("/v1/containers/{name}");
        assert_eq!(code("GET", &path, "", 404), "no_such_container");
        assert_eq!(code("DELETE", &path, "", 404), "no_such_container");
        assert_eq!(code("PATCH", &path, r#"{"hard": "1MiB"}"#, 404), "no_such_container");
        let ports = format!("{path}/ports");
        assert_eq!(code("POST", &ports, r#"{"publish": ["8080:80"]}"#, 404), "no_such_container");
    }
    let (status, head, _) = rig.request("PUT", "/v1/containers", "");
    assert_eq!(status, 405);
    assert!(head.contains("allow: GET, POST"), "{head}");
    let large = "x".repeat(BODY_BYTES_MAX + 1);
    assert_eq!(code("POST", "/v1/containers", &large, 413), "too_large");
    for (body, expected, key) in [
        ("", "bad_json", None),
        ("{", "bad_json", None),
        ("[]", "bad_json", None),
        (r#"{"nmae": "a"}"#, "unknown_key", Some("nmae")),
        (r#"{"name": 7}"#, "bad_value", Some("name")),
        (r#"{"pid": 1}"#, "missing_key", Some("name")),
        (r#"{"name": "a/b", "pid": 1}"#, "bad_value", Some("name")),
        (r#"{"name": "a"}"#, "missing_key", Some("netns")),
        (r#"{"name": "a", "pid": 1, "netns": "/x"}"#, "bad_value", Some("netns")),
        (r#"{"name": "a", "netns": "x"}"#, "bad_value", Some("netns")),
        (r#"{"name": "a", "netns": "/dev/null"}"#, "not_a_netns", Some("netns")),
        (r#"{"name": "a", "pid": 1, "ifname": "a/b"}"#, "bad_value", Some("ifname")),
        (r#"{"name": "a", "pid": 1, "hard": "1KiB"}"#, "bad_value", Some("hard")),
        (r#"{"name": "a", "pid": 1, "hard": []}"#, "bad_value", Some("hard")),
        (r#"{"name": "a", "pid": 1, "min": "1MiB"}"#, "bad_value", Some("min")),
        (r#"{"name": "a", "pid": 1, "group": "b"}"#, "no_such_group", Some("group")),
        (r#"{"name": "a", "pid": 1, "tcp_rmem": [3, 2, 1]}"#, "bad_value", Some("tcp_rmem")),
        (r#"{"name": "a", "pid": 1, "publish": ["80"]}"#, "bad_value", Some("publish")),
    ] {
        let (code, found) = rig.refuses("POST", "/v1/containers", body, 400);
        assert_eq!((code.as_str(), found.as_str()), (expected, key), "{body}");
    }
    let own = format!(r#"{{"name": "a", "pid": {}}}"#, std::process::id());
    assert_eq!(code("POST", "/v1/containers", &own, 400), "not_a_container");
    let gone = format!(r#"{{"name": "a", "pid": {}}}"#, i32::MAX);
    assert_eq!(code("POST", "/v1/containers", &gone, 404), "no_such_process");
    // Nothing of all that remains.
    let (_, _, list) = rig.request("GET", "/v1/containers", "");
    assert_eq!(list["containers"], Value::Array(Vec::new()));
}

#[test]
fn limits_of_groups_and_of_the_host_change() {
    let rig = Rig::with(
        "[host]\nhard = '64MiB'\n[[group]]\nname = 'prod'\nhard = '32MiB'\n\
         [[group]]\nname = 'web'\nparent = 'prod'\nhard = '16MiB'\nweight = 300",
    );
    let (status, _, all) = rig.request("GET", "/v1/groups", "");
    assert_eq!(status, 200);
    let web = &all["groups"][1];
    assert_eq!((web["name"].as_str(), web["parent"].as_str()), (Some("web"), Some("prod")));
    assert_eq!((&web["hard_bytes"], &web["weight"]), (&(16 << 20).into(), &300.into()));
    let (status, _, web) = rig.request("PATCH", "/v1/groups/web", r#"{"hard": "8MiB"}"#);
    assert_eq!(
        (status, &web["hard_bytes"], &web["low_bytes"]),
        (200, &(8 << 20).into(), &(4 << 20).into())
    );
    let host = r#"{"hard": "48MiB", "soft": "40MiB"}"#;
    assert_eq!(rig.request("PATCH", "/v1/groups/host", host).0, 200);
    let (_, _, stats) = rig.request("GET", "/v1/stats", "");
    assert_eq!(stats["host"]["soft_bytes"], 40 << 20);
    assert_eq!(stats["groups"][1]["hard_bytes"], 8 << 20);
    for (path, body, status, expected) in [
        ("/v1/groups/web", "{}", 400, ("missing_key", Some("hard"))),
        ("/v1/groups/web", r#"{"hard": "8MiB", "soft": "9MiB"}"#, 400, ("bad_value", Some("soft"))),
        ("/v1/groups/web", r#"{"hard": "8MiB", "min": 1}"#, 400, ("unknown_key", Some("min"))),
        ("/v1/groups/wbe", r#"{"hard": "8MiB"}"#, 404, ("no_such_group", None)),
    ] {
        let (code, key) = rig.refuses("PATCH", path, body, status);
        assert_eq!((code.as_str(), key.as_str()), expected, "{path} {body}");
    }
    assert_eq!(Rig::start().refuses("PATCH", "/v1/groups/host", host, 404).0, "no_such_group");
}

#[test]
fn a_head_that_is_none_or_too_large_is_refused() {
    let rig = Rig::start();
    let send = |text: &str| {
        let mut stream = rig.connect();
        let _ = stream.write_all(text.as_bytes());
        answer(stream).0
    };
    assert_eq!(send("\u{1}\u{2}\u{3}\r\n\r\n"), 400);
    assert_eq!(send("GET /healthz HTTP/9.9\r\n\r\n"), 400);
    let long = "x".repeat(64 << 10);
    assert!([400, 414, 431].contains(&send(&format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"))));
    let many: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
    assert_eq!(send(&format!("GET /healthz HTTP/1.1\r\n{many}\r\n")), 431);
}

#[test]
fn slow_and_silent_clients_delay_no_other() {
    let rig = Rig::start();
    let mut slow = rig.connect();
    slow.write_all(b"GET /healthz HT").unwrap();
    let mut half = rig.connect();
    half.write_all(b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    let _silent: Vec<UnixStream> = (0..50).map(|_| rig.connect()).collect();
    assert_eq!(rig.request("GET", "/healthz", "").0, 200);
    // The slow one is still served when it goes on.
    slow.write_all(b"TP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(answer(slow).0, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::start();
    let mut stream = rig.connect();
    let requests = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(requests.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let statuses: Vec<_> =
        text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[test]
fn a_thousand_clients_at_once_are_all_answered() {
    let rig = Rig::start();
    let ask = || (0..125).filter(|_| rig.request("GET", "/v1/containers", "").0 == 200).count();
    let answered: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(answered, 1000);
    // More than there are slots for, at the same time.
    let waiting: Vec<UnixStream> = (0..300)
        .map_while(|_| {
            let mut stream = UnixStream::connect(&rig.path).ok()?;
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .ok()?;
            Some(stream)
        })
        .collect();
    assert_eq!(waiting.len(), 300);
    assert!(waiting.into_iter().all(|stream| answer(stream).0 == 200));
}

#[test]
fn events_are_streamed_and_resumed() {
    let rig = Rig::with("[host]\nhard = '64MiB'");
    let change = || rig.request("PATCH", "/v1/groups/host", r#"{"hard": "48MiB"}"#).0;
    let follow = |last: &str| {
        let mut stream = rig.connect();
        let request = format!("GET /v1/events HTTP/1.1\r\nHost: x\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    /// Reads until the text is there.
    fn until(stream: &mut UnixStream, expected: &str) -> String {
        let mut text = String::new();
        let mut bytes = [0; 4096];
        while !text.contains(expected) {
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
        text
    }
    let mut live = follow("");
    until(&mut live, ": events");
    assert_eq!((change(), change()), (200, 200));
    let text = until(&mut live, "id: 2");
    assert!(text.contains(r#""type":"limits_changed""#) && text.contains("id: 1"), "{text}");
    // A client that had the first one.
    let text = until(&mut follow("Last-Event-ID: 1\r\n"), "id: 2");
    assert!(!text.contains("id: 1"), "{text}");
    // One that had events of an earlier daemon.
    let text = until(&mut follow("Last-Event-ID: 99\r\n"), "id: 2");
    assert!(text.contains("event: lost"), "{text}");
}

#[test]
fn what_is_no_text_no_whole_request_or_too_deep_changes_nothing() {
    let rig = Rig::start();
    // A client that ends its half of the connection is gone: no answer is sent.
    let send = |bytes: &[u8], ends: bool| {
        let mut stream = rig.connect();
        let _ = stream.write_all(bytes);
        if ends {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    };
    let raw = |bytes: &[u8]| send(bytes, false);
    let post = |body: &[u8], length: usize| {
        let head = format!(
            "POST /v1/containers HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        send(&[head.as_bytes(), body].concat(), body.len() < length)
    };
    // Bodies: not UTF-8, nested too deep for a parser's stack, and cut off.
    for body in [&b"{\"name\": \"\xff\xfe\"}"[..], b"\xff", &b"[".repeat(60_000)] {
        let answer = post(body, body.len());
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bad_json"), "{answer}");
    }
    let cut = post(b"{\"name\": \"a\"", 1000);
    assert!(cut.is_empty() || cut.starts_with("HTTP/1.1 400"), "{cut}");
    // Heads: a path that is no text, and one that ends before its end.
    let path = raw(b"GET /v1/containers/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(path.starts_with("HTTP/1.1 4"), "{path}");
    assert!(!send(b"GET /v1/stats HTT", true).contains("200"));
    // Names that no container can have, and a length that is none.
    for name in
        ["x".repeat(300), "a/b".to_owned(), "..".to_owned(), String::new(), "\u{e9}".to_owned()]
    {
        let body = serde_json::json!({ "name": name, "pid": 1 }).to_string();
        let (code, found) = rig.refuses("POST", "/v1/containers", &body, 400);
        assert_eq!((code.as_str(), found), ("bad_value", "name".into()), "{name}");
    }
    let lengths = raw(b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\nConnection: close\r\n\r\n{}");
    assert!(lengths.starts_with("HTTP/1.1 400"), "{lengths}");
    // The server answers, and nothing of all that remains.
    let (status, _, list) = rig.request("GET", "/v1/containers", "");
    assert_eq!((status, &list["containers"]), (200, &Value::Array(Vec::new())));
}
