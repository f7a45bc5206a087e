//! Vectors 41 to 47 and 65 to 90: windows, caps and sizes.

use skbudget_controller::sizing::{
    ClampInput, DrsInput, SndbufInput, WindowChoice, WindowInput, advertise, autotune,
    backlog_accepts, can_ingest, clamp_window, default_tcp_mem, mss_for_reserve, prune_ofo,
    select_window, sndbuf_expand, ssthresh_under_pressure, tap_truesize, window_chunks, writable,
};

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

const WINDOW: WindowInput = WindowInput {
    rcvbuf: 131_072,
    rmem: 0,
    ratio: 128,
    scale: 7,
    mss: 1448,
    advmss: 1460,
    rcv_ssthresh: 65_535,
    window_clamp: u32::MAX,
    open: 0,
    pressure: false,
};

#[test]
fn vectors_65_to_73_windows() {
    let table = [
        (65, 0, false, 65_536, 65_535),
        (66, 80_000, false, 25_472, 65_535),
        (67, 80_000, true, 5888, 5840),
        (68, 60_000, true, 35_584, 65_535),
        (69, 122_880, false, 4096, 65_535),
        (70, 123_000, false, 0, 65_535),
    ];
    for (number, rmem, pressure, window, rcv_ssthresh) in table {
        let choice = select_window(&WindowInput { rmem, pressure, ..WINDOW });
        assert_eq!(choice, WindowChoice { window, rcv_ssthresh }, "vector {number}");
    }
    assert_eq!(advertise(5888, 30_000, 7, false, false), 30_080, "vector 71");
    assert_eq!(advertise(5888, 30_000, 7, true, false), 5888, "vector 72");
    assert_eq!(advertise(5888, 30_000, 7, false, true), 0, "vector 73");
}

#[test]
fn windows_without_scaling_are_whole_segments() {
    let input = WindowInput { scale: 0, mss: 1000, rcv_ssthresh: 5500, ..WINDOW };
    assert_eq!(select_window(&input).window, 5000);
    assert_eq!(select_window(&WindowInput { open: 5200, ..input }).window, 5200, "kept");
}

#[test]
fn vectors_74_to_76_ingest_and_clamp() {
    assert!(can_ingest(131_072, 131_072), "vector 74");
    assert!(!can_ingest(131_073, 131_072), "vector 74");
    let input = ClampInput {
        rmem: 140_000,
        rcvbuf: 131_072,
        rmem_max: 6_291_456,
        locked: false,
        pressure: false,
        below_low: true,
        rcv_ssthresh: 65_535,
        window_clamp: 65_536,
        advmss: 1460,
    };
    assert_eq!(clamp_window(&input), (140_000, 65_535), "vector 75");
    let squeezed = ClampInput { pressure: true, ..input };
    assert_eq!(clamp_window(&squeezed), (131_072, 2920), "vector 76");
    let squeezed = ClampInput { below_low: false, ..input };
    assert_eq!(clamp_window(&squeezed), (131_072, 2920), "vector 76");
}

#[test]
fn vectors_77_to_81_autotuning() {
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

    let send = SndbufInput {
        sndbuf: 16_384,
        mss: 1460,
        cwnd: 10,
        reordering: 3,
        header: 320,
        factor: 2,
        wmem_max: 4 << 20,
    };
    assert_eq!(sndbuf_expand(&send), 87_040, "vector 80");
    assert_eq!(sndbuf_expand(&SndbufInput { header: 192, ..send }), 46_080, "vector 80");
    let bbr = SndbufInput { header: 192, factor: 3, ..send };
    assert_eq!(sndbuf_expand(&bbr), 69_120, "vector 80");
    assert_eq!(sndbuf_expand(&SndbufInput { cwnd: 100, ..send }), 870_400, "vector 81");
    assert_eq!(sndbuf_expand(&SndbufInput { cwnd: 1000, ..send }), 4 << 20, "vector 81, cap");
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

#[test]
fn vectors_86_to_89_pruning_out_of_order_data() {
    let prune = |n: usize, pressure| prune_ofo(vec![2176; n], 100_000, 131_072, pressure);
    assert_eq!(prune(3, false), 3, "vector 86: the goal is not reached");
    assert_eq!(prune(10, false), 8, "vector 87");
    assert_eq!(prune(10, true), 10, "vector 88");
    assert_eq!(prune(0, false), 0, "vector 89: nothing lies beyond the segment");
    let over = prune_ofo(vec![2176; 20], 131_072 + 20_000, 131_072, false);
    assert_eq!(over, 16, "still over the cap after one eighth: another one");
}

/// The cost of A1, the MSS of K2 and the bound of H9.
#[test]
fn chunk_arithmetic_of_the_strict_rules() {
    assert_eq!(window_chunks(0, 0), 0);
    assert_eq!(window_chunks(4032, 0), 1);
    assert_eq!(window_chunks(4033, 0), 2);
    assert_eq!(window_chunks(129_024, 0), 32, "S4");
    assert_eq!(window_chunks(65_160, 0), 17, "S5");
    assert_eq!(window_chunks(4031, 4031), 0, "the tail chunk takes it");
    assert_eq!(mss_for_reserve(4096), 4032);
    assert_eq!(mss_for_reserve(69_632), 68_544);
    assert_eq!(ssthresh_under_pressure(4032, 4032, 1 << 20), 16_128);
    assert_eq!(ssthresh_under_pressure(4032, 4032, 100), 4032);
}
