//! The query of a URI: `key=value` pairs, percent-encoded (RFC 3986 section 2.1), `+` for a space as forms have it.

use crate::api::ApiError;

/// Longest query, bytes.
const QUERY_MAX: usize = 4096;

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
}
