//! The state directory: what the daemon needs to attach its containers again after it ended, even by SIGKILL. One file
//! for each container, replaced whole. A lock on a file in it, with the daemon's process id, keeps a second daemon out.
//!
//! A file that cannot be used stays as it is, and the log names it and the reason: nothing in it is applied.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::CONTAINERS_MAX;
use super::privileged::Record;
use super::socket;
use crate::cli::parse_name;
use crate::exit::Failure;

/// Version of the files. Another one is not read.
const SCHEMA: &str = "skbudget.state/1";

/// Largest file, bytes: 4096 ports one by one take a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Ends the name of a container's file, and of one that is being written.
const ENDING: &str = ".json";
const ENDING_NEW: &str = ".new";

/// Bits of a mode that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// The file of one container.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    schema: String,
    /// Of the kernel that the namespace belongs to: no namespace lasts longer.
    boot_id: String,
    record: Record,
}

/// The directory, used by this process alone.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    boot_id: String,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens the directory, and creates it if only that is missing.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::other(format!("--state-dir {}: {e}", path.display()));
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let meta = fs::metadata(path).map_err(failed)?;
        // What is in it decides what a daemon with privileges attaches.
        if !meta.is_dir() || meta.uid() != geteuid().as_raw() || meta.mode() & OTHERS_WRITE != 0 {
            let why = "a directory of the daemon's user is needed in which no other user can write";
            return Err(Failure::other(format!("--state-dir {}: {why}", path.display())));
        }
        let lock_path = path.join("lock");
        let lock = socket::lock(&lock_path).map_err(failed)?.map_err(|pid| {
            Failure::other(format!(
                "--state-dir {}: in use by the daemon with process id {pid}",
                path.display()
            ))
        })?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
        let boot_id = boot_id.trim().to_owned();
        Ok(Self { path: path.to_owned(), boot_id, lock_path, _lock: lock })
    }

    /// Writes the state of a container. After an error the last one stays.
    pub(super) fn save(&self, name: &str, record: &Record) -> io::Result<()> {
        let (schema, boot_id) = (SCHEMA.to_owned(), self.boot_id.clone());
        let bytes = serde_json::to_vec(&Saved { schema, boot_id, record: record.clone() })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "the state is too large"));
        }
        // Replaced by a rename: a reader finds the old file or the new one, whatever ends this process.
        let new = self.path.join(format!("{name}{ENDING_NEW}"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let written = options.open(&new).and_then(|mut file| file.write_all(&bytes));
        let saved = written.and_then(|()| fs::rename(&new, self.file_of(name)));
        if saved.is_err() {
            let _ = fs::remove_file(&new);
        }
        saved
    }

    /// Removes the state of a container.
    pub(super) fn forget(&self, name: &str) {
        match fs::remove_file(self.file_of(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                tracing::warn!(container = %name, "its state is not removed: {e}");
            }
            _ => {}
        }
    }

    /// The containers of the last daemon, sorted by name. What another boot of the machine left is removed.
    pub(super) fn load(&self) -> io::Result<Vec<(String, Record)>> {
        let (mut records, mut gone) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if name.ends_with(ENDING_NEW) {
                let _ = fs::remove_file(&path);
            }
            let Some(name) = name.strip_suffix(ENDING) else { continue };
            match read(&path, name) {
                Ok(saved) if saved.boot_id != self.boot_id => {
                    gone += 1;
                    self.forget(name);
                }
                Ok(saved) => records.push((name.to_owned(), saved.record)),
                Err(why) => {
                    tracing::warn!("{}: not used, container not attached: {why}", path.display());
                }
            }
            if records.len() > CONTAINERS_MAX {
                return Err(io::Error::other(format!("more than {CONTAINERS_MAX} containers")));
            }
        }
        if gone > 0 {
            tracing::warn!("{gone} containers are gone: the machine was started again since");
        }
        records.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(records)
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{ENDING}"))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // While the lock is held, no other daemon has replaced it. The directory goes if it has nothing to keep.
        let _ = fs::remove_file(&self.lock_path);
        let _ = fs::remove_dir(&self.path);
    }
}

/// Reads the file of the container `name`.
fn read(path: &Path, name: &str) -> Result<Saved, String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| e.to_string())?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    // The version first: the keys of another one may be others.
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    match value["schema"].as_str() {
        Some(SCHEMA) => {}
        Some(other) => return Err(format!("schema {other:?}: {SCHEMA:?} is allowed")),
        None => return Err(format!("schema: missing, {SCHEMA:?} is allowed")),
    }
    let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let of = saved.record.request.name.as_deref().unwrap_or_default();
    parse_name(of)?;
    if of != name {
        return Err(format!("it is that of container {of:?}"));
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::super::control::Origin;
    use super::*;
    use crate::api::AttachRequest;

    struct Folder(PathBuf);

    impl Folder {
        fn new(what: &str) -> Self {
            let name = format!("skbudget-state-{what}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn record(name: &str) -> Record {
        let key = r#"{"id": [1, 2], "cookie": 3}"#;
        let request = AttachRequest {
            name: Some(name.to_owned()),
            netns: Some("/run/netns/a".into()),
            ..AttachRequest::default()
        };
        let origin = Origin { configured: true, request: request.clone(), filled: request.clone() };
        Record { request, origin, netns: serde_json::from_str(key).unwrap(), mac: [2; 6] }
    }

    fn save(state: &StateDir, record: &Record) {
        state.save(record.request.name.as_deref().unwrap(), record).unwrap();
    }

    #[test]
    fn what_is_saved_is_loaded_until_it_is_forgotten() {
        let folder = Folder::new("saved");
        let state = StateDir::open(&folder.0).unwrap();
        save(&state, &record("b"));
        save(&state, &record("a"));
        let changed = Record { mac: [6; 6], ..record("b") };
        save(&state, &changed);
        // A file that a killed daemon was writing.
        fs::write(folder.0.join("c.new"), "{").unwrap();
        let loaded = state.load().unwrap();
        assert_eq!(loaded, [("a".to_owned(), record("a")), ("b".to_owned(), changed)]);
        let second = StateDir::open(&folder.0).unwrap_err();
        assert!(second.message.contains(&format!("process id {}", std::process::id())), "{second}");
        state.forget("a");
        state.forget("a");
        assert_eq!(state.load().unwrap().len(), 1);
        drop(state);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        let state = StateDir::open(&folder.0).unwrap();
        state.forget("b");
        drop(state);
        assert!(!folder.0.exists());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_stays() {
        let folder = Folder::new("corrupt");
        let state = StateDir::open(&folder.0).unwrap();
        save(&state, &record("good"));
        let good = fs::read(folder.0.join("good.json")).unwrap();
        let text = String::from_utf8(good.clone()).unwrap();
        let unknown = text.replacen('{', "{\"more\":1,", 1);
        let wrong = text.replace("\"configured\":true", "\"configured\":7");
        for (bytes, why) in [
            (&b""[..], "EOF"),
            (&good[..good.len() / 2], "EOF"),
            (b"\xff\xfe", "expected value"),
            (b"[]", "schema: missing"),
            (b"{\"schema\":\"skbudget.state/2\"}", "skbudget.state/2"),
            (unknown.as_bytes(), "unknown field"),
            (wrong.as_bytes(), "invalid type"),
            (&good, "that of container \"good\""),
            (&vec![b' '; 2 << 20], "larger than"),
        ] {
            let path = folder.0.join("bad.json");
            fs::write(&path, bytes).unwrap();
            let error = read(&path, "bad").unwrap_err();
            assert!(error.contains(why), "{error}");
            assert_eq!(state.load().unwrap().len(), 1);
            assert!(path.exists());
        }
        let fifo = folder.0.join("fifo.json");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&fifo, "fifo").unwrap_err(), "no regular file");
    }

    #[test]
    fn what_another_boot_left_is_removed() {
        let folder = Folder::new("boot");
        let state = StateDir::open(&folder.0).unwrap();
        save(&state, &record("a"));
        let path = folder.0.join("a.json");
        let text = fs::read_to_string(&path).unwrap().replace(&state.boot_id, "another");
        fs::write(&path, text).unwrap();
        assert!(state.load().unwrap().is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_in_which_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new("others");
        fs::create_dir(&folder.0).unwrap();
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = StateDir::open(&folder.0).unwrap_err();
        assert!(refused.message.contains("no other user can write"), "{refused}");
    }
}
