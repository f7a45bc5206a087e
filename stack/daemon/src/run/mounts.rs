//! The command's /proc and /sys: its own processes and its own network, and no settings of the machine.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
pub(super) fn set_up(knobs: Knobs, resolv_conf: &str) {
    // Without this the mounts below would propagate to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if let Err(errno) = mount(NONE, "/", NONE, private, NONE) {
        tracing::warn!("cannot separate the mounts of the container from the host's: {errno}");
        return;
    }
    match mount_proc() {
        Ok(()) => hide(knobs),
        Err(errno) => {
            tracing::warn!(
                "cannot mount /proc for the container, which keeps the outer one: {errno}"
            );
        }
    }
    if let Err(errno) = mount_sys() {
        tracing::info!("cannot mount /sys for the container, which keeps the outer one: {errno}");
    }
    cgroups_read_only();
    match mount_resolv_conf(resolv_conf) {
        Ok(()) => {}
        // Without the file, or with a link that leads nowhere, programs use no name server at all.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            tracing::info!("{}: {e}: the container has none either", crate::resolv_conf::PATH);
        }
        Err(e) => {
            tracing::warn!("the container keeps the host's {}: {e}", crate::resolv_conf::PATH);
        }
    }
}

/// Mounts a file with this text over /etc/resolv.conf. A symbolic link is followed, as by the readers of the file.
fn mount_resolv_conf(text: &str) -> io::Result<()> {
    let place = fs::canonicalize(crate::resolv_conf::PATH)?;
    let name = format!("skbudget-resolv-{:016x}", crate::sys::random_u64()?);
    let path = std::env::temp_dir().join(name);
    let mut options = OpenOptions::new();
    // Nothing that is there already, and no link, is written to.
    let mut file = options.write(true).create_new(true).mode(0o644).open(&path)?;
    let mounted = (|| {
        file.write_all(text.as_bytes())?;
        // The umask must not hide it from other users.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        mount(Some(&path), &place, NONE, MsFlags::MS_BIND, NONE)?;
        Ok(())
    })();
    // The mount keeps the file; its name is removed in any case.
    fs::remove_file(&path)?;
    mounted
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
    if let Some(cgroup) = cgroup
        && let Err(errno) = bind(&cgroup, CGROUP, MsFlags::MS_REC)
    {
        tracing::info!("{CGROUP} is empty in the container: {errno}");
    }
    Ok(())
}

/// Makes every cgroup mount read-only, wherever it is: root could freeze process 1 there, and a frozen process would
/// not die with `skbudget`.
fn cgroups_read_only() {
    // As bytes: a mount point may not be UTF-8.
    let table = match fs::read("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(e) => return tracing::warn!("cgroups are writable in the container: mountinfo: {e}"),
    };
    for path in cgroup_mounts(&table) {
        if let Err(errno) = remount_read_only(&path) {
            tracing::warn!("{} is writable in the container: {errno}", path.display());
        }
    }
}

/// Mount points of cgroup hierarchies, and all at and below [`CGROUP`]. `table` is in the format of
/// proc_pid_mountinfo(5): the mount point is the fifth field, the type is the first one after a lone `-`.
fn cgroup_mounts(table: &[u8]) -> Vec<PathBuf> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind.starts_with(b"cgroup") || point.starts_with(CGROUP)).then_some(point)
    };
    table.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Replaces the octal numbers by which the table writes blanks and backslashes: `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|byte| *byte == b'\\');
    let mut text = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let (number, rest) = part.split_at(part.len().min(3));
        text.push(number.iter().fold(0u8, |sum, digit| (sum << 3) | (digit & 7)));
        text.extend_from_slice(rest);
    }
    text
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
            tracing::warn!("{path} is not read-only in the container: {e}");
        }
    }
    if let Err(errno) = net.and_then(|net| bind(&net, PROC_SYS_NET, MsFlags::empty())) {
        tracing::warn!("{PROC_SYS_NET} is read-only in the container: {errno}");
    }
}

/// Makes the path read-only, by a mount of it over itself.
fn read_only(path: &str) -> nix::Result<()> {
    bind(&handle(path)?, path, MsFlags::empty())?;
    remount_read_only(Path::new(path))
}

/// Makes a mount read-only.
fn remount_read_only(path: &Path) -> nix::Result<()> {
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
    fn cgroup_mounts_are_found_by_their_folder_and_by_their_type() {
        let table = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                     31 25 0:27 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw\n\
                     32 31 0:28 / /sys/fs/cgroup/freezer rw shared:9 - cgroup cgroup rw,freezer\n\
                     33 25 0:29 / /sys/fs/cgroup2 rw - ext4 /dev/sda rw\n\
                     34 25 0:30 / /a\\040b\\134 rw shared:1 master:2 - cgroup2 none rw\n";
        let expected = ["/sys/fs/cgroup", "/sys/fs/cgroup/freezer", "/a b\\"].map(PathBuf::from);
        assert_eq!(cgroup_mounts(table.as_bytes()), expected);
    }
}
