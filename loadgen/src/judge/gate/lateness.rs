//! What a late generator proves nothing about.
//!
//! A probe that is sent late adds its lateness to the response time, which counts from when it was due. So lateness
//! beside the hog can only make a subject look worse: a gate of response times that fails then is in doubt, one that
//! holds, holds. Lateness alone can make the inflation look smaller, but only where it exceeds the lateness beside the
//! hog. Goodput, stalls and recovery last much longer than the lateness that is permitted: only a lag above [`LAG_NS`]
//! puts them in doubt.

use super::{GateSheet, JudgedGate, LAG_NS, Seen, Thresholds};
use crate::judge::analyse::latency_pairs;
use crate::judge::metrics::victims;
use crate::measure::result::{ArmResult, ContainerResult, GateKind};
use crate::scenario::plan::{ArmRole, CONTENDED, GatePlan, SOLO};
use crate::units::time;

const NAME: &str = "generator's lag, p99";

/// Judges the generator of an arm after the gates of the arm: `sheet.out[from..]`. The gate is inserted at `at`, among
/// the sanity gates.
pub(super) fn judge(
    sheet: &mut GateSheet<'_>,
    limits: Thresholds,
    own: &[&GatePlan],
    from: usize,
    at: usize,
) {
    let (arm, lag) = (sheet.arm, sheet.arm.generator_lag_p99_ns);
    let tightest = tightest_gate_ns(arm, limits, own);
    let held = |j: &JudgedGate| j.gate.passed || !j.latency || j.gate.kind != GateKind::Subject;
    let harmless = sheet.out[from..].iter().all(held) && hidden_ns(arm) <= tightest;
    // A control is judged by its goodput, and by how much memory it was refused: lateness explains neither.
    let unjudged = arm.role == ArmRole::Control && !own.iter().any(|g| g.expr.is_latency());
    let within = |limit: u64, why: &str| (limit, format!("<= {}{why}", time(limit)));
    let (most, limit) = match lag > tightest {
        true if unjudged => (u64::MAX, format!("<= {}, or no response time judged", time(LAG_NS))),
        true if lag <= LAG_NS && harmless => within(LAG_NS, ", as response times hold"),
        _ => within(tightest, ""),
    };
    sheet.gate(GateKind::Sanity, NAME, Seen::at_most(Some(lag), most, time(lag), limit));
    if lag <= LAG_NS {
        sheet.of_latency();
    }
    sheet.out[at..].rotate_right(1);
}

/// What the tightest gate on response times allows, nanoseconds. A control starves by far more than any lateness.
pub(super) fn tightest_gate_ns(arm: &ArmResult, limits: Thresholds, own: &[&GatePlan]) -> u64 {
    if arm.role != ArmRole::Subject {
        return LAG_NS;
    }
    let pairs = latency_pairs(arm);
    // The growth of the p99 that the ratio permits.
    let growth = limits.p99_inflation_milli.saturating_sub(1000);
    let of_ratio =
        pairs.iter().filter_map(|p| p.known()).map(|(solo, _)| solo * growth / 1000).min();
    // Limits of response times in the scenario file bound the lag too.
    let of_own = own.iter().filter_map(|g| g.expr.least_latency_ns()).min();
    let tightest = [Some(LAG_NS), limits.p99_delta_ns, of_ratio, of_own];
    tightest.into_iter().flatten().min().unwrap_or(LAG_NS)
}

/// How much later the generator of a victim was alone than beside the hog, nanoseconds. An inflation of up to that much
/// may be hidden.
fn hidden_ns(arm: &ArmResult) -> u64 {
    let lag = |c: &ContainerResult, phase: usize| {
        c.phases.get(phase)?.probe.as_ref().and_then(|p| p.lag.p99_ns)
    };
    let more = |c: &ContainerResult| {
        let alone = lag(c, SOLO).unwrap_or(0);
        alone.saturating_sub(lag(c, CONTENDED).unwrap_or(0))
    };
    victims(arm).map(more).max().unwrap_or(0)
}
