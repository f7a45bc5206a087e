//! Keys from the bytes that a terminal sends for them.

/// A key that is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A printable character of ASCII.
    Char(char),
    /// Return.
    Enter,
    /// Not the start of a sequence.
    Escape,
    /// DEL or BS, which depends on the terminal.
    Backspace,
    /// An arrow.
    Up,
    /// An arrow.
    Down,
    /// As `Up`, further.
    PageUp,
    /// As `Down`, further.
    PageDown,
}

/// What arrived of a sequence, between two reads.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The start of a sequence.
    pending: Vec<u8>,
}

/// Longest sequence that a terminal sends for a key, bytes.
const SEQUENCE_MAX: usize = 16;

impl Keys {
    /// The keys of these bytes. A lone escape is the key of that name: a terminal sends the bytes of a sequence at
    /// once.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        self.pending.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut rest = self.pending.as_slice();
        while let Some((key, used)) = next(rest) {
            keys.extend(key);
            rest = &rest[used..];
        }
        // What is not a key after that length never becomes one.
        self.pending = if rest.len() < SEQUENCE_MAX { rest.to_vec() } else { Vec::new() };
        keys
    }
}

/// The first key of the bytes, if it is of use, and its length. `None`: the rest of a sequence has not arrived.
fn next(bytes: &[u8]) -> Option<(Option<Key>, usize)> {
    match bytes {
        [] => None,
        [0x1b] => Some((Some(Key::Escape), 1)),
        [0x1b, b'[' | b'O', rest @ ..] => {
            // Parameters, then the final byte (ECMA-48 section 5.4).
            let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte))?;
            let key = match &rest[..=end] {
                b"A" => Some(Key::Up),
                b"B" => Some(Key::Down),
                b"5~" => Some(Key::PageUp),
                b"6~" => Some(Key::PageDown),
                _ => None,
            };
            Some((key, end + 3))
        }
        [0x1b, ..] => Some((Some(Key::Escape), 1)),
        [b'\r' | b'\n', ..] => Some((Some(Key::Enter), 1)),
        [0x7f | 0x08, ..] => Some((Some(Key::Backspace), 1)),
        [byte @ 0x20..=0x7e, ..] => Some((Some(Key::Char(char::from(*byte))), 1)),
        [_, ..] => Some((None, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_may_arrive_in_parts() {
        let mut keys = Keys::default();
        assert_eq!(keys.read(b"a\x1b[A\x1bOB\r"), [Key::Char('a'), Key::Up, Key::Down, Key::Enter]);
        assert_eq!(keys.read(b"\x1b[5"), []);
        assert_eq!(keys.read(b"~\x7f"), [Key::PageUp, Key::Backspace]);
        assert_eq!(keys.read(b"\x1b"), [Key::Escape]);
        // Other keys and bytes are ignored.
        assert_eq!(keys.read(b"\x1b[1;5C\xc3\xa9\x01z"), [Key::Char('z')]);
        assert_eq!(keys.read(b"\x1b[1111111111111111111111"), []);
        assert_eq!(keys.read(b"q"), [Key::Char('q')]);
    }
}
