//! Makes a plan from a scenario file. Refuses everything that cannot run, with its place in the file.

mod loads;

use std::collections::BTreeMap;

use skbudget_controller::Limits;
use skbudget_stack::ContainerConfig;

use self::loads::{check_loads, loads};
use super::file::{self, GroupTable, ScenarioFile};
use super::schedule::{self, Times, Wrong};
use super::source::Source;
use super::values::guess;
use crate::exit::Failure;
use crate::scenario::expr::{Expr, GroupFacts};
use crate::scenario::names;
use crate::scenario::plan::{
    ArmPlan, ArmRole, BudgetPlan, ContainerPlan, GatePlan, Isolation, LinkPlan, Phase, Plan, Role,
    RuleSet,
};
use crate::units::Unit;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// Maximum number of containers of one run.
const CONTAINERS_MAX: u64 = 4096;
/// Maximum connections of one load: each needs a port.
pub(crate) const CONNECTIONS_MAX: u64 = 5000;

pub(super) fn plan(source: &Source, seed: u64) -> Result<Plan, Failure> {
    let file = source.file()?;
    Builder { file: &file, source }.plan(seed).map_err(|(path, message)| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        source.wrong(&path, &message)
    })
}

struct Builder<'a> {
    file: &'a ScenarioFile,
    source: &'a Source,
}

fn wrong<T>(path: &[&str], message: impl Into<String>) -> Result<T, Wrong> {
    Err((path.iter().map(|s| (*s).to_owned()).collect(), message.into()))
}

fn range(path: &[&str], unit: Unit, v: u64, low: u64, high: u64) -> Result<(), Wrong> {
    if (low..=high).contains(&v) {
        return Ok(());
    }
    let (v, low, high) = (unit.show(v), unit.show(low), unit.show(high));
    wrong(path, format!("{v} must be {low} to {high}"))
}

impl<'a> Builder<'a> {
    fn plan(&self, seed: u64) -> Result<Plan, Wrong> {
        let f = self.file;
        if !names::fits(&f.name) {
            let what = format!("'{}': a scenario's name is {}", f.name, names::RULE);
            return wrong(&["name"], what);
        }
        self.check_frame()?;
        let times = self.times();
        let mut containers = Vec::new();
        let victims: u64 =
            f.group.iter().filter(|g| g.role == Role::Victim).map(|g| g.count.0).sum();
        if !f.group.iter().any(|g| g.role == Role::Victim) {
            return wrong(&["group"], "no victims: a scenario needs a group with the role victim");
        }
        // Hogs first: a container keeps its number when victims are added.
        for role in [Role::Hog, Role::Victim] {
            // Counted over all groups of the role.
            let mut nth = 0;
            for (i, group) in f.group.iter().enumerate().filter(|(_, g)| g.role == role) {
                self.check_group(i, group)?;
                self.members(group, &times, nth, victims, &mut containers)?;
                nth += group.count.0;
            }
        }
        if containers.len() as u64 > CONTAINERS_MAX {
            let what = format!("{} containers; at most {CONTAINERS_MAX}", containers.len());
            return wrong(&["group"], what);
        }
        distinct(&containers)?;
        let arms = self.arms()?;
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Plan {
            scenario: f.name.clone(),
            about: f.about.clone(),
            toml: self.source.render(),
            seed,
            params: self.record(),
            link: LinkPlan {
                rtt_ns: f.link.rtt.0,
                guest_buffer_bytes: f.socket.guest_buffer.0,
                mtu: u16::try_from(f.link.mtu.0).unwrap_or(u16::MAX),
                offload: f.link.offload.0 != 0,
            },
            rmem_bytes: number(f.socket.rmem.0),
            wmem_max_bytes: number(f.socket.wmem_max.0),
            window_ns: f.run.window.0,
            grace_ns: f.run.grace.0,
            phases: times.phases,
            host: f.host.as_ref().map(budget),
            containers,
            gates: self.gates(&arms)?,
            arms,
        })
    }

    fn check_frame(&self) -> Result<(), Wrong> {
        let (run, link, socket) = (&self.file.run, &self.file.link, &self.file.socket);
        let time = |key, v: super::values::Time, low, high| {
            range(&["run", key], Unit::Nanos, v.0, low, high)
        };
        time("window", run.window, MS / 10, SECOND)?;
        time("warmup", run.warmup, MS, 60 * SECOND)?;
        time("grace", run.grace, MS, 10 * SECOND)?;
        for (key, v) in
            [("solo", run.solo), ("contended", run.contended), ("recovery", run.recovery)]
        {
            time(key, v, 10 * MS, 600 * SECOND)?;
            if v < run.window {
                let set = |key| self.source.is_set(&["run", key]);
                if set("window") && !set(key) {
                    let what = format!("{} is longer than run.{key} ({v})", run.window);
                    return wrong(&["run", "window"], what);
                }
                return wrong(
                    &["run", key],
                    format!("{v} is shorter than a window ({})", run.window),
                );
            }
        }
        range(&["link", "rtt"], Unit::Nanos, link.rtt.0, 40_000, SECOND)?;
        range(&["link", "mtu"], Unit::Count, link.mtu.0, 576, 65_521)?;
        let size = |key, v: super::values::Bytes, low, high| {
            range(&["socket", key], Unit::Bytes, v.0, low, high)
        };
        size("rmem", socket.rmem, 16 << 10, 6 << 20)?;
        size("wmem-max", socket.wmem_max, 16 << 10, 64 << 20)?;
        size("guest-buffer", socket.guest_buffer, 4 << 10, 16 << 20)
    }

    fn times(&self) -> Times {
        let run = &self.file.run;
        let window = run.window.0;
        let align = |ns: u64| ns.div_ceil(window) * window;
        let solo = align(run.warmup.0);
        // The grace time separates the phases. Aligned, so that no window spans two phases.
        let contended = align(solo + run.solo.0 + run.grace.0);
        let recovery = align(contended + run.contended.0);
        let end = align(recovery + run.recovery.0);
        let phase =
            |name: &str, start_ns, end_ns| Phase { name: name.to_owned(), start_ns, end_ns };
        Times {
            phases: vec![
                phase("solo", solo, solo + run.solo.0),
                phase("contended", contended, recovery),
                phase("recovery", recovery, end),
            ],
        }
    }

    fn arms(&self) -> Result<Vec<ArmPlan>, Wrong> {
        let arms = &self.file.arm;
        if arms.is_empty() {
            return wrong(&["arm"], "a scenario needs an arm");
        }
        let mut out: Vec<ArmPlan> = Vec::new();
        for (i, arm) in arms.iter().enumerate() {
            let at = i.to_string();
            if !names::fits(&arm.name) {
                let what = format!("'{}': an arm's name is {}", arm.name, names::RULE);
                return wrong(&["arm", &at], what);
            }
            if out.iter().any(|o| o.name == arm.name) {
                return wrong(&["arm", &at], format!("two arms with the name '{}'", arm.name));
            }
            // The defaults compare Linux as it is (one shared pool) with per-container budgets under the strict rules.
            let default_rules = match arm.isolation {
                Isolation::Shared => RuleSet::Linux,
                Isolation::Container | Isolation::Off => RuleSet::Strict,
            };
            out.push(ArmPlan {
                name: arm.name.clone(),
                role: arm.role,
                isolation: arm.isolation,
                rules: arm.rules.unwrap_or(default_rules),
            });
        }
        if out.iter().all(|a| a.role == ArmRole::Control) {
            return wrong(
                &["arm"],
                "all arms are controls: the role subject or baseline is missing",
            );
        }
        Ok(out)
    }

    fn gates(&self, arms: &[ArmPlan]) -> Result<Vec<GatePlan>, Wrong> {
        let group = |g: &'a GroupTable| GroupFacts {
            name: &g.name,
            is_hog: g.role == Role::Hog,
            probes: g.probe.is_some(),
        };
        let facts: Vec<GroupFacts<'_>> = self.file.group.iter().map(group).collect();
        let groups: Vec<&str> = facts.iter().map(|g| g.name).collect();
        let gate = |(i, gate): (usize, &file::GateTable)| {
            let at = i.to_string();
            if !arms.iter().any(|a| a.name == gate.arm) {
                return wrong(&["gate", &at, "arm"], format!("no arm '{}'", gate.arm));
            }
            match Expr::parse(&gate.expr, &groups).and_then(|e| e.measurable(&facts)) {
                Ok(expr) => Ok(GatePlan { arm: gate.arm.clone(), expr }),
                Err(e) => wrong(&["gate", &at, "expr"], e),
            }
        };
        self.file.gate.iter().enumerate().map(gate).collect()
    }

    fn check_group(&self, i: usize, g: &GroupTable) -> Result<(), Wrong> {
        let at = if g.name.is_empty() { i.to_string() } else { g.name.clone() };
        // A gate separates the group from the metric by a dot.
        if !names::fits(&g.name) || g.name.contains('.') {
            let what = format!("'{}': a group's name is {}, but no '.'", g.name, names::RULE);
            return wrong(&["group", &at], what);
        }
        if self.file.group.iter().filter(|o| o.name == g.name).count() > 1 {
            return wrong(&["group", &at], "two groups with this name");
        }
        // A group of hogs may be empty: the same scenario without its hog.
        let least = u64::from(g.role == Role::Victim);
        range(&["group", &at, "count"], Unit::Count, g.count.0, least, CONTAINERS_MAX)?;
        let rate = &["group", &at, "rate"];
        range(rate, Unit::BitsPerSecond, g.rate.0, 1_000_000, 100_000_000_000)?;
        let weight = g.weight.map_or(100, |w| w.0);
        range(&["group", &at, "weight"], Unit::Count, weight, 1, 10_000)?;
        self.check_budget(&at, &g.budget)?;
        check_loads(&at, g)
    }

    fn check_budget(&self, at: &str, b: &file::BudgetTable) -> Result<(), Wrong> {
        let link = &self.file.link;
        let mtu = u16::try_from(link.mtu.0).unwrap_or(u16::MAX);
        let least = ContainerConfig::least_hard_bytes(mtu, link.offload.0 != 0);
        range(&["group", at, "budget", "hard"], Unit::Bytes, b.hard.0, least, 1 << 40)?;
        let limits = Limits::from_bytes(b.hard.0, b.soft.map(|s| s.0), b.low.map(|l| l.0));
        // Limits contradict each other: name the one that the command line set, if any.
        let set = |keys: &[&'static str]| {
            let path = |key| ["group", at, "budget", key];
            keys.iter().copied().find(|key| self.source.is_set(&path(key)))
        };
        if let Err(e) = limits {
            let mut path = vec!["group", at, "budget"];
            path.extend(set(&["soft", "low", "hard"]));
            return wrong(&path, e.to_string());
        }
        if b.min > b.hard {
            let key = set(&["min", "hard"]).unwrap_or("min");
            return wrong(&["group", at, "budget", key], "min must not exceed the hard limit");
        }
        Ok(())
    }

    /// Adds the containers of a group. `nth` is the index of the first among `victims`, to stagger their probes.
    fn members(
        &self,
        g: &GroupTable,
        times: &Times,
        nth: u64,
        victims: u64,
        out: &mut Vec<ContainerPlan>,
    ) -> Result<(), Wrong> {
        let presence = schedule::presence(g, times)?;
        for i in 0..g.count.0 {
            // A single hog has the name of its group.
            let name = if g.count.0 == 1 && g.role == Role::Hog {
                g.name.clone()
            } else {
                format!("{}{}", g.name, i + 1)
            };
            // Several lives have numbered names.
            let many = presence.len() > 1;
            // With churn a container has several lives; each is a container of its own, but they share one budget.
            for (life, p) in presence.iter().enumerate() {
                out.push(ContainerPlan {
                    name: if many { format!("{name}-{}", life + 1) } else { name.clone() },
                    group: g.name.clone(),
                    role: g.role,
                    weight: g.weight.map_or(100, |w| w.0 as u32),
                    budget: budget(&g.budget),
                    budget_name: name.clone(),
                    bits_per_second: g.rate.0,
                    loads: loads(g, nth + i, victims.max(1)),
                    joins_ns: p.joins_ns,
                    active: p.active.clone(),
                    leaves_ns: p.leaves_ns,
                });
            }
        }
        Ok(())
    }

    fn record(&self) -> Vec<(String, u64)> {
        let params = self.source.params().unwrap_or_default();
        let row = |(name, value): &(String, toml::Value)| {
            // Only numbers are recorded.
            let (n, unit) = guess(value)?;
            Some((format!("{}{}", name.replace('-', "_"), unit.suffix()), n))
        };
        params.iter().filter_map(row).collect()
    }
}

/// Refuses containers of two groups with one name or one budget: results find containers and budgets by name.
fn distinct(containers: &[ContainerPlan]) -> Result<(), Wrong> {
    let (mut names, mut budgets) = (BTreeMap::new(), BTreeMap::new());
    for c in containers {
        let group = c.group.as_str();
        for (name, seen) in [(&c.name, &mut names), (&c.budget_name, &mut budgets)] {
            let other = seen.insert(name.as_str(), group).unwrap_or(group);
            if other == group {
                continue;
            }
            // A container has the name of its group and a number, so the longer group name is like a container's.
            let (short, long) =
                if other.len() < group.len() { (other, group) } else { (group, other) };
            let what = format!(
                "'{name}' would be a container of group '{short}' too; a group's name must not be \
                 that of another group and a number"
            );
            return wrong(&["group", long, "name"], what);
        }
    }
    Ok(())
}

fn budget(b: &file::BudgetTable) -> BudgetPlan {
    BudgetPlan {
        hard_bytes: b.hard.0,
        soft_bytes: b.soft.map(|s| s.0),
        low_bytes: b.low.map(|l| l.0),
        min_bytes: b.min.0,
    }
}
