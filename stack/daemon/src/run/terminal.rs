//! The caller's terminal: whose it was at the start is whose it is when we stop or end.
//!
//! A shell in the container makes a process group of its own the terminal's foreground group. It cannot make it the
//! caller's group again: that one lies outside its PID namespace.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// Used only by a process that blocks SIGTTOU: it is allowed to change the foreground group from the background.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The controlling terminal, if there is one.
    file: Option<File>,
    /// Our process group.
    group: Pid,
    /// Our group was in the foreground last time we started or went on: since then only the container changed that.
    ours: bool,
    /// The container's foreground group while we are stopped.
    inner: Option<Pid>,
    stopped: bool,
}

impl Terminal {
    pub(super) fn open() -> Self {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        let file = File::options().read(true).write(true).custom_flags(flags).open("/dev/tty").ok();
        let mut terminal =
            Self { file, group: getpgrp(), ours: false, inner: None, stopped: false };
        terminal.ours = terminal.foreground() == Some(terminal.group);
        terminal
    }

    /// We are about to be stopped: the caller is to find the terminal as if we had not given it away.
    pub(super) fn before_stop(&mut self) {
        self.stopped = true;
        let Some(inner) = self.foreground().filter(|now| *now != self.group) else { return };
        if self.ours && is_the_containers(inner) {
            self.inner = Some(inner);
            self.make_foreground(self.group);
        }
    }

    /// We received SIGCONT.
    pub(super) fn continued(&mut self) {
        let stopped = std::mem::take(&mut self.stopped);
        if self.foreground() == Some(self.group) {
            self.ours = true;
            if let Some(inner) = self.inner.take() {
                self.make_foreground(inner);
            }
        } else if stopped {
            // In the background.
            self.ours = false;
        }
    }

    /// The container is gone. A foreground group that still has a process is somebody else's by now.
    pub(super) fn hand_back(&self) {
        let Some(now) = self.foreground().filter(|now| self.ours && *now != self.group) else {
            return;
        };
        let empty = kill(Pid::from_raw(-now.as_raw()), None) == Err(Errno::ESRCH);
        if now.as_raw() <= 0 || empty {
            self.make_foreground(self.group);
        }
    }

    fn foreground(&self) -> Option<Pid> {
        self.file.as_ref().and_then(|file| tcgetpgrp(file).ok())
    }

    /// A terminal that is gone needs no foreground group.
    fn make_foreground(&self, group: Pid) {
        if let Some(file) = &self.file {
            let _ = tcsetpgrp(file, group);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.hand_back();
    }
}

/// Is the group's leader in another PID namespace than we are? Where that cannot be seen it is taken to be.
fn is_the_containers(group: Pid) -> bool {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    match (namespace(&group.to_string()), namespace("self")) {
        (Some(theirs), Some(ours)) => theirs != ours,
        _ => true,
    }
}
