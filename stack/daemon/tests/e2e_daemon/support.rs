//! A daemon, the commands for it, and containers without a container engine.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use skbudget::attach;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_skbudget");

/// The gateway, which leads to the host's loopback.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 2);

/// A name that no other test uses, short enough for a device.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Polls until the condition holds. It has no limit: the test runner ends a test that hangs.
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon on a socket of its own.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Running {
    pub(crate) fn start(options: &[&str]) -> Self {
        // With the process id: other runs of the tests may share the folder.
        let folder = unique(&format!("daemon-{}-", std::process::id()));
        let socket = std::env::temp_dir().join(folder).join("skbudget.sock");
        Self::on(socket, options)
    }

    pub(crate) fn on(socket: PathBuf, options: &[&str]) -> Self {
        Self::logging(socket, options, Stdio::inherit())
    }

    /// As [`Self::on`], with its log elsewhere.
    pub(crate) fn logging(socket: PathBuf, options: &[&str], log: Stdio) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("serve").arg("--socket").arg(&socket).args(options);
        command.stdin(Stdio::null()).stderr(log);
        let mut running = Self { child: command.spawn().unwrap(), socket };
        until(|| {
            assert_eq!(running.child.try_wait().unwrap(), None, "the daemon ended");
            running.command(&["ls"]).status.success()
        });
        running
    }

    /// Runs a command for this daemon.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        client(&self.socket, args)
    }

    /// Runs a command that must succeed. Returns what it prints.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with this code. Returns its message.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str], code: i32) -> String {
        let output = self.command(args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.starts_with("skbudget: ") && message.lines().count() == 1, "{message}");
        message
    }

    /// What `stats --json` reports of a container.
    #[track_caller]
    pub(crate) fn stats(&self, name: &str) -> Value {
        let stats: Value = serde_json::from_str(&self.run(&["stats", name, "--json"])).unwrap();
        stats["containers"][0].clone()
    }

    /// Names of the containers.
    pub(crate) fn names(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.run(&["ls", "--json"])).unwrap();
        let all = list["containers"].as_array().unwrap().iter();
        all.map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The body of an answer, by a client of others.
    pub(crate) fn get(&self, path: &str) -> String {
        let url = format!("http://daemon{path}");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--unix-socket"]).arg(&self.socket).arg(url);
        let output = curl.output().unwrap();
        assert!(output.status.success(), "{path}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Follows the events from now on.
    pub(crate) fn follow(&self) -> Following {
        let mut command = Command::new(BINARY);
        command.arg("events").arg("--after").arg("0").arg("--socket").arg(&self.socket);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Following { child, lines }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Ends the daemon, which must succeed and leave nothing.
    pub(crate) fn end(mut self) {
        self.signal("TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let folder = self.socket.parent().unwrap();
        // The state of containers that were attached to the end, for the next daemon.
        let _ = fs::remove_dir_all(folder.join("state"));
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        fs::remove_dir(folder).unwrap();
    }
}

/// `skbudget events`.
#[derive(Debug)]
pub(crate) struct Following {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Following {
    /// The type of the next event.
    pub(crate) fn next_type(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert!(event["id"].is_u64() && event["time_ns"].is_u64(), "{line}");
        event["type"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of the command: nothing follows, and it succeeds.
    pub(crate) fn ended(&mut self) -> bool {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        rest.is_empty() && self.child.wait().unwrap().success()
    }
}

/// A command for the daemon on that socket.
pub(crate) fn client(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).arg("--socket").arg(socket).stdin(Stdio::null()).output().unwrap()
}

/// `serve` with options that make it end by itself.
pub(crate) fn serve(options: &[&str]) -> Output {
    Command::new(BINARY).arg("serve").args(options).stdin(Stdio::null()).output().unwrap()
}

/// A named network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let netns = Self { name: unique("c") };
        ip(&["netns", "add", &netns.name]);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` in the namespace.
    pub(crate) fn ip(&self, args: &[&str]) {
        let all: Vec<&str> = ["-n", self.name.as_str()].iter().chain(args).copied().collect();
        ip(&all);
    }

    /// Names of its devices.
    pub(crate) fn devices(&self) -> Vec<String> {
        let output = Command::new("ip").args(["-n", &self.name, "-j", "link"]).output().unwrap();
        let links: Value = serde_json::from_slice(&output.stdout).unwrap();
        let names = links.as_array().unwrap().iter();
        names.map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }

    /// Numbers of its devices: another one of the same name has another.
    pub(crate) fn links(&self) -> Vec<u64> {
        let output = Command::new("ip").args(["-n", &self.name, "-j", "link"]).output().unwrap();
        let links: Value = serde_json::from_slice(&output.stdout).unwrap();
        links.as_array().unwrap().iter().map(|link| link["ifindex"].as_u64().unwrap()).collect()
    }

    fn fd(&self) -> OwnedFd {
        attach::open_netns(self.path().as_ref()).unwrap()
    }

    /// Runs `work` in the namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        attach::run_in(self.fd().as_fd(), work).unwrap()
    }

    /// A connection from the namespace to a port of the host's loopback.
    pub(crate) fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        self.inside(|| TcpStream::connect((GATEWAY, port)))
    }

    /// A server in the namespace.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", text(&output.stderr));
}

/// A process in a network namespace of its own.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
}

impl Process {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "1000"]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Self { child: command.spawn().unwrap() };
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", process.child.id());
        until(|| fs::read_link(&path).is_ok_and(|netns| netns != own));
        process
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on the host's loopback that sends back what it receives, for `connections` connections.
pub(crate) fn echo_server(connections: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let echoes: Vec<_> = (0..connections)
            .map(|_| {
                let mut stream = listener.accept().unwrap().0;
                thread::spawn(move || {
                    let mut from = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut from, &mut stream);
                })
            })
            .collect();
        echoes.into_iter().for_each(|echo| echo.join().unwrap());
    };
    (port, thread::spawn(serve))
}

/// Sends bytes and receives them back.
#[track_caller]
pub(crate) fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut bytes = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut bytes).unwrap();
    server.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

/// Sends `len` bytes to an echo server, and checks what returns.
pub(crate) fn echoed(mut stream: TcpStream, len: usize) {
    let sent: Vec<u8> = (0..len).map(|i| (i / 7 + i % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {len} bytes", received.len());
    });
}

/// A port of the host that is free now, and its publication as container port 80.
pub(crate) fn free_port() -> (SocketAddr, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, format!("{addr}:80"))
}
