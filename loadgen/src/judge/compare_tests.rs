use super::*;
use crate::exit::Exit;
use crate::judge::metrics::Better;
use crate::judge::metrics::find;
use skbudget_sim::Rng;

/// A session of pairs with noise per run, a drift over the session, and occasional spikes, as on a shared runner.
struct Session {
    rng: Rng,
    noise: f64,
}

impl Session {
    fn new(seed: u64, noise: f64) -> Self {
        Self { rng: Rng::new(seed), noise }
    }

    /// Approximately standard normal (sum of 12 uniform values).
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.rng.below(1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0
    }

    fn run(
        &mut self,
        label: &str,
        metrics: &[&'static Metric],
        drift: f64,
        slower: f64,
    ) -> RunValues {
        let values = metrics.iter().map(|m| {
            let spike = if self.rng.below(20) == 0 { 0.3 } else { 0.0 };
            let noise = drift + self.noise * self.normal() + spike;
            let value = match m.better {
                Better::Smaller => 1e6 * noise.exp() * slower,
                Better::Bigger => 1e9 * (-noise).exp() / slower,
            };
            (("container".to_owned(), m.key), Reading { value, at_least: false })
        });
        let values = values.collect();
        RunValues { label: label.to_owned(), values, doubt: None }
    }

    fn pairs(
        &mut self,
        metrics: &[&'static Metric],
        n: usize,
        slower: f64,
    ) -> (Vec<RunValues>, Vec<RunValues>) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for i in 0..n {
            // ABBA: the order alternates, and time passes between the two runs.
            let at = |half: f64| 0.02 * (i as f64 + half);
            let (first, second) = (at(0.0), at(0.5));
            let (of_a, of_b) = if i % 2 == 0 { (first, second) } else { (second, first) };
            a.push(self.run("a", metrics, of_a, 1.0));
            b.push(self.run("b", metrics, of_b, slower));
        }
        (a, b)
    }
}

fn question(keys: &[&str]) -> Question {
    let metrics = keys.iter().map(|k| find(k).unwrap()).collect();
    Question { metrics, selected: true, margin: 0.05, both: false, seed: 1 }
}

const FOUR: &[&str] = &["goodput-up", "goodput-down", "p99-contended", "stall"];

/// The same build against itself, 200 sessions of 10 pairs and four metrics: at most 5 % report a regression.
#[test]
fn a_build_against_itself_is_seldom_a_regression() {
    let question = question(FOUR);
    for noise in [0.01, 0.05, 0.15] {
        let mut session = Session::new(21, noise);
        let alarms = (0..200).filter(|_| {
            let (a, b) = session.pairs(&question.metrics, 10, 1.0);
            paired(&a, &b, ("a", "b"), &question).exit == Exit::Regression.code()
        });
        let alarms = alarms.count();
        assert!(alarms <= 10, "{alarms} of 200 at noise {noise}");
    }
}

/// 10 % slower in all four metrics, at the noise of a quiet machine: at least 95 % of the sessions detect it.
#[test]
fn ten_percent_slower_is_found() {
    let question = question(FOUR);
    let mut session = Session::new(22, 0.02);
    let found = (0..200).filter(|_| {
        let (a, b) = session.pairs(&question.metrics, 10, 1.1);
        paired(&a, &b, ("a", "b"), &question).exit == Exit::Regression.code()
    });
    let found = found.count();
    assert!(found >= 190, "{found} of 200");
}

/// A change below the margin is not a change, an improvement fails only with `--both`, and noise does not pass.
#[test]
fn margin_improvement_and_doubt() {
    let mut q = question(&["p99-contended"]);
    let judge = |q: &Question, noise: f64, slower: f64| {
        let (a, b) = Session::new(5, noise).pairs(&q.metrics, 12, slower);
        let c = paired(&a, &b, ("a", "b"), q);
        (c.lines[0].judgement, c.exit)
    };
    assert_eq!(judge(&q, 0.002, 1.02), (Judgement::Same, 0));
    assert_eq!(judge(&q, 0.002, 0.8), (Judgement::Better, 0));
    assert_eq!(judge(&q, 0.5, 1.0), (Judgement::Unclear, 5));
    q.both = true;
    assert_eq!(judge(&q, 0.002, 0.8), (Judgement::Better, 4));
}

#[test]
fn too_few_pairs_are_refused() {
    let one = question(&["p99-contended"]);
    let run = |q: &Question, n: usize| {
        let (a, b) = Session::new(9, 0.0001).pairs(&q.metrics, n, 2.0);
        paired(&a, &b, ("a", "b"), q)
    };
    let five = run(&one, 5);
    assert_eq!(five.exit, 5);
    assert!(five.lines[0].reason.contains("at least 6"), "{}", five.lines[0].reason);
    assert_eq!(run(&one, 6).exit, 4);
    // Six pairs reach p = 0.03, which does not suffice for four metrics at once.
    let four = run(&question(FOUR), 6);
    assert_eq!(four.exit, 5);
    assert!(four.lines[0].reason.contains("fewer metrics"), "{}", four.lines[0].reason);
    assert_eq!(run(&question(FOUR), 8).exit, 4);
}

#[test]
fn more_runs_than_can_be_counted_out_are_refused() {
    let q = question(&["p99-contended"]);
    let (a, b) = Session::new(9, 0.0001).pairs(&q.metrics, 201, 2.0);
    for c in [paired(&a, &b, ("a", "b"), &q), unpaired(&a[..101], &b[..100], ("a", "b"), &q)] {
        assert_eq!(c.exit, 5);
        assert!(c.lines[0].reason.contains("at most 200"), "{}", c.lines[0].reason);
    }
    assert_eq!(paired(&a[..200], &b[..200], ("a", "b"), &q).exit, 4);
}

#[test]
fn a_run_in_doubt_takes_its_pair_with_it() {
    let q = question(&["p99-contended"]);
    let (mut a, b) = Session::new(9, 0.0001).pairs(&q.metrics, 6, 2.0);
    a[2].doubt = Some("generator's lag".to_owned());
    let c = paired(&a, &b, ("a", "b"), &q);
    assert_eq!((c.exit, c.runs_a), (5, 5));
    assert_eq!(c.discarded, ["a: generator's lag"]);
}

#[test]
fn independent_groups_of_runs_are_compared() {
    let q = question(&["p99-contended"]);
    let (a, b) = Session::new(9, 0.01).pairs(&q.metrics, 8, 1.3);
    assert_eq!(unpaired(&a, &b, ("a", "b"), &q).exit, 4);
    let (a, b) = Session::new(10, 0.005).pairs(&q.metrics, 8, 1.0);
    let c = unpaired(&a, &b, ("a", "b"), &q);
    assert_ne!(c.exit, 4, "{:?}", c.lines);
    assert_eq!(unpaired(&a[..5], &b, ("a", "b"), &q).exit, 5);
}

#[test]
fn no_metrics_is_no_pass() {
    let q = question(&[]);
    assert_eq!(paired(&[], &[], ("a", "b"), &q).exit, 5);
}

/// Runs in which one metric has one value, or only a lower bound.
fn bounded(values: &[(f64, bool)]) -> Vec<RunValues> {
    let run = |(value, at_least): &(f64, bool)| {
        let reading = Reading { value: *value, at_least: *at_least };
        let values = [(("container".to_owned(), "p99-contended"), reading)];
        RunValues { label: "r".to_owned(), values: values.into(), doubt: None }
    };
    values.iter().map(run).collect()
}

/// The value behind a bound may be any larger one: a bound of B never shows an improvement, one of A no regression.
#[test]
fn a_lower_bound_is_no_value() {
    use Judgement::{Better, Same, Unclear, Worse};
    let q = question(&["p99-contended"]);
    let side = |ms: f64, at_least: bool| {
        let all: Vec<_> = (0..8).map(|i| (ms * (1.0 + f64::from(i) / 1e4), at_least)).collect();
        bounded(&all)
    };
    for (a, b, judgement) in [
        ((900.0, false), (500.0, true), Unclear),
        ((500.0, false), (500.0, true), Unclear),
        ((500.0, false), (900.0, true), Worse),
        ((500.0, true), (900.0, false), Unclear),
        ((900.0, true), (500.0, false), Better),
        ((500.0, true), (500.0, false), Same),
        ((500.0, true), (900.0, true), Unclear),
        ((900.0, true), (500.0, true), Unclear),
    ] {
        let (of_a, of_b) = (side(a.0, a.1), side(b.0, b.1));
        for c in [paired(&of_a, &of_b, ("a", "b"), &q), unpaired(&of_a, &of_b, ("a", "b"), &q)] {
            let line = &c.lines[0];
            assert_eq!(line.judgement, judgement, "{a:?} {b:?} {:?}: {}", c.kind, line.reason);
            assert_eq!(judgement == Unclear, c.exit == 5);
            assert!(judgement != Unclear || line.reason.contains("only a lower bound"));
        }
        let lines = exact::lines(&of_a[0], &of_b[0], &q);
        let found = lines.first().map_or(Same, |l| l.judgement);
        assert_eq!(found, judgement, "{a:?} {b:?} exact");
    }
    // Equal bounds are no difference: identical results are the same.
    let same = side(500.0, true);
    assert!(exact::lines(&same[0], &same[0], &q).is_empty());
}

/// An arm may lack a default metric, but not one that was selected.
#[test]
fn a_default_metric_that_no_run_has_is_left_out() {
    let mut q = question(&["p99-contended", "goodput-up"]);
    let runs = bounded(&(0..12).map(|i| (f64::from(500 + i), false)).collect::<Vec<_>>());
    assert_eq!(paired(&runs, &runs, ("a", "b"), &q).exit, 5);
    q.selected = false;
    let c = paired(&runs, &runs, ("a", "b"), &q);
    assert_eq!((c.exit, c.lines.len()), (0, 1), "{:?}", c.lines);
}
