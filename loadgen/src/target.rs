//! The places where a plan runs. A target runs one arm of a plan and returns records; it judges nothing.

pub(crate) mod agent;
mod attached;
mod counters;
mod daemon;
mod kernel;
pub(crate) mod open_files;
mod tap;
mod virt;
mod wall;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, Plan, TARGETS};
use crate::units::hint_or_all;

/// The signals to a running target.
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    /// Set when the user stops the run: the target stops its processes and returns its records, or `Interrupted`
    /// without any.
    pub stop: &'a AtomicBool,
}

/// A place to run plans.
pub trait Target: fmt::Debug + Sync {
    /// Name of the target, one of [`TARGETS`].
    fn name(&self) -> &'static str;
    /// Length of the steps that recovery is judged by.
    fn recovery_step_ns(&self, plan: &Plan) -> u64;
    /// Limits of the cost to a victim on this target.
    fn thresholds(&self, plan: &Plan) -> Thresholds;
    /// Default number of runs that are judged together, an odd number. Virtual time needs only one; on the wall clock,
    /// a single run may coincide with a disturbance.
    fn repeats(&self) -> usize {
        REPEATS
    }
    /// Whether arms may run in parallel: they share no resource that is measured.
    fn parallel(&self) -> bool;
    /// Whether a run requests real-time scheduling, so that other processes of the machine do not delay what is
    /// measured. Threads and processes of the arms inherit it.
    fn real_time(&self) -> bool {
        !self.parallel()
    }
    /// Checks that this process can run the plan here. Called before anything is set up or written.
    fn check(&self, _plan: &Plan) -> Result<(), Failure> {
        Ok(())
    }
    /// The arms of a plan on this target.
    fn arms(&self, plan: &Plan) -> Vec<ArmPlan> {
        plan.arms.clone()
    }
    /// Runs one arm to its end, or until `control` stops it.
    ///
    /// # Errors
    /// The arm could not be set up, a part of it failed, or it was stopped before anything was measured.
    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure>;
}

/// Runs: the smallest odd number at which one run alone cannot decide the median.
const REPEATS: usize = 3;

/// Least length of a recovery step on the wall clock: a thread that wakes up late must not appear as a starving victim.
const WALL_STEP_NS: u64 = 50_000_000;

/// The target with this name.
pub fn find(name: &str) -> Result<Box<dyn Target>, Failure> {
    find_at(name, None)
}

/// The same; `socket`: that of the daemon, for the target that needs one.
pub fn find_at(name: &str, socket: Option<PathBuf>) -> Result<Box<dyn Target>, Failure> {
    match name {
        "daemon" => return Ok(Box::new(daemon::DaemonTarget::new(socket))),
        _ if socket.is_some() => {
            let what =
                format!("--socket has no effect on target {name}: only target daemon has one");
            return Err(Failure::Usage(what));
        }
        _ => {}
    }
    match name {
        "virtual" => Ok(Box::new(virt::Virtual)),
        "tap" => Ok(Box::new(tap::TapTarget)),
        "kernel" => Ok(Box::new(kernel::KernelTarget)),
        _ => {
            let hint = hint_or_all(name, TARGETS.iter().copied());
            Err(Failure::Usage(format!("no target '{name}'{hint}")))
        }
    }
}
