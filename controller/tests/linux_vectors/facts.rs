//! Formulas of the kernel that the stack does not use, with the vectors they must match: facts to compare with (L4, L9
//! to L11).

use skbudget_controller::sizing::window_of;

/// `sk_stream_is_writeable` (L4): whether at most two thirds of the cap are queued.
const fn writable(sndbuf: u32, wmem: u64) -> bool {
    let sndbuf = sndbuf as u64;
    wmem < sndbuf && sndbuf - wmem >= wmem / 2
}

/// `tcp_space_from_win`.
fn space_of(window: u64, ratio: u32) -> u32 {
    u32::try_from(window * 256 / u64::from(ratio.max(1))).unwrap_or(u32::MAX)
}

/// Input of [`autotune`], once a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DrsInput {
    /// Bytes the reader took in this round trip.
    copied: u32,
    /// Bytes the reader took in the round trip before.
    before: u32,
    /// Round-trip time, microseconds.
    rtt_us: u32,
    /// Sequence span of out-of-order data.
    ofo_span: u32,
    /// Receive cap.
    rcvbuf: u32,
    /// Cap of autotuning.
    rmem_max: u32,
    /// Payload in 256ths of true size.
    ratio: u32,
}

/// `tcp_rcvbuf_low_rtt`, microseconds.
const LOW_RTT_US: u32 = 1000;

/// Dynamic right-sizing, `tcp_rcv_space_adjust` (L9): the new `rcvbuf` and `window_clamp`; `None`
/// when the reader did not speed up.
fn autotune(input: &DrsInput) -> Option<(u32, u32)> {
    let &DrsInput { copied, before, rtt_us, ofo_span, rcvbuf, rmem_max, ratio } = input;
    if copied <= before {
        return None;
    }
    // Twice what was taken: room for the data that arrives while a loss is repaired.
    let mut window = 2 * u64::from(copied);
    // Below 1 ms growth is in proportion to the round trip, so that the buffer is not inflated.
    // Otherwise growth follows the speed-up.
    window += if rtt_us < LOW_RTT_US {
        window * u64::from(rtt_us) / u64::from(LOW_RTT_US)
    } else {
        2 * window * u64::from(copied - before) / u64::from(before.max(1))
    };
    window += u64::from(ofo_span);
    let rcvbuf = rcvbuf.max(space_of(window, ratio).min(rmem_max));
    Some((rcvbuf, window_of(rcvbuf, ratio)))
}

/// `tcp_add_backlog` (L11): whether one more buffer may wait while `queued` bytes (backlog and
/// receive queue) are held.
const fn backlog_accepts(queued: u64, rcvbuf: u32, sndbuf: u32) -> bool {
    queued <= 2 * rcvbuf as u64 + sndbuf as u64 / 2 + 65_536
}

/// True size of a frame of at most a page that was read from a TAP device (L11).
const fn tap_truesize(frame: u32) -> u32 {
    (frame + 64).next_multiple_of(64) + 320 + 256
}

/// `tcp_init_mem` (L11): low, pressure and high in pages, from the number of free buffer pages.
fn default_tcp_mem(free_buffer_pages: u64) -> [u64; 3] {
    let pressure = (free_buffer_pages / 16).max(128);
    let low = pressure / 4 * 3;
    [low, pressure, 2 * low]
}

/// `tcp_out_of_memory` (L10): an orphan is reset when it queues more than `SOCK_MIN_SNDBUF` while the pool
/// is above high.
fn orphan_out_of_memory(wmem: u64, alloc: u64, high: u64) -> bool {
    wmem > 4608 && alloc > high
}

/// `tcp_too_many_orphans` (L10).
const fn too_many_orphans(orphans: u64, shift: u32, max: u64) -> bool {
    orphans << shift > max
}

#[test]
fn vectors_41_to_47_writable() {
    let table = [
        (41, 60_000, 40_000, true),
        (42, 60_000, 40_001, false),
        (43, 60_000, 40_002, false),
        (44, 61_440, 122_880, false),
        (45, 61_440, 40_960, true),
        (46, 4608, 3072, true),
        (47, 4608, 3074, false),
    ];
    for (number, sndbuf, wmem, expected) in table {
        assert_eq!(writable(sndbuf, wmem), expected, "vector {number}");
    }
}

#[test]
fn vectors_56_to_61_orphans() {
    for (number, wmem, alloc, killed) in
        [(56, 4609, 301, true), (57, 4608, 301, false), (58, 4609, 300, false)]
    {
        assert_eq!(orphan_out_of_memory(wmem, alloc, 300), killed, "vector {number}");
    }
    for (number, orphans, shift, many) in
        [(59, 70_000, 1, true), (60, 65_536, 1, false), (61, 70_000, 0, false)]
    {
        assert_eq!(too_many_orphans(orphans, shift, 131_072), many, "vector {number}");
    }
}

/// 84 and 85, as a pure decision and through a budget with a full pool.
#[test]
fn vectors_77_to_79_autotuning() {
    let drs = DrsInput {
        copied: 29_200,
        before: 14_600,
        rtt_us: 20_000,
        ofo_span: 0,
        rcvbuf: 131_072,
        rmem_max: 6_291_456,
        ratio: 128,
    };
    assert_eq!(autotune(&drs), Some((350_400, 175_200)), "vector 77");
    let short = DrsInput { rtt_us: 500, ..drs };
    assert_eq!(autotune(&short), Some((175_200, 87_600)), "vector 78");
    let holes = DrsInput { copied: 131_072, before: 65_536, ofo_span: 50_000, ..drs };
    assert_eq!(autotune(&holes), Some((1_672_864, 836_432)), "vector 79");
    assert_eq!(autotune(&DrsInput { copied: 14_600, ..drs }), None, "no faster");
}

#[test]
fn vectors_82_83_and_90_facts_of_the_kernel() {
    assert!(backlog_accepts(362_240, 131_072, 69_120), "vector 82");
    assert!(!backlog_accepts(362_241, 131_072, 69_120), "vector 82");
    for (frame, truesize) in [(54, 704), (67, 768), (118, 768), (590, 1280), (1514, 2176)] {
        assert_eq!(tap_truesize(frame), truesize, "vector 83, frame {frame}");
    }
    let table = [
        (6_141_904, [287_901, 383_869, 575_802]),
        (123_739, [5799, 7733, 11_598]),
        (1000, [96, 128, 192]),
    ];
    for (pages, expected) in table {
        assert_eq!(default_tcp_mem(pages), expected, "vector 90");
    }
}
