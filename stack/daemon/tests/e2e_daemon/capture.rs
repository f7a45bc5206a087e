//! Captures of containers that run: read by tshark and by tcpdump, which share no code that parses pcapng.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{BINARY, Netns, Running, echo_server, echoed, text, unique, until};

/// A capture under way, and its file.
struct Capturing {
    child: Child,
    path: PathBuf,
}

impl Capturing {
    /// Starts a capture. Frames are captured when it returns.
    fn start(daemon: &Running, name: &str, options: &[&str]) -> Self {
        let path = std::env::temp_dir().join(unique("capture-"));
        let mut command = Command::new(BINARY);
        command.args(["capture", name, "-w"]).arg(&path).args(options);
        command.arg("--socket").arg(&daemon.socket).stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // The head arrives before any frame.
        until(|| fs::metadata(&path).is_ok_and(|file| file.len() > 0));
        Self { child, path }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Waits for the end. Returns the numbers of frames captured and lost that the command prints.
    #[track_caller]
    fn end(&mut self) -> (usize, usize) {
        let output = std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
        let output = output.wait_with_output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        let words: Vec<&str> = message.split_whitespace().collect();
        let ["skbudget:", captured, "frames", "captured,", lost, "lost"] = words[..] else {
            panic!("{message}")
        };
        (captured.parse().unwrap(), lost.parse().unwrap())
    }

    /// The fields of every frame, by tshark, one line a frame.
    fn fields(&self, fields: &[&str]) -> Vec<String> {
        let mut command = Command::new("tshark");
        command.arg("-n").arg("-r").arg(&self.path).args(["-T", "fields"]);
        command.args(fields.iter().flat_map(|field| ["-e", *field]));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Every frame, by tcpdump.
    fn lines(&self) -> Vec<String> {
        let output = Command::new("tcpdump").arg("-tnr").arg(&self.path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn two_captures_of_a_container_have_their_frames_by_the_words_of_others() {
    let (daemon, web) = (Running::start(&[]), Netns::new());
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    let (port, server) = echo_server(1);
    let (other_port, other) = echo_server(1);
    let filter = format!("tcp port {port}");
    let mut part = Capturing::start(&daemon, "web", &["--filter", &filter, "--snaplen", "96"]);
    let mut all = Capturing::start(&daemon, "web", &[]);
    echoed(web.connect(port).unwrap(), 1 << 20);
    echoed(web.connect(other_port).unwrap(), 1000);
    server.join().unwrap();
    other.join().unwrap();
    // The end of the container ends its captures, after all that they have.
    daemon.run(&["detach", "web"]);

    let (captured, lost) = part.end();
    assert_eq!(lost, 0);
    assert_eq!((part.fields(&["frame.number"]).len(), part.lines().len()), (captured, captured));
    let fields =
        ["frame.interface_name", "tcp.port", "frame.cap_len", "frame.packet_flags_direction"];
    let mut directions = [0, 0];
    for line in part.fields(&fields) {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields[0], "eth0", "{line}");
        assert!(fields[1].split(',').any(|one| one == port.to_string()), "{line}");
        assert!(fields[2].parse::<usize>().unwrap() <= 96, "{line}");
        // 1 is received by the container, 2 is sent.
        let direction = fields[3].trim_start_matches("0x").trim_start_matches('0');
        directions[direction.parse::<usize>().unwrap() - 1] += 1;
    }
    assert!(directions[0] > 3 && directions[1] > 3, "{directions:?}");

    let (captured, lost) = all.end();
    assert_eq!((lost, all.lines().len()), (0, captured));
    // Every byte of both exchanges, both ways; a retransmission may add some.
    let lengths = all.fields(&["tcp.len"]);
    let sum: usize = lengths.iter().filter_map(|len| len.parse::<usize>().ok()).sum();
    assert!(sum >= 2 * ((1 << 20) + 1000), "{sum}");
    let info = Command::new("capinfos").arg(&all.path).output().unwrap();
    let info = text(&info.stdout);
    assert!(info.contains("container web, 10.") && info.contains("skbudget "), "{info}");
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_reader_that_pauses_loses_frames_which_are_counted_and_the_container_none() {
    let (daemon, web) = (Running::start(&[]), Netns::new());
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    let mut capturing = Capturing::start(&daemon, "web", &[]);
    capturing.signal("STOP");
    let (port, server) = echo_server(1);
    // More than the queue and all buffers on the way hold.
    echoed(web.connect(port).unwrap(), 32 << 20);
    server.join().unwrap();
    let counted = daemon.stats("web")["counters"]["CaptureLost"].as_u64().unwrap();
    assert!(counted > 10, "{counted}");
    capturing.signal("CONT");
    daemon.run(&["detach", "web"]);
    let (captured, lost) = capturing.end();
    assert!(lost as u64 >= counted && captured > 10, "{captured} captured, {lost} lost");
    assert_eq!(capturing.lines().len(), captured);
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_capture_ends_at_its_bounds_and_with_its_client() {
    let (daemon, web) = (Running::start(&["--workers", "1"]), Netns::new());
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    let (port, server) = echo_server(1);
    let mut short = Capturing::start(&daemon, "web", &["--max-bytes", "20000"]);
    let mut interrupted = Capturing::start(&daemon, "web", &["--filter", &format!("port {port}")]);
    echoed(web.connect(port).unwrap(), 1 << 20);
    server.join().unwrap();
    let (captured, _) = short.end();
    let len = fs::metadata(&short.path).unwrap().len();
    assert!(len <= 20_000 && captured > 0, "{len} bytes, {captured} frames");
    assert_eq!(short.lines().len(), captured);
    until(|| fs::metadata(&interrupted.path).unwrap().len() > 1 << 20);
    interrupted.signal("INT");
    let (captured, _) = interrupted.end();
    assert_eq!(interrupted.lines().len(), captured, "whole blocks");
    let mut timed = Capturing::start(&daemon, "web", &["--seconds", "1"]);
    timed.end();

    // All that are allowed, all of an idle container; then one client is killed.
    let mut all: Vec<Capturing> =
        (0..16).map(|_| Capturing::start(&daemon, "web", &["--filter", "port 1"])).collect();
    let refused = daemon.refuses(&["capture", "web", "-w", "/dev/null"], 1);
    assert!(refused.contains("16 captures are under way"), "{refused}");
    all.pop();
    until(|| {
        let output = daemon.command(&["capture", "web", "-w", "/dev/null", "--seconds", "1"]);
        output.status.success()
    });
    // The end of the daemon is an end in order.
    daemon.end();
    assert_eq!(all.pop().unwrap().end(), (0, 0));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_capture_that_is_refused_leaves_the_file_as_it_was() {
    let (daemon, web) = (Running::start(&[]), Netns::new());
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    let path = std::env::temp_dir().join(unique("kept-"));
    fs::write(&path, "kept").unwrap();
    let file = path.to_str().unwrap();
    for (args, code, expected) in [
        (&["none", "-w", file][..], 1, "no container is named \"none\""),
        (&["web", "-w", file, "--max-bytes", "1KiB"], 2, "at least 4096"),
        (&["web", "-w", file, "--filter", "prt 80"], 2, "did you mean port?"),
        (&["web", "-w", file, "--snaplen", "1"], 2, "64..=262144"),
        (&["web", "-w", "/no/such/folder/file"], 1, "/no/such/folder/file: No such file"),
    ] {
        let all: Vec<&str> = ["capture"].iter().chain(args).copied().collect();
        let output = daemon.command(&all);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    fs::remove_file(&path).unwrap();
    for (query, key) in [("filter=prt", "filter"), ("snaplen=1", "snaplen"), ("secnds=1", "secnds")]
    {
        let url = format!("http://daemon/v1/containers/web/capture?{query}");
        let curl = ["-sS", "-w", "%{http_code}", &url, "--unix-socket"];
        let output = Command::new("curl").args(curl).arg(&daemon.socket).output().unwrap();
        let answer = text(&output.stdout);
        let error: Value = serde_json::from_str(answer.strip_suffix("400").unwrap()).unwrap();
        assert_eq!(error["key"], key, "{answer}");
    }
    daemon.end();
}
