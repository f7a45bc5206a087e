//! Reads files that the user names: regular files only, up to a maximum size, so that no read blocks or never ends.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes. Scenarios are written by hand; the built-in ones have a few KiB.
pub(crate) const SCENARIO_BYTES_MAX: u64 = 1 << 20;
/// Bytes. A result of the largest scenario has some tens of MiB, and a merged one a multiple of that.
pub(crate) const RESULT_BYTES_MAX: u64 = 512 << 20;

/// Reads the text of a regular file of at most `max` bytes.
///
/// # Errors
/// The file is larger, or not a regular file: opening a FIFO blocks, and a device may never end.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<String> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    // Check before the open: the open itself blocks until a FIFO has a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(invalid("not a regular file".to_owned()));
    }
    let mut text = String::new();
    // Count the bytes read: files of /proc report a size of 0, and a file may grow meanwhile.
    let read = File::open(path)?.take(max + 1).read_to_string(&mut text);
    if text.len() as u64 > max || read.is_err() && fs::metadata(path)?.len() > max {
        return Err(invalid(format!("larger than the maximum of {max} bytes")));
    }
    read.map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = std::env::temp_dir().join(format!("loadgen-bounded-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("file");
        let of = |text: &str| {
            fs::write(&file, text).unwrap();
            read(&file, 8)
        };
        assert_eq!(of("12345678").unwrap(), "12345678");
        assert!(of("123456789").unwrap_err().to_string().contains("8 bytes"));
        // Cut within a character: the error must report the size, not the invalid UTF-8.
        assert!(of("1234567\u{20ac}").unwrap_err().to_string().contains("larger"));
        let fifo = dir.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A FIFO without a writer, an endless and an empty device, and a folder.
        for odd in [fifo.as_path(), Path::new("/dev/zero"), Path::new("/dev/null"), &dir] {
            let error = read(odd, 8).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        assert_eq!(read(&dir.join("none"), 8).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&dir).unwrap();
    }
}
