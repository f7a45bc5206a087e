//! A well-behaved container with its kernel's TCP: requests at a steady rate on one connection, bytes at a steady rate
//! on two others, one in each direction. Every byte is compared, and its time of arrival is recorded.
//!
//! Requests are due at times fixed in advance. The latency of a request that was delayed by the answer before it counts
//! from the time at which it was due. If only the thread was late, it counts from the actual start.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use skbudget::attach;
use skbudget_sim::Pattern;
use skbudget_sim::packet::GATEWAY;

use crate::network::Network;

const ECHO: u16 = 7;
const UP: u16 = 1;
const DOWN: u16 = 2;

const REQUEST: usize = 64;
const RESPONSE: usize = 1024;

/// Interval between two requests, and between two pieces of bulk data.
const EVERY: Duration = Duration::from_millis(1);
/// Bytes in each piece: 100 Mbit/s.
const PIECE: usize = 12_500;
/// Longer than any step here: a connection that never ends fails the test.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Neighbour {
    began: Clock,
    stop: Arc<AtomicBool>,
    asks: JoinHandle<Vec<Answer>>,
    sends: [JoinHandle<u64>; 2],
    receives: [JoinHandle<Vec<Arrival>>; 2],
}

/// An answered request: the time at which it was due, and its latency from there.
#[derive(Debug, Clone, Copy)]
struct Answer {
    due: Duration,
    took: Duration,
}

/// Number of bytes that had arrived at this time.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Duration,
    bytes: u64,
}

/// All answers and arrivals.
#[derive(Debug)]
pub struct Seen {
    answers: Vec<Answer>,
    arrivals: [Vec<Arrival>; 2],
}

/// Statistics of one interval.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    pub answers: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub worst: Duration,
    /// The longest time without a byte, in either direction.
    pub stall: Duration,
    /// Bytes that arrived as a part of those that were due, in the worse direction.
    pub delivered: f64,
}

impl Neighbour {
    pub fn start(network: &Network, netns: &OwnedFd) -> Self {
        let began = Clock::now();
        let stop = Arc::new(AtomicBool::new(false));
        let connect = |port| {
            let listener: TcpListener = network.listen(port, 8);
            let to = SocketAddrV4::new(GATEWAY, port);
            let guest = attach::run_in(netns.as_fd(), || TcpStream::connect(to).unwrap()).unwrap();
            let host = listener.accept().unwrap().0;
            for end in [&guest, &host] {
                end.set_nodelay(true).unwrap();
                end.set_read_timeout(Some(PATIENCE)).unwrap();
                end.set_write_timeout(Some(PATIENCE)).unwrap();
            }
            (guest, host)
        };
        let (guest, host) = connect(ECHO);
        thread::spawn(move || answer(host));
        let stopped = Arc::clone(&stop);
        let asks = thread::spawn(move || ask(guest, began, &stopped));
        let (up, up_end) = connect(UP);
        let (down_end, down) = connect(DOWN);
        let stopped = [Arc::clone(&stop), Arc::clone(&stop)];
        let [stop_up, stop_down] = stopped;
        let sends = [
            thread::spawn(move || send(up, UP, began, &stop_up)),
            thread::spawn(move || send(down, DOWN, began, &stop_down)),
        ];
        let receives = [
            thread::spawn(move || receive(up_end, UP, began)),
            thread::spawn(move || receive(down_end, DOWN, began)),
        ];
        Self { began, stop, asks, sends, receives }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends both directions. All bytes must have arrived, and must be right.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sends.map(|thread| thread.join().unwrap());
        let arrivals = self.receives.map(|thread| thread.join().unwrap());
        for (sent, arrivals) in sent.iter().zip(&arrivals) {
            assert_eq!(arrivals.last().map(|last| last.bytes), Some(*sent));
        }
        Seen { answers: self.asks.join().unwrap(), arrivals }
    }
}

impl Seen {
    pub fn between(&self, from: Duration, to: Duration) -> Stretch {
        let within = |at: Duration| (from..to).contains(&at);
        let mut took: Vec<_> =
            self.answers.iter().filter(|a| within(a.due)).map(|a| a.took).collect();
        took.sort_unstable();
        assert!(!took.is_empty(), "no request in {from:?}..{to:?}");
        let rank = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
        let due = (to - from).as_secs_f64() / EVERY.as_secs_f64() * PIECE as f64;
        let (mut stall, mut delivered) = (Duration::ZERO, f64::INFINITY);
        for arrivals in &self.arrivals {
            let before = arrivals.iter().rfind(|a| a.at < from);
            let (mut last, mut bytes) = (from, 0);
            for arrival in arrivals.iter().filter(|a| within(a.at)) {
                stall = stall.max(arrival.at - last);
                (last, bytes) = (arrival.at, arrival.bytes);
            }
            stall = stall.max(to - last);
            let bytes = bytes.saturating_sub(before.map_or(0, |a| a.bytes));
            delivered = delivered.min(bytes as f64 / due);
        }
        let worst = rank(100);
        Stretch { answers: took.len(), p50: rank(50), p99: rank(99), worst, stall, delivered }
    }
}

fn sleep_until(due: Duration, began: Clock) {
    if let Some(left) = due.checked_sub(began.elapsed()) {
        thread::sleep(left);
    }
}

fn ask(mut stream: TcpStream, began: Clock, stop: &AtomicBool) -> Vec<Answer> {
    // Without this a sleep would end up to 50 us late.
    let _ = nix::sys::prctl::set_timerslack(1);
    let (mut answers, mut due) = (Vec::new(), began.elapsed());
    let mut bytes = [0; RESPONSE];
    while !stop.load(Ordering::Relaxed) {
        let late = began.elapsed() >= due;
        sleep_until(due, began);
        let from = if late { due } else { began.elapsed() };
        stream.write_all(&bytes[..REQUEST]).unwrap();
        stream.read_exact(&mut bytes).unwrap();
        answers.push(Answer { due, took: began.elapsed() - from });
        due += EVERY;
    }
    answers
}

fn answer(mut stream: TcpStream) {
    let mut bytes = [0x5a; RESPONSE];
    while stream.read_exact(&mut bytes[..REQUEST]).is_ok() && stream.write_all(&bytes).is_ok() {}
}

/// Sends pieces on an absolute schedule: a delay is caught up.
fn send(mut stream: TcpStream, which: u16, began: Clock, stop: &AtomicBool) -> u64 {
    let (pattern, mut at) = (Pattern::from_guest(which), 0);
    let (mut piece, mut due) = (vec![0; PIECE], began.elapsed());
    while !stop.load(Ordering::Relaxed) {
        sleep_until(due, began);
        pattern.fill(at, &mut piece);
        stream.write_all(&piece).unwrap();
        at += PIECE as u64;
        due += EVERY;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    at
}

fn receive(mut stream: TcpStream, which: u16, began: Clock) -> Vec<Arrival> {
    let (pattern, mut bytes) = (Pattern::from_guest(which), 0);
    let (mut arrivals, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let n = stream.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        assert_eq!(pattern.check(bytes, &piece[..n]), Ok(()), "a wrong byte");
        bytes += n as u64;
        arrivals.push(Arrival { at: began.elapsed(), bytes });
    }
    arrivals
}
