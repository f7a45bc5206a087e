//! The client: this executable again, as the command of a container. One test executes the job in the environment
//! variable, and does nothing without one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::{skbudget, text};
use skbudget_testbed::streams::{Streams, receive_all, send_all};

const JOB: &str = "SKBUDGET_E2E_JOB";
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// Longer than any job here.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// The command line that executes a job.
pub(crate) fn command(job: &str) -> Vec<String> {
    let exe = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let set = format!("{JOB}={job}");
    let filter = ["guest::carries_out_its_job", "--exact", "--ignored", "--nocapture", "-q"];
    let mut line = vec!["env".to_owned(), set, exe];
    line.extend(filter.map(str::to_owned));
    line
}

/// Executes a job in a container.
pub(crate) fn run(options: &[&str], job: &str) -> Output {
    skbudget(options).args(command(job)).output().unwrap()
}

/// The output of the job, which must have succeeded.
#[track_caller]
pub(crate) fn answers(output: &Output) -> Vec<String> {
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{:?}: {said}{complained}", output.status);
    said.lines().filter_map(|line| Some(line.split_once("guest: ")?.1.to_owned())).collect()
}

#[test]
#[ignore = "not a test by itself: carries out a job in a container"]
fn carries_out_its_job() {
    let Ok(job) = std::env::var(JOB) else { return };
    let words: Vec<&str> = job.split_whitespace().collect();
    let n = |index: usize| words[index].parse::<u64>().unwrap();
    let to = |index: usize| SocketAddrV4::new(GATEWAY, n(index) as u16);
    match words[0] {
        "send" => {
            let mut stream = TcpStream::connect(to(1)).unwrap();
            send_all(&mut stream, 1, n(2)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
        "receive" => {
            let checker = receive_all(&mut TcpStream::connect(to(1)).unwrap()).unwrap();
            println!("guest: {} {}", checker.got, checker.wrong);
        }
        // Closes its half at once, then reads to the end.
        "end-first" => {
            let mut stream = TcpStream::connect(to(1)).unwrap();
            send_all(&mut stream, 1, n(2)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let checker = receive_all(&mut stream).unwrap();
            println!("guest: {} {}", checker.got, checker.wrong);
        }
        // Waits until the other half is closed. What it sends after that must arrive.
        "end-last" => {
            let mut stream = TcpStream::connect(to(1)).unwrap();
            let checker = receive_all(&mut stream).unwrap();
            send_all(&mut stream, 1, n(2)).unwrap();
            println!("guest: {} {}", checker.got, checker.wrong);
        }
        "connect" => {
            let to = SocketAddrV4::new(words[1].parse().unwrap(), n(2) as u16);
            let started = Instant::now();
            let error = TcpStream::connect(to).err();
            let code = error.and_then(|e| e.raw_os_error()).unwrap_or(0);
            println!("guest: {code} {}", started.elapsed().as_millis());
        }
        "expect-reset" => {
            let mut stream = TcpStream::connect(to(1)).unwrap();
            stream.write_all(b"x").unwrap();
            let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        "reset" => {
            let mut stream = TcpStream::connect(to(1)).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &now).unwrap();
        }
        "serve" => crate::bulk::serve_http(TcpListener::bind(("0.0.0.0", 80)).unwrap(), n(1)),
        "crowd" => {
            let (count, send, hold) = (n(2) as usize, n(3), Duration::from_secs(n(4)));
            let mut streams = Streams::connect(to(1), count, send, hold);
            let open = streams.run_until_open(LONG);
            let tally = streams.run(LONG);
            println!("guest: {} {tally:?}", open.map_or(-1, |t| t.as_millis() as i64));
        }
        // Connections that stay as they are until stdin ends: another process measures them.
        "stall" => {
            let (count, send, hold) = (n(2) as usize, n(3), Duration::from_secs(n(4)));
            let mut streams = Streams::connect(to(1), count, send, hold);
            streams.run_until_open(LONG);
            streams.run(Duration::from_secs(3));
            println!("guest: {:?}", streams.tally());
            let _ = std::io::stdin().read(&mut [0; 1]);
        }
        "cold" => crate::memory::cold(&words[1..]),
        other => panic!("no job is called {other}"),
    }
}
