//! What `skbudget` and the processes that observe signals for it tell each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType};

use super::signals::{Caught, Signals};

/// One message. None is ever waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    /// To an observer: which signals have you received?
    Ask(u8),
    /// To `skbudget`: all of them were reported before this. Is the command in our process group?
    Answer { to: u8, with_command: bool },
    /// To `skbudget`: the observer received this signal.
    Seen(u8),
    /// To process 1: send this signal to the command.
    Send(u8),
    /// The command was stopped.
    Stopped,
    /// The command runs again.
    Continued,
    /// To the sandbox: stop us, if the command is stopped still.
    StopUs,
}

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

/// One end of a pair.
#[derive(Debug)]
pub(super) struct Port {
    fd: OwnedFd,
}

/// What a port had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Note(Note),
    Nothing,
    /// The other end is gone.
    End,
}

impl Port {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (a, b) = socket::socketpair(AddressFamily::Unix, kind, None, flags)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Lost when the other end is gone or reads nothing: nobody may wait for a process that somebody stopped.
    pub(super) fn send(&self, note: Note) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = socket::send(self.fd.as_raw_fd(), &note.encode(), flags);
    }

    pub(super) fn receive(&self) -> Received {
        let mut bytes = [0; NOTE_BYTES];
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(NOTE_BYTES) => match Note::decode(bytes) {
                    Some(note) => return Received::Note(note),
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

/// Signals that an observer reads at once. A command can keep tens of thousands of real-time signals pending, and each
/// read is slower the more there are: the end of the command must not wait behind them.
const SIGNALS_AT_ONCE: usize = 64;

/// An observer's turn: reports the signals it received and hands the notes that are its own to `other`.
/// `with_command`: the command is in its process group.
pub(super) fn observe(
    signals: &Signals,
    port: &Port,
    with_command: impl Fn() -> bool,
    mut other: impl FnMut(Note),
) -> io::Result<()> {
    let report = || -> io::Result<()> {
        for _ in 0..SIGNALS_AT_ONCE {
            match signals.next()? {
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
    fn a_port_that_nobody_reads_blocks_nobody() {
        let (ours, _theirs) = Port::pair().unwrap();
        (0..10_000).for_each(|_| ours.send(Note::Stopped));
    }
}
