//! Vectors 65 to 76, 80, 81 and 86 to 89: windows, caps and pruning.

use skbudget_controller::sizing::{
    ClampInput, SndbufInput, WindowChoice, WindowInput, advertise, can_ingest, clamp_window,
    prune_ofo, select_window, sndbuf_expand,
};

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
fn vectors_80_and_81_the_send_cap() {
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
fn vectors_86_to_89_pruning_out_of_order_data() {
    let prune = |n: usize, pressure| prune_ofo(vec![2176; n], 100_000, 131_072, pressure);
    assert_eq!(prune(3, false), 3, "vector 86: the goal is not reached");
    assert_eq!(prune(10, false), 8, "vector 87");
    assert_eq!(prune(10, true), 10, "vector 88");
    assert_eq!(prune(0, false), 0, "vector 89: nothing lies beyond the segment");
    let over = prune_ofo(vec![2176; 20], 131_072 + 20_000, 131_072, false);
    assert_eq!(over, 16, "still over the cap after one eighth: another one");
}
