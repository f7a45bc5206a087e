//! The caller's terminal: when this process stops or ends, the foreground group is again the one from the start.
//!
//! A shell in the container makes a process group of its own the terminal's foreground group. It cannot restore the
//! caller's group, which is outside of its PID namespace.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// Requires that the process blocks SIGTTOU: then it may change the foreground group from the background.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The controlling terminal, if there is one.
    file: Option<File>,
    /// Process group of this process.
    group: Pid,
    /// This group was in the foreground when the process last started or continued. Since then only the container has
    /// changed that.
    ours: bool,
    /// The container's foreground group, while this process is stopped.
    inner: Option<Pid>,
    /// The process was stopped and has received no SIGCONT since.
    stopped: bool,
}

impl Terminal {
    /// Opens the controlling terminal, if there is one.
    pub(super) fn open() -> Self {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        let file = File::options().read(true).write(true).custom_flags(flags).open("/dev/tty").ok();
        let mut terminal =
            Self { file, group: getpgrp(), ours: false, inner: None, stopped: false };
        terminal.ours = terminal.foreground() == Some(terminal.group);
        terminal
    }

    /// Call it before the process is stopped: makes its group the foreground group again, for the caller.
    pub(super) fn before_stop(&mut self) {
        self.stopped = true;
        let Some(inner) = self.foreground().filter(|now| *now != self.group) else { return };
        // The caller may have chosen another of its groups: only the container's is replaced.
        if self.ours && is_the_containers(inner) {
            self.inner = Some(inner);
            self.make_foreground(self.group);
        }
    }

    /// Call it after SIGCONT: if the caller continued the process in the foreground, the container's group is restored.
    pub(super) fn continued(&mut self) {
        let stopped = std::mem::take(&mut self.stopped);
        if self.foreground() == Some(self.group) {
            self.ours = true;
            if let Some(inner) = self.inner.take() {
                self.make_foreground(inner);
            }
        } else if stopped {
            // Continued in the background.
            self.ours = false;
        }
    }

    /// Call it after the end of the container: restores this group. A foreground group that still has a process is
    /// another job of the caller.
    pub(super) fn hand_back(&self) {
        let Some(now) = self.foreground().filter(|now| self.ours && *now != self.group) else {
            return;
        };
        // The test for an empty group sends no signal.
        let empty = kill(Pid::from_raw(-now.as_raw()), None) == Err(Errno::ESRCH);
        if now.as_raw() <= 0 || empty {
            self.make_foreground(self.group);
        }
    }

    /// The terminal's foreground group.
    fn foreground(&self) -> Option<Pid> {
        self.file.as_ref().and_then(|file| tcgetpgrp(file).ok())
    }

    /// Sets the foreground group. Fails only for a terminal that is closed.
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

/// Whether the leader of the group is in a PID namespace other than ours. True also where that cannot be read.
fn is_the_containers(group: Pid) -> bool {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    match (namespace(&group.to_string()), namespace("self")) {
        (Some(theirs), Some(ours)) => theirs != ours,
        _ => true,
    }
}
