//! The sandbox: the process between `skbudget` and the container. It is single-threaded, because only such a process
//! may enter a user namespace. It makes the namespaces, sends the device to `skbudget`, starts process 1 and remains
//! its parent.
//!
//! ```text
//! skbudget run ── sandbox ── process 1 ── the command
//!  host's net     host's PIDs   └── all of the container's namespaces ──┘
//! ```
//! The sandbox and process 1 are in a user namespace (see [`super::users`]), the command in one within it. The kernel
//! kills each process when its parent ends, so nothing outlives `skbudget`, not even after SIGKILL. The container's
//! network exists until the sandbox ends, so that the relay can still receive what the command sent last.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ExitCode};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid, setsid};
use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::control_channel::{ControlChannel, Instruction, SandboxReport};
use super::init::exit_code;
use super::port::{Note, Port, Received, observe};
use super::ring::Ring;
use super::roles;
use super::signals::{self, Signals};
use super::users::{self, Inner};
use super::{inherited, lookup};
use crate::attach::{self, AttachError, GuestNet, Step};
use crate::caps::CapSet;
use crate::exit::{CANNOT_SET_UP, FAILURE};
use crate::{logger, sys};

/// What the sandbox must set up. The command follows as arguments, because it may not be UTF-8.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxSpec {
    pub(super) guest: GuestNet,
    /// Path of the command's program.
    #[serde(with = "lookup::as_bytes")]
    pub(super) program: PathBuf,
    /// Limits of open files at the start of `skbudget`; the command gets them back.
    pub(super) nofile: (u64, u64),
    /// The caller is root: every id is mapped to itself.
    pub(super) root: bool,
    /// Capabilities of the command beyond the default set.
    pub(super) added: CapSet,
    /// All of /proc stays writable for the command's root.
    pub(super) privileged: bool,
    /// The command's /etc/resolv.conf.
    pub(super) resolv_conf: String,
    /// systemd passed descriptors to `skbudget` (sd_listen_fds).
    pub(super) listen: bool,
    /// Signals that the caller ignores and that the processes of the run do not: the command ignores them again.
    pub(super) ignored: Vec<u8>,
}

impl SandboxSpec {
    /// Whether the command may configure the container's network.
    pub(super) fn network(&self) -> bool {
        self.added.intersects(CapSet::network())
    }
}

/// `apart`: the port on which this process reports the signals that it receives; `inside`: that of process 1.
pub(super) fn main(
    channel: &ControlChannel,
    apart: &Port,
    inside: Port,
    spec: &SandboxSpec,
    command: &[OsString],
) -> ExitCode {
    match run(channel, apart, inside, spec, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("sandbox: {e}"));
            ExitCode::from(FAILURE)
        }
    }
}

/// Runs until process 1 has ended. Returns the command's exit code.
fn run(
    channel: &ControlChannel,
    apart: &Port,
    inside: Port,
    spec: &SandboxSpec,
    command: &[OsString],
) -> io::Result<u8> {
    let signals = Signals::block()?;
    let parent = getppid();
    set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have ended before the line above.
    if channel.is_over() {
        return Ok(FAILURE);
    }
    let (tap, users) = match set_up(channel, spec) {
        Ok((tap, users)) => {
            channel.send(&SandboxReport::Ready, &[tap.as_fd()])?;
            (tap, users)
        }
        Err(AttachError { step, source }) => {
            let (errno, message) = (source.raw_os_error(), source.to_string());
            channel
                .send(&SandboxReport::Failed { step: step.into_owned(), errno, message }, &[])?;
            return Ok(CANNOT_SET_UP);
        }
    };
    // The network exists; the command starts when the relay serves the device.
    if !matches!(channel.receive()?, Some((Instruction::StartCommand, _))) {
        return Ok(FAILURE);
    }
    // Before the PID namespace: after that call this process can start no thread.
    let ring = if spec.network() { Ring::watch(tap, &spec.guest)? } else { Ring::default() };
    // Process 1 holds the other end, so each of the two notices the end of the other.
    let (lifeline, theirs) = Port::pair()?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    let start = || start_init(&theirs, &inside, users.as_ref(), spec, command);
    let mut init = inherited::hand_on(false, start)?;
    // Closed here, so that only process 1 holds them.
    drop((theirs, inside, users));
    // From here on a signal to the caller's process group does not reach this process, which distinguishes it from a
    // signal to each pid. A new session, not only a group: with a parent in another group of the same session, the
    // kernel would treat the command's group as one under job control of a shell, not as orphaned.
    setsid()?;
    let observer = Watch { signals: &signals, apart, job: Job::new(lifeline, parent) };
    let code = observer.look_after(channel, &mut init)?;
    // Fails if the parent has ended: then nothing waits for the report.
    let _ = channel.send(&SandboxReport::Exited { code, tampered: ring.tampered() }, &[]);
    // Keeps the network until the parent closes the channel.
    while channel.receive::<Instruction>()?.is_some() {}
    Ok(code)
}

/// Makes the user namespaces, the container's network namespace, a scratch namespace and the device. The thread is in
/// the container's namespace afterwards. Returns the device and the command's user namespace.
fn set_up(
    channel: &ControlChannel,
    spec: &SandboxSpec,
) -> Result<(Tap, Option<OwnedFd>), AttachError> {
    // Additional capabilities require a user namespace: without one they would hold over the host.
    let may_do_without = spec.root && spec.added == CapSet::NONE;
    let inner = if users::enter_outer(channel, spec.root, may_do_without)? {
        users::forbid_cgroup_namespaces();
        Some(Inner::make(spec.network()).step("new user namespace for the command")?)
    } else {
        None
    };
    // A process in the outer user namespace can send the device out and kill every process of the run: no other process
    // of the same user may trace it.
    set_dumpable(false).step("prctl")?;
    // A network that the command may configure belongs to its own user namespace.
    if let Some(netns) = inner.as_ref().and_then(|inner| inner.netns.as_ref()) {
        setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWNET).step("new network namespace")?;
    }
    attach::loopback_up()?;
    open_to_all();
    let container = attach::current_netns()?;
    unshare(CloneFlags::CLONE_NEWNET).step("new scratch network namespace")?;
    let tap = attach::tap_into_from_here(container.as_fd(), attach::DEVICE_NAME, &spec.guest)?;
    Ok((tap, inner.map(|inner| inner.users)))
}

/// Opens low ports and ping sockets to all: the command has no capability over its network for them. Fails where /proc
/// is read-only.
fn open_to_all() {
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    if let Err(e) = set("ip_unprivileged_port_start", "0") {
        tracing::info!("ports below 1024 are closed to the command: {e}");
    }
    // If only one group is mapped, it is group 0.
    if let Err(e) =
        set("ping_group_range", "0 2147483647").or_else(|_| set("ping_group_range", "0 0"))
    {
        tracing::info!("ping sockets are closed to the command: {e}");
    }
}

/// Starts process 1, in the new PID and mount namespaces.
fn start_init(
    lifeline: &Port,
    inside: &Port,
    users: Option<&OwnedFd>,
    spec: &SandboxSpec,
    command: &[OsString],
) -> io::Result<Child> {
    let mut fds = vec![lifeline.as_fd().as_raw_fd(), inside.as_fd().as_raw_fd()];
    fds.extend(users.map(AsRawFd::as_raw_fd));
    let (mut init, fds) = roles::process(roles::INIT, &fds);
    init.arg(serde_json::to_string(spec)?).args(command);
    sys::prepare_child(&mut init, fds, signals::blocked(), None);
    init.spawn()
}

/// The sandbox while the command runs.
struct Watch<'a> {
    signals: &'a Signals,
    apart: &'a Port,
    job: Job,
}

/// Stops and continues `skbudget` with the command, as one job of the caller's shell.
struct Job {
    /// The port to process 1, until that ends.
    lifeline: Option<Port>,
    /// The process to stop and continue: `skbudget`.
    parent: Pid,
    command_stopped: bool,
    /// `skbudget` was stopped from here.
    parent_stopped: bool,
}

impl Watch<'_> {
    /// Runs until process 1 ends. Returns its exit code. If `skbudget` ends, the kernel kills this process, and with it
    /// process 1.
    fn look_after(mut self, channel: &ControlChannel, init: &mut Child) -> io::Result<u8> {
        let mut channel = Some(channel);
        loop {
            if let Some(status) = init.try_wait()? {
                return Ok(exit_code(status));
            }
            self.wait(channel)?;
            // The run ends: the container must not outlive it. Its end is then reaped above.
            if channel.is_some_and(ControlChannel::is_over) {
                init.kill()?;
                channel = None;
            }
            self.job.read_lifeline();
            let Self { signals, apart, job } = &mut self;
            observe(
                || signals.next(),
                apart,
                || false,
                |note| {
                    if note == Note::StopUs {
                        job.stop_parent();
                    }
                },
            )?;
        }
    }

    /// Blocks until one of the sources is readable.
    fn wait(&self, channel: Option<&ControlChannel>) -> io::Result<()> {
        let fds = [Some(self.signals.as_fd()), Some(self.apart.as_fd())];
        let more =
            [channel.map(ControlChannel::as_fd), self.job.lifeline.as_ref().map(Port::as_fd)];
        let fds = fds.into_iter().chain(more).flatten();
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Job {
    /// A job that runs.
    fn new(lifeline: Port, parent: Pid) -> Self {
        Self { lifeline: Some(lifeline), parent, command_stopped: false, parent_stopped: false }
    }

    /// Reads what process 1 reports of the command.
    fn read_lifeline(&mut self) {
        while let Some(lifeline) = &self.lifeline {
            match lifeline.receive() {
                Received::Nothing => break,
                Received::End => self.lifeline = None,
                Received::Note(Note::Stopped) => self.command_stopped = true,
                Received::Note(Note::Continued) => {
                    self.command_stopped = false;
                    // Continued only if stopped from here: the caller may have stopped it, too.
                    if std::mem::take(&mut self.parent_stopped) {
                        let _ = kill(self.parent, Signal::SIGCONT);
                    }
                }
                Received::Note(_) => {}
            }
        }
    }

    /// Stops `skbudget` on its request, if the command is still stopped.
    fn stop_parent(&mut self) {
        // After the request has arrived: process 1 reports a stop here before it reports it to `skbudget`, but perhaps
        // after the last look at the lifeline.
        self.read_lifeline();
        if self.command_stopped {
            self.parent_stopped = true;
            let _ = kill(self.parent, Signal::SIGSTOP);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    use super::*;

    /// A stop that process 1 reports after the last look at the lifeline, but before the request of `skbudget`. The
    /// request was ignored then, and the caller's shell never learnt of the stop.
    #[test]
    fn a_request_to_stop_finds_a_stop_that_was_reported_since_the_last_look() {
        let mut parent = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(parent.id().cast_signed());
        let (ours, process_1) = Port::pair().unwrap();
        let mut job = Job::new(ours, pid);
        job.read_lifeline();
        // Nothing is stopped: an old request has no effect.
        job.stop_parent();
        assert!(!job.parent_stopped);
        process_1.send(Note::Stopped);
        job.stop_parent();
        let flags = Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED);
        assert_eq!(waitpid(pid, flags), Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)));
        process_1.send(Note::Continued);
        job.read_lifeline();
        assert_eq!(waitpid(pid, flags), Ok(WaitStatus::Continued(pid)));
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
