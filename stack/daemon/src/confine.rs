//! Confines the process that exchanges bytes with containers and with the network. An attacker that breaks a parser
//! gets this process, so it can do nothing but what it does anyway:
//!
//! - no capability, no way to a new one (`no_new_privs`), no other user's files, no tracer of the same user;
//! - no file but those that are open (Landlock), no other address family than IP (seccomp);
//! - no system call beyond those of its work (seccomp): any other ends the process with a message that names it.

mod calls;
mod filter;
#[allow(unsafe_code, reason = "a signal handler; no other code is in it")]
mod sys;

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::attach::{AttachError, Step};
use crate::caps::{self, CapSet};
use crate::cli::OnOff;
use crate::logger;

/// First of the users that systemd assigns temporarily (DynamicUser=): no other process has one of them.
const TRANSIENT_UID_FIRST: u32 = 61_184;
/// Number of those users.
const TRANSIENT_UIDS: u64 = 4336;

/// Newest version of Landlock that is used; an older kernel restricts what it can.
const LANDLOCK: ABI = ABI::V6;

/// Drops all privileges beyond ordinary sockets. This precedes the first byte read from outside. The process is ended
/// with its parent; the caller checks whether the parent has ended before.
pub(crate) fn drop_privileges() -> Result<(), AttachError> {
    // First: a process without capabilities cannot limit those of its children.
    caps::forbid_all().step("limit the capabilities")?;
    if geteuid().is_root() {
        become_transient().step("change to an unprivileged user")?;
    }
    caps::drop_all().step("drop the capabilities")?;
    set_dumpable(false).step("prctl")?;
    // The change of the user cleared it.
    set_pdeathsig(Signal::SIGKILL).step("prctl")
}

/// Becomes a transient user: root without capabilities would still own root's files. In a user namespace without other
/// users the process stays root of that namespace.
fn become_transient() -> io::Result<()> {
    let id = TRANSIENT_UID_FIRST + (crate::sys::random_u64()? % TRANSIENT_UIDS) as u32;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    // The user last: only root may change the groups.
    let changed = setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid));
    if let Err(errno) = changed {
        tracing::info!("the relay keeps user id 0: {errno}");
    }
    Ok(())
}

/// Takes files and system calls from this process, which has no other thread yet: threads inherit both. With `Off`
/// nothing is taken. Both are irrevocable.
pub(crate) fn sandbox(mode: OnOff) -> Result<(), AttachError> {
    if mode == OnOff::Off {
        tracing::warn!("--sandbox off: the relay may use every system call, and files of its user");
        return Ok(());
    }
    match restrict_files().map_err(io::Error::other).step("Landlock")? {
        RulesetStatus::NotEnforced => {
            tracing::warn!("this kernel has no Landlock: seccomp alone keeps the relay from files");
        }
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => {}
    }
    // Before the filter, which keeps the handler.
    sys::report_forbidden_calls(logger::raw_fd()).step("SIGSYS")?;
    filter::install().step("seccomp (--sandbox off for a kernel without it)")
}

/// Takes the capabilities and the system calls that it never uses from the parent of a relay. It has no other thread
/// yet, but for that of the logger, which keeps them. With `Off` the system calls stay.
pub(crate) fn sandbox_parent(mode: OnOff) -> Result<(), AttachError> {
    caps::keep_only(CapSet::daemon()).step("limit the capabilities")?;
    if mode == OnOff::Off {
        return Ok(());
    }
    // The logger's thread would end before it has written the message: the handler writes it itself.
    sys::report_forbidden_calls(None).step("SIGSYS")?;
    filter::install_for_parent().step("seccomp (--sandbox off for a kernel without it)")
}

/// Closes the file system, TCP ports to bind, sockets with abstract names, and signals to other processes. Ports of the
/// host arrive as sockets. Port 0 is left: `--outbound-addr` binds a source address without a port.
fn restrict_files() -> Result<RulesetStatus, RulesetError> {
    // No rule for a file: each is refused.
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rule(NetPort::new(0, AccessNet::BindTcp))?;
    Ok(rules.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::thread;

    use nix::sched::CloneFlags;
    use nix::sys::signal::SigSet;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};

    use super::*;
    use crate::packets;

    /// What the process in the sandbox does, and how it reaches the logger.
    const WHAT: &str = "SKBUDGET_TEST_CONFINED";
    const LOG: &str = "SKBUDGET_TEST_LOG";

    /// Runs this test program again, in a sandbox. Returns its exit status and its message.
    fn confined(what: &str) -> (ExitStatus, String) {
        let (ours, theirs) = packets::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "confine::tests::what_is_in_the_sandbox", "--nocapture"]);
        command.env(WHAT, what).env(LOG, format!("{}:2:0", theirs.as_raw_fd()));
        crate::sys::prepare_child(&mut command, vec![theirs.as_raw_fd()], SigSet::all(), None);
        let output = command.output().unwrap();
        let mut message = [0; 256];
        let n = recv(ours.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
        let head = size_of::<u64>();
        let mut text = message.get(head..n).map(String::from_utf8_lossy).unwrap_or_default();
        // The parent of a relay writes its message itself.
        if what.starts_with("parent") {
            text = String::from_utf8_lossy(&output.stderr);
        }
        (output.status, text.into_owned())
    }

    /// The process of `confined`. Without one there is nothing to do.
    #[test]
    fn what_is_in_the_sandbox() {
        let (Some(what), Some(log)) = (std::env::var_os(WHAT), std::env::var_os(LOG)) else {
            return;
        };
        logger::join(&log).unwrap();
        let what = what.to_str().unwrap();
        // Landlock and seccomp are for this thread and those that it starts.
        if what.starts_with("parent") {
            sandbox_parent(OnOff::On).unwrap();
        } else {
            sandbox(OnOff::On).unwrap();
        }
        match what {
            "parent works" => {
                assert!(Command::new("/bin/true").status().unwrap().success());
                assert!(File::open("/proc/self/status").is_ok());
            }
            "parent packet" => {
                let (raw, none) = (SockType::Raw, SockFlag::empty());
                drop(socket(AddressFamily::Packet, raw, none, None));
            }
            "parent chroot" => drop(nix::unistd::chroot("/")),
            "work" => work(),
            "unshare" => drop(nix::sched::unshare(CloneFlags::CLONE_NEWUSER)),
            "exec" => drop(Command::new("/bin/true").status()),
            "unix" => {
                let (stream, none) = (SockType::Stream, SockFlag::empty());
                drop(socket(AddressFamily::Unix, stream, none, None));
            }
            other => panic!("{other}"),
        }
    }

    /// What the relay does: threads, connections, memory. What it may not: files, ports.
    fn work() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(&vec![7; 1 << 20]).unwrap();
        });
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        client.join().unwrap();
        assert_eq!(received.len(), 1 << 20);
        UdpSocket::bind("[::1]:0").unwrap();
        crate::sys::random_u64().unwrap();
        for path in ["/etc/passwd", "/proc/self/status", "/nowhere"] {
            assert_eq!(File::open(path).unwrap_err().kind(), ErrorKind::PermissionDenied, "{path}");
        }
        let bound = TcpListener::bind(("127.0.0.1", addr.port() ^ 1));
        // A kernel before 6.7 cannot refuse it.
        if let Err(e) = bound {
            assert_eq!(e.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn the_work_of_the_relay_is_allowed_and_files_are_not() {
        let (status, message) = confined("work");
        assert!(status.success() && message.is_empty(), "{status}: {message}");
    }

    #[test]
    fn the_parent_starts_processes_and_opens_files() {
        let (status, message) = confined("parent works");
        assert!(status.success(), "{status}: {message}");
    }

    #[test]
    fn a_forbidden_call_ends_the_process_and_is_named() {
        for (what, call) in [
            ("unshare", "unshare"),
            ("unix", "socket"),
            ("parent packet", "socket"),
            ("parent chroot", "chroot"),
        ] {
            let (status, message) = confined(what);
            assert_eq!(status.code(), Some(1), "{what}: {message}");
            let expected = format!("skbudget: sandbox: forbidden system call {call} ");
            assert!(message.starts_with(&expected), "{what}: {message}");
            assert!(message.ends_with(": the process ends\n"), "{what}: {message}");
        }
        // The C library blocks all signals while it makes a process, so no handler runs.
        assert_eq!(confined("exec").0.signal(), Some(libc::SIGSYS));
    }
}
