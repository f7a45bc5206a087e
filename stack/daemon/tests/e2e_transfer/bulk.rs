//! Whole files over HTTP, and transfers longer than the sequence number space.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::{self, answers};
use crate::support::{
    Running, TempFile, free_port, pattern, script, serve, sha256, skbudget, succeed,
};
use crate::{LINKS, lacks, length};
use skbudget_testbed::streams::{receive_all, send_all};

const FILE: usize = 200_000_000;

/// Serves `connections` with one request each: a GET returns the file, a PUT whether the body equals it.
pub(crate) fn serve_http(listener: TcpListener, connections: u64) {
    let file = pattern(FILE);
    for _ in 0..connections {
        answer(&listener.accept().unwrap().0, &file);
    }
}

fn answer(stream: &TcpStream, file: &[u8]) {
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut writer = stream;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let ok = |len: usize| {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n")
    };
    if head.starts_with("GET") {
        writer.write_all(ok(file.len()).as_bytes()).unwrap();
        writer.write_all(file).unwrap();
    } else {
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        if value("Expect:").is_some() {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        }
        let len: usize = value("Content-Length: ").unwrap().parse().unwrap();
        let mut body = vec![0; len];
        reader.read_exact(&mut body).unwrap();
        let verdict = if body == file { "intact" } else { "damaged" };
        writer.write_all(ok(verdict.len()).as_bytes()).unwrap();
        writer.write_all(verdict.as_bytes()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let _ = reader.read_to_end(&mut Vec::new());
}

fn start_http(connections: u64) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, thread::spawn(move || serve_http(listener, connections)))
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_file_is_fetched_and_its_hash_is_the_same() {
    if lacks("file_down", "curl") {
        return;
    }
    let expected = sha256(&pattern(FILE));
    let repeat = length("REPEAT", 3);
    for link in LINKS {
        let (port, server) = start_http(repeat);
        let line = format!(
            "set -eo pipefail; for i in $(seq {repeat}); do \
             curl -sS http://10.0.2.2:{port}/ | sha256sum | cut -d' ' -f1; done"
        );
        let started = Instant::now();
        let said = succeed(&script(&link, &line));
        let equal = said.lines().filter(|line| *line == expected).count();
        println!(
            "file_down: mtu={} offload={} bytes={FILE} transfers={repeat} same_sha256={equal} seconds={:.1}",
            link[1],
            link[3],
            started.elapsed().as_secs_f64()
        );
        assert_eq!((equal, said.lines().count()), (repeat as usize, repeat as usize), "{said}");
        server.join().unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_file_is_uploaded_whole() {
    if lacks("file_up", "curl") {
        return;
    }
    let file = TempFile::new("upload");
    std::fs::write(&file.0, pattern(FILE)).unwrap();
    let repeat = length("REPEAT", 3);
    for link in LINKS {
        let (port, server) = start_http(repeat);
        let line = format!(
            "set -e; for i in $(seq {repeat}); do curl -sS -T {} http://10.0.2.2:{port}/; echo; done",
            file.path()
        );
        let started = Instant::now();
        let said = succeed(&script(&link, &line));
        let intact = said.lines().filter(|line| *line == "intact").count();
        println!(
            "file_up: mtu={} offload={} bytes={FILE} transfers={repeat} intact={intact} seconds={:.1}",
            link[1],
            link[3],
            started.elapsed().as_secs_f64()
        );
        assert_eq!((intact, said.lines().count()), (repeat as usize, repeat as usize), "{said}");
        server.join().unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_published_port_serves_the_file_to_the_host() {
    let expected = pattern(FILE);
    let repeat = length("REPEAT", 3);
    for link in LINKS {
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:80");
        let mut command = skbudget(&[&link[..], &["-p", &publish]].concat());
        let line = guest::command(&format!("serve {repeat}"));
        // Until the command listens, the container refuses connections.
        let child = command.args(line).stdout(Stdio::null()).spawn().unwrap();
        let mut running = Running { child, line: String::new() };
        let started = Instant::now();
        let mut equal = 0;
        while equal < repeat {
            let Some(body) = get(SocketAddr::from(([127, 0, 0, 1], port))) else {
                assert!(started.elapsed() < guest::LONG && equal == 0, "{equal}");
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            assert!(body == expected, "{link:?}");
            equal += 1;
        }
        println!(
            "published: mtu={} offload={} bytes={FILE} transfers={repeat} equal={equal} seconds={:.1}",
            link[1],
            link[3],
            started.elapsed().as_secs_f64()
        );
        assert!(running.wait().success());
    }
}

/// The body of a response; `None` while the server does not run.
fn get(addr: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).ok()?;
    let head = all.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    all.drain(..head);
    Some(all)
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn beyond_the_sequence_numbers_up() {
    let len = length("LONG_MIB", 4608) << 20;
    let (port, server) = serve(1, |mut stream| {
        let checker = receive_all(&mut stream).unwrap();
        (checker.got, checker.wrong)
    });
    let started = Instant::now();
    answers(&guest::run(&[], &format!("send {port} {len}")));
    let seconds = started.elapsed().as_secs_f64();
    let (got, wrong) = server.join().unwrap()[0];
    println!("long_up: bytes={got} wrong={wrong} seconds={seconds:.1}");
    assert_eq!((got, wrong), (len, 0));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn beyond_the_sequence_numbers_down() {
    let len = length("LONG_MIB", 4608) << 20;
    let (port, server) = serve(1, move |mut stream| send_all(&mut stream, 2, len).unwrap());
    let started = Instant::now();
    let said = answers(&guest::run(&[], &format!("receive {port}")));
    let seconds = started.elapsed().as_secs_f64();
    println!("long_down: got_wrong=\"{}\" seconds={seconds:.1}", said[0]);
    assert_eq!(said, [format!("{len} 0")]);
    server.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn nginx_and_a_connection_kept_alive() {
    if lacks("nginx", "nginx") || lacks("nginx", "curl") {
        return;
    }
    let dir = TempFile::new("nginx");
    std::fs::create_dir(&dir.0).unwrap();
    let port = free_port();
    let root = dir.path();
    std::fs::write(dir.0.join("file"), pattern(FILE)).unwrap();
    std::fs::write(
        dir.0.join("conf"),
        format!(
            "daemon off; master_process off; user root; pid {root}/pid; error_log {root}/error;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
             fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
        ),
    )
    .unwrap();
    let conf = format!("{root}/conf");
    let mut nginx = Command::new("nginx").args(["-c", &conf]).spawn().unwrap();
    crate::support::until(|| fetchable(port));
    let url = format!("http://10.0.2.2:{port}/file");
    let line = format!(
        "set -eo pipefail; curl -sS {url} | sha256sum | cut -d' ' -f1; \
         curl -sS -o /dev/null -o /dev/null -o /dev/null -w '%{{num_connects}} ' {url} {url} {url}"
    );
    let output = script(&["--mtu", "1500"], &line);
    let _ = nginx.kill();
    let _ = nginx.wait();
    let _ = std::fs::remove_dir_all(&dir.0);
    let said = succeed(&output);
    let expected = format!("{}\n1 0 0 ", sha256(&pattern(FILE)));
    println!("nginx: bytes={FILE} same_sha256={} connects=\"1 0 0\"", said == expected);
    assert_eq!(said, expected);
}

fn fetchable(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}
