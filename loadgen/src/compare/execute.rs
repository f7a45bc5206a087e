//! Runs of two binaries or two configurations, interleaved: A B, B A, A B, ... so that what drifts with time, heat and
//! neighbours, falls on both alike. Each pair has a seed of its own, the same for both.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::{Exit, Failure};
use crate::export::json;
use crate::result::RunResult;

/// One side.
#[derive(Debug, Clone)]
pub struct Side {
    pub name: String,
    pub binary: PathBuf,
    /// After `run`: scenario, target, settings.
    pub args: Vec<OsString>,
}

/// Result of each run, `a` then `b`, pair by pair; `note` is told what goes on.
pub fn pairs(
    a: &Side,
    b: &Side,
    (count, seed): (usize, u64),
    out: &Path,
    stop: &AtomicBool,
    mut note: impl FnMut(&str),
) -> Result<Vec<(RunResult, RunResult)>, Failure> {
    let mut done = Vec::new();
    for pair in 0..count {
        let run = |side: &Side| {
            let dir = out.join(&side.name).join(format!("{:02}", pair + 1));
            one(side, seed + pair as u64, &dir, stop)
        };
        note(&format!("pair {} of {count}", pair + 1));
        let (of_a, of_b) = if pair % 2 == 0 {
            let of_a = run(a)?;
            (of_a, run(b)?)
        } else {
            let of_b = run(b)?;
            (run(a)?, of_b)
        };
        done.push((of_a, of_b));
    }
    Ok(done)
}

/// One run. A failed gate is a measurement too; no result is not.
fn one(side: &Side, seed: u64, dir: &Path, stop: &AtomicBool) -> Result<RunResult, Failure> {
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::Interrupted);
    }
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir.display(), e))?;
    // Of an earlier session: not to be taken for this one's.
    let _ = fs::remove_file(dir.join("result.json"));
    let errors = dir.join("stderr.txt");
    let file = File::create(&errors).map_err(|e| Failure::io(errors.display(), e))?;
    let status = Command::new(&side.binary)
        .arg("run")
        .args(&side.args)
        .args(["--seed", &seed.to_string()])
        .arg("--out")
        .arg(dir)
        // Hundreds of annotations would be one too many.
        .env_remove("GITHUB_ACTIONS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .map_err(|e| Failure::io(side.binary.display(), e))?;
    let code = status.code().unwrap_or(1);
    let measured =
        [Exit::Passed, Exit::GateFailed, Exit::Inconclusive].map(|e| i32::from(e.code()));
    if stop.load(Ordering::Relaxed) || code == i32::from(Exit::Interrupted.code()) {
        return Err(Failure::Interrupted);
    }
    if !measured.contains(&code) || !dir.join("result.json").exists() {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let said = said.trim();
        let said = format!("{} run ended with {code}: {said}", side.binary.display());
        return Err(if code == 2 { Failure::Usage(said) } else { Failure::Unavailable(said) });
    }
    json::read(dir)
}
