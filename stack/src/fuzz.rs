//! What the fuzzers of `stack/fuzz` run. It is in the library so that `cargo test` replays the committed inputs through
//! the very same code, with the one toolchain there is.
//!
//! An input is a script: bytes are taken from its front, and when none are left the script is over. Whatever it says,
//! no frame that leaves may be malformed, every byte relayed must be the one that was sent at that place, usage never
//! passes the hard limit, and at the end nothing is held for anybody.

mod bench;
mod device;
mod fragments;
mod host;
mod script;

use crate::segment::Options;
use bench::{Bench, Plan};
use fragments::Fragments;
use script::Script;

/// A target: fails by a panic.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and of the folder of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("options", options),
    ("reassembly", reassembly),
    ("segment", segment),
    ("sequence", sequence),
];

/// Operations of one script: longer ones are slow and find nothing more.
const OPERATIONS_MAX: usize = 256;

/// Frames of any content, some of them with headers that were put right.
pub fn frame(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new(Plan::take(&mut script));
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        bench.any_frame(&mut script);
        bench.check();
    }
    bench.end();
}

/// One option list of a segment: parsed, and what we would say ourselves said again.
pub fn options(input: &[u8]) {
    let parsed = Options::parse(input);
    assert!(parsed.wscale.is_none_or(|shift| shift <= 14), "RFC 7323 section 2.3");
    let hello = Options { sack: [None; 3], ..parsed };
    let later = Options { ts: parsed.ts, sack: parsed.sack, ..Options::default() };
    for said in [hello, later] {
        let mut bytes = [0; 40];
        let len = said.emit(&mut bytes);
        assert!(len == said.len() && len.is_multiple_of(4));
        assert_eq!(Options::parse(&bytes[..len]), said);
    }
}

/// Fragments of both families: what is whole is what was sent, and all memory comes back.
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

/// Segments for flows that are established: the script begins behind the handshake.
pub fn segment(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new(Plan::take(&mut script));
    bench.handshake(&mut script);
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        match script.below(8) {
            0 => bench.pass(&mut script),
            1 => bench.host_event(&mut script),
            _ => bench.segment(&mut script),
        }
        bench.check();
    }
    bench.end();
}

/// Frames, events of the host and steps of time, in any order, from nothing.
pub fn sequence(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new(Plan::take(&mut script));
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        match script.below(12) {
            0 => bench.pass(&mut script),
            1..=3 => bench.host_event(&mut script),
            4 => {
                bench.syn(&mut script);
            }
            5 => bench.accept(&mut script),
            6 => bench.handshake(&mut script),
            7 => bench.device_room(&mut script),
            8 => bench.any_frame(&mut script),
            _ => bench.segment(&mut script),
        }
        bench.check();
    }
    bench.end();
}
