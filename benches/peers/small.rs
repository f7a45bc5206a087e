//! The small programs at both ends of a measurement: this executable, started with one of these subcommands.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

/// Connections of one `crr` run: fewer than a client's ephemeral ports, before the first leaves TIME-WAIT.
const CONNECTIONS_MAX: usize = 25_000;
/// Bytes of one read or write.
const PIECE: usize = 256 << 10;
/// A reader that receives nothing for this time gives up.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Subcommand)]
#[command(hide = true)]
pub(crate) enum Small {
    /// Sends received bytes back, to any number of clients
    Echo {
        port: u16,
    },
    /// One byte in each direction on one connection
    Rr {
        to: Ipv4Addr,
        port: u16,
        seconds: u64,
    },
    /// Connect, one byte in each direction, close
    Crr {
        to: Ipv4Addr,
        port: u16,
        seconds: u64,
    },
    /// Writes to its only client until that closes
    FloodAt {
        port: u16,
    },
    FloodTo {
        to: Ipv4Addr,
        port: u16,
    },
    /// Lets its only client fill the flow, reads until nothing is left, and repeats
    DrainAt {
        port: u16,
        cycles: u32,
    },
    DrainFrom {
        to: Ipv4Addr,
        port: u16,
        cycles: u32,
    },
}

pub(crate) fn run(small: Small) -> io::Result<()> {
    match small {
        Small::Echo { port } => echo(port),
        Small::Rr { to, port, seconds } => rr(to, port, Duration::from_secs(seconds)),
        Small::Crr { to, port, seconds } => crr(to, port, Duration::from_secs(seconds)),
        Small::FloodAt { port } => flood(accept(port)?),
        Small::FloodTo { to, port } => flood(TcpStream::connect((to, port))?),
        Small::DrainAt { port, cycles } => drain(accept(port)?, cycles),
        Small::DrainFrom { to, port, cycles } => drain(TcpStream::connect((to, port))?, cycles),
    }
}

fn accept(port: u16) -> io::Result<TcpStream> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.accept()?.0)
}

fn echo(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            // Nagle would delay a byte until the one before is acknowledged.
            let _ = stream.set_nodelay(true);
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

fn rr(to: Ipv4Addr, port: u16, length: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect((to, port))?;
    stream.set_nodelay(true)?;
    let (began, mut took) = (Instant::now(), Vec::with_capacity(1 << 20));
    while began.elapsed() < length {
        took.push(there_and_back(&mut stream, Instant::now())?);
    }
    say_rate(began.elapsed(), took, 0);
    Ok(())
}

fn crr(to: Ipv4Addr, port: u16, length: Duration) -> io::Result<()> {
    let (began, mut took, mut errors) = (Instant::now(), Vec::new(), 0);
    while began.elapsed() < length && took.len() + errors < CONNECTIONS_MAX {
        // Before connect: the handshake is part of a `crr` round.
        let start = Instant::now();
        let stream = TcpStream::connect((to, port));
        match stream.and_then(|mut stream| there_and_back(&mut stream, start)) {
            Ok(time) => took.push(time),
            Err(_) => errors += 1,
        }
    }
    say_rate(began.elapsed(), took, errors);
    Ok(())
}

fn there_and_back(stream: &mut TcpStream, start: Instant) -> io::Result<Duration> {
    let mut byte = [1];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(start.elapsed())
}

fn say_rate(length: Duration, mut took: Vec<Duration>, errors: usize) {
    took.sort_unstable();
    let line = json!({
        "per_second": took.len() as f64 / length.as_secs_f64(),
        "p50_us": percentile(&took, 50),
        "p99_us": percentile(&took, 99),
        "errors": errors,
    });
    println!("{line}");
}

/// Microseconds; 0 if there are no values.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).map_or(0.0, |d| d.as_secs_f64() * 1e6)
}

/// Writes until the other end closes.
fn flood(mut stream: TcpStream) -> io::Result<()> {
    let piece = vec![0x5a; PIECE];
    while stream.write_all(&piece).is_ok() {}
    Ok(())
}

fn drain(mut stream: TcpStream, cycles: u32) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut piece, mut waited, mut drained) = (vec![0; PIECE], Vec::new(), 0);
    for cycle in 0..cycles {
        // Stalls of different lengths: the sender's probes are in different phases when they end.
        std::thread::sleep(Duration::from_millis(100 + 97 * u64::from(cycle % 4)));
        stream.set_nonblocking(true)?;
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => drained += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        // Only the wait from the first empty read to the next byte is measured.
        let empty = Instant::now();
        stream.set_nonblocking(false)?;
        if stream.read(&mut piece)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        waited.push(empty.elapsed());
    }
    waited.sort_unstable();
    let line = json!({
        "p50_us": percentile(&waited, 50),
        "p99_us": percentile(&waited, 99),
        "max_us": percentile(&waited, 100),
        "drained_bytes": drained as f64 / f64::from(cycles.max(1)),
    });
    println!("{line}");
    Ok(())
}
