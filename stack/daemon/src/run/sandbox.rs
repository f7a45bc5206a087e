//! The process between `skbudget` and the container: single-threaded, because only such a process may enter a user
//! namespace. It makes the namespaces, sends the device out, starts process 1 and stays as its parent.
//!
//! ```text
//! skbudget run ── sandbox ── process 1 ── the command
//!  host's net     host's PIDs   └── all of the container's namespaces ──┘
//! ```
//! The sandbox and process 1 are in a user namespace (see [`super::users`]), the command in one within it.
//! Each is killed by the kernel when its parent ends, so nothing outlives `skbudget`, not even by SIGKILL. The
//! container's network stands until the sandbox ends: what the command sent last can still be taken out of it.

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

use super::init::exit_code;
use super::lookup;
use super::port::{Note, Port, Received, observe};
use super::ring::Ring;
use super::roles;
use super::signals::{self, Signals};
use super::users::{self, Inner};
use super::wire::{Order, Report, Wire};
use crate::attach::{self, AttachError, GuestNet, Step};
use crate::caps::CapSet;
use crate::exit::{CANNOT_SET_UP, FAILURE};
use crate::{logger, sys};

/// What the sandbox is to do; the command itself follows as arguments, it need not be text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) guest: GuestNet,
    /// Where the command was found.
    #[serde(with = "lookup::as_bytes")]
    pub(super) program: PathBuf,
    /// Limits of open files that `skbudget` was started with: the command's.
    pub(super) nofile: (u64, u64),
    /// The caller is root: all ids are mapped.
    pub(super) root: bool,
    /// Capabilities of the command beyond the default.
    pub(super) added: CapSet,
    /// Nothing of /proc is closed to it.
    pub(super) privileged: bool,
    /// Descriptors were handed to `skbudget` by systemd's protocol.
    pub(super) listen: bool,
}

impl Orders {
    /// The command may act on the container's network.
    pub(super) fn network(&self) -> bool {
        self.added.intersects(CapSet::network())
    }
}

/// `apart`: where this process reports the signals it receives; `inside`: where process 1 does.
pub(super) fn main(
    wire: &Wire,
    apart: &Port,
    inside: Port,
    orders: &Orders,
    command: &[OsString],
) -> ExitCode {
    match run(wire, apart, inside, orders, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("sandbox: {e}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn run(
    wire: &Wire,
    apart: &Port,
    inside: Port,
    orders: &Orders,
    command: &[OsString],
) -> io::Result<u8> {
    let signals = Signals::block()?;
    let parent = getppid();
    set_pdeathsig(Signal::SIGKILL)?;
    if wire.is_over() {
        return Ok(FAILURE);
    }
    let (tap, users) = match set_up(wire, orders) {
        Ok((tap, users)) => {
            wire.send(&Report::Ready, &[tap.as_fd()])?;
            (tap, users)
        }
        Err(AttachError { step, source }) => {
            let (errno, message) = (source.raw_os_error(), source.to_string());
            wire.send(&Report::Failed { step: step.to_owned(), errno, message }, &[])?;
            return Ok(CANNOT_SET_UP);
        }
    };
    if !matches!(wire.receive()?, Some((Order::Go, _))) {
        return Ok(FAILURE);
    }
    // Before the PID namespace: from then on this process can start no thread.
    let ring = if orders.network() { Ring::watch(tap, &orders.guest)? } else { Ring::default() };
    // The other end of this pair lives in process 1, this one as long as we do.
    let (lifeline, theirs) = Port::pair()?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    let mut init = start_init(&theirs, &inside, users.as_ref(), orders, command)?;
    drop((theirs, inside, users));
    // From here on a signal to the caller's process group is not for us: that tells it from one to each of us. A
    // session, not only a group: a parent in another group of the session would make the kernel take the command's
    // group for one that a shell looks after.
    setsid()?;
    let observer = Watch { signals: &signals, apart, lifeline: Some(lifeline), parent };
    let code = observer.look_after(wire, &mut init)?;
    // The parent went away first: then nobody asks.
    let _ = wire.send(&Report::Exited { code, tampered: ring.tampered() }, &[]);
    while wire.receive::<Order>()?.is_some() {}
    Ok(code)
}

/// User namespaces, container namespace, scratch namespace, device; ends up in the container's. With the device comes
/// the command's user namespace.
fn set_up(wire: &Wire, orders: &Orders) -> Result<(Tap, Option<OwnedFd>), AttachError> {
    // Capabilities beyond the default must not be those of the host.
    let may_do_without = orders.root && orders.added == CapSet::NONE;
    let inner = if users::enter_outer(wire, orders.root, may_do_without)? {
        Some(Inner::make(orders.network()).step("new user namespace for the command")?)
    } else {
        None
    };
    // What is in the outer user namespace sends the device out and kills all: nobody of the same user looks into it.
    set_dumpable(false).step("prctl")?;
    if let Some(netns) = inner.as_ref().and_then(|inner| inner.netns.as_ref()) {
        setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWNET).step("new network namespace")?;
    }
    attach::loopback_up()?;
    open_to_all();
    let container = attach::current_netns()?;
    unshare(CloneFlags::CLONE_NEWNET).step("new scratch network namespace")?;
    let tap = attach::tap_into_from_here(container.as_fd(), &orders.guest)?;
    Ok((tap, inner.map(|inner| inner.users)))
}

/// Low ports and ping need no capability in there: the command has none over its network. Where /proc is read-only
/// they need one.
fn open_to_all() {
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    if let Err(e) = set("ip_unprivileged_port_start", "0") {
        log::info!("ports below 1024 are closed to the command: {e}");
    }
    // Where only one group is mapped, it is group 0.
    if let Err(e) =
        set("ping_group_range", "0 2147483647").or_else(|_| set("ping_group_range", "0 0"))
    {
        log::info!("ping sockets are closed to the command: {e}");
    }
}

fn start_init(
    lifeline: &Port,
    inside: &Port,
    users: Option<&OwnedFd>,
    orders: &Orders,
    command: &[OsString],
) -> io::Result<Child> {
    let mut fds = vec![lifeline.as_fd().as_raw_fd(), inside.as_fd().as_raw_fd()];
    fds.extend(users.map(AsRawFd::as_raw_fd));
    let (mut init, fds) = roles::process(roles::INIT, &fds);
    init.arg(serde_json::to_string(orders)?).args(command);
    sys::prepare_child(&mut init, fds, signals::blocked(), None);
    init.spawn()
}

/// What the sandbox watches while the command runs.
struct Watch<'a> {
    signals: &'a Signals,
    apart: &'a Port,
    /// From process 1, until it ends.
    lifeline: Option<Port>,
    /// `skbudget` itself.
    parent: Pid,
}

impl Watch<'_> {
    /// Until process 1 ends; its code. When `skbudget` is gone, the kernel kills us, which kills it.
    fn look_after(mut self, wire: &Wire, init: &mut Child) -> io::Result<u8> {
        let mut wire = Some(wire);
        let (mut command_stopped, mut parent_stopped) = (false, false);
        loop {
            if let Some(status) = init.try_wait()? {
                return Ok(exit_code(status));
            }
            self.wait(wire)?;
            if wire.is_some_and(Wire::is_over) {
                init.kill()?;
                wire = None;
            }
            while let Some(lifeline) = &self.lifeline {
                match lifeline.receive() {
                    Received::Nothing => break,
                    Received::End => self.lifeline = None,
                    Received::Note(Note::Stopped) => command_stopped = true,
                    Received::Note(Note::Continued) => {
                        command_stopped = false;
                        if std::mem::take(&mut parent_stopped) {
                            let _ = kill(self.parent, Signal::SIGCONT);
                        }
                    }
                    Received::Note(_) => {}
                }
            }
            observe(
                self.signals,
                self.apart,
                || false,
                |note| {
                    if note == Note::StopUs && command_stopped {
                        parent_stopped = true;
                        let _ = kill(self.parent, Signal::SIGSTOP);
                    }
                },
            )?;
        }
    }

    fn wait(&self, wire: Option<&Wire>) -> io::Result<()> {
        let fds = [Some(self.signals.as_fd()), Some(self.apart.as_fd())];
        let more = [wire.map(Wire::as_fd), self.lifeline.as_ref().map(Port::as_fd)];
        let fds = fds.into_iter().chain(more).flatten();
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
