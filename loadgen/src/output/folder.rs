//! The folder that a command writes to, locked for one process at a time: two would mix their files.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::exit::Failure;
use crate::output::export::{place, plain};
use crate::scenario::names;
use crate::scenario::{self, Scenario};

/// A locked output folder; the lock lasts as long as this value.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    /// Lock on the folder itself, so that no lock file remains; the kernel releases it when the process ends.
    _lock: File,
}

impl Folder {
    /// Locks the folder for a command that is not a run, and removes the files of an earlier command.
    ///
    /// # Errors
    /// The folder is not writable, or another process writes to it.
    pub(crate) fn take(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare(dir)?;
        Ok(folder)
    }

    /// Locks the folder for a run, and removes any earlier result and verdict.
    ///
    /// # Errors
    /// The same as those of [`Folder::take`].
    pub(crate) fn for_run(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        place::prepare_run(dir)?;
        Ok(folder)
    }

    /// Locks the folder for a sweep or a search, and removes the files of an earlier one, those of its values included:
    /// a later sweep may have fewer.
    ///
    /// # Errors
    /// The same as those of [`Folder::take`], for the folder of a value too.
    pub(crate) fn for_batch(dir: &Path) -> Result<Self, Failure> {
        let folder = Self::beside(dir)?;
        points(dir).iter().try_for_each(|point| Self::take(point).map(drop))?;
        place::prepare(dir)?;
        Ok(folder)
    }

    /// Locks the folder and keeps its files.
    ///
    /// # Errors
    /// The same as those of [`Folder::take`].
    pub(crate) fn beside(dir: &Path) -> Result<Self, Failure> {
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

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Removes the verdict that an earlier command left in `dir`, unless another process is writing there now. Measurements
/// are kept.
pub(crate) fn forget(dir: &Path) {
    if let Some(_folder) = dir.is_dir().then(|| Folder::beside(dir).ok()).flatten() {
        // The list of the points is in a file that is removed below.
        points(dir).iter().for_each(|point| forget_alone(point));
        // Ignore errors: a file that cannot be removed could not be overwritten either.
        let _ = place::clear_judgement(dir);
    }
}

/// As [`forget`], without the points of a sweep.
fn forget_alone(dir: &Path) {
    if let Ok(_folder) = Folder::beside(dir) {
        let _ = place::clear_judgement(dir);
    }
}

/// Where a command that runs a scenario writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// `--out`.
    pub out: Option<&'a Path>,
    /// Of the name of the default folder.
    pub prefix: &'a str,
    /// Name instead of the scenario's.
    pub label: Option<&'a str>,
    /// The scenario as typed: a name or a file.
    pub scenario: &'a str,
    pub target: &'a str,
    pub seed: u64,
}

impl Place<'_> {
    /// Removes the verdict of an earlier command: for one that ends before it takes the folder. Without `--out`, the
    /// folder is known only if the scenario can be read.
    pub(crate) fn forget(self) {
        let dir = self.out.map(Path::to_path_buf).or_else(|| self.default());
        if let Some(dir) = dir {
            forget(&dir);
        }
    }

    fn default(&self) -> Option<PathBuf> {
        // The target may be the argument that is wrong; the name depends on it only in odd files.
        let found = || Scenario::find(self.scenario, self.target);
        let own =
            || found().or_else(|_| Scenario::find(self.scenario, "virtual")).ok()?.name().ok();
        // A name that no run accepts may lead out of the folder.
        let label = self.label.map(str::to_owned).or_else(own).filter(|name| names::fits(name))?;
        default_out(self.scenario, self.prefix, &label, self.seed).ok()
    }
}

/// The default output folder of a command: `out/<prefix><name>-<seed>`.
///
/// # Errors
/// `given`, the argument as typed, is a file that sets the name of a built-in scenario or command: its results would
/// overwrite those of the built-in one.
pub(crate) fn default_out(
    given: &str,
    prefix: &str,
    name: &str,
    seed: u64,
) -> Result<PathBuf, Failure> {
    // These names belong to built-in scenarios and commands.
    let taken = name == "repro"
        || name.starts_with("sweep-")
        || name.starts_with("search-")
        || scenario::text(name).is_some();
    if taken && scenario::text(given).is_none() {
        let what = format!(
            "{given}: name: '{name}' is reserved in out/ for a built-in scenario or a command: \
             set another name in the file, or choose a folder with --out"
        );
        return Err(Failure::Usage(what));
    }
    Ok(PathBuf::from(format!("out/{prefix}{name}-{seed}")))
}

/// The folder of a value of a sweep, below that of the sweep.
pub(crate) fn point(dir: &Path, key: &str, value: &str) -> PathBuf {
    dir.join(plain(&format!("{key}-{value}")))
}

/// The folders of the values of the sweep in `dir`, if there is one. A link is none of them: its target may be of
/// another command.
fn points(dir: &Path) -> Vec<PathBuf> {
    let Some((key, values)) = place::swept(dir) else { return Vec::new() };
    let folders = values.iter().map(|value| point(dir, &key, value));
    folders.filter(|p| fs::symlink_metadata(p).is_ok_and(|m| m.is_dir())).collect()
}

/// Locks the folders of the values of a sweep for its runs.
///
/// # Errors
/// A folder is not writable, or another process writes to it.
pub(crate) fn points_for_run<'a>(
    dir: &Path,
    key: &str,
    values: impl Iterator<Item = &'a str>,
) -> Result<Vec<Folder>, Failure> {
    // Two values may share a folder, which one process can lock only once.
    let dirs: BTreeSet<PathBuf> = values.map(|value| point(dir, key, value)).collect();
    dirs.iter().map(|dir| Folder::for_run(dir)).collect()
}

/// The folder of a result given as `result.json` or as its folder.
pub(crate) fn of_result(path: &Path) -> PathBuf {
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
pub(crate) fn apart(out: &Path, inputs: &[PathBuf]) -> Result<(), Failure> {
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
    fn a_folder_is_locked_until_it_is_dropped() {
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
    fn an_input_is_not_overwritten() {
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

    /// A later sweep may have fewer values, and its folder may hold others' folders.
    #[test]
    fn a_batch_clears_the_values_of_an_earlier_sweep() {
        let dir = scratch("batch");
        let sweep = r#"{"schema": "loadgen.sweep/1", "param": "rtt",
            "points": [{"value": "1ms"}, {"value": "3ms"}, {"value": "linked"}]}"#;
        let result = |at: &str| dir.join(at).join("result.json");
        for at in ["rtt-1ms", "rtt-3ms", "rtt-5ms", "elsewhere"] {
            fs::create_dir_all(dir.join(at)).unwrap();
            fs::write(result(at), "{\"schema\": \"loadgen.result/1\"}").unwrap();
            fs::write(dir.join(at).join("verdict.json"), "{\"schema\": \"loadgen.verdict/1\"}")
                .unwrap();
        }
        std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join("rtt-linked")).unwrap();
        fs::write(dir.join("sweep.json"), sweep).unwrap();
        // A batch that does not start removes the verdicts only.
        forget(&dir);
        let verdict = |at: &str| dir.join(at).join("verdict.json").exists();
        assert!(!dir.join("sweep.json").exists() && !verdict("rtt-1ms") && !verdict("rtt-3ms"));
        assert!(verdict("rtt-5ms") && verdict("elsewhere") && result("rtt-3ms").exists());

        fs::write(dir.join("sweep.json"), sweep).unwrap();
        let folder = Folder::for_batch(&dir).unwrap();
        assert!(!result("rtt-1ms").exists() && !result("rtt-3ms").exists());
        assert!(result("rtt-5ms").exists() && result("elsewhere").exists());

        // A run beside the sweep is refused; a value that occurs twice is not.
        let places =
            points_for_run(folder.dir(), "rtt", ["1ms", "2ms", "1ms"].into_iter()).unwrap();
        assert_eq!(Folder::for_run(&dir.join("rtt-1ms")).unwrap_err().exit().code(), 1);
        drop(places);
        Folder::for_run(&dir.join("rtt-1ms")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_does_not_write_where_a_built_in_does() {
        let out = |given, name| default_out(given, "", name, 7);
        assert_eq!(out("step", "step").unwrap(), PathBuf::from("out/step-7"));
        assert_eq!(out("sweep-n", "sweep-n").unwrap(), PathBuf::from("out/sweep-n-7"));
        assert_eq!(out("my.toml", "mine").unwrap(), PathBuf::from("out/mine-7"));
        // A built-in scenario, and the folders of `repro`, `sweep` and `search`.
        for taken in ["step", "repro", "sweep-step", "search-aa"] {
            assert_eq!(out("my.toml", taken).unwrap_err().exit().code(), 2, "{taken}");
        }
    }
}
