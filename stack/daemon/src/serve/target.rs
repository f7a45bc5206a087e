//! The network namespace that a request names, and the device in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::api::ApiError;

/// Name of the device in the container if the request gives none.
pub(super) const IFNAME_DEFAULT: &str = "eth0";

/// Longest name of a device, bytes (IFNAMSIZ without the end).
const IFNAME_MAX: usize = 15;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    /// Device and inode: no other namespace has them as long as this one exists.
    pub(super) id: (u64, u64),
}

impl Netns {
    /// Opens the namespace of a process.
    pub(super) fn of_process(pid: u32) -> Result<Self, ApiError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Self::open(&path).map_err(|e| {
            match e.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => {
                    ApiError::new(404, "no_such_process", format!("pid {pid}: no such process"))
                }
                _ => ApiError::invalid("cannot_open", format!("pid {pid}: {e}")),
            }
            .key("pid")
        })
    }

    /// Opens a namespace by its path.
    pub(super) fn at(path: &Path) -> Result<Self, ApiError> {
        let shown = path.display();
        if !path.is_absolute() {
            let message = format!("netns {shown}: an absolute path is needed");
            return Err(ApiError::invalid("bad_value", message).key("netns"));
        }
        let opened = Self::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                ApiError::new(404, "no_such_netns", format!("netns {shown}: {e}"))
            }
            io::ErrorKind::InvalidInput => {
                let message = format!("netns {shown}: not a network namespace");
                ApiError::invalid("not_a_netns", message)
            }
            _ => ApiError::invalid("cannot_open", format!("netns {shown}: {e}")),
        });
        opened.map_err(|e| e.key("netns"))
    }

    /// The namespace of this process.
    pub(super) fn own() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    fn open(path: &Path) -> io::Result<Self> {
        // The path may be that of a FIFO or of a terminal: it must neither block nor become the controlling one.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        // Another kind of namespace has the same file system; its kind is the start of its name.
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let is_net =
            name.to_str().is_none_or(|name| name.starts_with("net:[") || name.starts_with('/'));
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC || !is_net {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Of the open file: the path may lead to another namespace by now.
        let found = file.metadata()?;
        Ok(Self { file, id: (found.dev(), found.ino()) })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Refuses names that no device can have.
pub(super) fn check_ifname(name: &str) -> Result<(), ApiError> {
    let fits = (1..=IFNAME_MAX).contains(&name.len()) && ![".", ".."].contains(&name);
    // The kernel allows more; these names need no quoting anywhere. `%d` would be replaced by a number.
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits && plain && name != "lo" {
        return Ok(());
    }
    let message = format!(
        "ifname: 1 to {IFNAME_MAX} letters, digits, '.', '_' and '-' are allowed, but not lo"
    );
    Err(ApiError::invalid("bad_value", message).key("ifname"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_network_namespace_is_one() {
        let own = Netns::own().unwrap();
        assert_eq!(Netns::at(Path::new("/proc/self/ns/net")).unwrap().id, own.id);
        assert_eq!(Netns::of_process(std::process::id()).unwrap().id, own.id);
        for (path, status, code) in [
            ("/proc/self/ns/mnt", 400, "not_a_netns"),
            ("/dev/null", 400, "not_a_netns"),
            ("/etc/passwd", 400, "not_a_netns"),
            ("/nowhere", 404, "no_such_netns"),
            ("ns/net", 400, "bad_value"),
        ] {
            let error = Netns::at(Path::new(path)).unwrap_err();
            assert_eq!((error.status, error.body.code.as_str()), (status, code), "{path}");
            assert_eq!(error.body.key.as_deref(), Some("netns"));
        }
        let gone = Netns::of_process(i32::MAX as u32).unwrap_err();
        assert_eq!((gone.status, gone.body.code.as_str()), (404, "no_such_process"));
    }

    #[test]
    fn a_fifo_does_not_block() {
        let path = std::env::temp_dir().join(format!("skbudget-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = Netns::at(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert_eq!(error.body.code, "not_a_netns");
    }

    #[test]
    fn names_of_devices() {
        for good in ["eth0", "a", "veth-1.2_3", "fifteen-letters"] {
            assert!(check_ifname(good).is_ok(), "{good}");
        }
        for bad in ["", "lo", ".", "..", "a/b", "a b", "eth%d", "sixteen-letters-", "é"] {
            assert!(check_ifname(bad).is_err(), "{bad}");
        }
    }
}
