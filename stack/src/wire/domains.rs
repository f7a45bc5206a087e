//! Search domains in the form of DNS messages (RFC 1035 section 3.1), without compression.

/// Longest label and longest name, bytes (RFC 1035 section 2.3.4).
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 255;

/// The domains one after another, as far as `most` bytes hold whole ones. Those that are no names are omitted.
pub(crate) fn write(domains: &[String], most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for domain in domains {
        match name(domain) {
            Some(name) if bytes.len() + name.len() <= most => bytes.extend(name),
            Some(_) => break,
            None => {}
        }
    }
    bytes
}

/// One name; `None`: it is none.
fn name(domain: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // The dot of the root is optional.
    for label in domain.strip_suffix('.').unwrap_or(domain).split('.') {
        if label.is_empty() || label.len() > LABEL_MAX {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_with_their_lengths() {
        let domains = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(write(&domains(&["a.example."]), 100), b"\x01a\x07example\0");
        let two = domains(&["a.example", "b"]);
        assert_eq!(write(&two, 100), b"\x01a\x07example\0\x01b\0");
        assert_eq!(write(&two, 13), b"\x01a\x07example\0", "the second does not fit whole");
        let long = "x".repeat(64);
        assert_eq!(write(&domains(&["", ".", "a..b", &long, "b"]), 100), b"\x01b\0");
        let longest = vec!["y".repeat(63); 4].join(".");
        assert!(write(&[longest], 1000).is_empty(), "257 bytes");
    }
}
