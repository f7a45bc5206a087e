//! What the command sees at /proc and /sys: its own processes and its own network, and no knobs of the machine.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

const NONE: Option<&str> = None;

/// Where programs look for their own limits; a new sysfs has nothing there.
const CGROUP: &str = "/sys/fs/cgroup";

const PROC_SYS: &str = "/proc/sys";
const PROC_SYS_NET: &str = "/proc/sys/net";

/// Of /proc, what acts on the whole machine and what root may write to without any capability.
const MACHINE: [&str; 5] = [PROC_SYS, "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];

/// How much of the machine's knobs a command may turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knobs {
    /// Those that its user may write to outside as well.
    AsOutside,
    /// None but those of its own network.
    Network,
    None,
}

/// In process 1, whose mount namespace is new: /proc of this PID namespace, /sys of this network. Where the kernel
/// forbids it (a container around us hides parts of its own), the command sees the outer one.
pub(super) fn set_up(knobs: Knobs) {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if let Err(errno) = mount(NONE, "/", NONE, private, NONE) {
        log::warn!("no mounts of its own for the container: {errno}");
        return;
    }
    match mount_proc() {
        Ok(()) => hide(knobs),
        Err(errno) => log::warn!("no /proc of its own for the container: {errno}"),
    }
    if let Err(errno) = mount_sys() {
        log::info!("no /sys of its own for the container: {errno}");
    }
}

fn mount_proc() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)
}

/// Read-only: what a command may change of its network it changes by netlink.
fn mount_sys() -> nix::Result<()> {
    let cgroup = handle(CGROUP).ok();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, NONE)?;
    if let Some(cgroup) = cgroup
        && let Err(errno) = bind(&cgroup, CGROUP, MsFlags::MS_REC)
    {
        log::info!("{CGROUP} is empty in the container: {errno}");
    }
    Ok(())
}

fn hide(knobs: Knobs) {
    if knobs == Knobs::AsOutside {
        return;
    }
    let net = handle(PROC_SYS_NET);
    for path in MACHINE.into_iter().filter(|path| Path::new(path).exists()) {
        if let Err(e) = read_only(path) {
            log::warn!("{path} is not read-only in the container: {e}");
        }
    }
    if knobs == Knobs::Network
        && let Err(errno) = net.and_then(|net| bind(&net, PROC_SYS_NET, MsFlags::empty()))
    {
        log::warn!("{PROC_SYS_NET} is read-only in the container: {errno}");
    }
}

fn read_only(path: &str) -> nix::Result<()> {
    bind(&handle(path)?, path, MsFlags::empty())?;
    // The flags that were inherited must be named again: they are locked.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let change = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, path, NONE, flags | change, NONE)
}

fn handle(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// What the handle leads to, also where something was mounted over it meanwhile.
fn bind(from: &OwnedFd, to: &str, more: MsFlags) -> nix::Result<()> {
    let from = format!("/proc/self/fd/{}", from.as_raw_fd());
    mount(Some(from.as_str()), to, NONE, MsFlags::MS_BIND | more, NONE)
}

/// Mounts that came from the mount namespace of another user namespace cannot be taken away one by one: nothing that
/// they cover comes to light.
pub(super) fn lock() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno: Errno| errno.into())
}
