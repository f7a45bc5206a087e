//! Runs two binaries or two configurations, interleaved, so that drift by time, heat and neighbours affects both alike.
//! The order is in blocks of two pairs, A B B A or B A A B, chosen by the seed: with a fixed order, a periodic
//! disturbance could hit one side only. Each pair has its own seed, the same for both sides.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skbudget_sim::Rng;

use crate::exit::{Exit, Failure};
use crate::judge::compare::RunValues;
use crate::measure::result::RunResult;
use crate::output::export::json;
use crate::output::folder::Folder;

/// One side of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub name: String,
    pub binary: PathBuf,
    /// Arguments after `run`: scenario, target, settings.
    pub args: Vec<OsString>,
}

/// Runs the pairs and returns their results, `(a, b)` each. Progress messages go to `note`.
pub(crate) fn pairs(
    a: &Side,
    b: &Side,
    rounds: Rounds,
    out: &Path,
    stop: &AtomicBool,
    mut note: impl FnMut(&str),
) -> Result<Vec<(RunResult, RunResult)>, Failure> {
    let pair = |pair: usize, a_first: bool| {
        let run = |side: &Side| {
            let dir = out.join(&side.name).join(format!("{:02}", pair + 1));
            one(side, rounds.seed + pair as u64, &dir, stop)
        };
        note(&format!("pair {} of {}", pair + 1, rounds.wanted));
        if a_first {
            let of_a = run(a)?;
            Ok((of_a, run(b)?))
        } else {
            let of_b = run(b)?;
            Ok((run(a)?, of_b))
        }
    };
    let doubtful = |(a, b): &(RunResult, RunResult)| {
        // `RunValues::of` finds failed sanity gates; the label is not used here.
        [a, b].into_iter().any(|r| RunValues::of("", r).doubt.is_some())
    };
    rounds.make(pair, doubtful)
}

/// Removes the files of earlier runs from the folder of a side: this comparison may have fewer pairs, and `compare` of
/// the two folders would count the others as its own.
pub(crate) fn clear(side: &Path) -> Result<(), Failure> {
    // Most comparisons are the first in their folder.
    let Ok(entries) = fs::read_dir(side) else { return Ok(()) };
    let is_pair = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().as_encoded_bytes();
        name.iter().all(u8::is_ascii_digit) && fs::symlink_metadata(p).is_ok_and(|m| m.is_dir())
    };
    entries.flatten().map(|e| e.path()).filter(is_pair).try_for_each(|p| Folder::take(&p).map(drop))
}

/// How many pairs to run, and with which seeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds {
    /// Number of sound pairs to reach.
    pub wanted: usize,
    /// Run another pair for each pair with a doubtful run.
    pub replace: bool,
    pub seed: u64,
}

impl Rounds {
    /// Maximum number of pairs in total: on a machine that is never quiet, no number would suffice.
    fn most(self) -> usize {
        if self.replace { self.wanted + self.wanted.div_ceil(2) } else { self.wanted }
    }

    /// Makes pairs until enough are sound or the maximum is reached.
    fn make<P>(
        self,
        mut pair: impl FnMut(usize, bool) -> Result<P, Failure>,
        doubtful: impl Fn(&P) -> bool,
    ) -> Result<Vec<P>, Failure> {
        let (mut done, mut sound) = (Vec::new(), 0);
        for (i, a_first) in order(self.most(), self.seed).into_iter().enumerate() {
            if sound == self.wanted {
                break;
            }
            // The seed depends on the index of the pair: a replaced pair does not change the seeds of the others.
            let made = pair(i, a_first)?;
            sound += usize::from(!self.replace || !doubtful(&made));
            done.push(made);
        }
        Ok(done)
    }

    /// A message about discarded pairs, if there are any.
    pub(crate) fn note(self, sound: usize, made: usize) -> Option<String> {
        let wanted = self.wanted;
        match made - sound {
            0 => None,
            n if sound < wanted => Some(format!(
                "{n} of {made} pairs are inconclusive: {sound} of the {wanted} wanted remain, and no more are tried"
            )),
            n => Some(format!("{n} of {made} pairs were inconclusive and replaced")),
        }
    }
}

/// For each pair, whether A runs first. In every block of two pairs, each side runs first once.
fn order(count: usize, seed: u64) -> Vec<bool> {
    let mut rng = Rng::fork(seed, ORDER_STREAM);
    let blocks = std::iter::repeat_with(|| rng.below(2) == 0);
    blocks.flat_map(|a_first| [a_first, !a_first]).take(count).collect()
}

/// Stream of the seed's random numbers reserved for the order.
const ORDER_STREAM: u64 = 0x0abb_a000;

/// One run. A failed gate is a valid measurement; a missing result is an error.
fn one(side: &Side, seed: u64, dir: &Path, stop: &AtomicBool) -> Result<RunResult, Failure> {
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::Interrupted);
    }
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir.display(), e))?;
    // A result of an earlier session must not be taken for this run's.
    let _ = fs::remove_file(dir.join("result.json"));
    let errors = dir.join("stderr.txt");
    let file = File::create(&errors).map_err(|e| Failure::io(errors.display(), e))?;
    let failed = |e| Failure::io(side.binary.display(), e);
    let mut child = Command::new(&side.binary)
        .arg("run")
        .args(&side.args)
        .args(["--seed", &seed.to_string()])
        .arg("--out")
        .arg(dir)
        // Without this, every run would write its own annotations to the job.
        .env_remove("GITHUB_ACTIONS")
        // The pairs are the repetition: each run measures once.
        .env(crate::run::REPEAT_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        // The terminal sends Ctrl-C to its whole foreground process group, and a second one would keep a run from
        // writing its result. In a group of its own, the child receives exactly one SIGINT, from `wait`.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let status = wait(&mut child, stop).map_err(failed)?;
    let code = status.code().unwrap_or(1);
    // A run with one of these codes wrote a complete result.
    let measured =
        [Exit::Passed, Exit::GateFailed, Exit::Inconclusive].map(|e| i32::from(e.code()));
    if stop.load(Ordering::Relaxed) || code == i32::from(Exit::Interrupted.code()) {
        return Err(Failure::Interrupted);
    }
    if !measured.contains(&code) || !dir.join("result.json").exists() {
        return Err(no_result(&side.binary, status, &error_output(&errors)));
    }
    json::read(dir)
}

/// The error for a run that left no result.
fn no_result(binary: &Path, status: ExitStatus, error_output: &str) -> Failure {
    /// Exit code of a Rust program that panics.
    const CRASHED: i32 = 101;
    let binary = binary.display();
    // A process that a signal ended has no code.
    match status.code() {
        None | Some(CRASHED) => {
            Failure::Io(format!("{binary} run crashed ({status}): {error_output}"))
        }
        Some(2) if !error_output.is_empty() => {
            Failure::Usage(format!("{binary} run exited with 2: {error_output}"))
        }
        // The run reports the reason itself, for example a target that cannot run here.
        Some(code) if error_output.contains("loadgen: ") => {
            Failure::Unavailable(format!("{binary} run exited with {code}: {error_output}"))
        }
        Some(code) => {
            let what =
                format!("{binary} is not loadgen: it wrote no result.json and exited with {code}");
            Failure::Usage(if error_output.is_empty() {
                what
            } else {
                format!("{what}: {error_output}")
            })
        }
    }
}

/// The first bytes that a run wrote to standard error; a program other than loadgen may write anything.
fn error_output(errors: &Path) -> String {
    let mut head = Vec::new();
    // A file that cannot be read gives an empty text.
    let _ = File::open(errors).and_then(|f| f.take(OUTPUT_BYTES_MAX).read_to_end(&mut head));
    String::from_utf8_lossy(&head).trim().to_owned()
}

/// Maximum bytes of a run's error output that are reported.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// Waits for the end of a run. On `stop`, sends SIGINT once; the run then ends soon.
fn wait(child: &mut Child, stop: &AtomicBool) -> std::io::Result<ExitStatus> {
    /// Interval at which the child and the stop flag are polled.
    const EVERY: Duration = Duration::from_millis(20);
    let mut stop_sent = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !stop_sent && stop.load(Ordering::Relaxed) {
            stop_sent = true;
            // The child may have exited just now: ignore the error.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        }
        // A blocking wait would not notice `stop`.
        thread::sleep(EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_prove_nothing_are_replaced_within_bounds() {
        let rounds = Rounds { wanted: 6, replace: true, seed: 3 };
        let made = |bad: &'static [usize], rounds: Rounds| {
            let all = rounds.make(|i, _| Ok(i), |i| bad.contains(i)).unwrap();
            (all.len(), rounds.note(all.iter().filter(|i| !bad.contains(i)).count(), all.len()))
        };
        assert_eq!(made(&[], rounds), (6, None));
        let (pairs, note) = made(&[0, 4], rounds);
        assert_eq!(
            (pairs, note.unwrap().as_str()),
            (8, "2 of 8 pairs were inconclusive and replaced")
        );
        // A machine that is never quiet.
        let (pairs, note) = made(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], rounds);
        assert!(pairs == 9 && note.unwrap().contains("0 of the 6 wanted"));
        assert_eq!(made(&[0], Rounds { replace: false, ..rounds }).0, 6);
        // A failure ends the pairs.
        assert!(rounds.make::<()>(|_, _| Err(Failure::Interrupted), |()| false).is_err());
    }

    #[test]
    fn earlier_pairs_do_not_stay_beside_fewer_later_ones() {
        let dir = std::env::temp_dir().join(format!("loadgen-pairs-{}", std::process::id()));
        let result = |name: &str| dir.join(name).join("result.json");
        for name in ["01", "07", "mine"] {
            fs::create_dir_all(dir.join(name)).unwrap();
            fs::write(result(name), "{\"schema\": \"loadgen.result/1\"}").unwrap();
        }
        clear(&dir).unwrap();
        assert!(!result("01").exists() && !result("07").exists() && result("mine").exists());
        fs::remove_dir_all(&dir).unwrap();
        clear(&dir).unwrap();
    }

    #[test]
    fn every_block_is_balanced_and_the_seed_decides_its_order() {
        let firsts = |seed| order(200, seed);
        for block in firsts(1).chunks(2) {
            assert_ne!(block[0], block[1]);
        }
        // The first of each block is as random as a coin.
        let led_by_a = firsts(1).iter().step_by(2).filter(|a| **a).count();
        assert!((30..=70).contains(&led_by_a), "{led_by_a} of 100 blocks");
        assert_eq!(firsts(7), firsts(7));
        assert_ne!(firsts(7), firsts(8));
        assert_eq!(order(7, 3).len(), 7);
    }
}
