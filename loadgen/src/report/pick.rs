//! Which containers a rendering is about. There may be thousands: what is drawn or listed one by one is chosen here.

use crate::metrics::victims;
use crate::plan::{CONTENDED, Role};
use crate::result::{ArmResult, ContainerResult};

pub fn role(role: Role) -> &'static str {
    match role {
        Role::Victim => "victim",
        Role::Hog => "hog",
    }
}

/// Its group's name, or its role's where the result knows no groups.
pub fn group_of(c: &ContainerResult) -> &str {
    if c.group.is_empty() { role(c.role) } else { &c.group }
}

pub fn contended_bytes(c: &ContainerResult) -> u64 {
    c.phases.get(CONTENDED).map_or(0, |p| p.up_bytes + p.down_bytes)
}

/// How much less came beside the hog than would have come alone, in thousandths; `u64::MAX`: nothing came. Its own
/// record of it if there is one, else from the bytes of the phases.
pub fn slowdown_milli(c: &ContainerResult, solo_ns: u64, contended_ns: u64) -> u64 {
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
            (0, _) => 1000,
            (_, 0) => u64::MAX,
            (s, c) => (s * 1000 / c).min(u128::from(u64::MAX)) as u64,
        }
    };
    ratio(solo.up_bytes, contended.up_bytes).max(ratio(solo.down_bytes, contended.down_bytes))
}

/// Victims, the one with the least goodput beside the hog first.
pub fn worst_first(arm: &ArmResult) -> Vec<&ContainerResult> {
    let mut victims: Vec<_> = victims(arm).collect();
    victims.sort_by_key(|c| contended_bytes(c));
    victims
}

pub fn worst(arm: &ArmResult) -> Option<&ContainerResult> {
    worst_first(arm).first().copied()
}
