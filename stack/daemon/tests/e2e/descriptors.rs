//! A process without free descriptors: it logs little, and continues as soon as some are free. Descriptors of the
//! caller: the command has them alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{BINARY, free_port, serve, succeed};

const LIMIT: usize = 64;

/// Connections wait in the listen queue, which takes no descriptors; an outgoing connect fails meanwhile and is
/// retried.
const INSIDE: &str = "
import socket, sys
s = socket.create_server(('0.0.0.0', 80), backlog=200)
print('ready', flush=True)
sys.stdin.readline()
out = socket.create_connection(('10.0.2.2', int(sys.argv[1])), timeout=60)
print('connected', flush=True)
while True:
    c = s.accept()[0]
    c.settimeout(1)
    try:
        if c.recv(4) == b'ping':
            c.sendall(b'pong')
            break
    except OSError:
        pass
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn want_of_descriptors_is_reported_once_a_minute_and_ends_with_them() {
    let port = free_port();
    let (outward, server) = serve(1, drop);
    let script =
        format!("ulimit -n {LIMIT}; exec \"$0\" run -p {port}:80 -- python3 -c \"$1\" {outward}");
    let mut child = Command::new("bash")
        .args(["-c", &script, BINARY, INSIDE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut inside = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(inside.next().as_deref(), Some("ready"));
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(100));
    let held: Vec<TcpStream> = (0..LIMIT + 16).filter_map(|_| connect().ok()).collect();
    assert!(held.len() > LIMIT / 2, "{} connections", held.len());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    // The daemon retries its listener every 50 ms.
    thread::sleep(Duration::from_secs(2));
    // Each client resets: after a close, the connections not accepted yet would stay open in the container.
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    held.iter().for_each(|stream| setsockopt(stream, sockopt::Linger, &now).unwrap());
    drop(held);
    assert_eq!(inside.next().as_deref(), Some("connected"));
    let mut last = TcpStream::connect(to).unwrap();
    last.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
    assert!(child.wait().unwrap().success());
    server.join().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let lines = |what: &str| said.lines().filter(|line| line.contains(what)).count();
    assert_eq!(lines("accept on a published port: Too many open files"), 1, "{said}");
    assert_eq!(lines("cannot open a connection: Too many open files"), 1, "{said}");
}

/// The reader of a pipe sees its end as soon as the command closes it, and the writer EPIPE.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_descriptor_that_the_command_closes_is_open_nowhere_else() {
    let caller = "
import os, select, subprocess, sys
r, w = os.pipe(); said, say = os.pipe(); pipe = subprocess.PIPE
inside = f'echo inherited >&{w}; exec {w}>&- 0<&- 1>&- 2>&-; echo closed >&{say}; exec sleep 1000'
run = [sys.argv[1], 'run', '--', 'sh', '-c', inside]
job = subprocess.Popen(run, stdin=pipe, stdout=pipe, pass_fds=(w, say))
os.close(w); os.close(say)
assert os.read(said, 100) == b'closed\\n' and os.read(r, 100) == b'inherited\\n'
for fd in (r, job.stdout.fileno()):
    print('end' if select.select([fd], [], [], 10)[0] and not os.read(fd, 1) else 'open')
hung = select.poll(); hung.register(job.stdin, 0)
print('end' if hung.poll(10000) else 'open', job.poll())
job.terminate(); print(job.wait())
";
    let output = Command::new("python3").args(["-c", caller, BINARY]).output().unwrap();
    assert_eq!(succeed(&output), "end\nend\nend None\n143\n", "{output:?}");
}
