//! The targets of the fuzzers in `stack/fuzz`. They are in the library so that `cargo test` replays the committed
//! inputs through the same code with the stable toolchain.
//!
//! An input is a script: operations consume bytes from its front, and it ends when the bytes are used up. For any
//! script these must hold: no frame that the stack sends is malformed, every byte is relayed to its place in the
//! stream, usage never exceeds the hard limit, and at the end no memory is charged and no chunk is held.

mod bench;
mod device;
mod host;

use skbudget_stack::fuzz::{OPERATIONS_MAX, Script};

use bench::{Bench, Plan};

pub use skbudget_stack::fuzz::{options, reassembly};

/// A fuzz target. It fails by a panic.
pub type Target = fn(&[u8]);

/// All targets, by the name of the binary and of its corpus folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("datagram", datagram),
    ("dhcp", dhcp),
    ("frame", frame),
    ("options", options),
    ("reassembly", reassembly),
    ("segment", segment),
    ("sequence", sequence),
];

/// Datagrams and questions of the guest, datagrams and answers of the host, errors, and time steps in any order.
pub fn datagram(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new(Plan::take(&mut script));
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        match script.below(10) {
            0 => bench.pass(&mut script),
            1 => bench.device_room(&mut script),
            2 => bench.any_frame(&mut script),
            3..=5 => bench.socket_event(&mut script),
            6 => bench.question(&mut script),
            _ => bench.datagram(&mut script),
        }
        bench.check();
    }
    bench.end();
}

/// Messages of DHCP and DHCPv6 clients, router solicitations, and time steps in any order.
pub fn dhcp(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new(Plan::take(&mut script));
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        match script.below(8) {
            0 => bench.pass(&mut script),
            1 => bench.device_room(&mut script),
            2 => bench.router_solicitation(&mut script),
            3..=5 => bench.dhcp(&mut script),
            _ => bench.dhcpv6(&mut script),
        }
        bench.check();
    }
    bench.end();
}

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
