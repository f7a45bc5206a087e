//! The folder that the files of a run are written to. A reader never sees a mixture of two runs, nor a verdict of a run
//! that could not be written.
//!
//! - What an earlier run left is removed before the new run begins, so that a run that is killed leaves no verdict.
//! - All files are written under temporary names first. A full disk is found while the final names do not exist yet.
//! - The verdict is renamed last, after everything else that can fail.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{Format, render};
use crate::exit::Failure;
use crate::result::RunResult;

const VERDICT: &str = "verdict.json";
const RESULT: &str = "result.json";
/// A percentile file's first line; its name depends on the scenario.
pub(super) const HGRM_HEAD: &str = "# unit: ms, from the intended start";
const HGRM: &str = ".hgrm";

/// Temporary names, which nobody else uses.
const TEMPORARY: (&str, &str) = (".loadgen.", ".tmp");

/// Names of the files that loadgen writes, each with a text that stands near its beginning. A file of that name without
/// that text belongs to somebody else and stays.
const OWN: &[(&str, &str)] = &[
    (VERDICT, "loadgen.verdict/"),
    (RESULT, "loadgen.result/"),
    ("compare.json", "loadgen.compare/"),
    ("sweep.json", "loadgen.sweep/"),
    ("report.html", "name=\"generator\" content=\"loadgen"),
    ("summary.md", super::summary::MARK),
    ("junit.xml", super::junit::MARK),
    ("gab.json", "\\nseed "),
    ("gab-bigger.json", "\\nseed "),
    ("bmf.json", "\"goodput-all\""),
    ("metrics.prom", "# TYPE loadgen_"),
    ("containers.csv", "arm,container,role"),
    ("windows.csv", "t_ns,length_ns,arm"),
    ("windows.ndjson", "{\"t_ns\":"),
    ("latency.hlog", "#[Logged with loadgen"),
];

/// How much of a file is searched for its text.
const HEAD_BYTES: u64 = 16 << 10;

/// A folder to write into, made if it does not exist.
pub fn make(dir: &Path) -> Result<(), Failure> {
    if dir.exists() && !dir.is_dir() {
        let text = format!("{}: a file is there, where a directory is to be", dir.display());
        return Err(Failure::Usage(text));
    }
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir.display(), e))
}

/// Makes the folder, finds out whether it can be written to, and removes what an earlier run left there. Called before
/// the work: a run of minutes must not end with a disk that is read-only, and a run that is killed must not leave the
/// verdict of another.
pub fn prepare(dir: &Path) -> Result<(), Failure> {
    make(dir)?;
    let probe = dir.join(temporary("probe"));
    fs::write(&probe, b"").map_err(|e| Failure::io(dir.display(), e))?;
    fs::remove_file(&probe).map_err(|e| Failure::io(probe.display(), e))?;
    clear(dir)
}

/// The same for a run, which always writes a result and a verdict: whatever has these names goes.
pub fn prepare_run(dir: &Path) -> Result<(), Failure> {
    make(dir)?;
    remove(&dir.join(VERDICT))?;
    remove(&dir.join(RESULT))?;
    prepare(dir)
}

/// Removes the files that loadgen wrote, the verdict first. Everything else in the folder stays.
pub fn clear(dir: &Path) -> Result<(), Failure> {
    for (name, _) in OWN {
        remove_own(&dir.join(name), name)?;
    }
    let entries = fs::read_dir(dir).map_err(|e| Failure::io(dir.display(), e))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        // Own names are ASCII.
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(HGRM) || is_temporary(name) {
            remove_own(&entry.path(), name)?;
        }
    }
    Ok(())
}

/// Removes what loadgen wrote that says how a run ended, for people and for CI.
pub fn clear_judgement(dir: &Path) -> Result<(), Failure> {
    let names = [VERDICT, "junit.xml", "summary.md", "compare.json", "sweep.json"];
    names.into_iter().try_for_each(|name| remove_own(&dir.join(name), name))
}

fn remove_own(path: &Path, name: &str) -> Result<(), Failure> {
    if is_own(path, name) { remove(path) } else { Ok(()) }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io(path.display(), e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Whether loadgen wrote this file. An empty file is a write that failed, and holds nothing of anybody's.
fn is_own(path: &Path, name: &str) -> bool {
    // A link is not followed: what it leads to is not in this folder.
    if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
        return false;
    }
    let mark = match OWN.iter().find(|(own, _)| *own == name) {
        Some((_, mark)) => *mark,
        None if is_temporary(name) => "",
        None if name.ends_with(HGRM) => HGRM_HEAD,
        None => return false,
    };
    mark.is_empty()
        || head(path).is_some_and(|h| h.is_empty() || String::from_utf8_lossy(&h).contains(mark))
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}

fn temporary(name: &str) -> String {
    format!("{}{name}{}", TEMPORARY.0, TEMPORARY.1)
}

/// Files that are complete under temporary names. What is not published is removed when this is dropped.
#[derive(Debug)]
pub struct Staged {
    dir: PathBuf,
    /// Not renamed yet, in order; the verdict is the last.
    waiting: Vec<String>,
}

impl Staged {
    /// Writes `files` under temporary names into `dir`.
    pub fn new(dir: &Path, files: impl IntoIterator<Item = super::File>) -> Result<Self, Failure> {
        make(dir)?;
        let mut staged = Self { dir: dir.to_path_buf(), waiting: Vec::new() };
        for (name, text) in files {
            let path = dir.join(temporary(&name));
            staged.waiting.push(name);
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                // Some file systems find out here that there is no room.
                file.sync_data()
            });
            written.map_err(|e| Failure::io(path.display(), e))?;
        }
        // Stable: the other files keep their order.
        staged.waiting.sort_by_key(|name| name == VERDICT);
        Ok(staged)
    }

    /// Everything but the verdict gets its final name.
    pub fn publish(&mut self) -> Result<(), Failure> {
        while self.waiting.first().is_some_and(|name| name != VERDICT) {
            self.rename_first()?;
        }
        Ok(())
    }

    /// And the verdict.
    pub fn finish(mut self) -> Result<(), Failure> {
        while !self.waiting.is_empty() {
            self.rename_first()?;
        }
        Ok(())
    }

    fn rename_first(&mut self) -> Result<(), Failure> {
        let name = &self.waiting[0];
        let to = self.dir.join(name);
        fs::rename(self.dir.join(temporary(name)), &to)
            .map_err(|e| Failure::io(to.display(), e))?;
        self.waiting.remove(0);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for name in &self.waiting {
            let _ = fs::remove_file(self.dir.join(temporary(name)));
        }
    }
}

/// The files of `formats`, under temporary names. An earlier verdict goes now: it is not of these files.
pub fn stage(dir: &Path, result: &RunResult, formats: &[Format]) -> Result<Staged, Failure> {
    let mut files = Vec::new();
    for format in formats {
        files.extend(render(result, *format)?);
    }
    make(dir)?;
    if formats.contains(&Format::Verdict) {
        remove(&dir.join(VERDICT))?;
    }
    Staged::new(dir, files)
}

/// All of them, where nothing else can fail in between.
pub fn write(dir: &Path, result: &RunResult, formats: &[Format]) -> Result<(), Failure> {
    stage(dir, result, formats)?.finish()
}

/// One file that is not of a run, such as `sweep.json`: complete, or not there.
pub fn write_file(dir: &Path, name: &str, text: String) -> Result<(), Failure> {
    Staged::new(dir, [(name.to_owned(), text)])?.finish()
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
