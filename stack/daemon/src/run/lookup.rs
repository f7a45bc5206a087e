//! Finds the program of the command before anything is set up for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND};

/// The program's path: the given one if it contains a slash, otherwise the first executable along `path`.
pub(super) fn find(command: &OsStr, path: &OsStr) -> Result<PathBuf, Failure> {
    let given = Path::new(command);
    let shown = given.display();
    let not_executable = |at: &Path| {
        let at = at.display();
        let message = format!("{at}: not executable (a file with execute permission is needed)");
        Failure { code: NOT_EXECUTABLE, message }
    };
    if command.as_encoded_bytes().contains(&b'/') {
        return match (given.exists(), is_executable(given)) {
            (_, true) => Ok(given.to_owned()),
            (true, false) => Err(not_executable(given)),
            (false, false) => {
                Err(Failure { code: NOT_FOUND, message: format!("{shown}: no such file") })
            }
        };
    }
    let candidates = || {
        let folders = std::env::split_paths(path);
        let named = folders.filter(|_| !command.is_empty()).map(|folder| folder.join(given));
        named.filter(|candidate| candidate.is_file())
    };
    // As a shell does: an executable later in the path wins over a plain file earlier.
    if let Some(found) = candidates().find(|candidate| is_executable(candidate)) {
        return Ok(found);
    }
    Err(candidates().next().map_or_else(
        || Failure { code: NOT_FOUND, message: format!("{shown}: not found in PATH") },
        |candidate| not_executable(&candidate),
    ))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// Serializes a path as its bytes, because it may not be UTF-8.
pub(super) mod as_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Vec::deserialize(from).map(|bytes| OsString::from_vec(bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Program(#[serde(with = "as_bytes")] PathBuf);

    #[test]
    fn a_path_that_is_no_text_arrives_as_it_was() {
        for bytes in [&b"/bin/sh"[..], b"/tmp/\xff\xfe", b"/\x80\"\n"] {
            let path = Path::new(OsStr::from_bytes(bytes)).to_owned();
            let json = serde_json::to_string(&Program(path.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Program>(&json).unwrap().0, path);
        }
    }

    fn code(command: &str) -> u8 {
        find(OsStr::new(command), OsStr::new("/bin:/etc")).unwrap_err().code
    }

    #[test]
    fn along_the_path_or_as_given() {
        let found = find(OsStr::new("sh"), OsStr::new("/nowhere:/bin")).unwrap();
        assert_eq!(found, Path::new("/bin/sh"));
        assert!(find(OsStr::new("/bin/sh"), OsStr::new("")).is_ok());
    }

    #[test]
    fn missing_is_127_and_not_executable_is_126() {
        assert_eq!(code("no-such-command"), 127);
        assert_eq!(code("/no/such/command"), 127);
        assert_eq!(code(""), 127);
        assert_eq!(code("/etc"), 126);
        assert_eq!(code("/etc/passwd"), 126);
        assert_eq!(code("passwd-"), if Path::new("/etc/passwd-").exists() { 126 } else { 127 });
    }
}
