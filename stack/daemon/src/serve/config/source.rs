//! The text of a configuration, its values, and the lines of its keys.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::exit::Failure;
use crate::keys;

#[derive(Debug)]
pub(super) struct Source<'a> {
    /// Name of the file in messages.
    origin: &'a str,
    text: &'a str,
    /// As `root`, with the places in the text.
    places: Spanned<DeTable<'a>>,
    root: Map<String, Value>,
}

/// A key of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    table: &'a str,
    /// Index in an array of tables.
    index: Option<usize>,
    /// May be missing in the table: the place is then the table itself.
    key: &'a str,
}

impl<'a> Place<'a> {
    /// A key of a table that is not in an array.
    pub(super) fn new(table: &'a str, key: &'a str) -> Self {
        Self { table, index: None, key }
    }

    /// The same key in the table of that index.
    pub(super) fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }
}

impl<'a> Source<'a> {
    /// Parses the text. An error names its line.
    pub(super) fn parse(origin: &'a str, text: &'a str) -> Result<Self, Failure> {
        let wrong = |e: &toml::de::Error| {
            let line = e.span().map(|span| format!(":{}", line_at(text, span.start)));
            Failure::usage(format!("{origin}{}: {}", line.unwrap_or_default(), e.message()))
        };
        // Parsed twice: the values that serde makes have no places.
        let places = DeTable::parse(text).map_err(|e| wrong(&e))?;
        let root = toml::from_str(text).map_err(|e| wrong(&e))?;
        Ok(Self { origin, text, places, root })
    }

    /// Refuses other tables than those.
    pub(super) fn check_tables(&self, allowed: &[&str]) -> Result<(), Failure> {
        let checked = keys::parse::<Value>(&self.root, allowed);
        checked.map(drop).map_err(|e| self.wrong(Place::new(&e.key, ""), &e.message))
    }

    /// The table of that name; the file may have none.
    pub(super) fn table<T: DeserializeOwned>(
        &self,
        name: &str,
        allowed: &[&str],
    ) -> Result<T, Failure> {
        let none = Map::new();
        let table = match self.root.get(name) {
            None => &none,
            Some(Value::Object(table)) => table,
            Some(_) => {
                let message = format!("{name}: must be a table: [{name}]");
                return Err(self.wrong(Place::new(name, ""), &message));
            }
        };
        let parsed = keys::parse(table, allowed);
        parsed.map_err(|e| self.wrong(Place::new(name, &e.key), &e.message))
    }

    /// The number of tables in an array of tables.
    pub(super) fn entries(&self, name: &str, most: usize) -> Result<usize, Failure> {
        let wrong = |message: String| Err(self.wrong(Place::new(name, ""), &message));
        match self.root.get(name) {
            None => Ok(0),
            Some(Value::Array(all)) if !all.iter().all(Value::is_object) => {
                wrong(format!("{name}: must be an array of tables: [[{name}]]"))
            }
            Some(Value::Array(all)) if all.len() > most => {
                wrong(format!("{name}: at most {most} are allowed"))
            }
            Some(Value::Array(all)) => Ok(all.len()),
            Some(_) => wrong(format!("{name}: must be an array of tables: [[{name}]]")),
        }
    }

    /// One table of an array of tables.
    pub(super) fn entry<T: DeserializeOwned>(
        &self,
        name: &str,
        index: usize,
        allowed: &[&str],
    ) -> Result<T, Failure> {
        let none = Map::new();
        let table = self.root.get(name).and_then(|all| all.get(index)?.as_object());
        let parsed = keys::parse(table.unwrap_or(&none), allowed);
        parsed.map_err(|e| self.wrong(Place::new(name, &e.key).at(index), &e.message))
    }

    /// An error at that place, with its line.
    pub(super) fn wrong(&self, place: Place<'_>, message: &str) -> Failure {
        let line = self.line(place).map(|line| format!(":{line}")).unwrap_or_default();
        // About the table itself, the message names it.
        let within = match place.index.is_some() || !place.key.is_empty() {
            true => format!("[{}] ", place.table),
            false => String::new(),
        };
        Failure::usage(format!("{}{line}: {within}{message}", self.origin))
    }

    /// The line of the key, or of its table where the table has no such key.
    fn line(&self, place: Place<'_>) -> Option<usize> {
        let (name, value) = self.places.get_ref().get_key_value(place.table)?;
        let (start, table) = match (place.index, value.get_ref()) {
            (Some(index), DeValue::Array(all)) => {
                let table = all.get(index)?;
                (table.span().start, table.get_ref().as_table())
            }
            (_, value) => (name.span().start, value.as_table()),
        };
        let key = table.and_then(|table| table.get_key_value(place.key));
        Some(line_at(self.text, key.map_or(start, |(key, _)| key.span().start)))
    }
}

/// The number of the line that contains the byte, from 1 on.
fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
