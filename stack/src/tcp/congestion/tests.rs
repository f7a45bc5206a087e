//! Windows over time against the formulas of the RFCs.

use super::*;

const MSS: u32 = 1000;
const RTT: Duration = Duration::from_millis(100);

/// A flow that always fills its window and receives one ACK per segment.
struct Flow {
    cc: Congestion,
    now: Instant,
    una: Seq,
    rtt: Duration,
}

impl Flow {
    fn new(algorithm: Algorithm) -> Self {
        let cc = Congestion::new(algorithm, MSS, Seq(0));
        Self { cc, now: Instant::from_millis(1000), una: Seq(0), rtt: RTT }
    }

    /// One round trip.
    fn round(&mut self) {
        let segments = self.cc.cwnd / MSS;
        for _ in 0..segments {
            self.now = self.now + self.rtt / segments;
            self.una = self.una + MSS;
            let flight = self.cc.cwnd;
            self.ack(MSS, flight);
        }
    }

    fn ack(&mut self, bytes: u32, flight: u32) {
        let (una, nxt) = (self.una, self.una + self.cc.cwnd);
        let rtt = Some(self.rtt);
        let (srtt, mss, max, now) = (self.rtt, MSS, 1 << 30, self.now);
        self.cc.on_ack(&Acked { bytes, flight, una, nxt, rtt, srtt, mss, max, now });
    }

    fn mark_lost(&mut self) {
        let cwnd = self.cc.cwnd;
        self.cc.on_loss(cwnd, MSS, false);
        self.cc.cwnd = self.cc.ssthresh;
    }

    fn segments(&self) -> u32 {
        self.cc.cwnd / MSS
    }
}

#[test]
fn slow_start_doubles_each_round() {
    for algorithm in [Algorithm::Cubic, Algorithm::Reno] {
        let mut flow = Flow::new(algorithm);
        for expected in [10, 20, 40, 80, 160] {
            assert_eq!(flow.segments(), expected);
            flow.round();
        }
    }
}

#[test]
fn reno_halves_and_grows_by_a_segment_a_round() {
    let mut flow = Flow::new(Algorithm::Reno);
    flow.cc.cwnd = 200 * MSS;
    flow.mark_lost();
    assert_eq!(flow.segments(), 100);
    for i in 1..=20 {
        flow.round();
        assert!(flow.segments().abs_diff(100 + i) <= 1, "{} after {i} rounds", flow.segments());
    }
}

#[test]
fn cubic_comes_back_to_the_lost_window_after_k_and_is_flat_there() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.cc.cwnd = 1000 * MSS;
    flow.mark_lost();
    assert_eq!(flow.segments(), 700);
    // K = cbrt(300 / 0.4) = 9.09 s.
    let began = flow.now;
    let mut at = vec![];
    for _ in 0..150 {
        flow.round();
        let t = flow.now.since(began).as_secs_f64();
        let curve = 0.4 * (t - 9.086).powi(3) + 1000.0;
        let got = f64::from(flow.segments());
        assert!((got - curve).abs() < 15.0, "{got} at {t} s, {curve} expected");
        at.push(got);
    }
    let steps = |from: usize| at[from + 5] - at[from];
    assert!(steps(88) < steps(5) / 10.0, "flat at the plateau");
    assert!(steps(140) > 5.0 * steps(95), "and steeper beyond it");
}

#[test]
fn cubic_is_never_below_reno_on_a_short_path() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.rtt = Duration::from_millis(1);
    flow.cc.cwnd = 100 * MSS;
    flow.mark_lost();
    assert_eq!(flow.segments(), 70);
    // RFC 9438 section 4.3: 0.529 segments a round up to the window of the loss, then one a round.
    for _ in 0..56 {
        flow.round();
    }
    assert!((98..=101).contains(&flow.segments()), "{}", flow.segments());
    for _ in 0..20 {
        flow.round();
    }
    assert!((116..=122).contains(&flow.segments()), "{}", flow.segments());
}

#[test]
fn a_second_loss_below_the_first_gives_room() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.cc.cwnd = 1000 * MSS;
    flow.mark_lost();
    flow.mark_lost();
    assert_eq!(flow.segments(), 490);
    // Fast convergence puts the plateau at W_max = 0.85 x 700.
    for _ in 0..80 {
        flow.round();
    }
    assert!((585..=612).contains(&flow.segments()), "{}", flow.segments());
}

#[test]
fn a_window_that_is_not_used_does_not_grow_and_its_time_does_not_count() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.cc.cwnd = 1000 * MSS;
    flow.mark_lost();
    flow.round();
    let before = flow.segments();
    for _ in 0..1000 {
        flow.now = flow.now + RTT;
        flow.una = flow.una + MSS;
        flow.ack(MSS, 10 * MSS);
    }
    assert_eq!(flow.segments(), before);
    flow.round();
    assert!(flow.segments() < before + 30, "a hundred seconds later: {}", flow.segments());
}

#[test]
fn after_a_timeout_the_curve_begins_where_slow_start_ended() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.cc.cwnd = 1000 * MSS;
    flow.cc.on_loss(1000 * MSS, MSS, true);
    flow.cc.cwnd = MSS;
    while flow.cc.cwnd < flow.cc.ssthresh {
        flow.round();
    }
    let began = flow.segments();
    assert!((700..1400).contains(&began), "{began}");
    for _ in 0..20 {
        flow.round();
    }
    assert!(flow.segments() >= began && flow.segments() < began + 20);
}

#[test]
fn slow_start_ends_when_round_trips_grow_and_goes_on_when_they_shrink_again() {
    let mut flow = Flow::new(Algorithm::Cubic);
    flow.round();
    flow.round();
    flow.rtt = RTT + Duration::from_millis(13);
    flow.round();
    flow.round();
    // RFC 9406: conservative slow start, a quarter as fast, for five rounds; then congestion avoidance.
    let slow = flow.segments();
    assert!(slow < 160, "{slow}");
    let mut hiccup = Flow { cc: flow.cc, now: flow.now, una: flow.una, rtt: RTT };
    for _ in 0..5 {
        flow.round();
    }
    assert!(flow.cc.ssthresh < u32::MAX, "left slow start at {}", flow.segments());
    for _ in 0..3 {
        hiccup.round();
    }
    assert_eq!(hiccup.cc.ssthresh, u32::MAX);
    assert!(hiccup.segments() > 3 * slow, "{slow}, then {}", hiccup.segments());
}

#[test]
fn undo_puts_everything_back() {
    for algorithm in [Algorithm::Cubic, Algorithm::Reno] {
        let mut flow = Flow::new(algorithm);
        flow.cc.cwnd = 300 * MSS;
        let before = flow.cc;
        flow.mark_lost();
        flow.cc.undo(before);
        assert_eq!((flow.cc.cwnd, flow.cc.ssthresh), (300 * MSS, u32::MAX));
        // Not below the window grown in the meantime.
        flow.cc.cwnd = 400 * MSS;
        flow.cc.undo(before);
        assert_eq!(flow.segments(), 400);
    }
}
