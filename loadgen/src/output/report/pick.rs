//! Selects the containers that a rendering shows. There may be thousands; only selected ones are drawn or listed.

use crate::judge::metrics::victims;
use crate::measure::result::{ArmResult, ContainerResult};
use crate::scenario::plan::{CONTENDED, Role};

pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Victim => "victim",
        Role::Hog => "hog",
    }
}

/// The name of its group, or of its role in a result without groups.
pub(crate) fn group_of(c: &ContainerResult) -> &str {
    if c.group.is_empty() { role(c.role) } else { &c.group }
}

pub(crate) fn contended_bytes(c: &ContainerResult) -> u64 {
    c.phases.get(CONTENDED).map_or(0, |p| p.up_bytes + p.down_bytes)
}

/// Slowdown beside the hog in thousandths; `u64::MAX`: no byte arrived. Uses the recorded cost, or computes it from the
/// bytes of the phases if there is none.
pub(crate) fn slowdown_milli(c: &ContainerResult, solo_ns: u64, contended_ns: u64) -> u64 {
    // `None`: nothing arrived, or the result is of an earlier version. Compute it from the bytes.
    if c.cost.throughput_slowdown_milli.is_some() {
        return c.cost.throughput_slowdown_milli.unwrap_or(u64::MAX);
    }
    let Some((solo, contended)) = c.phases.first().zip(c.phases.get(CONTENDED)) else {
        return 1000;
    };
    let ratio = |solo: u64, contended: u64| {
        let (solo, contended) = (
            u128::from(solo) * u128::from(contended_ns),
            u128::from(contended) * u128::from(solo_ns),
        );
        match (solo, contended) {
            // Nothing in the solo phase: no reference, so no slowdown.
            (0, _) => 1000,
            (_, 0) => u64::MAX,
            (s, c) => (s * 1000 / c).min(u128::from(u64::MAX)) as u64,
        }
    };
    ratio(solo.up_bytes, contended.up_bytes).max(ratio(solo.down_bytes, contended.down_bytes))
}

/// The victims, sorted by goodput beside the hog; the least is the first. Victims without bulk have no goodput and are
/// last.
pub(crate) fn worst_first(arm: &ArmResult) -> Vec<&ContainerResult> {
    let mut victims: Vec<_> = victims(arm).collect();
    victims.sort_by_key(|c| (!c.wants_bulk(), contended_bytes(c)));
    victims
}

/// As `worst_first`, but only the victims with bulk.
pub(crate) fn worst_bulk_first(arm: &ArmResult) -> Vec<&ContainerResult> {
    let mut victims = worst_first(arm);
    victims.retain(|c| c.wants_bulk());
    victims
}

pub(crate) fn worst(arm: &ArmResult) -> Option<&ContainerResult> {
    worst_first(arm).first().copied()
}
