//! The folder that the files of a run are written to. A reader never sees a mixture of two runs, nor a verdict of a run
//! whose files could not be written.
//!
//! - The files of an earlier run are removed before the new run starts, so that a killed run leaves no verdict.
//! - All files are written under temporary names first. A full disk is detected while no final name exists yet.
//! - The files that a CI server judges by are renamed last, after everything else that can fail.
//! - A file of the same name that loadgen did not write is never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{Format, render};
use crate::exit::Failure;
use crate::measure::result::RunResult;
use crate::scenario::bounded;

const VERDICT: &str = "verdict.json";
const RESULT: &str = "result.json";
/// First line of a percentile file; these files are recognized by it because their names depend on the scenario.
pub(super) const HGRM_HEAD: &str = "# unit: ms, from the intended start";
const HGRM: &str = ".hgrm";

/// Prefix and suffix of temporary names, which no other program uses.
const TEMPORARY: (&str, &str) = (".loadgen.", ".tmp");

/// Names of the files that loadgen writes, each with a text near its start. A file with such a name but without the
/// text is not loadgen's and is kept.
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

/// Files that report how a command ended, in the order in which they appear.
const JUDGEMENT: [&str; 3] = ["summary.md", "junit.xml", VERDICT];

/// Bytes at the start of a file that are searched for its text.
const HEAD_BYTES: u64 = 16 << 10;

/// Creates the folder if it does not exist.
pub(crate) fn make(dir: &Path) -> Result<(), Failure> {
    if dir.exists() && !dir.is_dir() {
        let text = format!("{}: is a file; a folder is needed", dir.display());
        return Err(Failure::Usage(text));
    }
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir.display(), e))
}

/// Creates the folder, checks that it is writable, and removes the files of an earlier run. Called before the work: a
/// run of minutes must not fail at its end on a read-only disk, and a killed run must not leave the verdict of another.
pub(crate) fn prepare(dir: &Path) -> Result<(), Failure> {
    make(dir)?;
    // Write a file: permissions alone do not show a read-only file system.
    let probe = dir.join(temporary("probe"));
    fresh(&probe).map_err(|e| Failure::io(dir.display(), e))?;
    fs::remove_file(&probe).map_err(|e| Failure::io(probe.display(), e))?;
    clear(dir)
}

/// As [`prepare`], for a run, which always writes a result and a verdict: removes any files with these names.
pub(crate) fn prepare_run(dir: &Path) -> Result<(), Failure> {
    make(dir)?;
    // Unconditionally: the run writes its own files with these names.
    remove(&dir.join(VERDICT))?;
    remove(&dir.join(RESULT))?;
    prepare(dir)
}

/// Removes the files that loadgen wrote, the verdict first, and keeps everything else in the folder.
pub(crate) fn clear(dir: &Path) -> Result<(), Failure> {
    // The verdict is the first entry: if a later removal fails, no old verdict remains.
    for (name, _) in OWN {
        remove_own(&dir.join(name), name)?;
    }
    let entries = fs::read_dir(dir).map_err(|e| Failure::io(dir.display(), e))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        // A name that is not UTF-8 is not loadgen's.
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(HGRM) || is_temporary(name) {
            remove_own(&entry.path(), name)?;
        }
    }
    Ok(())
}

/// Removes the files that report how a run ended, for people and for CI, if loadgen wrote them.
pub(crate) fn clear_judgement(dir: &Path) -> Result<(), Failure> {
    let names = [VERDICT, "junit.xml", "summary.md", "compare.json", "sweep.json"];
    names.into_iter().try_for_each(|name| remove_own(&dir.join(name), name))
}

/// Refuses a folder with a file, folder or link of one of these names that loadgen did not write.
///
/// # Errors
/// There is one; the error names it.
pub(crate) fn keep_foreign(
    dir: &Path,
    names: impl IntoIterator<Item: AsRef<str>>,
) -> Result<(), Failure> {
    for name in names {
        let path = dir.join(name.as_ref());
        if fs::symlink_metadata(&path).is_ok() && !is_own(&path, name.as_ref()) {
            let what = "loadgen did not write this and does not overwrite it: move it, or use another --out";
            return Err(Failure::Usage(format!("{}: {what}", path.display())));
        }
    }
    Ok(())
}

/// The parameter and the values of the sweep whose `sweep.json` is in `dir`.
pub(crate) fn swept(dir: &Path) -> Option<(String, Vec<String>)> {
    let text = bounded::read(&dir.join("sweep.json"), bounded::RESULT_BYTES_MAX).ok()?;
    let file: serde_json::Value = serde_json::from_str(&text).ok()?;
    let values = file["points"].as_array()?.iter().filter_map(|p| p["value"].as_str());
    Some((file["param"].as_str()?.to_owned(), values.map(str::to_owned).collect()))
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

/// Whether loadgen wrote this file. An empty file counts: it is a failed write, and removing it loses no data.
fn is_own(path: &Path, name: &str) -> bool {
    // Do not follow a symbolic link: its target is not in this folder.
    if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
        return false;
    }
    let mark = match OWN.iter().find(|(own, _)| *own == name) {
        Some((_, mark)) => *mark,
        None if is_temporary(name) => "",
        None if name.ends_with(HGRM) => HGRM_HEAD,
        None => return false,
    };
    // A run without arms has empty lists, which lack the text.
    let is_empty = |head: &str| matches!(head.trim(), "" | "[]" | "{}" | "# EOF");
    let is_marked = |head: Vec<u8>| {
        let head = String::from_utf8_lossy(&head);
        is_empty(&head) || head.contains(mark)
    };
    mark.is_empty() || head(path).is_some_and(is_marked)
}

/// Creates a file. A link or file of that name is removed first: following it would overwrite another file.
fn fresh(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}

/// The temporary name of a file.
fn temporary(name: &str) -> String {
    format!("{}{name}{}", TEMPORARY.0, TEMPORARY.1)
}

/// Files that are complete under temporary names. Drop removes those that were not published.
#[derive(Debug)]
pub(crate) struct Staged {
    dir: PathBuf,
    /// Names not renamed yet, in order; those of `JUDGEMENT` are the last.
    waiting: Vec<String>,
}

impl Staged {
    /// Writes `files` under temporary names into `dir`.
    ///
    /// # Errors
    /// A file cannot be written, or would replace one that loadgen did not write.
    pub(crate) fn new(
        dir: &Path,
        files: impl IntoIterator<Item = super::OutputFile>,
    ) -> Result<Self, Failure> {
        make(dir)?;
        let mut staged = Self { dir: dir.to_path_buf(), waiting: Vec::new() };
        for (name, text) in files {
            // The command has removed or read a file with one of these names.
            if name != VERDICT && name != RESULT {
                keep_foreign(dir, [&name])?;
            }
            let path = dir.join(temporary(&name));
            staged.waiting.push(name);
            let written = fresh(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                // Some file systems report a full disk only here.
                file.sync_data()
            });
            written.map_err(|e| Failure::io(path.display(), e))?;
        }
        // The sort is stable: the other files keep their order.
        staged.waiting.sort_by_key(|name| rank(name));
        Ok(staged)
    }

    /// Renames every file but those of `JUDGEMENT` to its final name.
    pub(crate) fn publish(&mut self) -> Result<(), Failure> {
        while self.waiting.first().is_some_and(|name| rank(name) == 0) {
            self.rename_first()?;
        }
        Ok(())
    }

    /// Renames the remaining files, the verdict last.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        while !self.waiting.is_empty() {
            self.rename_first()?;
        }
        Ok(())
    }

    /// Renames the next waiting file to its final name.
    fn rename_first(&mut self) -> Result<(), Failure> {
        let name = &self.waiting[0];
        let to = self.dir.join(name);
        fs::rename(self.dir.join(temporary(name)), &to)
            .map_err(|e| Failure::io(to.display(), e))?;
        // Only after the rename: on an error, drop still removes the temporary file.
        self.waiting.remove(0);
        Ok(())
    }
}

/// Position among the files of [`JUDGEMENT`]; 0: none of them.
fn rank(name: &str) -> usize {
    JUDGEMENT.iter().position(|judgement| *judgement == name).map_or(0, |at| at + 1)
}

impl Drop for Staged {
    fn drop(&mut self) {
        for name in &self.waiting {
            let _ = fs::remove_file(self.dir.join(temporary(name)));
        }
    }
}

/// Writes the files of `formats` under temporary names. Removes an earlier verdict now: it belongs to other files.
pub(crate) fn stage(dir: &Path, result: &RunResult, formats: &[Format]) -> Result<Staged, Failure> {
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

/// Writes and publishes all files, for callers that have nothing to do in between that can fail.
pub(crate) fn write(dir: &Path, result: &RunResult, formats: &[Format]) -> Result<(), Failure> {
    stage(dir, result, formats)?.finish()
}

/// Writes one file that does not belong to a run, such as `sweep.json`: complete or not at all.
pub(crate) fn write_file(dir: &Path, name: &str, text: String) -> Result<(), Failure> {
    Staged::new(dir, [(name.to_owned(), text)])?.finish()
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
