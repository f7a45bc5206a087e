//! The query of a URI: `key=value` pairs, percent-encoded (RFC 3986 section 2.1), `+` for a space as forms have it.

use serde::de::DeserializeOwned;
use serde_json::Map;

use crate::api::ApiError;
use crate::keys;

/// Longest query, bytes.
const QUERY_MAX: usize = 4096;

/// Parses a query into a value with those keys. Values are texts.
pub(super) fn parse<T: DeserializeOwned>(query: &str, allowed: &[&str]) -> Result<T, ApiError> {
    let mut object = Map::new();
    for (key, value) in pairs(query)? {
        // An unknown key is refused as such below, at a bounded length.
        if object.insert(key.clone(), value.into()).is_some() && allowed.contains(&key.as_str()) {
            let message = format!("{key}: given twice");
            return Err(ApiError::invalid("bad_query", message).key(key));
        }
    }
    keys::parse(&object, allowed).map_err(|e| {
        let code = if e.unknown { "unknown_key" } else { "bad_value" };
        ApiError::invalid(code, e.message).key(e.key)
    })
}

/// The pairs in their order. A key without `=` has an empty value.
pub(super) fn pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let bad = |why: String| ApiError::invalid("bad_query", format!("the query: {why}"));
    if query.len() > QUERY_MAX {
        return Err(bad(format!("longer than {QUERY_MAX} bytes")));
    }
    // `a&&b` has two pairs.
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decode = |text: &str| {
        decoded(text).ok_or_else(|| bad(format!("{text:?} is not percent-encoded UTF-8")))
    };
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

/// The text behind the encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded() {
        let found = pairs("a=b+c&d%3d=%C3%a9&&e").unwrap();
        let expected = [("a", "b c"), ("d=", "\u{e9}"), ("e", "")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(pairs("").unwrap(), []);
        for query in ["a=%", "a=%4", "a=%zz", "a=%ff", "%=b"] {
            assert_eq!(pairs(query).unwrap_err().body.code, "bad_query", "{query}");
        }
        assert!(pairs(&"a".repeat(QUERY_MAX + 1)).is_err());
    }

    #[test]
    fn keys_that_are_wrong_are_named() {
        use crate::flows::{Cursor, FlowQuery, QUERY_KEYS};
        let of = |query: &str| parse::<FlowQuery>(query, &QUERY_KEYS);
        let query = of("addr=fd00%3A%3a100&&after=t5&").unwrap();
        assert_eq!(query.addr, Some("fd00::100".parse().unwrap()));
        assert_eq!(query.after, Some(Cursor::Flows(5)));
        assert_eq!(of("").unwrap(), FlowQuery::default());
        for (query, code, key, expected) in [
            ("limit=1&limit=2", "bad_query", Some("limit"), "twice"),
            ("limit", "bad_value", Some("limit"), "1 to 1000"),
            ("limt=5", "unknown_key", Some("limt"), "did you mean limit?"),
            ("%ff=1", "bad_query", None, "UTF-8"),
            ("state=x", "bad_value", Some("state"), "unknown"),
        ] {
            let error = of(query).unwrap_err();
            assert_eq!((error.status, error.body.code.as_str()), (400, code), "{query}");
            assert_eq!(error.body.key.as_deref(), key, "{query}");
            assert!(error.body.message.contains(expected), "{query}: {error}");
        }
    }
}
