//! `skbudget capture`: writes what the daemon captures to a file, in whole blocks, so that the file is readable
//! whenever the command ends.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
use skbudget_stack::tap::{block_len, dropped_frames, is_packet};
use tokio::sync::oneshot;

use super::http::{Connection, Flow};
use crate::api::socket_path;
use crate::cli::CaptureArgs;
use crate::exit::Failure;
use crate::{logger, stdout};

/// Longest block, bytes: a frame of the longest snapshot length, and its heads.
const BLOCK_MAX: usize = (256 << 10) + 4096;

/// `skbudget capture`.
pub fn capture(args: CaptureArgs) -> Result<u8, Failure> {
    let to_stdout = args.write == Path::new("-");
    if to_stdout && stdout::is_terminal() {
        let message = "-w -: stdout is a terminal: a pipe or a file is allowed";
        return Err(Failure::usage(message));
    }
    // Blocked before the capture starts: a signal then ends it in order.
    let signals = signals().map_err(|e| Failure::other(format!("signals: {e}")))?;
    let path = path_of(&args)?;
    // The file is opened when the daemon has agreed.
    let mut blocks = Blocks::default();
    let mut target = Target { path: &args.write, file: None };
    let connection = Connection::open(&socket_path(args.client.socket.clone()))?;
    connection.stream(&path, signals, |bytes| blocks.pass(bytes, &mut target))?;
    // As tcpdump does: the user that interrupts it learns whether the capture is complete.
    let Blocks { frames, lost, .. } = blocks;
    logger::report(format!("{frames} frames captured, {lost} lost"));
    Ok(0)
}

/// Receives a value when a signal ends the capture. The signals are blocked from now on, in threads that start later as
/// well.
fn signals() -> io::Result<oneshot::Receiver<()>> {
    // Those that a terminal, a supervisor and a hang-up send.
    let set = SigSet::from_iter([SIGINT, SIGTERM, SIGHUP]);
    set.thread_block()?;
    let (signal, received) = oneshot::channel();
    let wait = move || {
        if set.wait().is_ok() {
            // An error means that the capture has ended already.
            let _ = signal.send(());
        }
    };
    // The thread ends with the process.
    thread::Builder::new().name("skb-signals".to_owned()).spawn(wait)?;
    Ok(received)
}

/// Path and query of the request.
fn path_of(args: &CaptureArgs) -> Result<String, Failure> {
    let path = super::path_of("containers", &args.name, "/capture")?;
    let filter = args.filter.as_ref().map(ToString::to_string);
    let pairs = [
        ("filter", filter),
        ("max_bytes", args.max_bytes.map(|bytes| bytes.to_string())),
        ("seconds", args.seconds.map(|seconds| seconds.to_string())),
        ("snaplen", args.snaplen.map(|bytes| bytes.to_string())),
    ];
    let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let query: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", encoded(&value))).collect();
    Ok(if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) })
}

/// Percent-encodes all but letters and digits.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(byte.into());
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Where blocks are written to.
struct Target<'a> {
    /// As typed; `-` is stdout.
    path: &'a Path,
    /// Opened with the first block: a request that is refused leaves the file as it is.
    file: Option<File>,
}

impl Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<Flow, Failure> {
        if self.path == Path::new("-") {
            return match stdout::write(bytes) {
                // The reader has read enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Flow::End),
                Err(e) => Err(Failure::other(format!("cannot write to stdout: {e}"))),
                Ok(()) => Ok(Flow::Continue),
            };
        }
        let failed = |e: io::Error| Failure::other(format!("-w {}: {e}", self.path.display()));
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(self.path).map_err(failed)?),
        };
        match file.write_all(bytes) {
            // A FIFO without a reader: the end of the capture, as for stdout.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Flow::End),
            other => other.map(|()| Flow::Continue).map_err(failed),
        }
    }
}

/// Cuts the stream into blocks, and counts them.
#[derive(Debug, Default)]
struct Blocks {
    /// The start of a block that has not arrived whole.
    rest: Vec<u8>,
    frames: u64,
    /// By the last statistics.
    lost: u64,
}

impl Blocks {
    /// Writes the blocks that are whole now.
    fn pass(&mut self, bytes: &[u8], target: &mut Target<'_>) -> Result<Flow, Failure> {
        self.rest.extend_from_slice(bytes);
        let mut end = 0;
        while let Some(len) = block_len(&self.rest[end..]) {
            // A length that no block has would stop the loop, or fill the memory.
            if !(12..=BLOCK_MAX).contains(&len) {
                return Err(Failure::other("the daemon's answer is not a capture"));
            }
            // The remaining bytes of the block arrive later.
            let Some(block) = self.rest.get(end..end + len) else { break };
            self.frames += u64::from(is_packet(block));
            self.lost = dropped_frames(block).unwrap_or(self.lost);
            end += len;
        }
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        if whole.is_empty() { Ok(Flow::Continue) } else { target.write(&whole) }
    }
}

#[cfg(test)]
mod tests {
    use skbudget_stack::tap::{CaptureHead, STATISTICS_BYTES, statistics_block};

    use super::*;

    #[test]
    fn a_file_has_whole_blocks_and_their_counts() {
        let head = CaptureHead { snaplen: 100, ..CaptureHead::default() }.blocks();
        let all = [&head[..], &statistics_block(7, 3, 0), &statistics_block(9, 4, 0)].concat();
        let path = std::env::temp_dir().join(format!("skbudget-blocks-{}", std::process::id()));
        for step in [1, 7, all.len()] {
            let mut blocks = Blocks::default();
            let mut target = Target { path: &path, file: None };
            for part in all[..all.len() - 1].chunks(step) {
                blocks.pass(part, &mut target).unwrap();
                let len = std::fs::metadata(&path).map_or(0, |file| file.len() as usize);
                assert_eq!(len % 4, 0);
            }
            // The last block is not whole.
            let written = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(written, all[..all.len() - STATISTICS_BYTES]);
            assert_eq!((blocks.frames, blocks.lost), (0, 3));
        }
        let mut blocks = Blocks::default();
        let mut target = Target { path: &path, file: None };
        assert!(blocks.pass(b"HTTP/1.1", &mut target).is_err());
    }

    #[test]
    fn a_filter_is_encoded() {
        assert_eq!(encoded("tcp port 80&a"), "tcp%20port%2080%26a");
    }
}
