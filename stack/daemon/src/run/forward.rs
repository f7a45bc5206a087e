//! Signals on their way to the command, and the command's stops on their way to the caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::arbiter::{Arbiter, Observer};
use super::port::{Note, Port, Received};
use super::signals::{Caught, Signals, ends};
use super::terminal::Terminal;
use crate::clock;

/// Forwards what `skbudget` receives.
#[derive(Debug)]
pub(super) struct Forwarder {
    signals: Signals,
    arbiter: Arbiter,
    /// To process 1, until it ends.
    inside: Option<Port>,
    /// To the sandbox.
    apart: Option<Port>,
    /// The sandbox: what it sends us is not for the command.
    sandbox: u32,
    terminal: Terminal,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is something to be read.
    Readable,
    /// A signal that asks to end.
    Interrupted(u8),
}

impl Forwarder {
    pub(super) fn new(signals: Signals, terminal: Terminal) -> Self {
        let arbiter = Arbiter::default();
        Self { signals, arbiter, inside: None, apart: None, sandbox: 0, terminal }
    }

    /// The ends of the ports of a sandbox that was started.
    pub(super) fn connect(&mut self, sandbox: u32, inside: Port, apart: Port) {
        self.sandbox = sandbox;
        (self.inside, self.apart) = (Some(inside), Some(apart));
    }

    /// The command and all of its processes have ended: the terminal and the signals are ours again.
    pub(super) fn command_ended(&self) -> &Signals {
        self.terminal.hand_back();
        &self.signals
    }

    /// Waits until there is something to be read. `started`: there is a command; else a signal that asks to end is for
    /// us.
    pub(super) fn wait(&mut self, fd: BorrowedFd<'_>, started: bool) -> io::Result<Waited> {
        loop {
            let readable = self.poll(fd)?;
            let now = clock::now();
            while self.arbiter.has_room() {
                let Some(caught) = self.signals.next()? else { break };
                let Caught::Signal { number, sender } = caught else { continue };
                if i32::from(number) == libc::SIGCONT {
                    self.terminal.continued();
                    // We may have been stopped: nobody is late who could not be heard.
                    self.arbiter.start_waits_again(now);
                    if sender == self.sandbox {
                        continue;
                    }
                }
                if !started && ends(number) {
                    return Ok(Waited::Interrupted(number));
                }
                let id = self.arbiter.caught(number, now);
                for port in [&self.inside, &self.apart].into_iter().flatten() {
                    port.send(Note::Ask(id));
                }
            }
            self.read_notes();
            // By the time before the notes were read: if we were stopped since, there may be more of them.
            for number in self.arbiter.decide(now) {
                if let Some(port) = &self.inside {
                    port.send(Note::Send(number));
                }
            }
            if readable {
                return Ok(Waited::Readable);
            }
        }
    }

    /// Is `fd` readable? Comes back for anything else that is to be looked at, too.
    fn poll(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let timeout = self.arbiter.deadline().map(|at| at.since(clock::now()));
        // Rounded up: a deadline that is a part of a millisecond away must not become a busy loop.
        let timeout = timeout.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(fd, PollFlags::POLLIN)];
        if self.arbiter.has_room() {
            fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        }
        for port in [&self.inside, &self.apart].into_iter().flatten() {
            fds.push(PollFd::new(port.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds[0].any().unwrap_or(false)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_notes(&mut self) {
        for by in [Observer::Inside, Observer::Apart] {
            loop {
                let port = match by {
                    Observer::Inside => &mut self.inside,
                    Observer::Apart => &mut self.apart,
                };
                let received = port.as_ref().map_or(Received::Nothing, Port::receive);
                match received {
                    Received::Nothing => break,
                    Received::End => {
                        *port = None;
                        break;
                    }
                    Received::Note(note) => self.on_note(by, note),
                }
            }
        }
    }

    fn on_note(&mut self, by: Observer, note: Note) {
        match note {
            Note::Seen(number) => self.arbiter.seen(by, number, clock::now()),
            Note::Answer { to, with_command } => self.arbiter.answered(by, to, with_command),
            Note::Stopped => {
                self.terminal.before_stop();
                // Not we ourselves: it knows whether the command runs again by now.
                if let Some(port) = &self.apart {
                    port.send(Note::StopUs);
                }
            }
            Note::Ask(_) | Note::Send(_) | Note::Continued | Note::StopUs => {}
        }
    }
}
