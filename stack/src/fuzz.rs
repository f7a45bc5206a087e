//! Targets of the fuzzers in `stack/fuzz` for code that is private to this crate, and the scripts that all targets
//! read. The targets that drive a whole container are in the package `skbudget-sim`.

mod fragments;
mod script;

use crate::wire::segment::Options;
use fragments::Fragments;

pub use script::Script;

/// Most operations of one script: longer scripts are slow and find no more.
pub const OPERATIONS_MAX: usize = 256;

/// The option list of one segment: parsed, then the options that the stack would send, emitted and parsed again.
pub fn options(input: &[u8]) {
    let parsed = Options::parse(input);
    assert!(parsed.wscale.is_none_or(|shift| shift <= 14), "RFC 7323 section 2.3");
    // A SYN has no SACK blocks; later segments have only timestamps and SACK blocks.
    let hello = Options { sack: [None; 3], ..parsed };
    let later = Options { ts: parsed.ts, sack: parsed.sack, ..Options::default() };
    for sent in [hello, later] {
        let mut bytes = [0; 40];
        let len = sent.emit(&mut bytes);
        assert!(len == sent.len() && len.is_multiple_of(4));
        assert_eq!(Options::parse(&bytes[..len]), sent);
    }
}

/// Fragments of both families: a reassembled datagram equals the one sent, and all memory is uncharged at the end.
pub fn reassembly(input: &[u8]) {
    let mut script = Script::new(input);
    let mut fragments = Fragments::new(&mut script);
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        fragments.step(&mut script);
    }
    fragments.end();
}
