//! Names of running containers. A name is held by a lock on a file, in a folder that only its user can enter. The
//! kernel releases the lock when its process ends, however that happens. An abstract socket would need no files, but
//! any local user can take one, and two network namespaces would not see each other's.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::exit::Failure;
use crate::sys;

/// End of a lock file's name.
const SUFFIX: &str = ".lock";

/// Lock files checked at one start, to remove those that a killed process left.
const STALE_MAX: usize = 1024;

/// How often a start repeats because another process removed the folder or the file meanwhile.
const ATTEMPTS: usize = 64;

/// Attempts to lock the folder, and the pause between two of them: a second in all.
const LOCK_ATTEMPTS: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Holds a name until this value is dropped.
#[derive(Debug)]
pub(crate) struct NameHold {
    name: String,
    /// The lock file. `None` for a random name without a folder for the lock: a random name needs none.
    lock: Option<(PathBuf, Flock<OwnedFd>)>,
}

/// Holds the given name, or a random one.
pub(crate) fn take(given: Option<&str>) -> Result<NameHold, Failure> {
    let Some(name) = given else { return random() };
    let held = folder().and_then(|folder| hold(&folder, name));
    match held.map_err(|e| Failure::set_up(format!("--name {name}: {e}")))? {
        Some(held) => Ok(held),
        None => Err(Failure::set_up(format!(
            "--name {name}: in use by another skbudget of this user: stop it or choose another name"
        ))),
    }
}

/// Holds a random name. Without a folder it is not locked: 32 random bits hardly ever meet.
fn random() -> Result<NameHold, Failure> {
    let failed = |e: io::Error| Failure::set_up(format!("cannot choose a random name: {e}"));
    loop {
        let number = sys::random_u64().map_err(failed)? >> 32;
        let name = format!("run-{number:08x}");
        match folder().and_then(|folder| hold(&folder, &name)) {
            Ok(Some(held)) => return Ok(held),
            Ok(None) => {}
            Err(e) => {
                tracing::info!("name {name} is not locked: {e}");
                return Ok(NameHold { name, lock: None });
            }
        }
    }
}

/// The folder of this user. A candidate that cannot be created is skipped; one that exists and is unsafe is an error.
fn folder() -> io::Result<PathBuf> {
    let uid = geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let candidates = [
        uid.is_root().then(|| PathBuf::from("/run/skbudget")),
        runtime.filter(|path| path.is_absolute()).map(|path| path.join("skbudget")),
        Some(PathBuf::from(format!("/run/user/{uid}/skbudget"))),
        Some(PathBuf::from(format!("/tmp/skbudget-{uid}"))),
    ];
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for path in candidates.into_iter().flatten() {
        match open_folder(&path) {
            Ok(_) => return Ok(path),
            // Another user controls it: the next candidate would hide an attack.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(e),
            Err(e) => last = io::Error::new(e.kind(), format!("{}: {e}", path.display())),
        }
    }
    Err(last)
}

/// Creates and opens the folder. It must belong to this user, and no other user may enter it.
fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    match nix::unistd::mkdir(path, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let unsafe_folder = |what: &str| {
        let path = path.display();
        let message =
            format!("{path} {what}: a directory owned by this user with mode 0700 is needed");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    // A symbolic link in /tmp could point to any folder.
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = match open(path, flags, Mode::empty()) {
        Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(unsafe_folder("is not a directory")),
        other => other?,
    };
    // Checked on the descriptor, not on the path: the path could change in between.
    let FileStat { st_uid, st_mode, .. } = fstat(&fd)?;
    match (st_uid == geteuid().as_raw(), st_mode & 0o077) {
        (false, _) => Err(unsafe_folder(&format!("belongs to user {st_uid}"))),
        (true, 0) => Ok(fd),
        (true, _) => Err(unsafe_folder(&format!("has mode {:04o}", st_mode & 0o7777))),
    }
}

/// Holds the name with its lock file; `None`: another process holds it.
fn hold(path: &Path, name: &str) -> io::Result<Option<NameHold>> {
    let file = format!("{name}{SUFFIX}");
    for _ in 0..ATTEMPTS {
        // Holds the folder's lock while it removes and creates files. Otherwise two processes that start together could
        // take each other's new, still unlocked file for a stale one.
        let folder = lock_soon(open_folder(path)?)?;
        remove_stale(path, &folder);
        let flags = OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = match openat(&*folder, file.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            // The holder of the last name removed the folder meanwhile.
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        let Some(locked) = lock(opened, FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        // The previous holder may have removed the file after this process opened it and before it was locked.
        if fstat(&*locked)?.st_nlink == 0 {
            continue;
        }
        return Ok(Some(NameHold {
            name: name.to_owned(),
            lock: Some((path.join(&file), locked)),
        }));
    }
    Err(io::Error::from(Errno::EAGAIN))
}

/// Locks the folder. The lock is held for a few system calls only, unless its holder is stopped: therefore the bound.
fn lock_soon(mut fd: OwnedFd) -> io::Result<Flock<OwnedFd>> {
    for _ in 0..LOCK_ATTEMPTS {
        match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, Errno::EWOULDBLOCK)) => fd = unlocked,
            Err((_, errno)) => return Err(errno.into()),
        }
        thread::sleep(LOCK_PAUSE);
    }
    let message = "another process holds the lock on the directory of names";
    Err(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// Takes the lock; `None`: another process holds it.
fn lock(fd: OwnedFd, how: FlockArg) -> io::Result<Option<Flock<OwnedFd>>> {
    match Flock::lock(fd, how) {
        Ok(locked) => Ok(Some(locked)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes the lock files of processes that were killed: the kernel released their locks.
fn remove_stale(path: &Path, folder: &Flock<OwnedFd>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.take(STALE_MAX).flatten() {
        let file = entry.file_name();
        if !file.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            continue;
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let Ok(opened) = openat(&**folder, file.as_os_str(), flags, Mode::empty()) else {
            continue;
        };
        if let Ok(Some(_stale)) = lock(opened, FlockArg::LockExclusiveNonblock) {
            let _ = unlinkat(&**folder, file.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl NameHold {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for NameHold {
    /// Removes the lock file, and the folder if it is empty.
    fn drop(&mut self) {
        let Some((path, _locked)) = &self.lock else { return };
        // While the lock is held, no other process can have replaced the file.
        let _ = fs::remove_file(path);
        if let Some(folder) = path.parent() {
            // Fails while the folder holds other names.
            let _ = unlinkat(AT_FDCWD, folder, UnlinkatFlags::RemoveDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A path for one test. Its file or folder is removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(what: &str) -> Self {
            let name = format!("skbudget-names-{what}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_held_once_and_nothing_stays_of_it() {
        let place = Place::new("once");
        let first = hold(&place.0, "web").unwrap().unwrap();
        assert_eq!(first.name(), "web");
        assert!(hold(&place.0, "web").unwrap().is_none());
        let other = hold(&place.0, "db").unwrap();
        drop(first);
        assert!(hold(&place.0, "web").unwrap().is_some());
        drop(other);
        assert!(!place.0.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over_and_removed() {
        let place = Place::new("stale");
        let held = hold(&place.0, "held").unwrap().unwrap();
        for left in ["web", "old"] {
            fs::write(place.0.join(format!("{left}{SUFFIX}")), "").unwrap();
        }
        let web = hold(&place.0, "web").unwrap().unwrap();
        let files = || fs::read_dir(&place.0).unwrap().count();
        assert_eq!(files(), 2);
        drop((held, web));
        assert!(!place.0.exists());
    }

    #[test]
    fn a_folder_that_others_control_is_refused() {
        let (place, target) = (Place::new("link"), Place::new("target"));
        fs::create_dir(&target.0).unwrap();
        symlink(&target.0, &place.0).unwrap();
        let error = hold(&place.0, "web").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("not a directory"), "{error}");
        assert_eq!(fs::read_dir(&target.0).unwrap().count(), 0);

        let open = Place::new("open");
        fs::create_dir(&open.0).unwrap();
        fs::set_permissions(&open.0, fs::Permissions::from_mode(0o1777)).unwrap();
        let error = hold(&open.0, "web").unwrap_err();
        assert!(error.to_string().contains("mode 1777"), "{error}");
    }

    #[test]
    fn a_link_in_place_of_a_lock_is_not_followed() {
        let (place, victim) = (Place::new("inner-link"), Place::new("victim"));
        fs::write(&victim.0, "untouched").unwrap();
        let held = hold(&place.0, "db").unwrap().unwrap();
        symlink(&victim.0, place.0.join(format!("web{SUFFIX}"))).unwrap();
        assert!(hold(&place.0, "web").is_err());
        assert_eq!(fs::read(&victim.0).unwrap(), b"untouched");
        drop(held);
    }

    #[test]
    fn a_folder_that_a_stopped_process_keeps_locked_is_given_up() {
        let place = Place::new("locked");
        fs::create_dir(&place.0).unwrap();
        fs::set_permissions(&place.0, fs::Permissions::from_mode(0o700)).unwrap();
        let _stopped = lock_soon(open_folder(&place.0).unwrap()).unwrap();
        let error = hold(&place.0, "web").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 0);
    }

    #[test]
    fn names_nobody_gave_differ() {
        let (one, two) = (take(None).unwrap(), take(None).unwrap());
        assert_ne!(one.name(), two.name());
        assert!(one.name().starts_with("run-"));
    }

    #[test]
    fn many_that_start_and_end_at_once_never_share_a_name() {
        let place = Place::new("race");
        let holders = std::sync::atomic::AtomicU32::new(0);
        let work = || {
            for _ in 0..200 {
                let Ok(Some(held)) = hold(&place.0, "web") else { continue };
                assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(held);
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    }
}
