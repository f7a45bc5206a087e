use super::*;
use crate::measure::hdr;
use crate::measure::result::{ProbePhase, Quantile};

const MS: u64 = 1_000_000;

fn phase(start_ms: u64, end_ms: u64) -> Phase {
    Phase { name: "p".to_owned(), start_ns: start_ms * MS, end_ns: end_ms * MS }
}

/// Within 1 part in 1000 (three digits).
fn close_to(q: Option<Quantile>, ns: u64) {
    let q = q.expect("there are samples");
    assert!(!q.at_least, "{q:?}");
    assert!(q.ns.abs_diff(ns) <= ns / 900, "{q:?} is not {ns}");
}

/// The oracle of a frozen server: frozen for F within T at a constant rate; every request due in the freeze completes
/// at its end. The q quantile of the response is F - (1-q) T as long as that is positive.
#[test]
fn freeze_oracle() {
    let (t, freeze) = (30_000, 1_000);
    let mut log = ProbeRecorder::new(&[phase(0, t)], 10_000 * MS);
    let thaw = 20_000;
    for i in 0..t {
        log.intend(i, i * MS);
        let frozen = (thaw - freeze..thaw).contains(&i);
        if !frozen {
            log.complete(i, i * MS + 2_000);
        }
        if i == thaw {
            (thaw - freeze..thaw).for_each(|id| log.complete(id, thaw * MS));
        }
    }
    log.close(0, t * MS);
    let latency = &log.latencies()[0];
    close_to(latency.quantile(0.99), 700 * MS);
    close_to(latency.quantile(0.97), 100 * MS);
    close_to(latency.quantile(0.999), 970 * MS);
    close_to(latency.quantile(0.5), 2_000);
    let s = latency.summary();
    assert_eq!((s.intended, s.completed, s.delivered_ppm), (t, t, Some(1_000_000)));
    assert_eq!(s.max, Some(Quantile::exact(freeze * MS)));
}

/// Never served: nothing is delivered, and every percentile is only a lower bound.
#[test]
fn full_starvation_oracle() {
    let mut log = ProbeRecorder::new(&[phase(0, 2000)], 100 * MS);
    (0..2000).for_each(|i| log.intend(i, i * MS));
    log.close(0, 2000 * MS);
    let s = log.latencies()[0].summary();
    assert_eq!((s.intended, s.completed, s.outstanding), (2000, 0, 2000));
    assert_eq!(s.delivered_ppm, Some(0));
    let p50 = s.p50.unwrap();
    assert!(p50.at_least && p50.ns.abs_diff(1000 * MS) <= 3 * MS, "{p50:?}");
    assert_eq!(s.max, Some(Quantile { ns: 2000 * MS, at_least: true, at_most_ns: None }));
}

/// The example at the head of the module.
#[test]
fn a_percentile_is_between_waiting_times_and_completed_requests() {
    let mut log = ProbeRecorder::new(&[phase(0, 100)], 100 * MS);
    let came = [1, 2, 2, 3, 5, 5, 7, 8];
    for (id, ms) in (0u64..).zip(came) {
        log.intend(id, 0);
        log.complete(id, ms * MS);
    }
    for (id, waited) in (100u64..).zip([4, 6, 9]) {
        log.intend(id, (9 - waited) * MS);
    }
    log.close(0, 9 * MS);
    let latency = &log.latencies()[0];
    let of = |q: f64| {
        let q = latency.quantile(q).unwrap();
        let ms = |ns: u64| (ns + MS / 2) / MS;
        (ms(q.ns), q.at_least, q.at_most_ns.map(ms))
    };
    assert_eq!(of(0.5), (5, false, None));
    assert_eq!(of(0.6), (5, true, Some(7)));
    assert_eq!(of(0.9), (8, true, None));
    assert_eq!(of(1.0), (9, true, None));
}

/// Slow responses first, then requests with a short waiting time.
#[test]
fn percentiles_rise_with_their_rank_whatever_is_missing() {
    let mut log = ProbeRecorder::new(&[phase(0, 3000)], 100 * MS);
    for i in 0..3000 {
        log.intend(i, i * MS);
        if i < 1700 {
            log.complete(i, i * MS + (300 + i * 7 % 800) * MS);
        }
    }
    log.close(0, 3000 * MS);
    let s = log.latencies()[0].summary();
    let [p50, p99, max] = [s.p50, s.p99, s.max].map(|q| q.expect("there are samples"));
    assert!(p50.ns <= p99.ns && p99.ns <= max.ns, "{p50:?} {p99:?} {max:?}");
    assert!(p50.at_least && p50.at_most_ns.is_some_and(|ns| ns >= p50.ns), "{p50:?}");
    for pair in s.spectrum.windows(2) {
        assert!(pair[0].ns <= pair[1].ns && pair[0].count <= pair[1].count, "{pair:?}");
    }
    for (ppb, q) in [(500_000_000, s.p50), (990_000_000, s.p99), (999_000_000, s.p999)] {
        let row = s.spectrum.iter().find(|r| r.quantile_ppb == ppb).expect("a row");
        assert_eq!(Some(row.ns), q.map(|q| q.ns));
    }
}

#[test]
fn completed_requests_rank_below_missing_ones() {
    let mut log = ProbeRecorder::new(&[phase(0, 1000)], 100 * MS);
    for i in 0..100 {
        log.intend(i, i * MS);
        if i < 90 {
            log.complete(i, i * MS + 5 * MS);
        }
    }
    // A bound far below the completed requests is not a short latency.
    log.close(0, 100 * MS);
    let latency = &log.latencies()[0];
    close_to(latency.quantile(0.9), 5 * MS);
    assert!(latency.quantile(0.91).unwrap().at_least);
}

#[test]
fn every_probe_is_counted_once() {
    let mut log = ProbeRecorder::new(&[phase(0, 100), phase(200, 300)], 100 * MS);
    for i in 0..400u64 {
        log.intend(i, i * MS);
        match i % 5 {
            0 => log.shed(i),
            1 => log.failed(i),
            2 => {}
            _ => log.complete(i, (i + 1) * MS),
        }
        if i == 110 {
            log.close(0, i * MS);
        }
    }
    // Responses after the closing change nothing.
    log.complete(2, 390 * MS);
    log.close(1, 310 * MS);
    for latency in log.latencies() {
        let s = latency.summary();
        assert_eq!(s.intended, 100);
        assert_eq!(s.intended, s.completed + s.outstanding + s.shed + s.failed, "{s:?}");
        assert_eq!((s.completed, s.outstanding, s.shed, s.failed), (40, 20, 20, 20));
    }
}

#[test]
fn an_empty_phase_has_no_percentile() {
    let log = ProbeRecorder::new(&[phase(0, 100)], 100 * MS);
    let s = log.latencies()[0].summary();
    assert_eq!((s.p50, s.max, s.delivered_ppm), (None, None, None));
    assert!(s.spectrum.is_empty());
}

/// Encoded and merged, two phases equal one phase of all their requests.
#[test]
fn merged_phases_equal_one_phase() {
    let phases = [phase(0, 10_000_000)];
    let mut logs = [0, 1, 2].map(|_| ProbeRecorder::new(&phases, 1_000_000));
    for i in 0..3000u64 {
        for (n, log) in logs.iter_mut().enumerate() {
            if n == 2 || i % 2 == n as u64 {
                log.intend(i, i * 1000);
                if i % 100 != 7 {
                    log.complete(i, i * 1000 + 5000 + i * 31);
                }
            }
        }
    }
    let parts = logs.each_mut().map(|log| {
        log.close(0, 20_000_000);
        log.latencies()[0].summary()
    });
    let merged = PhaseLatency::merged(&parts[..2]).unwrap();
    assert_eq!(merged.intended, 3000);
    assert_eq!((merged.p50, merged.p99, merged.max), (parts[2].p50, parts[2].p99, parts[2].max));
    assert_eq!(merged.spectrum, parts[2].spectrum);
}

/// Blocks and percentiles contain the same samples, including requests that did not complete.
#[test]
fn blocks_add_up_to_the_phase() {
    let phases = [phase(0, 2_500), phase(2_500, 4_000)];
    let mut log = ProbeRecorder::new(&phases, 1_000 * MS);
    for i in 0..4_000 {
        log.intend(i, i * MS);
        if i % 10 > 0 {
            log.complete(i, i * MS + 400 * MS);
        }
        if i == 2_900 {
            log.close(0, i * MS);
        }
    }
    log.close(1, 4_400 * MS);
    let of = |p: usize| log.latencies()[p].summary();
    let starts = |p: &ProbePhase| p.intervals.iter().map(|i| i.start_ns / MS).collect::<Vec<_>>();
    assert_eq!(starts(&of(0)), [0, 1000, 2000]);
    let both = PhaseLatency::merged([&of(0), &of(1)]).unwrap();
    assert_eq!(starts(&both), [0, 1000, 2000, 3000, 4000]);
    for p in [of(0), of(1), both] {
        let sum = |texts: &[&String]| {
            let mut sum = Digits::Three.histogram();
            texts.iter().for_each(|t| sum.add(hdr::decode(t).unwrap().unwrap()).unwrap());
            sum
        };
        let blocks = sum(&p.intervals.iter().map(|i| &i.hdr).collect::<Vec<_>>());
        assert_eq!(blocks, sum(&[&p.hdr, &p.hdr_missing]));
        assert_eq!(blocks.len(), p.intended);
    }
}
