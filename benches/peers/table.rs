//! The readings, their medians, and skbudget's ratio to each peer within a round.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::measure::{Readings, Test, readings_of};
use crate::peer::Peer;

/// Values by round; `None`: that round failed.
type Rounds = Vec<Option<f64>>;

#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By MTU, test, index among the test's readings, and peer.
    cells: BTreeMap<(u16, Test, usize, Peer), Rounds>,
}

fn test_name(test: Test) -> String {
    test.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Table {
    pub(crate) fn add(&mut self, peer: Peer, mtu: u16, test: Test, readings: Option<Readings>) {
        for place in 0..readings_of(test).len() {
            let value = readings.as_ref().and_then(|all| Some(all.get(place)?.1));
            self.cells.entry((mtu, test, place, peer)).or_default().push(value);
        }
    }

    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let (peer, mtu, test, reading) = ("peer", "mtu", "test", "reading");
        let _ =
            writeln!(out, "{peer:12} {mtu:>6} {test:12} {reading:14} {:>12}   rounds", "median");
        for ((mtu, test, place, peer), rounds) in &self.cells {
            let reading = readings_of(*test)[*place];
            let shown: Vec<String> =
                rounds.iter().map(|v| v.map_or_else(|| "failed".to_owned(), show)).collect();
            let middle = median(rounds.iter().flatten().copied().collect());
            let _ = writeln!(
                out,
                "{:12} {mtu:6} {:12} {reading:14} {:>12}   {}",
                peer.name(),
                test_name(*test),
                middle.map_or_else(|| "failed".to_owned(), show),
                shown.join(" ")
            );
        }
        for (what, ratio) in self.ratios() {
            let ratio = ratio.map_or_else(|| "failed".to_owned(), |r| format!("{r:.2}"));
            let _ = writeln!(out, "skbudget / {what:40} {ratio}");
        }
        out
    }

    /// The median of the ratios within a round, for each test's first reading.
    fn ratios(&self) -> Vec<(String, Option<f64>)> {
        let mut all = Vec::new();
        for ((mtu, test, place, peer), theirs) in &self.cells {
            let ours = self.cells.get(&(*mtu, *test, *place, Peer::Skbudget));
            // Only a test's first reading is compared.
            let compared = *place == 0 && *peer != Peer::Skbudget;
            let Some(ours) = ours.filter(|_| compared) else { continue };
            let reading = readings_of(*test)[*place];
            let pairs = ours.iter().zip(theirs).filter_map(|(a, b)| Some((*a)? / (*b)?));
            let what = format!("{} {} {reading} at {mtu}", peer.name(), test_name(*test));
            all.push((what, median(pairs.collect())));
        }
        all
    }

    pub(crate) fn json(&self) -> Value {
        let cells = self.cells.iter().map(|((mtu, test, place, peer), rounds)| {
            let reading = readings_of(*test)[*place];
            (format!("{}/{mtu}/{}/{reading}", peer.name(), test_name(*test)), json!(rounds))
        });
        let ratios = self.ratios().into_iter().map(|(what, ratio)| (what, json!(ratio)));
        json!({ "cells": cells.collect::<Map<_, _>>(), "ratios": ratios.collect::<Map<_, _>>() })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn show(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
