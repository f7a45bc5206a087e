//! The targets of the fuzzers in `stack/fuzz`. They are in the library so that `cargo test` replays the committed
//! inputs through the same code with the stable toolchain.
//!
//! An input is a script: operations consume bytes from its front, and it ends when the bytes are used up. For any
//! script these must hold: no frame that the stack sends is malformed, every byte is relayed to its place in the
//! stream, usage never exceeds the hard limit, and at the end no memory is charged and no chunk is held.

mod bench;
mod device;
mod fragments;
mod host;
mod script;

use crate::wire::segment::Options;
use bench::{Bench, Plan};
use fragments::Fragments;
use script::Script;

/// A fuzz target. It fails by a panic.
pub type Target = fn(&[u8]);

/// All targets, by the name of the binary and of its corpus folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("options", options),
    ("reassembly", reassembly),
    ("segment", segment),
    ("sequence", sequence),
];

/// Most operations of one script: longer scripts are slow and find no more.
const OPERATIONS_MAX: usize = 256;

/// Frames of any content, some with corrected headers.
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

/// The option list of one segment: parsed, then the options that the stack would send, emitted and parsed again.
pub fn options(input: &[u8]) {
    let parsed = Options::parse(input);
    assert!(parsed.wscale.is_none_or(|shift| shift <= 14), "RFC 7323 section 2.3");
    // A SYN has no SACK blocks; later segments have only timestamps and SACK blocks.
    let hello = Options { sack: [None; 3], ..parsed };
    let later = Options { ts: parsed.ts, sack: parsed.sack, ..Options::default() };
    for said in [hello, later] {
        let mut bytes = [0; 40];
        let len = said.emit(&mut bytes);
        assert!(len == said.len() && len.is_multiple_of(4));
        assert_eq!(Options::parse(&bytes[..len]), said);
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

/// Segments of established flows: the script starts after the handshake.
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

/// Frames, host events and time steps in any order, starting without a flow.
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
