//! Forwards signals to the command, and the command's stops to the caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::arbiter::{Arbiter, Observer};
use super::port::{Note, Port, Received};
use super::signals::{Caught, Signals, ends};
use super::terminal::Terminal;
use crate::clock;

/// Forwards the signals that `skbudget` receives.
#[derive(Debug)]
pub(super) struct Forwarder {
    signals: Signals,
    arbiter: Arbiter,
    /// Connects to process 1, until it ends.
    inside: Option<Port>,
    /// Connects to the sandbox.
    apart: Option<Port>,
    /// Pid of the sandbox: a signal from it is not for the command.
    sandbox: u32,
    terminal: Terminal,
}

/// Why a wait returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The descriptor is readable.
    Readable,
    /// A signal that ends the run arrived before there was a command.
    Interrupted(u8),
}

impl Forwarder {
    /// A forwarder without a sandbox.
    pub(super) fn new(signals: Signals, terminal: Terminal) -> Self {
        let arbiter = Arbiter::default();
        Self { signals, arbiter, inside: None, apart: None, sandbox: 0, terminal }
    }

    /// Adds the ports of a sandbox that was started.
    pub(super) fn connect(&mut self, sandbox: u32, inside: Port, apart: Port) {
        self.sandbox = sandbox;
        (self.inside, self.apart) = (Some(inside), Some(apart));
    }

    /// After the command and all of its processes have ended: returns the terminal and the signals to this process.
    pub(super) fn command_ended(&self) -> &Signals {
        self.terminal.hand_back();
        &self.signals
    }

    /// Forwards signals until `fd` is readable. `started`: there is a command; otherwise a signal that ends the run
    /// ends the wait.
    pub(super) fn wait(&mut self, fd: BorrowedFd<'_>, started: bool) -> io::Result<Waited> {
        loop {
            let readable = self.poll(fd)?;
            let now = clock::now();
            // The arbiter's bound: further signals stay pending in the kernel.
            while self.arbiter.has_room() {
                let Some(caught) = self.signals.next()? else { break };
                let Caught::Signal { number, sender } = caught else { continue };
                if i32::from(number) == libc::SIGCONT {
                    self.terminal.continued();
                    // This process may have been stopped, unable to receive answers: no observer is late because of
                    // that.
                    self.arbiter.start_waits_again(now);
                    // The sandbox continued us because the command continued: the command has had its signal.
                    if sender == self.sandbox {
                        continue;
                    }
                }
                if !started && ends(number) {
                    return Ok(Waited::Interrupted(number));
                }
                let id = self.arbiter.caught(number, now);
                // Both observers report what they received before they answer.
                for port in [&self.inside, &self.apart].into_iter().flatten() {
                    port.send(Note::Ask(id));
                }
            }
            self.read_notes();
            // With the time from before the notes were read: if this process was stopped since, more notes may be
            // pending.
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

    /// Polls all sources, until the arbiter's next deadline. True when `fd` is readable.
    fn poll(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let timeout = self.arbiter.deadline().map(|at| at.since(clock::now()));
        // Rounded up: with a remainder below a millisecond the poll would spin.
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

    /// Reads all pending notes of both observers.
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
                        // The other end has ended, and answers no more.
                        *port = None;
                        break;
                    }
                    Received::Note(note) => self.on_note(by, note),
                }
            }
        }
    }

    /// Handles one note.
    fn on_note(&mut self, by: Observer, note: Note) {
        match note {
            Note::Seen(number) => self.arbiter.seen(by, number, clock::now()),
            Note::Answer { to, with_command } => self.arbiter.answered(by, to, with_command),
            Note::Stopped => {
                self.terminal.before_stop();
                // The sandbox sends the stop: only it knows whether the command has continued meanwhile.
                if let Some(port) = &self.apart {
                    port.send(Note::StopUs);
                }
            }
            Note::Ask(_) | Note::Send(_) | Note::Continued | Note::StopUs => {}
        }
    }
}
