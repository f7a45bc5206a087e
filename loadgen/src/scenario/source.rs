//! Merges the texts of a scenario into one table (a file, the files it extends, the changes by `--set`), and finds the
//! place of an error.

use std::fs;
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::file::{Paths, ScenarioFile};
use super::{BUILTIN, catalogue};
use crate::exit::Failure;
use crate::scenario::bounded;
use crate::scenario::plan::TARGETS;
use crate::units::{hint, hint_or_all, nearest};

/// A scenario before a plan is made from it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its name in messages.
    origin: String,
    text: String,
    table: Table,
    /// Changes by the command line: the path, and option and text as typed.
    set: Vec<(Vec<String>, String)>,
}

/// Maximum length of a chain of `extends`.
const DEPTH_MAX: usize = 8;

impl Source {
    /// Opens a built-in scenario by name, or a file by path.
    pub(super) fn open(name: &str) -> Result<Self, Failure> {
        if let Some(text) = catalogue::text(name) {
            return Self::parse(name, text);
        }
        // A path gets the error of the file system, a name the list of scenarios.
        let is_path = name.contains('/') || name.contains(".toml");
        if !is_path && !fs::exists(name).unwrap_or(false) {
            let hint = nearest(name, catalogue::names());
            let hint = hint.map_or_else(
                || "; `loadgen list` prints them".to_owned(),
                |h| format!("; did you mean '{h}'?"),
            );
            return Err(Failure::Usage(format!("no scenario '{name}'{hint}")));
        }
        let text = bounded::read(Path::new(name), bounded::SCENARIO_BYTES_MAX)
            .map_err(|e| Failure::Usage(format!("{name}: {e}")))?;
        Self::parse(name, &text)
    }

    pub(super) fn parse(origin: &str, text: &str) -> Result<Self, Failure> {
        let table = table(origin, text, DEPTH_MAX)?;
        Ok(Self { origin: origin.to_owned(), text: text.to_owned(), table, set: Vec::new() })
    }

    /// Applies the scenario's values for a target. The targets kernel and daemon run on the wall clock as tap does:
    /// their values are applied on top of those for tap.
    pub(super) fn on(&mut self, target: &str) -> Result<(), Failure> {
        let file = self.file()?;
        let layers =
            if ["kernel", "daemon"].contains(&target) { &["tap", target][..] } else { &[target] };
        let of = |layer: &&str| file.on.get(*layer).map(|values| (layer.to_string(), values));
        for (layer, values) in layers.iter().filter_map(of) {
            for (path, value) in values {
                let segments: Vec<String> = path.split('.').map(str::to_owned).collect();
                put(&mut self.table, &segments, value.clone()).map_err(|e| {
                    Failure::Usage(format!("{}: on.{layer}.{path}: {e}", self.origin))
                })?;
            }
        }
        // The target's values may have made the file invalid.
        self.file().map(|_| ())
    }

    /// Applies `key=value`, given after `option` on the command line. The key is a parameter of the scenario or a path.
    pub(super) fn set(&mut self, option: &str, assignment: &str) -> Result<(), Failure> {
        let typed = format!("{option} {assignment}");
        let wrong = |e: String| Failure::Usage(format!("{typed}: {e}"));
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(wrong("must be KEY=VALUE".to_owned()));
        };
        let (key, text) = (key.trim(), text.trim());
        let params = self.file()?.params;
        let paths: Vec<String> = match params.get(key) {
            Some(paths) => paths.iter().map(str::to_owned).collect(),
            None if key.starts_with("on.") => {
                let what = "the values of a target are in force already; set the path itself, \
                            as 'run.solo'";
                return Err(wrong(what.to_owned()));
            }
            None if key.starts_with("params.") => {
                let what =
                    "a parameter is only a name; set it by this name, or set the path itself";
                return Err(wrong(what.to_owned()));
            }
            None if key.contains('.') => vec![key.to_owned()],
            None => {
                let hint = nearest(key, params.keys().map(String::as_str));
                let hint = hint.map_or_else(
                    || "; a path such as 'group.hog.count' is allowed too".to_owned(),
                    |h| format!("; did you mean '{h}'?"),
                );
                return Err(wrong(format!("no such key '{key}'{hint}")));
            }
        };
        for path in paths {
            let segments: Vec<String> = path.split('.').map(str::to_owned).collect();
            put(&mut self.table, &segments, value_of(text)).map_err(wrong)?;
            self.set.push((segments, typed.clone()));
        }
        // Deserialize now, so that the error names this option and not the file.
        ScenarioFile::deserialize(self.table.clone())
            .map_err(|e| wrong(explain(e.message())))
            .map(|_| ())
    }

    /// The file with all changes applied.
    pub(super) fn file(&self) -> Result<ScenarioFile, Failure> {
        ScenarioFile::deserialize(self.table.clone())
            .map_err(|e| Failure::Usage(format!("{}: {}", self.origin, explain(e.message()))))
    }

    /// Names and values of the parameters.
    pub(super) fn params(&self) -> Result<Vec<(String, Value)>, Failure> {
        let first = |(name, paths): (String, Paths)| {
            let path: Vec<String> = paths.iter().next()?.split('.').map(str::to_owned).collect();
            Some((name, value_at(&self.table, &path)?.clone()))
        };
        Ok(self.file()?.params.into_iter().filter_map(first).collect())
    }

    /// Paths and values of the groups that the scenario adds to the common one, such as its hogs, except those that a
    /// parameter covers.
    pub(super) fn group_params(&self) -> Result<Vec<(String, Value)>, Failure> {
        let params = self.file()?.params;
        let named = |path: &str| params.values().any(|paths| paths.iter().any(|p| p == path));
        let mut found = Vec::new();
        let groups = self.table.get("group").and_then(Value::as_array);
        for group in groups.into_iter().flatten().filter_map(Value::as_table) {
            let name = group.get("name").and_then(Value::as_str).unwrap_or_default();
            if name != COMMON_GROUP {
                leaves(&format!("group.{name}"), group, &mut found);
            }
        }
        found.retain(|(path, _)| !named(path));
        Ok(found)
    }

    /// The complete scenario as TOML.
    pub(super) fn render(&self) -> String {
        let mut table = self.table.clone();
        // The values of the base are already merged.
        table.remove("extends");
        // The values of the target are already merged.
        table.remove("on");
        toml::to_string(&table).unwrap_or_default()
    }

    /// Whether the command line set the value at this path.
    pub(super) fn is_set(&self, path: &[&str]) -> bool {
        self.set.iter().any(|(p, _)| p.iter().map(String::as_str).eq(path.iter().copied()))
    }

    /// An error about the meaning of a value, with the option or the line that set it.
    pub(super) fn wrong(&self, path: &[&str], message: &str) -> Failure {
        let same = |p: &[String]| p.iter().map(String::as_str).eq(path.iter().copied());
        // The last setting of a path is the one in force.
        if let Some((_, typed)) = self.set.iter().rev().find(|(p, _)| same(p)) {
            return Failure::Usage(format!("{typed}: {message}"));
        }
        let at = line_of(&self.text, path).map_or_else(String::new, |line| format!(":{line}"));
        Failure::Usage(format!("{}{at}: {}: {message}", self.origin, path.join(".")))
    }
}

/// The group that all built-in scenarios have.
const COMMON_GROUP: &str = "victim";

/// Collects the values that can be set, in the order of the table. Name and role are not values of a load.
fn leaves(path: &str, table: &Table, found: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let path = format!("{path}.{key}");
        match value {
            Value::Table(inner) => leaves(&path, inner, found),
            Value::Array(_) => {}
            _ if key == "name" || key == "role" => {}
            value => found.push((path, value.clone())),
        }
    }
}

/// Parses a text and merges it over the text it extends. Each text is checked separately, so that errors have lines.
fn table(origin: &str, text: &str, depth: usize) -> Result<Table, Failure> {
    let wrong = |e: &toml::de::Error| {
        let line = e.span().map(|s| line_at(text, s.start));
        let at = line.map_or_else(String::new, |l| format!(":{l}"));
        Failure::Usage(format!("{origin}{at}: {}", explain(e.message())))
    };
    let file: ScenarioFile = toml::from_str(text).map_err(|e| wrong(&e))?;
    if !file.schema.is_empty() && file.schema != super::file::SCHEMA {
        let what = format!("{origin}: schema '{}': this is {}", file.schema, super::file::SCHEMA);
        return Err(Failure::Usage(what));
    }
    if let Some(target) = file.on.keys().find(|name| !TARGETS.contains(&name.as_str())) {
        let at = line_of(text, &["on", target]).map_or_else(String::new, |l| format!(":{l}"));
        let hint = hint_or_all(target, TARGETS.iter().copied());
        return Err(Failure::Usage(format!("{origin}{at}: on.{target}: no such target{hint}")));
    }
    // As a table too: the typed file does not distinguish a default from a value that is given.
    let own: Table = toml::from_str(text).map_err(|e| wrong(&e))?;
    let Some(base) = file.extends else { return Ok(own) };
    // A file may extend itself, directly or by way of others.
    if depth == 0 {
        return Err(Failure::Usage(format!(
            "{origin}: extends: more than {DEPTH_MAX} levels, or a cycle"
        )));
    }
    let mut merged = match base.strip_prefix(BUILTIN) {
        Some(name) => {
            let Some(text) = catalogue::text(name) else {
                let hint = hint(name, catalogue::names());
                let what = format!("{origin}: extends: no built-in '{name}'{hint}");
                return Err(Failure::Usage(what));
            };
            table(&base, text, depth - 1)?
        }
        None => {
            let text = bounded::read(Path::new(&base), bounded::SCENARIO_BYTES_MAX)
                .map_err(|e| Failure::Usage(format!("{origin}: extends: {base}: {e}")))?;
            table(&base, &text, depth - 1)?
        }
    };
    merge(&mut merged, own);
    Ok(merged)
}

/// Merges tables key by key and arrays of named tables name by name; replaces anything else.
fn merge(base: &mut Table, own: Table) {
    for (key, value) in own {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(b)), Value::Table(o)) => merge(b, o),
            (Some(Value::Array(b)), Value::Array(o)) if o.iter().all(|v| name(v).is_some()) => {
                for item in o {
                    match b.iter_mut().find(|v| name(v).is_some() && name(v) == name(&item)) {
                        Some(Value::Table(old)) => {
                            if let Value::Table(new) = item {
                                merge(old, new);
                            }
                        }
                        // The base has no element of that name.
                        _ => b.push(item),
                    }
                }
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn name(v: &Value) -> Option<&str> {
    v.as_table()?.get("name")?.as_str()
}

/// Converts an argument to a TOML value.
fn value_of(text: &str) -> Value {
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        // Texts with a unit stay texts; the file's types parse them.
        _ => text.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Integer),
    }
}

/// Sets a value by its path; elements of arrays are addressed by name. Creates missing tables: a wrong path is reported
/// when the whole table is deserialized.
fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else { return Err("an empty path".to_owned()) };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return Ok(());
    }
    let next = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
    match next {
        Value::Table(t) => put(t, rest, value),
        Value::Array(items) => {
            let wanted = &rest[0];
            let known: Vec<String> = items.iter().filter_map(name).map(str::to_owned).collect();
            let at = items.iter_mut().find(|v| name(v) == Some(wanted));
            let Some(Value::Table(t)) = at else {
                let hint = hint(wanted, known.iter().map(String::as_str));
                return Err(format!("no {key} '{wanted}'{hint}"));
            };
            if rest.len() == 1 {
                let keys: Vec<&str> = t.keys().map(String::as_str).collect();
                let keys = keys.join(", ");
                return Err(format!("'{key}.{wanted}' is no value but a table with {keys}"));
            }
            put(t, &rest[1..], value)
        }
        _ => Err(format!("'{key}' is a value, not a table")),
    }
}

/// The value at a path; elements of arrays by name.
fn value_at<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (key, rest) = path.split_first()?;
    let next = table.get(key)?;
    match next {
        _ if rest.is_empty() => Some(next),
        Value::Table(t) => value_at(t, rest),
        Value::Array(items) => {
            let item = items.iter().find(|v| name(v) == rest.first().map(String::as_str))?;
            value_at(item.as_table()?, &rest[1..])
        }
        _ => None,
    }
}

/// Rewrites serde's message about an unknown key to suggest the nearest known one.
fn explain(message: &str) -> String {
    let Some((what, known)) = message.split_once(", expected ") else { return message.to_owned() };
    let mut typed = what.split('`').skip(1);
    let Some(typed) = typed.next().filter(|_| what.starts_with("unknown ")) else {
        return message.to_owned();
    };
    // serde quotes names in backticks, so every second piece is a name.
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match nearest(typed, known.iter().copied()) {
        Some(hint) => format!("{what}; did you mean `{hint}`?"),
        None => format!("{what}; known are {}", known.join(", ")),
    }
}

fn line_at(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// The line that contains the value of a path, or the longest existing prefix of the path.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let root = toml::de::DeTable::parse(text).ok()?;
    let mut at = None;
    let mut table = root.get_ref();
    let mut path = path;
    while let Some((key, rest)) = path.split_first() {
        let (k, value) = table.iter().find(|(k, _)| k.get_ref().as_ref() == *key)?;
        // The deepest key that exists so far.
        at = Some(k.span().start);
        path = rest;
        match value.get_ref() {
            toml::de::DeValue::Table(t) => table = t,
            toml::de::DeValue::Array(items) => {
                let Some((wanted, rest)) = path.split_first() else { break };
                let named = |v: &toml::de::DeValue<'_>| {
                    let t = v.as_table()?;
                    Some(t.get("name")?.get_ref().as_str()? == *wanted)
                };
                let index = wanted.parse::<usize>().ok();
                let found = items
                    .iter()
                    .enumerate()
                    .find(|(i, v)| named(v.get_ref()) == Some(true) || index == Some(*i));
                let Some((_, item)) = found else { break };
                at = Some(item.span().start);
                path = rest;
                let Some(t) = item.get_ref().as_table() else { break };
                table = t;
            }
            _ => break,
        }
    }
    at.map(|byte| line_at(text, byte))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
