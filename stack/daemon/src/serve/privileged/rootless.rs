//! Devices in the containers of an ordinary user. The user owns the user namespace of such a container, and a process
//! that enters it has all capabilities there. Only a process of one thread may enter, and it cannot return: so a child
//! process makes the device, sends it, and ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use crate::attach::{self, AttachError, GuestNet, Step};
use crate::channel::ControlChannel;
use crate::exit::FAILURE;
use crate::{roles, sys};

/// Role of the child process, as its first argument.
pub(in crate::serve) const HELPER: &str = "__serve_helper";

/// The step that fails for a container of another user.
const NOT_OWNED: &str =
    "a daemon without root serves containers in user namespaces of its own user only";

/// To the child, with the network namespace and the user namespace that owns it.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    ifname: String,
    guest: GuestNet,
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    /// With the device.
    Made,
    Failed {
        step: String,
        errno: Option<i32>,
        message: String,
    },
}

/// Makes a device in the namespace, as [`attach::named_tap_into`].
pub(super) fn tap_into(
    netns: BorrowedFd<'_>,
    ifname: &str,
    guest: &GuestNet,
) -> Result<OwnedFd, AttachError> {
    let owner = File::from(sys::namespace_owner(netns).step(NOT_OWNED)?);
    let own = File::open("/proc/self/ns/user").step("open /proc/self/ns/user")?;
    let id = |namespace: &File| namespace.metadata().map(|found| (found.dev(), found.ino()));
    if id(&owner).step(NOT_OWNED)? == id(&own).step(NOT_OWNED)? {
        return Err(io::Error::from_raw_os_error(libc::EPERM)).step(NOT_OWNED);
    }
    let (channel, theirs) = ControlChannel::pair().step("start the helper")?;
    let (mut process, fds) = roles::process(HELPER, &[theirs.as_fd().as_raw_fd()]);
    process.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    sys::prepare_child(&mut process, fds, SigSet::all(), None);
    let mut process = process.spawn().step("start the helper")?;
    // With only the child holding it, an early end of the child is noticed.
    drop(theirs);
    let task = Task { ifname: ifname.to_owned(), guest: guest.clone() };
    let answer =
        channel.send(&task, &[netns, owner.as_fd()]).and_then(|()| channel.receive::<Outcome>());
    let _ = process.wait();
    match answer.step("helper")? {
        Some((Outcome::Made, fds)) => {
            fds.into_iter().next().ok_or(io::ErrorKind::InvalidData).step("helper")
        }
        Some((Outcome::Failed { step, errno, message }, _)) => {
            let source =
                errno.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error);
            Err(AttachError { step: step.into(), source })
        }
        None => Err(io::Error::from(io::ErrorKind::BrokenPipe)).step("helper"),
    }
}

/// The child process.
pub(in crate::serve) fn main(channel: &ControlChannel) -> ExitCode {
    let work = || -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        let Some((task, fds)) = channel.receive::<Task>()? else { return Ok(()) };
        let mut fds = fds.into_iter();
        let (Some(netns), Some(owner)) = (fds.next(), fds.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match make(&task, netns.as_fd(), owner.as_fd()) {
            Ok(tap) => channel.send(&Outcome::Made, &[tap.as_fd()]),
            Err(AttachError { step, source }) => {
                let (errno, message) = (source.raw_os_error(), source.to_string());
                channel.send(&Outcome::Failed { step: step.into_owned(), errno, message }, &[])
            }
        }
    };
    if work().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}

fn make(
    task: &Task,
    netns: BorrowedFd<'_>,
    owner: BorrowedFd<'_>,
) -> Result<skbudget_stack::Tap, AttachError> {
    // No process of the container may trace this one, which is about to have the same user.
    set_dumpable(false).step("prctl")?;
    setns(owner, CloneFlags::CLONE_NEWUSER).step("enter the user namespace of the container")?;
    set_dumpable(false).step("prctl")?;
    unshare(CloneFlags::CLONE_NEWNET).step("scratch network namespace")?;
    attach::tap_into_from_here(netns, &task.ifname, &task.guest)
}
