//! Parses and prints sizes, and describes limits that are invalid.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use skbudget_controller::{LimitError, PAGE_SIZE};

/// Suffixes by increasing size. A number without suffix is in bytes.
const SUFFIXES: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// End of every error message: the allowed forms.
const ALLOWED: &str = "a number of B, KiB, MiB, GiB, KB, MB or GB is allowed, e.g. 16MiB";

/// Parses sizes such as `64MiB`, `1.5 GB`, `4096`. The suffix may be in any case.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = (&text[..at], text[at..].trim());
    let known = SUFFIXES.iter().find(|(name, _)| name.eq_ignore_ascii_case(suffix));
    let Some((_, factor)) = known else {
        return Err(format!("unknown unit {suffix:?}: {ALLOWED}"));
    };
    // Integers first: f64 would round large ones.
    let parsed = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(*factor),
        Err(_) => number.parse::<f64>().ok().and_then(|n| scale(n, *factor)),
    };
    // Meters add sizes up: half of the range of 64 bits leaves room for the sum.
    parsed
        .filter(|bytes| *bytes < 1 << 63)
        .ok_or_else(|| format!("{text:?} is not a size: {ALLOWED}"))
}

/// `None` when the product does not fit or is no number of bytes.
fn scale(number: f64, factor: u64) -> Option<u64> {
    let bytes = number * factor as f64;
    (bytes.is_finite() && bytes >= 0.0 && bytes < 2f64.powi(64)).then_some(bytes as u64)
}

/// A size in the config or in JSON: a number of bytes, or a text for [`parse_size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size: a number of bytes, or a text such as \"16MiB\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
        // The same bound as that of a text.
        if bytes < 1 << 63 { Ok(Bytes(bytes)) } else { Err(E::custom("below 8 EiB is allowed")) }
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
        u64::try_from(bytes).map(Bytes).map_err(|_| E::custom("a size is not negative"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        parse_size(text).map(Bytes).map_err(E::custom)
    }
}

/// Prints a size in the largest binary unit that it is a multiple of.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// What is wrong with limits, and what is allowed.
pub(crate) fn describe(error: &LimitError) -> String {
    let size = |pages: u64| Size(pages.saturating_mul(PAGE_SIZE));
    match error {
        LimitError::Disorder { low, soft, hard } => {
            format!("low {} < soft {} < hard {} is needed", size(*low), size(*soft), size(*hard))
        }
        LimitError::TooSmall { hard_bytes, least_bytes } => {
            let (hard, least) = (Size(*hard_bytes), Size(*least_bytes));
            format!("hard {hard} is too small: at least {least} is needed")
        }
        LimitError::MinDoesNotFit { min_bytes, room_bytes } => {
            let (min, room) = (Size(*min_bytes), Size(*room_bytes));
            format!("min {min} does not fit: the level above has {room} free")
        }
        LimitError::MinAboveHard { min_bytes, hard_bytes } => {
            format!("min {} is above hard {}", Size(*min_bytes), Size(*hard_bytes))
        }
        LimitError::TooDeep => "budgets nest at most four levels deep".to_owned(),
        LimitError::ZeroWeight => "weight 0: at least 1 is allowed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_unit() {
        let cases = [
            ("4096", 4096),
            ("1B", 1),
            ("2KiB", 2048),
            ("2KB", 2000),
            ("16MiB", 16 << 20),
            ("16 mib", 16 << 20),
            ("3MB", 3_000_000),
            ("1.5GiB", 3 << 29),
            ("1GB", 1_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_is_allowed() {
        for text in
            ["", "MiB", "12 bananas", "-5", "1e9", "99999999999999999999", "9999999999GiB", "."]
        {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("allowed"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_in_whole_units() {
        let shown: Vec<_> = [0, 4096, 3 << 20, (3 << 20) + 1].map(|n| Size(n).to_string()).into();
        assert_eq!(shown, ["0B", "4KiB", "3MiB", "3145729B"]);
    }
}
