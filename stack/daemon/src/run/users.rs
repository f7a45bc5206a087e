//! User namespaces. A process in one has its capabilities over what that namespace owns, whatever user it is outside.
//!
//! ```text
//! caller's ── outer: sandbox, process 1 ── inner: the command
//!                  └ owns the network           └ owns it where the command may configure it
//! ```
//! The command can neither trace process 1 nor configure the container's network: the outer namespace owns both. With
//! `--cap-add NET_ADMIN` the inner namespace owns the network instead.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};

use super::control_channel::{ControlChannel, Instruction, SandboxReport};
use super::{roles, signals};
use crate::attach::{AttachError, Step};
use crate::exit::FAILURE;
use crate::sys;

/// Maximum number of lines in a map. The kernel takes a map in a single write of less than a page.
const MAP_LINES_MAX: usize = 340;

/// Maximum number of cgroup namespaces below a user namespace (namespaces(7)).
const CGROUP_NAMESPACES_MAX: &str = "/proc/sys/user/max_cgroup_namespaces";

/// A map of every id that exists here to itself. `map`: the text of /proc/self/uid_map or gid_map.
fn identity(map: &str) -> String {
    let mut text = String::new();
    for line in map.lines().take(MAP_LINES_MAX) {
        let mut fields = line.split_ascii_whitespace();
        // The second field is the id outside, which the child does not need.
        if let (Some(first), Some(count)) = (fields.next(), fields.nth(1)) {
            let _ = writeln!(text, "{first} {first} {count}");
        }
    }
    text
}

/// Maps every id of the caller to itself in the user namespace of a child. Needs CAP_SETUID and CAP_SETGID, and
/// CAP_SETFCAP for id 0.
pub(super) fn map_all(child: u32) -> io::Result<()> {
    for map in ["uid_map", "gid_map"] {
        let all = identity(&fs::read_to_string(format!("/proc/self/{map}"))?);
        fs::write(format!("/proc/{child}/{map}"), all)?;
    }
    Ok(())
}

/// Enters the outer user namespace. False: the kernel grants none, and the caller can do without (root only). `root`:
/// the parent maps all ids; otherwise, or if it may not, only the id of this process is mapped, to 0.
pub(super) fn enter_outer(
    channel: &ControlChannel,
    root: bool,
    may_do_without: bool,
) -> Result<bool, AttachError> {
    let (uid, gid) = (geteuid(), getegid());
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Err(errno) if may_do_without => {
            tracing::warn!(
                "no user namespace for the command ({errno}): its few capabilities apply to the host"
            );
            return Ok(false);
        }
        other => other.step("new user namespace")?,
    }
    // The new credentials cleared it.
    set_pdeathsig(Signal::SIGKILL).step("prctl")?;
    // Only a process outside of the namespace may map more than one id.
    let mapped = root && {
        channel.send(&SandboxReport::MapUsers, &[]).step("request the mapping of the ids")?;
        matches!(
            channel.receive().step("request the mapping of the ids")?,
            Some((Instruction::UsersMapped, _))
        )
    };
    if !mapped {
        // Without privileges the kernel accepts a gid_map only after this.
        fs::write("/proc/self/setgroups", "deny").step("/proc/self/setgroups")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).step("/proc/self/uid_map")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).step("/proc/self/gid_map")?;
    }
    Ok(true)
}

/// Limits the cgroup namespaces of the outer user namespace, and of all user namespaces within it, to none. Must run in
/// the outer one: the limit is that of the calling process's user namespace.
///
/// The kernel lets the owner of a cgroup namespace mount cgroup hierarchies, and root's files in them belong to root in
/// every user namespace. Without the limit, a command that makes a user namespace could freeze process 1, which then
/// outlives `skbudget`. Fails where /proc is read-only.
pub(super) fn forbid_cgroup_namespaces() {
    if let Err(e) = fs::write(CGROUP_NAMESPACES_MAX, "0") {
        tracing::warn!(
            "{CGROUP_NAMESPACES_MAX}: {e}: the command can mount cgroup hierarchies, and freeze processes of its \
             container so that they outlive this run"
        );
    }
}

/// The command's user namespace, and a network namespace owned by it if requested.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) users: OwnedFd,
    pub(super) netns: Option<OwnedFd>,
}

impl Inner {
    /// Makes the namespaces in a child process, because a process that enters a user namespace cannot return.
    pub(super) fn make(network: bool) -> io::Result<Self> {
        let (channel, theirs) = ControlChannel::pair()?;
        let fd = theirs.as_fd().as_raw_fd();
        let (mut owner, fds) = roles::process(roles::OWNER, &[fd]);
        owner.arg(if network { NETWORK_TOO } else { "" });
        sys::prepare_child(&mut owner, fds, signals::blocked(), None);
        let mut owner = owner.spawn()?;
        // With only the child holding it, an early end of the child is seen.
        drop(theirs);
        let made = Self::from_child(&channel, owner.id(), network);
        // Closing the channel ends the child; the descriptors keep the namespaces.
        drop(channel);
        owner.wait()?;
        made
    }

    /// Answers the child's requests, and opens its namespaces.
    fn from_child(channel: &ControlChannel, child: u32, network: bool) -> io::Result<Self> {
        let answer = |expected: SandboxReport| match channel.receive()? {
            Some((report, _)) if report == expected => Ok(()),
            Some((SandboxReport::Failed { errno: Some(errno), .. }, _)) => {
                Err(io::Error::from_raw_os_error(errno))
            }
            other => Err(io::Error::other(format!("unexpected {other:?}"))),
        };
        answer(SandboxReport::MapUsers)?;
        map_all(child)?;
        channel.send(&Instruction::UsersMapped, &[])?;
        answer(SandboxReport::Ready)?;
        let open =
            |name: &str| Ok::<_, io::Error>(File::open(format!("/proc/{child}/ns/{name}"))?.into());
        Ok(Self { users: open("user")?, netns: network.then(|| open("net")).transpose()? })
    }
}

/// Argument of the child: create a network namespace as well.
const NETWORK_TOO: &str = "network";

/// The child of [`Inner::make`]: keeps its namespaces until the parent has opened them.
pub(super) fn owner_main(channel: &ControlChannel, what: &str) -> ExitCode {
    let work = || -> io::Result<()> {
        let unshared = unshare(CloneFlags::CLONE_NEWUSER);
        report(channel, unshared, SandboxReport::MapUsers)?;
        if !matches!(channel.receive()?, Some((Instruction::UsersMapped, _))) {
            return Ok(());
        }
        // After the user namespace, which owns the network namespace then.
        let unshared = if what == NETWORK_TOO { unshare(CloneFlags::CLONE_NEWNET) } else { Ok(()) };
        report(channel, unshared, SandboxReport::Ready)?;
        while channel.receive::<Instruction>()?.is_some() {}
        Ok(())
    };
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE),
    }
}

/// Reports that a step succeeded, or its error.
fn report(
    channel: &ControlChannel,
    done: nix::Result<()>,
    success: SandboxReport,
) -> io::Result<()> {
    let step = "new user namespace for the command".to_owned();
    match done {
        Ok(()) => channel.send(&success, &[]),
        Err(errno) => {
            let (errno, message) = (Some(errno as i32), errno.to_string());
            channel.send(&SandboxReport::Failed { step, errno, message }, &[])
        }
    }
}

/// Moves this process, which must be single-threaded, into the command's user namespace.
pub(super) fn enter(users: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::sched::setns(users, CloneFlags::CLONE_NEWUSER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_to_themselves_wherever_they_come_from() {
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        // As in an unprivileged user's container: id 0 is 1000 outside, the others are subordinate ids.
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(identity(rootless), "0 0 1\n1 1 65536\n");
        assert_eq!(identity(""), "");
    }
}
