//! Runs of two binaries or two configurations, interleaved, so that what drifts with time, heat and neighbours, falls
//! on both alike: blocks of two pairs, A B B A or B A A B as the seed has it, for what comes in step with a fixed order
//! would fall on one side alone. Each pair has a seed of its own, the same for both.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use skbudget_stack::sim::Rng;

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
    for (pair, a_first) in order(count, seed).into_iter().enumerate() {
        let run = |side: &Side| {
            let dir = out.join(&side.name).join(format!("{:02}", pair + 1));
            one(side, seed + pair as u64, &dir, stop)
        };
        note(&format!("pair {} of {count}", pair + 1));
        let (of_a, of_b) = if a_first {
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

/// Whether A comes first, pair by pair. In every block of two pairs each side does once.
fn order(count: usize, seed: u64) -> Vec<bool> {
    let mut rng = Rng::fork(seed, ORDER_STREAM);
    let blocks = std::iter::repeat_with(|| rng.below(2) == 0);
    blocks.flat_map(|a_first| [a_first, !a_first]).take(count).collect()
}

/// Of the random numbers of a seed those that nothing else takes.
const ORDER_STREAM: u64 = 0x0abb_a000;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_balanced_and_the_seed_decides_its_order() {
        let firsts = |seed| order(200, seed);
        for block in firsts(1).chunks(2) {
            assert_ne!(block[0], block[1]);
        }
        let led_by_a = firsts(1).iter().step_by(2).filter(|a| **a).count();
        assert!((30..=70).contains(&led_by_a), "{led_by_a} of 100 blocks");
        assert_eq!(firsts(7), firsts(7));
        assert_ne!(firsts(7), firsts(8));
        assert_eq!(order(7, 3).len(), 7);
    }
}
