//! Numbers in a scenario file: `"4MiB"`, `"100us"`, `"1Gbit"`, `300`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::units::Unit;

/// Accepts a whole number or a text with a unit.
struct Value(Unit);

impl Visitor<'_> for Value {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Unit::Count => "a whole number",
            Unit::Bytes => "a size like \"4MiB\"",
            Unit::Nanos => "a time like \"100us\"",
            Unit::BitsPerSecond => "a rate like \"100Mbit\"",
            Unit::Flag => "true or false",
        })
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        self.0.parse(text).map_err(E::custom)
    }
    fn visit_i64<E: Error>(self, n: i64) -> Result<u64, E> {
        // As text, so that a negative number gets the same error as in a string.
        self.visit_str(&n.to_string())
    }
    fn visit_u64<E: Error>(self, n: u64) -> Result<u64, E> {
        self.visit_str(&n.to_string())
    }
    fn visit_bool<E: Error>(self, b: bool) -> Result<u64, E> {
        match self.0 {
            Unit::Flag => Ok(u64::from(b)),
            _ => self.visit_str(&b.to_string()),
        }
    }
}

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident: $unit:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(pub(crate) u64);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Value(Unit::$unit)).map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&Unit::$unit.show(self.0))
            }
        }
    )* };
}

values! {
    /// A count.
    Count: Count;
    /// Bytes.
    Bytes: Bytes;
    /// Nanoseconds.
    Time: Nanos;
    /// Bits per second.
    Rate: BitsPerSecond;
    /// 0 or 1.
    Flag: Flag;
}

/// The number of a value and the unit it is written in, for the record of parameters.
pub(super) fn guess(value: &toml::Value) -> Option<(u64, Unit)> {
    match value {
        toml::Value::Integer(n) => u64::try_from(*n).ok().map(|n| (n, Unit::Count)),
        toml::Value::Boolean(b) => Some((u64::from(*b), Unit::Flag)),
        toml::Value::String(text) => {
            // Count first: digits without a unit are a count, not bytes.
            let units = [Unit::Count, Unit::Flag, Unit::Nanos, Unit::BitsPerSecond, Unit::Bytes];
            units.iter().find_map(|u| u.parse(text).ok().map(|n| (n, *u)))
        }
        _ => None,
    }
}
