//! Where a plan runs. A target carries out one arm of a plan and hands back records; it judges nothing.

mod actor;
pub(crate) mod agent;
pub mod kernel;
pub mod tap;
pub mod virt;

use std::fmt;
use std::sync::atomic::AtomicBool;

use crate::exit::Failure;
use crate::gate::Thresholds;
use crate::plan::{ArmPlan, Plan};
use crate::result::ArmResult;
use crate::units::hint_or_all;

/// What a target is told while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    /// Set when the user wants to stop: the target ends what it started and says `Interrupted`.
    pub stop: &'a AtomicBool,
}

pub trait Target: fmt::Debug + Sync {
    fn name(&self) -> &'static str;
    /// How long the steps are that recovery is judged by.
    fn recovery_step_ns(&self, plan: &Plan) -> u64;
    /// What a victim may pay here.
    fn thresholds(&self, plan: &Plan) -> Thresholds;
    /// How often a plan is run before it is judged, unless the user says otherwise: an odd number. Where time is
    /// virtual once is enough, elsewhere a single run may have had a bad moment.
    fn repeats(&self) -> usize {
        REPEATS
    }
    /// Arms share nothing, so that they may run side by side.
    fn parallel(&self) -> bool;
    /// Can this plan be carried out, here and by this process? Asked before anything is set up or written.
    fn check(&self, _plan: &Plan) -> Result<(), Failure> {
        Ok(())
    }
    /// The arms that a plan has here.
    fn arms(&self, plan: &Plan) -> Vec<ArmPlan> {
        plan.arms.clone()
    }
    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure>;
}

/// The least from which a median is not the accident of one run.
const REPEATS: usize = 3;

/// A step on the wall clock: threads that wake late must not look like a victim that starves.
const WALL_STEP_NS: u64 = 50_000_000;

pub const NAMES: &[&str] = &["virtual", "tap", "kernel"];

pub fn find(name: &str) -> Result<Box<dyn Target>, Failure> {
    match name {
        "virtual" => Ok(Box::new(virt::Virtual)),
        "tap" => Ok(Box::new(tap::TapTarget)),
        "kernel" => Ok(Box::new(kernel::KernelTarget)),
        _ => {
            let hint = hint_or_all(name, NAMES.iter().copied());
            Err(Failure::Usage(format!("no target '{name}'{hint}")))
        }
    }
}
