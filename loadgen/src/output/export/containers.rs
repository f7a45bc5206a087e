//! `containers.csv`: one row per arm, container and phase. A field without a value is empty.

use std::fmt::Write as _;

use super::windows::field;
use crate::measure::result::{ContainerPhase, ContainerResult, Quantile, RunResult};
use crate::output::report::pick::{group_of, role};

const HEAD: &str = "arm,container,role,group,phase,phase_ns,up_bytes,down_bytes,up_stall_ns,down_stall_ns,intended,completed,\
                    outstanding,shed,failed,in_deadline,p50_ns,p99_ns,p999_ns,max_ns,known_from_below,peak_held_bytes,\
                    hard_bytes,stack_cpu_ns,corrupt,broken";

pub(crate) fn csv(result: &RunResult) -> String {
    let mut s = format!("{HEAD}\n");
    for arm in &result.arms {
        for c in &arm.containers {
            for (phase, p) in result.phases.iter().zip(&c.phases) {
                let role = role(c.role);
                let names = [&arm.name, &c.name, role, group_of(c), &phase.name].map(field);
                let _ = write!(s, "{},{}", names.join(","), phase.until(arm.ended_ns).nanos());
                row(&mut s, c, p);
            }
        }
    }
    s
}

fn row(s: &mut String, c: &ContainerResult, p: &ContainerPhase) {
    let ContainerPhase { up_bytes, down_bytes, up_stall_ns, down_stall_ns, .. } = p;
    let _ = write!(s, ",{up_bytes},{down_bytes},{up_stall_ns},{down_stall_ns}");
    match &p.probe {
        None => s.push_str(&",".repeat(11)),
        Some(b) => {
            let counts = [b.intended, b.completed, b.outstanding, b.shed, b.failed, b.in_deadline];
            for n in counts {
                let _ = write!(s, ",{n}");
            }
            let quantiles = [b.p50, b.p99, b.p999, b.max];
            for q in quantiles {
                let _ = write!(s, ",{}", optional(q.map(|q| q.ns)));
            }
            let _ = write!(s, ",{}", from_below(quantiles));
        }
    }
    let cpu = optional(c.stack_cpu_ns);
    let _ = writeln!(s, ",{},{},{cpu},{},{}", c.peak_held_bytes, c.hard_bytes, c.corrupt, c.broken);
}

/// The percentiles of a row for which only a lower bound is known, such as `p99 p999 max`.
fn from_below(quantiles: [Option<Quantile>; 4]) -> String {
    let names = ["p50", "p99", "p999", "max"].into_iter().zip(quantiles);
    let below = names.filter(|(_, q)| q.is_some_and(|q| q.at_least)).map(|(n, _)| n);
    below.collect::<Vec<_>>().join(" ")
}

fn optional(n: Option<u64>) -> String {
    n.map_or_else(String::new, |n| n.to_string())
}
