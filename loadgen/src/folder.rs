//! The folder that a command writes to, locked for one process at a time: two would mix their files.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::exit::Failure;
use crate::export::place;

/// A locked output folder; the lock lasts as long as this value.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Lock on the folder itself, so that no lock file remains; the kernel releases it when the process ends.
    _lock: File,
}

impl Folder {
    /// Locks the folder for a command that is not a run, and removes the files of an earlier command.
    ///
    /// # Errors
    /// The folder is not writable, or another process writes to it.
    pub fn take(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare(dir)?;
        Ok(folder)
    }

    /// Locks the folder for a run, and removes any earlier result and verdict.
    ///
    /// # Errors
    /// The same as those of [`Folder::take`].
    pub fn for_run(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare_run(dir)?;
        Ok(folder)
    }

    /// Locks the folder and keeps its files.
    ///
    /// # Errors
    /// The same as those of [`Folder::take`].
    pub fn beside(dir: &Path) -> Result<Self, Failure> {
        place::make(dir)?;
        let lock = File::open(dir).map_err(|e| Failure::io(dir.display(), e))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = "another loadgen uses this folder: wait for its end, or choose another folder with --out";
                return Err(Failure::Io(format!("{}: {what}", dir.display())));
            }
            // A file system without locks cannot report a conflict: continue.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { dir: dir.to_path_buf(), _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Removes the verdict that an earlier command left in `dir`, unless another process is writing there now. Measurements
/// are kept.
pub fn forget(dir: &Path) {
    if let Some(_folder) = dir.is_dir().then(|| Folder::beside(dir).ok()).flatten() {
        // Ignore errors: a file that cannot be removed could not be overwritten either.
        let _ = place::clear_judgement(dir);
    }
}

/// The folder of a result given as `result.json` or as its folder.
pub fn of_result(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_path_buf();
    }
    // A bare file name has an empty parent: the current folder.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new(".")).to_path_buf()
}

/// Refuses to overwrite an input: `out` must not be the folder of any of `inputs`, by any path.
///
/// # Errors
/// An input is in `out`; the error names it.
pub fn apart(out: &Path, inputs: &[PathBuf]) -> Result<(), Failure> {
    // A folder that does not exist yet cannot hold an input.
    let Ok(real) = fs::canonicalize(out) else { return Ok(()) };
    let same = |p: &&PathBuf| fs::canonicalize(of_result(p)).is_ok_and(|dir| dir == real);
    inputs.iter().find(same).map_or(Ok(()), |input| {
        let (out, input) = (out.display(), input.display());
        Err(Failure::Usage(format!("--out {out}: would overwrite the input {input}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("loadgen-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_place_is_one_process_s_until_it_is_given_back() {
        let dir = scratch("place");
        let first = Folder::take(&dir).unwrap();
        let refused = Folder::take(&dir).unwrap_err();
        assert_eq!(refused.exit().code(), 1);
        assert!(refused.to_string().contains("another loadgen"), "{refused}");
        // Another path to the same folder.
        assert!(Folder::take(&first.dir().join("..").join(dir.file_name().unwrap())).is_err());
        // The lock ends with the folder.
        drop(first);
        Folder::take(&dir).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing is left in it");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_read_is_not_written_over() {
        let dir = scratch("apart");
        fs::create_dir_all(dir.join("a")).unwrap();
        fs::write(dir.join("a/result.json"), "{}").unwrap();
        std::os::unix::fs::symlink(dir.join("a"), dir.join("link")).unwrap();
        let inputs = [dir.join("a/result.json")];
        for out in ["a", "a/../a", "link"] {
            assert_eq!(apart(&dir.join(out), &inputs).unwrap_err().exit().code(), 2, "{out}");
        }
        assert!(apart(&dir, &inputs).is_ok() && apart(&dir.join("new"), &inputs).is_ok());
        fs::remove_dir_all(&dir).unwrap();
    }
}
