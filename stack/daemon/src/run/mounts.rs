//! What the command sees at /proc and /sys: its own processes and its own network, and no knobs of the machine.

use std::fs;
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

/// Which of the knobs in /proc a command may turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knobs {
    /// Those that its user may write to outside as well.
    AsOutside,
    /// None but those of its own network: the kernel keeps them by network namespace.
    Network,
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
    if let Some(cgroup) = cgroup {
        match bind(&cgroup, CGROUP, MsFlags::MS_REC) {
            Ok(()) => cgroups_read_only(),
            Err(errno) => log::info!("{CGROUP} is empty in the container: {errno}"),
        }
    }
    Ok(())
}

/// Every hierarchy: root could freeze process 1 there, and a frozen process does not die with skbudget.
fn cgroups_read_only() {
    let table = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(e) => return log::warn!("{CGROUP} is writable in the container: mountinfo: {e}"),
    };
    for path in mounts_below(&table, CGROUP) {
        if let Err(errno) = remount_read_only(path) {
            log::warn!("{path} is writable in the container: {errno}");
        }
    }
}

/// Mount points at and below `root`, of a table as in proc_pid_mountinfo(5): the fifth field of each line.
fn mounts_below<'a>(table: &'a str, root: &'a str) -> impl Iterator<Item = &'a str> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(move |point| Path::new(point).starts_with(root))
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
    if let Err(errno) = net.and_then(|net| bind(&net, PROC_SYS_NET, MsFlags::empty())) {
        log::warn!("{PROC_SYS_NET} is read-only in the container: {errno}");
    }
}

fn read_only(path: &str) -> nix::Result<()> {
    bind(&handle(path)?, path, MsFlags::empty())?;
    remount_read_only(path)
}

fn remount_read_only(path: &str) -> nix::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_their_folder() {
        let table = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                     31 25 0:27 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw\n\
                     32 31 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                     33 25 0:29 / /sys/fs/cgroup2 rw - cgroup2 none rw\n";
        let found: Vec<_> = mounts_below(table, CGROUP).collect();
        assert_eq!(found, ["/sys/fs/cgroup", "/sys/fs/cgroup/freezer"]);
    }
}
