//! What `top` knows, and what keys change of it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::keys::Key;
use crate::flows::FlowReport;

/// Longest filter, characters.
const FILTER_MAX: usize = 32;

/// Containers that a page key passes.
const PAGE: usize = 10;

/// One answer of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Monotonic clock of the daemon.
    time_ns: u64,
    /// Sum over all containers, with the host's limits.
    host: Meter,
    /// In the daemon's order.
    containers: Vec<Container>,
}

/// Usage and limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meter {
    /// Charged now, bytes.
    pub(super) usage: u64,
    /// Most so far, bytes.
    pub(super) max_usage: u64,
    /// Pressure ends below this; `None`: no limit.
    pub(super) low: Option<u64>,
    /// Pressure starts above this.
    pub(super) soft: Option<u64>,
    /// No charge exceeds this.
    pub(super) hard: Option<u64>,
    /// `none`, `soft` or `hard`.
    pub(super) pressure: String,
}

/// One container at the time of a sample.
#[derive(Debug, Clone, Default)]
struct Container {
    /// Unique at one time. Later, another container may have it.
    name: String,
    /// Of its budget.
    meter: Meter,
    /// Flows open now.
    flows: u64,
    /// Flows refused so far.
    refused: u64,
    /// Payload so far, bytes.
    sent: u64,
    /// The same in the other direction.
    received: u64,
    /// CPU time of a worker so far.
    cpu_ns: u64,
}

/// One container as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Name of the container.
    pub(super) name: String,
    /// Of its budget.
    pub(super) meter: Meter,
    /// Flows open now.
    pub(super) flows: u64,
    /// Flows refused so far.
    pub(super) refused: u64,
    /// Bytes a second, since the sample before.
    pub(super) sent_rate: u64,
    /// The same in the other direction.
    pub(super) received_rate: u64,
    /// CPU time of a worker, thousandths of a core.
    pub(super) cpu_permille: u64,
}

/// Order of the containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Bytes charged.
    #[default]
    Usage,
    /// Usage relative to hard.
    Share,
    /// Flows open.
    Flows,
    /// Bytes a second from the container.
    Sent,
    /// Bytes a second for the container.
    Received,
    /// Flows refused so far.
    Refused,
    /// CPU time.
    Cpu,
    /// From a on.
    Name,
}

/// In the order of the key.
const SORTS: [(Sort, &str); 8] = [
    (Sort::Usage, "usage"),
    (Sort::Share, "share of hard"),
    (Sort::Flows, "flows"),
    (Sort::Sent, "sent"),
    (Sort::Received, "received"),
    (Sort::Refused, "refused"),
    (Sort::Cpu, "cpu"),
    (Sort::Name, "name"),
];

/// What the caller does after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ends.
    Quit,
    /// The details are those of another container.
    Refresh,
    /// Only what is shown has changed.
    Stay,
}

/// All that is shown.
#[derive(Debug, Default)]
pub(super) struct Top {
    /// To compute rates from.
    last: Sample,
    /// In their order, without the filter.
    rows: Vec<Row>,
    /// All containers together.
    pub(super) host: Meter,
    /// Why the last request failed; what is shown is older.
    pub(super) lost: Option<String>,
    /// The order.
    sort: Sort,
    /// The order is reversed.
    reverse: bool,
    /// A part of the names that are shown.
    pub(super) filter: String,
    /// Keys are characters of the filter.
    pub(super) editing: bool,
    /// Name of the selected container.
    selected: Option<String>,
    /// The flows of the selected container are shown.
    open: bool,
    /// Those of the selected container, if they are shown.
    pub(super) flows: Vec<FlowReport>,
}

impl Sample {
    /// The values of `skbudget.stats/1` that are shown. What is missing is 0.
    pub(super) fn parse(stats: &Value) -> Self {
        let containers = stats["containers"].as_array().into_iter().flatten();
        Self {
            time_ns: number(&stats["time_ns"]),
            host: Meter::parse(&stats["host"]),
            containers: containers.map(Container::parse).collect(),
        }
    }
}

impl Meter {
    fn parse(of: &Value) -> Self {
        Self {
            usage: number(&of["usage_bytes"]),
            max_usage: number(&of["max_usage_bytes"]),
            low: of["low_bytes"].as_u64(),
            soft: of["soft_bytes"].as_u64(),
            hard: of["hard_bytes"].as_u64(),
            pressure: of["pressure"].as_str().unwrap_or("none").to_owned(),
        }
    }
}

impl Container {
    fn parse(of: &Value) -> Self {
        Self {
            name: of["name"].as_str().unwrap_or_default().to_owned(),
            meter: Meter::parse(of),
            flows: number(&of["flows"]),
            refused: number(&of["counters"]["AdmissionDenied"]),
            sent: number(&of["bytes_from_guest"]),
            received: number(&of["bytes_to_guest"]),
            cpu_ns: number(&of["cpu_ns"]),
        }
    }
}

/// A number of the stats; 0 where there is none.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Increase a second. A counter that is smaller belongs to another container of the same name.
fn rate(now: u64, before: u64, passed_ns: u64) -> u64 {
    let more = u128::from(now.saturating_sub(before)) * 1_000_000_000;
    more.checked_div(passed_ns.into()).and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0)
}

impl Top {
    /// Takes the next sample.
    pub(super) fn update(&mut self, sample: Sample, flows: Vec<FlowReport>) {
        let before: BTreeMap<&str, &Container> =
            self.last.containers.iter().map(|c| (c.name.as_str(), c)).collect();
        // 0 for the first sample: its rates are not known.
        let passed = match self.last.time_ns {
            0 => 0,
            before => sample.time_ns.saturating_sub(before),
        };
        let row = |now: &Container| {
            let before = before.get(now.name.as_str()).copied();
            let rate = |of: fn(&Container) -> u64| {
                before.map_or(0, |before| rate(of(now), of(before), passed))
            };
            Row {
                name: now.name.clone(),
                meter: now.meter.clone(),
                flows: now.flows,
                refused: now.refused,
                sent_rate: rate(|c| c.sent),
                received_rate: rate(|c| c.received),
                cpu_permille: rate(|c| c.cpu_ns) / 1_000_000,
            }
        };
        self.rows = sample.containers.iter().map(row).collect();
        self.host = sample.host.clone();
        self.last = sample;
        self.flows = flows;
        self.lost = None;
        self.order();
    }

    /// The request failed: what is shown stays.
    pub(super) fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// Name of the order.
    pub(super) fn sort_name(&self) -> &'static str {
        SORTS.iter().find(|(sort, _)| *sort == self.sort).map_or("", |(_, name)| name)
    }

    /// Number of all containers.
    pub(super) fn containers(&self) -> usize {
        self.rows.len()
    }

    /// The containers that the filter selects, in their order.
    pub(super) fn shown(&self) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.name.contains(&self.filter)).collect()
    }

    /// Index of the selected container among those shown.
    pub(super) fn selected(&self) -> usize {
        let name = self.selected.as_deref();
        self.shown().iter().position(|row| Some(row.name.as_str()) == name).unwrap_or(0)
    }

    /// Name of the container with its flows shown.
    pub(super) fn details(&self) -> Option<&str> {
        // The first container is selected as long as no key has selected another.
        let shown = self.shown();
        self.open.then(|| shown.get(self.selected()).map(|row| row.name.as_str())).flatten()
    }

    /// Reacts to a key.
    pub(super) fn on_key(&mut self, key: Key) -> Outcome {
        let before = self.details().map(str::to_owned);
        if self.editing {
            self.edit(key);
        } else {
            match key {
                Key::Char('q') => return Outcome::Quit,
                Key::Char('s') => self.next_sort(),
                Key::Char('r') => self.reverse = !self.reverse,
                Key::Char('/') => self.editing = true,
                Key::Enter => self.open = !self.open,
                Key::Escape if self.open => self.open = false,
                Key::Escape => self.filter.clear(),
                Key::Up | Key::Char('k') => self.select(|at| at.saturating_sub(1)),
                Key::Down | Key::Char('j') => self.select(|at| at + 1),
                Key::PageUp => self.select(|at| at.saturating_sub(PAGE)),
                Key::PageDown => self.select(|at| at + PAGE),
                Key::Char(_) | Key::Backspace => {}
            }
        }
        self.order();
        if self.details() == before.as_deref() {
            return Outcome::Stay;
        }
        // Those of another container.
        self.flows.clear();
        Outcome::Refresh
    }

    /// A key while the filter is edited.
    fn edit(&mut self, key: Key) {
        match key {
            Key::Char(c) if self.filter.len() < FILTER_MAX => self.filter.push(c),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Enter => self.editing = false,
            Key::Escape => {
                self.filter.clear();
                self.editing = false;
            }
            _ => {}
        }
    }

    /// Selects the next order.
    fn next_sort(&mut self) {
        let at = SORTS.iter().position(|(sort, _)| *sort == self.sort).unwrap_or(0);
        self.sort = SORTS[(at + 1) % SORTS.len()].0;
    }

    /// Selects another of the containers shown.
    fn select(&mut self, to: impl FnOnce(usize) -> usize) {
        let shown = self.shown();
        let at = to(self.selected()).min(shown.len().saturating_sub(1));
        self.selected = shown.get(at).map(|row| row.name.clone());
    }

    /// Sorts the rows: the largest first, names from a on; equal ones by name, so that they keep their lines.
    fn order(&mut self) {
        let key = |row: &Row| match self.sort {
            Sort::Usage => row.meter.usage,
            Sort::Share => row.meter.share_permille(),
            Sort::Flows => row.flows,
            Sort::Sent => row.sent_rate,
            Sort::Received => row.received_rate,
            Sort::Refused => row.refused,
            Sort::Cpu => row.cpu_permille,
            Sort::Name => 0,
        };
        self.rows.sort_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
        if self.reverse {
            self.rows.reverse();
        }
    }
}

impl Meter {
    /// Usage in thousandths of hard; 0 without a limit.
    pub(super) fn share_permille(&self) -> u64 {
        let hard = self.hard.unwrap_or(0);
        self.usage.saturating_mul(1000).checked_div(hard).unwrap_or(0)
    }
}
