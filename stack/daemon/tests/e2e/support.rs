//! Starts the binary and servers for it, and checks what a run leaves behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use skbudget_sim::Rng;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_skbudget");

/// `skbudget run` with options; the command must be added after `--`.
pub(crate) fn skbudget(options: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("run").args(options).arg("--").stdin(Stdio::null());
    command
}

/// Runs a bash script in a container.
pub(crate) fn script(options: &[&str], script: &str) -> Output {
    skbudget(options).args(["bash", "-c", script]).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The output of a command that must have succeeded.
#[track_caller]
pub(crate) fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// A name or file name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A file that is removed at the end of the test.
#[derive(Debug)]
pub(crate) struct TempFile(pub(crate) PathBuf);

impl TempFile {
    pub(crate) fn new(what: &str) -> Self {
        Self(std::env::temp_dir().join(unique(what)))
    }
    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A container that runs until it is killed. Its command has printed one line.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) line: String,
}

impl Running {
    pub(crate) fn start(options: &[&str], script: &str) -> Self {
        let command = &mut skbudget(options);
        Self::spawn(command.args(["bash", "-c", script]))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, line: line.trim().to_owned() }
    }

    pub(crate) fn signal(&self, signal: &str) {
        signal_pid(self.child.id(), signal);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal_pid(pid: u32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// The result of `read` for every process of this machine, by pid.
fn of_all_processes(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|pid| read(&pid))
        .collect()
}

/// The child of a process that has this argument.
pub(crate) fn child_of(parent: u32, argument: &str) -> u32 {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let has_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).find(has_it).unwrap()
}

/// Whether a process has this text in its arguments.
pub(crate) fn process_with(argument: &str) -> bool {
    let all = of_all_processes(|pid| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(text(&bytes))
    });
    all.iter().any(|line| line.contains(argument))
}

/// Whether a process is in this network namespace, written as `net:[4026531840]`.
pub(crate) fn netns_in_use(netns: &str) -> bool {
    let all = of_all_processes(|pid| {
        let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
        link.into_os_string().into_string().ok()
    });
    all.iter().any(|link| link == netns)
}

/// Polls until the condition holds. It has no limit: the test runner ends a test that hangs.
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A server on the loopback that serves `connections` connections and then ends.
pub(crate) fn serve<T: Send + 'static>(
    connections: usize,
    handle: impl Fn(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || (0..connections).map(|_| handle(listener.accept().unwrap().0)).collect();
    (port, thread::spawn(serve))
}

/// Sends received bytes back until the end of the stream.
pub(crate) fn echo(mut stream: TcpStream) -> u64 {
    let mut from = stream.try_clone().unwrap();
    let n = std::io::copy(&mut from, &mut stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    n
}

/// `len` bytes of a pattern that does not repeat.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut rng = Rng::new(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The hash in the format of sha256sum.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    text(&out).split_whitespace().next().unwrap().to_owned()
}

/// All bytes that a server on `addr` sends.
pub(crate) fn fetch(addr: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

/// A port that no process listens on now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
