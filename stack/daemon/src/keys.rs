//! Objects with known keys, as the config and requests have them. An error names the key, what is wrong with it and
//! what is allowed.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A key with a value that is refused, or a key that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyError {
    /// As given; empty for an error of the whole object.
    pub(crate) key: String,
    /// A sentence that names the key.
    pub(crate) message: String,
    /// The key is not known; its value was not checked.
    pub(crate) unknown: bool,
}

/// Deserializes an object of which every key is in `allowed`. Each key must be optional for `T`.
pub(crate) fn parse<T: DeserializeOwned>(
    object: &Map<String, Value>,
    allowed: &[&str],
) -> Result<T, KeyError> {
    if let Some(key) = object.keys().find(|key| !allowed.contains(&key.as_str())) {
        let message = format!("{}: unknown key{}", shown(key), hint(key, allowed));
        return Err(KeyError { key: key.clone(), message, unknown: true });
    }
    let parsed = serde_json::from_value::<T>(Value::Object(object.clone()));
    parsed.map_err(|e| {
        // The error does not name the key: find the one that fails alone.
        let alone = |(key, value): (&String, &Value)| {
            let one = Map::from_iter([(key.clone(), value.clone())]);
            let error = serde_json::from_value::<T>(Value::Object(one)).err()?;
            Some((key.clone(), error))
        };
        let (key, error) = object.iter().find_map(alone).unwrap_or((String::new(), e));
        let message = format!("{}: {error}", shown(&key));
        KeyError { key, message, unknown: false }
    })
}

/// A key in a message. It may come from a client: of bounded length, control characters escaped.
fn shown(key: &str) -> String {
    const MAX: usize = 64;
    let short: String = key.chars().take(MAX).collect();
    let plain =
        !short.is_empty() && short.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if plain && short.len() == key.len() { short } else { format!("{short:?}") }
}

/// The end of a message about an unknown word: the most similar known one, and all of them.
pub(crate) fn hint(typed: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    match nearest(typed, known) {
        Some(near) => format!("; did you mean {near}? allowed: {all}"),
        None => format!("; allowed: {all}"),
    }
}

/// The known word most similar to the typed one, if any is similar.
fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    const LENGTH_MAX: usize = 64;
    if typed.len() > LENGTH_MAX {
        return None;
    }
    let (distance, word) = known.iter().map(|word| (distance(typed, word), *word)).min()?;
    // A word that differs in more than half of its letters is not similar.
    (distance <= typed.len().max(word.len()).div_ceil(2)).then_some(word)
}

/// Levenshtein distance; keeps one row of the table.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let cost = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::units::Bytes;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Pair {
        hard: Option<Bytes>,
        soft: Option<Bytes>,
    }

    fn pair(value: Value) -> Result<Pair, KeyError> {
        parse(value.as_object().unwrap(), &["hard", "soft"])
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_and_all_allowed() {
        let error = pair(json!({"hrad": 1})).unwrap_err();
        assert_eq!(error.message, "hrad: unknown key; did you mean hard? allowed: hard, soft");
        assert!(error.unknown);
        let far = pair(json!({"nothing_like_it": 1})).unwrap_err();
        assert_eq!(far.message, "nothing_like_it: unknown key; allowed: hard, soft");
        // A client may send any text.
        let hostile = pair(json!({ ("x\n".repeat(200)): 1 })).unwrap_err();
        assert!(hostile.message.len() < 300 && !hostile.message.contains('\n'), "{hostile:?}");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_key() {
        for (value, expected) in [
            (json!({"hard": 1, "soft": []}), "soft: invalid type: sequence"),
            (json!({"hard": "12x", "soft": 1}), "hard: unknown unit"),
            (json!({"hard": -1}), "hard: a size is not negative"),
            (json!({"soft": 1.5}), "soft: invalid type: floating point"),
        ] {
            let error = pair(value).unwrap_err();
            assert!(error.message.starts_with(expected), "{error:?}");
        }
        let both = pair(json!({"hard": "1MiB"})).unwrap();
        assert_eq!(both, Pair { hard: Some(Bytes(1 << 20)), soft: None });
    }
}
