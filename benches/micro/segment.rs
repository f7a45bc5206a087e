//! One segment through a container's stack, in each direction, with and without accounting.
//!
//! `up`: a guest's frame is parsed, queued, written to the host socket, acknowledged when due. `down`: the host socket
//! is read, frames are sent, the guest's ACK arrives. The ends cost next to nothing ([`skbudget_benches::rig`]); these
//! numbers contain the stack's own copies, but not the kernel's.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skbudget_benches::Rig;
use skbudget_benches::rig::Accounting;

const SIZES: [(&str, usize); 2] = [("1448B", 1448), ("64KiB", 65_483)];

fn segment(c: &mut Criterion) {
    for (size, payload) in SIZES {
        for direction in ["up", "down"] {
            let mut group = c.benchmark_group(format!("{direction}/{size}"));
            group.throughput(Throughput::Bytes(payload as u64));
            for accounting in [Accounting::Strict, Accounting::Linux, Accounting::Unlimited] {
                let mut rig = Rig::new(accounting);
                let mut frame = Rig::data_frame(payload);
                group.bench_function(format!("{accounting:?}").to_lowercase(), |b| {
                    b.iter(|| {
                        if direction == "up" {
                            rig.up(&mut frame);
                        } else {
                            rig.down(payload);
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, segment);
criterion_main!(benches);
