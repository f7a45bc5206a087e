//! The network namespace that a request names, and the device in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use crate::api::ApiError;
use crate::{attach, sys};

/// Name of the device in the container if the request gives none.
pub(super) const IFNAME_DEFAULT: &str = "eth0";

/// Longest name of a device, bytes (IFNAMSIZ without the end).
const IFNAME_MAX: usize = 15;

/// Where a request finds the network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// That of a process.
    Process(u32),
    /// An absolute path.
    Path(PathBuf),
}

impl Place {
    /// A path, which must be absolute.
    pub(super) fn at(path: &Path) -> Result<Self, ApiError> {
        if path.is_absolute() {
            return Ok(Self::Path(path.to_owned()));
        }
        let message = format!("netns {}: an absolute path is needed", path.display());
        Err(ApiError::invalid("bad_value", message).key("netns"))
    }

    /// The error for a namespace that could not be opened.
    pub(super) fn refused(&self, error: &io::Error) -> ApiError {
        let errno = error.raw_os_error();
        match self {
            Self::Process(pid) => match errno {
                Some(libc::ENOENT | libc::ESRCH) => {
                    ApiError::new(404, "no_such_process", format!("pid {pid}: no such process"))
                }
                _ => ApiError::invalid("cannot_open", format!("pid {pid}: {error}")),
            }
            .key("pid"),
            Self::Path(path) => {
                let path = path.display();
                match errno {
                    Some(libc::ENOENT) => {
                        ApiError::new(404, "no_such_netns", format!("netns {path}: {error}"))
                    }
                    Some(NOT_A_NETNS) => {
                        let message = format!("netns {path}: not a network namespace");
                        ApiError::invalid("not_a_netns", message)
                    }
                    _ => ApiError::invalid("cannot_open", format!("netns {path}: {error}")),
                }
                .key("netns")
            }
        }
    }
}

/// Error of a file that is no network namespace. open(2) returns it for no file that exists.
const NOT_A_NETNS: i32 = libc::EBADF;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    fd: OwnedFd,
    pub(super) id: NetnsId,
    /// `None`: the kernel has none, or this process may not enter the namespace.
    pub(super) cookie: Option<u64>,
    /// It is that of the daemon itself, which is no container.
    pub(super) is_own: bool,
}

/// Device and inode: no other namespace has them as long as this one exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetnsId(u64, u64);

impl Netns {
    /// Opens the namespace. The error of a file that is none is `NOT_A_NETNS`.
    pub(super) fn open(place: &Place) -> io::Result<Self> {
        let path = match place {
            Place::Process(pid) => &PathBuf::from(format!("/proc/{pid}/ns/net")),
            Place::Path(path) => path,
        };
        // The path may be that of a FIFO or of a terminal: it must neither block nor become the controlling one.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Self::of_fd(file.into())
    }

    /// Checks that the descriptor is a network namespace.
    pub(super) fn of_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let id = NetnsId::of(&file)?;
        let is_own = NetnsId::of(&File::open("/proc/self/ns/net")?)? == id;
        let fd = OwnedFd::from(file);
        let cookie = attach::run_in(fd.as_fd(), || {
            let socket = UnixDatagram::unbound()?;
            sys::netns_cookie(socket.as_fd())
        });
        Ok(Self { fd, id, cookie: cookie.ok().and_then(Result::ok), is_own })
    }

    /// A namespace that another process has checked.
    pub(super) fn checked(fd: OwnedFd, key: NetnsKey, is_own: bool) -> Self {
        let NetnsKey { id, cookie } = key;
        Self { fd, id, cookie, is_own }
    }

    /// What it is recognised by later.
    pub(super) fn key(&self) -> NetnsKey {
        NetnsKey { id: self.id, cookie: self.cookie }
    }

    /// The descriptor alone.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Identifies a network namespace after it has ended, too: its inode is used again, its cookie is not. A kernel before
/// 5.14 has no cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetnsKey {
    pub(super) id: NetnsId,
    pub(super) cookie: Option<u64>,
}

impl NetnsKey {
    /// Whether it is that namespace.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self.cookie, other.cookie) {
            (Some(old), Some(now)) => old == now,
            _ => self.id == other.id,
        }
    }
}

impl NetnsId {
    fn of(file: &File) -> io::Result<Self> {
        // Another kind of namespace has the same file system; its kind is the start of its name.
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let is_net =
            name.to_str().is_none_or(|name| name.starts_with("net:[") || name.starts_with('/'));
        if fstatfs(file)?.filesystem_type() != NSFS_MAGIC || !is_net {
            return Err(io::Error::from_raw_os_error(NOT_A_NETNS));
        }
        // Of the open file: the path may lead to another namespace by now.
        let found = file.metadata()?;
        Ok(Self(found.dev(), found.ino()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    fn at(path: &Path) -> Result<Netns, ApiError> {
        let place = Place::at(path)?;
        Netns::open(&place).map_err(|e| place.refused(&e))
    }

    #[test]
    fn only_a_network_namespace_is_one() {
        let own = at(Path::new("/proc/self/ns/net")).unwrap();
        assert!(own.is_own);
        let of_process = Place::Process(std::process::id());
        assert_eq!(Netns::open(&of_process).unwrap().id, own.id);
        for (path, status, code) in [
            ("/proc/self/ns/mnt", 400, "not_a_netns"),
            ("/dev/null", 400, "not_a_netns"),
            ("/etc/passwd", 400, "not_a_netns"),
            ("/nowhere", 404, "no_such_netns"),
            ("ns/net", 400, "bad_value"),
        ] {
            let error = at(Path::new(path)).unwrap_err();
            assert_eq!((error.status, error.body.code.as_str()), (status, code), "{path}");
            assert_eq!(error.body.key.as_deref(), Some("netns"));
        }
        let gone = Place::Process(i32::MAX as u32);
        let gone = gone.refused(&Netns::open(&gone).unwrap_err());
        assert_eq!((gone.status, gone.body.code.as_str()), (404, "no_such_process"));
    }

    #[test]
    fn a_fifo_does_not_block() {
        let path = std::env::temp_dir().join(format!("skbudget-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = at(&path).unwrap_err();
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
