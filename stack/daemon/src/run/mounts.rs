//! The command's /proc and /sys: its own processes and its own network, and no settings of the machine.

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

/// Cgroup mounts, where programs find their own limits. A new sysfs has none.
const CGROUP: &str = "/sys/fs/cgroup";

const PROC_SYS: &str = "/proc/sys";
const PROC_SYS_NET: &str = "/proc/sys/net";

/// The parts of /proc that act on the whole machine, or that root may write to without any capability.
const MACHINE: [&str; 5] = [PROC_SYS, "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];

/// The settings in /proc that a command may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knobs {
    /// Those that its user may change outside of the container as well.
    AsOutside,
    /// Only those of its own network, which the kernel keeps by network namespace.
    Network,
}

/// Mounts /proc of this PID namespace and /sys of this network namespace. Must run in process 1, in a new mount
/// namespace. If the kernel forbids it (an outer container hides parts of its own), the command keeps the outer ones.
pub(super) fn set_up(knobs: Knobs) {
    // Without this the mounts below would propagate to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if let Err(errno) = mount(NONE, "/", NONE, private, NONE) {
        log::warn!("cannot separate the mounts of the container from the host's: {errno}");
        return;
    }
    match mount_proc() {
        Ok(()) => hide(knobs),
        Err(errno) => {
            log::warn!("cannot mount /proc for the container, which keeps the outer one: {errno}");
        }
    }
    if let Err(errno) = mount_sys() {
        log::info!("cannot mount /sys for the container, which keeps the outer one: {errno}");
    }
}

/// Mounts the /proc of this PID namespace.
fn mount_proc() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)
}

/// Mounts the /sys of this network namespace, read-only: a command configures its network by netlink.
fn mount_sys() -> nix::Result<()> {
    // Opened before the new sysfs covers it.
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

/// Makes every cgroup mount read-only: root could freeze process 1 there, and a frozen process would not die with
/// `skbudget`.
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

/// Mount points at and below `root`. `table` is in the format of proc_pid_mountinfo(5): they are the fifth field.
fn mounts_below<'a>(table: &'a str, root: &'a str) -> impl Iterator<Item = &'a str> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(move |point| Path::new(point).starts_with(root))
}

/// Makes the settings of the machine read-only, except those of the container's network.
fn hide(knobs: Knobs) {
    if knobs == Knobs::AsOutside {
        return;
    }
    // Opened before /proc/sys is covered: this handle stays writable.
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

/// Makes the path read-only, by a mount of it over itself.
fn read_only(path: &str) -> nix::Result<()> {
    bind(&handle(path)?, path, MsFlags::empty())?;
    remount_read_only(path)
}

/// Makes a mount read-only.
fn remount_read_only(path: &str) -> nix::Result<()> {
    // The inherited flags are locked: a remount without them fails.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let change = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, path, NONE, flags | change, NONE)
}

/// A handle of the path, which a later mount over it does not change.
fn handle(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Mounts what the handle refers to at `to`, even if it is covered meanwhile.
fn bind(from: &OwnedFd, to: &str, more: MsFlags) -> nix::Result<()> {
    let from = format!("/proc/self/fd/{}", from.as_raw_fd());
    mount(Some(from.as_str()), to, NONE, MsFlags::MS_BIND | more, NONE)
}

/// Enters a mount namespace owned by the command's user namespace. The kernel locks the mounts inherited from another
/// user namespace: the command cannot unmount one and uncover what is below.
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
