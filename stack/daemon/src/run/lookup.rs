//! Finding the command before anything is brought up for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND};

/// Where the command is: as given when there is a slash in it, else the first executable one along `path`.
pub(super) fn find(command: &OsStr, path: &OsStr) -> Result<PathBuf, Failure> {
    let given = Path::new(command);
    let shown = given.display();
    let not_executable = |at: &Path| {
        let message = format!("{}: not executable (a file with the x bit is needed)", at.display());
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
    if let Some(found) = candidates().find(|candidate| is_executable(candidate)) {
        return Ok(found);
    }
    Err(candidates().next().map_or_else(
        || Failure { code: NOT_FOUND, message: format!("{shown}: not found along PATH") },
        |candidate| not_executable(&candidate),
    ))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
