//! The steps around the kernel's functions: what they are given, and what follows from their results.

use skbudget_controller::{CHUNK_SIZE, RxKind};

use super::*;
use crate::queue::chunk::PAYLOAD;
use crate::queue::tests::{Memory, NOW};
use crate::test_budget::Setting;

const MSS: u32 = 1460;

/// The receive half of one flow and the memory of two.
struct Receiver {
    rcv: Rcv,
    mem: Memory,
}

impl Receiver {
    /// The whole queue may be filled, whatever is advertised.
    fn new(setting: Setting) -> Self {
        let (mut rcv, mut mem) = (Rcv::new(MSS, 7), Memory::new(setting));
        rcv.q.open(400_000, &mut mem.cx());
        Self { rcv, mem }
    }

    /// Stores `chunks` full slots from slot `at` on, counted from RCV.NXT. Returns the slots that were refused.
    fn store(&mut self, at: usize, chunks: usize) -> usize {
        let data = vec![0; chunks * PAYLOAD];
        let offset = (at * PAYLOAD) as u64;
        self.rcv.store_or_prune(offset, &data, &mut self.mem.cx()).refused as usize / PAYLOAD
    }

    /// Chunks in order and out of order.
    fn held(&self) -> (u64, u64) {
        (self.mem.ledger.rmem() / CHUNK_SIZE, self.mem.ledger.ofo() / CHUNK_SIZE)
    }

    fn counters(&self) -> [u64; 3] {
        let counters = self.mem.budget.member_stats(self.mem.member).counters;
        [Counter::PruneCalled, Counter::OfoPruned, Counter::RcvPruned].map(|c| counters[c as usize])
    }

    fn end(mut self) {
        self.rcv.q.clear(&mut self.mem.pool);
        self.mem.end();
    }
}

#[test]
fn the_window_is_half_of_the_free_space_in_units_of_the_scale() {
    let mut flow = Receiver::new(Setting::Linux);
    // (chunks that arrive, RCV.NXT, window)
    for (chunks, nxt, window) in [
        // rcv_ssthresh bounds it, rounded up to 128.
        (0, 0, 65_536),
        (15, 15 * 4032, (131_072 - 15 * 4096) / 2),
        (8, 23 * 4032, (131_072 - 23 * 4096) / 2),
        (4, 27 * 4032, (131_072 - 27 * 4096) / 2),
    ] {
        flow.store(0, chunks);
        flow.rcv.select_window(&mut flow.mem.cx());
        assert_eq!((flow.rcv.q.nxt(), flow.rcv.wnd()), (nxt, window), "{chunks} chunks more");
    }
    flow.rcv.ssthresh = 5000;
    flow.rcv.select_window(&mut flow.mem.cx());
    assert_eq!(flow.rcv.wnd(), 10_240, "a smaller bound does not take the window back");
    flow.rcv.on_nomem();
    flow.rcv.select_window(&mut flow.mem.cx());
    assert_eq!(flow.rcv.wnd(), 0, "a refusal takes it back");
    flow.end();
}

#[test]
fn refused_data_displaces_under_pressure_all_that_is_beyond_it() {
    let mut flow = Receiver::new(Setting::LinuxTiny);
    assert_eq!(flow.store(0, 1), 0);
    // 13 pages are not yet over the pressure threshold.
    assert_eq!(flow.store(1, 12), 0);
    assert_eq!((flow.held(), flow.counters()), ((1, 12), [0, 0, 0]));
    assert_eq!(flow.store(0, 1), 0, "stored after pruning");
    assert_eq!((flow.held(), flow.counters()), ((2, 0), [1, 1, 0]));
    assert!(!flow.rcv.q.has_holes());
    flow.end();
}

#[test]
fn refused_data_beyond_all_other_displaces_nothing() {
    let mut flow = Receiver::new(Setting::LinuxTiny);
    assert_eq!(flow.store(0, 1), 0);
    assert_eq!(flow.store(1, 12), 0);
    assert_eq!(flow.store(20, 2), 2);
    assert_eq!((flow.held(), flow.counters()), ((1, 12), [1, 0, 0]));
    flow.end();
}

#[test]
fn over_rcvbuf_and_above_low_an_eighth_is_dropped_and_the_window_is_two_segments() {
    let mut flow = Receiver::new(Setting::LinuxTiny);
    // The other flow keeps the pool between low (10 pages) and pressure (13).
    assert_eq!(flow.mem.budget.rx_fill(&mut flow.mem.other, 7, RxKind::InOrder, NOW), 7);
    assert_eq!(flow.store(1, 5), 0);
    flow.mem.ledger.set_rcvbuf(4 * 4096);
    assert_eq!(flow.store(0, 1), 0);
    // Five chunks were over the cap: one left, and the segment in order joined the other four.
    assert_eq!((flow.held(), flow.counters()), ((5, 0), [1, 1, 0]));
    assert_eq!((flow.rcv.ssthresh, flow.mem.ledger.rcvbuf()), (2 * MSS, 4 * 4096));
    flow.end();
}

#[test]
fn over_rcvbuf_and_below_low_the_cap_is_raised_to_what_is_held() {
    let mut flow = Receiver::new(Setting::Linux);
    assert_eq!(flow.store(1, 5), 0);
    flow.mem.ledger.set_rcvbuf(4 * 4096);
    assert_eq!(flow.store(0, 1), 0);
    assert_eq!((flow.held(), flow.counters()), ((6, 0), [1, 0, 0]));
    assert_eq!((flow.rcv.ssthresh, flow.mem.ledger.rcvbuf()), (65_535, 5 * 4096));
    flow.end();
}

#[test]
fn in_order_data_over_rcvbuf_is_refused_until_the_host_reads() {
    let mut flow = Receiver::new(Setting::LinuxTiny);
    assert_eq!(flow.store(0, 12), 0);
    flow.mem.ledger.set_rcvbuf(4 * 4096);
    assert_eq!(flow.store(0, 1), 1);
    assert_eq!((flow.held(), flow.counters()), ((12, 0), [1, 0, 1]));
    flow.rcv.q.consume(8 * PAYLOAD, &mut flow.mem.cx());
    assert_eq!(flow.store(0, 1), 0, "the kernel does not count the segment itself");
    flow.end();
}
