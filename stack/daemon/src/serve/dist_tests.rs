//! The dashboard and the alert rules of `dist` use metrics, labels and events that exist.

use std::collections::{BTreeMap, BTreeSet};

use skbudget_controller::{MemberId, MemberStats, Pressure};
use skbudget_stack::tap::TapCounters;
use skbudget_stack::{Container, ContainerConfig};

use super::metrics::{self, render};
use crate::caps::CapSet;
use crate::stats::{Meter, Stats, counters};

const DASHBOARD: &str = include_str!("../../dist/grafana/skbudget.json");
const SERVICE: &str = include_str!("../../dist/skbudget.service");
const ALERTS: &str = include_str!("../../dist/alerts.yml");

/// Labels that a series may have. The number of values of each is that of containers or groups, or fixed.
const LABELS: [&str; 5] = ["container", "group", "category", "event", "quantile"];

/// Stats in which every metric has a value.
fn stats() -> Stats {
    let mut stats = metrics::tests::stats();
    let all = Meter {
        low_bytes: Some(1),
        soft_bytes: Some(2),
        hard_bytes: Some(3),
        pressure: Pressure::Soft,
        ..Meter::NONE
    };
    let stack =
        Container::new(ContainerConfig::new(1500, true, Some(1 << 24), [0; 2]), MemberId(0));
    let names = counters(&MemberStats::default(), &stack.stats(), TapCounters::default());
    stats.host = all;
    stats.groups.iter_mut().for_each(|group| group.meter = all);
    for container in &mut stats.containers {
        container.meter = all;
        container.counters = names.clone();
    }
    stats
}

/// By metric: its labels, each with its values.
type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn known() -> Known {
    let mut known = Known::new();
    let text = render(&stats(), 1);
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of_metric = known.entry(name.to_owned()).or_default();
        for (label, value) in pairs(labels.trim_end_matches('}')) {
            of_metric.entry(label).or_default().insert(value);
        }
    }
    known
}

/// `label="value"` pairs, also those with `=~`.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut words = text.split('"');
    let mut found = Vec::new();
    while let (Some(label), Some(value)) = (words.next(), words.next()) {
        let label = label.trim_matches(|c: char| !c.is_alphanumeric() && c != '_');
        found.push((label.to_owned(), value.to_owned()));
    }
    found
}

/// Names of metrics in queries, with what is in the braces behind them.
fn used(text: &str) -> Vec<(&str, &str)> {
    let joins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices("skbudget_") {
        if text[..at].ends_with(joins) {
            continue;
        }
        let rest = &text[at..];
        let (name, after) = rest.split_at(rest.find(|c| !joins(c)).unwrap_or(rest.len()));
        let braces = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        found.push((name, braces.map_or("", |(inner, _)| inner)));
    }
    found
}

/// What a file uses and does not exist.
fn missing(text: &str, known: &Known) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, braces) in used(text) {
        let Some(labels) = known.get(name) else {
            missing.push(name.to_owned());
            continue;
        };
        for (label, wanted) in pairs(braces) {
            match labels.get(&label) {
                // A variable of the dashboard.
                Some(_) if wanted.starts_with('$') => {}
                Some(values) => {
                    let unknown = wanted.split('|').filter(|value| !values.contains(*value));
                    missing.extend(unknown.map(|value| format!("{name}{{{label}={value}}}")));
                }
                // Added by Prometheus.
                None if label == "instance" => {}
                None => missing.push(format!("{name}{{{label}}}")),
            }
        }
    }
    missing
}

#[test]
fn the_dashboard_and_the_alerts_use_what_exists() {
    let known = known();
    // The quotes of queries are escaped in JSON.
    let dashboard = DASHBOARD.replace("\\\"", "\"");
    assert!(used(&dashboard).len() > 30 && used(ALERTS).len() > 8);
    assert_eq!(missing(&dashboard, &known), [""; 0]);
    assert_eq!(missing(ALERTS, &known), [""; 0]);
    let wrong = "rate(skbudget_x_total[5m]) + skbudget_host_usage_bytes{container=\"a\"} + \
                 skbudget_container_events_total{event=~\"AdmissionDenied|Nothing\"}";
    let expected = [
        "skbudget_x_total",
        "skbudget_host_usage_bytes{container}",
        "skbudget_container_events_total{event=Nothing}",
    ];
    assert_eq!(missing(wrong, &known), expected);
}

#[test]
fn the_unit_has_the_capabilities_that_the_parent_keeps() {
    let lines = SERVICE.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = lines.flat_map(str::split_whitespace);
    let all = names.fold(CapSet::NONE, |all, name| all.with(CapSet::parse(name).unwrap()));
    assert_eq!(all, CapSet::daemon());
}

#[test]
fn the_labels_of_metrics_are_bounded() {
    for (name, labels) in known() {
        for label in labels.keys() {
            assert!(LABELS.contains(&label.as_str()), "{name}: {label}");
        }
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let is_row = panel["type"] == "row";
        assert_eq!(panel["targets"].as_array().is_none_or(Vec::is_empty), is_row, "{panel}");
    }
}
