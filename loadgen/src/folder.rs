//! The folder that a command writes into. One process at a time: two would mix their files.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::exit::Failure;
use crate::export::place;

/// Ours as long as this lives.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Of the folder itself, so that no file is left behind; the kernel drops it with the process.
    _lock: File,
}

impl Folder {
    /// For a command that is no run: what an earlier one left there is removed.
    ///
    /// # Errors
    /// It cannot be written to, or another process writes into it.
    pub fn take(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare(dir)?;
        Ok(folder)
    }

    /// For a run, which writes a result and a verdict whatever it finds there.
    ///
    /// # Errors
    /// As those of `take`.
    pub fn for_run(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare_run(dir)?;
        Ok(folder)
    }

    /// To write beside what is there.
    ///
    /// # Errors
    /// As those of `take`.
    pub fn beside(dir: &Path) -> Result<Self, Failure> {
        place::make(dir)?;
        let lock = File::open(dir).map_err(|e| Failure::io(dir.display(), e))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = "another loadgen is writing there: wait for it, or name another folder with --out";
                return Err(Failure::Io(format!("{}: {what}", dir.display())));
            }
            // A file system without locks cannot say.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { dir: dir.to_path_buf(), _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Removes the judgement that an earlier command left in `dir`, but for that of one that is writing there now. What was
/// measured stays.
pub fn forget(dir: &Path) {
    if let Some(_folder) = dir.is_dir().then(|| Folder::beside(dir).ok()).flatten() {
        // What cannot be removed could not be written over either.
        let _ = place::clear_judgement(dir);
    }
}

/// The folder of a result, given as `result.json` or as that folder.
pub fn of_result(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_path_buf();
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new(".")).to_path_buf()
}

/// Refuses to write over what is read: `out` may not be the folder of any of `inputs`, by whatever path.
///
/// # Errors
/// Names the input.
pub fn apart(out: &Path, inputs: &[PathBuf]) -> Result<(), Failure> {
    let Ok(real) = fs::canonicalize(out) else { return Ok(()) };
    let same = |p: &&PathBuf| fs::canonicalize(of_result(p)).is_ok_and(|dir| dir == real);
    inputs.iter().find(same).map_or(Ok(()), |input| {
        let (out, input) = (out.display(), input.display());
        Err(Failure::Usage(format!("--out {out}: would be written over {input}, which is read")))
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
        // By another path it is the same folder.
        assert!(Folder::take(&first.dir().join("..").join(dir.file_name().unwrap())).is_err());
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
