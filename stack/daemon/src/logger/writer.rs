//! The thread that writes to stderr. It may block for ever; other threads wait for it only for a bounded time.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{self, MsgFlags};

use tracing::Level;

use super::LOST_BYTES;
use super::entry::Entry;

/// Buffer for one message, bytes: longer than any.
const BUFFER_BYTES: usize = 8192;

/// Writes what arrives on `socket` until the other end shuts down, then signals that on the returned channel.
pub(super) fn spawn(socket: OwnedFd) -> io::Result<Receiver<()>> {
    let (done, answer) = mpsc::channel();
    // The thread blocks all signals. SIGTTOU above all: a line written from the background to a terminal in `stty
    // tostop` would stop the whole process. A thread inherits the mask, so there is no moment without it.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = thread::Builder::new().name("skb-log".to_owned()).spawn(move || {
        run(&socket, &mut Lines::new(Stderr));
        let _ = done.send(());
    });
    before.thread_set_mask()?;
    spawned?;
    Ok(answer)
}

/// Receives messages until the other end shuts down.
fn run(socket: &OwnedFd, lines: &mut Lines<impl Write>) {
    let mut buf = [0; BUFFER_BYTES];
    loop {
        match socket::recv(socket.as_raw_fd(), &mut buf, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => break,
            Ok(n) => {
                let Some((lost, text)) = buf[..n].split_first_chunk::<LOST_BYTES>() else {
                    continue;
                };
                lines.lost(u64::from_ne_bytes(*lost));
                lines.write(text);
            }
        }
    }
    // The last chance: no later message will carry the count.
    lines.report_lost();
}

/// Lines on their way to a target that may refuse them.
#[derive(Debug)]
struct Lines<W> {
    to: W,
    /// Messages that were not written and are not reported as lost yet.
    lost: u64,
    /// Only a part of the last line was written.
    torn: bool,
}

impl<W: Write> Lines<W> {
    fn new(to: W) -> Self {
        Self { to, lost: 0, torn: false }
    }

    fn lost(&mut self, messages: u64) {
        self.lost += messages;
    }

    /// Writes one line, after the report of lost ones if there are any. A line that cannot be written is lost.
    fn write(&mut self, line: &[u8]) {
        self.report_lost();
        if !line.is_empty() && !self.put(line) {
            self.lost += 1;
        }
    }

    /// Writes the number of lost messages. If that fails, the number is kept.
    fn report_lost(&mut self) {
        let lost = self.lost;
        if lost > 0 {
            let note = format!("{lost} messages were lost: stderr did not accept them");
            let note = Entry::new(Some(Level::WARN), note).line();
            if self.put(note.as_bytes()) {
                self.lost -= lost;
            }
        }
    }

    /// Writes the line. True when all of it was written.
    fn put(&mut self, line: &[u8]) -> bool {
        // Ends a torn line first, so that this one starts in the first column.
        let whole = [if self.torn { &b"\n"[..] } else { b"" }, line].concat();
        let mut left = &whole[..];
        while !left.is_empty() {
            match self.to.write(left) {
                Ok(0) => break,
                Ok(n) => left = &left[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if left.len() < whole.len() {
            self.torn = !left.is_empty();
        }
        left.is_empty()
    }
}

/// Descriptor 2, without the lock of the standard library: another thread that writes there would wait for this one.
#[derive(Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        loop {
            match nix::unistd::write(stderr.as_fd(), buf) {
                // The caller made the descriptor non-blocking.
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::NONE)?;
                }
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes and then fails.
    struct Disk {
        holds: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(self.room);
            if n == 0 {
                return Err(Errno::ENOSPC.into());
            }
            self.room -= n;
            self.holds.extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_refused_is_reported_once_it_has_room() {
        let mut lines = Lines::new(Disk { holds: Vec::new(), room: 7 });
        lines.write(b"first\n");
        for _ in 0..3 {
            lines.write(b"second\n");
        }
        lines.lost(10);
        lines.to.room = 1000;
        lines.write(b"third\n");
        lines.report_lost();
        let text = String::from_utf8(lines.to.holds).unwrap();
        // The "s" is the part of a line that the disk took.
        let expected =
            "first\ns\nskbudget: warn: 13 messages were lost: stderr did not accept them\nthird\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_was_lost_last_is_reported_at_the_end() {
        let mut lines = Lines::new(Disk { holds: Vec::new(), room: 0 });
        lines.write(b"first\n");
        lines.to.room = 1000;
        lines.report_lost();
        let text = String::from_utf8(lines.to.holds).unwrap();
        assert!(text.starts_with("skbudget: warn: 1 messages were lost"), "{text}");
    }
}
