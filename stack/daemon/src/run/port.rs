//! Messages between `skbudget` and the processes that observe signals for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};

use super::signals::Caught;
use crate::packets;

/// One message. No sender ever waits for one to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    /// To an observer: report the signals that you received, then answer with this number.
    Ask(u8),
    /// To `skbudget`: all signals received before were reported. `with_command`: the command is in my process group.
    Answer { to: u8, with_command: bool },
    /// To `skbudget`: this observer received the signal.
    Seen(u8),
    /// To process 1: send this signal to the command.
    Send(u8),
    /// To the sandbox and to `skbudget`: the command stopped.
    Stopped,
    /// To the sandbox: the command continued.
    Continued,
    /// To the sandbox: stop `skbudget` if the command is still stopped.
    StopUs,
}

/// Size of an encoded message: its kind and two values.
const NOTE_BYTES: usize = 3;

impl Note {
    fn encode(self) -> [u8; NOTE_BYTES] {
        match self {
            Self::Ask(id) => [0, id, 0],
            Self::Answer { to, with_command } => [1, to, u8::from(with_command)],
            Self::Seen(signal) => [2, signal, 0],
            Self::Send(signal) => [3, signal, 0],
            Self::Stopped => [4, 0, 0],
            Self::Continued => [5, 0, 0],
            Self::StopUs => [6, 0, 0],
        }
    }

    fn decode(bytes: [u8; NOTE_BYTES]) -> Option<Self> {
        Some(match bytes {
            [0, id, 0] => Self::Ask(id),
            [1, to, flag @ 0..=1] => Self::Answer { to, with_command: flag == 1 },
            [2, signal, 0] => Self::Seen(signal),
            [3, signal, 0] => Self::Send(signal),
            [4, 0, 0] => Self::Stopped,
            [5, 0, 0] => Self::Continued,
            [6, 0, 0] => Self::StopUs,
            _ => return None,
        })
    }
}

/// One end of a pair of connected sockets.
#[derive(Debug)]
pub(super) struct Port {
    fd: OwnedFd,
}

/// What `Port::receive` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Note(Note),
    /// No message is pending.
    Nothing,
    /// The other end is closed.
    End,
}

impl Port {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = packets::pair()?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends a message without waiting. It is lost if the other end is closed or does not read: the receiver may be
    /// stopped.
    pub(super) fn send(&self, note: Note) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = socket::send(self.fd.as_raw_fd(), &note.encode(), flags);
    }

    /// Receives a pending message without waiting.
    pub(super) fn receive(&self) -> Received {
        let mut bytes = [0; NOTE_BYTES];
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(NOTE_BYTES) => match Note::decode(bytes) {
                    Some(note) => return Received::Note(note),
                    // Not a note: skipped.
                    None => continue,
                },
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Received::Nothing,
                Ok(_) | Err(_) => return Received::End,
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Signals that an observer reads in one call. A command can keep tens of thousands of real-time signals pending, and
/// the more there are, the slower is each read: the end of the command must not be delayed by them.
const SIGNALS_AT_ONCE: usize = 64;

/// One turn of an observer: reports the signals that `next` returns, at most `SIGNALS_AT_ONCE` a call and query,
/// answers queries, and passes other notes to `other`. `with_command`: whether the command is in the observer's process
/// group.
pub(super) fn observe(
    next: impl Fn() -> io::Result<Option<Caught>>,
    port: &Port,
    with_command: impl Fn() -> bool,
    mut other: impl FnMut(Note),
) -> io::Result<()> {
    let report = || -> io::Result<()> {
        for _ in 0..SIGNALS_AT_ONCE {
            match next()? {
                Some(Caught::Signal { number, .. }) => port.send(Note::Seen(number)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    };
    report()?;
    while let Received::Note(note) = port.receive() {
        match note {
            Note::Ask(id) => {
                // Once more: a signal that arrived before the query must be reported before the answer.
                report()?;
                port.send(Note::Answer { to: id, with_command: with_command() });
            }
            note => other(note),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_arrive_as_sent_and_the_end_is_told_from_nothing() {
        let (ours, theirs) = Port::pair().unwrap();
        assert_eq!(ours.receive(), Received::Nothing);
        let notes = [
            Note::Ask(255),
            Note::Answer { to: 7, with_command: true },
            Note::Answer { to: 8, with_command: false },
            Note::Seen(64),
            Note::Send(1),
            Note::Stopped,
            Note::Continued,
            Note::StopUs,
        ];
        for note in notes {
            theirs.send(note);
            assert_eq!(ours.receive(), Received::Note(note));
        }
        drop(theirs);
        assert_eq!(ours.receive(), Received::End);
        ours.send(Note::Stopped);
    }

    #[test]
    fn an_observer_reports_no_more_signals_a_turn_than_the_limit() {
        let (ours, theirs) = Port::pair().unwrap();
        ours.send(Note::Ask(9));
        let pending = std::cell::Cell::new(90_000);
        let next = || {
            pending.set(pending.get() - 1);
            Ok(Some(Caught::Signal { number: 34, sender: 1 }))
        };
        observe(next, &theirs, || true, |note| panic!("{note:?}")).unwrap();
        assert_eq!(90_000 - pending.get(), 2 * SIGNALS_AT_ONCE);
        // The answer follows what was reported before it.
        for _ in 0..2 * SIGNALS_AT_ONCE {
            assert_eq!(ours.receive(), Received::Note(Note::Seen(34)));
        }
        assert_eq!(ours.receive(), Received::Note(Note::Answer { to: 9, with_command: true }));
        assert_eq!(ours.receive(), Received::Nothing);
    }

    #[test]
    fn a_port_that_nobody_reads_blocks_nobody() {
        let (ours, _theirs) = Port::pair().unwrap();
        (0..10_000).for_each(|_| ours.send(Note::Stopped));
    }
}
