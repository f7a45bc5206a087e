//! Sizes, times and rates as text for people, and integers inside.

use std::borrow::Cow;

/// The kind of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Count,
    Bytes,
    Nanos,
    BitsPerSecond,
    /// 0 or 1; `off` and `on`.
    Flag,
}

impl Unit {
    /// The suffix of a JSON key with this unit.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Count | Self::Flag => "",
            Self::Bytes => "_bytes",
            Self::Nanos => "_ns",
            Self::BitsPerSecond => "_bps",
        }
    }

    fn scales(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Count => &[("", 1)],
            Self::Flag => &[("off", 0), ("on", 1)],
            Self::Bytes => &[
                ("", 1),
                ("B", 1),
                ("KiB", 1 << 10),
                ("MiB", 1 << 20),
                ("GiB", 1 << 30),
                ("KB", 1000),
                ("MB", 1_000_000),
                ("GB", 1_000_000_000),
            ],
            Self::Nanos => &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)],
            Self::BitsPerSecond => {
                &[("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)]
            }
        }
    }

    /// Parses `12`, `4MiB`, `100us`, `1Gbit`, `on`. The error names the allowed units.
    pub(crate) fn parse(self, text: &str) -> Result<u64, String> {
        let names = || self.scales().iter().map(|s| s.0).filter(|s| !s.is_empty());
        if self == Self::Flag {
            return match text {
                "on" | "true" | "1" => Ok(1),
                "off" | "false" | "0" => Ok(0),
                _ => Err(format!("'{text}' must be 'on' or 'off'")),
            };
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| format!("'{text}' is not a whole number"))?;
        // `Mbit/s` and `Mbit` mean the same; a time or a size has no `/s`.
        let per_second = self == Self::BitsPerSecond;
        let unit = unit.trim();
        let unit = unit.strip_suffix("/s").filter(|_| per_second).unwrap_or(unit);
        let scale = self.scales().iter().find(|(name, _)| *name == unit);
        let Some((_, scale)) = scale else {
            let known = names().collect::<Vec<_>>().join(", ");
            return Err(if known.is_empty() {
                format!("'{text}' is not a whole number")
            } else {
                format!("'{text}' needs one of the units {known}")
            });
        };
        number.checked_mul(*scale).ok_or_else(|| format!("'{text}' is too large"))
    }

    /// The shortest exact text that `parse` reads back.
    pub(crate) fn show(self, value: u64) -> String {
        let scales = self.scales();
        if self == Self::Flag {
            return scales[usize::from(value != 0)].0.to_owned();
        }
        // The largest unit that divides the value exactly.
        let best = scales
            .iter()
            .filter(|(_, s)| value != 0 && value.is_multiple_of(*s))
            .max_by_key(|(_, s)| *s)
            .unwrap_or(&scales[0]);
        format!("{}{}", value / best.1, best.0)
    }
}

/// `938 Mbit/s`
pub(crate) fn rate(bits_per_second: u64) -> String {
    let (n, unit) = match bits_per_second {
        0 => return "0".to_owned(),
        b if b >= 1_000_000_000 => (b as f64 / 1e9, "Gbit/s"),
        b if b >= 1_000_000 => (b as f64 / 1e6, "Mbit/s"),
        b if b >= 1_000 => (b as f64 / 1e3, "kbit/s"),
        b => (b as f64, "bit/s"),
    };
    format!("{} {unit}", three(n))
}

pub(crate) fn bits_per_second(bytes: u64, ns: u64) -> u64 {
    (u128::from(bytes) * 8_000_000_000 / u128::from(ns.max(1))) as u64
}

/// `1.24 ms`
pub(crate) fn time(ns: u64) -> String {
    let (n, unit) = match ns {
        n if n >= 1_000_000_000 => (n as f64 / 1e9, "s"),
        n if n >= 1_000_000 => (n as f64 / 1e6, "ms"),
        n if n >= 1_000 => (n as f64 / 1e3, "us"),
        n => (n as f64, "ns"),
    };
    format!("{} {unit}", three(n))
}

/// A delay after an event: `1.24 ms`, `at once`, `never`
pub(crate) fn after(ns: Option<u64>) -> String {
    match ns {
        None => "never".to_owned(),
        Some(0) => "at once".to_owned(),
        Some(ns) => time(ns),
    }
}

/// `31.9 MiB`
pub(crate) fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 30 => format!("{} GiB", three(n as f64 / (1u64 << 30) as f64)),
        n if n >= 1 << 20 => format!("{} MiB", three(n as f64 / (1u64 << 20) as f64)),
        n if n >= 1 << 10 => format!("{} KiB", three(n as f64 / 1024.0)),
        n => format!("{n} B"),
    }
}

/// `2026-11-27 23:01 UTC`
pub(crate) fn date(unix_ms: u64) -> String {
    let (minutes, days) = (unix_ms / 60_000 % 1440, unix_ms / 86_400_000);
    // Days since 0000-03-01, in eras of 400 years with the same number of days each.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// A key of a result's parameters and its value, as they are typed: `rtt_ns` and 1000000 are `rtt` and `1ms`.
pub(crate) fn param(key: &str, value: u64) -> (String, String) {
    let units = [Unit::Bytes, Unit::Nanos, Unit::BitsPerSecond];
    let found = units.into_iter().find_map(|u| Some((u, key.strip_suffix(u.suffix())?)));
    let (unit, name) = found.unwrap_or((Unit::Count, key));
    (name.replace('_', "-"), unit.show(value))
}

/// `1.05x`
pub(crate) fn times(milli: u64) -> String {
    format!("{}.{:02}x", milli / 1000, milli % 1000 / 10)
}

/// `99.99 %`, rounded down.
pub(crate) fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

/// Characters of a user's text in a message.
const EXCERPT_MAX: usize = 200;

/// A text that is short enough for a message: its first characters, and `...` if there are more.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(EXCERPT_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Three significant digits.
fn three(n: f64) -> String {
    // The limits allow for rounding: 99.96 becomes 100, not 100.0.
    if n >= 99.95 {
        format!("{n:.0}")
    } else if n >= 9.995 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    }
}

/// The known word closest to the typed one, if any is close.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let best = known.into_iter().map(|k| (distance(typed, k), k)).min()?;
    // A word that differs in more than half of its letters is not similar.
    (best.0 <= typed.len().max(best.1.len()).div_ceil(2)).then_some(best.1)
}

/// A suffix for a message about an unknown word: a suggestion, or nothing.
pub(crate) fn hint<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, known).map_or_else(String::new, |near| format!("; did you mean '{near}'?"))
}

/// The same, but lists all known words if none is close.
pub(crate) fn hint_or_all<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    match hint(typed, known.clone()) {
        none if none.is_empty() => {
            format!("; known are {}", known.into_iter().collect::<Vec<_>>().join(", "))
        }
        near => near,
    }
}

/// Levenshtein distance; keeps one row of the table.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = corner + usize::from(ca != *cb);
            corner = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_value_parses_to_itself() {
        for (unit, value) in [
            (Unit::Bytes, 32 << 20),
            (Unit::Bytes, 1_000_000),
            (Unit::Bytes, 4097),
            (Unit::Nanos, 100_000),
            (Unit::Nanos, 0),
            (Unit::BitsPerSecond, 1_000_000_000),
            (Unit::Count, 300),
            (Unit::Flag, 1),
        ] {
            assert_eq!(unit.parse(&unit.show(value)), Ok(value), "{}", unit.show(value));
        }
        assert_eq!(Unit::Bytes.show(32 << 20), "32MiB");
        assert_eq!(Unit::BitsPerSecond.parse("10Gbit/s"), Ok(10_000_000_000));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        // 2000 is a leap year, 2100 is not.
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(951_868_799_999), "2000-02-29 23:59 UTC");
        assert_eq!(date(1_795_824_060_000), "2026-11-28 00:01 UTC");
        assert_eq!(date(4_107_542_400_000), "2100-03-01 00:00 UTC");
    }

    #[test]
    fn parameters_are_written_as_they_are_typed() {
        let of = |key, value| param(key, value);
        assert_eq!(of("rtt_ns", 1_000_000), ("rtt".to_owned(), "1ms".to_owned()));
        assert_eq!(of("hog_hard_bytes", 32 << 20), ("hog-hard".to_owned(), "32MiB".to_owned()));
        assert_eq!(of("rate_bps", 500_000_000), ("rate".to_owned(), "500Mbit".to_owned()));
        assert_eq!(of("victims", 4), ("victims".to_owned(), "4".to_owned()));
    }

    #[test]
    fn nonsense_is_refused_with_the_allowed_values() {
        assert!(Unit::Nanos.parse("5").unwrap_err().contains("ms"));
        assert!(Unit::Count.parse("many").is_err());
        assert!(Unit::Count.parse("-1").is_err());
        assert!(Unit::Bytes.parse("99999999999999GiB").unwrap_err().contains("too large"));
        assert!(Unit::Flag.parse("maybe").is_err());
        // Only a rate is per second, and only once.
        for (unit, text) in [
            (Unit::Nanos, "1ms/s"),
            (Unit::Bytes, "4MiB/s"),
            (Unit::Count, "5/s"),
            (Unit::BitsPerSecond, "1Gbit/s/s"),
        ] {
            assert!(unit.parse(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        let keys = ["victims", "hog-hard", "victim-hard", "rate"];
        assert_eq!(nearest("victim_hard", keys), Some("victim-hard"));
        assert_eq!(nearest("victms", keys), Some("victims"));
        assert_eq!(nearest("zzzzzzzzzz", keys), None);
    }

    #[test]
    fn people_read_three_digits() {
        assert_eq!(rate(938_400_000), "938 Mbit/s");
        assert_eq!(time(1_240_000), "1.24 ms");
        assert_eq!(bytes(33_500_000), "31.9 MiB");
        assert_eq!(rate(0), "0");
    }
}
