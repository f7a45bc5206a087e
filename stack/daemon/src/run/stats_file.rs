//! `--stats-file`: written at the end of a run, completely or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest time in which the reader of a FIFO may take no data.
const STALL: Duration = Duration::from_secs(1);

/// Target of the stats.
#[derive(Debug)]
pub(super) enum StatsFile {
    /// Written beside its name and then renamed, so that a reader sees either all of it or no file.
    Regular(PathBuf),
    /// A FIFO, a device, or a file in a folder that takes no new file: written in place.
    InPlace(File),
}

impl StatsFile {
    /// Checks that the file can be written, and removes the stats of an older run: those of a run that is killed must
    /// not be mistaken for its own.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let known = match fs::metadata(path) {
            Ok(known) => Some(known),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if known.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(ErrorKind::IsADirectory.into());
        }
        // These may refer to a regular file that other processes write to.
        let others = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"];
        let others = others.iter().any(|folder| path.starts_with(folder));
        if others || known.as_ref().is_some_and(|known| !known.is_file()) {
            return open_in_place(path).map(Self::InPlace);
        }
        // A symbolic link is kept: its target is replaced.
        let path = if known.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
        // Proves that the folder takes a new file.
        match create_beside(&path) {
            Ok((_, beside)) => fs::remove_file(beside)?,
            // It takes none: the existing file is emptied now and written in place at the end.
            Err(_) if known.is_some() => {
                let file = open_in_place(&path)?;
                file.set_len(0)?;
                return Ok(Self::InPlace(file));
            }
            Err(e) => return Err(e),
        }
        if known.is_some() {
            fs::remove_file(&path)?;
        }
        Ok(Self::Regular(path))
    }

    /// Writes the stats.
    pub(super) fn write(self, text: &[u8]) -> io::Result<()> {
        let path = match self {
            Self::InPlace(mut file) => return write_in_time(&mut file, text),
            Self::Regular(path) => path,
        };
        // Created anew: the check at the start removed its file, and the name is free again.
        let (mut file, beside) = create_beside(&path)?;
        let written = file.write_all(text).and_then(|()| fs::rename(&beside, &path));
        // An incomplete file is not left behind.
        if written.is_err() {
            let _ = fs::remove_file(beside);
        }
        written
    }
}

/// Opens without truncation and without waiting: a FIFO without a reader is an error.
fn open_in_place(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().append(true).custom_flags(flags).open(path);
    opened.map_err(explain)
}

/// Replaces the text of ENXIO, which is "no such device or address" for a FIFO without a reader.
pub(super) fn explain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ENXIO) {
        return io::Error::new(
            ErrorKind::NotConnected,
            "the FIFO has no reader: start the reader first",
        );
    }
    error
}

/// Creates the temporary file, in the same folder, so that it can be renamed over the target.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(beside);
    Ok((File::create_new(&beside)?, beside))
}

/// Writes the text; an error when the reader takes no data for `STALL`.
fn write_in_time(file: &mut File, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match file.write(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => text = &text[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let stall = PollTimeout::try_from(STALL).unwrap_or(PollTimeout::ZERO);
                match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], stall) {
                    Ok(0) => return Err(ErrorKind::TimedOut.into()),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(what: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("stats-file-{what}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_older_file_goes_at_the_start_and_the_new_one_comes_whole() {
        let folder = Folder::new("regular");
        let path = folder.0.join("stats.json");
        fs::write(&path, "old").unwrap();
        let file = StatsFile::open(&path).unwrap();
        assert!(folder.names().is_empty());
        file.write(b"new").unwrap();
        assert_eq!(folder.names(), ["stats.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = Folder::new("link");
        let (path, link) = (folder.0.join("stats.json"), folder.0.join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("stats.json", &link).unwrap();
        StatsFile::open(&link).unwrap().write(b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_cannot_be_written_is_known_at_the_start() {
        let folder = Folder::new("bad");
        let kind = |path: &Path| StatsFile::open(path).unwrap_err().kind();
        assert_eq!(kind(&folder.0), ErrorKind::IsADirectory);
        assert_eq!(kind(&folder.0.join("no/such")), ErrorKind::NotFound);
        let fifo = folder.0.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = StatsFile::open(&fifo).unwrap_err();
        assert!(error.to_string().contains("start the reader first"), "{error}");
    }

    #[test]
    fn a_reader_that_stalls_ends_the_wait_and_one_that_reads_gets_all() {
        let folder = Folder::new("fifo");
        let fifo = folder.0.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        let reader = open().unwrap();
        let file = StatsFile::open(&fifo).unwrap();
        let stalled = file.write(&vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(stalled.kind(), ErrorKind::TimedOut);
        drop(reader);
        let reader = open().unwrap();
        StatsFile::open(&fifo).unwrap().write(b"all").unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut &reader, &mut text).unwrap();
        assert_eq!(text, "all");
    }

    #[test]
    fn a_full_disk_is_an_error_of_the_write() {
        let full = StatsFile::open(Path::new("/dev/full")).unwrap();
        assert_eq!(full.write(b"x").unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
