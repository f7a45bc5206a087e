//! How reliable the numbers are: intended and completed requests, the three latencies of a request, and the lag of the
//! generator. One row per arm and phase, over all victims.

use minijinja::{Value, context};

use super::table;
use crate::judge::metrics::{victims, worst_quantile};
use crate::measure::result::{ArmResult, ProbePhase, RunResult};
use crate::scenario::plan::{CONTENDED, SOLO};
use crate::units::time;

pub(super) fn rows(result: &RunResult) -> Vec<Value> {
    let phases = [SOLO, CONTENDED].into_iter().filter_map(|i| Some((i, result.phases.get(i)?)));
    let phases: Vec<_> = phases.collect();
    let row = |arm: &ArmResult| {
        phases.iter().map(|(i, p)| of_phase(arm, *i, &p.name)).collect::<Vec<Value>>()
    };
    result.arms.iter().flat_map(row).collect()
}

fn of_phase(arm: &ArmResult, phase: usize, name: &str) -> Value {
    let probes: Vec<&ProbePhase> =
        victims(arm).filter_map(|c| c.phases.get(phase)?.probe.as_ref()).collect();
    let sum = |count: fn(&ProbePhase) -> u64| probes.iter().map(|p| count(p)).sum::<u64>();
    let response = worst_quantile(arm, phase, |p| p.p99);
    let service = probes.iter().filter_map(|p| p.service.p99_ns).max();
    context! {
        arm => arm.name.as_str(), phase => name,
        intended => sum(|p| p.intended), completed => sum(|p| p.completed),
        missing => sum(|p| p.outstanding + p.shed + p.failed),
        outstanding => sum(|p| p.outstanding), shed => sum(|p| p.shed), failed => sum(|p| p.failed),
        response => response.map_or_else(table::none, table::quantile),
        service => service.map_or_else(table::none, time),
        lag => lag(arm, &probes),
    }
}

/// The lag that the probes recorded, or that of the arm if they recorded none.
fn lag(arm: &ArmResult, probes: &[&ProbePhase]) -> String {
    let of_probes = probes.iter().filter_map(|p| p.lag.p99_ns).max();
    time(of_probes.unwrap_or(arm.generator_lag_p99_ns))
}
