//! The control socket. A lock on a file beside it, with the daemon's process id, decides which daemon has it: the
//! kernel releases the lock when the process ends, so a socket without one is stale and is taken over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{FileStat, Mode, fstat, umask};
use nix::unistd::{Gid, Group, chown};

use crate::exit::Failure;
use crate::systemd;

/// Longest text that a lock file holds: a process id.
const PID_BYTES: u64 = 16;

/// How often the lock is tried again because its file was removed meanwhile.
const ATTEMPTS: usize = 64;

/// The socket, bound by this process. It is removed when this value is dropped.
#[derive(Debug)]
pub(super) struct ControlSocket {
    path: PathBuf,
    lock_path: PathBuf,
    listener: UnixListener,
    /// The socket was bound by the supervisor that started this process, and stays.
    passed: bool,
    /// Released after the two files are removed.
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Binds the socket, with access for this process's user only, and for a group if one is given, unless a supervisor
    /// has passed it (LISTEN_FDS). Its folder is created if only that is missing, with access for the same.
    pub(super) fn bind(path: &Path, group: Option<Gid>) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::other(format!("--socket {}: {e}", path.display()));
        let passed = systemd::listener()?;
        if let Some((_, other)) = passed.as_ref().filter(|(_, passed)| passed != path) {
            let (path, other) = (path.display(), other.display());
            let message = format!("--socket {path}: the supervisor passed the socket {other}");
            return Err(Failure::usage(format!("{message}: the same path is allowed")));
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            match fs::DirBuilder::new().mode(0o700).create(folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
                // The group passes through it, and reads nothing of it.
                Ok(()) if group.is_some() => give(folder, group, 0o710).map_err(failed)?,
                _ => {}
            }
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = match lock(&lock_path).map_err(failed)? {
            Ok(lock) => lock,
            Err(pid) => {
                return Err(Failure::other(format!(
                    "--socket {}: in use by the daemon with process id {pid}",
                    path.display()
                )));
            }
        };
        let is_passed = passed.is_some();
        let listener = match passed {
            Some((listener, _)) => listener,
            None => bind(path).map_err(failed)?,
        };
        let path_of = path.to_owned();
        let socket = Self { path: path_of, lock_path, listener, passed: is_passed, _lock: lock };
        // The supervisor has set the access of its own.
        if group.is_some() && !is_passed {
            give(path, group, 0o660).map_err(failed)?;
        }
        Ok(socket)
    }

    /// Another descriptor of the listener.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // While the lock is held, no other daemon has replaced them.
        if !self.passed {
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// The group of `--socket-group`, by its name or number.
pub(super) fn group(text: &str) -> Result<Gid, Failure> {
    let wrong = |why: &str| Failure::usage(format!("--socket-group {text}: {why}"));
    match (Group::from_name(text), text.parse()) {
        (Ok(Some(group)), _) => Ok(group.gid),
        (_, Ok(number)) => Ok(Gid::from_raw(number)),
        (Ok(None), _) => Err(wrong("no such group: the name or the number of one is needed")),
        (Err(errno), _) => Err(wrong(errno.desc())),
    }
}

/// Gives a file to the group, then to its access: in this order no other group gets it.
fn give(path: &Path, group: Option<Gid>, mode: u32) -> io::Result<()> {
    chown(path, None, group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Binds the socket in place of a stale one.
fn bind(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    // Set before the socket exists: no other user can connect in between. No other thread creates files now.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Takes the lock and writes this process's id to it. The inner error: the id of the process that has it.
pub(super) fn lock(path: &Path) -> io::Result<Result<Flock<File>, String>> {
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((other, Errno::EWOULDBLOCK)) => {
                file = other;
                let mut pid = String::new();
                let _ = file.take(PID_BYTES).read_to_string(&mut pid);
                return Ok(Err(pid.trim().to_owned()));
            }
            Err((_, errno)) => return Err(errno.into()),
        };
        let FileStat { st_nlink, .. } = fstat(&*locked)?;
        // Removed by its last holder after this process opened it.
        if st_nlink == 0 {
            continue;
        }
        locked.set_len(0)?;
        writeln!(locked, "{}", std::process::id())?;
        return Ok(Ok(locked));
    }
    Err(io::Error::from(io::ErrorKind::TimedOut))
}

/// Removes a socket that a killed daemon left. Another kind of file is not removed.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "exists, and is no socket")),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::getgid;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(what: &str) -> Self {
            let name = format!("skbudget-socket-{what}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_has_one_daemon_and_nothing_stays_of_it() {
        let folder = Folder::new("once");
        let path = folder.0.join("skbudget.sock");
        let held = ControlSocket::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
        let second = ControlSocket::bind(&path, None).unwrap_err();
        let pid = format!("process id {}", std::process::id());
        assert!(second.message.ends_with(&pid), "{second}");
        drop(held);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_taken_over_and_another_file_is_not() {
        let folder = Folder::new("stale");
        fs::create_dir(&folder.0).unwrap();
        let path = folder.0.join("skbudget.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(folder.0.join("skbudget.sock.lock"), "1\n").unwrap();
        drop(ControlSocket::bind(&path, None).unwrap());
        assert!(!path.exists());
        fs::write(&path, "data").unwrap();
        let refused = ControlSocket::bind(&path, None).unwrap_err();
        assert!(refused.message.contains("no socket"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_group_gets_the_socket_and_no_other_file() {
        let folder = Folder::new("group");
        let path = folder.0.join("skbudget.sock");
        let socket = ControlSocket::bind(&path, Some(getgid())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.0), mode(&path)), (0o710, 0o660));
        assert_eq!(mode(&folder.0.join("skbudget.sock.lock")), 0o600);
        drop(socket);
        assert_eq!(group(&getgid().to_string()).unwrap(), getgid());
        let refused = group("no-such-group-here").unwrap_err();
        assert_eq!(refused.code, 2);
        assert!(refused.message.starts_with("--socket-group no-such-group-here: no such group"));
    }
}
